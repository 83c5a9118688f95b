"""The keys and the DNS zone of the unit tests, here for tests that run whole relays with them."""

from tests.unit.dkim.conftest import keys as keys, verifier as verifier, zone as zone
