"""dec_keys in bulk: concurrent requests for keys of one master go out together, and each key is kept before use.
Standard: ETSI GS QKD 014 V1.1.1, 5.4. One unknown key_ID does not cost the others; one fetch serves all who wait.

A call belongs to the fetcher, not to who asked: when he gives up, the keys that come are kept all the same.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable, Sequence
from dataclasses import dataclass, field

import structlog

from relay.errors import KeyUnavailable, KMEUnreachable, StoreUnavailable
from relay.keys.contract import KeepKeys, Key, KeyDelivery
from relay.keys.faults import KeysMissing, KMERefusedRequest
from relay.keys.timing import REAL_TIME, Timing

log = structlog.get_logger(__name__)

MOST_PER_CALL = 128
"""Key IDs in one call where the KME does not say how many it takes."""

_MOST_SUSPECTS = 10_000

CLOSING_GRACE_S = 3.0
"""How long calls under way may still take when the relay stops: the keys they bring cannot be had again."""

Outcome = Key | KeyUnavailable | StoreUnavailable | None
"""What became of one key_ID: the key, what went wrong, or None for "not known to this KME"."""


@dataclass(slots=True)
class _Desk:
    """The key_IDs of one master SAE that wait for a call, those under way, and those that need one of their own."""

    waiting: dict[str, asyncio.Future[Outcome]] = field(default_factory=dict)
    under_way: dict[str, asyncio.Future[Outcome]] = field(default_factory=dict)
    suspects: set[str] = field(default_factory=set)
    calls: set[asyncio.Task[None]] = field(default_factory=set)
    most: int = MOST_PER_CALL


class Fetcher:
    """Fetches keys from one KME. `keep` (None: nothing) is awaited before anybody gets a key."""

    def __init__(
        self,
        client: KeyDelivery,
        *,
        limit: Callable[[str], Awaitable[int | None]],
        gather: bool = True,
        window: float = 0.005,
        keep: KeepKeys | None = None,
        count: Callable[[str, int], None] = lambda _outcome, _number: None,
        timing: Timing = REAL_TIME,
    ) -> None:
        """`limit` gives the most key_IDs that one call for a master SAE may have, None where that is unknown.

        `gather` False sends each key_ID alone. `window` is how many seconds a call waits for company.
        """
        self.client = client
        self.keep = keep
        self._limit = limit
        self._gather = gather
        self._window = window
        self._calls_at_once = 2 if gather else 8
        self._count = count
        self._timing = timing
        self._desks: dict[str, _Desk] = {}
        self._unkept: dict[tuple[str, str], Key] = {}
        self._closed = False
        self.calls = 0
        """Calls made so far."""

    async def fetch(self, master_sae: str, key_IDs: Sequence[str]) -> dict[str, Outcome]:
        """What became of each key_ID, after one round of asking; never raises for one of them."""
        outcomes = await self._keep_again(master_sae, key_IDs)
        desk = self._desks.setdefault(master_sae, _Desk())
        futures = {key_ID: self._future(desk, key_ID) for key_ID in key_IDs if key_ID not in outcomes}
        self._send_calls(master_sae, desk)
        if futures:
            await asyncio.wait(set(futures.values()))
        return outcomes | {key_ID: future.result() for key_ID, future in futures.items()}

    async def close(self) -> None:
        """Lets calls under way end, for a moment; then ends them, and answers all who wait."""
        self._closed = True
        calls = [call for desk in self._desks.values() for call in desk.calls]
        if calls:
            await asyncio.wait(calls, timeout=CLOSING_GRACE_S)
        for call in calls:
            call.cancel()
        await asyncio.gather(*calls, return_exceptions=True)
        stopped = KMEUnreachable(f"{self.client.name}: the relay stops")
        for desk in self._desks.values():
            for future in (desk.waiting | desk.under_way).values():
                _conclude(future, stopped)
        if self._unkept:
            log.error("received_keys_lost", kme=self.client.name, number=len(self._unkept))
        self._desks.clear()

    def _future(self, desk: _Desk, key_ID: str) -> asyncio.Future[Outcome]:
        """The one that others already wait for, or a new one."""
        future = desk.waiting.get(key_ID) or desk.under_way.get(key_ID)
        if future is None:
            future = asyncio.get_running_loop().create_future()
            if self._closed:
                future.set_result(KMEUnreachable(f"{self.client.name}: the relay stops"))
            else:
                desk.waiting[key_ID] = future
        return future

    def _send_calls(self, master_sae: str, desk: _Desk) -> None:
        if desk.waiting and len(desk.calls) < self._calls_at_once:
            call = asyncio.create_task(self._work(master_sae, desk), name="fetch keys")
            desk.calls.add(call)
            call.add_done_callback(lambda ended: self._ended(master_sae, desk, ended))

    def _ended(self, master_sae: str, desk: _Desk, call: asyncio.Task[None]) -> None:
        desk.calls.discard(call)
        if not call.cancelled() and (error := call.exception()):
            log.error("fetch_failed", kme=self.client.name, exc_info=error)
        if not self._closed:
            self._send_calls(master_sae, desk)

    async def _work(self, master_sae: str, desk: _Desk) -> None:
        """Calls, one after the other, until nobody waits."""
        try:
            most = await self._limit(master_sae)
        except Exception as error:
            # Left waiting, they would have another call made at once, which may end like this one, for ever.
            waiting, desk.waiting = desk.waiting, {}
            for future in waiting.values():
                _conclude(future, KMEUnreachable(f"{self.client.name}: the call was given up: {error}"))
            raise
        while desk.waiting and not self._closed:
            if self._gather:
                await self._timing.sleep(self._window)
            batch = self._batch(desk, most)
            if not batch:
                return
            self._send_calls(master_sae, desk)
            try:
                await self._ask(master_sae, desk, batch, _splits(len(batch)))
            finally:
                for key_ID in batch:
                    future = desk.under_way.pop(key_ID)
                    _conclude(future, KMEUnreachable(f"{self.client.name}: the call was given up"))

    def _batch(self, desk: _Desk, most: int | None) -> list[str]:
        """The next key_IDs, the longest waiting first; one that was in a refused call goes alone."""
        number = min(desk.most, most or desk.most) if self._gather else 1
        alone = [key_ID for key_ID in desk.waiting if key_ID in desk.suspects][:1]
        batch = alone or list(desk.waiting)[:number]
        for key_ID in batch:
            desk.under_way[key_ID] = desk.waiting.pop(key_ID)
        return batch

    async def _ask(self, master_sae: str, desk: _Desk, key_IDs: list[str], splits: int) -> int:
        """One call for `key_IDs`, and further ones where its answer leaves some undecided.

        Returns how many of `splits`, the further calls allowed, are left.
        """
        self.calls += 1
        try:
            keys = await self.client.request_dec_keys(master_sae, key_IDs)
        except KeysMissing as error:
            await self._deliver(master_sae, desk, error.found)
            if error.certain:
                self._not_found(desk, error.missing, suspect=False)
                found = {key.key_ID for key in error.found}
                rest = [key_ID for key_ID in key_IDs if key_ID not in found | set(error.missing)]
                return await self._ask(master_sae, desk, rest, splits - 1) if rest else splits
            return await self._ask_halves(master_sae, desk, key_IDs, splits)
        except KMERefusedRequest as error:
            if len(key_IDs) > 1 and splits > 0:
                desk.most = max(1, len(key_IDs) // 2)
                return await self._ask_halves(master_sae, desk, key_IDs, splits)
            self._failed(desk, key_IDs, error)
        except KeyUnavailable as error:
            self._failed(desk, key_IDs, error)
        else:
            await self._deliver(master_sae, desk, keys)
        return splits

    async def _ask_halves(self, master_sae: str, desk: _Desk, key_IDs: list[str], splits: int) -> int:
        """Finds the key that spoils a call by halving it; when that takes too long, all go alone next time."""
        if splits <= 0 or len(key_IDs) == 1:
            self._not_found(desk, key_IDs, suspect=True)
            return splits
        middle = len(key_IDs) // 2
        for half in (key_IDs[:middle], key_IDs[middle:]):
            splits = await self._ask(master_sae, desk, half, splits - 1)
        return splits

    async def _deliver(self, master_sae: str, desk: _Desk, keys: Sequence[Key]) -> None:
        """Keeps the keys, then gives them to all who wait for them."""
        if not keys:
            return
        trouble = await self._kept(master_sae, keys)
        for key in keys:
            desk.suspects.discard(key.key_ID)
            _conclude(desk.under_way[key.key_ID], trouble or key)

    async def _kept(self, master_sae: str, keys: Sequence[Key]) -> StoreUnavailable | None:
        """Stores the keys; those that cannot be stored now stay in memory until they can."""
        names = [(master_sae, key.key_ID) for key in keys]
        try:
            if self.keep is not None:
                await self.keep(master_sae, {key.key_ID: key.key for key in keys})
        except StoreUnavailable as error:
            self._unkept |= dict(zip(names, keys, strict=True))
            self._count("not_stored", len(keys))
            log.error("received_keys_not_stored", kme=self.client.name, number=len(keys), cause=str(error))
            return error
        except BaseException:
            self._unkept |= dict(zip(names, keys, strict=True))
            raise
        for name in names:
            self._unkept.pop(name, None)
        self._count("fetched", len(keys))
        return None

    async def _keep_again(self, master_sae: str, key_IDs: Iterable[str]) -> dict[str, Outcome]:
        """The outcome for keys that could not be stored when they came: tried again now, without the KME."""
        keys = [self._unkept[name] for key_ID in key_IDs if (name := (master_sae, key_ID)) in self._unkept]
        if not keys:
            return {}
        trouble = await self._kept(master_sae, keys)
        return {key.key_ID: trouble or key for key in keys}

    def _not_found(self, desk: _Desk, key_IDs: Iterable[str], *, suspect: bool) -> None:
        """The KME does not know these; a suspect goes alone from now on, so as not to spoil other calls."""
        for key_ID in key_IDs:
            if suspect:
                desk.suspects.add(key_ID)
            if len(desk.suspects) > _MOST_SUSPECTS:
                desk.suspects.pop()
            self._count("not_found", 1)
            _conclude(desk.under_way[key_ID], None)

    def _failed(self, desk: _Desk, key_IDs: Iterable[str], error: KeyUnavailable) -> None:
        for key_ID in key_IDs:
            _conclude(desk.under_way[key_ID], error)


def _conclude(future: asyncio.Future[Outcome], outcome: Outcome) -> None:
    if not future.done():
        future.set_result(outcome)


def _splits(number: int) -> int:
    """Calls that finding one or two spoilers among `number` key_IDs takes."""
    return 4 * number.bit_length()
