"""Which clients count as one, and which are trusted.
Standard: RFC 4291 2.5.4 (a /64 is one network), 2.5.5.2 (IPv4-mapped addresses).
"""

from __future__ import annotations

import asyncio

import pytest

from relay.config import ListenerSettings
from relay.entry import listening
from relay.entry.budget import Budget
from relay.entry.listening import SocketServer


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
        ("", "", False),
    ],
)
def test_clients_count_as_one_where_one_could_have_both_addresses(one: str, other: str, same: bool) -> None:
    server = SocketServer(ListenerSettings(connections_per_client=1), Budget(1))
    first, second = Connection(), Connection()
    assert not server.add(first, one)
    assert bool(server.add(second, other)) == same
    server.discard(second)
    server.discard(second)
    server.discard(first)
    assert not server.add(second, other)
    assert list(server.connections) == [second]


async def test_who_comes_while_the_relay_stops_is_not_taken() -> None:
    server = SocketServer(ListenerSettings(), Budget(1))
    await server.stop()
    assert server.add(Connection(), "192.0.2.1") == "it came while the relay stops"


@pytest.mark.parametrize(
    ("client", "trusted"),
    [
        ("127.0.0.1", True), ("127.9.9.9", True), ("::1", True), ("::ffff:127.0.0.1", True),
        ("192.0.2.1", False), ("::2", False), ("", False),
    ],
)  # fmt: skip
def test_loopback_and_nobody_else_is_trusted_by_default(client: str, trusted: bool) -> None:
    assert SocketServer(ListenerSettings(), Budget(1)).trusts(client) == trusted


async def test_who_leaves_the_place_to_others_waits_for_mails_in_flight(monkeypatch: pytest.MonkeyPatch) -> None:
    """Broken off, a mail that the next hop has would be sent again by its client."""
    monkeypatch.setattr(listening, "LEAVE_S", 0.0)
    monkeypatch.setattr(listening, "ACCEPTED_S", 0.0)
    server, answered = SocketServer(ListenerSettings(), Budget(1)), asyncio.Event()
    delivery = server.run(answered.wait())
    retired = asyncio.create_task(server.retire())
    await asyncio.wait([retired], timeout=0.2)
    assert not retired.done()
    assert not delivery.cancelled()
    answered.set()
    async with asyncio.timeout(30):
        await retired
    assert delivery.result()
