"""What the relay makes of a next hop's behaviour after it has accepted a mail.
Standard: RFC 5321, 4.1.1.4 and 6.1: with 250 after the content the mail is the next hop's, whatever follows.
"""

from __future__ import annotations

import asyncio

import pytest
from aiosmtplib import SMTPResponse
from aiosmtplib.protocol import SMTPProtocol

from relay.config import Address
from relay.forward import NextHop
from relay.mail import Envelope, Mail, Recipient


async def _accepts_and_hangs_up(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    writer.write(b"220 next.example\r\n")
    for reply in (b"250 next.example", b"250 Ok", b"250 Ok", b"354 Go on"):
        await reader.readline()
        writer.write(reply + b"\r\n")
    await reader.readuntil(b"\r\n.\r\n")
    writer.write(b"250 Ok: queued\r\n")
    writer.close()
    await writer.wait_closed()


async def test_a_connection_that_is_gone_before_we_have_read_the_acceptance_still_accepted(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    gone = asyncio.Event()
    lost, read = SMTPProtocol.connection_lost, SMTPProtocol.read_response

    def connection_lost(self: SMTPProtocol, error: Exception | None) -> None:
        lost(self, error)
        gone.set()

    async def read_response(self: SMTPProtocol, timeout: float | None = None) -> SMTPResponse:
        reply = await read(self, timeout)
        if "queued" in reply.message:
            await gone.wait()
        return reply

    monkeypatch.setattr(SMTPProtocol, "connection_lost", connection_lost)
    monkeypatch.setattr(SMTPProtocol, "read_response", read_response)
    async with await asyncio.start_server(_accepts_and_hangs_up, "127.0.0.1", 0) as server:
        next_hop = NextHop(Address(*server.sockets[0].getsockname()), "relay.example", timeout=10)
        envelope = Envelope("ann@alice.example", (Recipient("ben@bob.example"),))
        assert (await next_hop.deliver(Mail(envelope, b"Subject: x\r\n\r\ntext\r\n"))).answer == "Ok: queued"


async def test_a_next_hop_that_hangs_up_right_after_accepting_has_accepted() -> None:
    async with await asyncio.start_server(_accepts_and_hangs_up, "127.0.0.1", 0) as server:
        next_hop = NextHop(Address(*server.sockets[0].getsockname()), "relay.example", timeout=10)
        envelope = Envelope("ann@alice.example", (Recipient("ben@bob.example"),))
        assert (await next_hop.deliver(Mail(envelope, b"Subject: x\r\n\r\ntext\r\n"))).answer == "Ok: queued"
