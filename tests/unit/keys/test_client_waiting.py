"""Those who wait for keys: they share requests, and nobody holds up others.
Standard: ETSI GS QKD 014 V1.1.1: what was drawn and not received is lost.
"""

from __future__ import annotations

import asyncio

import pytest

from relay.errors import KMEUnreachable
from relay.keys import Key
from tests.testlib.fake_kme import FakeKME, FakeTime


async def test_one_request_for_fresh_keys_at_a_time_goes_out_for_a_slave(kme: FakeKME) -> None:
    kme.latency = 0.01
    async with kme.client() as client:
        await asyncio.gather(*(client.request_enc_keys("bob") for _ in range(6)))
    assert kme.most_enc_keys_at_once == 1


async def test_keys_that_come_when_nobody_waits_any_more_go_to_the_next_caller(kme: FakeKME) -> None:
    answers = asyncio.Event()
    kme.misbehave("enc_keys", "late", until=answers)
    async with kme.client(timeout=30) as client:
        task = asyncio.create_task(client.request_enc_keys("bob", number=3))
        await kme.next_request()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        asyncio.get_running_loop().call_soon(answers.set)
        assert len(await client.request_enc_keys("bob")) == 1
        assert client.accounts.totals() == {"issued": 3, "used": 1, "burnt": 0, "expired": 0, "in_pool": 2}
        assert len(await client.request_enc_keys("bob", number=2)) == 2
    assert len(kme.got("enc_keys")) == 1


async def test_keys_that_nobody_asked_for_again_are_counted_as_lost(kme: FakeKME) -> None:
    kme.latency = 0.05
    async with kme.client() as client:
        task = asyncio.create_task(client.request_enc_keys("bob", number=3))
        await kme.next_request()
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
    assert client.accounts.totals() == {"issued": 3, "used": 0, "burnt": 3, "expired": 0, "in_pool": 0}


async def test_callers_who_wait_at_the_same_time_share_a_request(kme: FakeKME) -> None:
    kme.latency = 0.02
    async with kme.client() as client:

        async def keys() -> list[Key]:
            return [key for _ in range(5) for key in await client.request_enc_keys("bob")]

        found = await asyncio.gather(*(keys() for _ in range(10)))
        assert len({key.key_ID for each in found for key in each}) == 50
        assert [request.content["number"] for request in kme.got("enc_keys")] == [10] * 5
        assert kme.most_enc_keys_at_once == 1


async def test_callers_of_a_kme_that_hangs_hear_of_it_together(kme: FakeKME, time: FakeTime) -> None:
    kme.misbehave("enc_keys", "hang", times=None)
    async with kme.client(
        timing=time.timing, retry_attempts=1, timeout=2.0
    ) as client:  # a starved machine takes a while to send
        began = asyncio.get_running_loop().time()
        results = await asyncio.gather(*(client.request_enc_keys("bob") for _ in range(20)), return_exceptions=True)
        assert all(isinstance(result, KMEUnreachable) for result in results)
        assert [request.content["number"] for request in kme.got("enc_keys")] == [20, 20]
        assert asyncio.get_running_loop().time() - began < 20 * client.timeout


async def test_too_many_callers_for_one_request_are_served_by_smaller_ones(kme: FakeKME, time: FakeTime) -> None:
    kme.limits["max_key_per_request"] = 4
    async with kme.client(timing=time.timing) as client:
        keys = await asyncio.gather(*(client.request_enc_keys("bob") for _ in range(10)))
        assert len({key.key_ID for [key] in keys}) == 10
        assert len(await client.request_enc_keys("bob", number=9)) == 9
    async with kme.client(timing=time.timing) as client:
        assert len(await client.request_enc_keys("bob", number=9)) == 9
