"""Callers who give up: a key that was fetched for one of them goes to the next, once, and no part of an answer is lost.
Standard: ETSI GS QKD 014 V1.1.1, 5.4: a KME delivers each key once.
"""

from __future__ import annotations

import asyncio
import copy
import pickle
from collections import Counter
from collections.abc import Mapping
from typing import Any

import pytest
from hypothesis import given, settings, strategies as st

import relay.keys
from relay.errors import (
    ConfigError,
    KeyNotFound,
    KeyUnavailable,
    KMEUnreachable,
    NextHopRefused,
    RelayError,
    StoreUnavailable,
)
from relay.keys import CachedKMClient, Key, KeyRing, KeysMissing, KMEGroup, NotAsked, PeerKeys, Prefetch
from relay.keys.faults import KMEFault
from relay.keys.http import HTTPRequest, NoAnswer, Question
from relay.keys.replies import OtherSize
from relay.keys.types import KeyReference
from tests.testlib.fake_kme import Certificates, FakeKME, FakeTime
from tests.testlib.long import sized

HISTORIES = sized(150, 3_000)


def _drawn(kme: FakeKME, number: int) -> list[str]:
    return [key_ID for key_ID, _ in kme.drawn(number)]


async def _gives_up(kme: FakeKME, work: Any, answers: asyncio.Event) -> None:
    """`work` is cancelled once its request has arrived; the KME answers afterwards."""
    task = asyncio.ensure_future(work)
    await kme.next_request()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    answers.set()


@pytest.mark.parametrize("kind", ["client", "group", "ring"])
async def test_received_keys_that_come_when_their_caller_has_given_up_go_to_the_next(kme: FakeKME, kind: str) -> None:
    client = kme.client(timeout=30)
    group = KMEGroup("g", [client], Prefetch(0, 0))
    ring = KeyRing("bob", {"g": group}, {})
    key_IDs = _drawn(kme, 2)
    references = [KeyReference(key_ID, "alice", "bob", "g") for key_ID in key_IDs]

    async def fetched() -> list[Key]:
        match kind:
            case "client":
                return await client.request_dec_keys("alice", key_IDs)
            case "group":
                return await group.request_dec_keys("alice", key_IDs)
        return list((await ring.fetch(references)).values())

    answers = asyncio.Event()
    kme.misbehave("dec_keys", "late", until=answers)
    if kind != "client":
        await group.members[0].pool.store("alice").limits()
        kme.requests.clear()
    await _gives_up(kme, fetched(), answers)
    for _ in range(200):
        if all(kme.link.keys[key_ID].given for key_ID in key_IDs):
            break
        await asyncio.sleep(0.01)
    assert [key.key for key in await fetched()] == [kme.link.keys[key_ID].key.key for key_ID in key_IDs]
    with pytest.raises(KeyNotFound):
        await client.request_dec_keys("alice", key_IDs, patient=False)
    await ring.close()


async def test_received_keys_that_nobody_asks_for_again_are_said_to_be_lost(
    kme: FakeKME, caplog: pytest.LogCaptureFixture
) -> None:
    answers = asyncio.Event()
    kme.misbehave("dec_keys", "late", until=answers)
    async with kme.client(timeout=30) as client:
        await _gives_up(kme, client.request_dec_keys("alice", key_IDs := _drawn(kme, 3)), answers)
        while client.untaken.missing("alice", key_IDs):
            await asyncio.sleep(0.01)
    assert "received_keys_lost kme='kme-a' number=3 cause='the client was closed'" in caplog.text


async def test_a_received_key_that_nobody_asks_for_in_five_minutes_is_given_to_nobody(
    kme: FakeKME, time: FakeTime, caplog: pytest.LogCaptureFixture
) -> None:
    async with kme.client(timing=time.timing, retry_attempts=0) as client:
        client.untaken.put("alice", [Key("a", b"k" * 32)])
        time.now += 299
        client.untaken.put("alice", [Key("b", b"k" * 32)])
        time.now += 2
        with pytest.raises(KeyNotFound) as error:
            await client.request_dec_keys("alice", ["a", "b"])
        assert [key.key_ID for key in error.value.found] == ["b"]
    assert "received_keys_lost kme='kme-a' number=1 cause='nobody asked for them again'" in caplog.text


async def test_all_of_very_many_keys_that_one_caller_asks_for_in_parts_arrive(kme: FakeKME) -> None:
    kme.limits["max_key_per_request"] = 2500
    key_IDs = _drawn(kme, 10_001)
    async with kme.client(timeout=30) as client:
        await client.check_key_status("alice")
        assert [key.key_ID for key in await client.request_dec_keys("alice", key_IDs)] == key_IDs


