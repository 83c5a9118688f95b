"""A site that has lost its disk is put back from a copy that was made while it served; an old copy repeats nothing.
Standard: deploy/OPERATING.md; relays as processes, development KMEs that give each key once, captured mail.
"""

from __future__ import annotations

import asyncio
import json
import re
import shutil
import sqlite3
import subprocess
import time
from contextlib import AsyncExitStack, closing
from pathlib import Path
from typing import Any

import pytest

from relay.config import UNFINISHED
from relay.formats import mime
from relay.kme import DevelopmentKMEs
from relay.store.backup import MAX_FILE_OCTETS
from tests.testlib import mails
from tests.testlib.identities import Identities
from tests.testlib.relay_command import run
from tests.testlib.sink import Sink
from tests.testlib.sites import RelayProcess, Site, make_site, relay_process
from tests.testlib.submit import SMTPReply, submit

ROOT = Path(__file__).parents[3]
ONLY_PEOPLE_CHANGE = ("relay.toml", "policies", "identity", "peers", "site.secret")
"""What else the machine's own backup has: no relay writes it."""
LEVELS = ("otp", "aes", "pqc")
POLICIES = {f"bob.example/{level}.toml": f'levels = ["{level}"]\n' for level in LEVELS}


@pytest.fixture
def alice(tmp_path: Path, kmes: DevelopmentKMEs, wire: Sink, identities: Identities) -> Site:
    return make_site(
        tmp_path / "alice", "alice", state=kmes.state_dir, kme_url=kmes.urls[0], outgoing=wire.address,
        policies=POLICIES, identities=identities, kme_settings="prefetch = false\n",
    )  # fmt: skip


@pytest.fixture
def bob(tmp_path: Path, kmes: DevelopmentKMEs, sink: Sink, identities: Identities) -> Site:
    return make_site(
        tmp_path / "bob", "bob", state=kmes.state_dir, kme_url=kmes.urls[1], incoming=sink.address,
        identities=identities, kme_settings="lag_patience = 0\n",
    )  # fmt: skip


def mail(level: str, number: int) -> bytes:
    return mails.plain(f"{level} {number}").replace(b"<1@", f"<{level}.{number}@".encode())


async def send(relay: RelayProcess, way: str, message: bytes, level: str) -> SMTPReply:
    return await submit(relay.addresses[way], message, recipients=[f"{level}@bob.example"])


async def backup(site: Site, to: Path) -> Path:
    status, err, out = await run("backup", "--config", site.config_file, to)
    assert (status, err) == (0, "")
    for name in ("relay.db", "sent.recent"):
        assert f"{to / name}: for {site.directory / name}" in out.decode()
    assert f"not copied: store.secret: {site.directory / 'site.secret'}" in out.decode()
    return to


def put_back(site: Site, copy: Path) -> None:
    """The disk was lost, and is as the copy and the machine's own backup have it."""
    for path in site.directory.iterdir():
        if path.name not in ONLY_PEOPLE_CHANGE:
            shutil.rmtree(path) if path.is_dir() else path.unlink()
    shutil.copytree(copy, site.directory, dirs_exist_ok=True)


def events(relay: RelayProcess, name: str) -> list[dict[str, Any]]:
    lines = (json.loads(line) for line in relay.log.splitlines() if line.startswith("{"))
    return [each for each in lines if each["event"] == name]


def fetched(kmes: DevelopmentKMEs) -> list[str]:
    """Every key that Bob's KME was asked for, as often as it was."""
    return [each["key_ID"] for asked in kmes.km2.got("dec_keys") if asked.content for each in asked.content["key_IDs"]]


