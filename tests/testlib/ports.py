"""Addresses to listen at that nobody else has, nor had a moment ago.
Standard: below the range that the kernel takes the ports of connections and of `:0` from; a part for each test process.

A port of `:0` may have been that of a sink in another test process. A relay of that one would bring its mail here.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from contextlib import suppress
from itertools import cycle
from pathlib import Path

from relay.config import TCPAddress

LOWEST_PORT, PARTS = 16_000, 8
"""Below are ports that deploy/postfix names, which tests replace by their own."""


def free_address() -> TCPAddress:
    """One of them."""
    return free_addresses(1)[0]


def free_addresses(number: int) -> list[TCPAddress]:
    """Addresses on loopback on which nobody listens, and which this process has not given out lately."""
    found: list[TCPAddress] = []
    while len(found) < number:
        address = TCPAddress("127.0.0.1", next(_ports))
        with socket.socket() as probe, suppress(OSError):
            probe.bind(address)
            found.append(address)
    return found


def two_free_ports() -> tuple[int, int]:
    """The ports of two of them, for KMEs that are started again: meanwhile the kernel gives them to no connection."""
    one, other = free_addresses(2)
    return one.port, other.port


def _own_ports() -> Iterator[int]:
    above = int(Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split()[0])
    worker = int(os.environ.get("PYTEST_XDIST_WORKER", "gw7").removeprefix("gw")) % PARTS
    size = (above - LOWEST_PORT) // PARTS
    first = LOWEST_PORT + worker * size
    yield from cycle(range(first, first + size))


_ports = _own_ports()
