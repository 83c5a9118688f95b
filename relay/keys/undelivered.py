"""What one KME does with keys that the peer has not fetched, when more are drawn, and when more may be drawn.
Standard: ETSI GS QKD 014 V1.1.1, 5.3, which does not specify how long a KME keeps keys for a slave.

Mail under keys that were dropped can never be opened. So one batch is drawn at a time until the KME was seen to keep
undelivered keys. The next batch follows once the peer had time to fetch what was used. A trial shows it (etsi014.py),
or `keys trial` with the peer's relay, or the administrator says so.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict

from relay.errors import KeyUnavailable, StoreUnavailable
from relay.keys.asking import Asker
from relay.keys.events import Events
from relay.keys.replies import KeyStatus
from relay.keys.types import Found, TrialStore

log = Events(__name__)

ONE_BATCH_S = 60.0
"""Time for the peer to fetch a key after its use, with a KME that drops keys, in seconds."""
UNTOLD_S = 5.0
"""The same with a KME of which nothing is known, in seconds."""
LOOK_AGAIN_S = 60.0
"""Interval at which the store is asked again for what was found out, in seconds."""
LOOK_S = 0.05
"""Poll interval while another process tries the KME, in seconds."""


class Undelivered:
    """The handling of undelivered keys by one KME."""

    def __init__(self, setting: float | None, clock: Callable[[], float]) -> None:
        """`setting` is the pause in seconds after the last use of a key before the next batch.

        0: the KME keeps undelivered keys. None: unknown.
        """
        self.found: Found | None = None
        """What was found out, None before."""
        self.for_others = False
        """Whether only another process may draw from a KME that drops keys."""
        self.trials: TrialStore | None = None
        """Persistent results of trials."""
        self._setting = setting
        self._clock = clock
        self._own_sae: str | None = None
        self._tried = False
        self._look_at = self._began = float("-inf")
        self._finding_out = asyncio.Lock()

    def serve(self, own_sae: str) -> None:
        """Begins a run of a relay with this SAE ID, which finds out what the KME does before the first key is drawn.

        Where it is known to drop keys, those of a previous run are given their time.
        """
        self._own_sae = own_sae
        self._began = self._clock()

    @property
    def dropped(self) -> bool:
        """Whether the KME was seen to drop undelivered keys."""
        return self.found in ("dropped", "counted")

    @property
    def pause(self) -> float:
        """Seconds from the last use of a key to the next batch; 0: keys are drawn freely."""
        if self._setting is not None:
            return self._setting
        if self.found == "kept" or self._own_sae is None:
            return 0.0
        return ONE_BATCH_S if self.dropped else UNTOLD_S

    @property
    def strict(self) -> bool:
        """Whether no key may be used after the next request, and one process alone may draw."""
        return self.pause > 0 and (self.dropped or self._setting is not None)

    def wait(self, used_at: float) -> float:
        """Seconds until the next batch may be drawn; `used_at` is the last use of a key."""
        return max(used_at, self._began if self.strict else float("-inf")) + self.pause - self._clock()

    async def find_out(self, client: Asker, slave_sae: str, status: KeyStatus | None, *, may_try: bool) -> None:
        """Looks up what is known of the KME, or else tries it if allowed. Raises nothing.

        A trial that failed is repeated later.
        """
        if self._own_sae is None or self._setting is not None or status is None:
            return
        async with self._finding_out:
            if self.found not in (None, "untold") or self._clock() < self._look_at:
                return
            try:
                found = await self._remembered_or_tried(client, self._own_sae, slave_sae, status, may_try=may_try)
            except (KeyUnavailable, StoreUnavailable) as error:
                log.info("kme_not_tried", kme=client.name, cause=str(error))
                found = "untold"
            if found is None:
                return
            self.found, self._look_at = found, self._clock() + LOOK_AGAIN_S
            if self.dropped:
                log.error("kme_drops_undelivered_keys", kme=client.name, one_batch_at_a_time=ONE_BATCH_S)

    async def _remembered_or_tried(
        self, client: Asker, own_sae: str, slave_sae: str, status: KeyStatus, *, may_try: bool
    ) -> Found | None:
        """The stored result, else that of a trial; None if there is none, and none may be made."""
        trials, kme = self.trials, (client.url, own_sae, slave_sae)
        if trials is None:
            return await self._try(client, own_sae, slave_sae) if may_try and not self._tried else self.found
        if (known := await recalled(trials, kme, status)) or not may_try or self._tried:
            return known or self.found
        while True:
            if await trials.begin((client.url, own_sae)):
                break
            await asyncio.sleep(LOOK_S)  # another process tries it; its result is used here too
        try:
            if (known := await recalled(trials, kme, status)) is None:
                known = await self._try(client, own_sae, slave_sae)
                await remember(trials, kme, status, known)
        finally:
            with suppress(StoreUnavailable):
                await trials.end((client.url, own_sae))
        return known

    async def _try(self, client: Asker, own_sae: str, slave_sae: str) -> Found:
        """A trial. One that finds that keys were dropped is confirmed by a second one: a fault may look like that."""
        found = await client.keeps_undelivered(slave_sae, own_sae)
        if found != "kept":
            found = await client.keeps_undelivered(slave_sae, own_sae) if found != "untold" else found
        # The keys of a previous run were dropped by the trial, or never are: there is nothing to wait for.
        self._tried, self._began = True, float("-inf")
        return found


async def recalled(trials: TrialStore, kme: tuple[str, str, str], status: KeyStatus) -> Found | None:
    """What is stored of this KME (its URL, our SAE, the slave SAE) with the same description.

    Raises StoreUnavailable.
    """
    result = await trials.recall(kme, _described(status))
    known: tuple[Found, ...] = ("kept", "dropped", "counted", "untold")
    return next((found for found in known if found == result), None)


async def remember(trials: TrialStore, kme: tuple[str, str, str], status: KeyStatus, found: Found) -> None:
    """Stores what was found of a KME. If the store is unavailable, the next start tries it again."""
    try:
        await trials.remember(kme, _described(status), found)
    except StoreUnavailable as error:
        log.info("kme_trial_not_remembered", kme=kme[0], cause=str(error))


def _described(status: KeyStatus) -> tuple[object, ...]:
    """The stable description of a KME: without the SAEs, the number of keys and extensions."""
    changing = ("master_SAE_ID", "slave_SAE_ID", "stored_key_count", "status_extension")
    return tuple(value for name, value in asdict(status).items() if name not in changing)
