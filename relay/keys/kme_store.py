"""What is known about one KME's key store for one slave SAE, from its status and by observation.
Standard: ETSI GS QKD 014 V1.1.1, 5.2 and 6.1 (status). Concurrent callers share one status call.

The status also shows as which SAE the KME knows this relay: mail sealed under another SAE's keys is lost. Some KMEs
omit that name (master_SAE_ID, the calling SAE), or spell it differently.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass

from relay.errors import KeyUnavailable, KMEMisconfigured, KMEUnreachable
from relay.keys.asking import Asker
from relay.keys.events import Complaint, Events
from relay.keys.refill import BatchLimit, DrawCount, LinkRate, Rate
from relay.keys.replies import KeyStatus
from relay.keys.types import Timing
from relay.runtime.aio import begun, goes_on

log = Events(__name__)

USE_WINDOW_S = 300.0
"""Window of the use rate, in seconds."""

STATUS_RETRY_S = 30.0
"""Retry interval after a failed status call, in seconds; limits are unknown meanwhile."""


class KMEStore:
    """The state of the KME's store for one slave SAE."""

    def __init__(
        self,
        client: Asker,
        slave_sae: str,
        known_as: Sequence[str],
        draws: DrawCount,
        timing: Timing,
        *,
        began: float,
        asks: bool,
    ) -> None:
        """`known_as` as for a KeyPool; `draws` counts drawn bits.

        `asks` False: no automatic status calls. `began` is the start of the use rate, by the clock.
        """
        clock = self._clock = timing.clock
        self._client = client
        self._slave_sae = slave_sae
        self._known_as = known_as
        self._asks = asks
        self._asking: asyncio.Task[KeyStatus | None] | None = None
        self._asked: float | None = None
        self._takes_us = Complaint(log.error, log.debug, "kme_takes_us_for_another", clock)
        self._may_take_us = Complaint(log.warning, log.debug, "kme_may_take_us_for_another", clock)
        self._another_name: AnotherName | None = None
        self._status_at = float("-inf")
        self._drawn_before = 0
        """Bits drawn when the status was requested; later ones may not be included."""
        self.status: KeyStatus | None = None
        """The last status."""
        self.unanswered = ""
        """Why the last status call failed, or ""."""
        self.draws = draws
        self.link = LinkRate(clock)
        self.use = Rate(USE_WINDOW_S, clock, began=began)
        """Use rate in bits a second, averaged over some minutes."""
        self.batch = BatchLimit(clock)
        self.used_at = float("-inf")
        """Time of the last use of a key for this slave SAE, by the clock."""

    @property
    def trouble(self) -> str:
        """Why the last status call failed, or the wrong SAE it takes us for; "" when all is well."""
        return self.unanswered or str(self._another_name or "")

    @property
    def status_age(self) -> float | None:
        """Seconds since the last status; None without one."""
        return self._clock() - self._status_at if self.status else None

    @property
    def left(self) -> int:
        """Bits left in the KME: the last status without bits drawn since."""
        stored = (self.status.stored_bits or 0) if self.status else 0
        return stored - (self.draws.total - self._drawn_before)

    @property
    def most(self) -> int:
        """Maximum number of keys in the next request."""
        return self.batch.most(self.status.max_key_per_request if self.status else None)

    def raise_if_another(self) -> None:
        """Raises KMEMisconfigured if the KME reported another SAE for us."""
        if self._another_name is not None and self._another_name.certain:
            raise KMEMisconfigured(f"{self._client.name}: {self._another_name}")

    async def limits(self) -> KeyStatus | None:
        """The KME's last limits, requested once; None if unknown.

        The call belongs to the store: cancelling one caller does not cancel it for others.
        """
        if self._asks and self.status is None and not goes_on(self._asking) and self._may_be_asked:
            self._asking = begun(self.ask(), "ask for status")
        if goes_on(self._asking):
            await asyncio.wait([self._asking])
        return self.status

    async def check_name(self) -> None:
        """Checks our name before any key is drawn: a peer cannot find keys issued under another name.

        Raises KMEMisconfigured if the KME takes us for another SAE; asks again, since that may have been corrected.
        """
        if self.status is None:
            await self.limits()
        elif self._another_name is not None and self._may_be_asked:
            await self.ask()
        self.raise_if_another()

    async def ask(self) -> KeyStatus | None:
        """Requests the KME's status now and updates from it; None if it fails."""
        self._asked = self._clock()
        drawn = self.draws.total
        try:
            status = await self._client.check_key_status(self._slave_sae, patient=False)
        except KeyUnavailable as error:
            self.unanswered = f"unreachable: {error}" if isinstance(error, KMEUnreachable) else str(error)
            return None
        self.unanswered = ""
        self.status, self._status_at, self._drawn_before = status, self._clock(), drawn
        self._compare_names(status)
        if status.stored_key_count is not None and status.key_size:
            full = bool(status.max_key_count) and status.stored_key_count >= (status.max_key_count or 0)
            self.link.stored(status.stored_key_count * status.key_size, drawn, full=full)
        return status

    async def close(self) -> None:
        """Stops automatic status calls."""
        self._asks = False
        if goes_on(self._asking):
            self._asking.cancel()
            await asyncio.gather(self._asking, return_exceptions=True)

    @property
    def _may_be_asked(self) -> bool:
        return self._asked is None or self._clock() - self._asked >= STATUS_RETRY_S

    def _compare_names(self, status: KeyStatus) -> None:
        other = self._another_name = another_name(status, self._known_as, self._slave_sae)
        for complaint, certain in ((self._takes_us, True), (self._may_take_us, False)):
            if other is not None and other.certain == certain:
                names = {"named": other.named, "sae_id": other.ours}
                complaint.say(kme=self._client.name, slave_sae=self._slave_sae, **names, cause=str(other))
            else:
                complaint.over()


@dataclass(frozen=True, slots=True)
class AnotherName:
    """A KME's status names another SAE than us as the caller.

    `certain` if it names the peer exactly as we do: then the name is no spelling variant.
    """

    named: str
    ours: str
    certain: bool

    def __str__(self) -> str:
        problem = f"the KME knows this relay as SAE {self.named!r}, and [site] sae_id says {self.ours!r}: "
        if self.certain:
            problem += (
                "no peer could open what is sealed under its keys, and none is drawn; correct sae_id, or the "
                "certificate for this KME"
            )
        else:
            problem += "correct sae_id, or tell that this is only its spelling (calls_us of the KME)"
        return problem


def another_name(status: KeyStatus, ours: Sequence[str], slave_sae: str) -> AnotherName | None:
    """The KME's name for us if it is none of `ours` (our SAE ID first); None if it matches or is missing.

    `slave_sae` is the peer's ID in the status request. If our own ID is in the slave's place, the KME has swapped the
    two, and knows us.
    """
    own_names = {_folded(name) for name in ours if name}
    named = status.master_SAE_ID.strip()
    if not own_names or not named or own_names & {_folded(named), _folded(status.slave_SAE_ID)}:
        return None
    return AnotherName(named, ours[0], certain=_folded(status.slave_SAE_ID) == _folded(slave_sae))


def _folded(name: str) -> str:
    return name.strip().casefold()
