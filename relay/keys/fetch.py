"""dec_keys in bulk: the keys of several messages share a request, and each key is stored before use.
Standard: ETSI GS QKD 014 V1.1.1, 5.4. One unknown key_ID does not affect others; one fetch serves all its waiters.

A call belongs to the fetcher, not to its callers: when they give up, the keys that arrive are still stored.

Anybody can send mail that names keys which do not exist. The number of calls for one such message is bounded:

- at first 1 call; up to 8 where the KME says no more than that it does not like the request (400, 413, 422);
- where it shared a call with others, which is divided until it is known whose keys do not exist, 1 or 2 more;
- when it is asked for again, which goes by a way of its own, 1 for its first key. Of those at most 10 a second in all.
  Where the KME names the keys that it does not know, many messages share this call: the others have theirs at once.

The further keys of a message are requested after the first part has arrived, some parts at a time. Once a part is
missing, no more are requested. An attacker with real key_IDs that were not fetched yet can cause a dozen calls.
"""

from __future__ import annotations

import asyncio
from collections import Counter, deque
from collections.abc import Awaitable, Callable, Iterable, Sequence
from itertools import chain
from typing import Final

from relay.errors import KeyUnavailable, KMEUnreachable, StoreUnavailable
from relay.keys.client import KMEClient
from relay.keys.events import Events
from relay.keys.faults import KeysMissing, KMERefusedRequest
from relay.keys.pending import MOST_PER_CALL, MOST_TOGETHER, Batch, Outcome, PendingFetch, PendingFetches
from relay.keys.replies import KeyStatus
from relay.keys.types import REAL_TIME, KeepKeys, Key, Timing

log = Events(__name__)

CLOSING_GRACE_S = 3.0
"""Shutdown grace period of calls under way, in seconds: the KME gives their keys only once."""

CALLS_AT_ONCE: Final = 6
"""Maximum number of concurrent first calls to a KME, out of its connections (pool_maxsize, 10)."""

WAIT_FOR_COMPANY_S = 0.005
"""Batching delay while another call is under way, in seconds, where the KME takes several keys."""

AGAIN_EVERY_S = 0.1
"""Minimum interval between repeated calls for missing keys, in seconds."""

AGAIN_TOGETHER = 32
"""Maximum number of messages in such a call, if the KME names unknown keys."""

MOST_AGAIN = 10
"""Maximum number of messages that wait for such calls of their own, else AGAIN_TOGETHER. Beyond it, one of the master
SAE with the most is skipped."""

ALONE_FOR_S = 10.0
"""Time without shared calls after two of them failed without naming keys, in seconds."""

