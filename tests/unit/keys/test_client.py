"""The KM client against a KME that misbehaves: a typed error or a success, in time, with the accounts right.
Standard: ETSI GS QKD 014 V1.1.1; the misbehaviours are those of real KMEs.
"""

from __future__ import annotations

import asyncio
import gc
import logging
import threading
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from relay.errors import (
    ConfigError,
    KeyNotFound,
    KeyUnavailable,
    KMEBadReply,
    KMEExhausted,
    KMEMisconfigured,
    KMEUnreachable,
)
from relay.keys import Key, KMEGroup, OptimizedKMClient, Prefetch
from relay.keys.asking import Question
from relay.keys.faults import Call, ErrorRule, KeysMissing, KMEBusy, KMEFault, KMERefusedRequest, NotAsked
from relay.keys.health import TimeLimit
from relay.keys.http import HTTPReply, HTTPRequest
from relay.keys.settings import Quirks
from relay.keys.transport import CONNECT_TIMEOUT_S
from tests.testlib.fake_kme import Certificates, FakeKME, FakeTime, is_the_servers


@pytest.mark.parametrize(
    ("kind", "error", "burnt"),
    [
        ("hang", KMEUnreachable, 4),
        ("hang_in_body", KMEUnreachable, 4),
        ("drop", KMEUnreachable, 4),
        ("lose_reply", KMEUnreachable, 4),
        ("none", KMEExhausted, 0),
        ("too_many", KMEBadReply, 5),
        ("wrong_length", KMEBadReply, 4),
        ("repeat_ids", KMEBadReply, 4),
        ("bad_base64", KMEBadReply, 4),
        ("not_json", KMEBadReply, 4),
    ],
)
async def test_what_cannot_be_believed_is_a_typed_error_and_its_keys_are_burnt(
    kme: FakeKME, time: FakeTime, kind: str, error: type[KeyUnavailable], burnt: int
) -> None:
    kme.misbehave("enc_keys", kind, times=None if kind == "none" else 1)
    timeout = 1 if kind.startswith("hang") else 10  # the connection must be there by then, or no key is burnt
    async with kme.client(timing=time.timing, retry_attempts=0, timeout=timeout) as client:
        with pytest.raises(error):
            await client.request_enc_keys("bob", number=4)
        assert client.key_requests.unread == (burnt if kind.startswith("hang") else 0)
    assert client.accounts.totals() == {"issued": burnt, "used": 0, "burnt": burnt, "expired": 0, "in_pool": 0}


@pytest.mark.parametrize("kind", ["lower_case", "object_keys", "capital_keys", "close_unsaid"])
async def test_other_shapes_of_a_reply_are_understood(kme: FakeKME, kind: str) -> None:
    kme.misbehave("enc_keys", kind, times=None)
    async with kme.client() as client:
        for number in (1, 3):
            keys = await client.request_enc_keys("bob", number=number)
            assert len(keys) == number
            assert all(len(key.key) == 32 and key.key_ID for key in keys)


@pytest.mark.parametrize(
    ("call", "code", "body", "error"),
    [
        ("enc_keys", 400, '{"message": "key pool exhausted"}', KMEExhausted),
        ("enc_keys", 404, "", KMERefusedRequest),
        ("enc_keys", 404, '{"message": "no keys left"}', KMEExhausted),
        ("enc_keys", 503, "", KMEUnreachable),
        ("enc_keys", 503, '{"message": "not enough keys", "details": {"stored": 0}}', KMEExhausted),
        ("enc_keys", 400, '{"message": "size shall be a multiple of 8"}', KMERefusedRequest),
        ("enc_keys", 422, '{"detail": [{"loc": ["number"]}]}', KMERefusedRequest),
        ("enc_keys", 401, "", KMEMisconfigured),
        ("enc_keys", 415, "<html>", KMEMisconfigured),
        ("enc_keys", 500, "", KMEUnreachable),
        ("enc_keys", 504, "<html><body>Gateway Timeout</body></html>", KMEUnreachable),
        ("dec_keys", 400, '{"message": "one or more keys specified are not found on KME"}', KeyNotFound),
        ("dec_keys", 403, '{"message": "Key expired"}', KeyNotFound),
        ("dec_keys", 404, "<html>", KeyNotFound),
        ("dec_keys", 500, '{"message": "key not found"}', KeyNotFound),
        ("dec_keys", 503, '{"message": "key does not exist"}', KeyNotFound),
        ("dec_keys", 400, "", KMERefusedRequest),
        ("dec_keys", 401, "", KeyNotFound),
        ("dec_keys", 415, "", KeyNotFound),
        ("dec_keys", 429, "", KMEBusy),
        ("dec_keys", 500, "<html>", KeyNotFound),
        ("dec_keys", 503, "", KeyNotFound),
        ("dec_keys", 504, "", KeyNotFound),
        ("dec_keys", 200, '{"result": "no such thing"}', KeyNotFound),
        ("status", 504, "<html>", KMEUnreachable),
        ("status", 401, "", KMEMisconfigured),
    ],
)
async def test_refusals_are_classified_by_call_code_and_message(
    kme: FakeKME, time: FakeTime, call: str, code: int, body: str, error: type[KeyUnavailable]
) -> None:
    kme.misbehave(call, "http", times=None, code=code, body=body)
    async with kme.client(timing=time.timing, retry_attempts=1) as client:
        with pytest.raises(error):
            await _make(client, call)


