"""A clock that is set while mail waits, an hour back or a week ahead, and put right again: nothing is lost or repeated.
Standard: what a wrong clock costs as long as it is wrong stands in deploy/THREATS.md; afterwards nothing is left of it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest

from relay.kme import DevelopmentKMEs
from relay.process import app, upkeep
from relay.quarantine.triage import Triage
from tests.integration.entry.imap.test_lost import taken_away
from tests.integration.opening.conftest import (
    ANN,
    BEA,
    BEN,
    Alice,
    Bob,
    Clock,
    alice as alice,  # fixtures
    bob_on_sqlite as bob_on_sqlite,
    clock as clock,
    hop as hop,
)
from tests.testlib import mails
from tests.testlib.relay_command import run
from tests.testlib.sink import Sink
from tests.testlib.sites import make_site
from tests.testlib.submit import submit, until_settled

HOUR, WEEK, YEAR = 3600.0, 7 * 86_400.0, 365 * 86_400.0
BUSY = "450 4.2.1 mailbox busy"
SET_BY = {"a year back": -YEAR, "an hour back": -HOUR, "a week ahead": WEEK, "a year ahead": YEAR}
either_way = pytest.mark.parametrize("set_by", SET_BY.values(), ids=SET_BY)


@pytest.fixture
def some_sweeps(monkeypatch: pytest.MonkeyPatch) -> Callable[[], Awaitable[None]]:
    """Waits until relays of this process have swept some times, which they do all the time."""
    sweeps, refresh = 0, Triage.refresh

    async def counted(self: Triage) -> None:
        nonlocal sweeps
        await refresh(self)
        sweeps += 1

    async def some() -> None:
        enough = sweeps + 3
        async with asyncio.timeout(30):
            while sweeps < enough:
                await asyncio.sleep(0.01)

    monkeypatch.setattr(Triage, "refresh", counted)
    monkeypatch.setattr(upkeep, "SWEEP_S", 0.02)
    return some


@pytest.mark.promise("A clock that is set, and set right again, loses and repeats nothing")
@either_way
async def test_a_mail_out_that_waits_for_one_recipient_goes_to_the_others_once_and_spends_no_second_key(
    tmp_path: Path,
    kmes: DevelopmentKMEs,
    wire: Sink,
    clock: Clock,
    some_sweeps: Callable[[], Awaitable[None]],
    set_by: float,
) -> None:
    site = make_site(
        tmp_path / "alice", "alice", state=kmes.state_dir, kme_url=kmes.urls[0], outgoing=wire.address,
        policies={"default.toml": 'levels = ["aes"]\n'}, kme_settings="prefetch = false",
    )  # fmt: skip
    async with app.running(site.config) as relay:
        wire.on_rcpt = {BEA: BUSY}
        assert (await submit(relay["outgoing"], mails.plain(), recipients=[BEN, BEA])).code == 451
        issued = kmes.link.issued.total()
        for ahead in (set_by, 0.0):
            clock.ahead = ahead
            await some_sweeps()
            assert (await submit(relay["outgoing"], mails.plain(), recipients=[BEN, BEA])).code == 451
        wire.on_rcpt = {}
        assert (await until_settled(relay["outgoing"], mails.plain(), recipients=[BEN, BEA])).code == 250
        assert kmes.link.issued.total() == issued
    assert [got.recipients for got in wire.got] == [(BEN,), (BEA,)]


@pytest.mark.promise("A clock that is set, and set right again, loses and repeats nothing")
@either_way
@pytest.mark.parametrize("level", ["otp", "pqc"])
async def test_a_mail_in_that_waits_for_one_recipient_opens_for_them_when_the_clock_is_right_again(
    alice: Alice,
    bob_on_sqlite: Bob,
    clock: Clock,
    some_sweeps: Callable[[], Awaitable[None]],
    level: str,
    set_by: float,
) -> None:
    bob, sealed = bob_on_sqlite, await alice.seal(BEN, BEA, level=level)
    bob.hop.instead[f"RCPT TO:<{BEA}>"] = BUSY
    async with bob.running() as relay:
        assert (await until_settled(relay, sealed, recipients=[BEN, BEA])).code == 451
        for ahead in (set_by, 0.0):
            clock.ahead = ahead
            await some_sweeps()
        bob.hop.instead.clear()
        for _ in range(2):
            assert (await until_settled(relay, sealed, recipients=[BEN, BEA])).code == 250
    assert bob.got == [(ANN, (BEN,)), (ANN, (BEA,))]
    assert await bob.reasons() == []


@pytest.mark.promise("A clock that is set, and set right again, loses and repeats nothing")
@either_way
async def test_what_comes_while_the_clock_is_wrong_is_put_aside_and_a_person_can_release_it_afterwards(
    alice: Alice, bob_on_sqlite: Bob, clock: Clock, some_sweeps: Callable[[], Awaitable[None]], set_by: float
) -> None:
    bob, sealed = bob_on_sqlite, await alice.seal(BEN, BEA, level="otp")
    bob.hop.instead[f"RCPT TO:<{BEA}>"] = BUSY
    async with bob.running() as relay:
        assert (await until_settled(relay, sealed, recipients=[BEN, BEA])).code == 451
        bob.hop.instead.clear()
        clock.ahead = set_by
        retry = b"Received: from alice.example by relay.alice.example; Wed, 25 Nov 2026 10:00:00 +0000\r\n" + sealed
        assert (await until_settled(relay, retry, recipients=[BEN, BEA])).code == 250
        await some_sweeps()
        clock.ahead = 0.0
        await some_sweeps()
    assert (bob.got, await bob.reasons()) == ([(ANN, (BEN,))], ["outside-window"])
    status, _, _ = await run(
        "quarantine", "release", "--all", "--reason", "outside-window", "--config", bob.site.config_file
    )
    assert (status, bob.got) == (0, [(ANN, (BEN,)), (ANN, (BEA,))])
    assert await bob.kept() == [], "who has it does not wait for it"


async def test_a_key_that_came_under_a_clock_a_year_behind_opens_its_mail_once_the_clock_is_right(
    alice: Alice, bob_on_sqlite: Bob, clock: Clock, some_sweeps: Callable[[], Awaitable[None]]
) -> None:
    """As with a battery that is empty: the time is right once the network is there."""
    bob, sealed, first = bob_on_sqlite, await alice.seal(level="otp"), await alice.seal()
    async with bob.running() as relay:
        assert (await until_settled(relay, first)).code == 250
    clock.ahead = -YEAR
    async with bob.running() as relay:
        assert (await until_settled(relay, sealed)).code == 250
        await some_sweeps()
        clock.ahead = 0.0
        await some_sweeps()
    assert await bob.reasons() == ["outside-window"]
    assert (await run("quarantine", "release", "--all", "--config", bob.site.config_file))[0] == 0
    assert bob.got == [(ANN, (BEN,)), (ANN, (BEN,))]


@pytest.mark.promise("A clock that is set, and set right again, loses and repeats nothing")
@either_way
async def test_a_mail_whose_key_is_late_is_held_whatever_the_clock_does_meanwhile(
    alice: Alice,
    bob_on_sqlite: Bob,
    kmes: DevelopmentKMEs,
    clock: Clock,
    some_sweeps: Callable[[], Awaitable[None]],
    set_by: float,
) -> None:
    bob, sealed = bob_on_sqlite, await alice.seal()
    keys = taken_away(kmes, sealed)
    async with bob.running() as relay:
        for ahead in (0.0, set_by, 0.0):
            clock.ahead = ahead
            await some_sweeps()
            assert (await submit(relay, sealed)).code == 451
        kmes.link.waiting |= keys
        assert (await until_settled(relay, sealed)).code == 250
    assert bob.got == [(ANN, (BEN,))]
