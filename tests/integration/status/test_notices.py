"""Notices of alarms where mail stops: they arrive despite the fault, the critical ones at once, and `check` knows more.
Standard: relay/status/notifier.py; deploy/WATCHING.md (Alarms).
"""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from relay.counting.alarms import ALARMS
from relay.counting.board import Board
from relay.kme import DevelopmentKMEs
from relay.mail import Mail, Outcomes
from relay.process import app
from relay.status import notifier, observation
from relay.status.active_alarms import ActiveAlarm
from tests.system.drill import shortened
from tests.testlib import mails
from tests.testlib.alarms import break_policies, with_alarms
from tests.testlib.identities import Identities
from tests.testlib.relay_command import run
from tests.testlib.sink import Sink
from tests.testlib.sites import Site, make_site
from tests.testlib.status_numbers import asked, with_status
from tests.testlib.submit import submit

POLICIES = {
    "default.toml": 'levels = ["aes"]\n',
    "alice.example.toml": 'levels = ["plaintext"]\n',
    "dan.example.toml": 'peer = "bob"\nlevels = ["pqc"]\n',
}
TOLD = "postmaster@alice.example"


@pytest.fixture(autouse=True)
def _short() -> Iterator[None]:
    with shortened():
        yield


@pytest.fixture(name="inside")
async def _inside() -> AsyncIterator[Sink]:
    async with Sink() as inside:
        yield inside


@pytest.fixture(name="site")
def _site(tmp_path: Path, kmes: DevelopmentKMEs, sink: Sink, inside: Sink) -> Site:
    """A site with both directions; mail for its users goes to `inside`."""
    return with_status(
        make_site(
            tmp_path / "alice", "alice", state=kmes.state_dir, kme_url=kmes.urls[0], outgoing=sink.address,
            incoming=inside.address, policies=POLICIES,
        )
    )  # fmt: skip


def numbered(number: int) -> bytes:
    return mails.plain().replace(b"<1@", b"<%d@" % number)


async def findings(site: Site, what: str) -> list[str]:
    """What `check` has against this."""
    _, error, text = await run("check", "--config", site.config_file, "--json", "--no-next-hops")
    assert text, error
    return [problem for each in json.loads(text) if each["what"].startswith(what) for problem in each["problems"]]


async def told(sink: Sink, alarm: str) -> bytes:
    """The first mail there in which this alarm begins."""
    number = 0
    while True:
        number += 1
        message = (await sink.messages(number))[number - 1].message
        if f"{alarm} begins".encode() in message.replace(b"=\r\n", b""):
            return message


async def test_that_all_outgoing_mail_is_held_is_mailed_to_an_address_inside(site: Site, inside: Sink) -> None:
    with_alarms(site, f'mail_to = ["{TOLD}"]')
    # Policy covers nobody who is written to, our own domains neither.
    (site.directory / "policies" / "alice.example.toml").unlink()
    (site.directory / "policies" / "default.toml").rename(site.directory / "policies" / "carol.example.toml")
    async with app.running(site.config) as addresses:
        for number in range(3):
            to = [f"ben{number}@bob.example"]
            assert (await submit(addresses["outgoing"], numbered(number), recipients=to)).code == 451
        message = await told(inside, "mail_stuck (outgoing)")
        assert b"What to do: " in message
        assert inside.got[0].recipients == (TOLD,)


async def test_mail_that_stays_inside_does_not_hide_that_no_mail_leaves(site: Site, inside: Sink) -> None:
    """Where Postfix filters what the relay opened, the mail of an alarm is such mail itself."""
    with_alarms(site, f'mail_to = ["{TOLD}"]')
    async with app.running(site.config) as addresses:
        for number in range(3):
            to = [f"dan{number}@dan.example"]
            assert (await submit(addresses["outgoing"], numbered(number), recipients=to)).code == 451
            stays = await submit(addresses["outgoing"], numbered(number + 3), recipients=["ann@alice.example"])
            assert stays.code == 250
        async with asyncio.timeout(20):
            await told(inside, "mail_stuck (outgoing)")


async def test_that_the_next_hop_of_outgoing_mail_is_away_is_mailed_to_an_address_inside(
    site: Site, sink: Sink, inside: Sink
) -> None:
    with_alarms(site, f'mail_to = ["{TOLD}"]')
    async with app.running(site.config) as addresses:
        await sink.stop()
        assert (await submit(addresses["outgoing"], mails.plain())).code == 451
        await told(inside, "next_hop_away (outgoing)")


