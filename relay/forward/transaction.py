"""One mail transaction with a next hop, and what it means for each recipient.
Standard: RFC 5321 3.3, RFC 2033 4.2 (LMTP: a reply for each recipient after the content), RFC 2920 (pipelining),
RFC 1870 (SIZE), RFC 6152 (8BITMIME), RFC 6531 (SMTPUTF8), RFC 3461 6.2 (DSN), Postfix's XFORWARD_README.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from relay.errors import NextHopRefused, NextHopUnavailable, OutcomeUnknown, RelayError
from relay.formats.pieces import Octets
from relay.forward.client import PIECE_OCTETS, Client, Gone, NotTaken, RecipientOverLimit, Reply, fault
from relay.mail import Mail, Origin, Outcomes, Recipient

XFORWARD_LINE_OCTETS = 510
"""The longest XFORWARD command, without CRLF."""
XFORWARD_VALUE_OCTETS = 255
_NO_XCHAR = re.compile(rb"[^\x21-\x7e]|[+=]")


def _nothing_to_check() -> None:
    """Default for mail that nobody else could send."""


async def _nothing_to_note(_: Sequence[Recipient]) -> None:
    """Default for mail that nobody sends again."""


def _nothing_to_say(_: Sequence[Recipient]) -> None:
    """Default for mail whose outcomes nobody awaits."""


@dataclass(frozen=True, slots=True)
class Supervision:
    """What a next hop asks and reports to while it gets a mail.

    `check` is called right before the end of the content, without which no server has the mail. It raises
    DeliveryUnderWay or StoreUnavailable where it must no longer leave. `accepted` is called at once with those who
    have the mail, in the step that reads the server's answer. `taken` gets the same before further recipients get it
    with another transaction; where it raises a RelayError they do not.
    """

    check: Callable[[], None] = _nothing_to_check
    taken: Callable[[Sequence[Recipient]], Awaitable[None]] = _nothing_to_note
    accepted: Callable[[Sequence[Recipient]], None] = _nothing_to_say


UNSUPERVISED = Supervision()


@dataclass(frozen=True, slots=True)
class NextHopResult:
    """What a next hop has said: an outcome for each recipient, its own words of acceptance, and which one it was."""

    outcomes: Outcomes
    answer: str
    next_hop: str


async def transact(client: Client, mail: Mail, supervision: Supervision) -> NextHopResult:
    """Hands the mail over. Raises NotTaken or NextHopRefused for all recipients, and what `supervision.check` raises.

    An outcome of NotTaken, or one that is raised, says that nothing was accepted for that recipient: another next
    hop may be tried. Once the end of the content was sent there is none: a silence then is an unknown outcome.
    """
    client.deadline = asyncio.get_running_loop().time() + client.timeouts.mail
    transaction = _ClientTransaction(client, mail, supervision)
    await transaction.name_sender_and_recipients()
    if await transaction.may_send_content() and await transaction.send_content():
        await transaction.read_verdict()
    return NextHopResult(tuple(transaction.outcomes), transaction.answer, client.name)


class _ClientTransaction:
    """The steps of one mail transaction, each to be taken once and in this order.

    `accepted` are the places of those recipients whom nothing has refused so far.
    """

    def __init__(self, client: Client, mail: Mail, supervision: Supervision) -> None:
        self._client = client
        self._mail = mail
        self._supervision = supervision
        self._ahead = "PIPELINING" in client.extensions
        self._lmtp = client.server.protocol == "lmtp"
        self._accepted: list[int] = []
        self.outcomes: list[RelayError | None] = []
        self.answer = ""

    async def name_sender_and_recipients(self) -> None:
        """One RCPT for each, whatever becomes of the others; with pipelining, DATA is said too.

        Raises NextHopRefused where the next hop lacks an extension that the mail cannot do without.
        """
        mail, extensions = self._mail, self._client.extensions
        origin = list(_xforward(mail.origin, extensions["XFORWARD"])) if "XFORWARD" in extensions else []
        sender = _mail_command(mail, extensions)
        recipients = [_rcpt_command(each, mail, extensions) for each in mail.envelope.recipients]
        if self._ahead:
            said = [each for each in recipients if isinstance(each, bytes)]
            self._client.send("MAIL", *origin, sender, *said, b"DATA")
        for command in origin:
            await self._reply("XFORWARD", command)  # a refusal costs the next hop's log something, the mail nothing
        reply = await self._reply("MAIL", sender)
        if not reply.positive:
            raise fault(self._client.server, "MAIL", reply)
        for place, rcpt in enumerate(recipients):
            if isinstance(rcpt, bytes):
                reply = await self._reply("RCPT", rcpt)
                outcome = None if reply.positive else self._refused(reply)
            else:
                outcome = rcpt
            self.outcomes.append(outcome)
            if outcome is None:
                self._accepted.append(place)

    async def may_send_content(self) -> bool:
        """Whether the content may follow; if not, each recipient's outcome is known."""
        if not self._accepted and not self._ahead:
            return False
        reply = await self._reply("DATA", b"DATA", self._client.timeouts.data)
        if reply.code == 354:
            # From here on the next hop takes everything for content; without recipients that ends the connection.
            self._client.outstanding += len(self._accepted) or 1 if self._lmtp else 1
            return bool(self._accepted)
        self._conclude(fault(self._client.server, "DATA", reply))
        return False

    async def send_content(self) -> bool:
        """Whether the content was sent as far as its end. Raises what `supervision.check` raises, and Gone."""
        client, end_sent = self._client, False
        try:
            last: Octets = b""
            for piece in stuffed(self._mail.message, self._mail.trace):
                if last:
                    await client.write(last)
                last = piece
            self._supervision.check()  # between this and the end of the content there is no await
            end_sent = client.usable
            await client.write(last)
        except Gone:
            if not end_sent:
                # It may have said why: too big, for instance.
                self._conclude(fault(client.server, "content", await client.reply("content")))
        return end_sent

    async def read_verdict(self) -> None:
        """What the next hop makes of the content: one reply, or with LMTP one for each accepted recipient."""
        for places in [[place] for place in self._accepted] if self._lmtp else [self._accepted]:
            outcome: RelayError | None = None
            try:
                reply = await self._client.reply("content", self._client.timeouts.content_reply, verdict=True)
            except Gone as lost:
                outcome = OutcomeUnknown(f"{lost}; whether it was taken is not known")
            else:
                if reply.positive:
                    # Without an await since the answer was read: who is killed before that would send the mail twice.
                    self._supervision.accepted([self._mail.envelope.recipients[place] for place in places])
                    self.answer = self.answer or " ".join(reply.lines)
                else:
                    outcome = fault(self._client.server, "content", reply, NextHopUnavailable)
            for place in places:
                self.outcomes[place] = outcome

    def _refused(self, reply: Reply) -> RelayError:
        too_many = reply.code == 452 and reply.status in (None, "4.5.3")
        return fault(self._client.server, "RCPT", reply, RecipientOverLimit if too_many else NotTaken)

    async def _reply(self, name: str, command: bytes, seconds: float = 0.0) -> Reply:
        """The reply to a command, which is said now unless it was said ahead."""
        if not self._ahead:
            self._client.send(name, command)
        return await self._client.reply(name, seconds)

    def _conclude(self, outcome: RelayError | None) -> None:
        """Sets this outcome for all accepted so far."""
        for place in self._accepted:
            self.outcomes[place] = outcome


