"""Requests that are no proper ones: whatever a client sends, the answer has the form of the standard.
Standard: ETSI GS QKD 014 V1.1.1 (its error body).
"""

from __future__ import annotations

import asyncio
import zlib
from collections.abc import AsyncIterator
from io import BytesIO
from pathlib import Path
from typing import Any

import pytest
import structlog.testing

from relay.kme import requests
from tests.integration.kme.clients import KM1, Site, ids, repr_start, running, tls


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (b"", "request body shall be JSON"),
        (b"{", "request body shall be JSON"),
        (b"\xff\xfe{}", "request body shall be JSON"),
        ('{"number": 1}'.encode("utf-16"), "request body shall be JSON"),
        (b'{"number": 1, "number": 2}', "request body shall be JSON"),
        (b'{"number": NaN}', "request body shall be JSON"),
        (b'{"number": ' + b"9" * 5000 + b"}", "request body shall be JSON"),
        (b"[" * 60_000, "request body shall be JSON"),
        (b"[]", "request body shall be a JSON object"),
        (b"null", "request body shall be a JSON object"),
        (b'"number"', "request body shall be a JSON object"),
        (b"{" + b" " * (64 * 1024) + b"}", "request body shall be at most 65536 octets"),
        (b"\0" * 3_000_000, "request body shall be at most 65536 octets"),
    ],
    ids=repr_start,
)
@pytest.mark.parametrize("call", ["1/enc_keys", "1/dec_keys"])
async def test_a_garbage_body_is_answered_with_400_and_the_error_body(
    site: Site, call: str, body: bytes, message: str
) -> None:
    answer = await site.alice.post_raw(call, body)
    assert (answer.status, answer.message) == (400, message)


async def test_a_body_of_exactly_the_limit_is_read(site: Site) -> None:
    body = b'{"number": 2}'.ljust(64 * 1024)
    assert len((await site.alice.post_raw("1/enc_keys", body)).keys) == 2


async def test_a_bomb_of_compressed_spaces_is_not_unpacked(site: Site) -> None:
    bomb = zlib.compress(b" " * 50_000_000)
    assert len(bomb) < 64 * 1024
    headers = {"Content-Type": "application/json", "Content-Encoding": "deflate"}
    answer = await site.alice.request("POST", "1/enc_keys", data=BytesIO(bomb), headers=headers)
    assert (answer.status, answer.message) == (400, "request body shall be at most 65536 octets")


async def test_a_body_with_broken_chunks_never_gets_a_page_or_a_traceback(site: Site) -> None:
    head = (
        "POST /api/v1/keys/1/enc_keys HTTP/1.1\r\nHost: localhost\r\n"
        "Content-Type: application/json\r\nTransfer-Encoding: chunked\r\n\r\n"
    )
    port = int(site.kmes.urls[KM1].rpartition(":")[2])
    context = tls(site.kmes.state_dir, "sae-2")
    reader, writer = await asyncio.open_connection("localhost", port, ssl=context)
    writer.write(head.encode() + b"2\r\n{}\r\nnot a length\r\n\r\n")
    answer = await reader.read()
    writer.close()
    assert answer[:13] in (b"HTTP/1.0 400 ", b"")  # said by aiohttp, below our reach, or just hung up
    assert b"<" not in answer
    assert b"Traceback" not in answer


async def test_a_body_that_does_not_come_is_not_waited_for_without_end(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(requests, "BODY_TIMEOUT", 0)

    async def never_ending() -> AsyncIterator[bytes]:
        yield b"{"
        await asyncio.Event().wait()

    answer = await site.alice.request(
        "POST", "1/enc_keys", data=never_ending(), headers={"Content-Type": "application/json"}
    )
    assert (answer.status, answer.message) == (400, "request body did not come as its header announced")


async def test_another_content_type_is_refused_by_name(site: Site) -> None:
    answer = await site.alice.post_raw("1/enc_keys", b"{}", "application/x-www-form-urlencoded")
    assert (answer.status, answer.message) == (400, "Content-Type shall be application/json")


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "1/no_such_call", 404),
        ("GET", "1/status/", 404),
        ("POST", "1/status", 405),
        ("PUT", "1/enc_keys", 405),
        ("DELETE", "1/dec_keys", 405),
    ],
)
async def test_wrong_paths_and_methods_have_the_error_body_too(site: Site, method: str, path: str, status: int) -> None:
    answer = await site.alice.request(method, path)
    assert answer.status == status
    assert answer.message
    assert ("Allow" in answer.headers) == (status == 405)


async def test_head_uses_no_key_up(site: Site) -> None:
    assert (await site.alice.request("HEAD", "1/enc_keys")).status == 405
    assert site.kmes.link.issued == {}


async def test_our_own_fault_is_a_503_that_tells_nothing(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(**_: Any) -> None:
        raise RuntimeError("inner secret")

    monkeypatch.setattr(site.kmes.link, "issue", broken)
    with structlog.testing.capture_logs() as logs:
        answer = await site.alice.get("1/enc_keys")
    assert (answer.status, answer.message) == (503, "error on the server side")
    assert b"secret" not in answer.raw
    assert [entry["event"] for entry in logs] == ["kme_fault"]
    assert "RuntimeError" in logs[0]["trace"]
    assert not any("exc_info" in entry for entry in logs)  # a log with frames would show their keys


async def test_the_log_says_not_quantum_at_the_start_and_never_has_a_key(tmp_path: Path) -> None:
    with structlog.testing.capture_logs() as logs:
        async with running(tmp_path) as site:
            issued = await site.alice.get("1/enc_keys", number=3)
            await site.bob.post("2/dec_keys", ids(*issued.keys))
            await site.bob.post("9/dec_keys", ids(*issued.keys))
    started = [entry for entry in logs if entry["event"] == "kme_started"]
    assert [(entry["kme"], entry["quantum"]) for entry in started] == [("KM1", False), ("KM2", False)]
    assert [entry["kme"] for entry in logs if entry["event"] == "kme_unauthorized"] == ["KM2"]
    assert not [key["key"] for key in issued.body["keys"] if key["key"] in repr(logs)]
