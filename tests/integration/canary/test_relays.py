"""Canaries of relays that are killed, of several workers, and of two relays that share a store: one each, counted once.
Standard: relay/store/canaries.py; whichever process a receipt comes to counts it, for all of them.
"""

from __future__ import annotations

import asyncio
from contextlib import AsyncExitStack
from pathlib import Path

from relay.config import TCPAddress
from relay.process import app
from tests.integration.canary.conftest import ASKS, Making, asked_long_ago, until_it_says
from tests.testlib.databases import Backend
from tests.testlib.sites import Site, relay_process
from tests.testlib.status_numbers import StatusNumbers, numbers
from tests.testlib.workers import until

AT_ONCE = "from relay.canary import asking; asking.LOOK_S = 0.05"
"""Run before a relay: nobody waits to be asked."""


async def test_a_relay_that_is_killed_between_question_and_receipt_counts_it_when_it_is_back(making: Making) -> None:
    alice, bob = making.site("alice", settings=ASKS), making.site("bob")
    to_bob, to_alice = making.wires
    to_alice.is_open = False
    async with app.running(bob.config) as addresses:
        to_bob.to = addresses["incoming"]
        async with relay_process(alice, before=AT_ONCE) as relay:
            await until(relay, "canary_sent")
            [receipt] = await to_alice.messages(1)
            relay.kill()
        async with relay_process(alice, before=AT_ONCE) as relay:
            to_alice.to = relay.addresses["incoming"]
            await to_alice.hand_on(receipt)
            found = await until_it_says(lambda: numbers(relay.addresses["status"]), "qumail_canary_returned_total")
            assert found.sum("qumail_canary_sent_total") == 0, "what is out is not asked for again"
    assert len(to_bob.got) == 1
    assert [each.got for each in making.inboxes] == [[], []]


async def test_two_workers_ask_once_and_whichever_gets_the_receipt_counts_it(making: Making) -> None:
    alice, bob = making.site("alice", settings=ASKS), making.site("bob")
    alice.set_workers(2)
    to_bob, to_alice = making.wires
    to_alice.is_open = False
    async with AsyncExitStack() as stack:
        to_bob.to = (await stack.enter_async_context(app.running(bob.config)))["incoming"]  # it is asked at once
        relay = await stack.enter_async_context(relay_process(alice, before=AT_ONCE))
        to_alice.to = relay.addresses["incoming"]
        [receipt] = await to_alice.messages(1)

        async def asked() -> StatusNumbers:
            return await numbers(relay.addresses["status"])

        # The same one to both workers, either may take it first.
        await asyncio.gather(*(to_alice.hand_on(receipt) for _ in range(6)))
        await until_it_says(asked, "qumail_canary_returned_total", peer="bob")
        found = await until_it_says(asked, "qumail_canary_dropped_total", 5, reason="repeated")
        assert found.sum("qumail_canary_sent_total") == found.sum("qumail_canary_returned_total") == 1
    assert len(to_bob.got) == 1
    assert [each.got for each in making.inboxes] == [[], []]


async def test_two_relays_on_one_database_ask_once_between_them(making: Making, postgresql: Backend) -> None:
    alices = [making.site("alice", settings=ASKS, directory=f"alice{number}") for number in range(2)]
    for each in alices:
        share(each, postgresql, making.directory)
    bob = making.site("bob")
    async with AsyncExitStack() as stack:
        addresses = await stack.enter_async_context(app.running(bob.config))
        making.wires[0].to = addresses["incoming"]
        making.wires[1].is_open = False
        ours = [await stack.enter_async_context(app.running(each.config)) for each in alices]
        for times in (1, 2):
            [*_, receipt] = await making.wires[1].messages(times)
            making.wires[1].to = ours[times - 1]["incoming"]  # whichever has asked
            await making.wires[1].hand_on(receipt)
            await until_sum(ours, "qumail_canary_returned_total", times)
            asked_long_ago(bob)
            await postgresql.run("UPDATE canaries SET asked_at = asked_at - 61")
        await until_sum(ours, "qumail_canary_sent_total", 3)
        ages = [(await numbers(each["status"])).of_name("qumail_canary_age_seconds") for each in ours]
        assert all(len(each) == 1 for each in ages), "both tell of it"
    assert len(making.wires[0].got) == 3


def share(site: Site, backend: Backend, directory: Path) -> None:
    """The site's relay has this database, and the secret of all that have it; its audit record is its own."""
    text = site.config_file.read_text().replace('database = "relay.db"', f'database = "{backend.where}"')
    text = text.replace('secret = "site.secret"', f'secret = "{directory}/alice.secret"')
    site.config_file.write_text(f'{text}\n[audit]\ndirectory = "audit"\n')


async def until_sum(relays: list[dict[str, TCPAddress]], name: str, value: float) -> None:
    async with asyncio.timeout(30):
        while sum([(await numbers(each["status"])).sum(name) for each in relays]) != value:
            await asyncio.sleep(0.02)