NO_WORD_ABOUT_A_KEY = {
    "of a proxy": "<html><h1>404 Not Found</h1>nginx</html>",
    "of Go": "404 page not found",
    "of FastAPI": '{"detail": "Not Found"}',
    "of Spring": '{"status": 404, "error": "Not Found", "path": "/api/v1/keys/alice/dec_keys"}',
    "nothing": "",
    "empty": "{}",
}


@pytest.mark.parametrize("body", NO_WORD_ABOUT_A_KEY.values(), ids=NO_WORD_ABOUT_A_KEY.keys())
async def test_a_404_to_dec_keys_that_says_nothing_of_keys_is_a_fault_and_the_keys_count_as_unknown(
    kme: FakeKME, time: FakeTime, body: str
) -> None:
    kme.misbehave("dec_keys", "http", code=404, body=body)
    kme.misbehave("dec_keys", "http", code=404, body='{"message": "key not found"}')
    async with kme.client(timing=time.timing) as client:
        with pytest.raises(KeyNotFound):
            await client.request_dec_keys("alice", ["some"])
        assert "HTTP 404" in client.troubles["dec_keys"]
        with pytest.raises(KeyNotFound):
            await client.request_dec_keys("alice", ["some"])
        assert client.troubles == {}


@pytest.mark.parametrize("code", [400, 413, 422])
async def test_a_page_that_refuses_dec_keys_is_named_until_keys_come(kme: FakeKME, time: FakeTime, code: int) -> None:
    page = "<html><head><title>400 No required SSL certificate was sent</title></head></html>"
    kme.misbehave("dec_keys", "http", code=code, body=page)
    async with kme.client(timing=time.timing) as client:
        with pytest.raises(KMERefusedRequest):
            await client.request_dec_keys("alice", ["some"])
        assert f"HTTP {code}" in client.troubles["dec_keys"]
        kme.misbehave("dec_keys", "http", code=code, body='{"message": "too many keys"}')
        with pytest.raises(KMERefusedRequest):
            await client.request_dec_keys("alice", ["some"])
        assert f"HTTP {code}" in client.troubles["dec_keys"], "no keys have come since"
        [key] = await client.request_enc_keys("alice", number=1)
        await client.request_dec_keys("alice", [key.key_ID])
        assert client.troubles == {}


async def test_a_kme_that_never_answers_to_dec_keys_is_named_where_it_answers_to_status(kme: FakeKME) -> None:
    kme.misbehave("dec_keys", "hang", times=2)
    kme.misbehave("dec_keys", "http", code=404, body='{"message": "key not found"}')
    async with kme.client(retry_attempts=0) as client:
        client.time_limits[Call.STATUS] = TimeLimit(30, 30)

        async def trouble() -> str:
            with pytest.raises(KeyUnavailable):
                await client.request_dec_keys("alice", ["some"])
            return client.troubles.get("dec_keys", "")

        assert await trouble() == ""
        assert "2 calls in a row were not answered, and its status is" in await trouble()
        client.time_limits[Call.DEC_KEYS] = TimeLimit(30, 30)
        assert await trouble() == ""


