"""dec_keys in bulk: the keys of several messages go out together, and each key is kept before use.
Standard: ETSI GS QKD 014 V1.1.1, 5.4. One unknown key_ID does not cost the others; one fetch serves all who wait.

A call belongs to the fetcher, not to who asked: when he gives up, the keys that come are kept all the same.

Anybody can send mail that names keys which do not exist. What that costs a KME is bounded, in calls for one message:

- at first 1 call; up to 8 where the KME says no more than that it does not like the request (400, 413, 422);
- where it shared a call with others, which is divided until it is known whose keys do not exist, 1 or 2 more;
- when it is asked for again, which goes by a way of its own, 1 for its first key; of those at most 10 a second in all.
  Where the KME names the keys that it does not know, many messages share this call: the others have theirs at once.

The further keys of a message are asked for when the first part has come, some parts at a time, and no more once one
of them does not: whoever has real key_IDs that were not fetched yet can have a dozen calls made for some of these.
"""

from __future__ import annotations

import asyncio
from collections import Counter, deque
from collections.abc import Awaitable, Callable, Iterable, Sequence
from typing import Final

from relay.errors import KeyUnavailable, KMEUnreachable, StoreUnavailable
from relay.keys.client import KMEClient
from relay.keys.events import Events
from relay.keys.faults import KeysMissing, KMERefusedRequest
from relay.keys.pending import MOST_PER_CALL, MOST_TOGETHER, Desk, Outcome, Portion, Wish
from relay.keys.types import REAL_TIME, KeepKeys, Key, Timing

log = Events(__name__)

CLOSING_GRACE_S = 3.0
"""How long calls under way may still take when the relay stops: the keys they bring cannot be had again."""

CALLS_AT_ONCE: Final = 6
"""Of the connections to a KME (pool_maxsize, 10), for keys asked for the first time, of all masters together."""

AGAIN_EVERY_S = 0.1
"""Keys that did not come before are asked for in one call after the other, and no more often than this."""

AGAIN_TOGETHER = 32
"""Messages in such a call, where the KME names the keys that it does not know."""

MOST_AGAIN = 10
"""So many messages wait where each has such a call of its own, else AGAIN_TOGETHER; of more, one of the master that has
most of them is not asked for this time."""

ALONE_FOR_S = 10.0
"""So long each has a call of its own after two for several failed without a word on which keys it was for."""

LIMIT_BELIEVED_FOR_S = 600.0
"""A limit that was found out by refusals may be wrong: they may have been for a key that does not exist."""


