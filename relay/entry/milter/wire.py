"""Milter packets on a connection: reads, checks and parses each; a malformed one ends the connection.
Standard: a packet has 4 octets of length, 1 of command, and data (libmilter's mfdef.h); parsed by kilter-protocol.
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Iterable

from kilter.protocol import (
    ActionFlags,
    FilterProtocol,
    Header,
    Macro,
    Message,
    Negotiate,
    Progress,
    ProtocolFlags,
    ReplaceBody,
    Stage,
)
from kilter.protocol.buffer import SimpleBuffer
from kilter.protocol.core import FilterMessage, MTAMessage

from relay.errors import TryLater

MAX_PACKET_OCTETS = 2 * 1024 * 1024
"""Maximum packet size, in bytes. A header field is one packet; body packets have 64 KiB, or 1 MiB if negotiated."""
VERSION = 6
ACTIONS = ActionFlags.ADD_HEADERS | ActionFlags.CHANGE_HEADERS | ActionFlags.CHANGE_BODY | ActionFlags.DELETE_RECIPIENT
NEEDED = ProtocolFlags.HDR_LEADSPC
"""Required options: without the blanks behind the colon, a header could not be restored octet for octet."""
WISHED = (
    ProtocolFlags.NO_CONNECT
    | ProtocolFlags.NO_HELO
    | ProtocolFlags.NO_DATA
    | ProtocolFlags.NO_UNKNOWN
    | ProtocolFlags.NR_HDR
    | ProtocolFlags.NR_EOH
    | ProtocolFlags.NR_BODY
)
"""Options for fewer packets and replies, used if offered."""
MACROS = {
    Stage.ENVELOPE_FROM: ("{auth_authen}", "{client_addr}", "{client_name}", "{client_port}", "{mail_addr}"),
    Stage.ENVELOPE_RECIPIENT: ("{rcpt_addr}",),
    Stage.END_MESSAGE: ("i",),
}
"""Macros requested: for the log, and addresses with the domain that the mail server adds."""
QUICKACK = getattr(socket, "TCP_QUICKACK", 0)
"""Socket option for an immediate ACK (tcp(7), Linux). By Nagle's algorithm the mail server waits for the ACK before it
sends more. Without a reply to carry it, that would take 40 ms for each mail."""
HEADER = b"L"
"""The command of a header field; many come at once."""

PACKETS_AT_ONCE = 64
"""Packets handled before other tasks get a turn: a mail may have thousands of header fields."""


class ProtocolFault(TryLater):
    """The mail server violates the milter protocol; its default action holds the mail."""


class Packets:
    """The packets of one connection."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, timeout: float) -> None:
        """`timeout` is in seconds, for each packet from its first octet."""
        self._reader = reader
        self._writer = writer
        self._timeout = timeout
        self._protocol = FilterProtocol()
        self._negotiated = False
        self._read = 0
        connection = writer.get_extra_info("socket")
        is_tcp = connection.family != socket.AF_UNIX
        self._tcp = connection if QUICKACK and is_tcp else None
        if is_tcp:  # there is no timeout between mails: else connections of a vanished host would never end
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)

    async def next(self, *, in_content: bool) -> MTAMessage | None:
        """The next message, or None at the end of the connection. Raises ProtocolFault.

        The timeout only applies within the content, which the mail server has complete.
        """
        self._read += 1
        if not self._read % PACKETS_AT_ONCE:
            await asyncio.sleep(0)
        try:
            async with asyncio.timeout(self._timeout if in_content else None) as patience:
                head = await self._reader.readexactly(4)
                patience.reschedule(asyncio.get_running_loop().time() + self._timeout)
                length = int.from_bytes(head)
                if not 1 <= length <= MAX_PACKET_OCTETS:
                    raise ProtocolFault(f"a packet of {length} octets")
                data = await self._reader.readexactly(length)
                if self._tcp is not None and data[:1] != HEADER:
                    self._tcp.setsockopt(socket.IPPROTO_TCP, QUICKACK, 1)
        except asyncio.IncompleteReadError as error:
            if error.partial:
                raise ProtocolFault("the connection ended in the middle of a packet") from error
            return None
        except TimeoutError as error:
            raise ProtocolFault(f"nothing more came for {self._timeout:g} s") from error
        except OSError:
            return None
        return self._parsed(head + data)

    def negotiate(self, offer: Negotiate) -> None:
        """Negotiates options. Raises ProtocolFault if the mail server lacks a required one."""
        if missing := (NEEDED & ~offer.protocol_flags) | (ACTIONS & ~offer.action_flags):
            raise ProtocolFault(f"the mail server cannot do {missing!r}, which we need")
        self._negotiated = True
        flags = NEEDED | (WISHED & offer.protocol_flags)
        macros, actions = {}, ACTIONS
        if ActionFlags.SETSYMLIST in offer.action_flags:
            macros, actions = MACROS, ACTIONS | ActionFlags.SETSYMLIST
        self._writer.write(self._packed(Negotiate(min(VERSION, offer.version), actions, flags, macros)))

    def needs_answer(self, message: MTAMessage) -> bool:
        """Whether the mail server expects a reply."""
        return self._protocol.needs_response(message)

    async def send(self, messages: Iterable[FilterMessage]) -> None:
        """Writes messages, with flow control for a large body. Raises ProtocolFault, as `drain`."""
        waiting = bytearray()  # one write for many small packets
        for number, message in enumerate(messages, 1):
            waiting += self._packed(message)
            many = not number % PACKETS_AT_ONCE
            if many or isinstance(message, ReplaceBody):
                self._writer.write(waiting)
                waiting = bytearray()
                await self.drain()
            if many:
                await asyncio.sleep(0)
        self._writer.write(waiting)
        await self.drain()

    def _packed(self, message: FilterMessage) -> bytes:
        buffer = SimpleBuffer(_size(message))
        self._protocol.write_to(buffer, message)
        return buffer[:].tobytes()

    def send_progress(self) -> None:
        """Sends a progress reply, which restarts the mail server's timeout."""
        buffer = SimpleBuffer(16)
        Progress().pack(buffer)
        self._writer.write(buffer[:].tobytes())

    async def drain(self) -> None:
        """Waits for room. Raises ProtocolFault if the mail server is gone or does not read."""
        transport = self._writer.transport
        if not transport.get_write_buffer_size() and not transport.is_closing():
            return
        try:
            async with asyncio.timeout(self._timeout):
                await self._writer.drain()
        except (OSError, TimeoutError) as error:
            raise ProtocolFault(f"the mail server does not listen: {type(error).__name__}") from error

    def _parsed(self, packet: bytes) -> MTAMessage:
        buffer = SimpleBuffer(len(packet))
        buffer[:] = packet
        try:
            message = next(iter(self._protocol.read_from(buffer)))
            message.freeze()
        except UnicodeDecodeError:
            if packet[4:5] == b"D":
                return _macros(packet[5:])  # the library only supports ASCII, and addresses may be UTF-8
            raise ProtocolFault("a packet with other characters than it may have") from None
        except Exception as error:
            raise ProtocolFault(f"a malformed or misplaced packet: {type(error).__name__}") from error
        if not (self._negotiated or isinstance(message, Negotiate)):
            raise ProtocolFault("it does not begin with what is offered")
        return message


def _macros(data: bytes) -> Macro:
    """Parses stage, names and values, each ended by NUL."""
    words = [word.decode("utf-8", "replace") for word in data[1:].split(b"\0")]
    return Macro(data[0], dict(zip(words[::2], words[1::2], strict=False)))


def _size(message: Message) -> int:
    """The packet size of a message, in octets."""
    match message:
        case Header():
            return 64 + len(message.name) + len(message.value)
        case _:
            content = getattr(message, "content", None) or getattr(message, "value", None) or b""
            return 4096 + len(content)