def stuffed(message: bytes, trace: bytes = b"") -> Iterator[Octets]:
    """The content as DATA carries it: dots doubled at line starts, ended by CRLF.CRLF (RFC 5321, 4.5.2).

    `trace` are whole lines, or nothing. What is larger than a piece comes in several, and is copied only where a piece
    has a dot.
    """
    end = b"\r\n.\r\n" if message and not message.endswith(b"\r\n") else b".\r\n"
    if len(trace) + len(message) <= PIECE_OCTETS:
        yield (b"\r\n" + trace + message).replace(b"\r\n.", b"\r\n..")[2:] + end
        return
    yield (b"\r\n" + trace).replace(b"\r\n.", b"\r\n..")[2:]
    view, before = memoryview(message), b"\r\n"
    for start in range(0, len(message), PIECE_OCTETS):
        behind = start + PIECE_OCTETS
        if message.find(b".", start, behind) < 0:
            yield view[start:behind]
        else:
            yield (before + message[start:behind]).replace(b"\r\n.", b"\r\n..")[2:]
        before = message[behind - 2 : behind]
    yield end


# What is said of a mail to a next hop with these service extensions, or why it cannot be said.


def _mail_command(mail: Mail, extensions: Mapping[str, str]) -> bytes:
    envelope, octets = mail.envelope, mail.size
    parts = [f"MAIL FROM:<{envelope.sender}>"]
    if "SIZE" in extensions:
        limit = extensions["SIZE"]  # one of 0, or none, says nothing (RFC 1870, 4)
        if limit.isdecimal() and 0 < int(limit[:20]) < octets:
            raise NextHopRefused(f"the message has {octets} octets, the next hop takes {limit[:20]}", "5.3.4")
        parts.append(f"SIZE={octets}")
    if not (mail.trace.isascii() and mail.message.isascii()):
        if "8BITMIME" not in extensions:
            raise NextHopRefused("the message has 8-bit octets, and the next hop does not offer 8BITMIME", "5.6.3")
        parts.append("BODY=8BITMIME")
    if envelope.smtputf8:
        if "SMTPUTF8" in extensions:
            parts.append("SMTPUTF8")
        elif not envelope.sender.isascii() or not mail.message.partition(b"\r\n\r\n")[0].isascii():
            raise NextHopRefused("sender or header are UTF-8, and the next hop does not offer SMTPUTF8", "5.6.7")
    if "DSN" in extensions:
        parts += [f"RET={envelope.ret}"] if envelope.ret else []
        parts += [f"ENVID={envelope.envid}"] if envelope.envid else []
    return " ".join(parts).encode()


