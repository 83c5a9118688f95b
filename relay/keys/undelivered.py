"""KMEs that drop what was not delivered yet when more is asked for: how one is found out, and how it is lived with.
Standard: ETSI GS QKD 014 V1.1.1, 5.3 and 6.2 (additional slaves); how long a KME keeps keys for a slave is left open.

With such a KME every mail is lost whose keys the peer has not fetched when we draw the next. We cannot see when the
peer fetches, so keys are drawn one batch at a time: the next one a while after the last key of the one before was used.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from relay.errors import KeyUnavailable, KMEExhausted
from relay.keys.contract import KeyDelivery
from relay.keys.events import Events
from relay.keys.replies import KeyStatus

log = Events(__name__)

ONE_BATCH_S = 60.0
"""So long after a key was used the peer is taken to have fetched it, where nothing else is set."""


TRY_EVERY_S = 3600.0
"""A KME is tried at the start and, as it may be updated or give way to another, so long after that again."""


class Undelivered:
    """What one KME does with keys that were not delivered yet."""

    def __init__(self, client: KeyDelivery, one_batch: float, clock: Callable[[], float]) -> None:
        """`one_batch` is how many seconds after the last use of a batch the next is drawn; 0: that is not needed."""
        self.one_batch = one_batch
        self.dropped = False
        """Whether the KME was seen to drop keys."""
        self._client = client
        self._clock = clock
        self._own_sae: str | None = None
        self._try_at = float("-inf")
        self._finding_out = asyncio.Lock()
        self._began = float("-inf")

    def serve(self, own_sae: str) -> None:
        """A relay begins to serve: the KME is tried before the first key is drawn, and later on; two keys each time.

        Where it is known to drop keys, those of a run before this one are given their time first.
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
                keeps = await self._client.keeps_undelivered(slave_sae, self._own_sae)
                if keeps is False:
                    keeps = await self._client.keeps_undelivered(slave_sae, self._own_sae)
            except KeyUnavailable as error:
                log.info("kme_not_tried", kme=self._client.name, cause=str(error))
                return
            self._try_at = self._clock() + TRY_EVERY_S
            if keeps is False:
                # What a run before this one left under way was dropped by the trial: there is nothing to wait for.
                self.dropped, self.one_batch, self._began = True, ONE_BATCH_S, float("-inf")
                log.error("kme_drops_undelivered_keys", kme=self._client.name, one_batch_at_a_time=ONE_BATCH_S)

    def wait(self, used_at: float) -> float:
        """Seconds until the next batch may be drawn, when a key of the last one was used then; 0 or less: none."""
        return max(used_at, self._began) + self.one_batch - self._clock() if self.one_batch else 0.0

    def raise_if_early(self, used_at: float) -> None:
        """Raises KMEExhausted while the next batch may not be drawn."""
        if (wait := self.wait(used_at)) > 0:
            text = f"{self._client.name}: drops undelivered keys, so the next are drawn in {wait:.0f} s"
            raise KMEExhausted(text)
