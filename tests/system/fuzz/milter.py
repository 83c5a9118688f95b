"""Fuzz target for what a mail server says to the milter: packets of all kinds, in any order, of any length.
Standard: milter protocol 6 (libmilter's mfdef.h); each mail has one last word, and only packets that are some go back.
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from types import SimpleNamespace
from unittest import mock

from relay.config import ListenerSettings
from relay.entry.budget import Budget
from relay.entry.listening import SocketServer
from relay.entry.milter import session
from relay.entry.milter.wire import Packets
from relay.errors import Refuse, RelayError, TryLater
from relay.mail import InPlace, Mail
from tests.system.fuzz.target import Target, check

LIMIT = 4096
CAUSE = "a cause that no client hears"
SETTINGS = ListenerSettings(max_message_size=LIMIT, max_recipients=5, timeout=5)
LAST_WORDS = b"acdyrt"
"""Accept, continue, discard, a reply, reject, tempfail."""
KNOWN = LAST_WORDS + b"Opmhb-+"
SEALED = b"From: ann@alice.example\r\nSubject: [...]\r\n\r\nsealed\r\n"


def packet(command: bytes, data: bytes = b"") -> bytes:
    """Length in four octets, command, data."""
    return (len(command) + len(data)).to_bytes(4) + command + data


OFFER = packet(b"O", (6).to_bytes(4) + (0x1FF).to_bytes(4) + (0x1FFFFF).to_bytes(4))
BARE_OFFER = packet(b"O", (6).to_bytes(4) + (0x1FF).to_bytes(4) + (0x100000).to_bytes(4))
CONNECT = packet(b"C", b"client.example\x004\x00\x19127.0.0.1\0")
MAIL = packet(b"DM{auth_authen}\0ann\0{mail_addr}\0ann@alice.example\0") + packet(
    b"M", b"<ann@alice.example>\0SIZE=100\0"
)
RCPT = packet(b"R", b"<ben@bob.example>\0NOTIFY=NEVER\0")
BARE_RCPT = packet(b"DR{rcpt_addr}\0root@alice.example\0") + packet(b"R", b"<root>\0")
FIELDS = packet(b"L", b"From\0 ann@alice.example\0") + packet(b"L", b"X-Folded\0 one\n\ttwo\0")
BODY = packet(b"B", b"Hello\r\n") + packet(b"B", b"Ben\r\n")
END = packet(b"DEi\0001234\0") + packet(b"E")
WHOLE = MAIL + RCPT + packet(b"T") + FIELDS + packet(b"N") + BODY + END

WORDS = (
    CONNECT, MAIL, RCPT, BARE_RCPT, FIELDS, BODY, END, OFFER, packet(b"A"), packet(b"K"), packet(b"Q"), packet(b"T"), packet(b"N"),
    packet(b"E", b"the rest\r\n"), packet(b"H", b"client.example\0"), packet(b"U", b"WHAT\0"), packet(b"Z"), packet(b"D"), packet(b"DL"),
    packet(b"DMi"), packet(b"DMi\0\xff\0"), packet(b"M"), packet(b"M", b"<>\0"), packet(b"M", b"\xff\0"), packet(b"M", b"no end"),
    packet(b"M", b"<j\xc3\xb6rg@alice.example>\0SMTPUTF8\0"), packet(b"R", b"\0"), packet(b"R", b"<hold@b.example>\0"),
    packet(b"R", b"<refuse@b.example>\0"), packet(b"R", b"<crash@b.example>\0"), packet(b"R", b"<away@b.example>\0"),
    packet(b"R", b"<seal@b.example>\0"), packet(b"R", b"<no@b.example>\0"), packet(b"L", b"\0\0"), packet(b"L", b"X-Y\0"),
    packet(b"L", b"X: Y\0 z\0"), packet(b"L", b"X\0 a\r\n\r\nb\0"), packet(b"L", b"X\0" + b"y" * 5000 + b"\0"), packet(b"B"),
    packet(b"B", b"x" * 3000), packet(b"B", b"\n.\n\0\r"), b"\0\0\0\0", b"\0\0\0\1", b"\xff\xff\xff\xff", b"\0\1\0\0B", b"\0", b"\r\n", b"%",
)  # fmt: skip


def seeds() -> list[bytes]:
    """Conversations as Postfix has them, with all that may be left out, and with nothing left out."""
    return [
        OFFER + CONNECT + WHOLE + packet(b"Q"),
        BARE_OFFER + CONNECT + packet(b"H", b"client.example\0") + WHOLE + packet(b"A") + WHOLE + packet(b"Q"),
        OFFER + WHOLE + packet(b"A") + MAIL + BARE_RCPT + packet(b"R", b"<seal@b.example>\0") + FIELDS + END,
        OFFER + MAIL + packet(b"R", b"<hold@b.example>\0") + FIELDS + BODY + END + WHOLE,
        OFFER + MAIL + packet(b"R", b"<away@b.example>\0") + RCPT + END,
    ]


@dataclass
class Recipe:
    """Does with a mail what its recipients' names say; counts them."""

    mails: int = 0

    def check_recipient(self, sender: str, recipient: str) -> None:
        if recipient.startswith("no"):
            raise Refuse(CAUSE)

    def not_taken(self, mail: Mail, errors: Mapping[str, RelayError]) -> None:
        """Their transaction is over."""

    async def in_place(self, mail: Mail, fits: Callable[[bytes], bool]) -> InPlace:
        self.mails += 1
        check(len(mail.message) <= LIMIT + 2, "more content than is allowed")
        check(len(mail.envelope.recipients) <= SETTINGS.max_recipients, "more recipients than are allowed")
        names = {address.partition("@")[0] for address in mail.envelope.addresses}
        if "crash" in names:
            raise ValueError(CAUSE)
        if "refuse" in names:
            raise Refuse(CAUSE)
        if "hold" in names:
            raise TryLater(CAUSE)
        done = (None,) * len(mail.envelope.recipients)
        if "away" in names:
            return InPlace(done)
        message = SEALED if "seal" in names else mail.message
        return InPlace(done, message, tuple(each for each in mail.envelope.addresses if not each.startswith("seal")))


