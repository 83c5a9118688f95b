"""A mail program that says exactly what it is told, over TCP and TLS, and gives back each reply.
Standard: RFC 5321 4.2 (replies), RFC 3207 (STARTTLS); the server's certificate is verified.
"""

from __future__ import annotations

import asyncio
import base64
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from relay.config import TCPAddress


class MailProgram:
    """One connection; `greeting` is the first reply."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, trust: ssl.SSLContext) -> None:
        self._reader, self._writer, self._trust = reader, writer, trust
        self.greeting = ""

    @property
    def transport(self) -> asyncio.WriteTransport:
        return self._writer.transport

    @property
    def certificate(self) -> bytes:
        """What the server has shown."""
        connection = self.transport.get_extra_info("ssl_object")
        assert isinstance(connection, ssl.SSLObject)
        return connection.getpeercert(binary_form=True) or b""

    async def ask(self, line: str | bytes) -> str:
        """Sends a line and gives its reply."""
        await self.send((line.encode() if isinstance(line, str) else line) + b"\r\n")
        return await self.reply()

    async def send(self, octets: bytes) -> None:
        self._writer.write(octets)
        await self._writer.drain()

    async def reply(self) -> str:
        """The next reply with all its lines; "" when the server has closed the connection."""
        lines = []
        async with asyncio.timeout(60):
            while True:
                line = (await self._reader.readline()).decode().removesuffix("\r\n")
                lines.append(line)
                if line[3:4] != "-":
                    return "\n".join(lines)

    async def start_tls(self) -> None:
        """The handshake, once the server has said that it is ready."""
        await self._writer.start_tls(self._trust, server_hostname="relay.alice.example")

    async def secure(self) -> str:
        """STARTTLS, the handshake, and the second EHLO, whose reply it gives."""
        assert (await self.ask("EHLO program.example")).startswith("250")
        assert await self.ask("STARTTLS") == "220 2.0.0 Ready to start TLS"
        await self.start_tls()
        return await self.ask("EHLO program.example")

    async def log_in(self, name: str = "ann", password: str = "correct horse") -> str:
        return await self.ask(f"AUTH PLAIN {plain(name, password)}")

    async def mail(
        self, message: bytes, sender: str = "ann@alice.example", recipients: tuple[str, ...] = ("ben@bob.example",)
    ) -> str:
        """The reply to the content, or the first one that was not the expected."""
        for command in (f"MAIL FROM:<{sender}>", *(f"RCPT TO:<{recipient}>" for recipient in recipients), "DATA"):
            reply = await self.ask(command)
            if reply[:3] not in ("250", "354"):
                return reply
        await self.send(message + b".\r\n")
        return await self.reply()


@asynccontextmanager
async def connected(
    address: TCPAddress, trust: ssl.SSLContext, *, tls: bool = False, local_host: str = "127.0.0.1"
) -> AsyncIterator[MailProgram]:
    """A program at `local_host` that has connected and heard the greeting; with `tls` the connection begins with TLS."""
    reader, writer = await asyncio.open_connection(
        address.host,
        address.port,
        ssl=trust if tls else None,
        server_hostname="relay.alice.example" if tls else None,
        local_addr=(local_host, 0),
    )
    program = MailProgram(reader, writer, trust)
    try:
        program.greeting = await program.reply()
        yield program
    finally:
        program.transport.abort()


def plain(name: str, password: str, acting_for: str = "") -> str:
    """The response of AUTH PLAIN."""
    return base64.b64encode(f"{acting_for}\0{name}\0{password}".encode()).decode()


def b64(text: str) -> str:
    return base64.b64encode(text.encode()).decode()
