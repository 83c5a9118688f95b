"""Certificates in verified signatures of mail that arrived, kept until the administrator accepts them.
Standard: RFC 8550 2.3 (certificates come with signatures); the same files as directory.py, in a directory of their own.

Nothing is sealed to them, and no signature counts by them. Anybody can send mail that is signed with a certificate of
their own making, for any address. Those have a limit, and take no room from what a CA in `anchors` vouches for.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime

from cryptography import x509

from relay.identity.certificates import valid_now
from relay.smime.directory import CertificateDirectory

MAX_NAMES = 10_000
"""Maximum number of addresses with certificates that a CA vouches for."""
MAX_UNVOUCHED_NAMES = 1_000
"""Number of addresses from which on no certificate is kept for a further one without such a CA."""
MAX_EACH = 3
"""Maximum number of certificates for an address."""
COUNT_S = 60.0
"""Interval between two counts of all addresses, in seconds: a count opens each directory."""


@dataclass(slots=True)
class Offers:
    """The certificates offered, in files below `directory`; `clock` gives seconds since any moment."""

    directory: CertificateDirectory
    clock: Callable[[], float] = time.monotonic
    _names: int = 0
    _counted_at: float = float("-inf")

    def keep(self, name: str, certificate: x509.Certificate, now: datetime, *, vouched: bool) -> bool:
        """Keeps a certificate of this comparable mailbox. False if it is there, or there is no room.

        Raises ConfigError if it cannot be written.
        """
        before = self.directory.named(name).certificates
        valid = [each for each in before if valid_now(each, now)]
        if certificate in valid or not (vouched or len(valid) < MAX_EACH):
            return False
        if not before and self._count() >= (MAX_NAMES if vouched else MAX_UNVOUCHED_NAMES):
            return False
        self.directory.put(name, ([certificate, *valid] if vouched else [*valid, certificate])[:MAX_EACH])
        self._names += not before
        return True

    def _count(self) -> int:
        if (now := self.clock()) - self._counted_at >= COUNT_S:
            self._names, self._counted_at = sum(1 for _ in self.directory.names()), now
        return self._names
