"""What the KM client makes of a KME that is not well: its health, its breaker, and whom that keeps away.
Standard: ETSI GS QKD 014 V1.1.1; the misbehaviours are those of real KMEs.
"""

from __future__ import annotations

from typing import Any

import pytest

from relay.errors import (
    KeyNotFound,
    KeyUnavailable,
    KMEExhausted,
    KMEMisconfigured,
    KMEUnreachable,
)
from relay.keys.faults import Call, NotAsked
from tests.testlib.fake_kme import FakeKME, FakeTime


async def test_a_configuration_fault_is_not_tried_again_and_makes_no_hot_loop(kme: FakeKME, time: FakeTime) -> None:
    kme.misbehave("enc_keys", "http", times=None, code=401)
    async with kme.client(timing=time.timing) as client:
        for _ in range(20):
            with pytest.raises(KMEMisconfigured):
                await client.request_enc_keys("bob")
    assert len(kme.got("enc_keys")) == 1
    assert time.slept == []


async def test_a_key_of_somebody_else_does_not_keep_others_from_theirs(kme: FakeKME, time: FakeTime) -> None:
    async with kme.client(timing=time.timing) as client:
        for _ in range(10):
            kme.misbehave("dec_keys", "http", code=401)
            with pytest.raises(KeyNotFound):
                await client.request_dec_keys("alice", ["of-somebody-else"])
        [(key_ID, _)] = kme.drawn(1)
        assert len(await client.request_dec_keys("alice", [key_ID])) == 1


@pytest.mark.parametrize("code", [400, 401, 404, 415, 500, 503, 504])
async def test_replies_about_keys_never_count_against_a_kme_that_answers_status(
    kme: FakeKME, time: FakeTime, code: int
) -> None:
    kme.misbehave("dec_keys", "http", times=None, code=code, headers=(("Retry-After", "3000"),))
    async with kme.client(timing=time.timing) as client:
        for _ in range(20):
            with pytest.raises(KeyUnavailable):
                await client.request_dec_keys("alice", ["unknown"])
        assert (client.breakers["dec_keys"], client.health, time.slept) == (0, 1.0, [])
        assert (len(kme.got("dec_keys")), len(kme.got("status"))) == (20, int(code == 404 or code >= 415))
        kme.behave()
        [(key_ID, _)] = kme.drawn(1)
        assert len(await client.request_dec_keys("alice", [key_ID])) == 1


@pytest.mark.parametrize("status", [{"kind": "http", "code": 503}, {"kind": "drop"}])
async def test_a_kme_that_answers_status_no_better_is_not_well(
    kme: FakeKME, time: FakeTime, status: dict[str, Any]
) -> None:
    kme.misbehave("dec_keys", "http", times=None, code=503)
    kme.misbehave("status", **status, times=None)
    async with kme.client(timing=time.timing, retry_attempts=5) as client:
        with pytest.raises(KMEUnreachable):
            await client.request_dec_keys("alice", ["some"])
        with pytest.raises(NotAsked):
            await client.request_dec_keys("alice", ["some"])


async def test_a_kme_whose_status_is_not_there_is_there_itself(kme: FakeKME, time: FakeTime) -> None:
    kme.misbehave("dec_keys", "http", times=None, code=500)
    kme.misbehave("status", "http", times=None, code=404)
    async with kme.client(timing=time.timing) as client:
        for _ in range(20):
            with pytest.raises(KeyNotFound):
                await client.request_dec_keys("alice", ["unknown"])


async def test_quick_refusals_do_not_shorten_the_time_that_keys_may_take(kme: FakeKME, time: FakeTime) -> None:
    kme.misbehave("dec_keys", "http", times=50, code=404)
    async with kme.client(timing=time.timing, timeout=10, min_timeout=0.1) as client:
        for _ in range(50):
            with pytest.raises(KeyNotFound):
                await client.request_dec_keys("alice", ["unknown"])
        assert client.time_limits[Call.DEC_KEYS].seconds == 10


async def test_an_open_breaker_probes_with_status_before_it_draws_keys(kme: FakeKME, time: FakeTime) -> None:
    kme.misbehave("enc_keys", "http", times=None, code=500)
    async with kme.client(timing=time.timing, retry_attempts=4) as client:
        with pytest.raises(KMEUnreachable):
            await client.request_enc_keys("bob")
        assert client.health == 0
        with pytest.raises(NotAsked):
            await client.request_enc_keys("bob")
        kme.behave()
        kme.requests.clear()
        time.now += 10
        await client.request_enc_keys("bob")
        assert [request.call for request in kme.requests] == ["status", "enc_keys"]
        await client.request_enc_keys("bob")
        assert len(kme.got("status")) == 1


async def test_a_probe_that_gets_no_answer_spends_no_keys(kme: FakeKME, time: FakeTime) -> None:
    kme.misbehave("enc_keys", "http", times=None, code=500)
    kme.misbehave("status", "drop", times=None)
    async with kme.client(timing=time.timing, retry_attempts=4) as client:
        with pytest.raises(KMEUnreachable):
            await client.request_enc_keys("bob")
        before = len(kme.got("enc_keys"))
        time.now += 10
        with pytest.raises(KMEUnreachable):
            await client.request_enc_keys("bob")
        assert len(kme.got("enc_keys")) == before


async def test_exhaustion_does_not_open_the_breaker(kme: FakeKME, time: FakeTime) -> None:
    kme.misbehave("enc_keys", "http", times=None, code=503, body='{"message": "exhausted"}')
    async with kme.client(timing=time.timing) as client:
        for _ in range(10):
            with pytest.raises(KMEExhausted):
                await client.request_enc_keys("bob")
        assert client.breakers["enc_keys"] == 0
        kme.behave()
        await client.request_enc_keys("bob")
