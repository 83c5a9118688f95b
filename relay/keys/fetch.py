"""dec_keys: the keys that one message names, each stored before use.
Standard: ETSI GS QKD 014 V1.1.1, 5.4: a KME delivers a key once.

A call belongs to the fetcher, not to its callers: when they give up, the keys that arrive are still stored.

Anybody can send mail that names keys which do not exist. The keys of a long message are requested in parts, one after
the other, and no more once one of them does not come. Each part takes a turn, and master SAEs take turns.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress

from relay.errors import KeyNotFound, KeyUnavailable, KMEUnreachable, StoreUnavailable
from relay.keys.client import KMEClient
from relay.keys.events import Events
from relay.keys.types import KeepKeys, Key
from relay.runtime.aio import FairTurns, begun

log = Events(__name__)

CLOSING_GRACE_S = 3.0
"""Shutdown grace period of calls under way, in seconds: the KME gives their keys only once."""

AT_ONCE = 8
"""Maximum number of concurrent calls, out of the connections (pool_maxsize, 10)."""

Fetched = tuple[dict[str, Key], KeyUnavailable | StoreUnavailable | None]
"""The keys that came, by ID, and why the others did not; None: the KME does not know one of them."""


class Fetcher:
    """Fetches keys from one KME. `keep` (if any) is awaited before a key is returned."""

    def __init__(self, client: KMEClient, *, keep: KeepKeys | None, count: Callable[[str, int], None]) -> None:
        """`count` counts keys by outcome."""
        self.client = client
        self.keep = keep
        self.ready: Callable[[], Awaitable[None]] | None = None
        """Awaited before each call; raises StoreUnavailable while keys cannot be stored."""
        self._count = count
        self._turns = FairTurns(AT_ONCE)
        self._calls: dict[tuple[str, tuple[str, ...]], asyncio.Task[Fetched]] = {}
        """What is fetched now, by master SAE and the key_IDs of the message."""
        self._unkept: dict[tuple[str, str], Key] = {}
        self._closed = False

    async def fetch(self, master_sae: str, key_IDs: Sequence[str]) -> Fetched:
        """The keys of one message, after one round of requests. All who ask for the same ones share it."""
        self.client.bind()
        asked = master_sae, tuple(key_IDs)
        if (call := self._calls.get(asked)) is None:
            call = self._calls[asked] = begun(self._fetch(*asked), "fetch keys")
            call.add_done_callback(lambda _: self._calls.pop(asked))
        await asyncio.wait([call])
        return ({}, self._stopped()) if call.cancelled() else call.result()

    async def close(self) -> None:
        """Waits briefly for calls in flight; then cancels them, and answers all waiters."""
        self._closed = True
        if calls := list(self._calls.values()):
            await asyncio.wait(calls, timeout=CLOSING_GRACE_S)
        for call in calls:
            call.cancel()
        await asyncio.gather(*calls, return_exceptions=True)
        for (master_sae, _), key in list(self._unkept.items()):
            with suppress(StoreUnavailable):  # logged
                await self._kept(master_sae, [key], {})

    async def _fetch(self, master_sae: str, key_IDs: Sequence[str]) -> Fetched:
        found: dict[str, Key] = {}
        try:
            unkept = [self._unkept[name] for key_ID in key_IDs if (name := (master_sae, key_ID)) in self._unkept]
            await self._kept(master_sae, unkept, found)
            todo = [key_ID for key_ID in key_IDs if key_ID not in found]
            while todo:
                part = todo[: self.client.most_received(master_sae)]
                async with self._turns.turn(master_sae):
                    await self._call(master_sae, part, found)
                del todo[: len(part)]
        except KeyNotFound:
            self._count("not_found", len(key_IDs) - len(found))
        except KeyUnavailable as error:
            self._count("refused", len(key_IDs) - len(found))
            return found, error
        except StoreUnavailable as error:
            return found, error
        return found, None

    async def _call(self, master_sae: str, key_IDs: Sequence[str], found: dict[str, Key]) -> None:
        """Makes one call. Raises KeyUnavailable and StoreUnavailable; keys that came with a failure are found, too."""
        if self._closed:
            raise self._stopped()
        try:
            if self.ready is not None:
                await self.ready()
            came = await self.client.request_dec_keys(master_sae, key_IDs, patient=False)
        except KeyUnavailable as error:
            await self._kept(master_sae, error.found, found)
            raise
        except StoreUnavailable as error:
            log.error("received_keys_not_asked_for", kme=self.client.name, number=len(key_IDs), cause=str(error))
            self._count("not_asked", len(key_IDs))
            raise
        await self._kept(master_sae, came, found)

    def _stopped(self) -> KMEUnreachable:
        return KMEUnreachable(f"{self.client.name}: the relay stops")

    async def _kept(self, master_sae: str, keys: Sequence[Key], found: dict[str, Key]) -> None:
        """Stores the keys, then adds them to `found`; keeps them in memory while that fails.

        Raises StoreUnavailable.
        """
        if not keys:
            return
        unkept = {(master_sae, key.key_ID): key for key in keys}
        try:
            if self.keep is not None:
                await self.keep(master_sae, {key.key_ID: key.key for key in keys})
        except BaseException as error:
            self._unkept |= unkept
            if isinstance(error, StoreUnavailable):
                self._count("not_stored", len(keys))
                log.error("received_keys_not_stored", kme=self.client.name, number=len(keys), cause=str(error))
            raise
        for name in unkept:
            self._unkept.pop(name, None)
        self._count("fetched", len(keys))
        found |= {key.key_ID: key for key in keys}
