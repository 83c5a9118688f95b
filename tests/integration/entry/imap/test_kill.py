"""Killed at any point, cut off at any point, or two at once: each original is there once, each sealed message put away.
Standard: `imap once` as a process that gets SIGKILL; the server is a real Dovecot.
"""

from __future__ import annotations

import asyncio
import errno
import fcntl
import shutil
from contextlib import AsyncExitStack
from pathlib import Path

import pytest

from relay.entry.imap import watch
from relay.errors import ConfigError
from relay.kme import DevelopmentKMEs
from relay.process import assembly
from tests.integration.entry.imap.conftest import (
    NOWHERE,
    Alice,
    bob_site,
    imap_table,
    opened,
    original,
    visit,
    watching,
)
from tests.testlib import relay_command
from tests.testlib.dovecot import Dovecot, requires_dovecot
from tests.testlib.imap_wire import IMAPWire, Point
from tests.testlib.sites import Site, make_site, serving

pytestmark = requires_dovecot

SUBJECTS = ("one", "two", "three")

POINTS = [
    Point("AUTHENTICATE", 1, "after"),
    Point("UID SEARCH", 1, "after"),
    Point("UID FETCH", 2, "after"),
    Point("APPEND", 1, "before"),
    Point("APPEND", 1, "middle"),
    Point("APPEND", 1, "after"),
    Point("APPEND", 3, "after"),
    Point("UID FETCH", 3, "after"),
    Point("CREATE", 1, "after"),
    Point("UID MOVE", 2, "before"),
    Point("UID MOVE", 2, "after"),
    Point("LOGOUT", 1, "before"),
]


async def fill(alice: Alice, server: Dovecot) -> list[bytes]:
    sealed = [await alice.seal(original(subject)) for subject in SUBJECTS]
    await asyncio.to_thread(server.deliver, *sealed)
    return sealed


def check(server: Dovecot, sealed: list[bytes]) -> None:
    """Each original is there once, and each sealed message was put away once."""
    messages = server.messages()
    assert opened(messages) == sorted(map(original, SUBJECTS))
    assert len(messages) == len(SUBJECTS)
    put_away = server.messages("Sealed")
    assert len(put_away) == len(sealed)
    for each in sealed:
        assert sum(message.endswith(each) for message in put_away) == 1


@pytest.mark.parametrize("point", POINTS, ids=str)
async def test_killed_anywhere_and_run_again_each_original_is_there_once(
    point: Point, alice: Alice, server: Dovecot, tmp_path: Path, kmes: DevelopmentKMEs
) -> None:
    sealed = await fill(alice, server)
    async with IMAPWire(server, point) as wire:
        bob = bob_site(tmp_path / "bob", kmes, imap_table(wire.address, server.ca))
        process = await relay_command.start("imap", "once", "--config", bob.config_file)
        wire.reached = process.kill
        assert await process.wait() < 0, "the point was reached"
        [visited] = await visit(bob)
    assert (visited.failure, visited.unopened) == ("", 0)
    await asyncio.to_thread(check, server, sealed)
    cut_short = point.command == "APPEND" and point.when != "after"
    assert wire.commands["APPEND"] == len(SUBJECTS) + cut_short, "what was appended is not appended again"


@pytest.mark.parametrize(
    ("how", "after"), [("killed", "move"), ("cut off", "flag"), ("undisturbed", "flag"), ("undisturbed", "move")]
)
async def test_an_original_that_was_filed_away_does_not_come_again_when_its_sealed_message_is_copied_back(
    how: str, after: str, alice: Alice, server: Dovecot, tmp_path: Path, kmes: DevelopmentKMEs
) -> None:
    """Also where the watcher ended between the original and the record of it."""
    await asyncio.to_thread(server.deliver, await alice.seal(original("one")))
    point = Point("APPEND", 1, "after") if how != "undisturbed" else None
    async with IMAPWire(server, point) as wire:
        bob = bob_site(tmp_path / "bob", kmes, imap_table(wire.address, server.ca, f'after = "{after}"'))
        if how == "killed":
            process = await relay_command.start("imap", "once", "--config", bob.config_file)
            wire.reached = process.kill
            await process.wait()
        elif how == "cut off":
            [cut_off] = await visit(bob)
            assert cut_off.failure
        await visit(bob)
    with server.client(folder="Archive"), server.client() as client:
        _, [found] = client.search(None, "HEADER", "X-QuMail-Protection", '"aes"')
        assert len(found.split()) == 1
        client.copy(found.decode(), "Archive")
        client.store(found.decode(), "+FLAGS", r"(\Deleted)")
        client.expunge()
    with server.client(folder="INBOX" if after == "flag" else "Sealed") as client:
        client.store("1", "-FLAGS", "($QuMailOpened)")
        client.copy("1", "INBOX")
    bob.config_file.write_text(
        bob.config_file.read_text().replace(f"port = {wire.address.port}", f"port = {server.tls.port}")
    )
    await visit(bob)
    assert opened(server.messages("Archive")) == [original("one")]
    assert opened(server.messages()) == []