@pytest.mark.promise("A copy made by `backup` loses no mail in it, and uses no key twice")
async def test_mail_under_way_when_the_disk_was_lost_is_delivered_after_the_restore(
    alice: Site, bob: Site, kmes: DevelopmentKMEs, wire: Sink, sink: Sink, tmp_path: Path
) -> None:
    """A KME gives a received key once: it must come out of the copy."""
    async with relay_process(alice) as sealing, relay_process(bob) as opening:
        for level in LEVELS:
            assert (await send(sealing, "outgoing", mail(level, 1), level)).code == 250
        sealed = {level: got.message for level, got in zip(LEVELS, wire.got, strict=True)}
        sink.on_data = ["451 4.2.0 the mailbox is locked"] * len(LEVELS)
        for level in LEVELS:
            assert (await send(opening, "incoming", sealed[level], level)).code == 451
        copy = await backup(bob, tmp_path / "copy")
        opening.kill()
        await opening.process.wait()
    asked_before = fetched(kmes)
    put_back(bob, copy)
    async with relay_process(bob) as opening:
        [restored] = events(opening, "store_restored")
        assert restored["level"] == "error"
        for level in LEVELS:  # the peer's queue tries them again
            assert (await send(opening, "incoming", sealed[level], level)).code == 250
        assert sink.got == [], "nobody can tell any more who had it, so a person decides"
        assert {each["reason"] for each in events(opening, "put_in_quarantine")} == {"outside-window"}
        status, err, out = await run(
            "quarantine", "release", "--config", bob.config_file, "--all", "--reason", "outside-window"
        )
        assert (status, err) == (0, ""), out
        assert sorted(got.recipients[0] for got in sink.got) == sorted(f"{level}@bob.example" for level in LEVELS)
        originals = [mime.split(got.message)[1] for got in sink.got]
        assert originals == [mime.split(mail(level, 1))[1] for level in LEVELS]
    assert fetched(kmes) == asked_before


async def test_an_original_that_runs_on_beside_its_copy_shares_no_key_and_no_memory_with_it(
    alice: Site, bob: Site, kmes: DevelopmentKMEs, wire: Sink, sink: Sink, tmp_path: Path
) -> None:
    """What deploy/OPERATING.md warns of: only mail that comes to both arrives twice, and what one fetched waits here."""
    copies = {}
    for site in (alice, bob):
        async with relay_process(site):
            copy = await backup(site, tmp_path / f"copy-{site.directory.name}")
        copies[site] = Site(shutil.copytree(site.directory, tmp_path / f"{site.directory.name}-again"))
        put_back(copies[site], copy)
    async with AsyncExitStack() as stack:
        sites = (alice, copies[alice], bob, copies[bob])
        relays = [await stack.enter_async_context(relay_process(each)) for each in sites]
        sealing, opening = relays[:2], relays[2:]
        assert [len(events(relay, "store_restored")) for relay in (*sealing, *opening)] == [0, 1, 0, 1]
        for number, relay in enumerate(sealing * 3):
            for level in LEVELS:
                assert (await send(relay, "outgoing", mail(level, number), level)).code == 250
        used = [each for relay in sealing for sent in events(relay, "sealed_and_sent") for each in sent["key_IDs"]]
        assert len(set(used)) == len(used) > 6
        sealed = {level: [got.message for got in wire.got if level in got.recipients[0]] for level in LEVELS}
        for message in sealed["aes"][:2]:
            codes = [(await send(relay, "incoming", message, "aes")).code for relay in (*opening, opening[0])]
            assert codes == [250, 451, 250]
        assert len(sink.got) == 2
        async with asyncio.timeout(30):
            while len(sink.got) != 4:  # the copy puts aside what may have been sealed before the restore
                sink.got[2:] = []
                assert (await send(sealing[0], "outgoing", mail("pqc", 9), "pqc")).code == 250
                codes = [(await send(relay, "incoming", wire.got[-1].message, "pqc")).code for relay in opening]
                assert codes == [250, 250]
        assert sink.got[2].message.endswith(mail("pqc", 9).partition(b"\r\n\r\n")[2])


