"""One connection of a mail server: collects each mail as it passes, and at its end says what takes its place.
Standard: milter protocol 6; unknown errors answer 451, and a broken connection the mail server's own default.
"""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import structlog
from kilter.protocol import (
    Abort,
    Accept,
    Body,
    Close,
    Continue,
    Discard,
    EndOfHeaders,
    EndOfMessage,
    EnvelopeFrom,
    EnvelopeRecipient,
    Header,
    Macro,
    Negotiate,
    RemoveRecipient,
    ReplyCode,
)
from kilter.protocol.core import FilterMessage, MTAMessage

from relay import mime
from relay.budget import Budget, Share
from relay.config import Listening
from relay.entry.content import STEP_OCTETS, room_for
from relay.entry.envelope import parse_mail, parse_rcpt
from relay.entry.milter.edits import Field, can_be_told, edits, message_of
from relay.entry.milter.wire import Packets, ProtocolFault
from relay.errors import MalformedMessage, MessageTooBig, RelayError, TryLater, for_all
from relay.levels.content import off_loop
from relay.mail import Envelope, InPlace, Mail, Origin, Recipient

if TYPE_CHECKING:
    from relay.entry.milter import InPlaceRecipe

log = structlog.get_logger(__name__)

PROGRESS_S = 15.0
"""How often the mail server is told that we still work; it waits for 300 s without (milter_content_timeout)."""
KNOWN_PARAMETERS = ("SMTPUTF8", "RET=", "ENVID=", "NOTIFY=", "ORCPT=")


@dataclass(slots=True)
class _Message:
    """What has come of a mail so far."""

    envelope: Envelope
    recipients: list[Recipient] = field(default_factory=list)
    fields: list[Field] = field(default_factory=list)
    body: bytearray = field(default_factory=bytearray)
    header_octets: int = 0
    fault: RelayError | None = None

    @property
    def octets(self) -> int:
        return self.header_octets + len(self.body)


