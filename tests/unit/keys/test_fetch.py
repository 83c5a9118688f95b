"""dec_keys: shared by those who ask for the same keys, kept before use, and not spoilt by one unknown key_ID.
Standard: each key is delivered once and must not be lost, whatever the KME, the store or the caller does.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping

import pytest

from relay.errors import KeyUnavailable, KMEBadReply, KMEUnreachable, StoreUnavailable
from relay.keys.group import KMEGroup, Prefetch
from relay.keys.ring import KeyRing
from relay.keys.settings import Quirks
from relay.keys.types import Key, KeyReference
from relay.kme import Misbehaviour
from tests.testlib.fake_kme import FakeKME, FakeTime, is_the_servers
from tests.unit.keys.test_ring import MemoryStore


class Kept:
    """A store in memory, which can be told to fail."""

    def __init__(self) -> None:
        self.keys: dict[tuple[str, str], bytes] = {}
        self.fails = 0

    async def __call__(self, master_sae: str, keys: Mapping[str, bytes]) -> None:
        if self.fails:
            self.fails -= 1
            raise StoreUnavailable("disk full")
        await asyncio.sleep(0)
        self.keys |= {(master_sae, key_ID): octets for key_ID, octets in keys.items()}


@pytest.fixture
def kept() -> Kept:
    return Kept()


@pytest.fixture
async def group(kme: FakeKME, kept: Kept, time: FakeTime) -> AsyncIterator[KMEGroup]:
    client = kme.client(timing=time.timing, retry_attempts=0, timeout=60)
    group = KMEGroup("g", [client], Prefetch(0, 0), keep=kept, timing=time.timing)
    yield group
    await group.close()


def _drawn(kme: FakeKME, number: int) -> list[str]:
    return [key_ID for key_ID, _ in kme.drawn(number)]


async def test_one_that_is_alone_goes_at_once(kme: FakeKME, group: KMEGroup, time: FakeTime) -> None:
    for key_ID in _drawn(kme, 3):
        assert key_ID in await group.fetch("alice", [key_ID])
    assert not time.slept


async def test_those_who_ask_for_the_same_key_share_one_fetch(kme: FakeKME, group: KMEGroup) -> None:
    [key_ID] = _drawn(kme, 1)
    kme.latency = 0.01
    answers = await asyncio.gather(*(group.fetch("alice", [key_ID]) for _ in range(10)))
    assert {answer[key_ID].key for answer in answers} == {kme.link.keys[key_ID].key.key}
    assert len(kme.link.keys[key_ID].given) == 1
    assert len(kme.got("dec_keys")) == 1


@pytest.mark.parametrize(
    "refusal",
    [
        None,
        Misbehaviour("http", 400, '{"message": "one or more keys specified are not found on KME"}'),
        Misbehaviour("http", 404, "<html>"),
    ],
    ids=["named", "unnamed", "html"],
)
async def test_one_unknown_key_does_not_cost_the_others(
    kme: FakeKME, group: KMEGroup, refusal: Misbehaviour | None
) -> None:
    kme.not_found = refusal
    key_IDs = _drawn(kme, 40)
    wanted = [*key_IDs[:17], "unknown", *key_IDs[17:]]
    answers = await asyncio.gather(*(_came(group, "alice", [key_ID]) for key_ID in wanted))
    assert [bool(answer) for answer in answers] == [True] * 17 + [False] + [True] * 23
    assert all(kme.link.keys[key_ID].given for key_ID in key_IDs)


async def test_a_key_that_is_not_yet_known_is_waited_for(kme: FakeKME, group: KMEGroup, time: FakeTime) -> None:
    kme.link.lag_asks = 3
    [key_ID] = _drawn(kme, 1)
    assert (await group.fetch("alice", [key_ID]))[key_ID].key == kme.link.keys[key_ID].key.key
    assert len(kme.got("dec_keys")) == 4
    pauses = [pause for pause in time.slept if pause > 0.01]
    assert pauses == sorted(pauses)
    assert len(pauses) == 3


async def test_a_key_that_never_comes_is_missing_after_the_patience(
    kme: FakeKME, group: KMEGroup, time: FakeTime
) -> None:
    began = time.now
    assert await group.fetch("alice", ["unknown"]) == {}
    assert time.now - began <= 30
    assert len(kme.got("dec_keys")) < 20


async def _came(group: KMEGroup, master_sae: str, key_IDs: list[str], *, patient: bool = True) -> dict[str, Key]:
    """The keys that came, also where the KME failed."""
    try:
        return await group.fetch(master_sae, key_IDs, patient=patient)
    except KeyUnavailable as error:
        assert error.http_status
        return {}


NOT_FOUND = {
    "named": None,
    "unnamed": Misbehaviour("http", 400, '{"message": "key not found"}'),
    "refused": Misbehaviour("http", 400, ""),
    "failed": Misbehaviour("http", 500, ""),
}


@pytest.mark.parametrize("answer", NOT_FOUND)
async def test_a_message_with_an_unknown_key_costs_one_call(kme: FakeKME, time: FakeTime, answer: str) -> None:
    kme.not_found = NOT_FOUND[answer]
    client = kme.client(timing=time.timing, timeout=60)
    group = KMEGroup("g", [client], Prefetch(0, 0), lag_patience=0, timing=time.timing)
    assert not any(await asyncio.gather(*(_came(group, "alice", [f"unknown-{n}"]) for n in range(64))))
    assert len(kme.got("dec_keys")) == 64
    await group.close()


@pytest.mark.parametrize("answer", NOT_FOUND)
@pytest.mark.parametrize("known", [0, 1, 128, 300])
async def test_a_message_that_names_thousands_of_keys_is_given_up_at_the_first_that_is_not_known(
    kme: FakeKME, time: FakeTime, answer: str, known: int
) -> None:
    kme.not_found = NOT_FOUND[answer]
    group = KMEGroup("g", [kme.client(timing=time.timing, timeout=60)], Prefetch(0, 0), timing=time.timing)
    key_IDs = [*_drawn(kme, known), *(f"unknown-{n}" for n in range(5000))]
    assert len(await _came(group, "alice", key_IDs)) <= known
    most = 128 if known else 20
    assert len(kme.got("dec_keys")) <= most, "1 or 8 at first, a dozen for lag; more only where real keys come"
    await group.close()


async def test_while_a_message_waits_one_key_of_it_is_asked_for(kme: FakeKME, group: KMEGroup) -> None:
    kme.link.lag_asks = 1
    key_IDs = _drawn(kme, 20)
    assert len(await group.fetch("alice", key_IDs)) == 20
    assert [len(request.content["key_IDs"]) for request in kme.got("dec_keys")] == [20, 1, 19]


@pytest.mark.parametrize("answer", NOT_FOUND)
async def test_a_key_that_forged_mail_names_beside_unknown_ones_comes_to_the_genuine_mail(
    kme: FakeKME, time: FakeTime, answer: str
) -> None:
    kme.not_found = NOT_FOUND[answer]
    kme.latency = 0.01
    group = KMEGroup("g", [kme.client(timing=time.timing, timeout=60)], Prefetch(0, 0), timing=time.timing)
    ring = KeyRing("bob", {"g": group}, {}, received=MemoryStore(), timing=time.timing)
    [key_ID] = _drawn(kme, 1)
    genuine = KeyReference(key_ID, "alice", "bob", "g")
    forged = [genuine._replace(key_ID=f"unknown-{n}") for n in range(20)]
    tasks = [asyncio.create_task(ring.fetch([genuine, each])) for each in forged]
    while not kme.got("dec_keys"):
        await kme.next_request()
    assert (await ring.fetch([genuine]))[genuine].key == kme.link.keys[key_ID].key.key
    await asyncio.gather(*tasks, return_exceptions=True)
    assert len(kme.link.keys[key_ID].given) == 1
    await ring.close()


async def test_a_long_pad_takes_turns_with_other_messages(kme: FakeKME, group: KMEGroup) -> None:
    kme.limits["max_key_per_request"] = 10
    kme.latency = 0.005
    pad = asyncio.create_task(group.fetch("alice", _drawn(kme, 2000)))
    while len(kme.got("dec_keys")) < 10:
        await kme.next_request()
    before = len(kme.got("dec_keys"))
    await group.fetch("alice", _drawn(kme, 1))
    assert len(kme.got("dec_keys")) - before < 20
    assert not pad.done()
    assert len(await pad) == 2000


async def test_unknown_keys_of_one_peer_do_not_delay_those_of_another(kme: FakeKME, time: FakeTime) -> None:
    kme.not_found = NOT_FOUND["failed"]
    kme.latency = 0.005
    group = KMEGroup(
        "g",
        [kme.client(timing=time.timing, timeout=60)],
        Prefetch(0, 0),
        lag_patience=0,
        timing=time.timing,
    )
    forged = [asyncio.create_task(_came(group, "carol", [f"unknown-{n}"])) for n in range(200)]
    while len(kme.got("dec_keys")) < 20:
        await kme.next_request()
    before = len(kme.got("dec_keys"))
    assert await _came(group, "alice", _drawn(kme, 1))
    assert len(kme.got("dec_keys")) - before < 20
    await asyncio.gather(*forged)
    await group.close()


@pytest.mark.parametrize("size", [2, 30])
async def test_late_keys_are_found_beside_others_that_never_come(kme: FakeKME, group: KMEGroup, size: int) -> None:
    """As after a minute of lag, when mail for lost keys is tried again along with mail that can be opened by now."""
    late = _drawn(kme, size)
    kme.link.not_found_for.update(dict.fromkeys(late, 1))
    messages = [late, *([f"unknown-{n}"] for n in range(10))]
    for _ in range(2):
        found = await asyncio.gather(*(group.fetch("alice", each, patient=False) for each in messages))
    assert {key_ID: key.key for key_ID, key in found[0].items()} == {each: kme.link.keys[each].key.key for each in late}
    assert not any(found[1:])
    assert len(kme.got("dec_keys")) == 2 * 11


async def test_each_key_is_stored_before_anybody_gets_it(kme: FakeKME, group: KMEGroup, kept: Kept) -> None:
    key_IDs = _drawn(kme, 3)
    keys = await group.fetch("alice", key_IDs)
    assert kept.keys == {("alice", key_ID): keys[key_ID].key for key_ID in key_IDs}


async def test_a_key_that_cannot_be_stored_is_not_handed_over_and_not_lost(
    kme: FakeKME, group: KMEGroup, kept: Kept
) -> None:
    [key_ID] = _drawn(kme, 1)
    kept.fails = 2
    for _ in range(2):
        with pytest.raises(StoreUnavailable):
            await group.fetch("alice", [key_ID])
    assert (await group.fetch("alice", [key_ID]))[key_ID].key == kept.keys["alice", key_ID]
    assert len(kme.got("dec_keys")) == 1


async def test_a_key_that_could_not_be_stored_is_stored_at_the_end(kme: FakeKME, group: KMEGroup, kept: Kept) -> None:
    [key_ID] = _drawn(kme, 1)
    kept.fails = 1
    with pytest.raises(StoreUnavailable):
        await group.fetch("alice", [key_ID])
    await group.close()
    assert kept.keys["alice", key_ID] == kme.link.keys[key_ID].key.key


async def test_a_caller_who_gives_up_does_not_lose_the_key_on_the_way(
    kme: FakeKME, group: KMEGroup, kept: Kept
) -> None:
    [key_ID] = _drawn(kme, 1)
    kme.latency = 0.02
    asking = asyncio.create_task(group.fetch("alice", [key_ID]))
    while not kme.got("dec_keys"):
        await kme.next_request()
    asking.cancel()
    await asyncio.gather(asking, return_exceptions=True)
    await group.close()
    assert kept.keys["alice", key_ID] == kme.link.keys[key_ID].key.key


async def test_keys_that_came_with_a_failure_are_kept(kme: FakeKME, group: KMEGroup, kept: Kept) -> None:
    key_IDs = _drawn(kme, 4)
    kme.misbehave("dec_keys", "short")
    await group.fetch("alice", key_IDs)
    assert set(kept.keys) == {("alice", key_ID) for key_ID in key_IDs}


async def test_another_kme_of_the_group_is_asked_for_what_one_does_not_give(
    two_kmes: tuple[FakeKME, FakeKME], time: FakeTime
) -> None:
    first, second = two_kmes
    clients = [
        kme.client(timing=time.timing, name=name, retry_attempts=0) for kme, name in zip(two_kmes, "ab", strict=True)
    ]
    group = KMEGroup("g", clients, Prefetch(0, 0), timing=time.timing)
    first.misbehave("dec_keys", "drop", times=None)
    [key_ID] = _drawn(first, 1)
    assert await group.fetch("alice", [key_ID])
    assert len(second.got("dec_keys")) == 1
    await group.close()


async def test_when_no_kme_can_be_asked_the_error_says_so(kme: FakeKME, group: KMEGroup) -> None:
    kme.misbehave("dec_keys", "drop", times=None)
    with pytest.raises(KMEUnreachable):
        await group.fetch("alice", _drawn(kme, 1))


async def test_a_limit_that_the_status_does_not_tell_is_found_out(kme: FakeKME, group: KMEGroup) -> None:
    kme.limits |= {"max_key_per_request": 0}
    kme.misbehave("dec_keys", "http", code=413)
    key_IDs = _drawn(kme, 64)
    assert len(await group.fetch("alice", key_IDs)) == 64
    assert [len(request.content["key_IDs"]) for request in kme.got("dec_keys")] == [64, 32, 32]


async def test_a_kme_with_only_get_is_asked_for_each_key_alone(kme: FakeKME, time: FakeTime) -> None:
    client = kme.client(timing=time.timing, quirks=Quirks(method="GET"))
    group = KMEGroup("g", [client], Prefetch(0, 0), lag_patience=0, timing=time.timing)
    key_IDs = _drawn(kme, 5)
    assert set(await group.fetch("alice", [*key_IDs, "unknown"])) == set(key_IDs)
    assert len(kme.got("dec_keys")) == 6
    await group.close()


async def test_a_fault_at_one_key_is_not_called_unknown_and_has_the_keys_that_came(
    kme: FakeKME, time: FakeTime
) -> None:
    first, second = _drawn(kme, 2)
    kme.decide = lambda request: Misbehaviour("http", 504) if request.query.get("key_ID") == second else None
    async with kme.client(timing=time.timing, quirks=Quirks(method="GET")) as client:
        with pytest.raises(KMEUnreachable, match="HTTP 504") as raised:
            await client.request_dec_keys("alice", [first, second], patient=False)
        assert [key.key_ID for key in raised.value.found] == [first]


async def test_an_entry_that_is_no_key_is_a_bad_reply_and_loses_no_other_key(
    kme: FakeKME, group: KMEGroup, kept: Kept
) -> None:
    first, second = _drawn(kme, 2)
    kme.misbehave("dec_keys", "bad_base64")
    with pytest.raises(KMEBadReply):
        await group.fetch("alice", [first, second], patient=False)
    assert [key_ID for _, key_ID in kept.keys] == [first]


async def test_closing_answers_everybody_and_leaves_no_task(kme: FakeKME) -> None:
    kme.misbehave("dec_keys", "hang", times=None)
    group = KMEGroup("g", [kme.client(timeout=0.2, retry_attempts=0)], Prefetch(0, 0), lag_patience=0)
    before = asyncio.all_tasks()
    asking = [asyncio.create_task(group.fetch("alice", [key_ID])) for key_ID in _drawn(kme, 3)]
    while not kme.got("dec_keys"):
        await kme.next_request()
    await group.close()
    results = await asyncio.gather(*asking, return_exceptions=True)
    assert all(isinstance(result, KMEUnreachable) for result in results)
    assert {task for task in asyncio.all_tasks() - before if not is_the_servers(task)} == set()
