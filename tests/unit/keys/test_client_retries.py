"""When the KM client asks again: after pauses, when the KME says so, and never at the price of keys beyond the budget.
Standard: RFC 9110 10.2.3 (Retry-After).
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from relay.errors import KeyUnavailable, KMEBadReply, KMEExhausted, KMEUnreachable
from relay.keys import CachedKMClient, KMEGroup, OptimizedKMClient, Prefetch
from relay.keys.faults import KMEBusy, NotAsked
from relay.keys.settings import Quirks
from tests.testlib.fake_kme import FakeKME, FakeTime


async def test_a_fault_that_passes_is_tried_again_with_growing_jittered_pauses(kme: FakeKME, time: FakeTime) -> None:
    kme.misbehave("enc_keys", "http", times=3, code=500)
    async with kme.client(timing=time.timing) as client:
        assert len(await client.request_enc_keys("bob")) == 1
    assert len(kme.got("enc_keys")) == 4
    assert len(time.slept) == 3
    assert time.slept == sorted(time.slept)


async def test_retry_after_is_honoured_before_the_next_try(kme: FakeKME, time: FakeTime) -> None:
    kme.misbehave("enc_keys", "http", code=429, headers=(("Retry-After", "7"),))
    async with kme.client(timing=time.timing) as client:
        await client.request_enc_keys("bob")
    assert time.slept == [7.0]


async def test_a_long_retry_after_ends_the_call_and_keeps_others_away_until_it_is_over(
    kme: FakeKME, time: FakeTime
) -> None:
    kme.misbehave("enc_keys", "http", code=429, headers=(("Retry-After", "90"),))
    async with kme.client(timing=time.timing) as client:
        with pytest.raises(KMEBusy, match="the KME asks for a pause of 60 s"):
            await client.request_enc_keys("bob")
        with pytest.raises(NotAsked) as told:
            await client.request_enc_keys("bob")
        assert told.value.retry_after == pytest.approx(60)
        assert len(kme.got("enc_keys")) == 1
        time.now += 60
        await client.request_enc_keys("bob")


@pytest.mark.parametrize("call", ["status", "enc_keys"])
@pytest.mark.parametrize("code", [429, 503])
async def test_retry_after_holds_for_a_minute_at_most_and_ends_by_sighup(
    kme: FakeKME, time: FakeTime, call: str, code: int
) -> None:
    async with kme.client(timing=time.timing) as client:
        ask = client.check_key_status if call == "status" else client.request_enc_keys
        for ended_by in ("time", "SIGHUP"):
            kme.misbehave(call, "http", code=code, headers=(("Retry-After", "3600"),))
            with pytest.raises(KMEBusy):
                await ask("bob")
            before = len(kme.got(call))
            with pytest.raises(NotAsked):
                await ask("bob")
            assert len(kme.got(call)) == before
            if ended_by == "time":
                time.now += 60
            else:
                client.renew_certificates(anyway=True)
            await ask("bob")


@pytest.mark.parametrize("code", [429, 503])
async def test_retry_after_for_received_keys_is_honoured_by_those_who_asked_and_keeps_no_other_away(
    kme: FakeKME, time: FakeTime, code: int
) -> None:
    """Anybody can write mail that names keys which a KME, or a gateway before it, refuses in this way."""
    (one, _), (other, _) = kme.drawn(2)
    group = KMEGroup("g", [kme.client(timing=time.timing)], Prefetch(0, 0), timing=time.timing)
    for seconds, slept in (("3", [3.0]), ("3600", [])):
        time.slept.clear()
        kme.requests.clear()
        kme.misbehave("dec_keys", "http", code=code, headers=(("Retry-After", seconds),))
        if slept:
            assert await group.fetch("alice", [one])
        else:
            with pytest.raises(KMEBusy):
                await group.fetch("alice", [f"unknown to {code}"])
        assert (time.slept, len(kme.got("dec_keys"))) == (slept, 1 + len(slept))
    assert await group.fetch("alice", [other])
    await group.close()


@pytest.mark.parametrize(("code", "stored"), [(429, 100), (500, 100), (503, 100), (503, 0), (404, 0)])
async def test_a_kme_that_says_when_to_come_back_is_asked_once(
    kme: FakeKME, time: FakeTime, code: int, stored: int
) -> None:
    kme.link.bits = stored * 256
    kme.misbehave("enc_keys", "http", times=None, code=code, headers=(("Retry-After", "90"),))
    group = KMEGroup("g", [kme.client(timing=time.timing)], Prefetch(4, 16), timing=time.timing)
    for _ in range(14):
        with pytest.raises(KeyUnavailable):
            await group.take("bob")
        time.now += 1
    assert len(kme.got("enc_keys")) == 1
    kme.behave()
    kme.link.bits = 100 * 256
    time.now += 90
    await group.take("bob")
    await group.close()


async def test_unanswered_requests_are_not_repeated_beyond_the_burn_budget(kme: FakeKME, time: FakeTime) -> None:
    kme.misbehave("enc_keys", "lose_reply", times=None)
    async with kme.client(timing=time.timing, burn_budget=10, retry_attempts=5) as client:
        with pytest.raises(KMEUnreachable):
            await client.request_enc_keys("bob", number=4)
        assert len(kme.got("enc_keys")) == 2
        assert client.accounts.totals()["burnt"] == 8


@pytest.mark.parametrize("method", ["GET", "POST"])
async def test_a_broken_connection_never_sends_a_request_for_keys_twice(
    kme: FakeKME, time: FakeTime, method: Any
) -> None:
    kme.misbehave("enc_keys", "lose_reply", times=None)
    kme.misbehave("dec_keys", "lose_reply", times=None)
    async with kme.client(timing=time.timing, retry_attempts=0, quirks=Quirks(method=method)) as client:
        with pytest.raises(KMEUnreachable):
            await client.request_enc_keys("bob")
        with pytest.raises(KMEUnreachable):
            await client.request_dec_keys("alice", ["some"])
    assert len(kme.got("enc_keys")) == 1
    assert len(kme.got("dec_keys")) == 1


@pytest.mark.parametrize("call", ["status", "enc_keys", "dec_keys"])
@pytest.mark.parametrize("kind", ["http", "drop"])
async def test_a_call_makes_as_many_attempts_as_were_asked_for_though_its_failures_open_the_breaker(
    kme: FakeKME, time: FakeTime, call: str, kind: str
) -> None:
    [(key_ID, _)] = kme.drawn(1)
    kme.misbehave(call, kind, times=7, code=504)
    async with kme.client(timing=time.timing, adaptive=False, retry_attempts=7, retry_delay=0.125) as client:
        calls: dict[str, Callable[[], Awaitable[object]]] = {
            "status": lambda: client.check_key_status("bob"),
            "enc_keys": lambda: client.request_enc_keys("bob"),
            "dec_keys": lambda: client.request_dec_keys("alice", [key_ID]),
        }
        assert await calls[call]()
        assert time.slept == [0.125, 0.25, 0.5, 1, 2, 4, 8]
        assert client.breaker == 0


@pytest.mark.parametrize("cached", [False, True])
@pytest.mark.parametrize(("headers", "slept"), [((), [1, 2]), ((("Retry-After", "3"),), [3, 3])])
async def test_a_kme_with_too_few_keys_is_asked_again_after_pauses_as_one_that_refills_says(
    kme: FakeKME, time: FakeTime, cached: bool, headers: tuple[tuple[str, str], ...], slept: list[float]
) -> None:
    body = '{"message": "Insufficient keys"}'
    kme.misbehave("enc_keys", "http", times=2, code=503, body=body, headers=headers)
    kind = CachedKMClient if cached else OptimizedKMClient
    options = {**kme.certificates.files, "timing": time.timing, "pool_connections": 1}
    async with kind(kme.url, **options) as client:
        assert len(await client.request_enc_keys("bob")) == 1
        assert time.slept == slept
        kme.misbehave("enc_keys", "http", times=None, code=503, body=body)
        with pytest.raises(KMEExhausted):
            await client.request_enc_keys("bob", number=1000)
        assert time.slept == [*slept, 1, 2, 4]
        with pytest.raises(KMEExhausted):
            await client.request_enc_keys("bob", number=1000, patient=False)
        assert time.slept == [*slept, 1, 2, 4]


@pytest.mark.parametrize("kind", ["not_json", "bad_base64", "lose_reply"])
async def test_a_key_that_came_but_could_not_be_read_is_not_called_one_that_is_not_there(
    kme: FakeKME, time: FakeTime, kind: str
) -> None:
    [(key_ID, _)] = kme.drawn(1)
    kme.misbehave("dec_keys", kind)
    async with kme.client(timing=time.timing) as client:
        with pytest.raises(KeyUnavailable) as error:
            await client.request_dec_keys("alice", [key_ID])
    assert isinstance(error.value, KMEUnreachable if kind == "lose_reply" else KMEBadReply)
    assert "asked again, the KME says that the key is not there" in str(error.value)
