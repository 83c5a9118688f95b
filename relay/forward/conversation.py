"""One mail transaction with a next hop, and what it means for each recipient.
Standard: RFC 5321 3.3, RFC 2920 (pipelining), RFC 2033 4.2 (LMTP: a reply for each recipient after the content).
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass

from relay.aio import off_loop
from relay.errors import NextHopRefused, NextHopUnavailable, RelayError
from relay.forward.channel import PIECE_OCTETS, ChannelLost, Reply
from relay.forward.commands import Commands, commands
from relay.forward.connection import Connection
from relay.forward.faults import NotTaken, TooManyRecipients, fault
from relay.mail import Mail, Outcomes, Recipient


def _nothing_to_check() -> None:
    """For a mail that nobody else could send."""


async def _nothing_to_note(_: Sequence[Recipient]) -> None:
    """For one that nobody sends again."""


def _nothing_to_say(_: Sequence[Recipient]) -> None:
    """The same."""


@dataclass(frozen=True, slots=True)
class Supervision:
    """Whom a next hop asks and tells while it gets a mail.

    `check` is called right before the end of the content, without which no server has the mail; it raises
    DeliveryUnderWay or StoreUnavailable where it must not leave any more. `accepted` is told at once who has the mail,
    in the step that reads the server's answer. `taken` is told the same before further recipients get it with another
    transaction; where it raises a RelayError they do not.
    """

    check: Callable[[], None] = _nothing_to_check
    taken: Callable[[Sequence[Recipient]], Awaitable[None]] = _nothing_to_note
    accepted: Callable[[Sequence[Recipient]], None] = _nothing_to_say


UNSUPERVISED = Supervision()


@dataclass(frozen=True, slots=True)
class Taken:
    """An outcome for each recipient, and the next hop's words of acceptance.

    `smoothly` says whether nothing was refused, so that the connection is as good as new.
    """

    outcomes: Outcomes
    answer: str
    smoothly: bool


async def converse(connection: Connection, mail: Mail, supervision: Supervision) -> Taken:
    """Hands the mail over. Raises NotTaken or NextHopRefused for all recipients, and what `supervision.check` raises.

    An outcome of NotTaken, or one that is raised, says that nothing was accepted for that recipient: another next
    hop may be tried. Once the end of the content was sent there is none: a silence then is an unknown outcome.
    """
    connection.channel.deadline = asyncio.get_running_loop().time() + connection.timeouts.mail
    transaction = _Transaction(connection, mail, commands(mail, connection.extensions), supervision)
    await transaction.start()
    await transaction.name_recipients()
    if await transaction.may_send_content() and await transaction.send_content():
        await transaction.read_verdict()
    return transaction.taken


class _Transaction:
    """The steps of one mail transaction, each to be taken once and in this order."""

    def __init__(self, connection: Connection, mail: Mail, said: Commands, supervision: Supervision) -> None:
        self._connection = connection
        self._mail = mail
        self._said = said
        self._supervision = supervision
        self._ahead = "PIPELINING" in connection.extensions
        self._outcomes: list[RelayError | None] = []
        self._answers: list[str] = []

    @property
    def accepted(self) -> list[int]:
        """The places of those recipients whom nothing has refused so far."""
        return [place for place, outcome in enumerate(self._outcomes) if outcome is None]

    @property
    def taken(self) -> Taken:
        """What came of it."""
        answer = self._answers[0] if self._answers else "no recipient was accepted"
        return Taken(tuple(self._outcomes), answer, smoothly=not any(self._outcomes))

    async def start(self) -> None:
        """Where the mail comes from, and its sender; with pipelining, all else before the content is said too."""
        if self._ahead:
            recipients = [each for each in self._said.recipients if isinstance(each, bytes)]
            self._connection.send("MAIL", *self._said.origin, self._said.mail, *recipients, b"DATA")
        for command in self._said.origin:
            await self._reply("XFORWARD", command)  # a refusal costs the next hop's log something, the mail nothing
        reply = await self._reply("MAIL", self._said.mail)
        if not reply.positive:
            raise fault(self._connection.server, "MAIL", reply)

    async def name_recipients(self) -> None:
        """One RCPT for each, whatever becomes of the others."""
        self._outcomes = [await self._recipient(each) for each in self._said.recipients]

    async def may_send_content(self) -> bool:
        """Whether the content may follow; if not, each recipient's outcome is known."""
        if not self.accepted and not self._ahead:
            return False
        reply = await self._reply("DATA", b"DATA", self._connection.timeouts.data)
        if reply.code == 354:
            # From here on the next hop takes everything for content; without recipients that ends the connection.
            lmtp = self._connection.server.protocol == "lmtp"
            self._connection.channel.expect(len(self.accepted) if lmtp and self.accepted else 1)
            return bool(self.accepted)
        self._fail_accepted(fault(self._connection.server, "DATA", reply))
        return False

    async def send_content(self) -> bool:
        """Whether the content was sent as far as its end. Raises what `supervision.check` raises, and Gone."""
        content = memoryview(await off_loop(len(self._mail.message), stuffed, self._mail.message))
        channel, end_sent = self._connection.channel, False
        try:
            for start in range(0, len(content), PIECE_OCTETS):
                if start + PIECE_OCTETS >= len(content):
                    self._supervision.check()  # between this and the end of the content there is no await
                    end_sent = channel.usable
                await channel.write(content[start : start + PIECE_OCTETS], self._connection.timeouts.piece)
        except ChannelLost:
            if not end_sent:
                # It may have said why: too big, for instance.
                self._fail_accepted(fault(self._connection.server, "content", await self._connection.reply("content")))
        return end_sent

    async def read_verdict(self) -> None:
        """What the next hop makes of the content: one reply, or with LMTP one for each accepted recipient."""
        waiting = self.accepted
        if self._connection.server.protocol == "lmtp":
            for place in waiting:
                self._outcomes[place] = await self._verdict([place])
        else:
            self._fail_accepted(await self._verdict(waiting))

    async def _verdict(self, places: Sequence[int]) -> RelayError | None:
        """What is said of these recipients."""
        server = self._connection.server
        try:
            reply = await self._connection.channel.reply(self._connection.timeouts.content_reply)
        except ChannelLost as lost:
            return NextHopUnavailable(f"next hop {server}: content: whether it was taken is not known: {lost}")
        if not reply.positive:
            return fault(server, "content", reply, NextHopUnavailable)
        # Without an await since the answer was read: who is killed before that would send the mail twice.
        self._supervision.accepted([self._mail.envelope.recipients[place] for place in places])
        self._answers.append(reply.text)
        return None

    async def _recipient(self, command: bytes | NextHopRefused) -> RelayError | None:
        if isinstance(command, NextHopRefused):
            return command
        reply = await self._reply("RCPT", command)
        if reply.positive:
            return None
        too_many = reply.code == 452 and reply.status in (None, "4.5.3")
        return fault(self._connection.server, "RCPT", reply, TooManyRecipients if too_many else NotTaken)

    async def _reply(self, name: str, command: bytes, seconds: float = 0.0) -> Reply:
        """The reply to a command, which is said now unless it was said ahead."""
        if not self._ahead:
            self._connection.send(name, command)
        return await self._connection.reply(name, seconds)

    def _fail_accepted(self, error: RelayError | None) -> None:
        for place in self.accepted:
            self._outcomes[place] = error


def stuffed(message: bytes) -> bytes:
    """The content as DATA carries it: dots doubled at line starts, ended by CRLF.CRLF (RFC 5321, 4.5.2)."""
    end = b".\r\n" if not message or message.endswith(b"\r\n") else b"\r\n.\r\n"
    last_dot = message.rfind(b".") + 1  # nothing behind it needs a look
    head = message[:last_dot].replace(b"\r\n.", b"\r\n..")
    if head.startswith(b"."):
        head = b"." + head
    return b"".join((head, memoryview(message)[last_dot:], end))