async def test_calls_that_nobody_waits_for_leave_connections_to_others(
    kme: FakeKME, caplog: pytest.LogCaptureFixture
) -> None:
    kme.misbehave("dec_keys", "hang", times=4)
    async with kme.client(timeout=30, pool_maxsize=3) as client:
        for key_ID in _drawn(kme, 4):
            await _gives_up(kme, client.request_dec_keys("alice", [key_ID]), asyncio.Event())
        async with asyncio.timeout(20):
            assert len(await client.request_dec_keys("alice", _drawn(kme, 1))) == 1
    assert caplog.text.count("given up before an answer came") == 4, "one at the end"


@pytest.mark.parametrize("stated", [True, False])
async def test_more_keys_than_a_kme_gives_at_once_are_asked_for_in_parts(kme: FakeKME, stated: bool) -> None:
    kme.limits["max_key_per_request"] = 4
    key_IDs = _drawn(kme, 10)
    async with kme.client() as client:
        if stated:
            await client.check_key_status("alice")
        keys = await client.request_dec_keys("alice", key_IDs)
    assert [key.key_ID for key in keys] == key_IDs
    asked = [len(request.content["key_IDs"]) for request in kme.got("dec_keys")]
    assert asked == [4, 4, 2] if stated else [10, 4, 4, 2]


@pytest.mark.parametrize("trouble", ["missing", "failed"])
async def test_when_a_later_part_fails_the_error_has_the_keys_that_came(
    kme: FakeKME, time: FakeTime, trouble: str
) -> None:
    kme.limits["max_key_per_request"] = 4
    key_IDs = _drawn(kme, 6)
    if trouble == "missing":
        key_IDs[5] = "0b9e5c1e-0000-4000-8000-000000000000"
    async with kme.client(timing=time.timing, retry_attempts=1) as client:
        await client.check_key_status("alice")
        if trouble == "failed":
            first = client._receive
            calls = iter((first, first))

            async def send(request: HTTPRequest, *rest: Any) -> Any:
                if (sender := next(calls, None)) and len(request.key_IDs) == 4:
                    return await sender(request, *rest)
                raise NoAnswer("away", sent=False, fault=KMEFault.UNREACHABLE)

            client._receive = send
        with pytest.raises(KeyNotFound if trouble == "missing" else KMEUnreachable) as error:
            await client.request_dec_keys("alice", key_IDs)
    assert [key.key_ID for key in error.value.found] == key_IDs[:4]
    if isinstance(error.value, KeysMissing):
        assert error.value.missing == key_IDs[4:]


class Scripted(relay.keys.OptimizedKMClient):
    """A client whose KME delivers each key once, after some turns of the loop."""

    delivered: Counter[str]
    turns: list[int]

    async def _ask(self, question: Question[Any], *, patient: bool = True) -> Any:
        self._sent.add(asyncio.current_task())
        for _ in range(self.turns.pop() if self.turns else 1):
            await asyncio.sleep(0)
        wanted = question.request.key_IDs
        if any(self.delivered[key_ID] for key_ID in wanted):
            raise KeyNotFound("delivered before")
        self.delivered.update(wanted)
        for _ in range(self.turns.pop() if self.turns else 1):
            await asyncio.sleep(0)
        return {key_ID: Key(key_ID, key_ID.encode() * 8) for key_ID in wanted}


STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("ask"), st.sets(st.sampled_from("abcd"), min_size=1, max_size=3)),
        st.tuples(st.just("give up"), st.integers(0, 9)),
        st.tuples(st.just("turns"), st.integers(1, 6)),
        st.tuples(st.just("the disk is full"), st.integers(1, 3)),
    ),
    max_size=30,
)