async def test_once_that_is_stopped_keeps_the_keys_that_are_on_their_way(
    server: Dovecot, tmp_path: Path, kmes: DevelopmentKMEs
) -> None:
    site = make_site(tmp_path / "alice", "alice", state=kmes.state_dir, kme_url=kmes.urls[0], outgoing=NOWHERE)
    async with assembly.parts(site.config) as parts:
        sealed = await fill(Alice(parts), server)
    bob = bob_site(tmp_path / "bob", kmes, imap_table(server.tls, server.ca))
    answer, before = asyncio.Event(), kmes.link.delivered
    kmes.km2.misbehave("dec_keys", "late", times=None, until=answer)
    process = await relay_command.start("imap", "once", "--config", bob.config_file)
    while kmes.link.delivered == before:
        await kmes.km2.next_request()
    process.terminate()
    answer.set()
    assert await process.wait() in (0, 1), "it ended by itself"
    [visited] = await visit(bob)
    assert (visited.failure, visited.unopened) == ("", 0)
    await asyncio.to_thread(check, server, sealed)


def another(bob: Site, directory: Path) -> Site:
    """A relay of the same site on another host: it shares the store and the secret, and has no lock in common."""
    shutil.copytree(bob.directory, directory)
    site = Site(directory)
    text = site.config_file.read_text()
    site.config_file.write_text(text.replace('"relay.db"', f'"{bob.directory}/relay.db"'))
    return site


async def test_two_watchers_at_once_leave_each_original_once(
    alice: Alice, bob: Site, server: Dovecot, tmp_path: Path
) -> None:
    async with assembly.parts(bob.config):
        pass  # the secret is made
    twin = another(bob, tmp_path / "twin")
    async with AsyncExitStack() as both:
        for site in (bob, twin):
            await both.enter_async_context(watching(site))
        for round_ in range(5):
            sealed = [await alice.seal(original(f"{round_}-{number}")) for number in range(4)]
            await asyncio.to_thread(server.deliver, *sealed)
            await server.until((round_ + 1) * 4, "Sealed")
        found = await server.until(20)
    assert opened(found) == sorted(original(f"{round_}-{number}") for round_ in range(5) for number in range(4))


async def test_a_double_that_two_watchers_have_made_is_removed(
    alice: Alice, bob: Site, server: Dovecot, tmp_path: Path
) -> None:
    sealed = await fill(alice, server)
    async with assembly.parts(bob.config):
        pass
    async with IMAPWire(server, Point("APPEND", 1, "before")) as wire:
        twin = another(bob, tmp_path / "twin")
        text = twin.config_file.read_text().replace(f"port = {server.tls.port}", f"port = {wire.address.port}")
        twin.config_file.write_text(text)
        go_on = wire.hold()
        late = asyncio.create_task(visit(twin))
        await wire.held()
        [first] = await visit(bob)
        go_on.set()
        [second] = await late
    assert (first.failure, first.opened, second.failure) == ("", 3, "")
    await asyncio.to_thread(check, server, sealed)


async def test_a_second_process_stands_by_until_the_first_has_gone(alice: Alice, bob: Site, server: Dovecot) -> None:
    async with AsyncExitStack() as first:
        await first.enter_async_context(watching(bob))
        await asyncio.to_thread(server.deliver, await alice.seal(original("one")))
        await server.until(1, "Sealed")
        with pytest.raises(ConfigError, match="another process is watching this account"):
            await visit(bob)
        async with watching(bob):
            await first.aclose()
            await asyncio.to_thread(server.deliver, await alice.seal(original("two")))
            await server.until(2, "Sealed")
    assert opened(server.messages()) == [original("one"), original("two")]


@pytest.mark.in_process
async def test_where_no_lock_can_be_had_now_it_is_tried_again(
    alice: Alice, bob: Site, server: Dovecot, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, failures = fcntl.flock, [OSError(errno.ENOLCK, "No locks available")]

    def scarce(descriptor: int, operation: int) -> None:
        if failures and "imap-ben" in str(Path(f"/proc/self/fd/{descriptor}").readlink()):
            raise failures.pop()
        real(descriptor, operation)

    monkeypatch.setattr(fcntl, "flock", scarce)
    monkeypatch.setattr(watch, "LOCK_PAUSE_S", 0.05)
    await asyncio.to_thread(server.deliver, await alice.seal(original("one")))
    async with serving(bob):
        await server.until(1, "Sealed")
    assert not failures


async def test_connections_that_break_all_the_time_lose_and_double_nothing(
    alice: Alice, server: Dovecot, tmp_path: Path, kmes: DevelopmentKMEs
) -> None:
    sealed = [await alice.seal(original(f"{number:03}")) for number in range(100)]
    await asyncio.to_thread(server.put, sealed)
    async with IMAPWire(server) as wire:
        bob = bob_site(tmp_path / "bob", kmes, imap_table(wire.address, server.ca))
        async with serving(bob):
            for number in (3, 20, 40):
                await wire.passed("APPEND", number)
                wire.cut()
            await server.until(100, "Sealed")
    assert opened(server.messages()) == [original(f"{number:03}") for number in range(100)]
