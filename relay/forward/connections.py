"""Keeps connections to next hops for the mails that come next.
Standard: RFC 5321 (several mail transactions in one session); a kept connection may be closed by either side.
"""

from __future__ import annotations

import asyncio

import structlog

from relay.config import DirectionSettings, Server
from relay.forward.connection import Connection, Opener
from relay.forward.conversation import Supervision, Taken, converse
from relay.forward.faults import Gone, Silent
from relay.mail import Mail

log = structlog.get_logger(__name__)

IDLE_S = 10.0
"""So long a connection waits for the next mail: not so long that a busy next hop would lack it."""
AGE_S = 300.0
"""So long it is used, so that a change of the next hop's address is noticed."""
MAILS = 100
"""So many mails it carries."""
GOODBYE_S = 2.0


class Connections:
    """The connections of one direction, at most `next_hop_connections` idle ones to each server."""

    def __init__(self, direction: DirectionSettings, hostname: str) -> None:
        """Raises ConfigError where a certificate file cannot be used."""
        self._opener = Opener(direction, hostname)
        self._most = direction.next_hop_connections
        self._idle: dict[Server, list[Connection]] = {}
        self._closed = False

    async def carry(self, server: Server, mail: Mail, supervision: Supervision) -> Taken:
        """The mail over an idle connection, or over a new one where there is none or it has died meanwhile.

        Raises NotTaken or NextHopRefused, for all recipients.
        """
        if (idle := self._take(server)) is not None:
            try:
                return await self._over(idle, mail, supervision)
            except Silent:
                raise
            except Gone as error:
                log.debug("idle_connection_was_gone", next_hop=str(server), cause=str(error))
        return await self._over(await self.open(server), mail, supervision)

    async def open(self, server: Server) -> Connection:
        """A new connection. Raises Gone."""
        return await self._opener.open(server, asyncio.get_running_loop().time())

    async def close(self) -> None:
        """Says goodbye on all idle connections, and keeps none from now on."""
        self._closed = True
        idle = [connection for server in list(self._idle) for connection in self._idle.pop(server)]
        for connection in idle:
            _wake(connection).channel.close()
        await asyncio.gather(*(connection.channel.closed(GOODBYE_S) for connection in idle))

    async def _over(self, connection: Connection, mail: Mail, supervision: Supervision) -> Taken:
        try:
            taken = await converse(connection, mail, supervision)
        except BaseException:
            connection.channel.close()
            raise
        connection.mails += 1
        if taken.smoothly:
            self._keep(connection)
        else:
            connection.channel.close()
        return taken

    def _take(self, server: Server) -> Connection | None:
        """The connection that was used last: others may so come to the end of their time."""
        idle = self._idle.get(server, [])
        while idle:
            connection = _wake(idle.pop())
            if connection.channel.usable:
                return connection
        return None

    def _keep(self, connection: Connection) -> None:
        loop = asyncio.get_running_loop()
        idle = self._idle.setdefault(connection.server, [])
        for dead in [each for each in idle if not each.channel.usable]:
            idle.remove(_wake(dead))
        worn = connection.mails >= MAILS or loop.time() - connection.opened >= AGE_S
        if self._closed or worn or len(idle) >= self._most:
            connection.channel.close()
            return
        idle.append(connection)
        connection.expiry = loop.call_later(IDLE_S, self._expire, connection)

    def _expire(self, connection: Connection) -> None:
        self._idle[connection.server].remove(connection)
        connection.channel.close()


def _wake(connection: Connection) -> Connection:
    """The connection, idle no more."""
    if connection.expiry is not None:
        connection.expiry.cancel()
    return connection
