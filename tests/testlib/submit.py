"""Speaks to a relay as a mail server does and gives back every reply, for asserting on it.
Standard: RFC 5321 and RFC 2033, by aiosmtplib and bare sockets, with the content sent exactly as it is given.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass

import aiosmtplib

from relay.config import TCPAddress
from relay.forward import stuffed


@dataclass(frozen=True)
class SMTPReply:
    """A reply's code and text (which begins with the enhanced status)."""

    code: int
    text: str

    def __str__(self) -> str:
        return f"{self.code} {self.text}"


async def submit(
    address: TCPAddress,
    message: bytes,
    *,
    sender: str = "ann@alice.example",
    recipients: Sequence[str] = ("ben@bob.example",),
    options: Sequence[str] = (),
    parameters: Mapping[str, str] = {},
) -> SMTPReply:
    """The reply to the end of data, or the first reply that was not the expected one.

    `options` are parameters of MAIL FROM, `parameters` those of RCPT TO by recipient.
    """
    client = aiosmtplib.SMTP(
        hostname=address.host, port=address.port, local_hostname="client.example", start_tls=False, timeout=60
    )
    await client.connect()
    try:
        await client.ehlo()
        commands = [
            " ".join([f"MAIL FROM:<{sender}>", *options]),
            *(f"RCPT TO:<{recipient}> {parameters.get(recipient, '')}".rstrip() for recipient in recipients),
            "DATA",
        ]
        for command in commands:
            reply = await client.execute_command(command.encode())
            if reply.code not in (250, 354):
                return SMTPReply(reply.code, reply.message)
        assert client.protocol is not None
        client.protocol.write(b"".join(stuffed(message)))
        reply = await client.protocol.read_response(timeout=60)
        return SMTPReply(reply.code, reply.message)
    finally:
        client.close()


async def until_settled(
    address: TCPAddress,
    message: bytes,
    *,
    sender: str = "ann@alice.example",
    recipients: Sequence[str] = ("ben@bob.example",),
    options: Sequence[str] = (),
) -> SMTPReply:
    """As `submit`, again and again while the mail is said to be under way: it is noted after the reply who has it."""
    async with asyncio.timeout(30):
        while True:
            reply = await submit(address, message, sender=sender, recipients=recipients, options=options)
            if "being delivered already" not in reply.text:
                return reply


async def submit_lmtp(
    address: TCPAddress,
    message: bytes,
    *,
    sender: str = "ann@alice.example",
    recipients: Sequence[str] = ("ben@bob.example",),
    options: Sequence[str] = (),
) -> list[SMTPReply]:
    """A reply for each recipient: that to its RCPT where it was not accepted, else its own one to the content."""
    async with talking(address) as talk:
        await talk.say("LHLO client.example")
        mail = await talk.say(" ".join([f"MAIL FROM:<{sender}>", *options]))
        if mail.code != 250:
            return [mail] * len(recipients)
        replies = [await talk.say(f"RCPT TO:<{recipient}>") for recipient in recipients]
        if not any(reply.code == 250 for reply in replies):
            return replies
        data = await talk.say("DATA")
        if data.code != 354:
            return [data if reply.code == 250 else reply for reply in replies]
        await talk.send(b"".join(stuffed(message)))
        return [await talk.reply() if reply.code == 250 else reply for reply in replies]


class Talk:
    """One connection to a mail server, octet for octet."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader, self.writer = reader, writer

    async def send(self, octets: bytes) -> None:
        """Sends exactly these."""
        self.writer.write(octets)
        await self.writer.drain()

    async def reply(self) -> SMTPReply:
        """The next whole reply, its lines joined by line feeds. Raises IncompleteReadError where none comes."""
        lines: list[str] = []
        async with asyncio.timeout(60):
            while True:
                line = (await self.reader.readuntil(b"\n")).decode().rstrip("\r\n")
                lines.append(line[4:])
                if line[3:4] != "-":
                    return SMTPReply(int(line[:3]), "\n".join(lines))

    async def say(self, command: str) -> SMTPReply:
        """The reply to one command."""
        await self.send(command.encode("utf-8", "surrogateescape") + b"\r\n")
        return await self.reply()

    async def begin(self, *recipients: str, hello: str = "EHLO") -> None:
        """Everything up to and with the 354."""
        for command in (
            f"{hello} client.example",
            "MAIL FROM:<ann@alice.example>",
            *(f"RCPT TO:<{recipient}>" for recipient in recipients or ("ben@bob.example",)),
        ):
            reply = await self.say(command)
            assert reply.code == 250, reply
        reply = await self.say("DATA")
        assert reply.code == 354, reply

    async def ended(self) -> bool:
        """Waits until the server has closed the connection; whether it had no more to say."""
        async with asyncio.timeout(60):
            try:
                return not await self.reader.read()
            except ConnectionError:
                return True


@asynccontextmanager
async def talking(address: TCPAddress) -> AsyncIterator[Talk]:
    """A connection whose greeting has been read; closed at the end without goodbye."""
    reader, writer = await asyncio.open_connection(*address)
    talk = Talk(reader, writer)
    try:
        reply = await talk.reply()
        assert reply.code == 220, reply
        yield talk
    finally:
        writer.close()