@pytest.mark.parametrize("kind", ["client", "group", "store"])
def test_no_received_key_is_given_twice_and_none_is_lost_however_callers_give_up(
    certificates: Certificates, kind: str
) -> None:
    files = certificates.files

    async def live(steps: list[tuple[str, Any]], turns: list[int]) -> None:
        client = Scripted("https://localhost:1", **files, pool_maxsize=1000)
        client.delivered, client.turns = Counter(), turns
        group = KMEGroup("g", [client], Prefetch(0, 0), lag_patience=0)
        stored, full = set[str](), 0

        async def keep(_sae: str, keys: Mapping[str, bytes]) -> None:
            nonlocal full
            await asyncio.sleep(0)
            if full:
                full -= 1
                raise StoreUnavailable("disk full")
            stored.update(keys)

        async def ready() -> None:
            pass

        if kind == "store":
            group.keep_in(keep, ready)
        got: list[str] = []

        async def ask(key_IDs: list[str]) -> None:
            source: Any = client if kind == "client" else group
            try:
                keys = await source.request_dec_keys("alice", key_IDs)
            except KeyUnavailable as error:
                keys = error.found
            except StoreUnavailable:
                return
            assert kind != "store" or stored.issuperset(key.key_ID for key in keys), "kept before anybody has it"
            got.extend(key.key_ID for key in keys)

        callers: list[asyncio.Task[None]] = []
        for step, what in steps:
            if step == "ask":
                callers.append(asyncio.create_task(ask(sorted(what))))
            elif step == "give up" and callers:
                callers[what % len(callers)].cancel()
            elif step == "the disk is full":
                full = what
            elif step == "turns":
                for _ in range(what):
                    await asyncio.sleep(0)
        await asyncio.gather(*callers, return_exceptions=True)
        for _ in range(100):
            await asyncio.sleep(0)
        if kind == "store":
            full = 0
            await group.close()
            assert stored == set(client.delivered), "what was delivered is in the store"
            return
        assert not got or max(Counter(got).values()) == 1, "given twice"
        untaken = client.untaken if kind == "client" else group._untaken
        assert untaken is not None
        kept = [key_ID for _, key_ID in untaken._keys]
        assert Counter(got + kept) == +client.delivered, "each that was delivered is with one caller, or is kept"
        await group.close()

    @settings(max_examples=HISTORIES, deadline=None)
    @given(STEPS, st.lists(st.integers(0, 5), max_size=12))
    def histories(steps: list[tuple[str, Any]], turns: list[int]) -> None:
        asyncio.run(live(steps, turns))

    histories()


_EXPORTED = [getattr(relay.keys, name) for name in relay.keys.__all__]
ERRORS = [each for each in _EXPORTED if isinstance(each, type) and issubclass(each, RelayError)]


@pytest.mark.parametrize("kind", [*ERRORS, OtherSize, NextHopRefused], ids=lambda kind: kind.__name__)
def test_an_error_goes_through_pickle_and_copy(kind: type[RelayError]) -> None:
    made: dict[type[RelayError], RelayError] = {
        KeysMissing: KeysMissing("some", [Key("a", b"k" * 32)], ["b"], certain=False),
        NotAsked: NotAsked("later", 3.0),
        ConfigError: ConfigError(["one", "two"]),
        OtherSize: OtherSize("other", 128),
    }
    error = made.get(kind) or kind("the cause")
    for again in (pickle.loads(pickle.dumps(error)), copy.copy(error)):
        assert (type(again), str(again), vars(again)) == (kind, str(error), vars(error))


async def test_an_idle_pool_draws_nothing_after_a_pause(kme: FakeKME, time: FakeTime) -> None:
    client = CachedKMClient(kme.url, **kme.certificates.files, timing=time.timing, cache=16)
    for _ in range(20):
        await client.request_enc_keys("bob")
    for _ in range(20):
        await asyncio.sleep(0.005)
    asked = len(kme.got("enc_keys"))
    for _ in range(40):
        time.now += 30
        client._fresh.maintain()
        await asyncio.sleep(0.005)
    assert len(kme.got("enc_keys")) == asked
    assert len(await client.request_enc_keys("bob")) == 1
    await client.close()


_PEER_KEYS: Any = PeerKeys
_KEY_RING: Any = KeyRing


@pytest.mark.parametrize(
    ("make", "text"),
    [
        (lambda _: _PEER_KEYS(1, ("g",)), "sae_id: it takes a text, not 1"),
        (lambda _: _PEER_KEYS("1", "g"), "groups: it takes a tuple of names, not 'g'"),
        (lambda _: _KEY_RING(2, {}, {}), "own_sae: it takes a text, not 2"),
        (lambda client: KMEGroup("g", [client], {"kme-b": Prefetch()}), "prefetch: 'kme-b' is the name of none"),
        (lambda client: KMEGroup("g", [client], one_batch={"x": 1.0}), "one_batch: 'x' is the name of none"),
    ],
)
async def test_a_wrong_value_of_a_ring_or_group_is_refused_by_name(kme: FakeKME, make: Any, text: str) -> None:
    with pytest.raises(ConfigError, match=text):
        make(kme.client())
