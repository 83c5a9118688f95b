"""In which order several next hops are tried.
Standard: the order of relay.toml, except that one which failed is tried last for a while.
"""

from __future__ import annotations

import pytest
from structlog.testing import LogCapture

from relay.config import TCPAddress
from relay.errors import NextHopUnavailable
from tests.integration.forward.conftest import Build
from tests.integration.forward.mails import mail
from tests.testlib.hop import HANG_UP, Hop


async def test_the_first_that_works_gets_every_mail(build: Build) -> None:
    async with Hop() as first, Hop() as second:
        next_hop = build(first, second)
        for _ in range(3):
            await next_hop.deliver(mail())
    assert (len(first.got), len(second.got)) == (3, 0)


async def test_one_that_cannot_be_reached_is_followed_by_the_next_and_logged(
    build: Build, log: LogCapture, nobody: TCPAddress
) -> None:
    async with Hop() as hop:
        handed = await build(f"smtp://{nobody}", hop).deliver(mail())
    assert handed.next_hop == str(hop.address)
    [entry] = [entry for entry in log.entries if entry["event"] == "next_hop_failed"]
    assert (entry["next_hop"], entry["log_level"]) == (str(nobody), "warning")


async def test_one_that_failed_is_tried_last_so_that_it_costs_its_timeout_once(build: Build) -> None:
    async with Hop(instead={"greeting": HANG_UP}) as first, Hop() as second:
        next_hop = build(first, second)
        for _ in range(3):
            await next_hop.deliver(mail())
        assert (len(first.connections), len(second.got)) == (1, 3)
        first.instead.clear()
        second.instead["MAIL"] = HANG_UP
        assert (await next_hop.deliver(mail())).next_hop == str(first.address)


async def test_one_that_held_a_mail_is_asked_first_for_the_next_mail(build: Build) -> None:
    async with Hop(instead={"MAIL": ["451 4.7.1 greylisted"]}) as first, Hop() as second:
        next_hop = build(first, second)
        assert (await next_hop.deliver(mail())).next_hop == str(second.address)
        assert (await next_hop.deliver(mail())).next_hop == str(first.address)


async def test_a_lone_next_hop_that_failed_is_tried_again_for_each_mail(build: Build) -> None:
    async with Hop(instead={"greeting": [HANG_UP]}) as hop:
        next_hop = build(hop)
        with pytest.raises(NextHopUnavailable):
            await next_hop.deliver(mail())
        assert (await next_hop.deliver(mail())).outcomes == (None,)


async def test_when_all_fail_the_mail_is_held(build: Build, nobody: TCPAddress) -> None:
    async with Hop(instead={"greeting": "554 5.3.2 no service"}) as hop:
        with pytest.raises(NextHopUnavailable):
            await build(hop, f"smtp://{nobody}").deliver(mail())
