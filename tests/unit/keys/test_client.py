"""The KM client against a KME whose replies are wrong: a typed error or a success, with the accounts right.
Standard: ETSI GS QKD 014 V1.1.1; the misbehaviours are those of real KMEs.
"""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from relay.counting import key_metrics as metrics
from relay.errors import (
    KeyNotFound,
    KeyUnavailable,
    KMEBadReply,
    KMEExhausted,
    KMEMisconfigured,
    KMEUnreachable,
)
from relay.keys.counts import Numbers
from relay.keys.faults import Call, ErrorRule, KeysMissing, KMEBusy, KMEFault, KMERefusedRequest
from relay.keys.settings import Quirks
from tests.testlib.fake_kme import FakeKME, FakeTime


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
        ("enc_keys", 404, "", KMEUnreachable),
        ("enc_keys", 404, '{"message": "no such path"}', KMEMisconfigured),
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
        ("dec_keys", 404, "<html>", KMEUnreachable),
        ("dec_keys", 500, '{"message": "key not found"}', KeyNotFound),
        ("dec_keys", 503, '{"message": "key does not exist"}', KeyNotFound),
        ("dec_keys", 400, "", KMERefusedRequest),
        ("dec_keys", 401, "", KMEMisconfigured),
        ("dec_keys", 415, "", KMEMisconfigured),
        ("dec_keys", 429, "", KMEBusy),
        ("dec_keys", 500, "<html>", KMEUnreachable),
        ("dec_keys", 503, "", KMEUnreachable),
        ("dec_keys", 504, "", KMEUnreachable),
        ("dec_keys", 200, '{"result": "no such thing"}', KMEBadReply),
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


async def test_what_no_kme_said_of_a_key_is_named_until_one_says_so_or_keys_come(kme: FakeKME, time: FakeTime) -> None:
    async with kme.client(timing=time.timing, retry_attempts=0) as client:
        for said in ('{"message": "key not found"}', ""):
            kme.misbehave("dec_keys", "http", code=404, body="<html>404")
            with pytest.raises(KMEUnreachable):
                await client.request_dec_keys("alice", ["some"])
            assert "HTTP 404" in client.troubles["dec_keys"]
            if said:
                kme.misbehave("dec_keys", "http", code=404, body=said)
                with pytest.raises(KeyNotFound):
                    await client.request_dec_keys("alice", ["some"])
            else:
                [key] = await client.request_enc_keys("alice", number=1)
                await client.request_dec_keys("alice", [key.key_ID])
            assert client.troubles == {}


async def test_a_kme_that_never_answers_to_dec_keys_is_named(kme: FakeKME) -> None:
    kme.misbehave("dec_keys", "hang")
    async with kme.client(retry_attempts=0, timeout=2.0) as client:  # a starved machine takes a while to send it
        with pytest.raises(KMEUnreachable):
            await client.request_dec_keys("alice", ["some"])
        assert "no key of arriving mail is available" in client.troubles["dec_keys"]
        client.timeout = 30
        with pytest.raises(KeyNotFound):
            await client.request_dec_keys("alice", ["some"])
        assert client.troubles == {}


async def test_a_setting_overrides_what_a_refusal_means(kme: FakeKME) -> None:
    rule = ErrorRule(KMEFault.MISCONFIGURED, 415, Call.DEC_KEYS, "who")
    kme.misbehave("dec_keys", "http", code=415, body='{"message": "no longer"}')
    kme.misbehave("dec_keys", "http", code=415, body='{"message": "who are you"}')
    rules = (rule, ErrorRule(KMEFault.NOT_FOUND, 415, Call.DEC_KEYS, "no longer"))
    async with kme.client(quirks=Quirks(errors=rules), retry_attempts=0) as client:
        with pytest.raises(KeyNotFound):
            await client.request_dec_keys("alice", ["some"])
        with pytest.raises(KMEMisconfigured):
            await client.request_dec_keys("alice", ["some"])


@pytest.mark.parametrize(
    ("code", "stored", "error"),
    [(503, 0, KMEExhausted), (503, 100, KMEUnreachable), (404, 0, KMEExhausted), (404, 100, KMEUnreachable)],
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
    async with kme.client(timing=time.timing, retry_attempts=0) as client:
        keys = await client.request_enc_keys("bob", number=2)
        kme.misbehave("dec_keys", "other_keys")
        with pytest.raises(KMEBadReply, match="none of 2 entries"):
            await client.request_dec_keys("alice", [key.key_ID for key in keys])


async def test_keys_that_came_are_not_lost_when_others_did_not(kme: FakeKME) -> None:
    board = Numbers()
    async with kme.client(board=board) as client:
        keys = await client.request_enc_keys("bob", number=4)
        with pytest.raises(KeysMissing):
            await client.request_dec_keys("alice", ["0b9e5c1e-0000-4000-8000-000000000000"])
        assert board.totals[metrics.KME_REQUESTS]["kme-a", "dec_keys", "not_found"] == [1.0]
        kme.misbehave("dec_keys", "short")
        with pytest.raises(KeysMissing) as missing:
            await client.request_dec_keys("alice", [key.key_ID for key in keys])
        assert missing.value.found == keys[:2]
        assert missing.value.missing == [key.key_ID for key in keys[2:]]


async def test_keys_are_in_no_error_and_no_representation(kme: FakeKME, time: FakeTime) -> None:
    async with kme.client(timing=time.timing) as client:
        [key] = await client.request_enc_keys("bob")
        assert key.key.hex() not in repr(key)
        kme.misbehave("enc_keys", "bad_base64")
        with pytest.raises(KMEBadReply) as error:
            await client.request_enc_keys("bob")
        causes = [str(error.value), str(error.value.__cause__), str(error.value.__cause__.__cause__)]  # type: ignore[union-attr]
        assert not any("*" in cause for cause in causes)


async def _make(client: Any, call: str) -> None:
    if call == "status":
        await client.check_key_status("bob")
    elif call == "enc_keys":
        await client.request_enc_keys("bob")
    else:
        await client.request_dec_keys("alice", ["some-key"])


async def test_a_key_that_was_given_leaves_no_timer_behind(kme: FakeKME) -> None:
    def timers() -> int:
        return sum(not each.cancelled() for each in vars(asyncio.get_running_loop())["_scheduled"])

    async with kme.client(pool_connections=1) as client:
        await client.request_enc_keys("bob")
        before = timers()
        for _ in range(30):
            await client.request_enc_keys("bob")
        assert timers() < before + 10