@dataclass
class _Writer:
    """Keeps what goes back to the mail server, which reads all of it at once."""

    sent: bytearray = field(default_factory=bytearray)

    def write(self, data: bytes) -> None:
        self.sent += data

    async def drain(self) -> None:
        """Nothing waits."""

    @property
    def transport(self) -> SimpleNamespace:
        return SimpleNamespace(get_write_buffer_size=lambda: 0, is_closing=lambda: False)

    def get_extra_info(self, name: str) -> SimpleNamespace:
        return SimpleNamespace(family=socket.AF_UNIX)


def target(data: bytes) -> None:
    """All that a mail server sends over one connection."""
    asyncio.run(_talk(data))


async def _talk(data: bytes) -> None:
    reader, writer, recipe, budget = asyncio.StreamReader(), _Writer(), Recipe(), Budget(2**24, 0.01)
    reader.feed_data(data)
    reader.feed_eof()
    packets = Packets(reader, writer, SETTINGS.timeout)  # type: ignore[arg-type]
    with mock.patch.object(session, "log") as log:
        await session.MilterSession(SocketServer(SETTINGS, budget), recipe).run(packets)
        unforeseen = [call for call in log.error.call_args_list if CAUSE not in call.kwargs["cause"]]
    check(not unforeseen, f"an error that nobody foresaw: {unforeseen}")
    check(budget.used == 0, "memory is still held")
    words = list(_packets(bytes(writer.sent)))
    check(all(word[:1] in KNOWN for word in words), "a word that no mail server knows")
    check(CAUSE.encode() not in writer.sent, "a cause was told")
    edits = [word for word in words if word[:1] in b"mhb-+"]
    check(recipe.mails or not edits, "edits without a mail")


def _packets(sent: bytes) -> Iterator[bytes]:
    while sent:
        length = int.from_bytes(sent[:4])
        check(0 < length <= len(sent) - 4, "a packet that is not whole")
        yield sent[4 : 4 + length]
        sent = sent[4 + length :]


MILTER = Target("milter", target, seeds, WORDS, seconds_a_mib=12)
