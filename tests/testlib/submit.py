"""Speaks to a relay as a mail server does and gives back every reply, for asserting on it.
Standard: RFC 5321, by aiosmtplib, with the content sent exactly as it is given.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import aiosmtplib

from relay.config import Address
from relay.forward import stuffed


@dataclass(frozen=True)
class Reply:
    """A reply's code and text (which begins with the enhanced status)."""

    code: int
    text: str

    def __str__(self) -> str:
        return f"{self.code} {self.text}"


async def submit(
    address: Address,
    message: bytes,
    *,
    sender: str = "ann@alice.example",
    recipients: Sequence[str] = ("ben@bob.example",),
    options: Sequence[str] = (),
) -> Reply:
    """The reply to the end of data, or the first reply that was not the expected one."""
    client = aiosmtplib.SMTP(
        hostname=address.host, port=address.port, local_hostname="client.example", start_tls=False, timeout=60
    )
    await client.connect()
    try:
        await client.ehlo()
        commands = [
            " ".join([f"MAIL FROM:<{sender}>", *options]),
            *(f"RCPT TO:<{recipient}>" for recipient in recipients),
            "DATA",
        ]
        for command in commands:
            reply = await client.execute_command(command.encode())
            if reply.code not in (250, 354):
                return Reply(reply.code, reply.message)
        assert client.protocol is not None
        client.protocol.write(stuffed(message))
        reply = await client.protocol.read_response(timeout=60)
        return Reply(reply.code, reply.message)
    finally:
        client.close()