async def test_calls_that_hang_at_the_same_time_are_one_and_a_kme_that_is_away_is_another_matter(kme: FakeKME) -> None:
    kme.misbehave("dec_keys", "hang", times=None)
    async with kme.client(retry_attempts=0) as client:
        calls = [client.request_dec_keys("alice", [each]) for each in "abc"]
        await asyncio.gather(*calls, return_exceptions=True)
        assert client.troubles == {}
        kme.misbehave("status", "hang", times=None)
        with pytest.raises(KeyUnavailable):
            await client.request_dec_keys("alice", ["some"])
        assert client.troubles == {}


async def test_a_setting_overrides_what_a_refusal_means(kme: FakeKME) -> None:
    rule = ErrorRule(KMEFault.MISCONFIGURED, 415, Call.DEC_KEYS, "who")
    kme.misbehave("dec_keys", "http", code=415, body='{"message": "key is gone"}')
    kme.misbehave("dec_keys", "http", code=415, body='{"message": "who are you"}')
    async with kme.client(quirks=Quirks(errors=(rule,))) as client:
        with pytest.raises(KeyNotFound):
            await client.request_dec_keys("alice", ["some"])
        with pytest.raises(KMEMisconfigured):
            await client.request_dec_keys("alice", ["some"])


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
        with pytest.raises(KMEBusy):
            await client.request_enc_keys("bob")
        with pytest.raises(NotAsked) as told:
            await client.request_enc_keys("bob")
        assert told.value.retry_after == pytest.approx(90)
        assert len(kme.got("enc_keys")) == 1
        time.now += 90
        await client.request_enc_keys("bob")


async def test_a_long_retry_after_for_one_received_key_keeps_no_other_away(kme: FakeKME, time: FakeTime) -> None:
    """Anybody can write mail that names keys which a KME, or a gateway before it, refuses in this way."""
    (key_ID, octets), *_ = kme.drawn(1)
    kme.misbehave("dec_keys", "http", code=429, headers=(("Retry-After", "3600"),))
    async with kme.client(timing=time.timing) as client:
        with pytest.raises(KMEBusy):
            await client.request_dec_keys("alice", ["00000000-0000-4000-8000-000000000000"])
        assert [key.key for key in await client.request_dec_keys("bob", [key_ID])] == [octets]


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


@pytest.mark.parametrize(
    ("code", "stored", "error"),
    [(503, 0, KMEExhausted), (503, 100, KMEUnreachable), (404, 0, KMEExhausted), (404, 100, KMERefusedRequest)],
)
async def test_whether_keys_have_run_out_is_told_from_the_status_and_not_from_the_code(
    kme: FakeKME, time: FakeTime, code: int, stored: int, error: type[KeyUnavailable]
) -> None:
    kme.link.bits = stored * 256
    kme.misbehave("enc_keys", "http", times=None, code=code)
    async with kme.client(timing=time.timing, retry_attempts=1) as client:
        with pytest.raises(error) as raised:
            await client.request_enc_keys("bob")
        assert isinstance(raised.value, KMEExhausted) == (stored == 0)


async def test_a_kme_that_ignores_the_size_is_found_out_at_the_price_of_two_requests(
    kme: FakeKME, time: FakeTime
) -> None:
    kme.misbehave("enc_keys", "wrong_length", times=2)
    async with kme.client(timing=time.timing) as client:
        for _ in range(10):
            with pytest.raises(KeyUnavailable):
                await client.request_enc_keys("bob", size=512)
        assert len(kme.got("enc_keys")) == 2
        assert "256 bits, whatever size is asked for" in client.troubles["size"]
        assert not client.any_size
        assert len(await client.request_enc_keys("bob")) == 1
        time.now += 200
        assert len(await client.request_enc_keys("bob", size=512)) == 1
        assert (client.any_size, client.troubles) == (True, {})


async def test_a_key_of_one_repeated_octet_is_no_key(kme: FakeKME, time: FakeTime) -> None:
    body = '{"keys": [{"key_ID": "a", "key": "' + "A" * 43 + '="}]}'
    kme.misbehave("enc_keys", "http", code=200, body=body)
    async with kme.client(timing=time.timing, retry_attempts=0) as client:
        with pytest.raises(KMEBadReply, match="all bytes are the same"):
            await client.request_enc_keys("bob")


