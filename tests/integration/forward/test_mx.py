"""A next hop that is found through MX records.
Standard: RFC 5321 5.1, RFC 7505; the DNS is a real server on loopback, asked by the real resolver.
"""

from __future__ import annotations

from collections.abc import AsyncIterator

import dns.asyncresolver
import pytest

from relay.errors import NextHopRefused, NextHopUnavailable
from tests.integration.forward.conftest import Build
from tests.integration.forward.mails import mail
from tests.testlib.hop import HANG_UP, Hop
from tests.testlib.zone import Zone, zone_server


@pytest.fixture
async def zone() -> AsyncIterator[Zone]:
    async with zone_server() as server:
        yield server


@pytest.fixture
def resolver(zone: Zone) -> dns.asyncresolver.Resolver:
    made = dns.asyncresolver.Resolver(configure=False)
    made.nameservers = [zone.address.host]
    made.port = zone.address.port
    return made


@pytest.fixture
async def hops() -> AsyncIterator[list[Hop]]:
    """Three servers on one port of 127.0.0.1, .2 and .3."""
    first = Hop()
    async with first:
        second, third = (Hop(host=f"127.0.0.{number}", address=first.address) for number in (2, 3))
        async with second, third:
            yield [first, second, third]


def three(zone: Zone, *preferences: int) -> None:
    """bob.example has three exchangers, with these preferences."""
    zone.records = {f"mx{number}.bob.example A": [f"127.0.0.{number}"] for number in (1, 2, 3)}
    zone.records["bob.example MX"] = [f"{each} mx{number}.bob.example." for number, each in enumerate(preferences, 1)]


async def test_exchangers_are_tried_in_the_order_of_their_preference(
    build: Build, zone: Zone, resolver: dns.asyncresolver.Resolver, hops: list[Hop]
) -> None:
    three(zone, 30, 10, 20)
    hops[1].instead["greeting"] = HANG_UP
    handed = await build(f"mx:bob.example:{hops[0].address.port}", resolver=resolver).deliver(mail())
    assert handed.next_hop == f"mx3.bob.example[127.0.0.3:{hops[0].address.port}]"
    assert [len(hop.connections) for hop in hops] == [0, 1, 1]


async def test_exchangers_of_equal_preference_share_the_load(
    build: Build, zone: Zone, resolver: dns.asyncresolver.Resolver, hops: list[Hop]
) -> None:
    three(zone, 10, 10, 20)
    for _ in range(40):
        await build(f"mx:bob.example:{hops[0].address.port}", resolver=resolver).deliver(mail())
    assert len(hops[0].got) + len(hops[1].got) == 40
    assert hops[0].got
    assert hops[1].got


async def test_every_address_of_an_exchanger_is_tried(
    build: Build, zone: Zone, resolver: dns.asyncresolver.Resolver, hops: list[Hop]
) -> None:
    zone.records = {"bob.example MX": ["10 mx.bob.example."], "mx.bob.example A": ["127.0.0.2", "127.0.0.3"]}
    hops[1].instead["greeting"] = hops[2].instead["greeting"] = HANG_UP
    with pytest.raises(NextHopUnavailable):
        await build(f"mx:bob.example:{hops[0].address.port}", resolver=resolver).deliver(mail())
    assert [len(hop.connections) for hop in hops] == [0, 1, 1]


async def test_a_domain_without_mx_records_is_its_own_exchanger(
    build: Build, zone: Zone, resolver: dns.asyncresolver.Resolver, hops: list[Hop]
) -> None:
    zone.records = {"bob.example A": ["127.0.0.2"]}
    await build(f"mx:bob.example:{hops[0].address.port}", resolver=resolver).deliver(mail())
    assert len(hops[1].got) == 1


async def test_a_domain_that_takes_no_mail_refuses_it(
    build: Build, zone: Zone, resolver: dns.asyncresolver.Resolver
) -> None:
    zone.records = {"bob.example MX": ["0 ."], "bob.example A": ["127.0.0.1"]}
    with pytest.raises(NextHopRefused, match="takes no mail") as caught:
        await build("mx:bob.example", resolver=resolver).deliver(mail())
    assert caught.value.status == "5.1.10"


async def test_ourselves_and_servers_that_are_no_better_are_left_out(
    build: Build, zone: Zone, resolver: dns.asyncresolver.Resolver, hops: list[Hop]
) -> None:
    three(zone, 10, 20, 30)
    zone.records["bob.example MX"].append("20 Relay.Example.")
    hops[0].instead["greeting"] = HANG_UP
    with pytest.raises(NextHopUnavailable):
        await build(f"mx:bob.example:{hops[0].address.port}", resolver=resolver).deliver(mail())
    assert [len(hop.connections) for hop in hops] == [1, 0, 0]


async def test_mail_that_would_only_come_back_to_ourselves_is_held(
    build: Build, zone: Zone, resolver: dns.asyncresolver.Resolver
) -> None:
    zone.records = {"bob.example MX": ["10 relay.example.", "20 mx2.bob.example."]}
    with pytest.raises(NextHopUnavailable, match="itself the most preferred"):
        await build("mx:bob.example", resolver=resolver).deliver(mail())


@pytest.mark.parametrize("fault", ["unknown", "failing", "exchanger unknown", "exchanger failing"])
async def test_a_domain_that_cannot_be_looked_up_holds_the_mail_unless_there_is_another_next_hop(
    build: Build, zone: Zone, resolver: dns.asyncresolver.Resolver, hops: list[Hop], fault: str
) -> None:
    if fault.startswith("exchanger"):
        zone.records = {"bob.example MX": ["10 mx.bob.example."]}
    if fault.endswith("failing"):
        zone.failing = {"mx.bob.example" if fault.startswith("exchanger") else "bob.example"}
    resolver.lifetime = 1
    with pytest.raises(NextHopUnavailable, match=r"mx:bob\.example"):
        await build("mx:bob.example", resolver=resolver).deliver(mail())
    assert (await build("mx:bob.example", hops[0], resolver=resolver).deliver(mail())).outcomes == (None,)


async def test_a_domain_with_endless_exchangers_costs_a_bounded_number_of_tries(
    build: Build, zone: Zone, resolver: dns.asyncresolver.Resolver, hops: list[Hop]
) -> None:
    for hop in hops:
        hop.instead["greeting"] = HANG_UP
    zone.records = {f"mx{number}.bob.example A": [f"127.0.0.{number % 3 + 1}"] for number in range(100)}
    zone.records["bob.example MX"] = [f"{number} mx{number}.bob.example." for number in range(20)]
    with pytest.raises(NextHopUnavailable):
        await build(f"mx:bob.example:{hops[0].address.port}", resolver=resolver).deliver(mail())
    assert sum(len(hop.connections) for hop in hops) == 8
    assert len(zone.asked) <= 20
