"""Recipients who get their mail late, and mail that comes too late: after an hour, after four days, after the window.
Standard: relay/FORMAT.md; keys wait until all have the mail, and nobody's longer than a sealed message may open.
"""

from __future__ import annotations

import pytest
from sqlalchemy import text
from structlog.testing import LogCapture

from relay.journey.opening import SKEW, WINDOW
from relay.store.store import Store
from tests.integration.opening.conftest import ANN, BEA, BEN, Alice, Bob, Clock, at_every_level
from tests.testlib.relay_command import run
from tests.testlib.submit import until_settled

HOUR, DAY = 3600.0, 86_400.0
BUSY = "450 4.2.1 mailbox busy"


async def held(bob: Bob, clock: Clock) -> int:
    """How many keys are held, once those are destroyed whose time is over."""
    async with bob.store(clock) as store:
        await store.received.destroy_expired()
        return sum(counts.held for counts in (await store.received.counts()).values())


@pytest.mark.parametrize("after", [HOUR, 4 * DAY])
@pytest.mark.parametrize("level", ["otp", "aes", "pqc", "pqc+aes"])
async def test_a_second_recipient_gets_the_mail_as_late_as_their_mailbox_is_free(
    alice: Alice, bob_on_sqlite: Bob, clock: Clock, level: str, after: float
) -> None:
    bob = bob_on_sqlite
    sealed = await alice.seal(BEN, BEA, level=level)
    bob.hop.instead[f"RCPT TO:<{BEA}>"] = BUSY
    async with bob.running() as relay:
        assert (await until_settled(relay, sealed, recipients=[BEN, BEA])).code == 451
        clock.ahead = after
        assert (await held(bob, clock) > 0) is (level != "pqc")
        bob.hop.instead.clear()
        assert (await until_settled(relay, sealed, recipients=[BEN, BEA])).code == 250
    assert bob.got == [(ANN, (BEN,)), (ANN, (BEA,))]


@pytest.mark.in_process
@pytest.mark.parametrize(("level", "kept_for"), [("otp", 900.0), ("aes", DAY), ("pqc+aes", DAY)])
async def test_keys_are_destroyed_some_time_after_the_last_one_is_served_and_not_after_the_first(
    alice: Alice, bob: Bob, clock: Clock, level: str, kept_for: float
) -> None:
    sealed = await alice.seal(BEN, BEA, level=level)
    async with bob.running() as relay:
        assert (await until_settled(relay, sealed, recipients=[BEN])).code == 250
        clock.ahead = 2 * DAY
        assert await held(bob, clock) > 0
        assert (await until_settled(relay, sealed, recipients=[BEA])).code == 250
        assert (await until_settled(relay, sealed, recipients=[BEA])).code == 250  # so all is settled
        clock.ahead += kept_for - 60
        assert await held(bob, clock) > 0
        clock.ahead += 120
        assert await held(bob, clock) == 0
    assert bob.got == [(ANN, (BEN,)), (ANN, (BEA,))]


@pytest.mark.in_process
@pytest.mark.parametrize(("late", "reason"), [(60.0, "outside-window"), (DAY, "destroyed")])
async def test_a_second_recipient_whose_mail_comes_too_late_for_its_key_is_an_alarm_and_never_looks_delivered(
    alice: Alice, bob: Bob, clock: Clock, log: LogCapture, late: float, reason: str
) -> None:
    """The sender hears 250, as for all that is put aside, so somebody here must hear of it."""
    sealed = await alice.seal(BEN, BEA)
    async with bob.running() as relay:
        assert (await until_settled(relay, sealed, recipients=[BEN])).code == 250
        clock.ahead = WINDOW.total_seconds() + late
        assert (await held(bob, clock) == 0) is (reason == "destroyed")
        for _ in range(2):
            assert (await until_settled(relay, sealed, recipients=[BEA])).code == 250
    assert bob.got == [(ANN, (BEN,))]
    [kept] = await bob.kept()
    assert (kept.reason, kept.envelope.addresses) == (reason, (BEA,))
    put = [(each["log_level"], each["reason"]) for each in log.entries if each["event"] == "put_in_quarantine"]
    assert put == [("error", reason), ("warning", reason)], "an alarm for each recipient, not for each copy"


