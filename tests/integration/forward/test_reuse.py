"""Connections that are kept for the next mail.
Standard: a kept connection that has died costs a new one and nothing else; none outlives the relay.
"""

from __future__ import annotations

import asyncio
import socket
from typing import Any

import pytest

from relay import forward
from relay.errors import NextHopUnavailable
from tests.integration.forward.conftest import Build
from tests.integration.forward.mails import BEA, BEN, BIG, mail
from tests.testlib.hop import HANG_UP, SILENCE, Hop


async def test_mails_one_after_the_other_share_a_connection(build: Build) -> None:
    async with Hop() as hop:
        next_hop = build(hop)
        for _ in range(5):
            await next_hop.deliver(mail())
    assert len(hop.got) == 5
    assert len(hop.connections) == 1
    assert hop.commands.count("EHLO relay.example") == 1


async def test_mails_at_once_have_a_connection_each_and_only_some_are_kept(build: Build) -> None:
    async with Hop() as hop:
        next_hop = build(hop, next_hop_connections=2)
        await asyncio.gather(*(next_hop.deliver(mail()) for _ in range(6)))
        assert len(hop.connections) == 6
        while hop.open > 2:
            await hop.changed()
        await next_hop.deliver(mail())
        assert len(hop.connections) == 6
    assert sum("QUIT" in commands for commands in hop.connections) >= 4


async def test_without_idle_connections_each_mail_has_its_own(build: Build) -> None:
    async with Hop() as hop:
        next_hop = build(hop, next_hop_connections=0)
        for _ in range(3):
            await next_hop.deliver(mail())
        await hop.until_closed()
    assert [commands[-1] for commands in hop.connections] == ["QUIT"] * 3


async def test_the_end_of_the_relay_says_quit_on_idle_connections_and_keeps_none_after(build: Build) -> None:
    async with Hop() as hop:
        next_hop = build(hop)
        await next_hop.deliver(mail())
        await next_hop.close()
        await hop.until_closed()
        assert hop.commands[-1] == "QUIT"
        await next_hop.deliver(mail())
        await hop.until_closed()
    assert len(hop.connections) == 2


async def test_a_connection_that_the_next_hop_has_closed_is_replaced_unnoticed(build: Build) -> None:
    async with Hop() as hop:
        next_hop = build(hop)
        await next_hop.deliver(mail())
        await hop.hang_up()
        assert (await next_hop.deliver(mail())).outcomes == (None,)
    assert [len(commands) for commands in hop.connections] == [4, 4]


@pytest.mark.parametrize(
    ("point", "said"),
    [
        *(
            (point, said)
            for point in ("MAIL", "RCPT", "DATA")
            for said in (HANG_UP, "421 4.4.2 too long", b"what?\r\n")
        ),
        ("content", HANG_UP),
        ("content", b"what?\r\n"),
    ],
)
async def test_a_kept_connection_that_dies_before_the_end_of_the_content_is_replaced_unnoticed(
    build: Build, point: str, said: bytes | str
) -> None:
    async with Hop() as hop, Hop() as other:
        next_hop = build(hop, other)
        await next_hop.deliver(mail())
        hop.instead[point] = [said]
        handed = await next_hop.deliver(mail(message=BIG))
        assert (handed.outcomes, handed.next_hop) == ((None,), str(hop.address))
    assert len(hop.got) == 2
    assert not other.connections


@pytest.mark.parametrize("said", [HANG_UP, "421 4.3.2 shutting down"])
async def test_a_kept_connection_that_dies_after_the_end_of_the_content_holds_the_mail(
    build: Build, said: bytes | str
) -> None:
    async with Hop() as hop:
        next_hop = build(hop)
        await next_hop.deliver(mail())
        hop.instead["."] = [said]
        with pytest.raises(NextHopUnavailable):
            await next_hop.deliver(mail())
    assert len(hop.connections) == 1
    assert len(hop.got) == 1


async def test_a_new_connection_that_dies_too_is_not_replaced_again(build: Build) -> None:
    async with Hop() as hop:
        next_hop = build(hop)
        await next_hop.deliver(mail())
        hop.instead["MAIL"] = HANG_UP
        with pytest.raises(NextHopUnavailable):
            await next_hop.deliver(mail())
    assert len(hop.connections) == 2


async def test_a_kept_connection_that_falls_silent_costs_its_timeout_once(build: Build, impatient: None) -> None:
    async with Hop() as hop:
        next_hop = build(hop)
        await next_hop.deliver(mail())
        hop.instead["MAIL"] = SILENCE
        with pytest.raises(NextHopUnavailable, match="no reply within"):
            await next_hop.deliver(mail())
    assert len(hop.connections) == 1


async def test_421_while_idle_closes_the_connection(build: Build) -> None:
    async with Hop(instead={".": b"250 2.0.0 Ok\r\n421 4.3.2 goodbye\r\n"}) as hop:
        next_hop = build(hop)
        assert (await next_hop.deliver(mail())).outcomes == (None,)
        await hop.until_closed()
        assert (await next_hop.deliver(mail())).outcomes == (None,)
    assert len(hop.connections) == 2


@pytest.mark.parametrize("said", ["550 5.1.1 unknown", "450 4.2.0 busy"])
async def test_a_connection_on_which_something_was_refused_is_not_kept(build: Build, said: str) -> None:
    async with Hop(instead={f"RCPT TO:<{BEA}>": said}) as hop:
        next_hop = build(hop)
        await next_hop.deliver(mail(BEN, BEA))
        await hop.until_closed()
        await next_hop.deliver(mail())
    assert len(hop.connections) == 2


@pytest.mark.parametrize(("limit", "value"), [("MAILS", 1), ("AGE_S", 0.0), ("IDLE_S", 0.0)])
async def test_a_connection_is_given_up_when_its_time_has_come(
    build: Build, monkeypatch: pytest.MonkeyPatch, limit: str, value: float
) -> None:
    monkeypatch.setattr(forward, limit, value)
    async with Hop() as hop:
        next_hop = build(hop)
        await next_hop.deliver(mail())
        await hop.until_closed()
        await next_hop.deliver(mail())
        assert hop.connections[0][-1] == "QUIT"
    assert len(hop.connections) == 2


async def test_a_delivery_that_is_broken_off_leaves_no_connection(build: Build) -> None:
    async with Hop(instead={"MAIL": SILENCE}) as hop:
        delivery = asyncio.create_task(build(hop).deliver(mail()))
        while len(hop.commands) < 2:
            await hop.changed()
        delivery.cancel()
        with pytest.raises(asyncio.CancelledError):
            await delivery
        await hop.hang_up()
    assert not hop.got


async def test_small_writes_leave_at_once(build: Build, monkeypatch: pytest.MonkeyPatch) -> None:
    opened: list[int] = []
    connect = forward.ConnectionPool.open

    async def remember(self: forward.ConnectionPool, server: Any) -> Any:
        connection = await connect(self, server)
        taken = connection._transport.get_extra_info("socket")
        opened.append(taken.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY))
        return connection

    monkeypatch.setattr(forward.ConnectionPool, "open", remember)
    async with Hop() as hop:
        await build(hop).deliver(mail())
    assert opened == [1]
