"""One connection of a mail server: collects each mail, and replies with its replacement.
Standard: milter protocol 6; unknown errors give 451, and a broken connection the mail server's default action.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Protocol

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

from relay.entry import RecipientChecks
from relay.entry.budget import STEP_OCTETS, Share, room_for
from relay.entry.listening import SocketServer
from relay.entry.milter.edits import Field, can_be_edited, edits, message_of
from relay.entry.milter.wire import Packets, ProtocolFault
from relay.entry.streams import StreamConnection
from relay.entry.transaction import Transaction
from relay.errors import MalformedMessage, MessageTooBig, RelayError, TryLater
from relay.formats import mime
from relay.mail import InPlace, Mail, Origin, Recipient, for_all
from relay.runtime.aio import Turns, off_loop

log = structlog.get_logger(__name__)

PROGRESS_S = 15.0
"""Interval of progress replies, in seconds; without them the mail server gives up after milter_content_timeout."""
KNOWN_PARAMETERS = ("SMTPUTF8", "RET=", "ENVID=", "NOTIFY=", "ORCPT=")
WHOLE_FIELD_OCTETS = 54_000
"""Maximum size of a header field, in octets: Postfix passes 60,000, and may cut up to a tenth at a line end."""
FIELD_OCTETS = 200
"""Memory overhead of a header field, in bytes."""
CONNECTION_STAGES = frozenset(b"CH")
"""Stages whose macros apply to all mails of a connection; macros of other stages end with their mail."""


@dataclass(slots=True)
class _Message:
    """A mail received so far; `paths` are the recipients in angle brackets, as received."""

    transaction: Transaction
    paths: list[str] = field(default_factory=list)
    fields: list[Field] = field(default_factory=list)
    body: bytearray = field(default_factory=bytearray)
    header_octets: int = 0
    fault: RelayError | None = None

    @property
    def size(self) -> int:
        return self.header_octets + len(self.body)

    @property
    def memory(self) -> int:
        """Its size for the memory budget, in bytes."""
        return self.size + FIELD_OCTETS * len(self.fields)


class InPlaceRecipe(RecipientChecks, Protocol):
    """outgoing.py or incoming.py, as the milter sees them."""

    async def in_place(self, mail: Mail, fits: Callable[[bytes], bool]) -> InPlace:
        """The replacement in the mail server. Raises TryLater or Refuse, for all recipients.

        A message that does not fit goes to the next hop.
        """


class MilterSession(StreamConnection):
    """One connection, with any number of mails in turn. `idle` is set between them."""

    def __init__(self, server: SocketServer, recipe: InPlaceRecipe) -> None:
        super().__init__(server)
        self._recipe = recipe
        self._settings = server.settings
        self._share: Share = Share(server.budget)
        self._message: _Message | None = None
        self._macros: dict[int, Mapping[str, str]] = {}
        self._taken: Callable[[bool], None] | None = None

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """As StreamConnection.serve."""
        await self.run(Packets(reader, writer, self._settings.timeout))

    def client(self, writer: asyncio.StreamWriter) -> str:
        """Always "": all connections are the mail server's own, and not limited by client."""
        return ""

    async def run(self, packets: Packets) -> None:
        """Runs until the mail server closes the connection, or violates the protocol."""
        self._packets = packets
        turns = Turns()
        try:
            while not (self.ending and self.idle.is_set()):
                in_content = self._message is not None and bool(self._message.fields)
                message = await packets.next(in_content=in_content)
                self._confirm_reply(message is not None)
                if message is None or isinstance(message, Close):
                    break
                await self._one(message)
                if self._message is None:
                    self.idle.set()
                await turns.give()
        except ProtocolFault as error:
            log.warning("milter_protocol_fault", cause=str(error))
        except Exception as error:
            log.error("milter_failed", cause=f"{type(error).__name__}: {error}", exc_info=error)
        finally:
            self._confirm_reply(False)
            self._start_over()

    def _confirm_reply(self, answered: bool) -> None:
        """Reports whether our last reply was read: certain once the mail server sends its next command."""
        taken, self._taken = self._taken, None
        if taken is not None:
            taken(answered)

    async def _one(self, message: MTAMessage) -> None:
        """Handles one message, and replies if the mail server expects it."""
        answer: Iterable[FilterMessage] = [Continue()]
        match message:
            case Negotiate():
                self._packets.negotiate(message)
                return
            case Macro():
                self._macros[message.stage] = message.macros
            case Abort():
                self._mail_is_over()
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
            await self._packets.send(answer)

    # One method for each command.

    def _mail(self, sender: bytes, parameters: list[bytes]) -> list[FilterMessage]:
        self._start_over()
        path, supported = _text(self._whole(sender, "mail_addr")), _supported(parameters)
        if not (path.isascii() and all(map(str.isascii, supported))) and "SMTPUTF8" not in map(str.upper, supported):
            supported.append("SMTPUTF8")  # sendmail(1) does not say so
        transaction = Transaction(self.server, self._recipe)
        try:
            transaction.mail(path, supported)
        except RelayError as error:
            log.warning("sender_not_accepted", reply=error.reply, cause=str(error))
            return [_reply(error)]
        self._message = _Message(transaction)
        self.idle.clear()
        return [Continue()]

    def _rcpt(self, recipient: bytes, parameters: list[bytes]) -> list[FilterMessage]:
        message = self._in_message()
        transaction = message.transaction
        with structlog.contextvars.bound_contextvars(mail=transaction.id, **self._log_words()):
            try:
                transaction.rcpt(_text(self._whole(recipient, "rcpt_addr")), _supported(parameters), utf8=True)
            except RelayError as error:
                log.warning("recipient_not_accepted", sender=transaction.sender, reply=error.reply, cause=str(error))
                return [_reply(error)]
        message.paths.append(f"<{_text(recipient)}>")
        return [Continue()]

    async def _header(self, name: str, value: bytes) -> None:
        message = self._in_message()
        message.header_octets += len(name) + len(value) + 3
        if message.header_octets > mime.MAX_HEADER_OCTETS or len(message.fields) >= mime.MAX_HEADER_LINES:
            self._give_up(message, MalformedMessage("the header is too long"))
        elif len(name) + len(value) >= WHOLE_FIELD_OCTETS:
            self._give_up(message, MalformedMessage("a header field is too long to reach a milter whole"))
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
        """Gives up a message that is too large, or has no room; the reply is sent at its end."""
        if message.size > self._settings.max_message_size:
            limit = self._settings.max_message_size
            self._give_up(message, MessageTooBig(f"the message is over the limit of {limit} octets"))
        elif self._share.held < room_for(message.memory):
            try:
                await self._share.hold(room_for(message.memory + STEP_OCTETS))
            except TryLater as error:
                self._give_up(message, error)

    def _give_up(self, message: _Message, fault: RelayError) -> None:
        if message.fault is None:
            message.fault = fault
            self.server.turned_away(fault)
        message.fields.clear()
        message.body.clear()
        self._share.reduce()

    async def _end(self) -> list[FilterMessage]:
        """The reply to a complete mail: its replacement, or an error."""
        message = self._in_message()
        with structlog.contextvars.bound_contextvars(mail=message.transaction.id, **self._log_words()):
            try:
                if message.fault is not None:
                    raise message.fault  # noqa: TRY301
                # Otherwise it would be discarded.
                if not message.transaction.recipients:
                    raise TryLater("a mail without a recipient")  # noqa: TRY301
                return await self._in_place(message)
            except RelayError as error:
                log.warning("mail_not_accepted", reply=error.reply, kind=type(error).__name__, cause=str(error))
                return [_reply(error)]
            except Exception as error:
                log.error("milter_failed", cause=f"{type(error).__name__}: {error}", exc_info=error)
                return [_reply(TryLater("unforeseen"))]
            finally:
                self._mail_is_over()

    async def _in_place(self, message: _Message) -> list[FilterMessage]:
        work, body = message.memory, bytes(message.body)
        message.body.clear()
        octets = await off_loop(work, message_of, message.fields, body)
        before = memoryview(octets)[len(octets) - len(body) :]
        del body
        mail = message.transaction.complete(octets, origin=self._origin(), each_answered=False, confirmed=False)
        with structlog.contextvars.bound_contextvars(message_id=mail.message_id):
            result = await self._working(mail)
        if failure := for_all(result.outcomes):
            raise failure
        if result.message is None:
            return [Discard()]
        self._taken = result.taken
        try:
            return await off_loop(max(work, len(result.message)), _answer, message, before, mail, result)
        except BaseException:
            self._confirm_reply(False)
            raise

    async def _working(self, mail: Mail) -> InPlace:
        """Runs the recipe and sends progress replies; it finishes even if the mail server disconnects."""

        def fits(message: bytes) -> bool:
            return message == mail.message or can_be_edited(message)

        task = self.server.run(self._recipe.in_place(mail, fits))
        task.add_done_callback(lambda done: done.cancelled() or done.exception())  # marks the exception as retrieved
        try:
            while not (await asyncio.wait([task], timeout=PROGRESS_S))[0]:
                self._packets.send_progress()
                await self._packets.drain()
        except BaseException:
            share, self._share = self._share, Share(self.server.budget)  # the recipe still uses the memory
            task.add_done_callback(lambda _: share.reduce())
            task.add_done_callback(_not_taken)
            raise
        return task.result()

    # State.

    def _in_message(self) -> _Message:
        if self._message is None:
            raise ProtocolFault("a part of a mail came outside of any mail")
        return self._message

    def _start_over(self) -> None:
        message, self._message = self._message, None
        if message is not None:
            message.transaction.over(self._origin)
        self._share.reduce()

    def _mail_is_over(self) -> None:
        self._start_over()
        self._macros = {stage: macros for stage, macros in self._macros.items() if stage in CONNECTION_STAGES}

    def _macro(self, name: str) -> str:
        """The value given at the latest stage, or ""."""
        braced = f"{{{name}}}"
        values = (macros.get(braced) or macros.get(name) for macros in reversed(self._macros.values()))
        return next(filter(None, values), "")

    def _whole(self, path: bytes, macro: str) -> bytes:
        """The path, with the domain that the mail server adds to a bare name (`<root>`)."""
        full = self._macro(macro).encode("utf-8", "surrogateescape")
        return full if path not in (b"", b"<>") and b"@" not in path and b"@" in full else path

    def _origin(self) -> Origin:
        return Origin(
            name=self._macro("client_name"),
            addr=self._macro("client_addr"),
            port=self._macro("client_port"),
            ident=self._macro("i"),
            user=self._macro("auth_authen"),
            # Requested together with the user: if it was sent, a missing user means none.
            asks_user="{client_addr}" in self._macros.get(EnvelopeFrom.ident, ()),
        )

    def _log_words(self) -> dict[str, str]:
        words = {"client": self._macro("client_addr"), "queue_id": self._macro("i"), "user": self._macro("auth_authen")}
        return {name: value for name, value in words.items() if value}


