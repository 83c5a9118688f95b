"""What is no word about a key is a fault: tried again, then an error of its own with what was said; never "not there".
Standard: ETSI GS QKD 014 V1.1.1, 5.4 and 6.5; tests/testlib/refusals.py has the forms.
"""

from __future__ import annotations

import base64
import json
import random
from collections.abc import Awaitable, Callable

import pytest

from relay.errors import KeyNotFound, KeyUnavailable, KMEBadReply, KMEExhausted, KMEMisconfigured, KMEUnreachable
from relay.keys.faults import Call, NotAsked
from relay.keys.replies import text_of_error
from tests.testlib.fake_kme import FakeKME, FakeTime
from tests.testlib.refusals import NOT_THERE, PASSING, REFUSALS, Refusal


def _says(kme: FakeKME, call: str, refusal: Refusal, times: int | None = None) -> None:
    kme.misbehave(call, "http", times=times, code=refusal.code, body=refusal.body, headers=refusal.headers)


async def test_no_refusal_without_a_word_about_a_key_is_called_not_there(kme: FakeKME, time: FakeTime) -> None:
    async with kme.client(timing=time.timing, adaptive=False) as client:
        for name, refusal in REFUSALS.items():
            kme.requests.clear()
            time.slept.clear()
            _says(kme, "dec_keys", refusal)
            with pytest.raises(KeyUnavailable) as raised:
                await client.request_dec_keys("alice", ["a"])
            assert isinstance(raised.value, KMEUnreachable | KMEMisconfigured | KMEBadReply), name
            assert refusal.said in str(raised.value), name
            assert f"HTTP {refusal.code}" in str(raised.value), name
            assert refusal.said in client.troubles["dec_keys"], name
            assert (len(kme.got("dec_keys")), time.slept) == (4, [1, 2, 4]), name
            assert client.health > 0.9, "anybody can have such mail asked for"


async def test_no_refusal_of_fresh_keys_is_called_a_shortage_and_each_has_its_words(
    kme: FakeKME, time: FakeTime
) -> None:
    for name, refusal in (REFUSALS | PASSING).items():
        async with kme.client(timing=time.timing, adaptive=False) as client:
            kme.requests.clear()
            time.slept.clear()
            _says(kme, "enc_keys", refusal)
            with pytest.raises((KMEUnreachable, KMEMisconfigured, KMEBadReply)) as raised:
                await client.request_enc_keys("bob")
            assert refusal.said in str(raised.value), name
            assert f"HTTP {refusal.code}" in str(raised.value) or refusal.code == 200, name
            again = isinstance(raised.value, KMEUnreachable)
            assert (len(kme.got("enc_keys")), len(time.slept)) == ((4, 3) if again else (1, 0)), name


async def test_not_there_is_what_the_standard_and_kmes_that_were_met_say(kme: FakeKME, time: FakeTime) -> None:
    async with kme.client(timing=time.timing) as client:
        for name, refusal in NOT_THERE.items():
            kme.requests.clear()
            _says(kme, "dec_keys", refusal)
            with pytest.raises(KeyNotFound):
                await client.request_dec_keys("alice", ["a"])
            assert (len(kme.got("dec_keys")), client.troubles) == (1, {}), name
    assert time.slept == []


@pytest.mark.parametrize("call", ["enc_keys", "dec_keys"])
async def test_a_fault_that_passes_costs_an_attempt(kme: FakeKME, time: FakeTime, call: str) -> None:
    async with kme.client(timing=time.timing, adaptive=False) as client:
        for name, refusal in PASSING.items():
            [(key_ID, octets)] = kme.drawn(1)
            time.slept.clear()
            if call == "enc_keys":
                if refusal.code in (200, 302, 401, 403, 400):
                    continue  # keys may be spent, or somebody has to act: no second attempt
                _says(kme, call, refusal, 1)
                assert len(await client.request_enc_keys("bob")) == 1, name
            else:
                _says(kme, call, refusal, 1)
                assert [key.key for key in await client.request_dec_keys("bob", [key_ID])] == [octets], name
            assert time.slept == [2.0 if refusal.headers and refusal.code != 302 else 1.0], name
            assert client.troubles == {}, name


@pytest.mark.parametrize(
    ("code", "body"), [(404, "<html>404"), (503, "<html>503"), (404, "default backend - 404"), (404, '{"detail": "Not Found"}'), (503, "")]
)  # fmt: skip
async def test_a_kme_behind_a_proxy_that_refuses_everything_is_away_and_not_exhausted(
    kme: FakeKME, time: FakeTime, code: int, body: str
) -> None:
    for call in ("status", "enc_keys", "dec_keys"):
        kme.misbehave(call, "http", times=None, code=code, body=body)
    async with kme.client(timing=time.timing, retry_attempts=4) as client:
        with pytest.raises(KMEUnreachable) as raised:
            await client.request_enc_keys("bob")
        assert not isinstance(raised.value, KMEExhausted)
        assert client.health == 0
        assert f"HTTP {code}" in str(client.troubles)


