"""Hands a mail to the next hop and returns only when the next hop has said what becomes of it.
Standard: RFC 5321 (SMTP client), RFC 3461 (DSN), RFC 6152 (8BITMIME), RFC 6531 (SMTPUTF8), RFC 1870 (SIZE).
"""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass

import aiosmtplib

from relay.config import Address
from relay.errors import NextHopRefused, NextHopUnavailable, RelayError
from relay.levels.content import off_loop
from relay.mail import Mail, Outcomes, Recipient


@dataclass(frozen=True, slots=True)
class Handed:
    """What a next hop has said: an outcome for each recipient, its own words of acceptance, and which one it was."""

    outcomes: Outcomes
    answer: str
    next_hop: str


class NextHop:
    """The SMTP server after us. A reply of 4xx holds the mail, 5xx refuses it, silence holds it."""

    def __init__(self, address: Address, hostname: str, timeout: float = 300.0) -> None:
        """`hostname` is what we say in EHLO; `timeout` is seconds for each command and its reply."""
        self.address = address
        self._hostname = hostname
        self._timeout = timeout

    async def deliver(self, mail: Mail) -> Handed:
        """What the next hop has said for each recipient. Raises NextHopUnavailable or NextHopRefused for all of them.

        Recipients that it does not accept do not stop the others.
        """
        client = aiosmtplib.SMTP(
            hostname=self.address.host,
            port=self.address.port,
            local_hostname=self._hostname,
            timeout=self._timeout,
            start_tls=False,
        )
        try:
            await client.connect()
            return await self._converse(client, mail)
        except (aiosmtplib.SMTPException, OSError, TimeoutError) as error:
            raise NextHopUnavailable(f"next hop {self.address}: {type(error).__name__}: {error}") from error
        finally:
            client.close()

    async def _converse(self, client: aiosmtplib.SMTP, mail: Mail) -> Handed:
        await client.ehlo()
        envelope = mail.envelope
        await self._command(client, b"MAIL", _mail_command(client, mail))
        outcomes = [await self._rcpt(client, recipient) for recipient in envelope.recipients]
        if all(outcomes):
            return Handed(tuple(outcomes), "no recipient was accepted", str(self.address))
        await self._command(client, b"DATA", b"", expected=354)
        return Handed(tuple(outcomes), await self._data(client, mail.message), str(self.address))

    async def _rcpt(self, client: aiosmtplib.SMTP, recipient: Recipient) -> RelayError | None:
        try:
            await self._command(client, b"RCPT", _rcpt_command(client, recipient))
        except (NextHopRefused, NextHopUnavailable) as error:
            return error
        return None

    async def _command(self, client: aiosmtplib.SMTP, verb: bytes, rest: bytes, expected: int | None = None) -> str:
        reply = await client.execute_command(*filter(None, (verb, rest)))
        if reply.code == expected or (expected is None and 200 <= reply.code < 300):
            return reply.message
        raise self._fault(verb.decode(), reply.code, reply.message)

    async def _data(self, client: aiosmtplib.SMTP, message: bytes) -> str:
        """Sends the content dot-stuffed and in one piece; aiosmtplib's own way rewrites line ends."""
        content = await off_loop(len(message), stuffed, message)
        protocol = client.protocol  # the client forgets it when the connection ends
        if protocol is None:
            raise NextHopUnavailable(f"next hop {self.address}: the connection was lost before the content")
        protocol.write(content)
        reply = await protocol.read_response(timeout=self._timeout)
        if reply.code != 250:
            raise self._fault("end of data", reply.code, reply.message)
        with suppress(aiosmtplib.SMTPException, OSError):  # the mail is accepted, whatever follows
            protocol.write(b"QUIT\r\n")
        return reply.message

    def _fault(self, verb: str, code: int, message: str) -> RelayError:
        cause = f"next hop {self.address}: {verb}: {code} {message}"
        return NextHopRefused(cause) if 500 <= code < 600 else NextHopUnavailable(cause)


def stuffed(message: bytes) -> bytes:
    """The content as DATA carries it: dots doubled at line starts, ended by CRLF.CRLF (RFC 5321, 4.5.2)."""
    end = b".\r\n" if not message or message.endswith(b"\r\n") else b"\r\n.\r\n"
    last_dot = message.rfind(b".") + 1  # nothing behind it needs a look
    head = message[:last_dot].replace(b"\r\n.", b"\r\n..")
    if head.startswith(b"."):
        head = b"." + head
    return b"".join((head, memoryview(message)[last_dot:], end))


def _mail_command(client: aiosmtplib.SMTP, mail: Mail) -> bytes:
    envelope = mail.envelope
    parts = [f"FROM:<{envelope.sender}>"]
    if client.supports_extension("size"):
        parts.append(f"SIZE={len(mail.message)}")
    if not mail.message.isascii() and client.supports_extension("8bitmime"):
        parts.append("BODY=8BITMIME")
    if envelope.smtputf8:
        if not client.supports_extension("smtputf8"):
            raise NextHopRefused("the next hop does not speak SMTPUTF8, which this mail needs")
        parts.append("SMTPUTF8")
    if client.supports_extension("dsn"):
        parts += [f"RET={envelope.ret}"] if envelope.ret else []
        parts += [f"ENVID={envelope.envid}"] if envelope.envid else []
    return " ".join(parts).encode()


def _rcpt_command(client: aiosmtplib.SMTP, recipient: Recipient) -> bytes:
    parts = [f"TO:<{recipient.address}>"]
    if client.supports_extension("dsn"):
        parts += [f"NOTIFY={recipient.notify}"] if recipient.notify else []
        parts += [f"ORCPT={recipient.orcpt}"] if recipient.orcpt else []
    return " ".join(parts).encode()
