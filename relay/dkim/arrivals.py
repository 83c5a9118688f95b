"""What becomes of the signatures of arriving mail: verified before it is opened, told on top of the original.
Standard: RFC 8601 4 (adding results), 5 (removing forged ones), RFC 8617 5.1 (sealing what we have changed).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import structlog

from relay.aio import off_loop
from relay.config import Config
from relay.dkim.arc import Sealer
from relay.dkim.keys import SigningKey
from relay.dkim.records import KeyRecords
from relay.dkim.results import Result, results_field, without_forged
from relay.dkim.verifying import Verifier
from relay.errors import ConfigError

log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Arrivals:
    """Verifies, and tells of it under our `authserv_id`; with a `sealer` in ARC, too."""

    verifier: Verifier
    authserv_id: str
    sealer: Sealer | None = None

    async def verified(self, message: bytes) -> tuple[Result, ...]:
        """The results for a message that is sealed for us, as it arrived; others look after any other."""
        results = await self.verifier.both(message)
        log.info("signatures_verified", results=[f"{each.method}={each.result}" for each in results])
        return results

    async def told(self, original: bytes, results: Sequence[Result]) -> bytes:
        """The opened original under what we have found; results in it that claim to be ours are removed."""
        original = await self.without_forged(original)
        seal = await self._seal(original, results)
        return seal + results_field(self.authserv_id, results) + original

    async def without_forged(self, message: bytes) -> bytes:
        """A message from outside, without results that claim to be ours."""
        return await off_loop(len(message), without_forged, message, self.authserv_id)

    async def _seal(self, original: bytes, results: Sequence[Result]) -> bytes:
        if self.sealer is None:
            return b""
        chain = await self.verifier.arc(original)
        seal = await off_loop(len(original), self.sealer.seal, original, chain, results)
        if not seal:
            log.info("not_sealed_in_arc", chain=chain.result, length=chain.length)
        return seal


def arrivals(config: Config, keys: Sequence[SigningKey]) -> Arrivals | None:
    """What [dkim] wants done with arriving mail; None where it wants nothing. Raises ConfigError."""
    table = config.dkim
    if table is None or not table.verify:
        return None
    authserv_id = table.authserv_id or config.site.hostname
    key = next((key for key in keys if key.algorithm == "rsa"), None)
    if table.arc_seal and key is None:
        raise ConfigError("dkim.arc_seal: none of [[dkim.keys]] is an RSA key, and ARC knows no other (RFC 8617)")
    verifier = Verifier(KeyRecords(table.dns_timeout, table.dns_servers), table.max_signatures)
    sealer = Sealer(key, authserv_id) if table.arc_seal and key else None
    return Arrivals(verifier, authserv_id, sealer)
