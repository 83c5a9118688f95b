"""Opens a connection to a next hop as far as the first mail: greeting, EHLO or LHLO, STARTTLS.
Standard: RFC 5321 3.1 and 3.2, RFC 2033 4.1 (LHLO), RFC 3207 4.2 (all is asked anew after STARTTLS).
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass

from relay.config import DirectionSettings, Server
from relay.forward.channel import Channel, ChannelLost, NoReply, Reply
from relay.forward.faults import Gone, Silent, fault
from relay.forward.tls import TLS


class Timeouts:
    """The longest waits, in seconds, as RFC 5321 4.5.3.2 has them where `timeout` is 300."""

    def __init__(self, timeout: float) -> None:
        """`timeout` is that for the greeting and for most replies."""
        self.connect = timeout / 10
        self.reply = timeout
        self.data = timeout * 2 / 5
        self.piece = timeout * 3 / 5
        self.content_reply = timeout * 2
        self.mail = timeout * 6
        """For one mail from its first command to its last reply, however busy the next hop seems."""


@dataclass(slots=True, eq=False)
class Connection:
    """A next hop that waits for mail, and the service extensions that it offers (RFC 5321, 2.2).

    `opened` is the loop's time; `mails` counts those it has carried; `expiry` closes it while it is idle.
    """

    server: Server
    channel: Channel
    timeouts: Timeouts
    extensions: dict[str, str]
    opened: float
    mails: int = 0
    expiry: asyncio.TimerHandle | None = None

    async def command(self, name: str, command: bytes, seconds: float = 0.0) -> Reply:
        """The reply to a command, which messages call `name`. Raises Gone."""
        self.send(name, command)
        return await self.reply(name, seconds)

    def send(self, name: str, *commands: bytes) -> None:
        """Sends commands whose replies are read later. Raises Gone."""
        try:
            self.channel.send(*commands)
        except ChannelLost as lost:
            raise self.gone(name, lost) from lost

    async def reply(self, name: str, seconds: float = 0.0) -> Reply:
        """The next reply, in `seconds` or the usual time. Raises Gone, for 421 too (RFC 5321, 3.8)."""
        try:
            reply = await self.channel.reply(seconds or self.timeouts.reply)
        except ChannelLost as lost:
            raise self.gone(name, lost) from lost
        if reply.code == 421:
            raise fault(self.server, name, reply, Gone)
        return reply

    def gone(self, name: str, lost: ChannelLost) -> Gone:
        """What the end of the connection means before the mail was sent; `name` is what was going on."""
        kind = Silent if isinstance(lost, NoReply) else Gone
        return kind(f"next hop {self.server}: {name}: {lost}")


class Opener:
    """Opens connections as one direction's settings want them."""

    def __init__(self, direction: DirectionSettings, hostname: str) -> None:
        """`hostname` is what we call ourselves. Raises ConfigError where a certificate file cannot be used."""
        self._timeouts = Timeouts(direction.timeout)
        self._tls = TLS(direction)
        self._hostname = hostname.encode("idna" if not hostname.isascii() else "ascii")

    async def open(self, server: Server, now: float) -> Connection:
        """A new connection, at the loop's time `now`. Raises Gone."""
        try:
            channel = await Channel.connect(server.address, self._timeouts.connect)
        except ChannelLost as lost:
            raise Gone(f"next hop {server}: {lost}") from lost
        connection = Connection(server, channel, self._timeouts, {}, now)
        try:
            await _greeted(connection)
            await self._hello(connection)
            if self._tls.wanted(channel):
                await self._secure(connection)
        except BaseException:
            channel.close()
            raise
        return connection

    async def _hello(self, connection: Connection) -> None:
        verb = b"LHLO" if connection.server.protocol == "lmtp" else b"EHLO"
        reply = await connection.command(verb.decode(), verb + b" " + self._hostname)
        if reply.code >= 500 and verb == b"EHLO":
            reply = await connection.command("HELO", b"HELO " + self._hostname)
            verb = b"HELO"
        if not reply.positive:
            raise Gone(f"next hop {connection.server}: {verb.decode()}: {reply}")
        offered = [line.partition(" ") for line in reply.lines[1:]] if verb != b"HELO" else []
        connection.extensions = {name.upper(): parameters for name, _, parameters in offered}

    async def _secure(self, connection: Connection) -> None:
        offered = "STARTTLS" in connection.extensions
        reply = await connection.command("STARTTLS", b"STARTTLS") if offered else None
        if reply is None or reply.code != 220:
            if self._tls.required:
                said = reply or "it offers none"
                raise Gone(f"next hop {connection.server}: next_hop_tls requires TLS: {said}")
            return
        try:
            await self._tls.start(connection.channel, connection.server, self._timeouts.reply)
        except ChannelLost as lost:
            raise connection.gone("STARTTLS", lost) from lost
        await self._hello(connection)


async def _greeted(connection: Connection) -> None:
    greeting = await connection.reply("greeting")
    if greeting.code != 220:
        raise Gone(f"next hop {connection.server}: greeting: {greeting}")