async def test_a_recipient_who_never_gets_the_mail_keeps_its_key_for_no_longer_than_it_may_open(
    alice: Alice, bob: Bob, clock: Clock
) -> None:
    sealed = await alice.seal(BEN, BEA)
    async with bob.running() as relay:
        assert (await until_settled(relay, sealed, recipients=[BEN])).code == 250
    clock.ahead = WINDOW.total_seconds()
    assert await held(bob, clock) == 1
    clock.ahead += SKEW.total_seconds() + 60
    assert await held(bob, clock) == 0


async def test_an_alias_is_served_when_all_whom_it_stands_for_have_the_mail(
    alice: Alice, bob_on_sqlite: Bob, clock: Clock
) -> None:
    bob = bob_on_sqlite
    bob.add('[aliases]\n"info@bob.example" = ["ben@bob.example", "bea@bob.example"]')
    sealed = await alice.seal("info@bob.example")
    async with bob.running() as relay:
        assert (await until_settled(relay, sealed, recipients=[BEN])).code == 250
        clock.ahead = 2 * DAY
        assert await held(bob, clock) == 1
        for _ in range(2):
            assert (await until_settled(relay, sealed, recipients=[BEA])).code == 250
        clock.ahead += DAY + 60
        assert await held(bob, clock) == 0
    assert bob.got == [(ANN, (BEN,)), (ANN, (BEA,))]


# --- the window ----------------------------------------------------------------------------------------


@pytest.mark.in_process
@at_every_level
@pytest.mark.parametrize("late", [False, True], ids=["in time", "late"])
async def test_a_message_opens_for_a_week_after_it_was_sealed_and_later_by_a_person_only(
    alice: Alice, bob_on_sqlite: Bob, clock: Clock, level: str, late: bool
) -> None:
    bob, sealed = bob_on_sqlite, await alice.seal(level=level)
    clock.ahead = WINDOW.total_seconds() + (60 if late else -60)
    async with bob.running() as relay:
        assert (await until_settled(relay, sealed)).code == 250
    assert await bob.reasons() == ["outside-window"] * late
    assert len(bob.got) == 1 - late
    if late:
        [kept] = await bob.kept()
        assert "more than 7 days ago" in kept.cause
        assert (await run("quarantine", "release", kept.id, "--config", bob.site.config_file))[0] == 0
        assert bob.got == [(ANN, (BEN,))]


@pytest.mark.parametrize(("minutes", "delivered"), [(9, True), (11, False)])
async def test_the_peers_clock_may_be_ten_minutes_ahead(
    alice: Alice, bob_on_sqlite: Bob, alices_clock: Clock, minutes: int, delivered: bool
) -> None:
    alices_clock.ahead = minutes * 60
    bob, sealed = bob_on_sqlite, await alice.seal()
    async with bob.running() as relay:
        assert (await until_settled(relay, sealed)).code == 250
    assert len(bob.got) == delivered
    assert await bob.reasons() == ([] if delivered else ["outside-window"])


async def remembered(store: Store) -> int:
    """How many opened mails the store knows after what is over was forgotten."""
    await store.deliveries.expire()
    return len(await store.deliveries._database.rows(text("SELECT * FROM opened_mails")))


@pytest.mark.in_process
async def test_what_is_remembered_of_a_mail_lasts_as_long_as_it_might_open_even_when_it_came_from_the_future(
    alice: Alice, bob: Bob, clock: Clock, alices_clock: Clock
) -> None:
    alices_clock.ahead = 9 * 60
    sealed = await alice.seal(level="pqc")
    async with bob.running() as relay:
        assert (await until_settled(relay, sealed)).code == 250
        clock.ahead = WINDOW.total_seconds() + 8 * 60
        async with bob.store(clock) as store:
            assert await remembered(store) == 1
        assert (await until_settled(relay, sealed)).code == 250
        assert len(bob.got) == 1
        clock.ahead += SKEW.total_seconds() + 2 * 60
        async with bob.store(clock) as store:
            assert await remembered(store) == 0
        assert (await until_settled(relay, sealed)).code == 250
    assert len(bob.got) == 1
    assert await bob.reasons() == ["outside-window"]
