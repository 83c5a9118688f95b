"""What two clients of one pair of KMEs share: turns, and whether the KMEs keep keys that nobody has fetched.
Standard: ETSI GS QKD 014 V1.1.1 leaves both open; next-door-key-simulator is why.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from typing import Protocol

from relay.errors import KeyUnavailable
from relay.keys.client import KMEClient
from relay.keys.events import Events
from relay.keys.faults import NotAsked
from relay.keys.types import Key

log = Events(__name__)

TRIAL_BITS = 256
"""Size of the two keys of a trial, in bits."""
FETCHED_WITHIN_S = 2.0
"""Time for the other client to fetch drawn keys before more are drawn, in seconds: its KME may drop them then."""


class Draw(Protocol):
    """As KMEClient.draw_keys."""

    async def __call__(self, slave_sae_id: str, number: int, size: int, *, patient: bool = True) -> list[Key]:
        """From 1 to `number` fresh keys."""


class Pairing:
    """The state that both clients of a pair share."""

    def __init__(self, *, keeps: bool | None = None) -> None:
        self.keeps = keeps
        """Whether the KMEs keep undelivered keys; None before it was tried."""
        self._asked: KMEClient | None = None
        self._calls = 0
        self._waiting: deque[tuple[KMEClient, asyncio.Future[None]]] = deque()
        self._unfetched: dict[KMEClient, tuple[set[str], float]] = {}
        self._news: list[asyncio.Future[None]] = []

    async def delivered(self, kme: KMEClient) -> None:
        """Returns once the last keys of this KME are fetched, or FETCHED_WITHIN_S have passed."""
        loop = asyncio.get_running_loop()
        key_IDs, until = self._unfetched.get(kme, (set(), 0.0))
        while key_IDs and (left := until - loop.time()) > 0:
            self._news.append(heard := loop.create_future())
            await asyncio.wait({heard}, timeout=left)

    def drawn(self, kme: KMEClient, key_IDs: Iterable[str]) -> None:
        """Records keys that the other client is to fetch."""
        self._unfetched[kme] = set(key_IDs), asyncio.get_running_loop().time() + FETCHED_WITHIN_S

    def fetched(self, key_IDs: Iterable[str]) -> None:
        """Records that keys were fetched, or are not there."""
        for left, _ in self._unfetched.values():
            left.difference_update(key_IDs)
        news, self._news = self._news, []
        for heard in news:
            if heard.get_loop() is asyncio.get_running_loop() and not heard.done():
                heard.set_result(None)

    @asynccontextmanager
    async def turn(self, kme: KMEClient) -> AsyncIterator[None]:
        """Calls for keys inside go to one KME at a time: some hang for good if both are asked at once.

        Those that were met drop undelivered keys, too, so KMEs that keep them need no turns.
        """
        if self.keeps:
            yield
            return
        if self._asked in (None, kme) and not self._waiting:
            self._begin(kme)
        else:
            place = kme, asyncio.get_running_loop().create_future()
            self._waiting.append(place)
            try:
                async with asyncio.timeout(kme.timeout):
                    await place[1]
            except (asyncio.CancelledError, TimeoutError) as error:
                if place in self._waiting:
                    self._waiting.remove(place)
                else:
                    self._end()
                if isinstance(error, asyncio.CancelledError):
                    raise
                text = f"the other KME of the pair has not answered within {kme.timeout:g} s"
                raise NotAsked(f"{kme.name}: not asked, {text}") from None
        try:
            yield
        finally:
            self._end()

    async def find_out(self, ours: KMEClient, theirs: KMEClient, slave_sae: str, draw: Draw) -> None:
        """Looks whether a key can be fetched at the other KME after a further one was drawn; it costs two, once."""
        if self.keeps is None:
            self.keeps = False  # the other client keeps nothing ready meanwhile
            try:
                own = (await ours.check_key_status(slave_sae, patient=False)).master_SAE_ID
                drawn = [await draw(slave_sae, 1, TRIAL_BITS, patient=False) for _ in range(2)]
                ours.accounts.issued_and_burnt(slave_sae, 2, "trial")
                await theirs.request_dec_keys(own, [drawn[0][0].key_ID], patient=False)
                self.keeps = True
            except KeyUnavailable as error:
                log.warning("keys_not_kept_ready", kme=ours.name, slave_sae=slave_sae, cause=str(error))

    def _begin(self, kme: KMEClient) -> None:
        self._asked, self._calls = kme, self._calls + 1

    def _end(self) -> None:
        self._calls -= 1
        if self._calls:
            return
        self._asked = None
        while self._waiting and self._asked in (None, self._waiting[0][0]):
            kme, place = self._waiting.popleft()
            if not place.done():
                place.set_result(None)
                self._begin(kme)