async def test_a_next_hop_that_is_away_is_told_while_no_mail_goes(
    site: Site, sink: Sink, inside: Sink, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(observation, "TRY_S", 0.5)
    with_alarms(site, f'mail_to = ["{TOLD}"]')
    async with app.running(site.config):
        await sink.stop()
        async with asyncio.timeout(30):
            await told(inside, "next_hop_away (outgoing)")


async def test_that_the_next_hop_of_incoming_mail_is_away_is_mailed_the_way_out(
    site: Site, sink: Sink, inside: Sink
) -> None:
    with_alarms(site, f'mail_to = ["{TOLD}"]')
    async with app.running(site.config) as addresses:
        await inside.stop()
        assert (await submit(addresses["incoming"], mails.plain(), recipients=["ann@alice.example"])).code == 451
        await told(sink, "next_hop_away (incoming)")


async def test_a_file_whose_name_is_no_text_is_told_on_every_face_and_later_alarms_are_told_too(
    tmp_path: Path, kmes: DevelopmentKMEs, identities: Identities, sink: Sink, inside: Sink
) -> None:
    site = make_site(
        tmp_path / "alice", "alice", state=kmes.state_dir, kme_url=kmes.urls[0], outgoing=sink.address,
        incoming=inside.address, policies=POLICIES, identities=identities,
    )  # fmt: skip
    with_alarms(with_status(site), f'mail_to = ["{TOLD}"]')
    async with app.running(site.config) as addresses:
        odd = os.fsencode(site.directory / "peers") + b"/x\xff\xfe.json"
        Path(os.fsdecode(odd)).write_text("{")
        message = await told(inside, "file_unusable")
        assert b"x\\udcff\\udcfe.json" in message.replace(b"=5C", b"\\").replace(b"=\r\n", b"")
        assert "udcff" in await asked(addresses["status"], "/")
        await sink.stop()
        assert (await submit(addresses["outgoing"], mails.plain())).code == 451
        await told(inside, "next_hop_away (outgoing)")


async def test_a_critical_alarm_is_mailed_at_once_although_a_warning_was_mailed_just_before(
    site: Site, inside: Sink, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(notifier, "URGENT_EVERY_S", 0.2)
    with_alarms(site, f'mail_to = ["{TOLD}"]')
    free = [2**40]
    monkeypatch.setattr(observation, "free_octets", lambda _: free[0])
    async with app.running(site.config):
        break_policies(site)
        await told(inside, "policy_broken")
        free[0] = 1000
        await told(inside, "disk_full")
        assert len(inside.got) == 2


async def test_a_critical_alarm_that_flaps_is_mailed_at_once_only_the_first_time(
    site: Site, inside: Sink, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(notifier, "URGENT_EVERY_S", 0.01)
    with_alarms(site, f'mail_to = ["{TOLD}"]')
    mailed: list[bytes] = []

    class Hop:
        async def process(self, mail: Mail) -> Outcomes:
            mailed.append(mail.message)
            return (None,)

    tells = notifier.AlarmNotifier(site.config, Board(), Hop(), {})
    flapping = ActiveAlarm(ALARMS["keys_gone"], "bob", "a cause", since=0, reported=0, seen=0)
    other = ActiveAlarm(ALARMS["keys_gone"], "carol", "a cause", since=0, reported=0, seen=0)
    keeping = asyncio.create_task(tells.keep_up())
    try:
        for _ in range(50):
            tells.notify(flapping, "begins")
            tells.notify(flapping, "ends")
            await asyncio.sleep(0.01)
        assert len(mailed) == 1
        tells.notify(other, "begins")
        async with asyncio.timeout(30):
            while len(mailed) < 2:
                await asyncio.sleep(0.01)
        assert b"keys_gone (carol) begins" in mailed[1]
    finally:
        keeping.cancel()


async def test_check_says_who_waits_directly_after_mail_was_held_before_any_alarm(site: Site, sink: Sink) -> None:
    async with app.running(site.config) as addresses:
        assert await findings(site, "held mail") == []
        sink.on_data = ["451 later"] * 2
        for number in range(2):
            assert (await submit(addresses["outgoing"], numbered(number))).code == 451
        async with asyncio.timeout(30):
            while not (found := await findings(site, "held mail outgoing")) or "2 recipients" not in found[0]:
                pass
        assert found[0].startswith("mail to 2 recipients is held since 20")
        assert "(next hop: 2)" in found[0]
        for number in range(2):
            assert (await submit(addresses["outgoing"], numbered(number))).code == 250
        async with asyncio.timeout(30):
            while await findings(site, "held mail"):
                pass


@pytest.mark.parametrize(
    ("settings", "reached"),
    [
        ('mail_to = ["root@bob.example"]', False),
        (f'mail_to = ["root@bob.example", "{TOLD}"]', True),
        ('mail_to = ["root@bob.example"]\ncommand = ["/bin/true"]', True),
    ],
)
async def test_check_says_where_no_alarm_reaches_anybody_while_outgoing_mail_is_stopped(
    site: Site, settings: str, *, reached: bool
) -> None:
    with_alarms(site, settings)
    found = await findings(site, "alarms")
    assert len(found) == (not reached)
    assert all("no alarm reaches root@bob.example while outgoing mail is stopped" in each for each in found)
