"""Opens the milter listener: a listener for each direction.
Its interface to process/app.py and `check` is here.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path

from relay.config import Config, TCPAddress
from relay.entry import Inside, Listener, Reloadable
from relay.entry.listening import SocketServers, Where, address_of, server_inside
from relay.entry.milter.session import milter_connection


def listens_on(config: Config) -> dict[str, Where]:
    """The addresses of [outgoing] and [incoming], by setting."""
    directions = {"outgoing.milter": config.outgoing, "incoming.milter": config.incoming}
    return {name: each.milter for name, each in directions.items() if each is not None and each.milter is not None}


@asynccontextmanager
async def listener(inside: Inside) -> AsyncIterator[Listener]:
    """The listener; it needs no resources."""
    yield MilterListener(inside)


def read_files(config: Config) -> None:
    """Reads nothing."""


async def states(config: Config) -> AsyncIterator[tuple[str, str, tuple[str, ...]]]:
    """Yields nothing: no fault can be detected before a mail server connects."""
    for _ in range(0):
        yield "", "", ()


class MilterListener(SocketServers):
    """A SocketServer for each direction."""

    def __init__(self, inside: Inside) -> None:
        super().__init__()
        self._inside = inside

    async def start(self) -> dict[str, TCPAddress]:
        """The bound TCP addresses as `outgoing_milter` and `incoming_milter`."""
        addresses: dict[str, TCPAddress] = {}
        for name, direction, recipe in self._inside.directions:
            if sockets := self._inside.sockets.get(f"{name}.milter"):
                server = server_inside(self._inside, name, "milter", direction)
                await server.listen(sockets, partial(milter_connection, server, recipe))
                self.servers.add(server)
                if not isinstance(direction.milter, Path):
                    addresses[f"{name}_milter"] = address_of(sockets)
        return addresses

    @property
    def reloadable(self) -> Sequence[Reloadable]:
        """Nothing."""
        return ()
