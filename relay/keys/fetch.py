"""dec_keys: the keys that messages name, each stored before use. Messages that wait at the same time share a call.
Standard: ETSI GS QKD 014 V1.1.1, 5.4. One unknown key_ID does not affect others; one fetch serves all its waiters.

A call belongs to the fetcher, not to its callers: when they give up, the keys that arrive are still stored.

A shared call that fails is not examined: each of its messages then has a call of its own. Unless the KME names what it
lacks, no calls are shared for some seconds.

Anybody can send mail that names keys which do not exist. One such message costs 1 shared call, 1 of its own, and 1
whenever it is tried again. It is up to 8 where the KME says no more than that it does not like the request (400, 413,
422). The further keys of a message are requested after the first part has arrived, some parts at a time. Once a part is
missing, no more are requested. With real key_IDs that were not fetched yet, it can be a dozen.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable, Iterable, Sequence
from dataclasses import dataclass, field

from relay.errors import KeyNotFound, KeyUnavailable, KMEUnreachable, StoreUnavailable
from relay.keys.client import KMEClient
from relay.keys.events import Events
from relay.keys.faults import KeysMissing, KMERefusedRequest
from relay.keys.replies import KeyStatus
from relay.keys.types import REAL_TIME, KeepKeys, Key, Timing
from relay.runtime.aio import FairTurns

log = Events(__name__)

MOST_PER_CALL = 128
"""Maximum number of key IDs in one call if the KME states no limit."""

CLOSING_GRACE_S = 3.0
"""Shutdown grace period of calls under way, in seconds: the KME gives their keys only once."""

SHARED_AT_ONCE, ALONE_AT_ONCE, AGAIN_AT_ONCE = 3, 5, 2
"""Maximum number of concurrent calls, out of the connections (pool_maxsize, 10): shared by messages, of one message,
and for keys that did not come before."""

MOST_AGAIN = 18
"""Maximum number of messages of one master SAE that wait for such a call; one more is not asked for now."""

ALONE_FOR_S = 10.0
"""Time without shared calls after one of them failed, in seconds."""

Outcome = Key | KeyUnavailable | StoreUnavailable | None
"""The outcome for one key_ID: the key, an error, or None for "not known to this KME"."""


@dataclass(slots=True, eq=False)
class SharedCall:
    """A call that waits for its turn: the key_IDs of several messages. Afterwards the keys that came, and the error."""

    key_IDs: list[str] = field(default_factory=list)
    messages: int = 0
    found: dict[str, Key] = field(default_factory=dict)
    error: KeyUnavailable | None = None
    call: asyncio.Task[None] | None = None


class Fetcher:
    """Fetches keys from one KME. `keep` (if any) is awaited before a key is returned."""

    def __init__(
        self,
        client: KMEClient,
        *,
        limits: Callable[[str], Awaitable[KeyStatus | None]],
        keep: KeepKeys | None = None,
        count: Callable[[str, int], None] = lambda _outcome, _number: None,
        timing: Timing = REAL_TIME,
    ) -> None:
        """`limits` returns the KME's status for a master SAE, with the limit of key_IDs in a call, or None."""
        self.client = client
        self.keep = keep
        self.ready: Callable[[], Awaitable[None]] | None = None
        """Awaited before each call; raises StoreUnavailable while keys cannot be stored."""
        self._limits = limits
        self._count = count
        self._clock = timing.clock
        # Master SAEs take turns, so that no peer's mail waits behind all of another's.
        self._shared, self._alone, self._again = map(FairTurns, (SHARED_AT_ONCE, ALONE_AT_ONCE, AGAIN_AT_ONCE))
        self._joining: dict[str, SharedCall] = {}
        self._calls: set[asyncio.Task[None]] = set()
        self._alone_until = float("-inf")
        self._fetches: dict[tuple[str, tuple[str, ...]], asyncio.Task[dict[str, Outcome]]] = {}
        """What is fetched now, by master SAE and the key_IDs of the message."""
        self._of_key: dict[tuple[str, str], asyncio.Task[dict[str, Outcome]]] = {}
        self._unkept: dict[tuple[str, str], Key] = {}
        self._closed = False

    async def fetch(self, master_sae: str, key_IDs: Sequence[str], tries: int = 0) -> dict[str, Outcome]:
        """The outcomes for the keys of one message, after one round of requests; never raises for one of them.

        Once one of them is unknown, the rest is not requested, and counts as unknown too. `tries` is the number of
        earlier attempts without success.
        """
        self.client.bind()
        outcomes = await self._keep_again(master_sae, key_IDs) if self._unkept else {}
        names = tuple(key_ID for key_ID in dict.fromkeys(key_IDs) if key_ID not in outcomes)
        fetch = self._fetches.get((master_sae, names))
        if fetch is None and (others := {each for key_ID in names if (each := self._of_key.get((master_sae, key_ID)))}):
            await asyncio.wait(others)
            came = {key_ID: key for each in others for key_ID, key in each.result().items() if isinstance(key, Key)}
            outcomes |= {key_ID: came[key_ID] for key_ID in names if key_ID in came}
            names = tuple(key_ID for key_ID in names if key_ID not in outcomes)
            fetch = self._fetches.get((master_sae, names))
        if not names:
            return outcomes
        if fetch is None:
            fetch = self._begun(master_sae, names, tries)
        await asyncio.wait([fetch])
        return outcomes | fetch.result()

    async def close(self) -> None:
        """Waits briefly for calls in flight; then cancels them, and answers all waiters."""
        self._closed = True
        if work := [*self._calls, *self._fetches.values()]:
            await asyncio.wait(work, timeout=CLOSING_GRACE_S)
        for task in work:
            task.cancel()
        await asyncio.gather(*work, return_exceptions=True)
        for master_sae, key_ID in list(self._unkept):
            await self._keep_again(master_sae, [key_ID])

    def _begun(self, master_sae: str, key_IDs: tuple[str, ...], tries: int) -> asyncio.Task[dict[str, Outcome]]:
        fetch = asyncio.create_task(self._outcomes(master_sae, key_IDs, tries), name="fetch keys")
        names = [(master_sae, key_ID) for key_ID in key_IDs]
        self._fetches[master_sae, key_IDs] = fetch
        for name in names:
            self._of_key.setdefault(name, fetch)

        def ended(fetch: asyncio.Task[dict[str, Outcome]]) -> None:
            del self._fetches[master_sae, key_IDs]
            for name in names:
                if self._of_key.get(name) is fetch:
                    del self._of_key[name]

        fetch.add_done_callback(ended)
        return fetch

    async def _outcomes(self, master_sae: str, key_IDs: Sequence[str], tries: int) -> dict[str, Outcome]:
        """The outcomes for the keys of one message; raises nothing."""
        found: dict[str, Key] = {}
        outcome: Outcome = None
        try:
            await self._message(master_sae, key_IDs, tries, found)
        except KeyNotFound:
            self._count("not_found", len(key_IDs) - len(found))
        except (KeyUnavailable, StoreUnavailable) as error:
            self._count("refused", len(key_IDs) - len(found) if isinstance(error, KeyUnavailable) else 0)
            outcome = error
        except asyncio.CancelledError:
            outcome = self._stopped()
        except Exception as error:
            log.error("fetch_failed", kme=self.client.name, exc_info=error)
            outcome = KMEUnreachable(f"{self.client.name}: the call was given up: {error}")
        return {key_ID: found.get(key_ID, outcome) for key_ID in key_IDs}

    async def _message(self, master_sae: str, key_IDs: Sequence[str], tries: int, found: dict[str, Key]) -> None:
        """Requests the keys of one message, into `found`. Raises what ended that."""
        turns = self._again if tries else self._alone
        if tries and turns.waiting(master_sae) >= MOST_AGAIN:
            raise KeyNotFound(f"{self.client.name}: not asked again now: too many others wait")
        status = await self._limits(master_sae)
        most = 1 if self.client.one_by_one else (status and status.max_key_per_request) or MOST_PER_CALL
        if not tries and len(key_IDs) <= most > 1 and self._clock() >= self._alone_until:
            most = await self._join(master_sae, key_IDs, most, found)
        todo = deque(key_ID for key_ID in key_IDs if key_ID not in found)
        first = 1 if tries else most
        while todo:  # a first part, then the rest
            part = [todo.popleft() for _ in range(min(first, len(todo)))]
            try:
                await self._ask(turns, master_sae, part, found)
            except KMERefusedRequest:  # too many for one call, or a key that is not there
                if len(part) == 1:
                    raise
                most = first = len(part) // 2
                todo.extendleft(reversed(part))
            else:
                break

        async def more() -> None:
            while todo:
                part = [todo.popleft() for _ in range(min(most, len(todo)))]
                try:
                    await self._ask(turns, master_sae, part, found)
                except BaseException:
                    todo.clear()
                    raise

        workers = min(ALONE_AT_ONCE, -(-len(todo) // most))
        for ended in await asyncio.gather(*(more() for _ in range(workers)), return_exceptions=True):
            if ended is not None:
                raise ended

    async def _join(self, master_sae: str, key_IDs: Sequence[str], most: int, found: dict[str, Key]) -> int:
        """Requests all keys of a message by a call shared with others; returns the most for a call of its own.

        Raises what such a call would not change.
        """
        shared = self._joining.get(master_sae)
        if shared is None or shared.call is None or len(shared.key_IDs) + len(key_IDs) > most:
            shared = self._joining[master_sae] = SharedCall()
            shared.call = asyncio.create_task(self._make(master_sae, shared), name="fetch keys")
            self._calls.add(shared.call)
            shared.call.add_done_callback(self._calls.discard)
        shared.key_IDs += key_IDs
        shared.messages += 1
        await asyncio.shield(shared.call)
        found |= {key_ID: shared.found[key_ID] for key_ID in key_IDs if key_ID in shared.found}
        if (error := shared.error) is None or len(found) == len(key_IDs):
            return most
        if shared.messages == 1 and len(key_IDs) > 1 and isinstance(error, KMERefusedRequest):
            return len(key_IDs) // 2
        if shared.messages == 1 or not _said(error) or (_names(error) and not set(_names(error)).isdisjoint(key_IDs)):
            raise error
        return most

    async def _make(self, master_sae: str, shared: SharedCall) -> None:
        async with self._shared.turn(master_sae):
            if self._joining.get(master_sae) is shared:
                del self._joining[master_sae]
            try:
                await self._call(master_sae, shared.key_IDs, shared.found)
            except KeyUnavailable as error:
                shared.error = error
                if shared.messages > 1 and _said(error) and not _names(error):
                    self._alone_until = self._clock() + ALONE_FOR_S

    async def _ask(self, turns: FairTurns, master_sae: str, key_IDs: Sequence[str], found: dict[str, Key]) -> None:
        """Makes one call. Raises KeyUnavailable and StoreUnavailable; keys that came with a failure are found, too."""
        async with turns.turn(master_sae):
            await self._call(master_sae, key_IDs, found)

    async def _call(self, master_sae: str, key_IDs: Sequence[str], found: dict[str, Key]) -> None:
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

    async def _keep_again(self, master_sae: str, key_IDs: Iterable[str]) -> dict[str, Outcome]:
        """The outcomes for keys that could not be stored on arrival: retries, without the KME."""
        keys = [self._unkept[name] for key_ID in key_IDs if (name := (master_sae, key_ID)) in self._unkept]
        found: dict[str, Key] = {}
        try:
            await self._kept(master_sae, keys, found)
        except StoreUnavailable as error:
            return {key.key_ID: error for key in keys}
        return dict(found)


def _said(error: KeyUnavailable) -> bool:
    """Whether the KME has answered: one message may have caused it."""
    return isinstance(error, KeyNotFound) or error.http_status > 0


def _names(error: KeyUnavailable) -> Sequence[str]:
    """The unknown keys that the KME has named, if it names any."""
    return error.missing if isinstance(error, KeysMissing) and error.certain else ()
