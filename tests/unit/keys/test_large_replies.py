"""Replies of a KME that are larger than what was asked for: refused with the cause, and nobody waits meanwhile.
Standard: ETSI GS QKD 014 V1.1.1, 6.2 to 6.5; the limit is the keys that were asked for, in base64, and a margin.
"""

from __future__ import annotations

import asyncio
import base64
import json
import ssl
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from typing import Any

import pytest

from relay.errors import KeyUnavailable, KMEBadReply
from relay.keys import OptimizedKMClient, replies
from relay.keys.http import HTTPReply, HTTPRequest
from tests.testlib.fake_kme import Certificates, FakeKME
from tests.testlib.loop_clock import loop_clock, slow

FLOOD = b'{"keys":[' + b"{}," * (32 * 2**20 // 3 - 10) + b"{}]}"
"""32 MiB of keys that are none."""
PIECE = 64 * 1024


@asynccontextmanager
async def flooding(
    certificates: Certificates, code: int, *, announced: bool, flood: bytes = FLOOD
) -> AsyncIterator[str]:
    """The URL of a KME that answers every request with the flood; its length stands in the header, or is not known."""

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(OSError, asyncio.IncompleteReadError, ssl.SSLError):
            await reader.readuntil(b"\r\n\r\n")
            length = f"Content-Length: {len(flood)}\r\n" if announced else "Connection: close\r\n"
            writer.write(f"HTTP/1.1 {code} X\r\nContent-Type: application/json\r\n{length}\r\n".encode())
            for at in range(0, len(flood), PIECE):
                writer.write(flood[at : at + PIECE])
                await writer.drain()
        writer.close()

    server = await asyncio.start_server(answer, "127.0.0.1", 0, ssl=certificates.server_tls("127.0.0.1"))
    async with server:
        yield f"https://127.0.0.1:{server.sockets[0].getsockname()[1]}"


def asking(url: str, certificates: Certificates, **options: Any) -> OptimizedKMClient:
    return OptimizedKMClient(url, **certificates.files, name="kme-a", timeout=20, **options)


async def ask(client: OptimizedKMClient, call: str) -> None:
    """In a task of the client's own: what tests do is not measured."""
    if call == "enc_keys":
        await asyncio.create_task(client.request_enc_keys("bob", number=4))
    elif call == "dec_keys":
        await asyncio.create_task(client.request_dec_keys("bob", ["a"]))
    else:
        await asyncio.create_task(client.check_key_status("bob"))


@pytest.mark.promise("A reply takes no more memory and time than its request asked for")
@pytest.mark.parametrize("call", ["enc_keys", "dec_keys", "status"])
@pytest.mark.parametrize(("code", "announced"), [(200, True), (200, False), (500, True)])
async def test_32_MiB_of_empty_keys_are_refused_and_hold_nobody_up(
    certificates: Certificates, call: str, code: int, announced: bool
) -> None:
    causes: list[str] = []
    async with (
        flooding(certificates, code, announced=announced) as url,
        asking(url, certificates, retry_attempts=0) as client,
    ):
        with loop_clock() as clock:

            async def one() -> None:
                with pytest.raises(KeyUnavailable) as refused:
                    await ask(client, call)
                causes.append(str(refused.value))

            held = await slow(clock, call, one, 0.5)
    assert held is None, str(held)
    assert all("the reply is larger than" in cause for cause in causes), causes


@pytest.mark.promise("A reply takes no more memory and time than its request asked for")
@pytest.mark.parametrize("announced", [True, False])
async def test_a_refusal_of_30_MB_to_a_request_for_large_keys_is_not_parsed(
    certificates: Certificates, announced: bool
) -> None:
    """Keys may be as large as that, and a reason may not."""
    said = b'{"message":"no such key","details":[{"x":"' + b"\\u00e9" * 5_000_000 + b'"}]}'
    causes: list[str] = []
    async with (
        flooding(certificates, 404, announced=announced, flood=said) as url,
        asking(url, certificates, retry_attempts=0) as client,
    ):
        with loop_clock() as clock:

            async def one() -> None:
                with pytest.raises(KeyUnavailable) as refused:
                    await asyncio.create_task(client.request_dec_keys("bob", [f"key-{n}" for n in range(128)]))
                causes.append(str(refused.value))

            held = await slow(clock, "dec_keys", one, 0.5)
    assert held is None, str(held)
    assert all("the reply is larger than 524288 bytes" in cause for cause in causes), causes


async def test_a_reply_that_is_too_large_burns_the_keys_that_were_asked_for_and_is_not_asked_for_again(
    certificates: Certificates,
) -> None:
    async with (
        flooding(certificates, 200, announced=True) as url,
        asking(url, certificates, retry_attempts=3) as client,
    ):
        with pytest.raises(KMEBadReply, match="enc_keys: the reply is larger than"):
            await client.request_enc_keys("bob", number=4)
        assert client.accounts.totals()["burnt"] == 4


def test_the_limit_follows_number_and_size_and_has_a_ceiling() -> None:
    one, many = replies.max_reply_octets(1, 256), replies.max_reply_octets(100, 256)
    large = replies.max_reply_octets(100, 65_536)
    assert one < many < large < replies.MAX_REPLY_OCTETS
    assert one < 2**17
    assert replies.max_reply_octets(10**6, 10**6) == replies.MAX_REPLY_OCTETS


@pytest.mark.parametrize(("number", "bits"), [(1, 8), (1, 256), (128, 256), (1000, 256), (20, 1_000_000)])
def test_a_reply_with_all_that_was_asked_for_and_the_longest_names_fits(number: int, bits: int) -> None:
    keys = [
        {
            "key_ID": f"{each:256}".replace(" ", "é"),
            "key": base64.b64encode(bytes(place % 251 for place in range(bits // 8))).decode(),
            "key_ID_extension": {"route": list(range(20))},
            "key_extension": {"made": "2026-11-25T10:00:00Z", "bits": bits},
        }
        for each in range(number)
    ]
    body = json.dumps({"keys": keys, "key_container_extension": {"x": "y" * 1000}}, indent=1).encode()
    assert len(body) <= replies.max_reply_octets(number, bits)
    assert len(replies.keys_from_container(replies.json_body("k", body, number), at_most=number, size=bits)) == number


@pytest.mark.promise("A reply takes no more memory and time than its request asked for")
@pytest.mark.parametrize("item", ["{}", "[]", "0", '""', '{"a":{"a":[]}}'])
def test_a_reply_of_many_small_values_is_refused_before_it_is_parsed(
    item: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    body = ('{"keys":[' + f"{item}," * 50_000 + "0]}").encode()

    def parsed(*_: object) -> None:
        pytest.fail("it was parsed")

    monkeypatch.setattr("relay.keys.replies.json.loads", parsed)
    with pytest.raises(KMEBadReply, match="has more values than the keys asked for"):
        replies.json_body("k", body, 8)
    assert replies.count_of_keys(body, 8) is None
    assert replies.text_of_error(body, 8).text
    assert replies.key_IDs_in_error(body, ["a"]) == set()


async def test_what_a_reply_said_is_overwritten_once_its_keys_were_taken_out(kme: FakeKME) -> None:
    replies_: list[HTTPReply] = []
    async with kme.client() as client:
        real = client.transport.send

        async def kept(request: HTTPRequest, within: float, on_sent: Callable[[], None]) -> HTTPReply:
            replies_.append(await real(request, within, on_sent))
            return replies_[-1]

        client.transport.send = kept  # type: ignore[method-assign]
        assert len(await client.request_enc_keys("bob", number=4)) == 4
        kme.misbehave("enc_keys", "bad_base64")
        with pytest.raises(KMEBadReply):
            await client.request_enc_keys("bob", number=4)
    assert [len(each.body) > 4 * 44 for each in replies_] == [True, True]
    assert not any(any(each.body) for each in replies_)
