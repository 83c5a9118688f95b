"""Generated histories of one KME's keys: callers come and go, requests succeed, fail and hang, event loops end.
Standard: no key twice, none lost but those accounted for; issued = used + burnt + expired + ready.
"""

from __future__ import annotations

import asyncio
import secrets
from collections import Counter
from collections.abc import Mapping
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given, settings, strategies as st

from relay.errors import KeyUnavailable, KMEBadReply, KMEExhausted, KMEMisconfigured, KMEUnreachable, StoreUnavailable
from relay.keys.faults import KMERefusedRequest, KMEUnanswered, NotAsked
from relay.keys.issued import SeenKeys
from relay.keys.pool import KeyPool
from relay.keys.refill import Prefetch
from relay.keys.replies import KeyStatus, status_from_reply
from relay.keys.stock import Accounts
from relay.keys.types import Key
from tests.testlib.fake_kme import FakeTime
from tests.testlib.long import sized

HISTORIES = sized(150, 10_000)

ERRORS: dict[str, KeyUnavailable] = {
    "exhausted": KMEExhausted("no key"),
    "refused": KMERefusedRequest("too many"),
    "misconfigured": KMEMisconfigured("who are you?"),
    "unreachable": KMEUnreachable("away"),
    "left alone": NotAsked("later", 1.0),
    "bad": KMEBadReply("what?"),
}
ANSWERS = ["all", "all", "all", "fewer", "again", "hang", "unanswered", *ERRORS]


