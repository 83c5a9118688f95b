"""Nothing is taken before TLS, nothing said before it counts after it, and a renewed certificate needs no restart.
Standard: RFC 3207, RFC 8314 3.3.
"""

from __future__ import annotations

import asyncio
import os
import signal
import ssl
from contextlib import AsyncExitStack

import pytest

from tests.integration.entry.submission.conftest import Server, Start, write_certificate
from tests.integration.entry.submission.program import b64, plain
from tests.testlib import mails
from tests.testlib.sink import Sink

BEFORE_TLS = ["PIPELINING", "SIZE 52428800", "8BITMIME", "SMTPUTF8", "ENHANCEDSTATUSCODES", "DSN", "STARTTLS"]
AFTER_TLS = [*BEFORE_TLS[:-1], "AUTH PLAIN LOGIN"]


def extensions(reply: str) -> list[str]:
    return [line[4:] for line in reply.split("\n")[1:]]


async def test_a_mail_program_submits_after_starttls(server: Server, sink: Sink) -> None:
    async with server.program() as program:
        assert program.greeting == "220 relay.alice.example ESMTP QuMail Relay"
        await program.secure()
        assert await program.log_in() == "235 2.7.0 Authentication successful"
        assert (await program.mail(mails.plain())).startswith("250 2.0.0 Ok")
    [got] = sink.got
    assert got.message.endswith(mails.plain())


async def test_a_mail_program_submits_over_tls_from_the_start(server: Server, sink: Sink) -> None:
    async with server.user() as program:
        assert (await program.mail(mails.eight_bit())).startswith("250 2.0.0 Ok")
    [got] = sink.got
    assert b"From: Ann" in got.message


@pytest.mark.parametrize("tls", [False, True])
async def test_received_says_that_it_came_over_tls_and_with_a_login_but_not_whose(
    server: Server, sink: Sink, tls: bool
) -> None:
    async with server.program(tls=tls) as program:
        _ = await program.ask("EHLO program.example") if tls else await program.secure()
        await program.log_in()
        await program.mail(mails.plain())
    trace = sink.got[0].message.partition(mails.plain())[0]
    assert b"from program.example ([127.0.0.1])" in trace
    assert b"with ESMTPSA id" in trace
    assert b"ann" not in trace


@pytest.mark.parametrize("tls", [False, True])
async def test_a_large_message_comes_through_whole(server: Server, sink: Sink, tls: bool) -> None:
    message = mails.random_attachment(3_000_000)
    message = b"Date: Wed, 25 Nov 2026 10:00:00 +0000\r\nMessage-ID: <2@alice.example>\r\n" + message
    async with server.program(tls=tls) as program:
        _ = await program.ask("EHLO program.example") if tls else await program.secure()
        await program.log_in()
        assert (await program.mail(message)).startswith("250")
    assert sink.got[0].message.endswith(message)


async def test_passwords_are_not_asked_for_before_tls(server: Server) -> None:
    async with server.program() as program:
        assert extensions(await program.ask("EHLO program.example")) == BEFORE_TLS
        assert extensions(await program.secure()) == AFTER_TLS
    async with server.program(tls=True) as program:
        assert extensions(await program.ask("EHLO program.example")) == AFTER_TLS


@pytest.mark.parametrize(
    "command", [f"AUTH PLAIN {plain('ann', 'correct horse')}", "AUTH PLAIN", f"AUTH LOGIN {b64('ann')}", "AUTH"]
)
async def test_a_login_before_tls_is_refused(server: Server, command: str) -> None:
    async with server.program() as program:
        await program.ask("EHLO program.example")
        assert (await program.ask(command)).startswith("538 5.7.11 ")
        assert await program.ask("MAIL FROM:<ann@alice.example>") == "530 5.7.0 Must issue a STARTTLS command first"


async def test_mail_before_a_login_is_refused(server: Server) -> None:
    async with server.program(tls=True) as program:
        await program.ask("EHLO program.example")
        assert await program.ask("MAIL FROM:<ann@alice.example>") == "530 5.7.0 Authentication required"
        assert (await program.ask("RCPT TO:<ben@bob.example>")).startswith("503 5.5.1 ")
        assert (await program.ask("DATA")).startswith("503 5.5.1 ")


async def test_what_was_said_before_tls_is_forgotten(server: Server) -> None:
    async with server.program() as program:
        await program.ask("EHLO program.example")
        await program.ask("STARTTLS")
        await program.start_tls()
        assert await program.ask("MAIL FROM:<ann@alice.example>") == "503 5.5.1 Send EHLO first"
        assert (await program.ask("AUTH PLAIN")).startswith("503 5.5.1 ")


async def test_commands_injected_before_the_handshake_are_discarded(server: Server) -> None:
    async with server.program() as program:
        await program.ask("EHLO program.example")
        await program.send(b"STARTTLS\r\nEHLO attacker.example\r\nNOOP\r\n" + b"RSET\r\n" * 1000)
        assert await program.reply() == "220 2.0.0 Ready to start TLS"
        await program.start_tls()
        # One reply for one command: nothing of the above is answered, and the EHLO in it has not counted.
        assert await program.ask("VRFY somebody") == "252 2.0.0 Send some mail, and see"
        assert await program.ask("MAIL FROM:<ann@alice.example>") == "503 5.5.1 Send EHLO first"


