"""Logins that Dovecot checks: a real one, and in its place a service that misbehaves and remembers what it was asked.
Standard: the Dovecot authentication protocol, version 1; RFC 4954 (454 where nobody can tell).
"""

from __future__ import annotations

import asyncio
import base64
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from relay.entry.smtp import dovecot as auth_dovecot
from tests.integration.entry.submission.conftest import Server, Start
from tests.testlib import mails
from tests.testlib.dovecot import PASSWORD, dovecot, requires_dovecot
from tests.testlib.sink import Sink

LOGGED_IN = "235 2.7.0 Authentication successful"
WRONG = "535 5.7.8 Authentication credentials invalid"
TEMPORARY = "454 4.7.0 Temporary authentication failure"

AUTH_SOCKET = """\
auth_failure_delay = 0
service auth {
  unix_listener auth-relay {
    mode = 0666
  }
}
"""


@requires_dovecot
async def test_users_of_a_real_dovecot_submit(start: Start, sink: Sink) -> None:
    async with (
        dovecot(users=("ann@alice.example", "ben"), more=AUTH_SOCKET) as mail_server,
        start(users_setting=f'dovecot_auth = "{mail_server.directory}/run/auth-relay"') as server,
    ):
        async with server.user("ann@alice.example", PASSWORD) as program:
            assert (await program.ask("MAIL FROM:<boss@alice.example>")).startswith("553 5.7.1 ")
            assert (await program.mail(mails.plain())).startswith("250")
        async with server.user("ben", PASSWORD) as program:
            assert await program.ask("MAIL FROM:<ben@alice.example>") == "250 2.1.0 Ok"
        assert await _login(server, "ann@alice.example", "wrong") == WRONG
        assert await _login(server, "nobody", PASSWORD) == WRONG
        async with server.user("Ben", PASSWORD) as program:
            # Dovecot folds names; what it has made of the name is the user.
            assert await program.ask("MAIL FROM:<ben@alice.example>") == "250 2.1.0 Ok"
    assert len(sink.got) == 1


@requires_dovecot
async def test_a_real_dovecot_that_stops_is_a_temporary_failure(start: Start) -> None:
    async with AsyncExitStack() as stack:
        mail_server = await stack.enter_async_context(dovecot(users=("ann",), more=AUTH_SOCKET))
        socket = f"{mail_server.directory}/run/auth-relay"
        async with start("failed_logins = 1", users_setting=f'dovecot_auth = "{socket}"') as server:
            assert await _login(server, "ann", PASSWORD) == LOGGED_IN
            await stack.aclose()
            for _ in range(3):
                assert await _login(server, "ann", PASSWORD) == TEMPORARY


async def test_the_password_file_tells_the_addresses_where_dovecot_checks_the_password(
    start: Start, tmp_path: Path, users: str
) -> None:
    async with (
        service(tmp_path / "auth", "OK\t1\tuser=board@alice.example\n") as asked,
        start(users_setting=f'users = "users"\ndovecot_auth = "{asked.socket}"') as server,
        server.user("board@alice.example", "whatever") as program,
    ):
        assert await program.ask("MAIL FROM:<anybody@board.alice.example>") == "250 2.1.0 Ok"
        await program.ask("RSET")
        assert (await program.ask("MAIL FROM:<board@alice.example>")).startswith("553 5.7.1 ")


async def test_dovecot_is_asked_as_its_protocol_wants_it(start: Start, tmp_path: Path) -> None:
    async with service(tmp_path / "auth", "OK\t1\tuser=ann\tempty\n") as asked, _server(start, asked) as server:
        assert await _login(server, "ann", "pässword\t") == LOGGED_IN
    version, cpid, request = asked.got
    assert version == "VERSION\t1\t1"
    assert cpid.startswith("CPID\t")
    response = base64.b64encode("\0ann\0pässword\t".encode()).decode()
    assert request == f"AUTH\t1\tPLAIN\tservice=smtp\tnologin\trip=127.0.0.1\tsecured\tresp={response}"


@pytest.mark.parametrize(
    ("answer", "reply"),
    [
        ("OK\t1\n", LOGGED_IN),
        ("FAIL\t1\n", WRONG),
        ("FAIL\t1\tuser=ann\treason=no\1treason\tauthz\n", WRONG),
        ("FAIL\t1\tuser=ann\ttemp\n", TEMPORARY),
        ("FAIL\t1\tuser=ann\tcode=temp_fail\n", TEMPORARY),
        ("OK\t2\tuser=ann\n", TEMPORARY),
        ("CONT\t1\tUGFzc3dvcmQ6\n", TEMPORARY),
        ("\n", TEMPORARY),
        ("OK\t1\tuser=ann", TEMPORARY),
        ("", TEMPORARY),
        ("OK\t1\t" + "x" * 100_000 + "\n", TEMPORARY),
    ],
)
async def test_only_a_plain_ok_lets_a_user_in(start: Start, tmp_path: Path, answer: str, reply: str) -> None:
    async with service(tmp_path / "auth", answer) as asked, _server(start, asked) as server:
        assert await _login(server, "ann", "secret") == reply
        assert len(asked.got) == 3


@pytest.mark.parametrize(
    "handshake",
    [
        "VERSION\t2\t0\nMECH\tPLAIN\nDONE\n",
        "VERSION\t1\t1\nMECH\tCRAM-MD5\nDONE\n",
        "VERSION\t1\t1\nMECH\tPLAIN\n",
        "MECH\tPLAIN\n" * 1000,
        "220 mail.example ESMTP\r\n",
        "x" * 100_000,
        "",
    ],
)
async def test_what_is_not_dovecot_gets_no_password(start: Start, tmp_path: Path, handshake: str) -> None:
    async with service(tmp_path / "auth", "OK\t1\n", handshake) as asked, _server(start, asked) as server:
        assert await _login(server, "ann", "secret") == TEMPORARY
    assert not any(line.startswith("AUTH") for line in asked.got)


async def test_a_dovecot_that_says_nothing_is_waited_for_only_so_long(
    start: Start, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(auth_dovecot, "PATIENCE_S", 0.1)
    async with service(tmp_path / "auth", None) as asked, _server(start, asked) as server:
        assert await _login(server, "ann", "secret") == TEMPORARY


@dataclass
class Asked:
    """What a service in Dovecot's place was sent, line by line."""

    socket: Path
    got: list[str] = field(default_factory=list)


@asynccontextmanager
async def service(
    socket: Path, answer: str | None, handshake: str = "VERSION\t1\t1\nMECH\tPLAIN\tplaintext\nDONE\n"
) -> AsyncIterator[Asked]:
    """Says its handshake, answers each AUTH and closes the connection; with None it waits for ever instead."""
    asked = Asked(socket)
    waiting: set[asyncio.StreamWriter] = set()

    async def connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        waiting.add(writer)
        writer.write(handshake.encode())
        if not handshake.endswith("DONE\n"):
            writer.write_eof()
        while line := await reader.readline():
            asked.got.append(line.decode().removesuffix("\n"))
            if line.startswith(b"AUTH") and answer is not None:
                writer.write(answer.encode())
                break
        else:
            return
        writer.close()

    async with await asyncio.start_unix_server(connected, socket):
        yield asked
        for writer in waiting:
            writer.transport.abort()


@asynccontextmanager
async def _server(start: Start, asked: Asked) -> AsyncIterator[Server]:
    async with start(users_setting=f'dovecot_auth = "{asked.socket}"') as server:
        yield server


async def _login(server: Server, name: str, password: str) -> str:
    async with server.program(tls=True) as program:
        await program.ask("EHLO program.example")
        return await program.log_in(name, password)