def milter_connection(server: SocketServer, recipe: InPlaceRecipe) -> asyncio.StreamReaderProtocol:
    """The protocol of one more connection."""
    return MilterSession(server, recipe).protocol()


def _not_taken(task: asyncio.Task[InPlace]) -> None:
    """The mail server disconnected before the reply."""
    if not task.cancelled() and task.exception() is None and (taken := task.result().taken):
        taken(False)


def _answer(before: _Message, body: memoryview, mail: Mail, result: InPlace) -> list[FilterMessage]:
    """The edits, and the final reply."""
    assert result.message is not None  # noqa: S101 - the caller has checked
    same = result.message == mail.message
    edited = [] if same else list(edits(before.fields, body, result.message, under_trace=result.opened))
    # If two spellings of a domain were given, the mail server has kept one of them, and does not report which.
    stay = {Recipient(address).mailbox for address in result.recipients}
    given = zip(before.paths, mail.envelope.mailboxes, strict=True)
    # A mail server identifies a recipient by the path that the client gave.
    gone = [RemoveRecipient(path) for path, mailbox in given if mailbox not in stay]
    return [*edited, *gone, Accept()]


def _text(path: bytes) -> str:
    """The address in a path, with or without angle brackets."""
    text = path.decode("utf-8", "surrogateescape")
    return text[1:-1] if text.startswith("<") and text.endswith(">") else text


def _supported(parameters: list[bytes]) -> list[str]:
    """The parameters that we pass on."""
    return [text for each in parameters if _is_supported(text := each.decode("utf-8", "surrogateescape"))]


def _is_supported(parameter: str) -> bool:
    return parameter.upper().startswith(KNOWN_PARAMETERS)


def _reply(error: RelayError) -> ReplyCode:
    """The reply as one line, per cent signs escaped: some mail servers interpret them."""
    return ReplyCode(error.reply.replace("%", "").encode("ascii", "replace") + b"\0")