@pytest.mark.parametrize("call", list(Call))
@pytest.mark.parametrize("code", [404, 503, 504])
async def test_each_call_that_a_proxy_refuses_with_a_page_says_that_the_kme_is_away(
    kme: FakeKME, time: FakeTime, code: int, call: Call
) -> None:
    for each in Call:
        kme.misbehave(each, "http", times=None, code=code, body=f"<html><h1>{code} Sorry</h1></html>")
    async with kme.client(timing=time.timing, retry_attempts=0) as client:
        calls: dict[Call, Callable[[], Awaitable[object]]] = {
            Call.STATUS: lambda: client.check_key_status("bob"),
            Call.ENC_KEYS: lambda: client.request_enc_keys("bob"),
            Call.DEC_KEYS: lambda: client.request_dec_keys("bob", ["a"]),
        }
        for _ in range(5):
            with pytest.raises(KMEUnreachable):
                await calls[call]()
        assert f"HTTP {code}" in str(client.troubles)
        if call is Call.DEC_KEYS:
            assert client.health == 1, "anybody can have keys asked for that are not there"
            return
        assert client.health == 0
        with pytest.raises(NotAsked):
            await calls[call]()
        kme.behave()
        time.now += 10
        await calls[call]()
        assert (client.breaker, client.troubles) == (0, {})


def _spellings(octets: bytes) -> dict[str, str]:
    encoded, digits = base64.b64encode(octets).decode(), octets.hex()
    return {
        "base64": encoded,
        "base64 in fours": " ".join(encoded[i : i + 4] for i in range(0, len(encoded), 4)),
        "base64 in lines": "\n".join(encoded[i : i + 16] for i in range(0, len(encoded), 16)),
        "base64 by letters": " ".join(encoded),
        "urlsafe without padding": base64.urlsafe_b64encode(octets).decode().rstrip("="),
        "base32": base64.b32encode(octets).decode(),
        "base32 in small letters": " ".join(
            base64.b32encode(octets).decode().lower()[i : i + 4] for i in range(0, 56, 4)
        ),
        "base32 in fours": " ".join(base64.b32encode(octets).decode()[i : i + 4] for i in range(0, 56, 4)),
        "hex": digits,
        "spaced hex": octets.hex(" "),
        "hex with colons": octets.hex(":").upper(),
        "hex in fours": octets.hex(" ", 2),
        "escapes": "".join(f"\\x{each:02x}" for each in octets),
        "C": ", ".join(f"0x{each:02x}" for each in octets),
        "integers": str(list(octets)),
        "integers by blanks": " ".join(map(str, octets)),
        "one integer": str(int.from_bytes(octets)),
        "bits": "".join(f"{each:08b}" for each in octets),
        "bits in eights": " ".join(f"{each:08b}" for each in octets),
        "UUIDs": f"{digits[:8]}-{digits[8:12]}-{digits[12:16]}-{digits[16:20]}-{digits[20:32]}",
        "raw": octets.decode("latin-1"),
        "repr": repr(octets),
        "percent": "".join(f"%{each:02X}" for each in octets),
    }


def test_an_error_that_echoes_a_key_shows_it_in_no_spelling() -> None:
    chance = random.Random(7)
    for _ in range(50):
        octets = chance.randbytes(32)
        for name, spelt in _spellings(octets).items():
            for body in (
                json.dumps({"message": f"bad key {spelt}"}),
                json.dumps({"message": "bad", "details": {"key": spelt}}),
                f"<html><p>{spelt}</p></html>",
                f"cannot store {spelt}",
            ):
                shown = text_of_error(body.encode()).text
                left = {piece for piece in spelt.split() if len(piece) > 1 and piece in shown.split()}
                assert len(left) * 4 <= max(4, len(spelt.split())), (name, shown)
                assert sum(map(len, left)) < 12, (name, spelt, shown)
        for list_of in (
            list(octets),
            [f"{each:02x}" for each in octets],
            [octets.hex()[i : i + 8] for i in range(0, 64, 8)],
        ):
            shown = text_of_error(json.dumps({"message": "bad", "details": list_of}).encode()).text
            assert len(shown) < 20, shown


@pytest.mark.parametrize("said", [each.said for each in REFUSALS.values() if each.said])
def test_words_are_shown_as_they_were_said(said: str) -> None:
    assert text_of_error(json.dumps({"message": said}).encode()).text == said