@pytest.mark.promise("A restored store opens nothing sealed before")
@pytest.mark.parametrize("how", ["copy", "machine"])
async def test_an_old_copy_delivers_nothing_again_and_new_mail_goes_on(
    alice: Site, bob: Site, wire: Sink, sink: Sink, tmp_path: Path, how: str
) -> None:
    """Captured mail that came after the copy was made is sent again by anybody: it is unknown to the copy."""
    async with relay_process(alice) as sealing:
        async with relay_process(bob) as opening:
            copy = await backup(bob, tmp_path / "copy")
            if how == "machine":
                opening.process.terminate()
                await opening.process.wait()
                shutil.copytree(bob.directory, tmp_path / "machine")
        async with relay_process(bob) as opening:
            for level in LEVELS:
                await send(sealing, "outgoing", mail(level, 1), level)
                assert (await send(opening, "incoming", wire.got[-1].message, level)).code == 250
        assert len(sink.got) == len(LEVELS)
        if how == "copy":
            put_back(bob, copy)
        else:  # everything as it was, the file beside the secret as well; and what the document says for that
            shutil.rmtree(bob.directory)
            shutil.copytree(tmp_path / "machine", bob.directory)
            (bob.directory / "restore.check").write_text(f"{time.time():.0f}\n")
        async with relay_process(bob) as opening:
            assert len(events(opening, "store_restored")) == 1
            for level, captured in zip(LEVELS, list(wire.got), strict=True):
                answer = await send(opening, "incoming", captured.message, level)
                assert answer.code == (250 if level == "pqc" else 451), "its key is gone, or it is put aside"
            assert len(sink.got) == len(LEVELS)
            assert [each["reason"] for each in events(opening, "put_in_quarantine")] == ["outside-window"]
            number = 2
            while len(sink.got) == len(LEVELS):  # what was sealed within the second of the restore is put aside as well
                await send(sealing, "outgoing", mail("aes", number), "aes")
                assert (await send(opening, "incoming", wire.got[-1].message, "aes")).code == 250
                number += 1
        async with relay_process(bob) as opening:
            assert events(opening, "store_restored")[1:] == [], "it is told once"


@pytest.mark.promise("A copy made by `backup` loses no mail in it, and uses no key twice")
async def test_a_mail_that_waited_to_leave_leaves_as_it_was_sealed_and_no_key_is_used_twice(
    alice: Site, kmes: DevelopmentKMEs, wire: Sink, tmp_path: Path
) -> None:
    async with relay_process(alice) as sealing:
        wire.on_data = ["451 4.3.0 later"] * len(LEVELS)
        for level in LEVELS:
            assert (await send(sealing, "outgoing", mail(level, 1), level)).code == 451
        copy = await backup(alice, tmp_path / "copy")
        for level in LEVELS:
            assert (await send(sealing, "outgoing", mail(level, 1), level)).code == 250
            assert (await send(sealing, "outgoing", mail(level, 2), level)).code == 250
    before, wire.got = wire.got, []
    put_back(alice, copy)
    issued = len(kmes.link.keys)
    async with relay_process(alice) as sealing:
        for level in LEVELS:
            assert (await send(sealing, "outgoing", mail(level, 1), level)).code == 250
        again, first = ([mails.untraced(got.message) for got in each] for each in (wire.got, before[::2]))
        assert again == first, "the very same ciphertext"
        used = [key for each in events(sealing, "sealed_and_sent") for key in each["key_IDs"]]
        for level in LEVELS:
            assert (await send(sealing, "outgoing", mail(level, 3), level)).code == 250
        fresh = [key for each in events(sealing, "sealed_and_sent") for key in each["key_IDs"]][len(used) :]
    assert len(set(fresh)) == len(fresh) >= 3
    assert not set(fresh) & set(used)
    assert set(fresh) <= set(list(kmes.link.keys)[issued:])


async def test_it_can_be_made_again_and_again_while_mail_flows(
    alice: Site, bob: Site, wire: Sink, sink: Sink, tmp_path: Path
) -> None:
    async def flow(sealing: RelayProcess, opening: RelayProcess) -> None:
        for number in range(12):
            assert (await send(sealing, "outgoing", mail("aes", number), "aes")).code == 250
            assert (await send(opening, "incoming", wire.got[-1].message, "aes")).code == 250

    async with relay_process(alice) as sealing, relay_process(bob) as opening:
        flowing = asyncio.create_task(flow(sealing, opening))
        number = 0
        while not flowing.done() or number < 2:
            await backup(bob, tmp_path / f"copy {number}")
            number += 1
        await flowing
    assert len(sink.got) == 12


