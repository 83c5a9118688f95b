"""What the KM client makes of a KME that is not well: its health, its breaker, and whom that keeps away.
Standard: ETSI GS QKD 014 V1.1.1; the misbehaviours are those of real KMEs.
"""

from __future__ import annotations

import pytest

from relay.errors import (
    KeyUnavailable,
    KMEExhausted,
    KMEMisconfigured,
    KMEUnreachable,
)
from relay.keys.faults import NotAsked
from relay.kme import Misbehaviour
from tests.testlib.fake_kme import FakeKME, FakeTime


async def test_a_configuration_fault_is_not_tried_again_and_makes_no_hot_loop(kme: FakeKME, time: FakeTime) -> None:
    kme.misbehave("enc_keys", "http", times=None, code=401)
    async with kme.client(timing=time.timing) as client:
        for _ in range(20):
            with pytest.raises(KMEMisconfigured):
                await client.request_enc_keys("bob")
    assert len(kme.got("enc_keys")) == 1
    assert time.slept == []


@pytest.mark.parametrize("code", [400, 401, 404, 415, 500, 503, 504])
async def test_refusals_of_dec_keys_never_count_against_a_kme(kme: FakeKME, time: FakeTime, code: int) -> None:
    """Anybody can write mail that names keys which do not exist, whatever a KME answers for them."""
    kme.misbehave("dec_keys", "http", times=None, code=code)
    async with kme.client(timing=time.timing) as client:
        for _ in range(20):
            with pytest.raises(KeyUnavailable):
                await client.request_dec_keys("alice", ["unknown"], patient=False)
        assert (client.breaker, client.health) == (0, 1.0)
        assert (len(kme.got("dec_keys")), len(kme.got("status"))) == (20, 0)
        kme.behave()
        [(key_ID, _)] = kme.drawn(1)
        assert len(await client.request_dec_keys("alice", [key_ID])) == 1


async def test_one_breaker_is_for_all_calls_that_get_no_reply(kme: FakeKME, time: FakeTime) -> None:
    for call in ("status", "enc_keys", "dec_keys"):
        kme.misbehave(call, "drop", times=None)
    async with kme.client(timing=time.timing, retry_attempts=0) as client:
        calls = (client.check_key_status("bob"), client.request_enc_keys("bob"), client.request_dec_keys("bob", ["a"]))
        for asked in (*calls, client.check_key_status("bob"), client.check_key_status("bob")):
            with pytest.raises(KMEUnreachable):
                await asked
        before = len(kme.requests)
        with pytest.raises(NotAsked):
            await client.request_dec_keys("alice", ["a"])
        assert (len(kme.requests), client.health) == (before, 0)
        kme.behave()
        time.now += 10
        await client.check_key_status("bob")
        assert await client.request_enc_keys("bob"), "the status has shown that it is there"


@pytest.mark.parametrize("code", [400, 401, 403, 404, 500, 503, 302])
async def test_an_sae_that_a_kme_refuses_keeps_no_other_from_its_keys(kme: FakeKME, time: FakeTime, code: int) -> None:
    kme.decide = lambda request: Misbehaviour("http", code, "<html>") if request.other == "carol" else None
    [(key_ID, _)] = kme.drawn(1)
    async with kme.client(timing=time.timing) as client:
        for _ in range(8):
            for call in (client.check_key_status("carol"), client.request_enc_keys("carol")):
                with pytest.raises(KeyUnavailable):
                    await call
        time.slept.clear()
        assert await client.request_enc_keys("bob")
        assert (await client.check_key_status("bob")).stored_key_count
        assert await client.request_dec_keys("alice", [key_ID])
        assert (client.breaker, time.slept) == (0, [])
        assert len(kme.got("enc_keys")) < 16, "no hot loop"


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
        assert client.breaker == 0
        kme.behave()
        await client.request_enc_keys("bob")
