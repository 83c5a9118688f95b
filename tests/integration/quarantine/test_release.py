"""Letting messages out and dropping them: for each recipient, once, with a record of who decided it.
Standard: a message leaves the quarantine only when the next hop has accepted it for everybody who waits.
"""

from __future__ import annotations

import asyncio
import json
import re
import shutil
import sqlite3
from contextlib import closing, nullcontext
from importlib import import_module

import pytest

from relay.errors import StoreUnavailable
from relay.process import assembly
from relay.quarantine.release import Releaser
from relay.runtime.stopping import Stop
from relay.store.delivery_records import DeliveryRecords
from relay.store.quarantine import Quarantine
from tests.integration.quarantine.conftest import Bob, Seal, flipped, settings
from tests.testlib import mails
from tests.testlib.hop import Hop
from tests.testlib.relay_command import run
from tests.testlib.sink import Sink
from tests.testlib.submit import submit

BEN, CARL, DORA = "ben@bob.example", "carl@bob.example", "dora@bob.example"


@pytest.fixture
async def waiting(bob: Bob, seal: Seal) -> str:
    """The id of a message from a peer that was not configured when it came, and is now; Ben and Carl wait for it."""
    message = await seal(mails.random_attachment(), recipients=[BEN, CARL])
    bob.configure(lambda text: text.replace('sae_id = "2"', 'sae_id = "5"'))
    async with bob.running() as relay:
        assert (await submit(relay, message, recipients=[BEN, CARL], options=["RET=FULL", "ENVID=QQ1"])).code == 250
    bob.configure(lambda text: text.replace('sae_id = "5"', 'sae_id = "2"'))
    [entry] = await bob.listed()
    return str(entry["id"])


async def test_each_recipient_gets_it_once_whatever_the_next_hop_says_of_the_others(
    bob: Bob, waiting: str, sink: Sink
) -> None:
    sink.on_rcpt = {CARL: "450 4.2.1 mailbox busy"}
    status, err, out = await bob.command("release", waiting)
    assert (status, out) == (1, f"{waiting}: {BEN}: delivered\n")
    assert err.startswith(f"{waiting}: {CARL}: not delivered, waits: ")
    assert "mailbox busy" in err
    assert [entry["recipients"] for entry in await bob.listed()] == [[CARL]]
    sink.on_rcpt = {}
    assert await bob.command("release", waiting) == (0, "", f"{waiting}: {CARL}: delivered\n")
    assert [got.recipients for got in sink.got] == [(BEN,), (CARL,)]
    assert await bob.listed() == []
    assert [line["event"] for line in bob.ledger()] == ["released", "released"]


async def test_what_the_next_hop_does_not_take_stays(bob: Bob, waiting: str, sink: Sink) -> None:
    sink.on_data = ["554 5.7.1 virus"]
    status, err, _ = await bob.command("release", waiting)
    assert (status, "554 5.7.1 virus" in err) == (1, True)
    assert [entry["recipients"] for entry in await bob.listed()] == [[BEN, CARL]]
    assert (await bob.command("release", waiting))[0] == 0, "and may be tried again at once"
    assert len(sink.got) == 1


async def test_it_can_be_released_to_one_of_those_who_wait(bob: Bob, waiting: str, sink: Sink) -> None:
    status, err, _ = await bob.command("release", "--to", DORA, waiting)
    assert (status, err, sink.got) == (1, f"{waiting}: {DORA} does not wait for it\n", [])
    assert (await bob.command("release", "--to", CARL, waiting))[0] == 0
    assert [got.recipients for got in sink.got] == [(CARL,)]
    assert [entry["recipients"] for entry in await bob.listed()] == [[BEN]]


async def test_what_is_released_is_what_was_sealed_from_whom_it_came(bob: Bob, waiting: str, sink: Sink) -> None:
    await bob.command("release", waiting)
    [got] = sink.got
    assert (got.sender, got.recipients) == ("ann@alice.example", (BEN, CARL))
    marked = b"X-QuMail-Protection: aes; peer=alice; author=peer\r\n" + mails.random_attachment()
    assert mails.untraced(got.message) == marked, "under the trace field of when it came, as all mail that is handed on"


