"""A KME that has too few keys for a moment, told from one that has a limit, whatever words it has for either.
Standard: ETSI GS QKD 014 V1.1.1 leaves open what exhaustion returns; the status tells the two apart.
"""

from __future__ import annotations

import pytest

from relay.errors import KeyUnavailable, KMEExhausted
from relay.keys.faults import KMERefusedRequest
from relay.keys.group import KMEGroup, Prefetch
from relay.kme import KMERequest, Misbehaviour
from tests.testlib.fake_kme import Certificates, FakeKME, FakeTime
from tests.testlib.pools import accounts_agree, settled

WORDS = [
    (400, '{"message": "exceeds the generated key count. Try again later"}'),
    (400, '{"message": "more keys are requested than available"}'),
    (422, '{"detail": "0 activated keys remaining"}'),
    (400, '{"message": "PULSE-7"}'),
    (500, "<html>"),
]


class Strict(FakeKME):
    """It gives all the keys of a request or none; more than `most` at once never, which its status does not say."""

    def __init__(self, certificates: Certificates, answer: tuple[int, str], stored: int = 10**6) -> None:
        self.answer = answer
        self.most = 10**6
        limits = {"max_key_per_request": 0, "max_key_count": 0}
        super().__init__(certificates, limits=limits, decide=self._refusal)
        self.link.bits = stored * 256

    def _refusal(self, request: KMERequest) -> Misbehaviour | None:
        if request.call != "enc_keys":
            return None
        number = request.content["number"]
        if number * request.content["size"] <= self.link.bits and number <= min(self.most, 128):
            return None
        return Misbehaviour("http", *self.answer)

    @property
    def numbers(self) -> list[int]:
        """How many keys each request for fresh ones asked for."""
        return [request.content["number"] for request in self.got("enc_keys")]


def _group(kme: FakeKME, time: FakeTime, prefetch: Prefetch) -> KMEGroup:
    return KMEGroup("g", [kme.client(timing=time.timing)], prefetch, timing=time.timing)


@pytest.mark.parametrize("size", [32, 131_072])
async def test_a_size_beyond_the_limits_of_the_status_is_no_shortage(
    certificates: Certificates, time: FakeTime, size: int
) -> None:
    async with Strict(certificates, (400, '{"message": "PULSE-7"}'), stored=0) as kme:
        async with kme.client(timing=time.timing) as client:
            with pytest.raises(KMERefusedRequest):
                await client.request_enc_keys("bob", size=size)
        assert time.slept == []


@pytest.mark.parametrize("answer", WORDS)
async def test_a_shortage_in_any_words_is_no_limit_and_batches_are_whole_again_after_it(
    certificates: Certificates, time: FakeTime, answer: tuple[int, str]
) -> None:
    async with Strict(certificates, answer, stored=3) as kme:
        group = _group(kme, time, Prefetch(16, 64))
        group.warm("bob")
        await group.take("bob")
        await settled(group)
        kme.link.bits = 240 * 256
        kme.requests.clear()
        time.now += 10
        for _ in range(64):
            await group.take("bob")
        await settled(group)
        assert len(kme.numbers) <= 4
        assert group.pools[0].client.breaker == 0
        assert accounts_agree(group)
        await group.close()


@pytest.mark.parametrize("answer", WORDS[:4])
async def test_a_limit_that_was_guessed_is_tried_again_step_by_step(
    certificates: Certificates, time: FakeTime, answer: tuple[int, str]
) -> None:
    async with Strict(certificates, answer) as kme:
        kme.most = 4
        group = _group(kme, time, Prefetch(64, 64, lifetime=10_000))
        group.warm("bob")
        await group.take("bob")
        await settled(group)
        assert max(kme.numbers[5:]) == 4
        kme.most = 10**6
        time.now += 5000
        for _ in range(8):
            kme.requests.clear()
            for _ in range(60):
                await group.take("bob")
            await settled(group)
        assert len(kme.numbers) == 1
        await group.close()


async def test_a_limit_that_stays_costs_one_refusal_a_minute(certificates: Certificates, time: FakeTime) -> None:
    async with Strict(certificates, WORDS[1]) as kme:
        kme.most = 4
        group = _group(kme, time, Prefetch(64, 64, lifetime=10_000))
        group.warm("bob")
        await group.take("bob")
        await settled(group)
        time.now += 61
        kme.requests.clear()
        for _ in range(64):
            await group.take("bob")
        await settled(group)
        assert [number for number in kme.numbers if number > 4] == [8]
        await group.close()


@pytest.mark.parametrize("answer", WORDS)
@pytest.mark.parametrize("stored", [0, 50])
async def test_a_shortage_is_called_so_by_the_words_of_the_answer_or_by_the_status(
    certificates: Certificates, time: FakeTime, answer: tuple[int, str], stored: int
) -> None:
    async with Strict(certificates, answer, stored) as kme, kme.client(timing=time.timing, retry_attempts=0) as client:
        kme.most = 0
        with pytest.raises(KeyUnavailable) as raised:
            await client.request_enc_keys("bob")
        of_words = answer in WORDS[:3]
        assert isinstance(raised.value, KMEExhausted) == (of_words or stored == 0)
        assert ("shortage" in str(raised.value)) == (of_words or stored == 0)
        if stored and answer == WORDS[3]:
            assert isinstance(raised.value, KMERefusedRequest)


@pytest.mark.parametrize("answer", [(500, "<html>"), (500, '{"message": "database is locked"}')])
async def test_keys_that_a_failing_kme_may_have_issued_are_burnt_and_fewer_are_asked_for_then(
    certificates: Certificates, time: FakeTime, answer: tuple[int, str]
) -> None:
    async with Strict(certificates, answer) as kme:
        kme.most = 16
        group = _group(kme, time, Prefetch(64, 64, lifetime=10_000))
        group.warm("bob")
        await group.take("bob")
        await settled(group)
        assert kme.numbers[:3] == [64, 32, 16]
        totals = group.pools[0].client.accounts.totals()
        assert totals["burnt"] == 64 + 32
        assert totals["issued"] == totals["used"] + totals["burnt"] + totals["in_pool"]
        assert accounts_agree(group)
        await group.close()
