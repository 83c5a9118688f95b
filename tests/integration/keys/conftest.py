"""The fake KMEs of the unit tests, here for tests that run whole relays over them."""

from tests.unit.keys.conftest import certificates as certificates, kme as kme, time as time, two_kmes as two_kmes