@pytest.mark.parametrize("body", ["{}", '{"message": "try later"}', '{"status": "ok"}'])
async def test_an_object_without_any_field_of_a_status_is_no_status(kme: FakeKME, time: FakeTime, body: str) -> None:
    kme.misbehave("status", "http", times=None, code=200, body=body)
    async with kme.client(timing=time.timing, retry_attempts=0) as client:
        with pytest.raises(KMEBadReply):
            await client.check_key_status("bob")


async def test_a_password_in_the_url_is_in_no_name(certificates: Certificates) -> None:
    client = OptimizedKMClient("https://user:secret@kme.example:13000/prefix", **certificates.files)
    assert client.name == "https://kme.example:13000/prefix"


async def test_an_own_certificate_that_has_ended_is_named_and_burns_no_key(
    certificates: Certificates, kme: FakeKME, time: FakeTime, tmp_path: Path
) -> None:
    ended = certificates.authority.issue_cert(common_name="sae-alice", not_after=datetime(2024, 1, 2, tzinfo=UTC))
    ended.private_key_pem.write_to_path(tmp_path / "sae.key")
    ended.cert_chain_pems[0].write_to_path(tmp_path / "sae.pem")
    async with kme.client(timing=time.timing, certificate=tmp_path / "sae.pem", key=tmp_path / "sae.key") as client:
        with pytest.raises(KMEMisconfigured, match=r"our certificate .* ended on 2024-01-02"):
            await client.request_enc_keys("bob", number=7)
    assert client.accounts.totals()["issued"] == 0


@pytest.mark.filterwarnings("ignore::ResourceWarning")  # loops that end with open connections are the point
def test_a_client_is_used_in_one_event_loop_after_the_other(
    certificates: Certificates, capfd: pytest.CaptureFixture[str]
) -> None:
    kmes: list[FakeKME] = []
    started, ended = threading.Event(), threading.Event()

    async def serve() -> None:
        async with FakeKME(certificates) as kme:
            kme.misbehave("dec_keys", "http", times=None, code=500)
            kmes.append(kme)
            started.set()
            await asyncio.to_thread(ended.wait)

    with ThreadPoolExecutor() as pool:
        serving = pool.submit(asyncio.run, serve())
        started.wait()
        client = kmes[0].client(timeout=5)

        async def use() -> None:
            drawn = [client.request_enc_keys("bob", 1, size) for size in (256, 512, 256)]
            fetched = [client.request_dec_keys("bob", [key_ID]) for key_ID in "abc"]
            results = await asyncio.gather(*drawn, *fetched, return_exceptions=True)
            assert [type(result) for result in results] == [*[list] * 3, *[KeysMissing] * 3]

        async def leave_one_waiting() -> None:
            asyncio.get_running_loop().call_soon(asyncio.ensure_future, client.request_enc_keys("bob"))
            await asyncio.sleep(0)

        for work in (use, use, leave_one_waiting, use, client.close):
            asyncio.run(work())
        ended.set()
        serving.result()
    gc.collect()
    assert "Unclosed" not in capfd.readouterr().err


async def test_a_slow_handshake_is_waited_for_as_timeout_says(certificates: Certificates) -> None:
    async with FakeKME(certificates) as kme:
        client = OptimizedKMClient(kme.url, **certificates.files, timeout=20)
        assert client.transport.connect_timeout == 10
        assert kme.client(timeout=0.3).transport.connect_timeout == CONNECT_TIMEOUT_S


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


async def test_get_uses_one_connection_for_each_request(kme: FakeKME) -> None:
    async with kme.client(quirks=Quirks(method="GET")) as client:
        keys = await client.request_enc_keys("bob", number=3, size=128)
        got = await client.request_dec_keys("alice", [key.key_ID for key in keys])
    assert got == keys
    assert [dict(request.query) for request in kme.got("enc_keys")] == [{"number": "3", "size": "128"}]
    assert [len(request.query) for request in kme.got("dec_keys")] == [1, 1, 1]
    assert len({request.connection for request in kme.requests}) == 4


async def test_post_keeps_its_connection(kme: FakeKME) -> None:
    async with kme.client() as client:
        for _ in range(5):
            await client.request_enc_keys("bob")
    assert kme.connections == 1


