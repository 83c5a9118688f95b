"""Fuzz targets for what a client says: a real entry on loopback, a recipe that records, a reference that counts along.
Standard: RFC 5321, RFC 2033; each command has one reply, only CRLF.CRLF ends content, and 250 is said for what arrived.
"""

from __future__ import annotations

import asyncio
import hashlib
import random
import re
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field

from relay.config import DirectionSettings, TCPAddress
from relay.entry.budget import Budget
from relay.entry.listening import SocketServer, address_of, bound
from relay.entry.smtp.session import LMTPSession, SMTPSession
from relay.errors import Refuse, RelayError, TryLater
from relay.mail import Mail, Outcomes
from tests.system.fuzz.target import Found, Target, check

LIMIT = 4096
CAUSE = "a cause that no client hears"
GOODBYE = b"\r\n.\r\nQUIT\r\n"
"""Ends a content that is open, and the conversation."""

WORDS = (
    b"\r\n", b"\r\n.\r\n", b"\n.\n", b"\r\n.\n", b"\n.\r\n", b"\r.\r", b"\r\n..\r\n", b"\r\n.\r\n.\r\n", b".", b"..", b"\r", b"\n",
    b"\0", b"\xff", b"EHLO x\r\n", b"HELO x\r\n", b"MAIL FROM:<a@b.example>\r\n", b"MAIL FROM:<>", b"RCPT TO:<ok@b.example>\r\n",
    b"RCPT TO:<hold@b.example>\r\n", b"RCPT TO:<refuse@b.example>\r\n", b"RCPT TO:<crash@b.example>\r\n", b"DATA\r\n",
    b"DATA\n", b"data \r\n", b"RSET\r\n", b"NOOP\r\n", b"QUIT\r\n", b"VRFY x\r\n", b"HELP\r\n", b"STARTTLS\r\n", b"AUTH PLAIN AGEAYg==\r\n",
    b"AUTH LOGIN\r\n", b"XFORWARD NAME=x ADDR=1.2.3.4\r\n", b"BDAT 4 LAST\r\nabc\n", b"LHLO x\r\n", b"ETRN x\r\n", b" SIZE=9999999999", b" SIZE=1",
    b" BODY=8BITMIME", b" SMTPUTF8", b" RET=HDRS", b" ENVID=x", b" NOTIFY=NEVER", b" ORCPT=rfc822;x@y", b"<@a,@b:c@d.example>",
    b'<"a b"@c.example>', b"<" + b"a" * 300 + b"@b.example>", b"\xc3\xa9", b"x" * 2100, b"Subject: x\r\n\r\n",
)  # fmt: skip


@dataclass
class Recorder:
    """A recipe that remembers each mail and does with it what its recipients' names say."""

    got: list[tuple[bytes, Outcomes]] = field(default_factory=list)

    def check_recipient(self, sender: str, recipient: str) -> None:
        if recipient.startswith("no"):
            raise Refuse(CAUSE)

    def not_taken(self, mail: Mail, errors: Mapping[str, RelayError]) -> None:
        """Their transaction is over."""

    async def process(self, mail: Mail) -> Outcomes:
        outcomes = tuple(self._outcome(address) for address in mail.envelope.addresses)
        if any(address.startswith("crash") for address in mail.envelope.addresses):
            self.got.append((mail.message, (TryLater(CAUSE),) * len(outcomes)))
            raise ValueError(CAUSE)
        self.got.append((mail.message, outcomes))
        return outcomes

    def _outcome(self, address: str) -> TryLater | Refuse | None:
        return (
            TryLater(CAUSE) if address.startswith("hold") else Refuse(CAUSE) if address.startswith("refuse") else None
        )

    def client_answered(self, mail: Mail) -> None:
        """Nothing is forgotten here."""

    async def client_gone(self, mail: Mail, outcomes: Outcomes) -> None:
        """A client that has gone takes nothing along."""


def seeds() -> list[bytes]:
    """Conversations of several kinds."""
    begin = b"EHLO client.example\r\n"
    envelope = b"MAIL FROM:<ann@alice.example>\r\nRCPT TO:<ok@bob.example>\r\nRCPT TO:<ok2@bob.example>\r\nDATA\r\n"
    content = b"From: ann@alice.example\r\nSubject: x\r\n\r\n..dots\r\n..\r\ntext\r\n.\r\n"
    return [
        begin + envelope + content,
        begin + envelope + b".\r\n" + envelope + content + b"RSET\r\n",
        b"HELO x\r\n" + envelope.replace(b"ok2", b"hold") + content + b"NOOP\r\n",
        begin + b"MAIL FROM:<> SIZE=100 BODY=8BITMIME RET=HDRS ENVID=q\r\nRCPT TO:<ok@b.example> NOTIFY=NEVER\r\nDATA\r\n" + content,
        begin + envelope.replace(b"ok@", b"refuse@") + content + envelope.replace(b"ok@", b"crash@") + content,
        begin + envelope + b"x" * (LIMIT + 10) + b"\r\n.\r\n" + envelope + content,
        begin + "MAIL FROM:<änne@alice.example> SMTPUTF8\r\nRCPT TO:<ök@bob.example>\r\nDATA\r\n".encode() + content,
        begin + envelope + b"smuggled\n.\r\nMAIL FROM:<x@y.example>\r\n.\nmore\r\n.\r\n",
    ]  # fmt: skip


def smtp(data: bytes) -> None:
    """One SMTP connection in which all of `data` is said, in pieces that depend on it alone."""
    asyncio.run(_one_connection(SMTPSession, data + GOODBYE))


def lmtp(data: bytes) -> None:
    """The same over LMTP, where each recipient has a reply."""
    asyncio.run(_one_connection(LMTPSession, data.replace(b"EHLO", b"LHLO") + GOODBYE))


