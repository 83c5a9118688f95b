"""Keys that are ready: popped once, refused twice, destroyed in time, and always accounted for.
Standard: issued = used + burnt + expired + in the pool.
"""

from __future__ import annotations

import secrets
import uuid

import pytest
from hypothesis import given, strategies as st

from relay.errors import KMEMisconfigured
from relay.formats import mime
from relay.keys.issued import IssuedKeys, SeenKeys
from relay.keys.pads import pad_of, plan_pad
from relay.keys.refill import LinkRate, Peak, Prefetch, Rate, WaterMarks, empty_in, marks
from relay.keys.replies import KeyStatus, status_from_reply
from relay.keys.rotation import KeysInUse, Rotation
from relay.keys.stock import Accounts, Stock
from relay.keys.types import Key, KeyReference, SealingKey
from relay.schemes.padding import padded_size
from tests.testlib.fake_kme import FakeTime
from tests.testlib.payloads import sealed_envelope

LIFETIME_S = 100


def _keys(number: int, size: int = 256) -> list[Key]:
    return [Key(str(uuid.uuid4()), secrets.token_bytes(size // 8)) for _ in range(number)]


def _stock(time: FakeTime) -> tuple[Stock, Accounts]:
    accounts = Accounts()
    stock = Stock("bob", accounts, time.clock)
    return stock, accounts


def _status(**fields: object) -> KeyStatus:
    return status_from_reply(fields)


def test_keys_come_out_in_order_and_once(time: FakeTime) -> None:
    stock, accounts = _stock(time)
    keys = _keys(3)
    stock.add(keys, time.now + LIFETIME_S)
    assert stock.pop(2) == keys[:2]
    assert stock.pop(2) is None
    assert stock.pop(1) == keys[2:]
    assert accounts.totals() == {"issued": 3, "used": 3, "burnt": 0, "expired": 0, "in_pool": 0}


def test_an_expired_key_is_destroyed_and_counted(time: FakeTime) -> None:
    stock, accounts = _stock(time)
    stock.add(_keys(2), time.now + LIFETIME_S)
    time.now += 60
    young = _keys(1)
    stock.add(young, time.now + LIFETIME_S)
    time.now += 40
    assert stock.pop(1) == young
    assert accounts.totals()["expired"] == 2


async def test_a_key_id_seen_before_is_refused_in_upper_and_lower_case() -> None:
    issued = IssuedKeys("kme", SeenKeys())
    assert not await issued.seen_before([Key("0a0b-straße", secrets.token_bytes(32))])
    again = Key("0A0B-STRASSE", secrets.token_bytes(32))
    assert await issued.seen_before([*_keys(1), again]) == {again.key_ID}


def test_the_same_octets_under_another_id_are_refused() -> None:
    [key], seen = _keys(1), SeenKeys()
    assert seen.first_time(key)
    assert not seen.first_time(Key("another", key.key))


def test_short_keys_may_be_equal_by_chance() -> None:
    seen = SeenKeys()
    assert all(seen.first_time(Key(name, b"\x07")) for name in ("one", "two"))


def test_seen_keys_are_forgotten_oldest_first() -> None:
    seen = SeenKeys(most=2)
    keys = _keys(3)
    assert all(seen.first_time(key) for key in keys)
    assert not seen.first_time(keys[2])
    assert seen.first_time(keys[0])


def test_buffers_are_overwritten_when_keys_leave(time: FakeTime) -> None:
    stock, _ = _stock(time)
    stock.add(_keys(3), time.now + LIFETIME_S)
    buffers = [held.octets for held in stock._held]
    stock.pop(1)
    stock.burn_all("test")
    assert all(not any(octets) for octets in buffers)


@given(st.lists(st.tuples(st.sampled_from(["add", "pop", "wait", "burn"]), st.integers(0, 5))))
def test_the_accounts_agree_with_the_pool_whatever_happens(steps: list[tuple[str, int]]) -> None:
    time = FakeTime()
    stock, accounts = _stock(time)
    used: list[str] = []
    for step, number in steps:
        if step == "add":
            stock.add(_keys(number), time.now + 3)
        elif step == "pop":
            used += [key.key_ID for key in stock.pop(number) or []]
        elif step == "wait":
            time.now += number
        else:
            stock.burn_all("test")
        assert accounts.totals("bob")["in_pool"] == len(stock)
        assert accounts.totals() == accounts.totals("bob")
    assert len(used) == len(set(used)) == accounts.totals()["used"]


@given(
    hidden=st.integers(1, 10_000_000),
    most=st.integers(32, 8192),
    least=st.integers(1, 64),
)
def test_a_pad_fits_the_limits_has_no_key_too_many_and_wastes_little(hidden: int, most: int, least: int) -> None:
    least = min(least, most)
    status = _status(max_key_size=most * 8, min_key_size=least * 8)
    plan = plan_pad(hidden, status)
    octets = plan.size // 8
    assert plan.size % 8 == 0
    assert max(least, 32) <= octets <= most
    assert plan.number == max(2, -(-hidden // (most - 16)))
    assert plan.cost == plan.number * octets
    assert plan.number * (octets - 16) >= hidden
    if octets > max(least, 32, min(most, 64)):
        assert plan.number * (octets - 16) - hidden < plan.number


@given(hidden=st.integers(1, 1_000_000), most=st.integers(64, 8192))
def test_no_pad_is_drawn_from_keys_of_32_octets_where_the_kme_gives_longer_ones(hidden: int, most: int) -> None:
    assert plan_pad(hidden, _status(max_key_size=most * 8)).size >= 64 * 8


@pytest.mark.parametrize(
    ("mail", "octets", "cost"), [(5, 32, 11_264), (5, 1024, 6_144), (75, 32, 155_648), (75, 1024, 79_872)]
)
def test_what_mail_costs_in_key(mail: int, octets: int, cost: int) -> None:
    """Octets of key for so many KiB, with the sealed envelope and Padmé, from a KME whose keys all have one size."""
    status = _status(key_size=octets * 8, max_key_size=octets * 8)
    envelope = sealed_envelope("otp", recipients=tuple(f"member-{number}@bob.example" for number in range(6)))
    hidden = padded_size(len(mime.payload_header(envelope.encode())) + mail * 1024)
    assert plan_pad(hidden, status, any_size=False).cost == cost
    assert plan_pad(hidden, status).cost <= cost


def test_a_kme_whose_keys_are_too_short_for_a_pad_is_named() -> None:
    for status, any_size in ((_status(max_key_size=248), True), (_status(key_size=128), False)):
        with pytest.raises(KMEMisconfigured, match="a key of a pad has 256 at least"):
            plan_pad(100, status, any_size=any_size)


def test_a_pad_of_a_kme_with_one_size_is_made_of_that_size() -> None:
    plan = plan_pad(100, _status(key_size=256, max_key_size=65536), any_size=False)
    assert (plan.size, plan.number) == (256, 7)


def test_a_pad_of_a_kme_without_limits_is_made_of_usual_keys() -> None:
    plan = plan_pad(100, None)
    assert (plan.size, plan.number) == (256, 7)


def test_a_pad_is_of_whole_keys_in_the_order_of_their_ids_and_can_be_overwritten() -> None:
    keys = [Key(key_ID, secrets.token_bytes(40)) for key_ID in ("b", "B", "é", "a")]
    references = [KeyReference(key.key_ID, "2", "1", "g") for key in keys]
    pad, discarded = pad_of(keys, references, 90)
    assert [key.reference.key_ID for key in pad.keys] == ["B", "a", "b", "é"]
    assert {key.reference.key_ID: bytes(key.octets) for key in pad.keys} == {key.key_ID: key.key for key in keys}
    assert (pad.hides, pad.cost, discarded) == (4 * 24, 4 * 40, 6)
    with pad:
        pass
    assert not any(any(key.octets) for key in pad.keys)


@pytest.mark.parametrize(("number", "hidden"), [(1, 10), (2, 49), (3, 73)])
def test_too_few_keys_are_no_pad(number: int, hidden: int) -> None:
    keys = [Key(str(index), bytes(40)) for index in range(number)]
    with pytest.raises(ValueError, match="too few or too short"):
        pad_of(keys, [KeyReference(key.key_ID, "2", "1", "g") for key in keys], hidden)


def test_the_marks_rise_with_the_rate_up_to_the_most() -> None:
    rule = Prefetch(low=8, high=600)
    assert marks(rule, peak_rate=0, latency=0.2) == WaterMarks(4, 8)
    assert marks(rule, peak_rate=50, latency=0.2) == WaterMarks(255, 510)
    assert marks(rule, peak_rate=5000, latency=0.2).high == 600
    assert marks(rule, peak_rate=5000, latency=0.2, given=3).high == 3


def test_the_marks_stay_below_what_the_kme_stores_and_what_the_link_makes_in_a_lifetime() -> None:
    rule = Prefetch(low=8, high=32, lifetime=10)
    assert marks(rule, peak_rate=50, latency=0.2, status=_status(max_key_count=20)).high == 20
    assert marks(rule, peak_rate=50, latency=0.2, refill_rate=1.5, use_rate=50).high == 15


def test_a_link_keeps_its_keys_where_nobody_uses_them() -> None:
    rule = Prefetch(low=8, high=32, lifetime=240)
    assert marks(rule, peak_rate=0, latency=0.2, refill_rate=100_000 / 256) == WaterMarks(4, 8)
    assert marks(rule, peak_rate=0, latency=0.2, refill_rate=100 / 256) == WaterMarks(2, 4)
    assert marks(rule, peak_rate=0, latency=0.2, refill_rate=12.7 / 256) == WaterMarks(0, 0)
    assert marks(rule, peak_rate=0.2, latency=0.2, refill_rate=12.7 / 256, use_rate=0.01) == WaterMarks(3, 5)


def test_without_prefetch_both_marks_are_zero() -> None:
    assert marks(Prefetch(0, 0), peak_rate=1000, latency=1) == WaterMarks(0, 0)


def test_a_rate_is_the_average_over_its_window(time: FakeTime) -> None:
    rate = Rate(100, time.clock)
    for _ in range(1000):
        time.now += 1
        rate.add(7)
    assert rate.per_second == pytest.approx(7, rel=0.02)
    time.now += 1000
    assert rate.per_second == pytest.approx(0, abs=0.01)


def test_a_peak_is_remembered_for_a_while(time: FakeTime) -> None:
    peak = Peak(time.clock, window=100)
    for _ in range(100):
        time.now += 0.1
        peak.add(1)
    assert peak.per_second == pytest.approx(10, rel=0.2)
    time.now += 100
    assert peak.per_second == pytest.approx(5, rel=0.2)


def test_the_refill_rate_counts_what_was_drawn_and_ignores_a_full_store(time: FakeTime) -> None:
    refill = LinkRate(time.clock)
    assert refill.per_second is None
    refill.stored(1000, 0, full=True)
    time.now += 10
    refill.stored(1000, 0, full=True)
    assert refill.per_second is None
    time.now += 10
    refill.stored(700, 500, full=False)
    assert refill.per_second == pytest.approx(20)


def test_a_forecast_says_when_the_keys_are_gone() -> None:
    assert empty_in(1000, 30, 10) == 50
    assert empty_in(1000, 10, 10) is None
    assert empty_in(1000, 10, None) == 100


def test_a_key_wraps_as_many_messages_octets_and_seconds_as_set(time: FakeTime) -> None:
    rotation = Rotation(max_messages=3, max_bytes=1000, max_age=60)
    in_use = KeysInUse(time.clock)
    taken = SealingKey(_keys(1)[0], None)  # type: ignore[arg-type]
    in_use.begin("bob", rotation, 100, taken)
    assert in_use.reuse("bob", rotation, 100) is taken
    assert in_use.reuse("eve", rotation, 100) is None
    assert in_use.reuse("bob", rotation, 100) is taken
    assert in_use.reuse("bob", rotation, 100) is None
    in_use.begin("bob", rotation, 100, taken)
    assert in_use.reuse("bob", rotation, 901) is None
    in_use.begin("bob", rotation, 100, taken)
    time.now += 60
    assert in_use.reuse("bob", rotation, 1) is None


def test_a_key_wraps_no_message_once_the_peer_needs_the_rest_of_its_life(time: FakeTime) -> None:
    stock, _ = _stock(time)
    stock.add(_keys(1), time.now + 30)
    time.now += 20
    [key] = stock.pop(1) or []
    in_use, rotation = KeysInUse(time.clock), Rotation(max_messages=100)
    in_use.begin("bob", rotation, 1, taken := SealingKey(key, None))  # type: ignore[arg-type]
    time.now += 9.9
    assert in_use.reuse("bob", rotation, 1) is taken
    time.now += 0.1
    assert in_use.reuse("bob", rotation, 1) is None


def test_by_default_every_message_gets_its_own_key(time: FakeTime) -> None:
    in_use = KeysInUse(time.clock)
    in_use.begin("bob", Rotation(), 100, SealingKey(_keys(1)[0], None))  # type: ignore[arg-type]
    assert in_use.reuse("bob", Rotation(), 100) is None