LIMIT_BELIEVED_FOR_S = 600.0
"""Time for which a limit learnt from refusals is kept, in seconds: they may have been due to an unknown key."""


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
        self._timing = timing
        self._masters: dict[str, PendingFetches] = {}
        self._again: deque[tuple[PendingFetches, PendingFetch]] = deque()
        self._again_from = self._again_alone_until = float("-inf")
        self._again_unnamed = 0
        self._asking: set[asyncio.Task[None]] = set()
        self._asking_again: asyncio.Task[None] | None = None
        self._gathering = False
        """Whether a pending call will serve all waiters."""
        self._unkept: dict[tuple[str, str], Key] = {}
        self._closed = False
        self.calls = 0
        """Calls made so far."""

    async def fetch(self, master_sae: str, key_IDs: Sequence[str], tries: int = 0) -> dict[str, Outcome]:
        """The outcomes for the keys of one message, after one round of requests; never raises for one of them.

        Once one of them is unknown, the rest is not requested, and counts as unknown too. `tries` is the number of
        earlier attempts without success.
        """
        self.client.bind()
        outcomes = await self._keep_again(master_sae, key_IDs) if self._unkept else {}
        remaining = tuple(dict.fromkeys(key_IDs))
        if outcomes:
            remaining = tuple(key_ID for key_ID in remaining if key_ID not in outcomes)
        if remaining:
            fetch = self._pending_fetch(master_sae, remaining, tries)
            self._send_calls()
            await asyncio.wait([fetch.over])
            outcomes |= fetch.found
        return outcomes

    async def close(self) -> None:
        """Waits briefly for calls in flight; then cancels them, and answers all waiters."""
        self._closed = True
        calls = [*self._asking, *([self._asking_again] if self._asking_again else [])]
        if calls:
            await asyncio.wait(calls, timeout=CLOSING_GRACE_S)
        for call in calls:
            call.cancel()
        await asyncio.gather(*calls, return_exceptions=True)
        for master in self._masters.values():
            master.conclude_all(list(master.by_key_IDs.values()), self._stopped())
        for master_sae in {master_sae for master_sae, _ in self._unkept}:
            await self._keep_again(master_sae, [key_ID for master, key_ID in self._unkept if master == master_sae])
        self._masters.clear()

    def _pending_fetch(self, master_sae: str, key_IDs: tuple[str, ...], tries: int) -> PendingFetch:
        """The existing fetch for these keys, or a new one."""
        master = self._masters.setdefault(master_sae, PendingFetches(master_sae))
        if fetch := master.by_key_IDs.get(key_IDs):
            return fetch
        # Maximum number of a message's keys requested before any is known to exist.
        first_part = 1 if tries or self.client.one_by_one else MOST_PER_CALL
        fetch = master.by_key_IDs[key_IDs] = PendingFetch(key_IDs, first_part)
        if self._closed:
            master.conclude(fetch, self._stopped())
        elif tries:
            self._again.append((master, fetch))
            self._leave_some_out()
        else:
            master.queue.append(fetch)
        return fetch

    @property
    def _again_together(self) -> int:
        """The number of messages that share a repeated call now."""
        alone = self.client.one_by_one or self._timing.clock() < self._again_alone_until
        return 1 if alone else AGAIN_TOGETHER

    def _leave_some_out(self) -> None:
        """Drops some fetches of the master with the most, if too many wait."""
        while len(self._again) > max(MOST_AGAIN, self._again_together):
            masters = Counter(master.master_sae for master, _ in self._again)
            [(most, _)] = masters.most_common(1)
            positions = [position for position, (master, _) in enumerate(self._again) if master.master_sae == most]
            position = positions[int(self._timing.chance() * len(positions)) % len(positions)]
            master, fetch = self._again[position]
            del self._again[position]
            master.conclude(fetch, None)

    # Scheduling

    def _send_calls(self) -> None:
        if self._closed:
            return
        if not self._gathering and len(self._asking) < CALLS_AT_ONCE and self._next_master() is not None:
            call = asyncio.create_task(self._ask_in_turn(), name="fetch keys")
            self._gathering = True
            self._asking.add(call)
            call.add_done_callback(self._ended)
        if self._again and self._asking_again is None:
            self._asking_again = asyncio.create_task(self._ask_again_in_turn(), name="fetch keys again")
            self._asking_again.add_done_callback(self._ended)

    def _ended(self, call: asyncio.Task[None]) -> None:
        self._asking.discard(call)
        self._gathering = False
        if call is self._asking_again:
            self._asking_again = None
        if not call.cancelled() and (error := call.exception()):
            log.error("fetch_failed", kme=self.client.name, exc_info=error)
        self._send_calls()

    async def _ask_in_turn(self) -> None:
        """Makes calls, round-robin over masters, until nobody waits."""
        while not self._closed and (master := self._next_master()):
            self._masters[master.master_sae] = self._masters.pop(master.master_sae)  # moved to the end
            self._gathering = True
            try:
                most = await self._most(master)
                if master.most_until <= self._timing.clock():
                    master.most = MOST_PER_CALL
                # A single fetch goes at once; those that arrive during a call share the next one.
                if most > 1 and len(self._asking) > 1:
                    await self._timing.sleep(WAIT_FOR_COMPANY_S)
            finally:
                self._gathering = False
            if batches := master.take(most):
                self._send_calls()
                await self._ask(master, batches)

    async def _ask_again_in_turn(self) -> None:
        """Makes repeated calls for the first keys of messages, one after the other."""
        while not self._closed and self._again:
            if (wait := self._again_from - self._timing.clock()) > 0:
                await self._timing.sleep(wait)
            if not self._again:
                return
            master, batches = self._take_again()
            if batches:
                await self._ask(master, batches, again=True)
                self._send_calls()  # for fetches that waited for this call
                self._again_from = self._timing.clock() + AGAIN_EVERY_S

    def _take_again(self) -> tuple[PendingFetches, list[Batch]]:
        """The batches of the next repeated call: the first keys of the longest waiting, of one master."""
        master, most = self._again[0][0], self._again_together
        batches: list[Batch] = []
        others: deque[tuple[PendingFetches, PendingFetch]] = deque()
        while self._again and len(batches) < most:
            each, fetch = self._again.popleft()
            if each is not master:
                others.append((each, fetch))
            elif master.wait_for_others(fetch, 1):
                master.queue.append(fetch)
            else:
                batch = fetch.take(1)
                master.begin(batch)
                batches.append((fetch, batch))
        self._again.extendleft(reversed(others))
        return master, batches

    def _next_master(self) -> PendingFetches | None:
        """The next master for which a call can be made."""
        for master in self._masters.values():
            for fetch in master.queue:
                if not fetch.blocked:
                    return master
        return None

    async def _most(self, master: PendingFetches) -> int:
        """Maximum number of key_IDs in a call."""
        try:
            status = await self._limits(master.master_sae)
        except Exception as error:
            # If left waiting, they would cause an endless series of such calls.
            given_up = KMEUnreachable(f"{self.client.name}: the call was given up: {error}")
            master.conclude_all(list(master.queue), given_up)
            raise
        return (status.max_key_per_request if status else None) or MOST_PER_CALL

    # One call

    async def _ask(self, master: PendingFetches, batches: list[Batch], *, again: bool = False) -> None:
        """Makes one call and distributes its outcomes; `again`: a repeated call."""
        key_IDs = list(dict.fromkeys(chain.from_iterable(batch for _, batch in batches)))
        try:
            if self.ready is not None:
                await self.ready()
            self.calls += 1
            keys = await self.client.request_dec_keys(master.master_sae, key_IDs, patient=False)
            self._again_unnamed = 0 if again else self._again_unnamed
            await self._deliver(master, batches, keys)
            self._went_well(master, batches)
        except KeysMissing as error:
            await self._deliver(master, batches, error.found)
            if error.certain:
                self._without(master, batches, frozenset(error.missing), again=again)
            else:
                self._divide(master, batches, None, again=again)
        except StoreUnavailable as error:
            log.error("received_keys_not_asked_for", kme=self.client.name, number=len(key_IDs), cause=str(error))
            self._count("not_asked", len(key_IDs))
            master.conclude_all([fetch for fetch, _ in batches], error)
        except KeyUnavailable as error:
            await self._deliver(master, batches, error.found)
            if error.http_status:  # one message may have caused it
                self._divide(master, batches, error, again=again)
            else:
                master.conclude_all([fetch for fetch, _ in batches], error)
        except BaseException:
            given_up = KMEUnreachable(f"{self.client.name}: the call was given up")
            master.conclude_all([fetch for fetch, _ in batches], given_up)
            raise
        finally:
            master.end(key_IDs)

    def _went_well(self, master: PendingFetches, batches: list[Batch]) -> None:
        """All arrived: fetches may request their further keys, and the next call may combine more."""
        master.together = min(MOST_TOGETHER, master.together + 1)
        for fetch, batch in batches:
            if fetch.over.done():
                continue
            if fetch.refused:
                master.most, master.most_until = len(batch), self._timing.clock() + LIMIT_BELIEVED_FOR_S
            # After a small part, one whole part shows whether several may be requested at once.
            fetch.known, fetch.refused, fetch.most = fetch.most == MOST_PER_CALL, False, MOST_PER_CALL
            if fetch.todo and fetch not in master.queue:
                master.queue.append(fetch)

    def _without(self, master: PendingFetches, batches: list[Batch], missing: frozenset[str], *, again: bool) -> None:
        """The KME has named unknown keys: those messages must wait, the others are requested again."""
        lacking = [(fetch, batch) for fetch, batch in batches if not missing.isdisjoint(batch)]
        self._not_found(master, lacking)
        others = [(fetch, batch) for fetch, batch in batches if missing.isdisjoint(batch)]
        if again:  # a KME may name only one of them, and the next call may fail as well
            self._again_unnamed = 0
            self._put_back_again(master, others)
        else:
            master.put_back(others)

    def _divide(
        self, master: PendingFetches, batches: list[Batch], error: KeyUnavailable | None, *, again: bool
    ) -> None:
        """The KME has not said what is wrong with the call: the next ones are smaller, until the cause is isolated.

        If the call had only one message, `error` is its outcome; None: its keys are unknown. Or it had too many for one
        call (400, 413, 422), which is confirmed when a smaller number succeeds.
        """
        if again and len(batches) > 1:
            self._unnamed(master, batches)
            return
        if len(batches) > 1:
            master.together = max(1, len(batches) // CALLS_AT_ONCE)
            master.put_back(batches)
            return
        [(fetch, batch)] = batches
        if isinstance(error, KMERefusedRequest) and len(batch) > 1:
            fetch.most, fetch.refused = len(batch) // 2, True
            master.put_back(batches)
            return
        self._not_found(master, batches, error)

    def _unnamed(self, master: PendingFetches, batches: list[Batch]) -> None:
        """The KME did not name the keys it lacks: if that is repeated, each message gets its own call."""
        self._again_unnamed += 1
        if self._again_unnamed > 1:
            self._again_unnamed = 0
            self._again_alone_until = self._timing.clock() + ALONE_FOR_S
        self._put_back_again(master, batches)

    def _put_back_again(self, master: PendingFetches, batches: list[Batch]) -> None:
        for fetch, batch in reversed(batches):
            if not fetch.over.done():
                fetch.give_back(batch)
                self._again.appendleft((master, fetch))
        self._leave_some_out()

    def _not_found(self, master: PendingFetches, batches: Iterable[Batch], error: KeyUnavailable | None = None) -> None:
        for fetch, batch in batches:
            number = sum(key_ID not in fetch.found for key_ID in batch)
            self._count("refused" if error else "not_found", number)
            master.conclude(fetch, error)

    async def _deliver(self, master: PendingFetches, batches: list[Batch], keys: Sequence[Key]) -> None:
        """Stores the keys, then delivers them to all waiters."""
        if not keys:
            return
        trouble = await self._kept(master.master_sae, keys)
        master.receive(batches, {key.key_ID: trouble or key for key in keys})
        if trouble is not None:
            # No further keys are fetched while arriving ones cannot be stored.
            master.conclude_all([fetch for fetch, _ in batches], trouble)

    def _stopped(self) -> KMEUnreachable:
        return KMEUnreachable(f"{self.client.name}: the relay stops")

    async def _kept(self, master_sae: str, keys: Sequence[Key]) -> StoreUnavailable | None:
        """Stores the keys; keeps them in memory while that fails."""
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
        """The outcomes for keys that could not be stored on arrival: retries, without the KME."""
        keys = [self._unkept[name] for key_ID in key_IDs if (name := (master_sae, key_ID)) in self._unkept]
        if not keys:
            return {}
        trouble = await self._kept(master_sae, keys)
        return {key.key_ID: trouble or key for key in keys}
