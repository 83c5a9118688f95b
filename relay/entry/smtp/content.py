"""Reads what follows DATA piece by piece, up to the only end that there is, and takes off what DATA put on.
Standard: RFC 5321 4.1.1.4 (only CRLF.CRLF ends the content) and 4.5.2 (dots), RFC 1870 6.3 (what is too large).
"""

from __future__ import annotations

from dataclasses import dataclass, field

from relay.entry.budget import STEP_OCTETS, Share, room_for
from relay.entry.smtp.aiosmtpd_base import CommandStream
from relay.errors import MessageTooBig, TryLater
from relay.formats.mime import check_size
from relay.runtime.aio import off_loop

END_OF_DATA = b"\r\n.\r\n"
LEAST_RATE = 1024
"""Minimum average rate of content, in octets a second, beside each client's idle time."""
FASTER = 16
"""Speed of joining pieces, as a multiple of other work on as many octets."""


async def receive(stream: CommandStream, limit: int, share: Share) -> bytes:
    """The content up to CRLF.CRLF, if it comes fast enough, dots unstuffed; `share` holds the room for it afterwards.

    `limit` is in octets. Raises MessageTooBig or Overloaded, but only after all of it was read, and
    ConnectionResetError where the client left before the end.
    """
    content = _Content()
    failed: MessageTooBig | TryLater | None = None
    total, usual, begun = 0, stream.settings.timeout, stream.loop.time()
    stream.start_timer()
    while not content.ended:
        piece = await stream.read_piece()
        total += len(piece)
        left = begun + usual + total / LEAST_RATE - stream.loop.time()
        stream.start_timer(max(0.001, min(usual, left)))
        content.add(piece)
        if failed is None and not content.ended:
            failed = await _fault(content.size, limit, share)
        if failed is not None:
            share.reduce()
            content.drop()
    if content.behind:
        stream.put_back(content.behind)
    if failed is not None:
        raise failed
    check_size(content.size, limit)
    room = room_for(content.size)
    await share.hold(room)
    share.reduce(room)
    return await off_loop(content.size // FASTER, content.octets)


async def _fault(octets: int, limit: int, share: Share) -> MessageTooBig | TryLater | None:
    """Why no more than these octets can be kept, if so."""
    if octets > limit:
        return MessageTooBig(f"the content is over the limit of {limit} octets")
    if share.held < room_for(octets):
        try:
            await share.hold(room_for(octets + STEP_OCTETS))
        except TryLater as error:
            return error
    return None


def unstuffed(text: bytes) -> bytes:
    """A piece of content, which begins a line, without the dots that DATA doubled."""
    return text.replace(b"\r\n.", b"\r\n")


@dataclass(slots=True)
class _Content:
    """The content as far as it has come. `size` is its octets without doubled dots, `behind` what followed its end."""

    ended: bool = False
    behind: bytes = b""
    size: int = 0
    _pieces: list[bytes] = field(default_factory=list)
    _held: bytes = b"\r\n"  # so that a dot in the first line stands at a line start too
    _extra: int = 2

    def add(self, piece: bytes) -> None:
        """What has come now. At its end, what may be the beginning of CRLF.CRLF is held back."""
        text = self._held + piece if self._held else piece
        # One octet is found much faster than five, and most pieces of an attachment have no dot at all.
        dotted = b"." in text
        end = text.find(END_OF_DATA) if dotted else -1
        if end >= 0:
            self.ended = True
            text, self._held, self.behind = text[: end + 2], b"", text[end + len(END_OF_DATA) :]
        else:
            text, self._held = _held_back(text)
        if dotted:
            text = unstuffed(text)
        if self._extra and text:
            text, self._extra = text[self._extra :], 0
        self.size += len(text)
        self._pieces.append(text)

    def drop(self) -> None:
        """Keeps nothing of what has come."""
        self._pieces.clear()

    def octets(self) -> bytes:
        """All of it, which is there twice until this is done: as often as when it is sealed then."""
        content = b"".join(self._pieces)
        self._pieces.clear()
        return content


def _held_back(text: bytes) -> tuple[bytes, bytes]:
    """The text before what may be the beginning of CRLF.CRLF, and that."""
    mark = text.find(b"\r", max(0, len(text) - len(END_OF_DATA) + 1))
    while mark >= 0 and not END_OF_DATA.startswith(text[mark:]):
        mark = text.find(b"\r", mark + 1)
    return (text, b"") if mark < 0 else (text[:mark], text[mark:])