async def _one_connection(kind: type[SMTPSession], data: bytes) -> None:
    recorder = Recorder()
    settings = DirectionSettings.model_validate({"next_hop": "127.0.0.1:9", "max_message_size": LIMIT, "timeout": 30})
    entry = SocketServer(settings, Budget(2**24))
    sockets = await bound("fuzz", TCPAddress("127.0.0.1", 0))
    await entry.listen(sockets, lambda: kind(entry, "relay.example", recorder))
    address = address_of(sockets)
    try:
        answered, whole = await _say(*address, data)
    finally:
        await entry.stop()
    replies = list(_replies(answered, whole=whole))
    _check_replies(replies)
    _check_mails(data, replies, recorder, each_answered=kind.each_answered, whole=whole)


async def _say(host: str, port: int, data: bytes) -> tuple[bytes, bool]:
    """All that came back, and whether it is all: a server that closes while we talk may take replies with it."""
    reader, writer = await asyncio.open_connection(host, port)
    try:
        async with asyncio.timeout(20):
            reading = asyncio.create_task(_all_of(reader))
            with suppress(ConnectionError):
                for piece in _pieces(data):
                    writer.write(piece)
                    await writer.drain()
                    await asyncio.sleep(0)
            return await reading
    except TimeoutError as error:
        raise Found("the conversation does not end") from error
    finally:
        writer.close()
        with suppress(ConnectionError):
            await writer.wait_closed()


async def _all_of(reader: asyncio.StreamReader) -> tuple[bytes, bool]:
    read = bytearray()
    with suppress(ConnectionError):
        while piece := await reader.read(65536):
            read += piece
        return bytes(read), True
    return bytes(read), False


def _pieces(data: bytes) -> Iterator[bytes]:
    """The data cut at places that depend on it alone; half of all inputs are not cut."""
    choose = random.Random(hashlib.sha256(data).digest())
    cuts = sorted(choose.randrange(len(data) + 1) for _ in range(choose.choice((0, 0, 0, 1, 2, 12))))
    for start, end in zip((0, *cuts), (*cuts, len(data)), strict=True):
        yield data[start:end]


def _replies(answered: bytes, *, whole: bool) -> Iterator[list[bytes]]:
    """The replies, each a list of its lines."""
    lines = answered.split(b"\r\n")
    last = lines.pop()
    check(not last or not whole, "the last reply is cut short")
    reply: list[bytes] = []
    for line in lines:
        reply.append(line)
        if line[3:4] != b"-":
            yield reply
            reply = []
    check(not reply or not whole, "the last reply is cut short")


def _check_replies(replies: list[list[bytes]]) -> None:
    for reply in replies:
        for line in reply:
            check(re.fullmatch(rb"[2345][0-9][0-9](?:[ -][\x20-\x7e]*)?", line), f"a reply that is none: {line[:80]!r}")
            check(len(line) <= 510, "a reply that is too long")
            check(CAUSE.encode() not in line and b"Error: (" not in line, "a reply tells the cause")
        check(len({line[:3] for line in reply}) == 1, "a reply with several codes")


def _check_mails(
    data: bytes, replies: list[list[bytes]], recorder: Recorder, *, each_answered: bool, whole: bool
) -> None:
    """What the recipe got is what a simple reader of the conversation finds, and 250 was said for nothing else."""
    expected = _expected(data, replies, each_answered=each_answered)
    got = [content for content, _ in recorder.got]
    check(len(got) <= data.count(b"\r\n.\r\n") + data.count(b"\n.\r\n"), "more mails than ends of content")
    handed = [(content, answers) for content, answers in expected if len(content) <= LIMIT]
    said = [content for content, _ in handed]
    check(got == said if whole else got[: len(said)] == said, "the content is not what was said")
    for content, answers in expected:
        check(len(content) <= LIMIT or all(answer[:3] == b"552" for answer in answers), "what is too big was taken")
    for (_, outcomes), (_, answers) in zip(recorder.got, handed, strict=False):
        taken = [answer[:3] == b"250" for answer in answers]
        delivered = [outcome is None for outcome in outcomes]
        if each_answered:
            check(taken == delivered, "a recipient heard what is not so")
        else:
            check(taken == [all(delivered)], "250 although somebody did not get it, or not 250 although all did")


def _expected(data: bytes, replies: list[list[bytes]], *, each_answered: bool) -> list[tuple[bytes, list[bytes]]]:
    """Each content that was said after a 354, with the replies to it: a line, a reply, a line, a reply."""
    found: list[tuple[bytes, list[bytes]]] = []
    coming = (reply[-1] for reply in replies[1:])  # after the greeting
    recipients = position = 0
    while (end := data.find(b"\n", position)) >= 0:
        verb = data[position:end].split()[:1]
        position = end + 1
        reply = next(coming, b"")
        if reply[:3] in (b"", b"221", b"421"):
            break
        if reply[:3] == b"250" and verb:
            recipients = recipients + (verb[0].upper() == b"RCPT") if verb[0].upper() in (b"RCPT", b"NOOP") else 0
        if reply[:3] != b"354":
            continue
        content = b"\r\n" + data[position:]
        end = content.find(b"\r\n.\r\n")
        position += end + 3
        answers = [next(coming, b"") for _ in range(recipients if each_answered else 1)]
        recipients = 0
        if end < 0 or b"" in answers:
            break
        lines = content[2 : end + 2].split(b"\r\n")
        found.append((b"\r\n".join(line[1:] if line.startswith(b".") else line for line in lines), answers))
    return found


SMTP = Target("smtp", smtp, seeds, WORDS, seconds_a_mib=6)
LMTP = Target("lmtp", lmtp, seeds, WORDS, seconds_a_mib=6)
