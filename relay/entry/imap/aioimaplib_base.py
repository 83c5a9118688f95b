"""aioimaplib's connection with our own reader: memory is bounded, and a protocol violation ends the connection.
Standard: RFC 3501 2.2 and 4.3 (lines, literals, tags, continuations), RFC 2177 (IDLE).

aioimaplib's commands, tags, states and command order are used as they are. What is overridden, or used although it is
not documented, is here, and a new version may break it:

- `data_received`, with `append_to_resp`, `_response_done`, `pending_sync_command`, `pending_async_commands`: the
  original reader is recursive and unbounded;
- `connection_lost`, `Command._exception`, `Command.close`: the original does not fail pending commands;
- `Command._resp_lines`: the original mixes lines and literals, ours has one entry for each response;
- `state`, `capabilities`, `_idle_event`: only set by the original commands, which do more than we need;
- `execute` raises `Abort`, which is not one of our errors; its log has content, and is silenced.
"""

from __future__ import annotations

import asyncio
import logging
import re
from collections import deque
from collections.abc import Callable, Iterable
from contextlib import suppress

from relay.errors import ConfigError, MailboxUnavailable

try:
    from aioimaplib import aioimaplib
except ModuleNotFoundError as error:
    raise ConfigError("[imap.*] needs the Python package aioimaplib (the extra `imap`)") from error

Untagged = tuple[bytes, ...]
"""One untagged response: alternating text and literals, first and last text, without CRLF."""

MAX_LINE_OCTETS = 8 * 2**20
"""Maximum line length, in octets; a SEARCH result names all messages in one line."""
MAX_RESPONSES = 20_000
"""Maximum number of responses to one command; ours need fewer."""
PIECE_OCTETS = 256 * 1024
SLACK_OCTETS = 64 * 1024
"""Maximum size of unrequested data from a server, in octets."""

_LITERAL = re.compile(rb"\{(\d{1,10})\}$")
_STATUS = re.compile(rb"\* (?:OK|NO|BAD|BYE|PREAUTH)\b", re.IGNORECASE)
_NEWS = re.compile(rb"\* \d+ EXISTS$", re.IGNORECASE)


class Request(aioimaplib.Command):  # type: ignore[misc] # aioimaplib has no types
    """One command; `replies` are sent in turn at each continuation request.

    Its text is the line sent, which may have a password: it must not be logged.
    """

    def __init__(self, name: str, tag: str, *args: str, prefix: str | None = None, replies: Iterable[bytes] = ()):
        super().__init__(name, tag, *args, prefix=prefix)
        self.replies = deque(replies)

    @property
    def untagged(self) -> list[Untagged]:
        """The untagged responses before the tagged one."""
        return [line for line in self._resp_lines if isinstance(line, tuple)]

    def fail(self, error: Exception) -> None:
        """Raises this error in the command's caller."""
        self._exception = error
        self.close(b"", "KO")


