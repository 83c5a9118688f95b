"""One KME group as a source of keys: fresh ones prefetched in the background, each handed out once.
Standard: ETSI GS QKD 014 V1.1.1 for what keys are; a key_ID seen before is refused, an old key is burnt.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections import OrderedDict, deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import structlog

from relay.errors import KeyNotFound, KeyUnavailable, KMEBadReply, KMEExhausted
from relay.keys.contract import Key
from relay.keys.km_client import OptimizedKMClient

log = structlog.get_logger(__name__)

SEEN_KEY_IDS = 100_000
"""How many key_IDs are remembered so that a KME cannot hand us one twice."""
LAG_PATIENCE_S = 30.0
"""How long a key that the other KME has not yet synchronised is asked for before the mail is held."""


@dataclass(frozen=True, slots=True)
class Prefetch:
    """How many keys are kept ready for each peer, and how long (seconds) one may wait there.

    Below `low` the background refill starts and goes up to `high`; both 0 means no prefetch.
    """

    low: int = 8
    high: int = 32
    lifetime: float = 300.0


@dataclass(slots=True)
class _Pool:
    """The keys held ready for one slave SAE and size."""

    keys: deque[tuple[Key, float]] = field(default_factory=deque)
    drawing: asyncio.Lock = field(default_factory=asyncio.Lock)
    refill: asyncio.Task[None] | None = None


class KMEGroup:
    """A KeySource over the KMEs of one group, of which any may be asked.

    At most one enc_keys is in flight for each slave SAE: some KMEs drop the first answer's keys otherwise.
    """

    def __init__(
        self,
        group: str,
        clients: Sequence[OptimizedKMClient],
        prefetch: Prefetch = Prefetch(),
        *,
        lag_patience: float = LAG_PATIENCE_S,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """`lag_patience` is seconds; `clock` gives seconds and is replaced in tests."""
        self._group = group
        self._clients = list(clients)
        self._prefetch = prefetch
        self._lag_patience = lag_patience
        self._clock = clock
        self._pools: dict[tuple[str, int], _Pool] = {}
        self._seen: OrderedDict[str, None] = OrderedDict()

    @property
    def group(self) -> str:
        """The group's name."""
        return self._group

    @property
    def clients(self) -> tuple[OptimizedKMClient, ...]:
        """The clients of this group's KMEs, in the order they are asked."""
        return tuple(self._clients)

    async def take(self, slave_sae: str, size: int = 256) -> Key:
        """A fresh key of `size` bits for `slave_sae`: from the pool, else drawn now. Raises KeyUnavailable."""
        pool = self._pools.setdefault((slave_sae, size), _Pool())
        key = self._pop(pool)
        while key is None:
            async with pool.drawing:
                key = self._pop(pool)
                if key is None:
                    await self._draw(pool, slave_sae, size, max(1, self._prefetch.high))
                    key = self._pop(pool)
                    if key is None:
                        raise KMEBadReply(f"group {self._group}: the KME gave only keys that it gave before")
        if len(pool.keys) < self._prefetch.low and (pool.refill is None or pool.refill.done()):
            pool.refill = asyncio.create_task(self._refill(pool, slave_sae, size))
        return key

    async def fetch(self, master_sae: str, key_IDs: Sequence[str]) -> dict[str, Key]:
        """The keys by ID; one that is not known yet is asked for again until the lag patience is over."""
        found: dict[str, Key] = {}
        deadline = self._clock() + self._lag_patience
        delay = 0.1
        while True:
            for key_ID in key_IDs:
                if key_ID not in found and (key := await self._fetch_one(master_sae, key_ID)):
                    found[key_ID] = key
            if len(found) == len(set(key_IDs)) or self._clock() + delay > deadline:
                return found
            await asyncio.sleep(delay * random.uniform(0.5, 1))  # noqa: S311 - jitter, not secrecy
            delay = min(5.0, delay * 2)

    async def close(self) -> None:
        """Stops the refills, burns the keys held, closes the connections."""
        refills = [pool.refill for pool in self._pools.values() if pool.refill]
        for task in refills:
            task.cancel()
        await asyncio.gather(*refills, return_exceptions=True)
        burnt = sum(len(pool.keys) for pool in self._pools.values())
        self._pools.clear()
        if burnt:
            log.info("keys_burnt", group=self._group, number=burnt, cause="the relay stops")
        for client in self._clients:
            await client.close()

    async def _fetch_one(self, master_sae: str, key_ID: str) -> Key | None:
        """One key from whichever KME of the group has it; None where all say that they do not know it."""
        trouble: KeyUnavailable | None = None
        for client in self._clients:
            try:
                [key] = await client.request_dec_keys(master_sae, [key_ID])
                return key
            except KeyNotFound:
                continue
            except KeyUnavailable as error:
                trouble = error
        if trouble:
            raise trouble
        return None

    async def _refill(self, pool: _Pool, slave_sae: str, size: int) -> None:
        try:
            async with pool.drawing:
                if len(pool.keys) < self._prefetch.low:
                    await self._draw(pool, slave_sae, size, self._prefetch.high - len(pool.keys))
        except KeyUnavailable as error:
            log.warning("key_refill_failed", group=self._group, slave_sae=slave_sae, cause=str(error))

    async def _draw(self, pool: _Pool, slave_sae: str, size: int, number: int) -> None:
        """Draws up to `number` keys from the first KME that gives any; a KME that can't give many gives one."""
        trouble: KeyUnavailable = KMEExhausted(f"group {self._group}: no KME is configured")
        for client in self._clients:
            for amount in dict.fromkeys((number, 1)):
                try:
                    keys = await client.request_enc_keys(slave_sae, number=amount, size=size)
                    self._keep(pool, keys)
                    return
                except KMEExhausted as error:
                    trouble = error
                except KeyUnavailable as error:
                    trouble = error
                    break
        raise trouble

    def _keep(self, pool: _Pool, keys: Sequence[Key]) -> None:
        until = self._clock() + self._prefetch.lifetime
        for key in keys:
            if key.key_ID in self._seen:
                log.error("key_id_seen_before", group=self._group, key_ID=key.key_ID)
                continue
            self._seen[key.key_ID] = None
            pool.keys.append((key, until))
        while len(self._seen) > SEEN_KEY_IDS:
            self._seen.popitem(last=False)

    def _pop(self, pool: _Pool) -> Key | None:
        """The oldest key that is still good; expired ones are burnt on the way."""
        now = self._clock()
        while pool.keys:
            key, until = pool.keys.popleft()
            if now < until:
                return key
            log.info("keys_burnt", group=self._group, number=1, cause="too old to be used safely")
        return None
