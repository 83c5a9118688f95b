"""Whatever is done to the address of [status], mail goes on: connections, descriptors, memory and time are bounded.
Standard: no input holds the event loop; what does not end by itself is ended.
"""

from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import AsyncIterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import pytest

from relay.config import TCPAddress
from relay.counting import metrics
from relay.counting.board import Board
from relay.kme import DevelopmentKMEs
from relay.process import app
from relay.status import server
from relay.status.exposition import Exposition
from tests.testlib import mails
from tests.testlib.loop_clock import loop_clock, slow
from tests.testlib.sink import Sink
from tests.testlib.sites import make_site
from tests.testlib.status_numbers import StatusNumbers, asked, with_status
from tests.testlib.submit import submit

GET = b"GET /metrics HTTP/1.1\r\nHost: localhost\r\n\r\n"


@dataclass
class Relay:
    outgoing: TCPAddress
    status: TCPAddress


@pytest.fixture
async def relay(
    tmp_path: Path, kmes: DevelopmentKMEs, sink: Sink, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[Relay]:
    monkeypatch.setattr(server, "REQUEST_S", 0.5)
    monkeypatch.setattr(server, "ANSWER_S", 0.5)
    alice = make_site(tmp_path / "alice", "alice", state=kmes.state_dir, kme_url=kmes.urls[0], outgoing=sink.address)
    async with app.running(with_status(alice).config) as addresses:
        yield Relay(addresses["outgoing"], addresses["status"])


def descriptors() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


async def ended(reader: asyncio.StreamReader) -> bytes:
    """All that came, once the relay has closed the connection."""
    async with asyncio.timeout(20):
        try:
            return await reader.read()
        except ConnectionError:
            return b""


async def test_idle_connections_leave_descriptors_for_mail_and_end(
    relay: Relay, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(server, "MOST_CONNECTIONS", 50)
    before = descriptors()
    connections = [await asyncio.open_connection(*relay.status) for _ in range(150)]
    for number in range(5):
        assert (await submit(relay.outgoing, mails.plain().replace(b"<1@", b"<%d@" % number))).code == 250
    ours = len(connections)
    assert descriptors() < before + ours + 80, "of which the relay has 50, and the store some"
    for reader, writer in connections:
        assert await ended(reader) == b""
        writer.close()
    assert StatusNumbers.of(await asked(relay.status)).sum("qumail_mails_total") == 5


async def test_a_probe_is_answered_while_as_many_are_connected_as_may_be_and_those_who_are_answered_stay(
    relay: Relay, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(server, "MOST_CONNECTIONS", 20)
    monkeypatch.setattr(server, "REQUEST_S", 100.0)
    first, writer = await asyncio.open_connection(*relay.status)
    writer.write(GET.replace(b"/metrics", b"/events"))
    assert await first.readline() == b"HTTP/1.1 200 OK\r\n"
    idle = [await asyncio.open_connection(*relay.status) for _ in range(40)]
    for _ in range(30):
        assert await asked(relay.status, "/healthz") == "ok\n"
    assert not first.at_eof(), "a client that asked for something keeps it"
    for _, each in (*idle, (first, writer)):
        each.close()


@pytest.mark.parametrize(
    "sent",
    [
        b"", b"G", b"GET /metrics HTTP/1.1\r\n", b"GET /metrics HTTP/1.1\r\nHost: localhost\r\nX: ",
        b"POST /metrics HTTP/1.1\r\nHost: localhost\r\nContent-Length: 1000000\r\n\r\nx",
        b"POST /metrics HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nab",
        GET[:-2] + b"Expect: 100-continue\r\nContent-Length: 10\r\n\r\n",
    ],
)  # fmt: skip
async def test_a_request_that_does_not_come_whole_ends(relay: Relay, sent: bytes) -> None:
    reader, writer = await asyncio.open_connection(*relay.status)
    writer.write(sent)
    await ended(reader)
    writer.close()


async def test_a_request_that_comes_octet_by_octet_ends(relay: Relay) -> None:
    reader, writer = await asyncio.open_connection(*relay.status)
    over = asyncio.create_task(ended(reader))
    while not over.done():
        writer.write(b"G")
        await asyncio.sleep(0.01)
    writer.close()


@pytest.mark.parametrize(
    "sent",
    [
        b"GET /" + b"x" * 1_000_000, b"GET / HTTP/1.1\r\nX: " + b"y" * 1_000_000,
        b"GET / HTTP/1.1\r\n" + b"".join(b"X%d: y\r\n" % number for number in range(100_000)),
        os.urandom(1_000_000), b"\x16\x03\x01" + b"\x00" * 100_000, b"EHLO x\r\nMAIL FROM:<>\r\n" * 1000,
        b"\r\n" * 500_000, b"GET / HTTP/1.1\r\nContent-Length: -1\r\n\r\n", b"GET / HTTP/9.9\r\n\r\n",
    ],
    ids=range(9),
)  # fmt: skip
async def test_nonsense_is_refused_and_costs_little(
    relay: Relay, sent: bytes, capfd: pytest.CaptureFixture[str]
) -> None:
    reader, writer = await asyncio.open_connection(*relay.status)
    writer.write(sent)
    answer = await ended(reader)
    assert answer == b"" or answer.startswith((b"HTTP/1.1 400", b"HTTP/1.0 400", b"HTTP/1.1 404", b"HTTP/1.1 421"))
    assert len(answer) < 1000, "nothing of it is said back"
    writer.close()
    out, err = capfd.readouterr()
    assert "Traceback" not in out + err, "and nobody fills the log with it"
    assert (await submit(relay.outgoing, mails.plain())).code == 250


async def test_who_does_not_read_the_answer_is_left(relay: Relay, monkeypatch: pytest.MonkeyPatch) -> None:
    number = 2 * server.ANSWERS_AT_ONCE
    large = iter([b"x" * 30_000_000] * number)

    async def text(_: Exposition) -> bytes:
        return next(large, b"theirs")  # a large one to who reads would have to be read within ANSWER_S

    monkeypatch.setattr(Exposition, "text", text)
    with ExitStack() as stack:
        for _ in range(number):
            connection = stack.enter_context(socket.create_connection(relay.status))
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            connection.sendall(GET)
        assert await asked(relay.status) == "theirs", "others have their turn"


@pytest.mark.promise("A liveness probe is answered")
@pytest.mark.parametrize("path", ["/healthz", "/readyz"])
@pytest.mark.parametrize("number", [60, server.MOST_CONNECTIONS + 20])
async def test_a_probe_is_answered_while_clients_do_not_read_their_answers(
    relay: Relay, monkeypatch: pytest.MonkeyPatch, number: int, path: str
) -> None:
    async def much(_: Exposition) -> bytes:
        return b"x" * 30_000_000

    monkeypatch.setattr(Exposition, "text", much)
    monkeypatch.setattr(server, "ANSWER_S", 1000.0)
    await asked(relay.status, path)
    slow_ones = []
    for _ in range(number):
        connection = socket.socket()
        connection.setblocking(False)
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        await asyncio.get_running_loop().sock_connect(connection, relay.status)
        await asyncio.get_running_loop().sock_sendall(connection, GET)
        slow_ones.append(connection)
    async with asyncio.timeout(60):
        for _ in range(5):
            assert await asked(relay.status, path)
    for each in slow_ones:
        each.close()


async def test_a_probe_is_answered_while_others_connect_and_ask_half_a_request_all_the_time(relay: Relay) -> None:
    """More connections came than were accepted, and a probe stood behind all of them."""

    async def connects_again_and_again() -> None:
        loop = asyncio.get_running_loop()
        while True:
            with socket.socket() as connection:
                connection.setblocking(False)
                await loop.sock_connect(connection, relay.status)
                await loop.sock_sendall(connection, b"GET /heal")
                await asyncio.sleep(0.2)

    others = [asyncio.create_task(connects_again_and_again()) for _ in range(60)]
    try:
        await asyncio.sleep(3)
        async with asyncio.timeout(3):
            assert await asked(relay.status, "/healthz")
    finally:
        for each in others:
            each.cancel()
        await asyncio.gather(*others, return_exceptions=True)


async def test_who_asks_all_the_time_has_slow_answers(relay: Relay, monkeypatch: pytest.MonkeyPatch) -> None:
    reader, writer = await asyncio.open_connection(*relay.status)
    writer.write(GET.replace(b"/metrics", b"/healthz") * 1000)
    loop = asyncio.get_running_loop()
    began, answers = loop.time(), 0
    while answers < server.BURST_OF_ONE + 5:
        answers += (await reader.read(65536)).count(b"HTTP/1.1 200")
    assert loop.time() - began >= 4 / server.OF_ONE_A_SECOND
    assert (await submit(relay.outgoing, mails.plain())).code == 250
    writer.close()


async def test_writing_much_holds_the_loop_for_some_milliseconds_only() -> None:
    board = Board()
    for number in range(2000):
        for outcome in ("delivered", "held"):
            board.add(metrics.MAILS, "outgoing", "smtp", f"peer{number}", "aes", outcome)
    for number in range(300):
        board.spread(metrics.KME_SECONDS, f"kme{number}", "status").observe(1)

    async def written() -> None:
        text = (await Exposition(board).text()).decode()
        assert StatusNumbers.of(text).sum("qumail_mails_total") == 4000
        assert text.count("# TYPE qumail_mails_total") == 1

    with loop_clock() as clock:
        assert await slow(clock, "writing", written, allowed=1) is None
        await Exposition(board).text()
    assert clock.slowest < 0.02, clock.where


async def test_the_text_is_not_written_more_often_than_costs_little() -> None:
    board = Board()
    exposition = Exposition(board)
    for number in range(1000):
        board.add(metrics.MAILS, "outgoing", "smtp", f"peer{number}", "aes", "delivered")
    first = await exposition.text()
    board.add(metrics.MAILS, "outgoing", "smtp", "peer0", "aes", "delivered")
    assert await exposition.text() is first
    exposition._not_before = 0.0
    assert StatusNumbers.of((await exposition.text()).decode()).sum("qumail_mails_total") == 1001
