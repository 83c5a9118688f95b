"""Which clients count as one, and which are trusted.
Standard: RFC 4291 2.5.4 (a /64 is one network), 2.5.5.2 (IPv4-mapped addresses).
"""

from __future__ import annotations

import asyncio

import pytest

from relay.config import ListenerSettings
from relay.entry.connections import Connections


class Connection:
    """One that is only counted."""

    def __init__(self) -> None:
        self.idle = asyncio.Event()

    def close_when_idle(self) -> None:
        raise AssertionError("nobody has asked for that")

    def abort(self) -> None:
        raise AssertionError("nobody has asked for that")


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        ("192.0.2.1", "192.0.2.1", True),
        ("192.0.2.1", "192.0.2.2", False),
        ("2001:db8::1", "2001:db8::ffff", True),
        ("2001:db8:0:1::1", "2001:db8:0:2::1", False),
        ("::ffff:192.0.2.1", "::ffff:192.0.2.2", False),
        ("fe80::1%eth0", "fe80::2%eth0", True),
        ("", "", True),
    ],
)
def test_clients_count_as_one_where_one_could_have_both_addresses(one: str, other: str, same: bool) -> None:
    connections = Connections(ListenerSettings(connections_per_client=1))
    first, second = Connection(), Connection()
    connections.add(first, one)
    connections.add(first, one)
    assert not connections.reason_to_refuse(one)
    connections.add(second, other)
    assert bool(connections.reason_to_refuse(other)) == same
    connections.discard(first, one)
    assert not connections.reason_to_refuse(other)
    assert connections.all() == [second]


@pytest.mark.parametrize(
    ("client", "trusted"),
    [
        ("127.0.0.1", True), ("127.9.9.9", True), ("::1", True), ("::ffff:127.0.0.1", True),
        ("192.0.2.1", False), ("::2", False), ("", False),
    ],
)  # fmt: skip
def test_loopback_and_nobody_else_is_trusted_by_default(client: str, trusted: bool) -> None:
    assert Connections(ListenerSettings()).trusts(client) == trusted