@pytest.mark.parametrize(("how", "expected"), [([], "HDRS"), (["--unopened"], "FULL")])
async def test_a_bounce_of_what_was_released_opened_has_the_header_only(
    bob: Bob, waiting: str, sink: Sink, how: list[str], expected: str
) -> None:
    async with Hop() as hop:
        bob.configure(lambda text: text.replace(f'"{sink.address}"', f'"{hop.address}"'))
        assert (await bob.command("release", *how, waiting))[0] == 0
    [said] = [command for command in hop.commands if command.startswith("MAIL")]
    assert f" RET={expected} ENVID=QQ1" in said


async def test_a_drop_that_fails_changes_nothing_and_may_be_tried_again_at_once(bob: Bob, waiting: str) -> None:
    audit = bob.site.config.audit_directory
    shutil.rmtree(audit)
    audit.touch()
    status, err, _ = await bob.command("drop", waiting)
    assert (status, "the audit record cannot be written" in err) == (1, True)
    audit.unlink()
    assert len(await bob.listed()) == 1
    assert (await bob.command("drop", waiting))[0] == 0


async def test_a_release_that_is_stopped_finishes_the_message_that_is_on_its_way_and_begins_no_other(
    bob: Bob, waiting: str, sink: Sink, monkeypatch: pytest.MonkeyPatch
) -> None:
    stop = Stop()
    monkeypatch.setattr(import_module("relay.cli.quarantine"), "stop_on_signals", lambda: nullcontext(stop))
    sink.gate = asyncio.Event()
    releasing = asyncio.create_task(bob.command("release", waiting, "another"))
    await sink.reached.wait()
    stop.request()
    sink.gate.set()
    status, err, _ = await releasing
    assert (status, "another and what comes after it stay in quarantine" in err) == (1, True)
    assert (len(sink.got), await bob.listed()) == (1, [])


async def test_two_people_who_release_at_the_same_moment_deliver_once(bob: Bob, waiting: str, sink: Sink) -> None:
    sink.gate = asyncio.Event()
    first = asyncio.create_task(bob.command("release", waiting))
    await sink.reached.wait()
    second = asyncio.create_task(run("quarantine", "release", waiting, "--config", bob.site.config_file))
    status, err, _ = await second
    assert (status, "is being released at this moment" in err) == (1, True)
    sink.gate.set()
    assert (await first)[0] == 0
    assert len(sink.got) == 1


async def test_a_copy_for_somebody_else_that_comes_during_a_release_is_not_lost(
    bob: Bob, seal: Seal, sink: Sink
) -> None:
    message = flipped(await seal())
    async with bob.running() as relay:
        await submit(relay, message)
        [entry] = await bob.listed()
        sink.gate = asyncio.Event()
        release = asyncio.create_task(bob.command("release", "--unopened", entry["id"]))
        await sink.reached.wait()
        assert (await submit(relay, message, recipients=[DORA])).code == 250
        sink.gate.set()
        assert (await release)[0] == 0
    assert [got.recipients for got in sink.got] == [(BEN,)]
    assert [each["recipients"] for each in await bob.listed()] == [[DORA]]


async def test_a_released_message_leaves_nothing_behind(bob: Bob, waiting: str) -> None:
    await bob.command("release", waiting)
    with closing(sqlite3.connect(bob.site.directory / "relay.db")) as database:
        for table in ("quarantine", "quarantine_recipients"):
            assert database.execute(f"SELECT count(*) FROM {table}").fetchone() == (0,)


