"""One mail transaction with a next hop, and its outcome for each recipient.
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
"""Maximum length of an XFORWARD command, in octets without CRLF."""
XFORWARD_VALUE_OCTETS = 255
_NO_XCHAR = re.compile(rb"[^\x21-\x7e]|[+=]")


def _nothing_to_check() -> None:
    """Default for mail that only this caller can send."""


async def _nothing_to_note(_: Sequence[Recipient]) -> None:
    """Default for mail that is not retried."""


def _nothing_to_say(_: Sequence[Recipient]) -> None:
    """Default for mail whose outcomes are not recorded."""


@dataclass(frozen=True, slots=True)
class Supervision:
    """The callbacks of a delivery.

    `check` is called right before the end of the content, the last moment at which the mail can be kept back. It may
    raise DeliveryUnderWay or StoreUnavailable. `accepted` is called with the accepted recipients in the step that
    reads the reply. `taken` gets the same before a further transaction, which a RelayError prevents.
    """

    check: Callable[[], None] = _nothing_to_check
    taken: Callable[[Sequence[Recipient]], Awaitable[None]] = _nothing_to_note
    accepted: Callable[[Sequence[Recipient]], None] = _nothing_to_say


UNSUPERVISED = Supervision()


@dataclass(frozen=True, slots=True)
class NextHopResult:
    """The result of a next hop: an outcome for each recipient, the text of its reply, and its name."""

    outcomes: Outcomes
    answer: str
    next_hop: str


async def transact(client: Client, mail: Mail, supervision: Supervision) -> NextHopResult:
    """Sends the mail. Raises NotTaken or NextHopRefused for all recipients, and what `supervision.check` raises.

    NotTaken means that nothing was accepted for that recipient: another server may be tried. After the end of the
    content it does not occur: silence then is an unknown outcome.
    """
    client.deadline = asyncio.get_running_loop().time() + client.timeouts.mail
    transaction = _ClientTransaction(client, mail, supervision)
    await transaction.name_sender_and_recipients()
    if await transaction.may_send_content() and await transaction.send_content():
        await transaction.read_verdict()
    return NextHopResult(tuple(transaction.outcomes), transaction.answer, client.name)


class _ClientTransaction:
    """The steps of one mail transaction, each called once and in this order.

    `accepted` are the indices of recipients not refused so far.
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
        """Sends MAIL and RCPT; with pipelining, DATA too. Refused recipients do not stop the others.

        Raises NextHopRefused if the next hop lacks an extension that the mail requires.
        """
        mail, extensions = self._mail, self._client.extensions
        origin = list(_xforward(mail.origin, extensions["XFORWARD"])) if "XFORWARD" in extensions else []
        sender = _mail_command(mail, extensions)
        recipients = [_rcpt_command(each, mail, extensions) for each in mail.envelope.recipients]
        if self._ahead:
            said = [each for each in recipients if isinstance(each, bytes)]
            self._client.send("MAIL", *origin, sender, *said, b"DATA")
        for command in origin:
            await self._reply("XFORWARD", command)  # a refusal only affects the next hop's log
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
        """Reads the replies up to DATA; returns whether the content may follow. If not, all outcomes are known."""
        if not self._accepted and not self._ahead:
            return False
        reply = await self._reply("DATA", b"DATA", self._client.timeouts.data)
        if reply.code == 354:
            # From here on the next hop reads everything as content; without recipients we have to disconnect.
            self._client.outstanding += len(self._accepted) or 1 if self._lmtp else 1
            return bool(self._accepted)
        self._conclude(fault(self._client.server, "DATA", reply))
        return False

    async def send_content(self) -> bool:
        """Sends the content; returns whether its end was sent. Raises what `supervision.check` raises, and Gone."""
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
                # It may have sent a reply, such as "too big".
                self._conclude(fault(client.server, "content", await client.reply("content")))
        return end_sent

    async def read_verdict(self) -> None:
        """Reads the reply to the content; with LMTP, one for each accepted recipient."""
        for places in [[place] for place in self._accepted] if self._lmtp else [self._accepted]:
            outcome: RelayError | None = None
            try:
                reply = await self._client.reply("content", self._client.timeouts.content_reply, verdict=True)
            except Gone as lost:
                outcome = OutcomeUnknown(f"{lost}; whether it was taken is not known")
            else:
                if reply.positive:
                    # No await since the reply was read: after a kill in between the mail would be sent twice.
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
        """The reply to a command, which is sent now unless it was pipelined."""
        if not self._ahead:
            self._client.send(name, command)
        return await self._client.reply(name, seconds)

    def _conclude(self, outcome: RelayError | None) -> None:
        """Sets this outcome for all recipients accepted so far."""
        for place in self._accepted:
            self.outcomes[place] = outcome


def stuffed(message: bytes, trace: bytes = b"") -> Iterator[Octets]:
    """The content for DATA: dots doubled at line starts, ended by CRLF.CRLF (RFC 5321, 4.5.2).

    `trace` are whole lines, or nothing. Large content comes in several pieces; a piece is only copied if it has a dot.
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


# The commands for a mail, given the next hop's extensions, or why they cannot be sent.


def _mail_command(mail: Mail, extensions: Mapping[str, str]) -> bytes:
    envelope, octets = mail.envelope, mail.size
    parts = [f"MAIL FROM:<{envelope.sender}>"]
    if "SIZE" in extensions:
        limit = extensions["SIZE"]  # 0 or empty means no limit is announced (RFC 1870, 4)
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
    """All attributes that the next hop supports, unknown ones too: else it would keep those of the previous mail."""
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
    """xtext (RFC 3461, 4) of at most XFORWARD_VALUE_OCTETS; a longer value becomes [UNAVAILABLE]."""
    encoded = _NO_XCHAR.sub(lambda octet: b"+" + octet[0].hex().upper().encode(), value.encode("utf-8", "replace"))
    return encoded if len(encoded) <= XFORWARD_VALUE_OCTETS else b""