@pytest.mark.parametrize("what", ["directory", "store", "audit record"])
async def test_it_says_what_cannot_be_copied(bob: Site, tmp_path: Path, what: str) -> None:
    wrong = bob.directory / "relay.db"
    match what:
        case "directory":
            wrong = tmp_path / "copy"
            wrong.mkdir()
        case "store":
            wrong.write_text("this is no database, and is longer than a header of one" * 3)
        case _:  # one with holes takes no room, and its copy would
            async with relay_process(bob):
                wrong = bob.config.audit_directory / "9.jsonl"
            with wrong.open("wb") as file:
                file.truncate(MAX_FILE_OCTETS + 1)
    status, err, _ = await run("backup", "--config", bob.config_file, tmp_path / "copy")
    assert status == 1
    assert str(wrong) in err
    assert "Traceback" not in err
    assert sum(each.stat().st_size for each in tmp_path.glob("copy/**/*")) < 10_000_000


async def test_a_copy_that_was_cut_off_says_so_and_so_does_a_relay_that_starts_from_it(
    bob: Site, tmp_path: Path
) -> None:
    """Without a store it looks like a first start, after which captured mail could be delivered again."""
    async with relay_process(bob):
        pass
    spool = bob.directory / "keys.spool"
    spool.mkdir(exist_ok=True)
    with (spool / "0.spool").open("wb") as file:
        file.truncate(MAX_FILE_OCTETS + 1)
    status, err, _ = await run("backup", "--config", bob.config_file, tmp_path / "copy")
    assert (status, "is not whole: delete it" in err) == (1, True), err
    assert not (tmp_path / "copy" / "relay.db").exists()
    put_back(bob, tmp_path / "copy")
    shutil.rmtree(bob.directory / "keys.spool")
    async with relay_process(bob) as opening:
        assert len(events(opening, "store_restored")) == 1
    whole = await backup(bob, tmp_path / "other")
    assert not (whole / UNFINISHED).exists()


async def test_the_store_of_a_newer_release_is_refused(bob: Site, tmp_path: Path) -> None:
    async with relay_process(bob):
        pass
    with closing(sqlite3.connect(bob.directory / "relay.db")) as store, store:
        store.execute("UPDATE store_schema SET version = 99")
    status, err, out = await run("backup", "--config", bob.config_file, tmp_path / "copy")
    assert (status, out) == (1, b"")
    assert "was written by a newer relay (schema 99, " in err
    assert str(bob.directory / "relay.db") in err
    assert list(tmp_path.glob("copy/*")) == []


@pytest.mark.parametrize(
    ("planted", "restored"),
    [("", ["relay.db"]), ("9999-1-1T\n..", ["planted"]), ("9999-1-1T\n--files-from=list", ["planted"])],
)
def test_the_commands_of_the_restore_take_the_newest_copy_that_is_whole_and_nothing_beside_the_copies(
    tmp_path: Path, planted: str, restored: list[str]
) -> None:
    """The relay's account names the copies: no name leads to another directory, or is an option."""
    backups, state = tmp_path / "backups" / "qumail-relay", tmp_path / "state"
    for name, files in (
        ("2026-12-01T1", ["relay.db"]),
        ("2026-12-02T1", [UNFINISHED, "sent.recent"]),
        ("2026-12-03T1", []),
        *([(planted, ["planted"])] if planted else ()),
    ):
        (backups / name).mkdir(parents=True)
        for file in files:
            (backups / name / file).touch()
    (tmp_path / "secret").touch()
    (tmp_path / "backups" / "secret").touch()
    (tmp_path / "list").write_text(f"{tmp_path}/secret\n")
    state.mkdir()
    block = (ROOT / "deploy/OPERATING.md").read_text().partition("## Restore")[2]
    [command] = re.findall(r"^.*backup\.unfinished.* tar .*$", block, re.MULTILINE)
    for before, after in {
        "/var/backups/qumail-relay": backups,
        "/var/lib/qumail-relay": state,
        f'setsid -w runuser -u "$(stat -c %U {backups})" --': "",
        "setsid -w runuser -u qumail-relay --": "",
    }.items():
        command = command.replace(before, str(after))
    assert "runuser" not in command
    subprocess.run(["sh", "-ec", command], cwd=tmp_path, check=True)
    assert sorted(str(path.relative_to(state)) for path in state.rglob("*") if path.is_file()) == restored
