"""KMEs that drop what was not delivered yet when more is asked for: how one is detected, and how it is worked around.
Standard: ETSI GS QKD 014 V1.1.1, 5.3 and 6.2 (additional slaves). How long a KME keeps keys for a slave is left open.

With such a KME every mail is lost whose keys the peer has not fetched when we draw the next. We cannot see when the
peer fetches, so keys are drawn one batch at a time. The next batch follows a while after the last key of the one before
was used.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import suppress
from typing import TYPE_CHECKING

from relay.errors import KeyUnavailable, KMEExhausted, StoreUnavailable
from relay.keys.events import Events
from relay.keys.replies import KeyStatus
from relay.keys.types import TrialStore

if TYPE_CHECKING:
    from relay.keys.client import KMEClient

log = Events(__name__)

ONE_BATCH_S = 60.0
"""Time after its use for the peer to have fetched a key, where nothing else is set, in seconds."""

_RESULTS = {True: "kept", False: "dropped", None: "untold"}
"""How the answers of `keeps_undelivered` are remembered."""

TRY_EVERY_S = 3600.0
"""Interval of this test of a KME, in seconds: it may be updated or replaced."""
LOOK_S = 0.05
"""Poll interval while another process tries the KME, in seconds."""


class Undelivered:
    """What one KME does with keys that were not delivered yet."""

    def __init__(self, client: KMEClient, one_batch: float, clock: Callable[[], float]) -> None:
        """`one_batch` is how many seconds after the last use of a batch the next is drawn; 0: that is not needed."""
        self.one_batch = one_batch
        self.dropped = False
        """Whether the KME was seen to drop keys."""
        self.for_others = False
        """Whether another process draws from such a KME, and this one may not."""
        self.trials: TrialStore | None = None
        """Where it is remembered what was found, over restarts."""
        self._client = client
        self._clock = clock
        self._own_sae: str | None = None
        self._try_at = float("-inf")
        self._finding_out = asyncio.Lock()
        self._began = float("-inf")

    def serve(self, own_sae: str) -> None:
        """A relay begins to serve: the KME is tried before the first key is drawn, and later on; two keys each time.

        Not at first where it is remembered what came of that, and the KME describes itself as it did then. Where it is
        known to drop keys, those of a run before this one are given their time first.
        """
        self._own_sae = own_sae
        self._began = self._clock()

    async def find_out(self, slave_sae: str, status: KeyStatus | None) -> None:
        """Tries the KME where that is due and wanted, and its `status` allows for further slaves. Raises nothing.

        While it does not answer it is tried later. What one answer says is not believed: a fault may have spoilt it.
        """
        async with self._finding_out:
            if self._own_sae is None or self.one_batch or status is None or not status.max_SAE_ID_count:
                return
            if self._clock() < self._try_at:
                return
            try:
                result = await self._remembered_or_tried((self._client.url, self._own_sae, slave_sae), status)
            except (KeyUnavailable, StoreUnavailable) as error:
                log.info("kme_not_tried", kme=self._client.name, cause=str(error))
                return
            self._try_at = self._clock() + TRY_EVERY_S
            if result == _RESULTS[False]:
                self.dropped, self.one_batch = True, ONE_BATCH_S
                log.error("kme_drops_undelivered_keys", kme=self._client.name, one_batch_at_a_time=ONE_BATCH_S)

    async def _remembered_or_tried(self, kme: tuple[str, str, str], status: KeyStatus) -> str:
        """What is remembered of the KME (its URL, our SAE, the slave SAE), at first; else what a trial finds now."""
        url, own_sae, slave_sae = kme
        trials, first = self.trials, self._try_at == float("-inf")
        if trials is None:
            result = _RESULTS[await self._keeps(slave_sae, own_sae)]
        elif first and (result := await trials.recall(kme, _described(status)) or ""):
            return result
        else:
            while True:
                if await trials.begin((url, own_sae)):
                    break
                await asyncio.sleep(LOOK_S)  # another process tries it, and what it finds counts here too
            try:
                result = await trials.recall(kme, _described(status)) or "" if first else ""
                result = result or await remembered(trials, kme, status, await self._keeps(slave_sae, own_sae))
            finally:
                with suppress(StoreUnavailable):
                    await trials.end((url, own_sae))
        # What a run before this one left under way was dropped by the trial: there is nothing to wait for.
        self._began = float("-inf")
        return result

    async def _keeps(self, slave_sae: str, own_sae: str) -> bool | None:
        """As `keeps_undelivered`; that keys are dropped is believed when it was seen twice."""
        keeps = await self._client.keeps_undelivered(slave_sae, own_sae)
        return await self._client.keeps_undelivered(slave_sae, own_sae) if keeps is False else keeps

    def raise_if_early(self, used_at: float) -> None:
        """Raises KMEExhausted while the next batch may not be drawn, when a key of the last one was used then."""
        if self.for_others:
            raise KMEExhausted(f"{self._client.name}: drops undelivered keys, so that one process alone draws from it")
        if (wait := max(used_at, self._began) + self.one_batch - self._clock()) > 0:
            text = f"{self._client.name}: drops undelivered keys, so the next are drawn in {wait:.0f} s"
            raise KMEExhausted(text)


async def known_to_drop(trials: TrialStore, kme: tuple[str, str, str], status: KeyStatus) -> bool:
    """Whether it is remembered that this KME drops keys, while it describes itself as then. Raises StoreUnavailable."""
    return await trials.recall(kme, _described(status)) == _RESULTS[False]


async def remembered(
    trials: TrialStore | None, kme: tuple[str, str, str], status: KeyStatus, keeps: bool | None
) -> str:
    """What is known from now on of a KME (its URL, our SAE, the slave SAE), as the store has it.

    A store that cannot be written costs two keys at the next start, no more.
    """
    try:
        if trials is not None:
            await trials.remember(kme, _described(status), _RESULTS[keeps])
    except StoreUnavailable as error:
        log.info("kme_trial_not_remembered", kme=kme[0], cause=str(error))
    return _RESULTS[keeps]


def _described(status: KeyStatus) -> tuple[object, ...]:
    """What stays the same while a KME is the same: neither how many keys there are, nor extensions."""
    return (
        status.source_KME_ID,
        status.target_KME_ID,
        status.key_size,
        status.max_key_count,
        status.max_key_per_request,
        status.max_key_size,
        status.min_key_size,
        status.max_SAE_ID_count,
    )
