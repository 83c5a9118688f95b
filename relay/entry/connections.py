"""Who is connected to one listening address, how many of them may be, and who is trusted with more.
Standard: RFC 5321 3.1 and 4.5.4.2 leave limits to the server; IPv6 clients count by their /64 (RFC 4291, 2.5.4).
"""

from __future__ import annotations

import asyncio
import ipaddress
from collections import Counter
from functools import lru_cache
from typing import Protocol

from relay.config import ListenerSettings, Network
from relay.entry.rates import network_of


class Connected(Protocol):
    """What SMTPEntry has to be able to do with a conversation; `idle` is set while it has no mail in flight."""

    idle: asyncio.Event

    def close_when_idle(self) -> None:
        """Close now, or as soon as the mail in flight has been answered."""

    def abort(self) -> None:
        """Close at once, whatever is unsent."""


class Connections:
    """The open connections; clients are IP addresses as text, "" where one is not known."""

    def __init__(self, settings: ListenerSettings) -> None:
        self._settings = settings
        self._open: set[Connected] = set()
        self._by_client: Counter[str] = Counter()

    def add(self, connection: Connected, client: str) -> None:
        """Counts it, however often it is told."""
        if connection not in self._open:
            self._open.add(connection)
            self._by_client[network_of(client)] += 1

    def discard(self, connection: Connected, client: str) -> None:
        """It has ended."""
        if connection in self._open:
            self._open.discard(connection)
            self._by_client[network_of(client)] -= 1
            self._by_client += Counter()  # forgets those at 0

    def all(self) -> list[Connected]:
        """Those that are open now."""
        return list(self._open)

    def trusts(self, client: str) -> bool:
        """Whether the client is in a trusted network."""
        return bool(client) and _is_in(client, self._settings.trusted)

    def reason_to_refuse(self, client: str) -> str:
        """Why a client that has just been added cannot stay, or ""."""
        if len(self._open) > self._settings.connections:
            return f"more than {self._settings.connections} connections"
        if self._by_client[network_of(client)] > self._settings.connections_per_client and not self.trusts(client):
            return f"more than {self._settings.connections_per_client} connections from this client"
        return ""


@lru_cache(maxsize=1024)
def _is_in(client: str, networks: tuple[Network, ...]) -> bool:
    address = _address(client)
    return any(address in network for network in networks)


def _address(client: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address:
    """The address without its zone; an IPv4 address that came over an IPv6 socket as such."""
    address = ipaddress.ip_address(client.partition("%")[0])
    return getattr(address, "ipv4_mapped", None) or address