@pytest.mark.parametrize("tls", [False, True])
async def test_tls_cannot_begin_twice(server: Server, tls: bool) -> None:
    async with server.program(tls=tls) as program:
        _ = await program.ask("EHLO program.example") if tls else await program.secure()
        assert await program.ask("STARTTLS") == "503 5.5.1 The connection is secured already"


async def test_starttls_takes_no_parameter(server: Server) -> None:
    async with server.program() as program:
        await program.ask("EHLO program.example")
        assert await program.ask("STARTTLS now") == "501 5.5.4 Syntax: STARTTLS"


async def test_a_failed_handshake_ends_that_connection_and_no_other(server: Server) -> None:
    async with server.program() as program, server.program() as other:
        await program.ask("EHLO program.example")
        await program.ask("STARTTLS")
        await program.send(b"QUIT\r\n" * 100)
        assert not (await program.reply()).startswith(("2", "5"))
        assert (await other.secure()).startswith("250")


@pytest.mark.parametrize("tls", [False, True])
async def test_tls_older_than_1_2_is_refused(server: Server, tls: bool) -> None:
    server.trust.set_ciphers("DEFAULT@SECLEVEL=0")
    with pytest.warns(DeprecationWarning):
        server.trust.minimum_version = ssl.TLSVersion.TLSv1
        server.trust.maximum_version = ssl.TLSVersion.TLSv1_1
    with pytest.raises((ssl.SSLError, ConnectionError)):
        await _certificate_at(server, tls=tls)
    server.trust.maximum_version = ssl.TLSVersion.TLSv1_2
    assert await _certificate_at(server, tls=tls)


@pytest.mark.parametrize("name", ["relay.pem", "relay.key"])
async def test_a_certificate_that_cannot_be_used_leaves_the_one_before(
    server: Server, name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    before = await _certificates(server)
    (server.directory / name).write_text("not PEM")
    os.kill(os.getpid(), signal.SIGHUP)
    async with asyncio.timeout(60):
        while "certificate_not_reloaded" not in (said := capsys.readouterr().out):
            await asyncio.sleep(0.02)
    assert name in said
    assert await _certificates(server) == before


async def test_a_renewed_certificate_is_taken_on_sighup_and_no_connection_is_lost(server: Server, sink: Sink) -> None:
    before = await _certificates(server)
    async with server.program() as waiting, server.user() as logged_in:
        write_certificate(server.directory, server.ca)
        os.kill(os.getpid(), signal.SIGHUP)
        async with asyncio.timeout(60):
            while (after := await _certificates(server))[1] == before[1]:
                assert before[0] == before[1]
        assert (await _certificates(server))[0] == after[1]
        assert (await waiting.secure()).startswith("250")
        assert (await logged_in.mail(mails.plain())).startswith("250")
    assert len(sink.got) == 1


async def _certificates(server: Server) -> tuple[bytes, bytes]:
    """What a new connection to each port is shown."""
    return await _certificate_at(server, tls=False), await _certificate_at(server, tls=True)


async def _certificate_at(server: Server, *, tls: bool) -> bytes:
    async with server.program(tls=tls) as program:
        if not tls:
            await program.secure()
        return program.certificate


async def test_a_client_that_stops_in_the_handshake_holds_nobody_up(server: Server) -> None:
    _, silent = await asyncio.open_connection(*server.submission_tls)
    async with server.user() as program:
        assert await program.ask("NOOP") == "250 2.0.0 Ok"
    silent.transport.abort()


@pytest.mark.parametrize("octets", [b"GET / HTTP/1.0\r\n\r\n", b"\x16\x03\x01\x02\x00", b""])
@pytest.mark.parametrize("tls", [False, True])
async def test_a_failed_handshake_leaves_no_connection_counted(start: Start, octets: bytes, *, tls: bool) -> None:
    async with start("connections_per_client = 2\ntrusted = []") as server:
        for _ in range(3):
            await _fail_in_the_handshake(server, octets, tls=tls)
        async with asyncio.timeout(60):
            while not await _is_greeted(server):
                await asyncio.sleep(0.01)


async def _fail_in_the_handshake(server: Server, octets: bytes, *, tls: bool) -> None:
    reader, writer = await asyncio.open_connection(*(server.submission_tls if tls else server.submission))
    try:
        if not tls:
            writer.write(b"EHLO program.example\r\nSTARTTLS\r\n")
            while not (line := await reader.readline()).startswith(b"220 2.0.0"):
                assert line.startswith((b"220 ", b"250")), line
        writer.write(octets)
        await writer.drain()
    finally:
        writer.close()


async def _is_greeted(server: Server) -> bool:
    async with server.program() as program:
        return program.greeting.startswith("220")


async def test_connections_count_before_they_have_begun_tls(start: Start) -> None:
    """Else one client could hold as many of them as there are file descriptors."""
    async with start("connections_per_client = 2\ntrusted = []") as server, AsyncExitStack() as stack:
        for _ in range(2):
            _, writer = await asyncio.open_connection(*server.submission_tls)
            stack.callback(writer.close)
        with pytest.raises((OSError, EOFError)):  # TLS errors are of this kind
            await stack.enter_async_context(server.program(tls=True))