class Fetcher:
    """Fetches keys from one KME. `keep` (None: nothing) is awaited before anybody gets a key."""

    def __init__(
        self,
        client: KMEClient,
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
        self.ready: Callable[[], Awaitable[None]] | None = None
        """Awaited before each call; raises StoreUnavailable while keys could not be kept."""
        self._limit = limit
        self._gather = gather
        self._window = window
        self._calls_at_once = CALLS_AT_ONCE if gather else 8
        self._count = count
        self._timing = timing
        self._desks: dict[str, Desk] = {}
        self._again: deque[tuple[Desk, Wish]] = deque()
        self._again_from = self._again_alone_until = float("-inf")
        self._again_unnamed = 0
        self._asking: set[asyncio.Task[None]] = set()
        self._asking_again: asyncio.Task[None] | None = None
        self._unkept: dict[tuple[str, str], Key] = {}
        self._closed = False
        self.calls = 0
        """Calls made so far."""

    async def fetch(self, master_sae: str, key_IDs: Sequence[str], tries: int = 0) -> dict[str, Outcome]:
        """What became of the keys of one message, after one round of asking; never raises for one of them.

        Once one of them is not known, the rest is not asked for: it counts as not known as well. `tries` is how
        often they were asked for before and did not come.
        """
        outcomes = await self._keep_again(master_sae, key_IDs)
        if wanted := tuple(dict.fromkeys(key_ID for key_ID in key_IDs if key_ID not in outcomes)):
            wish = self._wish(master_sae, wanted, tries)
            self._send_calls()
            await asyncio.wait([wish.over])
            outcomes |= wish.found
        return outcomes

    async def close(self) -> None:
        """Lets calls under way end, for a moment; then ends them, and answers all who wait."""
        self._closed = True
        calls = [*self._asking, *([self._asking_again] if self._asking_again else [])]
        if calls:
            await asyncio.wait(calls, timeout=CLOSING_GRACE_S)
        for call in calls:
            call.cancel()
        await asyncio.gather(*calls, return_exceptions=True)
        for desk in self._desks.values():
            self._conclude_all(desk, list(desk.wishes.values()), self._stopped())
        for master_sae in {master_sae for master_sae, _ in self._unkept}:
            await self._keep_again(master_sae, [key_ID for master, key_ID in self._unkept if master == master_sae])
        self._desks.clear()

    def _wish(self, master_sae: str, key_IDs: tuple[str, ...], tries: int) -> Wish:
        """The one that others already wait for, or a new one."""
        desk = self._desks.setdefault(master_sae, Desk(master_sae))
        if wish := desk.wishes.get(key_IDs):
            return wish
        wish = desk.wishes[key_IDs] = Wish(key_IDs, self._first_part(tries))
        if self._closed:
            desk.conclude(wish, self._stopped())
        elif tries:
            self._again.append((desk, wish))
            self._leave_some_out()
        else:
            desk.queue.append(wish)
        return wish

    def _first_part(self, tries: int) -> int:
        """How many of a message's keys are asked for before it is known that there are any."""
        return 1 if tries or not self._gather or self.client.one_by_one else MOST_PER_CALL

    @property
    def _again_together(self) -> int:
        """How many messages whose keys did not come before share a call now."""
        alone = not self._gather or self.client.one_by_one or self._timing.clock() < self._again_alone_until
        return 1 if alone else AGAIN_TOGETHER

    def _leave_some_out(self) -> None:
        while len(self._again) > max(MOST_AGAIN, self._again_together):
            self._leave_one_out()

    def _leave_one_out(self) -> None:
        masters = Counter(desk.master_sae for desk, _ in self._again)
        [(most, _)] = masters.most_common(1)
        places = [place for place, (desk, _) in enumerate(self._again) if desk.master_sae == most]
        place = places[int(self._timing.chance() * len(places)) % len(places)]
        desk, wish = self._again[place]
        del self._again[place]
        desk.conclude(wish, None)

    # Whose turn it is

    def _send_calls(self) -> None:
        if self._closed:
            return
        if len(self._asking) < self._calls_at_once and any(desk.ready for desk in self._desks.values()):
            call = asyncio.create_task(self._ask_in_turn(), name="fetch keys")
            self._asking.add(call)
            call.add_done_callback(self._ended)
        if self._again and self._asking_again is None:
            self._asking_again = asyncio.create_task(self._ask_again_in_turn(), name="fetch keys again")
            self._asking_again.add_done_callback(self._ended)

    def _ended(self, call: asyncio.Task[None]) -> None:
        self._asking.discard(call)
        if call is self._asking_again:
            self._asking_again = None
        if not call.cancelled() and (error := call.exception()):
            log.error("fetch_failed", kme=self.client.name, exc_info=error)
        self._send_calls()

    async def _ask_in_turn(self) -> None:
        """Calls, one after the other, the masters in turn, until nobody waits."""
        while not self._closed and (desk := self._next_desk()):
            most = await self._most(desk)
            if desk.most_until <= self._timing.clock():
                desk.most = MOST_PER_CALL
            if self._gather:
                await self._timing.sleep(self._window)
            if portions := desk.take(most):
                self._send_calls()
                await self._ask(desk, portions)

    async def _ask_again_in_turn(self) -> None:
        """Calls for the first keys of messages whose keys did not come before, one after the other."""
        while not self._closed and self._again:
            if (wait := self._again_from - self._timing.clock()) > 0:
                await self._timing.sleep(wait)
            if not self._again:
                return
            desk, portions = self._take_again()
            if portions:
                await self._ask(desk, portions, again=True)
                self._again_from = self._timing.clock() + AGAIN_EVERY_S

    def _take_again(self) -> tuple[Desk, list[Portion]]:
        """What goes into the next such call: the first keys of those who wait longest, of one master."""
        desk, most = self._again[0][0], self._again_together
        portions: list[Portion] = []
        others: deque[tuple[Desk, Wish]] = deque()
        while self._again and len(portions) < most:
            each, wish = self._again.popleft()
            if each is not desk:
                others.append((each, wish))
            elif desk.wait_for_others(wish, 1):
                desk.queue.append(wish)
            else:
                portion = wish.take(1)
                desk.begin(portion)
                portions.append((wish, portion))
        self._again.extendleft(reversed(others))
        return desk, portions

    def _next_desk(self) -> Desk | None:
        """One with work to do; it comes last from now on."""
        desk = next((desk for desk in self._desks.values() if desk.ready), None)
        if desk is not None:
            self._desks[desk.master_sae] = self._desks.pop(desk.master_sae)
        return desk

    async def _most(self, desk: Desk) -> int:
        """How many key_IDs go into a call."""
        try:
            most = await self._limit(desk.master_sae)
        except Exception as error:
            # Left waiting, they would have another call made at once, which may end like this one, for ever.
            given_up = KMEUnreachable(f"{self.client.name}: the call was given up: {error}")
            self._conclude_all(desk, list(desk.queue), given_up)
            raise
        return (most or MOST_PER_CALL) if self._gather else 1

    # One call

    async def _ask(self, desk: Desk, portions: list[Portion], *, again: bool = False) -> None:
        """One call, and what becomes of those that were asked for in it; `again`: they did not come before."""
        key_IDs = list(dict.fromkeys(key_ID for _, portion in portions for key_ID in portion))
        try:
            if self.ready is not None:
                await self.ready()
            self.calls += 1
            keys = await self.client.request_dec_keys(desk.master_sae, key_IDs)
            self._again_unnamed = 0 if again else self._again_unnamed
            await self._deliver(desk, portions, keys)
            self._went_well(desk, portions)
        except KeysMissing as error:
            await self._deliver(desk, portions, error.found)
            if error.certain:
                self._without(desk, portions, frozenset(error.missing), again=again)
            elif again and len(portions) > 1:
                self._unnamed(desk, portions)
            else:
                self._spoilt(desk, portions, refused=False)
        except KMERefusedRequest:
            if again and len(portions) > 1:
                self._unnamed(desk, portions)
            else:
                self._spoilt(desk, portions, refused=True)
        except StoreUnavailable as error:
            log.error("received_keys_not_asked_for", kme=self.client.name, number=len(key_IDs), cause=str(error))
            self._count("not_asked", len(key_IDs))
            self._conclude_all(desk, [wish for wish, _ in portions], error)
        except KeyUnavailable as error:
            self._conclude_all(desk, [wish for wish, _ in portions], error)
        except BaseException:
            given_up = KMEUnreachable(f"{self.client.name}: the call was given up")
            self._conclude_all(desk, [wish for wish, _ in portions], given_up)
            raise
        finally:
            desk.end(key_IDs)
            self._send_calls()

    def _went_well(self, desk: Desk, portions: list[Portion]) -> None:
        """All came: whoever has further keys may ask for them, and the next call may have more company."""
        desk.together = min(MOST_TOGETHER, desk.together + 1)
        for wish, portion in portions:
            if wish.over.done():
                continue
            if wish.refused:
                desk.most, desk.most_until = len(portion), self._timing.clock() + LIMIT_BELIEVED_FOR_S
            # After a small part one whole one shows whether more of them may be asked for at the same time.
            wish.known, wish.refused, wish.most = wish.most == MOST_PER_CALL, False, MOST_PER_CALL
            if wish.todo and wish not in desk.queue:
                desk.queue.append(wish)

    def _without(self, desk: Desk, portions: list[Portion], missing: frozenset[str], *, again: bool) -> None:
        """The KME has said which it does not know: those messages must wait, the others are asked for again."""
        lacking = [(wish, portion) for wish, portion in portions if not missing.isdisjoint(portion)]
        self._not_found(desk, lacking)
        others = [(wish, portion) for wish, portion in portions if missing.isdisjoint(portion)]
        if again:  # a KME may name one of them at a time, and the next call may be like this one
            self._again_unnamed = 0
            self._put_back_again(desk, others)
        else:
            desk.put_back(others)

    def _spoilt(self, desk: Desk, portions: list[Portion], *, refused: bool) -> None:
        """The KME has not said what is wrong with the call: fewer go into the next ones, until it is found out.

        Where the call had one message alone, its keys are not known; or there were too many of them for one call
        (`refused`), which is believed when a smaller number is taken.
        """
        if len(portions) > 1:
            desk.together = max(1, len(portions) // CALLS_AT_ONCE)
            desk.put_back(portions)
            return
        [(wish, portion)] = portions
        if refused and len(portion) > 1:
            wish.most, wish.refused = len(portion) // 2, True
            desk.put_back(portions)
            return
        self._not_found(desk, portions)

    def _unnamed(self, desk: Desk, portions: list[Portion]) -> None:
        """The KME did not name the keys it lacks: when that was no accident, each message has a call of its own."""
        self._again_unnamed += 1
        if self._again_unnamed > 1:
            self._again_unnamed = 0
            self._again_alone_until = self._timing.clock() + ALONE_FOR_S
        self._put_back_again(desk, portions)

    def _put_back_again(self, desk: Desk, portions: list[Portion]) -> None:
        for wish, portion in reversed(portions):
            if not wish.over.done():
                wish.give_back(portion)
                self._again.appendleft((desk, wish))
        self._leave_some_out()

    def _not_found(self, desk: Desk, portions: Iterable[Portion]) -> None:
        for wish, portion in portions:
            self._count("not_found", sum(key_ID not in wish.found for key_ID in portion))
            desk.conclude(wish, None)

    async def _deliver(self, desk: Desk, portions: list[Portion], keys: Sequence[Key]) -> None:
        """Keeps the keys, then gives them to all who wait for them."""
        if not keys:
            return
        trouble = await self._kept(desk.master_sae, keys)
        desk.receive(portions, {key.key_ID: trouble or key for key in keys})
        if trouble is not None:
            # No further key is taken from the KME while those that come cannot be stored.
            self._conclude_all(desk, [wish for wish, _ in portions], trouble)

    def _conclude_all(self, desk: Desk, wishes: Iterable[Wish], outcome: Outcome) -> None:
        for wish in wishes:
            desk.conclude(wish, outcome)

    def _stopped(self) -> KMEUnreachable:
        return KMEUnreachable(f"{self.client.name}: the relay stops")

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