async def test_one_request_for_fresh_keys_at_a_time_goes_out_for_a_slave(kme: FakeKME) -> None:
    kme.latency = 0.01
    async with kme.client() as client:
        await asyncio.gather(*(client.request_enc_keys("bob") for _ in range(6)))
    assert kme.most_enc_keys_at_once == 1


@pytest.mark.parametrize(("unit", "sent"), [("bits", 512), ("bytes", 64), ("ignored", None)])
async def test_the_size_is_said_in_the_unit_that_the_kme_understands(kme: FakeKME, unit: Any, sent: int | None) -> None:
    if unit == "ignored":
        kme.limits["key_size"] = 512
    async with kme.client(quirks=Quirks(size_unit=unit)) as client:
        if unit == "bytes":
            with pytest.raises(KMEBadReply):  # this KME takes bits: the client would notice a wrong setting
                await client.request_enc_keys("bob", size=512)
        else:
            [key] = await client.request_enc_keys("bob", size=512)
            assert len(key.key) == 64
    assert kme.got("enc_keys")[0].content.get("size") == sent


async def test_fresh_keys_with_numbers_for_ids_are_taken_only_where_they_are_asked_for_as_numbers(
    kme: FakeKME, time: FakeTime
) -> None:
    """A peer whose KME compares texts with numbers could never fetch them: the mail would wait in vain."""
    kme.misbehave("enc_keys", "integer_ids", times=None)
    async with kme.client(timing=time.timing) as client:
        with pytest.raises(KMEBadReply, match="integer_key_ids"):
            await client.request_enc_keys("bob", number=2)
    async with kme.client(quirks=Quirks(integer_key_ids=True)) as client:
        keys = await client.request_enc_keys("bob", number=2)
        assert all(key.key_ID.isdigit() for key in keys)


async def test_integer_key_ids_are_asked_for_as_numbers_where_the_kme_wants_that(kme: FakeKME) -> None:
    kme.misbehave("dec_keys", "integer_ids")
    async with kme.client(quirks=Quirks(integer_key_ids=True)) as client:
        with pytest.raises(KeysMissing):
            await client.request_dec_keys("alice", ["17", "not a number"])
    assert kme.got("dec_keys")[0].content == {"key_IDs": [{"key_ID": 17}, {"key_ID": "not a number"}]}


async def test_keys_that_were_not_asked_for_are_refused(kme: FakeKME, time: FakeTime) -> None:
    async with kme.client(timing=time.timing) as client:
        keys = await client.request_enc_keys("bob", number=2)
        kme.misbehave("dec_keys", "other_keys")
        with pytest.raises(KeyNotFound, match="none of 2 entries"):
            await client.request_dec_keys("alice", [key.key_ID for key in keys])


async def test_keys_that_came_are_not_lost_when_others_did_not(kme: FakeKME) -> None:
    async with kme.client() as client:
        keys = await client.request_enc_keys("bob", number=4)
        kme.misbehave("dec_keys", "short")
        with pytest.raises(KeysMissing) as missing:
            await client.request_dec_keys("alice", [key.key_ID for key in keys])
        assert missing.value.found == keys[:2]
        assert missing.value.missing == [key.key_ID for key in keys[2:]]


async def test_an_sae_id_of_any_form_stays_one_part_of_the_path(kme: FakeKME) -> None:
    async with kme.client() as client:
        await client.check_key_status("a/b c?ü")
    assert kme.requests[0].path == "/api/v1/keys/a%2Fb%20c%3F%C3%BC/status"


async def test_a_path_prefix_in_the_url_is_kept(certificates: Certificates) -> None:
    async with FakeKME(certificates, prefix="/client/carol/etsi") as kme, kme.client() as client:
        await client.check_key_status("bob")
    assert kme.requests[0].path == "/client/carol/etsi/api/v1/keys/bob/status"


async def test_a_kme_that_dies_and_comes_back_is_used_again(kme: FakeKME, time: FakeTime) -> None:
    async with kme.client(timing=time.timing, retry_attempts=0) as client:
        await client.request_enc_keys("bob")
        await kme.stop()
        for _ in range(3):
            with pytest.raises(KMEUnreachable):
                await client.request_enc_keys("bob")
        await kme.start()
        time.now += 60
        await client.request_enc_keys("bob")


