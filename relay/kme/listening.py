"""Listening sockets of a development KME, on loopback only.
Standard: loopback addresses of RFC 1122 (127.0.0.0/8) and RFC 4291 (::1).
"""

from __future__ import annotations

import asyncio
import errno
import ipaddress
import os
import socket
from contextlib import ExitStack

from relay.errors import ConfigError

BACKLOG = 128


async def listen(name: str, host: str, port: int, stack: ExitStack) -> list[socket.socket]:
    """Sockets for `name` at one port of every address of `host`, closed with `stack`; port 0 is any free one.

    An address that this machine lacks (::1 in /etc/hosts without IPv6) is left out. Raises ConfigError if the host is
    not loopback or the port is unavailable.
    """
    addresses = await loopback_addresses(host)
    sockets: list[socket.socket] = []
    while not sockets:
        try:
            for address in addresses:
                if listener := _open(address, port_of(sockets[0]) if sockets else port):
                    sockets.append(listener)
        except OSError as error:
            another = port == 0 and sockets and error.errno == errno.EADDRINUSE
            while sockets:
                sockets.pop().close()
            if another:
                continue  # the port that was free at the first address is taken at the next
            raise ConfigError(_cannot_listen(name, host, port, error)) from error
        if not sockets:
            raise ConfigError(f"host {host!r}: this machine has none of {', '.join(addresses)}")
    for listener in sockets:
        stack.callback(listener.close)
    return sockets


def port_of(listener: socket.socket) -> int:
    """The port of a listening socket."""
    return int(listener.getsockname()[1])


async def loopback_addresses(host: str) -> list[str]:
    """The addresses of `host`, all of them loopback; raises ConfigError."""
    remedy = "the development KMEs listen on loopback only; use localhost, 127.0.0.1 or ::1"
    if not host or not host.isascii():
        raise ConfigError(f"host {host!r}: not a host name; {remedy}")
    try:
        infos = await asyncio.get_running_loop().getaddrinfo(host, None, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError) as error:
        raise ConfigError(f"host {host!r}: cannot be resolved; {remedy}") from error
    addresses = list(dict.fromkeys(str(address[4][0]) for address in infos))
    if elsewhere := [address for address in addresses if not ipaddress.ip_address(address).is_loopback]:
        raise ConfigError(f"host {host!r}: {', '.join(elsewhere)} can be reached by others; {remedy}")
    return addresses


def _open(address: str, port: int) -> socket.socket | None:
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    try:
        return socket.create_server((address, port), family=family, backlog=BACKLOG)
    except OSError as error:
        if error.errno in (errno.EADDRNOTAVAIL, errno.EAFNOSUPPORT):
            return None
        raise


def _cannot_listen(name: str, host: str, port: int, error: OSError) -> str:
    if error.errno == errno.EADDRINUSE:
        return (
            f"{name}: port {port} on {host} is in use, perhaps by the demonstration or by other development KMEs: "
            "choose other ports with --port 0 --port 0 (deploy/demo: --kme-port 0 --kme-port 0), or stop them"
        )
    return f"{name}: cannot listen on {host} port {port}: {os.strerror(error.errno or 0)}"
