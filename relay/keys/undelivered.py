"""KMEs that drop undelivered keys when more are drawn: detection and workaround.
Standard: ETSI GS QKD 014 V1.1.1, 5.3 and 6.2 (additional slaves). It does not specify how long a KME keeps keys for a
slave.

With such a KME, mail is lost if the peer has not fetched its keys before we draw the next. We cannot see when the peer
fetches, so keys are drawn one batch at a time. The next batch follows a while after the last key of the previous one
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
"""Default time for the peer to fetch a key after its use, in seconds."""

_RESULTS = {True: "kept", False: "dropped", None: "untold"}
"""Stored results of `keeps_undelivered`."""

TRY_EVERY_S = 3600.0
"""Interval of this trial of a KME, in seconds: it may be updated or replaced."""
LOOK_S = 0.05
"""Poll interval while another process tries the KME, in seconds."""


class Undelivered:
    """The handling of undelivered keys by one KME."""

    def __init__(self, client: KMEClient, one_batch: float, clock: Callable[[], float]) -> None:
        """`one_batch` is the delay of the next batch after the last use of the previous one, in seconds; 0: none."""
        self.one_batch = one_batch
        self.dropped = False
        """Whether the KME was observed to drop keys."""
        self.for_others = False
        """Whether only another process may draw from such a KME."""
        self.trials: TrialStore | None = None
        """Persistent results of trials."""
        self._client = client
        self._clock = clock
        self._own_sae: str | None = None
        self._try_at = float("-inf")
        self._finding_out = asyncio.Lock()
        self._began = float("-inf")

    def serve(self, own_sae: str) -> None:
        """Enables trials of the KME for a serving relay, before the first key is drawn and later; each costs two keys.

        The first one is skipped if a result for the same description of the KME is stored. If the KME is known to drop
        keys, those of a previous run are given their time first.
        """
        self._own_sae = own_sae
        self._began = self._clock()

    async def find_out(self, slave_sae: str, status: KeyStatus | None) -> None:
        """Runs a due trial of the KME, if enabled and its `status` allows further slaves. Raises nothing.

        A KME that does not answer is tried later. A single negative result is not trusted: it may be due to a fault.
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
        """The stored result for the KME (its URL, our SAE, the slave SAE), at first; else that of a new trial."""
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
                await asyncio.sleep(LOOK_S)  # another process tries it; its result is used here too
            try:
                result = await trials.recall(kme, _described(status)) or "" if first else ""
                result = result or await remembered(trials, kme, status, await self._keeps(slave_sae, own_sae))
            finally:
                with suppress(StoreUnavailable):
                    await trials.end((url, own_sae))
        # Keys of a previous run were dropped by the trial: there is nothing to wait for.
        self._began = float("-inf")
        return result

    async def _keeps(self, slave_sae: str, own_sae: str) -> bool | None:
        """As `keeps_undelivered`; dropping is confirmed by a second trial."""
        keeps = await self._client.keeps_undelivered(slave_sae, own_sae)
        return await self._client.keeps_undelivered(slave_sae, own_sae) if keeps is False else keeps

    def raise_if_early(self, used_at: float) -> None:
        """Raises KMEExhausted while the next batch may not be drawn; `used_at` is the last use of a key."""
        if self.for_others:
            raise KMEExhausted(f"{self._client.name}: drops undelivered keys, so that one process alone draws from it")
        if (wait := max(used_at, self._began) + self.one_batch - self._clock()) > 0:
            text = f"{self._client.name}: drops undelivered keys, so the next are drawn in {wait:.0f} s"
            raise KMEExhausted(text)


async def known_to_drop(trials: TrialStore, kme: tuple[str, str, str], status: KeyStatus) -> bool:
    """Whether this KME, with the same description, is stored as dropping keys. Raises StoreUnavailable."""
    return await trials.recall(kme, _described(status)) == _RESULTS[False]


async def remembered(
    trials: TrialStore | None, kme: tuple[str, str, str], status: KeyStatus, keeps: bool | None
) -> str:
    """Stores the result for a KME (its URL, our SAE, the slave SAE), and returns its stored form.

    If the store is unavailable, the next start costs two more keys.
    """
    try:
        if trials is not None:
            await trials.remember(kme, _described(status), _RESULTS[keeps])
    except StoreUnavailable as error:
        log.info("kme_trial_not_remembered", kme=kme[0], cause=str(error))
    return _RESULTS[keeps]


def _described(status: KeyStatus) -> tuple[object, ...]:
    """The stable description of a KME: without the number of keys and extensions."""
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