async def test_a_drop_destroys_the_message_and_the_ledger_keeps_who_decided(bob: Bob, waiting: str, sink: Sink) -> None:
    status, err, out = await bob.command("drop", waiting)
    assert (status, err, out) == (0, "", f"{waiting}: dropped; 2 recipients will not get it\n")
    assert (await bob.listed(), sink.got) == ([], [])
    [line] = bob.ledger()
    assert (line["event"], bool(line["by"]), line["policy"]) == ("dropped", True, f"quarantine {waiting}")
    assert BEN not in json.dumps(line), "addresses stand hashed in the ledger"


async def test_what_is_not_there_is_said_and_the_others_are_released(bob: Bob, waiting: str, sink: Sink) -> None:
    status, err, _ = await bob.command("release", "0123456789ab", waiting)
    assert (status, err) == (1, "0123456789ab: there is no such message; qumail-relay quarantine list\n")
    assert len(sink.got) == 1
    assert (await bob.command("show", waiting))[0] == 1


@pytest.mark.parametrize(
    "arguments",
    [
        ["release"], ["drop"], ["drop", "--all"], ["release", "--all", "x"], ["release", "--reason", "tampered", "x"],
        ["release", "--all", "--reason", "bored"], ["show"], ["show", "--raw", "--json", "x"],
    ],
)  # fmt: skip
async def test_a_command_that_does_not_say_what_is_meant_is_wrong_usage(bob: Bob, arguments: list[str]) -> None:
    assert (await bob.command(*arguments))[0] == 2


async def test_without_a_store_there_is_nothing_and_looking_makes_none(bob: Bob) -> None:
    before = sorted(path.name for path in bob.site.directory.iterdir())
    status, err, out = await bob.command("list")
    assert (status, err, out) == (0, "", "0 messages, 0 B\n")
    assert sorted(path.name for path in bob.site.directory.iterdir()) == before


