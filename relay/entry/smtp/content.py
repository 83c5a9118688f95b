"""Reads what follows DATA in large pieces, up to the only end that there is, and takes off what DATA put on.
Standard: RFC 5321 4.1.1.4 (only CRLF.CRLF ends the content) and 4.5.2 (dots), RFC 1870 6.3 (what is too large).
"""

from __future__ import annotations

from collections.abc import Callable

from relay.aio import off_loop
from relay.budget import Share
from relay.entry import STEP_OCTETS, room_for
from relay.entry.smtp.aiosmtpd_base import PIECE_OCTETS, CommandStream
from relay.errors import MessageTooBig, TryLater

END_OF_DATA = b"\r\n.\r\n"


async def receive(stream: CommandStream, limit: int, share: Share, got: Callable[[int], None]) -> bytes:
    """The content up to CRLF.CRLF, dots unstuffed; `share` holds the room for it afterwards.

    `limit` is in octets; `got` is told after each piece how many octets have come so far. Raises MessageTooBig or
    Overloaded, but only after all of it was read, and ConnectionResetError where the client left before the end.
    """
    data = bytearray(b"\r\n")  # so that a dot in the first line stands at a line start too
    failed: MessageTooBig | TryLater | None = None
    total = 0
    while True:
        piece = await stream.read_piece()
        total += len(piece)
        got(total)
        searched = max(0, len(data) - len(END_OF_DATA))
        data += piece
        # One octet is found much faster than five, and most pieces of an attachment have no dot at all.
        dot = data.find(b".", searched)
        end = data.find(END_OF_DATA, max(searched, dot - 2)) if dot >= 0 else -1
        if end >= 0:
            break
        if failed is None:
            failed = await _fault(len(data), limit, share)
        if failed is not None:
            share.release()
            del data[: -len(END_OF_DATA)]
    if pipelined := bytes(data[end + len(END_OF_DATA) :]):
        stream.put_back(pipelined)
    if failed is not None:
        raise failed
    room = room_for(end)
    await share.hold(room)
    share.reduce(room)
    content = await off_loop(end, unstuffed, data, end + 2)
    if len(content) > limit:
        raise MessageTooBig(f"the content has {len(content)} octets, the limit is {limit}")
    return content


async def _fault(octets: int, limit: int, share: Share) -> MessageTooBig | TryLater | None:
    """Why no more than these octets can be kept, if so."""
    if octets > limit + limit // 3 + PIECE_OCTETS:  # every third octet may be a doubled dot
        return MessageTooBig(f"the content is over the limit of {limit} octets")
    if share.held < room_for(octets):
        try:
            await share.hold(room_for(octets + STEP_OCTETS))
        except TryLater as error:
            return error
    return None


def unstuffed(data: bytearray, end: int) -> bytes:
    """The content up to `end` without the CRLF put before it and the dots that DATA doubled."""
    last_dot = data.rfind(b".", 0, end)
    if data.find(b"\r\n.", 0, last_dot + 1) < 0:
        return bytes(memoryview(data)[2:end])
    head = bytes(memoryview(data)[: last_dot + 1]).replace(b"\r\n.", b"\r\n")[2:]
    return b"".join((head, memoryview(data)[last_dot + 1 : end]))
