"""The fake KMEs of the unit tests, here for tests that run whole relays over them."""

from tests.unit.keys.conftest import certificates as certificates
from tests.unit.keys.conftest import kme as kme
from tests.unit.keys.conftest import time as time
from tests.unit.keys.conftest import two_kmes as two_kmes
