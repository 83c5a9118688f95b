"""What the relay is compared with: aiosmtpd as it comes, whose handler sends on with aiosmtplib as it comes.
Standard: RFC 5321, by those two libraries; nothing is sealed, a connection to the next hop for each mail.
"""

from __future__ import annotations

import asyncio
import sys

import aiosmtplib
import uvloop
from aiosmtpd.smtp import SMTP, Envelope, Session

from relay.bench.processes import serve


class Handler:
    """Sends each mail on before it is accepted, as the relay does."""

    def __init__(self, port: int) -> None:
        """`port` is the next hop's, on this host."""
        self._port = port

    async def handle_DATA(self, server: SMTP, session: Session, envelope: Envelope) -> str:
        """What aiosmtpd calls when it has the whole content."""
        assert envelope.mail_from is not None  # noqa: S101 - aiosmtpd has checked
        assert isinstance(envelope.content, bytes)  # noqa: S101 - decode_data is off
        await aiosmtplib.send(
            envelope.content,
            sender=envelope.mail_from,
            recipients=envelope.rcpt_tos,
            hostname="127.0.0.1",
            port=self._port,
            # Without a name of its own aiosmtplib looks one up for each connection: that would measure DNS.
            local_hostname="pass-through.example",
        )
        return "250 OK"


async def _serve(next_hop: int) -> None:
    handler, loop = Handler(next_hop), asyncio.get_running_loop()
    await serve(lambda: SMTP(handler, hostname="pass-through.example", enable_SMTPUTF8=True, loop=loop))


if __name__ == "__main__":
    uvloop.run(_serve(int(sys.argv[1])))