async def test_a_connection_that_never_gets_through_tls_ends_at_the_connect_timeout(
    certificates: Certificates, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("relay.keys.transport.CONNECT_TIMEOUT_S", 0.1)
    gone = asyncio.Event()

    async def say_nothing(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read()
        writer.close()
        await writer.wait_closed()
        gone.set()

    silent = await asyncio.start_server(say_nothing, "127.0.0.1", 0)
    port = silent.sockets[0].getsockname()[1]
    kme = FakeKME(certificates, port=port)
    async with kme.client(retry_attempts=0, timeout=5) as client:
        with pytest.raises(KMEUnreachable):
            await client.request_enc_keys("bob")
        assert client.accounts.totals()["issued"] == 0
    await gone.wait()
    silent.close()
    await silent.wait_closed()


async def test_a_request_that_nobody_waits_for_any_more_holds_up_no_other_and_its_keys_are_burnt_in_the_end(
    kme: FakeKME,
) -> None:
    kme.misbehave("enc_keys", "hang")
    async with kme.client(timeout=30) as client:
        task = asyncio.create_task(client.request_enc_keys("bob", number=3))
        await kme.next_request()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert (client.key_requests.unread, client.accounts.totals()["burnt"]) == (3, 0)
        assert len(await client.request_enc_keys("bob")) == 1
    assert client.accounts.totals() | {"issued": 0} == {"issued": 0, "used": 1, "burnt": 3, "expired": 0, "in_pool": 0}


@pytest.mark.parametrize("gives_up", ["the client", "the caller"])
async def test_keys_that_come_late_are_there_for_the_next_caller(kme: FakeKME, time: FakeTime, gives_up: str) -> None:
    answer = asyncio.Event()
    kme.misbehave("enc_keys", "late", until=answer)
    by_caller = gives_up == "the caller"
    options = {"timeout": 30} if by_caller else {"timeout": 0.2, "min_timeout": 0.2, "retry_attempts": 0}
    async with kme.client(timing=time.timing, **options) as client:
        await client.check_key_status("bob")
        with pytest.raises(TimeoutError if by_caller else KMEUnreachable):
            async with asyncio.timeout(0.2 if by_caller else None):
                await client.request_enc_keys("bob", number=3)
        while client.key_requests.unread < 3:
            await asyncio.sleep(0)
        answer.set()
        while client.key_requests.unread:
            await asyncio.sleep(0.01)
        keys = await client.request_enc_keys("bob", number=3)
        assert len({key.key_ID for key in keys}) == 3
        assert len(kme.got("enc_keys")) == 1
        assert client.accounts.totals() == {"issued": 3, "used": 3, "burnt": 0, "expired": 0, "in_pool": 0}


@pytest.mark.parametrize(
    ("code", "whole", "burnt"), [(504, True, 3), (502, False, 3), (200, False, 3), (404, False, 0)]
)
async def test_a_late_answer_without_keys_burns_what_it_may_have_cost(
    kme: FakeKME, code: int, whole: bool, burnt: int
) -> None:
    async def answer() -> HTTPReply:
        return HTTPReply(code, bytearray(), whole=whole)

    async def no_keys(_: object) -> list[Key]:
        return []

    async with kme.client() as client:
        question = Question(Call.ENC_KEYS, HTTPRequest("POST", "", sae="bob"), no_keys, spends=3)
        client.key_requests._leave(asyncio.create_task(answer()), question, sent=True)
        while client.key_requests.unread:
            await asyncio.sleep(0)
        assert client.accounts.totals()["burnt"] == burnt


async def test_a_kme_that_pauses_now_and_then_loses_no_key_however_quick_it_was(kme: FakeKME) -> None:
    """A limit that follows a quick KME would give up each pause, and burn the keys."""
    async with kme.client(timeout=10, min_timeout=0.05) as client:
        for number in range(12):
            if number == 10:
                kme.misbehave("enc_keys", "late", seconds=0.4)
            await client.request_enc_keys("bob")
        assert (len(kme.got("enc_keys")), client.accounts.totals()["burnt"]) == (12, 0)


async def test_callers_who_wait_at_the_same_time_share_a_request(kme: FakeKME) -> None:
    kme.latency = 0.02
    async with kme.client() as client:

        async def keys() -> list[Key]:
            return [key for _ in range(5) for key in await client.request_enc_keys("bob")]

        found = await asyncio.gather(*(keys() for _ in range(10)))
        assert len({key.key_ID for each in found for key in each}) == 50
        assert [request.content["number"] for request in kme.got("enc_keys")] == [10] * 5
        assert kme.most_enc_keys_at_once == 1


async def test_several_requests_are_on_the_way_where_the_kme_permits_it(kme: FakeKME) -> None:
    kme.misbehave("enc_keys", "late", until=(answer := asyncio.Event()))
    async with kme.client(quirks=Quirks(at_once=2), timeout=30) as client:
        first = asyncio.create_task(client.request_enc_keys("bob"))
        await kme.next_request()
        second = asyncio.create_task(client.request_enc_keys("bob"))
        await first  # whichever request its key has come by
        answer.set()
        assert await second != await first
        assert kme.most_enc_keys_at_once == 2


async def test_callers_of_a_kme_that_hangs_hear_of_it_together(kme: FakeKME, time: FakeTime) -> None:
    kme.misbehave("enc_keys", "hang", times=None)
    async with kme.client(timing=time.timing, retry_attempts=1, timeout=0.2) as client:
        began = asyncio.get_running_loop().time()
        results = await asyncio.gather(*(client.request_enc_keys("bob") for _ in range(20)), return_exceptions=True)
        assert all(isinstance(result, KMEUnreachable) for result in results)
        assert [request.content["number"] for request in kme.got("enc_keys")] == [20, 20]
        assert asyncio.get_running_loop().time() - began < 20 * 0.2


async def test_too_many_callers_for_one_request_are_served_by_smaller_ones(kme: FakeKME, time: FakeTime) -> None:
    kme.limits["max_key_per_request"] = 4
    async with kme.client(timing=time.timing) as client:
        keys = await asyncio.gather(*(client.request_enc_keys("bob") for _ in range(10)))
        assert len({key.key_ID for [key] in keys}) == 10
        assert len(await client.request_enc_keys("bob", number=9)) == 9
    async with kme.client(timing=time.timing) as client:
        assert len(await client.request_enc_keys("bob", number=9)) == 9


async def test_a_client_that_is_closed_leaves_no_connection_and_no_task(kme: FakeKME) -> None:
    before = asyncio.all_tasks()
    client = kme.client()
    await asyncio.gather(*(client.check_key_status("bob") for _ in range(5)))
    await client.close()
    mine = {task for task in asyncio.all_tasks() - before if not is_the_servers(task)}
    assert mine == set()
    while kme.open_connections:
        await asyncio.sleep(0)


async def test_a_client_that_nobody_closed_makes_no_noise(kme: FakeKME, caplog: pytest.LogCaptureFixture) -> None:
    client = kme.client()
    await client.check_key_status("bob")
    with caplog.at_level(logging.DEBUG, logger="asyncio"):
        del client
        gc.collect()
        await asyncio.sleep(0)
    assert "Unclosed" not in caplog.text


async def test_keys_are_in_no_error_and_no_representation(kme: FakeKME, time: FakeTime) -> None:
    async with kme.client(timing=time.timing) as client:
        [key] = await client.request_enc_keys("bob")
        assert key.key.hex() not in repr(key)
        kme.misbehave("enc_keys", "bad_base64")
        with pytest.raises(KMEBadReply) as error:
            await client.request_enc_keys("bob")
        causes = [str(error.value), str(error.value.__cause__), str(error.value.__cause__.__cause__)]  # type: ignore[union-attr]
        assert not any("*" in cause for cause in causes)


def test_certificate_files_that_are_not_there_are_named(certificates: Certificates, kme: FakeKME) -> None:
    files = certificates.files | {"key": certificates.directory / "nowhere.key"}
    with pytest.raises(ConfigError, match=r"nowhere\.key"):
        type(kme.client())("https://localhost:1", **files)


async def _make(client: Any, call: str) -> None:
    if call == "status":
        await client.check_key_status("bob")
    elif call == "enc_keys":
        await client.request_enc_keys("bob")
    else:
        await client.request_dec_keys("alice", ["some-key"])