async def test_a_message_is_shown_with_all_that_is_known_of_it(bob: Bob, waiting: str) -> None:
    status, _, table = await bob.command("list")
    assert (status, waiting in table, "wrong-site" in table) == (0, True, True)
    cells = "".join(line.split("│")[-2].strip() for line in table.splitlines() if line.startswith("│"))
    assert BEN in cells
    assert CARL in cells
    arrived = " ".join(line.split("│")[2].strip() for line in table.splitlines() if line.startswith("│"))
    assert re.match(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\dZ", arrived), "nothing of it is cut off"
    assert re.search(r"^1 message, \d+\.\d KiB$", table, re.MULTILINE)
    _, _, text = await bob.command("show", waiting)
    assert re.search(rf"^id +{waiting}", text, re.MULTILINE)
    assert re.search(rf"^recipients +{BEN} *\n +{CARL}", text, re.MULTILINE)
    _, _, header = await bob.command("show", "--headers", waiting)
    assert "Subject: [...]\r\n" in header
    assert "smime.p7m" in header


async def test_check_reports_a_quarantine_that_waits_for_somebody(bob: Bob, waiting: str) -> None:
    bob.configure(settings('max_size = "4 MiB"'))
    bob.configure(lambda text: text.replace("[policies]", 'max_message_size = "512 KiB"\n\n[policies]'))
    _, _, out = await run("check", "--json", "--config", bob.site.config_file)
    [finding] = [each for each in json.loads(out) if each["what"] == "quarantine"]
    assert finding["problems"] == ["1 message (1 wrong-site) waits for a decision: qumail-relay quarantine list"]
    bob.configure(lambda text: text.replace("4 MiB", "1200 KiB"))
    _, _, out = await run("check", "--json", "--config", bob.site.config_file)
    [finding] = [each for each in json.loads(out) if each["what"] == "quarantine"]
    assert finding["problems"][1].startswith("nearly full: mail of peer alice has ")


async def test_what_opens_to_something_that_smuggles_is_not_handed_on(bob: Bob, seal: Seal, sink: Sink) -> None:
    """Another implementation may have sealed a bare LF; the release looks at it as the relay would have."""
    smuggling = b"Subject: x\r\n\r\nx\n.\r\nMAIL FROM:<evil@x>\r\n"
    message = await seal(smuggling)
    bob.configure(lambda text: text.replace('sae_id = "2"', 'sae_id = "5"'))
    async with bob.running() as relay:
        assert (await submit(relay, message)).code == 250
    bob.configure(lambda text: text.replace('sae_id = "5"', 'sae_id = "2"'))
    status, err, _ = await bob.command("release", "--all")
    assert (status, "BadStructure: the original: a line ends in LF" in err, sink.got) == (1, True, [])


async def test_a_message_whose_row_was_changed_is_not_released_but_can_be_dropped(
    bob: Bob, waiting: str, sink: Sink
) -> None:
    def change() -> None:
        with closing(sqlite3.connect(bob.site.directory / "relay.db")) as database, database:
            database.execute("UPDATE quarantine SET reason = 'unprotected'")

    await asyncio.to_thread(change)  # the relay may be writing, by this event loop
    status, err, _ = await bob.command("release", waiting)
    assert (status, "a stored row was changed" in err, sink.got) == (1, True, [])
    assert (await bob.command("drop", waiting))[0] == 0
    assert await bob.listed() == []


async def test_a_delivery_that_cannot_be_noted_is_told_to_those_who_would_repeat_it(
    bob: Bob, waiting: str, sink: Sink, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def fails(self: Quarantine, name: str, addresses: list[str]) -> bool:
        raise StoreUnavailable("disk full")

    monkeypatch.setattr(Quarantine, "delivered", fails)
    status, err, _ = await bob.command("release", waiting)
    assert (status, f"{BEN}, {CARL} HAS it" in err, len(sink.got)) == (1, True, 1)
    monkeypatch.undo()
    assert (await run("quarantine", "release", waiting, "--config", bob.site.config_file))[0] == 1
    assert len(sink.got) == 1, "nobody repeats it by accident"


@pytest.mark.parametrize("fault", [StoreUnavailable("disk full"), RuntimeError("a fault of ours")])
async def test_what_cannot_be_noted_after_the_next_hop_has_it_does_not_make_a_delivered_message_stay(
    bob: Bob, waiting: str, sink: Sink, monkeypatch: pytest.MonkeyPatch, fault: Exception
) -> None:
    async def fails(*_: object) -> None:
        raise fault

    monkeypatch.setattr(DeliveryRecords, "settle_opened", fails)
    status, err, out = await bob.command("release", waiting)
    assert (status, err) == (0, "")
    assert out.splitlines() == [f"{waiting}: {each}: delivered" for each in (BEN, CARL)]
    assert (await bob.listed(), len(sink.got)) == ([], 1)


async def test_a_release_that_is_given_up_while_it_waits_for_the_store_leaves_no_claim(
    bob: Bob, waiting: str, sink: Sink, monkeypatch: pytest.MonkeyPatch
) -> None:
    claim, begun, go_on = Quarantine.claim, asyncio.Event(), asyncio.Event()
    tasks: list[asyncio.Task[bool]] = []

    async def slow(self: Quarantine, name: str) -> bool:
        async def work() -> bool:
            begun.set()
            await go_on.wait()
            return await claim(self, name)

        tasks.append(asyncio.create_task(work()))
        return await asyncio.shield(tasks[0])

    monkeypatch.setattr(Quarantine, "claim", slow)
    async with assembly.parts(bob.site.config, prefetch=False) as parts:
        decide = Releaser(
            parts.store.quarantine, parts.originals, parts.next_hops["incoming"], parts.audit, 50, "me"
        )  # fmt: skip
        [kept] = await parts.store.quarantine.all()
        given_up = asyncio.create_task(decide.release(kept, kept.envelope.recipients))
        await begun.wait()
        given_up.cancel()
        await asyncio.sleep(0)
        go_on.set()
        with pytest.raises(asyncio.CancelledError):
            await given_up
        await asyncio.gather(*tasks)
        assert await claim(parts.store.quarantine, waiting)
    assert sink.got == []