class IMAPConnection(aioimaplib.IMAP4ClientProtocol):  # type: ignore[misc] # aioimaplib has no types
    """One connection. `news` is set when the server reports new messages; `on_data` is called at each read."""

    pending_sync_command: Request | None
    pending_async_commands: dict[str, Request]

    def __init__(self, server: str) -> None:
        """`server` is its name in errors."""
        super().__init__(asyncio.get_running_loop())
        self.news = asyncio.Event()
        self.greeted = asyncio.Event()
        self.on_data: Callable[[], object] = lambda: None
        self.failure: MailboxUnavailable | None = None
        self._server = server
        self._buffer = bytearray()
        self._searched = 0
        self._parts: list[bytes] = []
        self._literal: bytearray | None = None
        self._missing = 0
        self._allowance = SLACK_OCTETS
        self._responses = 0

    @property
    def idling(self) -> asyncio.Event:
        """Set once the server has begun to IDLE."""
        event: asyncio.Event = self._idle_event
        return event

    @property
    def is_quiet(self) -> bool:
        """Whether no data is unread: before TLS, such data could come from an attacker."""
        return not self._buffer and not self._parts

    def is_logged_in(self) -> None:
        """Sets the state after a login."""
        self.state = aioimaplib.AUTH

    def has_selected(self) -> None:
        """Sets the state after SELECT."""
        self.state = aioimaplib.SELECTED

    def allow(self, size: int) -> None:
        """Sets how much the server may send until the next call, plus SLACK_OCTETS; more ends the connection."""
        self._allowance = size + SLACK_OCTETS
        self._responses = 0

    def end(self, cause: str) -> None:
        """Aborts the connection; the current command and all later ones fail with `cause`."""
        if self.failure is None:
            self.failure = MailboxUnavailable(f"{self._server}: {cause}")
        if self.transport is not None:
            self.transport.abort()
        waiting = [self.pending_sync_command, *self.pending_async_commands.values()]
        self.pending_sync_command = None
        self.pending_async_commands.clear()
        for command in waiting:
            if command is not None:
                command.fail(self.failure)
        self.greeted.set()
        self.news.set()
        self.idling.set()

    def connection_lost(self, exc: Exception | None) -> None:
        self.end(f"the connection was lost ({exc})" if exc else "the server closed the connection")

    def data_received(self, data: bytes) -> None:
        if self.failure is not None:
            return
        self.on_data()
        self._allowance -= len(data)
        if self._allowance < 0:
            self.end("it sends more than was asked for")
            return
        self._buffer += data
        try:
            self._read()
        except (aioimaplib.AioImapException, ValueError) as error:
            self.end(f"it does not speak IMAP: {type(error).__name__}")

    async def execute(self, command: Request, scrub: str | None = None) -> None:
        """Sends the command and waits for its tagged response. Raises MailboxUnavailable."""
        if self.failure is not None:
            raise self.failure
        with suppress(aioimaplib.Abort):
            await super().execute(command, scrub)
            return
        raise MailboxUnavailable(f"{self._server}: {command.name} is not possible in state {self.state}")

    def _read(self) -> None:
        """Parses all complete lines and literals in the buffer."""
        buffer, at = self._buffer, 0
        while self.failure is None:
            if self._literal is not None:
                piece = buffer[at : at + self._missing]
                at += len(piece)
                self._literal += piece
                self._missing -= len(piece)
                if self._missing:
                    break
                self._parts.append(bytes(self._literal))
                self._literal = None
                self._searched = at
            end = buffer.find(b"\r\n", max(at, self._searched))
            if end < 0:
                break
            self._line(bytes(memoryview(buffer)[at:end]))
            at = end + 2
        del buffer[:at]
        self._searched = max(0, len(buffer) - 1)
        if len(buffer) > MAX_LINE_OCTETS:
            self.end(f"a line is longer than {MAX_LINE_OCTETS} octets")

    def _line(self, line: bytes) -> None:
        self._parts.append(line)
        first = self._parts[0]
        if first.startswith(b"* ") and not _STATUS.match(first) and (literal := _LITERAL.search(line)):
            self._missing = int(literal[1])
            if self._missing > self._allowance + len(self._buffer):
                self.end(f"it announces a literal of {self._missing} octets, which is more than was asked for")
            self._literal = bytearray()
            return
        response, self._parts = tuple(self._parts), []
        self._response(response)

    def _response(self, response: Untagged) -> None:
        line = response[0]
        self._responses += 1
        if self._responses > MAX_RESPONSES:
            self.end(f"it answers with more than {MAX_RESPONSES} responses")
        if not self.greeted.is_set():
            self._greeting(line)
        elif line.startswith(b"* "):
            if _NEWS.match(line):
                self.news.set()
            command = self.pending_sync_command or next(iter(self.pending_async_commands.values()), None)
            if command is not None:
                command.append_to_resp(response)
        elif line.startswith(b"+"):
            self._continuation(line)
        elif line:
            self._response_done(line)

    def _greeting(self, line: bytes) -> None:
        if line.startswith(b"* OK"):
            self.state = aioimaplib.NONAUTH
            self.greeted.set()
        else:  # BYE, or PREAUTH, which may be an attacker's way to prevent STARTTLS
            self.end(f"it greets with {printable(line)}")

    def _continuation(self, line: bytes) -> None:
        command = self.pending_sync_command
        if command is not None and command.replies:
            task = self.loop.create_task(self._send(command.replies.popleft()))
            self.tasks.add(task)
            task.add_done_callback(self.tasks.discard)
        elif command is not None and command.name == "IDLE":
            self.idling.set()
        else:
            self.end("it asks for more than there was to send")

    async def _send(self, reply: bytes) -> None:
        """Sends a large message in pieces: encrypting it at once would block the event loop."""
        for start in range(0, len(reply), PIECE_OCTETS):
            if self.failure is None:
                self.transport.write(reply[start : start + PIECE_OCTETS])
                await asyncio.sleep(0)


def silence_log() -> None:
    """Disables aioimaplib's log, which has content."""
    for name in ("aioimaplib", "aioimaplib.aioimaplib"):
        logging.getLogger(name).setLevel(logging.CRITICAL)


def printable(line: bytes) -> str:
    """The beginning of a server's line, safe in the log."""
    text = line[:200].decode("ascii", "replace")
    return "".join(character if character.isprintable() else "?" for character in text)