class ScriptedClient:
    """A KME's client as a pool sees it: each request has the next answer of a script, after some turns of the loop."""

    def __init__(self, answers: list[tuple[str, int]], most: int) -> None:
        self.name = "kme"
        self.answers = answers
        self.most_per_request = None
        self.most = most
        self.accounts = Accounts()
        self.loop = None
        self.state = SimpleNamespace(latency=None)
        self.troubles: dict[str, str] = {}
        self.last: list[Key] = []
        self.issued: Counter[str] = Counter()
        self.now = self.most_at_once = 0

    def bind(self) -> None:
        """Its loops are ended by the test."""

    def burn(self, sae: str, number: int, cause: str) -> None:
        self.accounts.issued_and_burnt(sae, number, cause)

    async def check_key_status(self, slave_sae_id: str, *, patient: bool = True) -> KeyStatus:
        await asyncio.sleep(0)
        return status_from_reply({"max_key_per_request": self.most, "key_size": 256})

    async def draw_keys(self, slave_sae_id: str, number: int, size: int, *, patient: bool = True) -> list[Key]:
        assert 0 < number <= self.most
        self.now += 1
        self.most_at_once = max(self.most_at_once, self.now)
        try:
            return await self._answer(number, size)
        finally:
            self.now -= 1

    async def _answer(self, number: int, size: int) -> list[Key]:
        answer, turns = self.answers.pop(0) if self.answers else ("all", 0)
        if answer in ERRORS:
            await self._turns(turns)
            raise ERRORS[answer]
        given = max(1, number // 2) if answer == "fewer" else number
        keys = [Key(secrets.token_hex(8), secrets.token_bytes(size // 8)) for _ in range(given)]
        if answer == "again" and self.last:
            keys = list(self.last)
        self.issued.update(key.key_ID for key in keys)
        try:
            await (asyncio.Event().wait() if answer == "hang" else self._turns(turns))
        except asyncio.CancelledError:
            self.accounts.issued_and_burnt("bob", len(keys), "no answer")
            raise
        if answer == "unanswered":
            self.accounts.issued_and_burnt("bob", len(keys), "no answer")
            raise KMEUnanswered("no answer")
        self.last = keys
        return keys

    async def _turns(self, turns: int) -> None:
        for _ in range(turns):
            await asyncio.sleep(0)


class Disk:
    """The memory of issued keys, which fails when it is told to."""

    def __init__(self) -> None:
        self.fails = 0
        self.known: set[str] = set()

    async def ready(self) -> None:
        await asyncio.sleep(0)

    async def remember(self, group: str, keys: Mapping[str, bytes]) -> frozenset[str]:
        await asyncio.sleep(0)
        if self.fails:
            self.fails -= 1
            raise StoreUnavailable("disk full")
        before = frozenset(self.known & keys.keys())
        self.known |= keys.keys()
        return before


STEPS = st.one_of(
    st.tuples(st.just("take"), st.integers(1, 6)),
    st.tuples(st.just("take some"), st.integers(1, 6)),
    st.tuples(st.just("give up"), st.integers(0, 5)),
    st.tuples(st.just("turns"), st.integers(1, 8)),
    st.tuples(st.just("wait"), st.sampled_from([1, 7, 40, 200])),
    st.tuples(st.sampled_from(["disk fails", "tend", "next loop", "dead loop"]), st.just(1)),
)


class History:
    """One pool through a list of steps."""

    def __init__(self, answers: list[tuple[str, int]], high: int, *, managed: bool) -> None:
        self.time = FakeTime()
        self.client = ScriptedClient(answers, 4 if managed else 10**6)
        client: Any = self.client
        prefetch = Prefetch(high // 2, high, 100)
        self.pool = KeyPool(client, prefetch, SeenKeys(), self.time.timing, managed=managed)
        self.disk = Disk()
        self.pool.issued.remember_in(self.disk, "g")
        self.callers: list[asyncio.Task[list[Key]]] = []
        self.got: list[Key] = []

    async def live(self, steps: list[tuple[str, int]]) -> None:
        for step, number in steps:
            match step:
                case "take" | "take some":
                    least = 1 if step == "take some" else None
                    self.callers.append(asyncio.create_task(self._take(number, least)))
                case "give up" if self.callers:
                    self.callers[number % len(self.callers)].cancel()
                case "wait":
                    self.time.now += number
                case "disk fails":
                    self.disk.fails += 1
                case "tend":
                    self.pool.maintain()
                case "turns":
                    for _ in range(number):
                        await asyncio.sleep(0)
            self.check()

    def loop_ended(self) -> None:
        """Who was still waiting has given up, perhaps when already served."""
        self.callers.clear()

    async def end(self) -> None:
        """All who wait are answered in the end, but for those whose request hangs."""
        while self.client.answers:
            self.client.answers.pop()
        for _ in range(60):
            await asyncio.sleep(0)
        hanging = [task for task in asyncio.all_tasks() if task.get_name() == "draw keys"]
        for task in hanging:
            task.cancel()
        await asyncio.gather(*hanging, *self.callers, return_exceptions=True)
        await self.pool.close()
        self.check()
        totals = self.client.accounts.totals()
        assert totals["used"] == len(self.got)
        assert (totals["in_pool"], totals["issued"]) == (0, self.client.issued.total())

    def check(self) -> None:
        taken = Counter(key.key_ID for key in self.got)
        assert not taken or max(taken.values()) == 1
        assert len({key.key for key in self.got}) == len(self.got)
        totals = self.client.accounts.totals()
        assert totals["in_pool"] == sum(self.pool.held().values())
        assert totals["used"] == len(self.got), "what nobody received, is there for the next"
        assert self.client.most_at_once <= 1

    async def _take(self, number: int, least: int | None) -> list[Key]:
        try:
            keys = await self.pool.take("bob", 256, number, least=least)
        except (KeyUnavailable, StoreUnavailable):
            return []
        assert (least or number) <= len(keys) <= number
        self.got += keys
        return keys


@settings(max_examples=HISTORIES, deadline=None)
@given(
    steps=st.lists(STEPS, max_size=40),
    answers=st.lists(st.tuples(st.sampled_from(ANSWERS), st.integers(0, 3)), max_size=12),
    high=st.sampled_from([0, 0, 4, 9]),
    managed=st.booleans(),
)
def test_no_key_is_given_twice_and_none_is_lost_whatever_happens(
    steps: list[tuple[str, int]], answers: list[tuple[str, int]], high: int, managed: bool
) -> None:
    history = History(answers, high, managed=managed)
    part: list[tuple[str, int]] = []
    for step in [*steps, ("next loop", 1)]:
        part.append(step)
        if step[0] == "next loop":
            asyncio.run(history.live(part))  # ends what is left over in it
            history.loop_ended()
            part = []
        elif step[0] == "dead loop":
            loop = asyncio.new_event_loop()
            loop.run_until_complete(history.live(part))
            for task in asyncio.all_tasks(loop):
                task.cancel()
            loop.run_until_complete(asyncio.sleep(0))
            loop.close()
            history.loop_ended()
            part = []
    asyncio.run(history.end())


@pytest.mark.parametrize("managed", [True, False])
def test_keys_that_were_handed_to_a_caller_who_gives_up_in_that_moment_go_to_the_next(managed: bool) -> None:
    served = 0
    for turns in range(30):
        history = History([], 0, managed=managed)
        give_up = [("take", 2), ("take some", 2), ("turns", turns), ("give up", 0), ("give up", 1)]

        async def live(history: History, steps: list[tuple[str, int]]) -> None:
            await history.live(steps)
            await history.live([("turns", 30), ("take", 2), ("turns", 30)])
            await history.end()

        asyncio.run(live(history, give_up))
        served += len(history.got) > 2
        assert len(history.got) >= 2, "the next caller has keys, whenever the others gave up"
    assert served, "in the last rounds they had theirs before"
