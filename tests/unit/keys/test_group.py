"""The pool of a KME group over a KME that misbehaves: no key twice, none lost, accounts exact, no task left.
Standard: issued = used + burnt + expired + in the pool, whatever the KME does.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import suppress
from typing import Any

import pytest

from relay.counting.key_metrics import PAD_DISCARDED
from relay.errors import KeyUnavailable, KMEBadReply, KMEExhausted, KMEUnreachable
from relay.keys import Key
from relay.keys.counts import Numbers
from relay.keys.group import KMEGroup, Prefetch
from relay.keys.settings import Quirks
from tests.testlib.counted import burnt_by_cause
from tests.testlib.fake_kme import FakeKME, FakeTime, is_the_servers
from tests.testlib.pools import accounts_agree, settled

NO_PREFETCH = Prefetch(low=0, high=0)


@pytest.fixture
async def group(kme: FakeKME, time: FakeTime) -> AsyncIterator[KMEGroup]:
    """A group of one KME, with prefetch, in simulated time."""
    group = KMEGroup("g", [kme.client(timing=time.timing)], Prefetch(4, 16, 100), timing=time.timing)
    yield group
    await group.close()
    assert accounts_agree(group)


async def test_keys_are_drawn_ahead_and_refilled_below_the_low_mark(kme: FakeKME, group: KMEGroup) -> None:
    group.warm("bob")
    await settled(group)
    [pool] = group.pools
    before = len(kme.got("enc_keys"))
    for _ in range(2):
        await group.take("bob")
    assert len(kme.got("enc_keys")) == before
    for _ in range(30):
        await group.take("bob")
    await settled(group)
    assert 8 <= pool.ready("bob", 256) <= 16, "with use more are ready, and never more than the high mark"
    assert accounts_agree(group)


async def test_sizes_that_vary_cost_no_more_keys_than_were_asked_for(group: KMEGroup) -> None:
    """A size that comes again has no more drawn ahead than were given of it."""
    for size in range(64, 1024, 8):
        await group.take("bob", size)
        await settled(group)
    accounts = group.pools[0].client.accounts
    assert accounts.totals()["issued"] == 120
    for _ in range(4):
        await group.take("bob", 512)
        await settled(group)
    assert accounts.totals()["issued"] <= 120 + 8


async def test_without_prefetch_a_key_is_drawn_for_each_need(kme: FakeKME, time: FakeTime) -> None:
    group = KMEGroup("g", [kme.client(timing=time.timing)], NO_PREFETCH, timing=time.timing)
    for _ in range(3):
        await group.take("bob")
    assert [request.content["number"] for request in kme.got("enc_keys")] == [1, 1, 1]
    assert group.pools[0].held() == {}
    await group.close()


async def test_those_who_wait_at_once_share_requests(kme: FakeKME, time: FakeTime) -> None:
    kme.latency = 0.01
    group = KMEGroup("g", [kme.client(timing=time.timing)], NO_PREFETCH, timing=time.timing)
    keys = await asyncio.gather(*(group.take("bob") for _ in range(50)))
    assert len({key.key_ID for key in keys}) == 50
    assert len(kme.got("enc_keys")) <= 3
    assert kme.most_enc_keys_at_once == 1
    await group.close()


async def test_a_warm_pool_has_a_few_keys_and_one_message_has_no_more_drawn(kme: FakeKME, group: KMEGroup) -> None:
    group.warm("bob")
    await settled(group)
    assert group.pools[0].ready("bob", 256) == 4
    await group.take("bob")
    await settled(group)
    assert group.pools[0].ready("bob", 256) == 3


async def test_a_relay_that_stops_draws_for_those_who_wait_and_for_nobody_else(kme: FakeKME, group: KMEGroup) -> None:
    group.warm("bob")
    await settled(group)
    group.stop_waiting()
    for _ in range(6):
        await group.take("bob")
    await settled(group)
    assert group.pools[0].held() == {}
    assert group.pools[0].client.accounts.totals()["issued"] == 6


async def test_old_keys_are_destroyed_counted_and_never_used(group: KMEGroup, time: FakeTime) -> None:
    group.warm("bob")
    first = await group.take("bob")
    await settled(group)
    time.now += 101
    second = await group.take("bob")
    await settled(group)
    totals = group.pools[0].client.accounts.totals()
    assert totals["expired"] == 4
    assert totals["used"] == 2
    assert first.key_ID != second.key_ID


@pytest.mark.parametrize("kind", ["same_again", "same_octets"])
async def test_keys_that_were_given_before_are_refused(kme: FakeKME, time: FakeTime, kind: str) -> None:
    group = KMEGroup("g", [kme.client(timing=time.timing)], NO_PREFETCH, timing=time.timing)
    await group.take("bob")
    kme.misbehave("enc_keys", kind)
    with pytest.raises(KMEBadReply):
        await group.take("bob")
    assert burnt_by_cause(group.pools[0].client.accounts) == {"seen before": 1}
    time.now += 10
    await group.take("bob")
    await group.close()


async def test_a_kme_that_gives_fewer_than_asked_for_is_asked_again(kme: FakeKME, time: FakeTime) -> None:
    kme.misbehave("enc_keys", "short", times=None, number=1)
    group = KMEGroup("g", [kme.client(timing=time.timing)], NO_PREFETCH, timing=time.timing)
    keys = await asyncio.gather(*(group.take("bob") for _ in range(5)))
    assert len({key.key_ID for key in keys}) == 5
    await group.close()


async def test_a_kme_that_nearly_ran_dry_gives_what_it_has(kme: FakeKME, group: KMEGroup) -> None:
    kme.link.bits = 3 * 256
    taken = [await group.take("bob") for _ in range(3)]
    await settled(group)
    assert len(taken) == 3
    with pytest.raises(KMEExhausted):
        await group.take("bob")


async def test_a_dry_kme_is_left_alone_for_a_while_and_then_used_again(
    kme: FakeKME, group: KMEGroup, time: FakeTime
) -> None:
    kme.link.bits = 0
    for _ in range(20):
        with pytest.raises(KMEExhausted):
            await group.take("bob")
    assert len(kme.got("enc_keys")) <= 2
    kme.link.bits = 100 * 256
    time.now += 6
    await group.take("bob")


async def test_a_limit_that_the_status_does_not_tell_is_found_out(kme: FakeKME, time: FakeTime) -> None:
    kme.limits |= {"max_key_per_request": 0, "max_key_size": 0}
    refusal = {"code": 400, "body": '{"message": "number too large"}'}
    kme.misbehave("enc_keys", "http", times=2, **refusal)
    group = KMEGroup("g", [kme.client(timing=time.timing)], Prefetch(16, 16), timing=time.timing)
    group.warm("bob")
    await group.take("bob")
    assert [request.content["number"] for request in kme.got("enc_keys")][:3] == [16, 8, 4]
    await settled(group)
    assert max(request.content["number"] for request in kme.got("enc_keys")[3:]) == 4
    await group.close()


async def test_a_kme_whose_status_cannot_be_had_still_gives_keys(kme: FakeKME, group: KMEGroup) -> None:
    kme.misbehave("status", "http", times=None, code=404)
    await group.take("bob")


async def test_a_caller_who_gives_up_leaves_the_keys_to_the_others(kme: FakeKME, time: FakeTime) -> None:
    kme.latency = 0.02
    group = KMEGroup("g", [kme.client(timing=time.timing)], NO_PREFETCH, timing=time.timing)
    impatient = asyncio.create_task(group.take("bob"))
    await kme.next_request()
    await kme.next_request()
    impatient.cancel()
    await settled(group)
    assert group.pools[0].ready("bob", 256) == 1
    before = len(kme.got("enc_keys"))
    await group.take("bob")
    assert len(kme.got("enc_keys")) == before
    assert group.pools[0].client.accounts.totals()["burnt"] == 0
    await group.close()


async def test_the_healthier_kme_of_a_group_is_asked_and_a_dead_one_costs_one_try(
    two_kmes: tuple[FakeKME, FakeKME], time: FakeTime
) -> None:
    first, second = two_kmes
    clients = [kme.client(timing=time.timing, name=name) for kme, name in zip(two_kmes, "ab", strict=True)]
    group = KMEGroup("g", clients, NO_PREFETCH, timing=time.timing)
    first.misbehave("enc_keys", "drop", times=None)
    await group.take("bob")
    assert len(first.got("enc_keys")) == 1
    await group.take("bob")
    assert len(second.got("enc_keys")) == 2
    assert time.slept == []
    await group.close()


async def test_keys_that_are_ready_at_another_kme_are_used_before_any_is_asked(
    two_kmes: tuple[FakeKME, FakeKME], time: FakeTime
) -> None:
    first, _ = two_kmes
    clients = [kme.client(timing=time.timing, name=name) for kme, name in zip(two_kmes, "ab", strict=True)]
    group = KMEGroup("g", clients, {"a": NO_PREFETCH, "b": Prefetch(1, 4)}, timing=time.timing)
    group.warm("bob")
    await settled(group)
    await first.stop()
    for _ in range(3):
        await group.take("bob")
    await group.close()


async def test_a_stopped_pool_leaves_no_task_and_no_connection(kme: FakeKME) -> None:
    kme.misbehave("enc_keys", "hang", times=None)
    before = asyncio.all_tasks()
    group = KMEGroup("g", [kme.client(timeout=60)], Prefetch(4, 16))
    waiting = [asyncio.create_task(group.take("bob")) for _ in range(3)]
    await kme.next_request()
    await kme.next_request()
    await group.close()
    results = await asyncio.gather(*waiting, return_exceptions=True)
    assert all(isinstance(result, KMEUnreachable) for result in results)
    left = {task for task in asyncio.all_tasks() - before if not is_the_servers(task)}
    assert left == set()
    while kme.open_connections:
        await asyncio.sleep(0)
    with pytest.raises(KMEUnreachable):
        await group.take("bob")
    assert accounts_agree(group)


async def test_a_pad_is_split_over_the_limits_and_hides_what_was_asked_for(kme: FakeKME, group: KMEGroup) -> None:
    kme.limits |= {"max_key_size": 1024, "max_key_per_request": 5}
    pad = await group.take_pad("bob", 2000)
    assert 2000 <= pad.hides < 2000 + len(pad.keys)
    assert [request.content for request in kme.got("enc_keys")] == [
        *[{"number": 5, "size": 1024}] * 3,
        {"number": 3, "size": 1024},
    ]
    issued = {key_ID: each.key.key for key_ID, each in kme.link.keys.items()}
    assert {key.reference.key_ID: bytes(key.octets) for key in pad.keys} == issued
    assert all(key.group == "g" for key in pad.keys)
    assert group.pools[0].held() == {}


async def test_what_a_pad_has_no_use_for_is_counted_as_discarded(kme: FakeKME, group: KMEGroup) -> None:
    kme.limits |= {"max_key_size": 1024, "max_key_per_request": 5}
    board = group.pools[0].client.board
    assert isinstance(board, Numbers)
    await group.take_pad("bob", 333)
    assert board.totals[PAD_DISCARDED] == {("kme-a",): [0.0]}
    await group.take_pad("bob", 334)
    assert board.totals[PAD_DISCARDED] == {("kme-a",): [2.0]}


async def test_a_pad_is_all_or_nothing_and_its_keys_serve_the_next_try(
    kme: FakeKME, group: KMEGroup, time: FakeTime
) -> None:
    kme.limits |= {"max_key_size": 1024, "max_key_per_request": 5}
    kme.link.bits = 12 * 1024
    with pytest.raises(KMEExhausted):
        await group.take_pad("bob", 2000)
    [pool] = group.pools
    assert pool.client.accounts.totals()["used"] == 0
    assert pool.ready("bob", 1024) == 12
    kme.link.bits = 6 * 1024
    time.now += 6
    assert (await group.take_pad("bob", 2000)).hides >= 2000
    assert accounts_agree(group)


async def test_a_pad_that_cannot_be_had_does_not_keep_keys_from_other_mail(kme: FakeKME, time: FakeTime) -> None:
    group = KMEGroup("g", [kme.client(timing=time.timing)], NO_PREFETCH, timing=time.timing)
    kme.link.bits = 3 * 256
    with pytest.raises(KMEExhausted):
        await group.take_pad("bob", 1000)
    for _ in range(3):
        await group.take("bob")
    await group.close()


async def test_those_who_wait_are_served_in_their_order(kme: FakeKME, time: FakeTime) -> None:
    kme.limits["max_key_per_request"] = 1
    group = KMEGroup("g", [kme.client(timing=time.timing)], NO_PREFETCH, timing=time.timing)
    served: list[int] = []

    async def take(place: int) -> None:
        await group.take("bob")
        served.append(place)

    await asyncio.gather(*(take(place) for place in range(20)))
    assert served == list(range(20))
    await group.close()


async def test_a_failure_is_told_to_all_who_wait_at_once(kme: FakeKME, time: FakeTime) -> None:
    kme.misbehave("enc_keys", "drop", times=None)
    group = KMEGroup("g", [kme.client(timing=time.timing, retry_attempts=1)], NO_PREFETCH, timing=time.timing)
    results = await asyncio.gather(*(group.take("bob") for _ in range(20)), return_exceptions=True)
    assert all(isinstance(result, KMEUnreachable) for result in results)
    assert len(kme.got("enc_keys")) == 2
    await group.close()


async def test_keys_of_a_pad_that_is_not_tried_again_expire(kme: FakeKME, group: KMEGroup, time: FakeTime) -> None:
    kme.limits |= {"max_key_size": 1024, "max_key_per_request": 5}
    kme.link.bits = 12 * 1024
    with pytest.raises(KMEExhausted):
        await group.take_pad("bob", 2000)
    time.now += 101
    [pool] = group.pools
    pool.destroy_expired()
    assert pool.client.accounts.totals()["expired"] == 12
    assert pool.held() == {}


async def test_whether_a_pad_can_be_had_is_told_in_advance(kme: FakeKME, group: KMEGroup) -> None:
    kme.link.bits = 1000 * 256
    [member] = group.members
    assert await member.supply("bob", 31_900) == 4 * (31_900 // 4 + 16)
    with pytest.raises(KMEExhausted, match="256000 bits stored, 513024 bits needed"):
        await member.supply("bob", 64_000)
    assert not kme.got("enc_keys")


async def test_a_kme_that_ignores_the_size_makes_pads_of_its_usual_keys(kme: FakeKME, time: FakeTime) -> None:
    client = kme.client(timing=time.timing, quirks=Quirks(size_unit="ignored"))
    group = KMEGroup("g", [client], NO_PREFETCH, timing=time.timing)
    pad = await group.take_pad("bob", 100)
    assert [len(key.octets) for key in pad.keys] == [32] * 7
    await group.close()


EVERY_WAY: list[dict[str, Any]] = [
    {"kind": "hang"},
    {"kind": "hang_in_body"},
    {"kind": "drop"},
    {"kind": "lose_reply"},
    {"kind": "http", "code": 504, "body": "<html>"},
    {"kind": "http", "code": 503},
    {"kind": "http", "code": 429, "headers": (("Retry-After", "1"),)},
    {"kind": "http", "code": 401},
    {"kind": "http", "code": 500},
    {"kind": "http", "code": 200, "body": "<html>"},
    {"kind": "short"},
    {"kind": "none"},
    {"kind": "too_many"},
    {"kind": "wrong_length"},
    {"kind": "repeat_ids"},
    {"kind": "same_again"},
    {"kind": "same_octets"},
    {"kind": "bad_base64"},
    {"kind": "lower_case"},
    {"kind": "object_keys"},
    {"kind": "close_unsaid"},
]


async def _when_answered(group: KMEGroup, time: FakeTime) -> Key:
    """On a busy machine a good KME may take longer than a tenth of a second as well."""
    async with asyncio.timeout(60):
        while True:
            time.now += 200
            with suppress(KeyUnavailable):
                return await group.take("bob")


@pytest.mark.parametrize("how", EVERY_WAY, ids=lambda how: f"{how['kind']}-{how.get('code', '')}")
async def test_every_misbehaviour_ends_in_a_key_or_a_typed_error_with_the_accounts_right(
    kme: FakeKME, time: FakeTime, how: dict[str, Any]
) -> None:
    client = kme.client(timing=time.timing, retry_attempts=1, timeout=0.1)
    group = KMEGroup("g", [client], Prefetch(2, 6, 100), timing=time.timing)
    keys = [await _when_answered(group, time)]
    await settled(group)
    for _ in range(3):
        kme.misbehave("enc_keys", times=2, **how)
        for _ in range(4):
            try:
                keys.append(await asyncio.wait_for(group.take("bob"), 60))
                keys.append(await asyncio.wait_for(group.take("bob"), 60))
            except KeyUnavailable:
                time.now += 7
        await settled(group)
        assert accounts_agree(group)
    kme.behave()
    keys.append(await _when_answered(group, time))
    await group.close()
    assert max(Counter(key.key_ID for key in keys).values()) == 1
    assert len({key.key for key in keys}) == len(keys)
    totals = client.accounts.totals()
    assert totals["used"] == len(keys)
    assert totals["in_pool"] == 0
    assert totals["issued"] >= kme.link.issued.total()


async def test_keys_that_are_ready_are_given_in_no_other_event_loop(kme: FakeKME, group: KMEGroup) -> None:
    group.warm("bob")
    await settled(group)
    with pytest.raises(RuntimeError, match="in use in another event loop or thread"):
        await asyncio.to_thread(asyncio.run, group.take("bob"))