def _rcpt_command(recipient: Recipient, mail: Mail, extensions: Mapping[str, str]) -> bytes | NextHopRefused:
    if not recipient.address.isascii() and not (mail.envelope.smtputf8 and "SMTPUTF8" in extensions):
        return NextHopRefused("the address is UTF-8, and the next hop does not offer SMTPUTF8", "5.6.7")
    parts = [f"RCPT TO:<{recipient.address}>"]
    if "DSN" in extensions:
        parts += [f"NOTIFY={recipient.notify}"] if recipient.notify else []
        parts += [f"ORCPT={recipient.orcpt}"] if recipient.orcpt else []
    return " ".join(parts).encode()


def _xforward(origin: Origin, offered: str) -> Iterator[bytes]:
    """All attributes that the next hop lists, also unknown ones: it would keep those of the mail before."""
    attributes = {
        "NAME": origin.name,
        "ADDR": f"IPV6:{origin.addr}" if ":" in origin.addr else origin.addr,
        "PORT": origin.port,
        "PROTO": origin.proto,
        "HELO": origin.helo,
        "IDENT": origin.ident,
        "SOURCE": origin.source,
    }
    names = offered.upper().split()
    line = b""
    for name, value in attributes.items():
        if name not in names:
            continue
        attribute = b" " + name.encode() + b"=" + (_xtext(value) or b"[UNAVAILABLE]")
        if len(line) + len(attribute) > XFORWARD_LINE_OCTETS:
            yield line
            line = b""
        line = (line or b"XFORWARD") + attribute
    if line:
        yield line


def _xtext(value: str) -> bytes:
    """RFC 3461 4, of at most XFORWARD_VALUE_OCTETS; a longer value is taken for unknown."""
    encoded = _NO_XCHAR.sub(lambda octet: b"+" + octet[0].hex().upper().encode(), value.encode("utf-8", "replace"))
    return encoded if len(encoded) <= XFORWARD_VALUE_OCTETS else b""
