"""Memory for messages in flight: never more than the budget, new mails wait and then are held, nothing deadlocks.
Standard: RFC 5321 4.5.3.1.10, RFC 3463 4.3.1 (452 4.3.1).
"""

from __future__ import annotations

import asyncio
import random
from pathlib import Path

import pytest

from relay.entry.budget import Budget, Overloaded, Share, room_for
from relay.entry.smtp import session
from relay.entry.smtp.aiosmtpd_base import PIECE_OCTETS
from relay.errors import TryLater
from relay.kme import DevelopmentKMEs
from tests.integration.entry.smtp.recipes import Recorder, serving
from tests.integration.entry.smtp.test_lmtp import with_lmtp
from tests.testlib import mails, sites
from tests.testlib.sink import Sink
from tests.testlib.sites import make_site
from tests.testlib.submit import submit, submit_lmtp, talking

MIB = 2**20


def big(size: int = 2 * MIB, seed: int = 1) -> bytes:
    return mails.random_attachment(size * 3 // 4, seed)


async def test_a_share_is_given_back_however_it_ends() -> None:
    budget = Budget(100, patience=0.01)
    with pytest.raises(KeyError), Share(budget) as share:
        await share.hold(80)
        assert (share.held, budget.used) == (80, 80)
        with pytest.raises(Overloaded), Share(budget) as other:
            await other.hold(30)
        raise KeyError
    assert (budget.used, budget.peak) == (0, 80)


async def test_who_waits_gets_room_as_soon_as_there_is_some_in_the_order_of_asking() -> None:
    budget = Budget(100, patience=10)
    first = Share(budget)
    await first.hold(90)
    order: list[int] = []

    async def ask(number: int, octets: int) -> None:
        with Share(budget) as share:
            await share.hold(octets)
            order.append(number)

    async with asyncio.TaskGroup() as group:
        for number, octets in enumerate((50, 5, 60)):
            group.create_task(ask(number, octets))
            await asyncio.sleep(0)
        first.reduce(10)
    assert order == [0, 1, 2]
    first.reduce()
    assert (budget.used, budget.peak) == (0, 90)


async def test_what_is_larger_than_the_whole_budget_is_taken_alone() -> None:
    budget = Budget(100, patience=10)
    small = Share(budget)
    await small.hold(1)
    large = asyncio.create_task(Share(budget).hold(1000))
    await asyncio.sleep(0)
    assert not large.done()
    small.reduce()
    await large
    assert budget.used == 1000


async def test_when_all_who_have_a_part_wait_for_more_the_last_gives_way_at_once() -> None:
    budget = Budget(100, patience=3600)
    one, two = Share(budget), Share(budget)
    await one.hold(50)
    await two.hold(50)
    waiting = asyncio.create_task(one.hold(80))
    await asyncio.sleep(0)
    with pytest.raises(Overloaded, match="gives way"), two:
        await two.hold(80)
    await waiting
    assert one.held == 80


async def test_who_is_cancelled_while_waiting_takes_nothing_and_lets_the_next_one_go_on() -> None:
    budget = Budget(100, patience=3600)
    first, second, third = Share(budget), Share(budget), Share(budget)
    await first.hold(80)
    waiting = asyncio.create_task(second.hold(90))
    await asyncio.sleep(0)
    behind = asyncio.create_task(third.hold(20))
    await asyncio.sleep(0)
    waiting.cancel()
    await behind
    assert (second.held, third.held, budget.used) == (0, 20, 100)


@pytest.mark.parametrize("seed", range(5))
async def test_whatever_is_asked_for_the_books_balance_and_nobody_waits_for_ever(seed: int) -> None:
    chance = random.Random(seed)
    budget = Budget(1000, patience=0.02)
    most = 0

    async def mail() -> bool:
        nonlocal most
        with Share(budget) as share:
            try:
                for _ in range(chance.randrange(1, 5)):
                    await share.hold(share.held + chance.randrange(1, 300))
                    most = max(most, budget.used)
                    await asyncio.sleep(0)
                share.reduce(chance.randrange(0, 100))
                return True
            except Overloaded:
                return False

    taken = await asyncio.gather(*(mail() for _ in range(200)))
    assert budget.used == 0
    assert budget.peak >= most
    assert budget.peak <= max(1000, 4 * 300)
    assert any(taken)


@pytest.mark.parametrize("options", [["SIZE=3000000"], []])
async def test_many_big_mails_at_once_stay_within_the_budget_and_all_arrive(options: list[str]) -> None:
    budget = Budget(room_for(3_000_000) * 3, patience=0.05)
    async with serving(budget=budget) as running:

        async def send(seed: int) -> int:
            tries = 1
            while (reply := await submit(running.address, big(seed=seed), options=options)).code != 250:
                assert str(reply).startswith("452 4.3.1")
                tries += 1
            return tries

        tries = await asyncio.gather(*(send(seed) for seed in range(12)))
        assert sorted(mail.message for mail in running.recipe.mails) == sorted(big(seed=seed) for seed in range(12))
        assert 0 < budget.peak <= budget.size
        assert sum(tries) >= 12
        while budget.used:
            await asyncio.sleep(0)


async def test_a_big_mail_is_read_piece_by_piece(monkeypatch: pytest.MonkeyPatch) -> None:
    """50 MiB with a dot at each line's beginning take some 100 ms, in which nobody else would be served."""
    pieces: list[int] = []
    add = session._Content.add

    def noted(self: session._Content, piece: bytes) -> None:
        pieces.append(len(piece))
        add(self, piece)

    monkeypatch.setattr(session._Content, "add", noted)
    message = mails.plain(body=".y\r\n" * (3 * MIB // 4))
    async with serving() as running:
        assert (await submit(running.address, message)).code == 250
    assert running.recipe.mails[0].message == message
    assert max(pieces) <= PIECE_OCTETS


async def test_a_new_mail_waits_for_the_one_that_is_being_delivered() -> None:
    budget = Budget(room_for(0), patience=60)
    async with serving(budget=budget) as running, talking(running.address) as first, talking(running.address) as second:
        running.recipe.gate.clear()
        await first.begin()
        await first.send(b"one\r\n.\r\n")
        await running.recipe.arrived.wait()
        waiting = asyncio.create_task(second.begin())
        running.recipe.gate.set()
        assert (await first.reply()).code == 250
        await waiting
        await second.send(b"two\r\n.\r\n")
        assert (await second.reply()).code == 250


@pytest.mark.parametrize("protocol", ["SMTP", "LMTP"])
async def test_without_room_the_content_is_not_even_asked_for_and_the_connection_goes_on(protocol: str) -> None:
    budget = Budget(room_for(0), patience=0.01)
    hello = "EHLO" if protocol == "SMTP" else "LHLO"
    async with serving(protocol, budget=budget) as running, talking(running.address) as talk:
        running.recipe.gate.clear()
        await talk.begin(hello=hello)
        await talk.send(b"one\r\n.\r\n")
        await running.recipe.arrived.wait()
        replies = (
            [await submit(running.address, mails.plain())]
            if protocol == "SMTP"
            else await submit_lmtp(running.address, mails.plain(), recipients=["a@b.example", "c@d.example"])
        )
        assert {str(reply)[:9] for reply in replies} == {"452 4.3.1"}
        running.recipe.gate.set()
        assert (await talk.reply()).code == 250
        await talk.begin(hello=hello)


async def test_a_size_that_was_declared_too_small_is_found_out_as_the_content_grows() -> None:
    """The declared octet would have room beside the other mail, the real 2 MiB have not."""
    budget = Budget(room_for(0) + room_for(2 * MIB), patience=0.01)
    async with serving(budget=budget) as running, talking(running.address) as talk:
        running.recipe.gate.clear()
        await talk.begin()
        await talk.send(b"one\r\n" * 200_000 + b".\r\n")
        await running.recipe.arrived.wait()
        reply = await submit(running.address, big(3 * MIB), options=["SIZE=1"])
        assert str(reply).startswith("452 4.3.1")
        running.recipe.gate.set()
        assert (await talk.reply()).code == 250
        assert (await submit(running.address, big(3 * MIB), options=["SIZE=1"])).code == 250


@pytest.mark.parametrize("failure", [TryLater("x"), RuntimeError("x")])
async def test_a_mail_that_fails_gives_its_room_back(failure: Exception) -> None:
    budget = Budget(room_for(0), patience=0.01)
    async with serving(budget=budget, recipe=Recorder(failure=failure)) as running:
        for _ in range(3):
            assert str(await submit(running.address, mails.plain())).startswith("451 4.3.0")


@pytest.mark.in_process
async def test_all_entries_of_a_relay_share_the_budget_that_relay_toml_sets(
    tmp_path: Path, kmes: DevelopmentKMEs, wire: Sink, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("relay.entry.budget.WAIT_FOR_ROOM_S", 0.05)
    site = with_lmtp(
        make_site(tmp_path / "alice", "alice", state=kmes.state_dir, kme_url=kmes.urls[0], outgoing=wire.address)
    )
    with site.config_file.open("a") as file:
        file.write('\n[limits]\nmessages_in_flight = "256 KiB"\n')
    wire.gate = asyncio.Event()
    async with sites.serving(site) as addresses, talking(addresses["outgoing"]) as talk:
        await talk.begin()
        await talk.send(mails.plain() + b".\r\n")
        await wire.reached.wait()
        [reply] = await submit_lmtp(addresses["outgoing_lmtp"], mails.plain(), recipients=["bea@bob.example"])
        assert str(reply).startswith("452 4.3.1")
        wire.gate.set()
        assert (await talk.reply()).code == 250
        [reply] = await submit_lmtp(addresses["outgoing_lmtp"], mails.plain(), recipients=["bea@bob.example"])
        assert reply.code == 250
    assert [got.recipients for got in wire.got] == [("ben@bob.example",), ("bea@bob.example",)]