class Conversation:
    """One connection; a mail server sends several mails over it, one after the other.

    `ending` makes it end after the mail in flight.
    """

    def __init__(self, packets: Packets, recipe: InPlaceRecipe, settings: Listening, budget: Budget) -> None:
        self._packets = packets
        self._recipe = recipe
        self._settings = settings
        self._share: Share = budget.share()
        self._message: _Message | None = None
        self._macros: dict[str, str] = {}
        self.ending = False

    @property
    def idle(self) -> bool:
        """Whether no mail is in flight."""
        return self._message is None

    async def run(self) -> None:
        """Until the mail server ends it, or does what the protocol does not know."""
        try:
            while not (self.ending and self.idle) and (message := await self._packets.next()) is not None:
                if isinstance(message, Close):
                    break
                await self._one(message)
                await self._packets.drain()
        except ProtocolFault as error:
            log.warning("milter_protocol_fault", cause=str(error))
        finally:
            self._start_over()

    async def _one(self, message: MTAMessage) -> None:
        """Takes one message in and answers it where an answer is waited for."""
        answer: Iterable[FilterMessage] = [Continue()]
        match message:
            case Negotiate():
                self._packets.negotiate(message)
                return
            case Macro():
                self._macros |= message.macros
            case Abort():
                self._start_over()
            case EnvelopeFrom():
                answer = self._mail(bytes(message.sender), [bytes(each) for each in message.arguments])
            case EnvelopeRecipient():
                answer = self._rcpt(bytes(message.recipient), [bytes(each) for each in message.arguments])
            case Header():
                await self._header(message.name, bytes(message.value))
            case EndOfHeaders():
                self._in_message()
            case Body():
                await self._body(message.content)
            case EndOfMessage():
                await self._body(message.content)
                answer = await self._end()
        if self._packets.needs_answer(message):
            self._packets.send(answer)

    # One step each.

    def _mail(self, sender: bytes, parameters: list[bytes]) -> list[FilterMessage]:
        self._start_over()
        try:
            envelope, _ = parse_mail(f"FROM:{_words(sender, parameters)}", self._settings.max_message_size)
        except RelayError as error:
            return [_reply(TryLater(str(error)))]  # the mail server has taken it, so it is we who do not understand
        self._message = _Message(envelope)
        return [Continue()]

    def _rcpt(self, recipient: bytes, parameters: list[bytes]) -> list[FilterMessage]:
        message = self._in_message()
        try:
            found = parse_rcpt(f"TO:{_words(recipient, parameters)}", utf8=True)
            if len(message.recipients) >= self._settings.max_recipients:
                return [ReplyCode(b"452 4.5.3 Too many recipients\0")]
            self._recipe.check_recipient(message.envelope.sender, found.address)
        except RelayError as error:
            log.warning("recipient_not_accepted", reply=error.reply, cause=str(error))
            return [_reply(error)]
        message.recipients.append(found)
        return [Continue()]

    async def _header(self, name: str, value: bytes) -> None:
        message = self._in_message()
        message.header_octets += len(name) + len(value) + 3
        if message.header_octets > mime.MAX_HEADER_OCTETS or len(message.fields) >= mime.MAX_HEADER_LINES:
            message.fault = MalformedMessage("the header is too long")
            message.fields.clear()
        if message.fault is None:
            message.fields.append((name, value))
            await self._hold_room(message)

    async def _body(self, piece: bytes | memoryview) -> None:
        if not piece:
            return
        message = self._in_message()
        if message.fault is None:
            message.body += piece
            await self._hold_room(message)

    async def _hold_room(self, message: _Message) -> None:
        """What is too large, or for which there is no room, is taken no more, and answered at its end."""
        if message.octets > self._settings.max_message_size:
            message.fault = MessageTooBig(f"the message is over the limit of {self._settings.max_message_size} octets")
        elif self._share.held < room_for(message.octets):
            try:
                await self._share.hold(room_for(message.octets + STEP_OCTETS))
            except TryLater as error:
                message.fault = error
        if message.fault is not None:
            message.body.clear()
            self._share.release()

    async def _end(self) -> list[FilterMessage]:
        """The whole mail is here: what takes its place, or why there is nothing."""
        message = self._in_message()
        mail_id = secrets.token_hex(6)
        with structlog.contextvars.bound_contextvars(mail=mail_id, **self._log_words()):
            try:
                if message.fault is not None:
                    raise message.fault  # noqa: TRY301
                return await self._in_place(message, mail_id)
            except RelayError as error:
                log.warning("mail_not_accepted", reply=error.reply, kind=type(error).__name__, cause=str(error))
                return [_reply(error)]
            except Exception as error:
                log.error("milter_failed", cause=f"{type(error).__name__}: {error}", exc_info=error)
                return [_reply(TryLater("unforeseen"))]
            finally:
                self._start_over()

    async def _in_place(self, message: _Message, mail_id: str) -> list[FilterMessage]:
        body = bytes(message.body)
        message.body.clear()
        octets = await off_loop(len(body), message_of, message.fields, body)
        mail = Mail(message.envelope, octets, id=mail_id, origin=self._origin()).to(message.recipients)
        result = await self._working(mail)
        if failure := for_all(result.outcomes):
            raise failure
        if result.message is None:
            return [Discard()]
        if not can_be_told(result.message):
            raise TryLater("the mail server could not be told this message in header fields and body")
        return await off_loop(len(result.message), _answer, message.fields, body, mail, result)

    async def _working(self, mail: Mail) -> InPlace:
        """The recipe, and signs of life meanwhile; it goes on to its end also when the mail server is gone."""
        task = asyncio.create_task(self._recipe.in_place(mail))
        task.add_done_callback(lambda done: done.cancelled() or done.exception())  # nobody may be there to hear it
        while True:
            done, _ = await asyncio.wait([task], timeout=PROGRESS_S)
            if done:
                return task.result()
            self._packets.say_that_we_work()
            await self._packets.drain()

    # What stands behind.

    def _in_message(self) -> _Message:
        if self._message is None:
            raise ProtocolFault("a part of a mail came outside of any mail")
        return self._message

    def _start_over(self) -> None:
        self._message = None
        self._share.release()

    def _macro(self, name: str) -> str:
        return self._macros.get(name) or self._macros.get(f"{{{name}}}", "")

    def _origin(self) -> Origin:
        return Origin(
            name=self._macro("client_name"),
            addr=self._macro("client_addr"),
            port=self._macro("client_port"),
            ident=self._macro("i"),
            user=self._macro("auth_authen"),
        )

    def _log_words(self) -> dict[str, str]:
        words = {"client": self._macro("client_addr"), "queue_id": self._macro("i"), "user": self._macro("auth_authen")}
        return {name: value for name, value in words.items() if value}


def _answer(before: list[Field], body: bytes, mail: Mail, result: InPlace) -> list[FilterMessage]:
    """The edits, and the last word."""
    assert result.message is not None  # noqa: S101 - whoever calls has looked
    told = list(edits(before, body, result.message, under_trace=result.opened))
    gone = [RemoveRecipient(f"<{each}>") for each in mail.envelope.addresses if each not in result.recipients]
    return [*told, *gone, Accept()]


def _words(path: bytes, parameters: list[bytes]) -> str:
    """A path in angle brackets, and those of its parameters that we pass on."""
    text = path.decode("utf-8", "surrogateescape")
    known = [each.decode("utf-8", "surrogateescape") for each in parameters]
    return " ".join([text if text.startswith("<") else f"<{text}>", *(each for each in known if _is_known(each))])


def _is_known(parameter: str) -> bool:
    return parameter.upper().startswith(KNOWN_PARAMETERS)


def _reply(error: RelayError) -> ReplyCode:
    """The reply as one line; per cent signs mean something to some mail servers."""
    return ReplyCode(error.reply.replace("%", "").encode("ascii", "replace") + b"\0")
