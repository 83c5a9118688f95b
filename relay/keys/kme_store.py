"""One KME's store of keys for one slave SAE, as far as it is known: what the KME says of it, and what was seen.
Standard: ETSI GS QKD 014 V1.1.1, 5.2 and 6.1 (status). A status is asked for once for all who wait for it.

It shows as which SAE the KME knows this relay: what is sealed under another's keys is lost. KMEs leave that name
(master_SAE_ID, the SAE that asks) out, or spell it otherwise.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeGuard, TypeVar

from relay.errors import KeyUnavailable, KMEMisconfigured, KMEUnreachable
from relay.keys.events import Complaint, Events
from relay.keys.refill import BatchLimit, DrawCount, LinkRate, Rate
from relay.keys.replies import KeyStatus
from relay.keys.types import Timing

if TYPE_CHECKING:
    from relay.keys.client import KMEClient

log = Events(__name__)

Result = TypeVar("Result")

USE_WINDOW_S = 300.0
"""Window of the use rate, in seconds."""

STATUS_RETRY_S = 30.0
"""Retry interval after a failed status call, in seconds; limits are unknown meanwhile."""


class KMEStore:
    """What is known of the KME's store for one slave SAE."""

    def __init__(
        self,
        client: KMEClient,
        slave_sae: str,
        known_as: Sequence[str],
        draws: DrawCount,
        timing: Timing,
        answered: Callable[[], None],
        *,
        began: float,
        asks: bool,
    ) -> None:
        """`known_as` as for a KeyPool; `draws` counts what is drawn, and `answered` is called after each status.

        `asks` False: none is asked for by itself. `began` is when the use rate begins, by the clock.
        """
        clock = self._clock = timing.clock
        self._client = client
        self._slave_sae = slave_sae
        self._known_as = known_as
        self._answered = answered
        self._asks = asks
        self._asking: asyncio.Task[KeyStatus | None] | None = None
        self._asked: float | None = None
        self._fails = Complaint(log.info, log.debug, "kme_status_unknown", clock)
        self._takes_us = Complaint(log.error, log.debug, "kme_takes_us_for_another", clock)
        self._may_take_us = Complaint(log.warning, log.debug, "kme_may_take_us_for_another", clock)
        self._another_name: AnotherName | None = None
        self._status_at = float("-inf")
        self._drawn_before = 0
        """Bits that had come when the status was asked for: of what came later it may not know."""
        self.status: KeyStatus | None = None
        """What the KME said last."""
        self.unanswered = ""
        """Why its last answer to status is of no use; "" where it is."""
        self.draws = draws
        self.link = LinkRate(clock)
        self.use = Rate(USE_WINDOW_S, clock, began=began)
        """Bits a second that left the pool to seal messages, averaged over some minutes."""
        self.batch = BatchLimit(clock)
        self.used_at = float("-inf")
        """When a key for this slave SAE was last given out, in seconds of the clock."""

    @property
    def trouble(self) -> str:
        """Why its last answer to status is of no use, or for whom it takes us there; "" where all is well."""
        return self.unanswered or str(self._another_name or "")

    @property
    def status_age(self) -> float | None:
        """Seconds since the KME said what it has; None where it never has."""
        return self._clock() - self._status_at if self.status else None

    @property
    def left(self) -> int:
        """Bits that the KME has, as it said last, without those drawn since."""
        stored = (self.status.stored_bits or 0) if self.status else 0
        return stored - (self.draws.total - self._drawn_before)

    @property
    def most(self) -> int:
        """How many keys the next request may ask for."""
        return self.batch.most(self.status.max_key_per_request if self.status else None)

    def raise_if_another(self) -> None:
        """Raises KMEMisconfigured where the KME has said that it takes us for another SAE."""
        if self._another_name is not None and self._another_name.certain:
            raise KMEMisconfigured(f"{self._client.name}: {self._another_name}")

    async def limits(self) -> KeyStatus | None:
        """The KME's limits as it gave them last; asked for once, None where it does not say.

        The asking belongs to the store: who gives up waiting for it leaves it to the others.
        """
        if self._asks and self.status is None and not goes_on(self._asking) and self._may_be_asked:
            self._asking = begun(self.ask(), "ask for status")
        if goes_on(self._asking):
            await asyncio.wait([self._asking])
        return self.status

    async def check_name(self) -> None:
        """Before any key is drawn: no peer finds one under another name than we would write into the mail.

        Raises KMEMisconfigured where the KME takes us for another SAE; that may have been corrected meanwhile.
        """
        if self.status is None:
            await self.limits()
        elif self._another_name is not None and self._may_be_asked:
            await self.ask()
        self.raise_if_another()

    async def ask(self) -> KeyStatus | None:
        """Asks the KME for its status now and learns from it; None where it does not say."""
        kme, slave_sae = self._client.name, self._slave_sae
        self._asked = self._clock()
        drawn = self.draws.total
        try:
            status = await self._client.check_key_status(slave_sae, patient=False)
        except KeyUnavailable as error:
            self._fails.say(kme=kme, slave_sae=slave_sae, cause=str(error))
            self.unanswered = f"unreachable: {error}" if isinstance(error, KMEUnreachable) else str(error)
            return None
        self._fails.over()
        self.unanswered = ""
        self._answered()
        self.status, self._status_at, self._drawn_before = status, self._clock(), drawn
        self._compare_names(status)
        if status.stored_key_count is not None and status.key_size:
            full = bool(status.max_key_count) and status.stored_key_count >= (status.max_key_count or 0)
            self.link.stored(status.stored_key_count * status.key_size, drawn, full=full)
        return status

    async def close(self) -> None:
        """Stops asking by itself."""
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


def goes_on(task: asyncio.Task[Result] | None) -> TypeGuard[asyncio.Task[Result]]:
    """Whether it is not over yet, nor left behind in an event loop that has ended."""
    return task is not None and not task.done() and task.get_loop() is asyncio.get_running_loop()


def begun(work: Coroutine[Any, Any, Result], name: str) -> asyncio.Task[Result]:
    """A task whose error is seen, in case nobody waits for it any longer."""
    task = asyncio.create_task(work, name=name)
    task.add_done_callback(lambda task: None if task.cancelled() else task.exception())
    return task


@dataclass(frozen=True, slots=True)
class AnotherName:
    """A KME's status names another SAE than us as the one that asks.

    `certain` where it names the peer just as we do: it speaks of SAEs as we do, and takes us for another one.
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
    """By what other name the KME knows us than one of `ours` (our SAE ID first); None where it does not, or says none.

    `slave_sae` is the peer's ID, by which the status was asked for. Where our own ID stands as that of the slave the
    KME has exchanged the two, and knows us.
    """
    own_names = {_folded(name) for name in ours if name}
    named = status.master_SAE_ID.strip()
    if not own_names or not named or own_names & {_folded(named), _folded(status.slave_SAE_ID)}:
        return None
    return AnotherName(named, ours[0], certain=_folded(status.slave_SAE_ID) == _folded(slave_sae))


def _folded(name: str) -> str:
    return name.strip().casefold()
