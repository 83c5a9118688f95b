"""Binds the addresses that a relay listens on before anything else of it is there; who connects meanwhile waits.
Standard: RFC 5321 4.5.3.2 (a client waits five minutes for the greeting), 3.8; a relay that ends first resets it.
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from relay.config import Config, TCPAddress
from relay.errors import ConfigError

BACKLOG = 512
"""So many connections wait until somebody takes them."""
PROBE_S = 5.0
SOCKET_MODE = 0o660
"""A mail server's user must be in the group of a Unix socket's directory."""


Sockets = Mapping[str, Sequence[socket.socket]]
"""The listening sockets of each setting that names an address."""


async def bound(setting: str, where: TCPAddress | Path) -> list[socket.socket]:
    """The listening sockets of one address: several where its host has several; port 0 becomes a free one.

    `setting` is where relay.toml names the address, for messages. Raises ConfigError.
    """
    try:
        if isinstance(where, Path):
            return [await asyncio.to_thread(_unix_socket, where)]
        loop = asyncio.get_running_loop()
        found = await loop.getaddrinfo(*where, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
        return _tcp_sockets(dict.fromkeys((family, (str(place[0]), int(place[1]))) for family, _, _, _, place in found))
    except OSError as error:
        cause = error.strerror.partition(" (")[0] if error.strerror else str(error)
        raise ConfigError(f"{setting}: cannot listen on {where}: {cause}") from error


async def all_bound(config: Config) -> Sockets:
    """All of them, or none. Raises ConfigError."""
    sockets: dict[str, list[socket.socket]] = {}
    try:
        for setting, where in _settings(config).items():
            if where is not None:
                sockets[setting] = await bound(setting, where)
    except BaseException:
        close_all(sockets)
        raise
    return sockets


def close_all(sockets: Sockets) -> None:
    """Closes those that nobody has closed; who waits there is reset, and his queue keeps the mail."""
    for some in sockets.values():
        for each in some:
            each.close()


def address_of(sockets: Sequence[socket.socket]) -> TCPAddress:
    """The real address of the first of these TCP sockets."""
    host, port, *_ = sockets[0].getsockname()
    return TCPAddress(host, port)


def _settings(config: Config) -> dict[str, TCPAddress | Path | None]:
    """Every setting that names an address to listen on."""
    found: dict[str, TCPAddress | Path | None] = {}
    for name, table in (("outgoing", config.outgoing), ("incoming", config.incoming)):
        if table is not None:
            found |= {f"{name}.listen": table.listen, f"{name}.lmtp": table.lmtp, f"{name}.milter": table.milter}
    if (users := config.submission) is not None:
        found |= {"submission.listen": users.listen, "submission.listen_tls": users.listen_tls}
    return found


def _tcp_sockets(places: Iterable[tuple[int, tuple[str, int]]]) -> list[socket.socket]:
    sockets: list[socket.socket] = []
    try:
        for family, place in places:
            sockets.append(socket.create_server(place, family=family, backlog=BACKLOG))
            sockets[-1].setblocking(False)
    except BaseException:
        close_all({"": sockets})
        raise
    return sockets


def _unix_socket(path: Path) -> socket.socket:
    """In the place of one that a killed relay has left behind; one at which somebody listens stays. Raises OSError."""
    _remove_dead_socket(path)
    listening = socket.socket(socket.AF_UNIX)
    try:
        listening.bind(str(path))
        path.chmod(SOCKET_MODE)
        listening.listen(BACKLOG)
        listening.setblocking(False)
    except BaseException:
        listening.close()
        raise
    return listening


def _remove_dead_socket(path: Path) -> None:
    if not path.is_socket():
        return
    with socket.socket(socket.AF_UNIX) as probe:
        probe.settimeout(PROBE_S)
        try:
            probe.connect(str(path))
        except ConnectionRefusedError:
            path.unlink()
            return
    raise OSError(f"another process listens on {path}")
