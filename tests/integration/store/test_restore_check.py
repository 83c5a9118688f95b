"""A store that was set back to an older copy is noticed, and what was sealed before that opens no more.
Standard: the mark in the store and the one beside the secret; both back ends.
"""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
import sqlite3
from contextlib import closing
from pathlib import Path

import pytest
from structlog.testing import LogCapture

from relay.errors import StoreUnavailable
from relay.store import restore_check
from relay.store.secret import SiteSecret
from relay.store.store import open_store
from tests.integration.store.conftest import Clock
from tests.testlib.databases import Backend, python, sqlite_file


async def _check(
    backend: Backend, secret: SiteSecret, clock: Clock, file: Path | None, busy_timeout: float = 5.0
) -> float:
    """One relay's check; what was sealed before the result is not trusted."""
    opening = open_store(backend.where, secret, clock=clock, restore_check_file=file, busy_timeout=busy_timeout)
    async with await opening as store:
        await store.restore_check.go_on()
        return store.restore_check.trusted_from


async def test_a_store_that_only_goes_on_is_trusted(
    backend: Backend, secret: SiteSecret, clock: Clock, tmp_path: Path
) -> None:
    for _ in range(3):
        assert await _check(backend, secret, clock, tmp_path / "check") == 0.0
        clock.now += 60


@pytest.mark.promise("A restored store opens nothing sealed before")
@pytest.mark.parametrize("how", ["older copy", "empty"])
async def test_a_store_behind_the_relay_opens_nothing_that_was_sealed_before(
    backend: Backend, secret: SiteSecret, clock: Clock, tmp_path: Path, log: LogCapture, how: str
) -> None:
    file = tmp_path / "check"
    await _check(backend, secret, clock, file)
    [(before,)] = await backend.run("SELECT mark FROM restore_check")
    clock.now += 3600
    await _check(backend, secret, clock, file)
    if how == "empty":
        await backend.run("DELETE FROM restore_check")
    else:
        await backend.run("UPDATE restore_check SET mark = ?", before)
    clock.now += 60
    restored_at = clock.now
    assert await _check(backend, secret, clock, file) == restored_at
    clock.now += 60
    assert await _check(backend, secret, clock, file) == restored_at
    async with await open_store(backend.where, secret, clock=clock) as store:
        assert store.restore_check.trusted_from == restored_at
    [behind] = [each["behind_s"] for each in log.entries if each["event"] == "store_restored"]
    assert behind == (None if how == "empty" else 3600), "a store without a mark is behind by no time"


async def test_another_relay_of_the_site_hears_of_it_at_its_next_check(
    backend: Backend, secret: SiteSecret, clock: Clock, tmp_path: Path
) -> None:
    await _check(backend, secret, clock, tmp_path / "one")
    clock.now += 60
    await _check(backend, secret, clock, tmp_path / "one")
    await backend.run("DELETE FROM restore_check")
    restored_at = clock.now
    await _check(backend, secret, clock, tmp_path / "one")
    assert await _check(backend, secret, clock, tmp_path / "two") == restored_at


async def test_a_clock_that_was_set_back_is_no_restored_store(
    backend: Backend, secret: SiteSecret, clock: Clock, tmp_path: Path
) -> None:
    await _check(backend, secret, clock, tmp_path / "check")
    clock.now -= 3600
    assert await _check(backend, secret, clock, tmp_path / "check") == 0.0


@pytest.mark.parametrize("content", ["yesterday", "inf", "nan", "-1", "1e300", "fifo"])
async def test_a_file_that_is_no_moment_is_as_if_it_were_not_there_and_a_restored_store_is_noticed_again_afterwards(
    backend: Backend, secret: SiteSecret, clock: Clock, tmp_path: Path, content: str
) -> None:
    file = tmp_path / "check"
    if content == "fifo":
        os.mkfifo(file)
    else:
        file.write_text(content)
    async with asyncio.timeout(20):
        assert await _check(backend, secret, clock, file) == 0.0
    await backend.run("DELETE FROM restore_check")
    clock.now += 60
    assert await _check(backend, secret, clock, file) == clock.now


@pytest.mark.promise("A restored store opens nothing sealed before")
@pytest.mark.parametrize("column", ["mark", "trusted_from", "past"])
async def test_a_row_that_holds_no_moment_is_mended_and_counts_as_restored(
    backend: Backend, secret: SiteSecret, clock: Clock, tmp_path: Path, log: LogCapture, column: str
) -> None:
    file = tmp_path / "check"
    await _check(backend, secret, clock, file)
    for content, in_file in (("1e999", None), ("1e300", "inf"), ("-5", None)):
        await backend.run(f"UPDATE restore_check SET {column} = {content}".replace("1e999", _infinite(backend)))
        if in_file:
            file.write_text(in_file)
        clock.now += 60
        restored_at = clock.now
        assert await _check(backend, secret, clock, file) == restored_at
        [row] = await backend.run("SELECT mark, trusted_from, past FROM restore_check")
        assert tuple(row) == (restored_at, restored_at, restored_at)
        clock.now += 60
        assert await _check(backend, secret, clock, file) == restored_at
    assert [each["event"] for each in log.entries].count("store_restored") == 3


def _infinite(backend: Backend) -> str:
    return "1e999" if backend.name == "sqlite" else "'Infinity'"


async def test_a_clock_that_is_ahead_for_a_while_makes_little_of_the_past(
    backend: Backend, secret: SiteSecret, clock: Clock, tmp_path: Path
) -> None:
    """What is past beyond doubt may be forgotten; after a long rest it comes near again beat by beat."""
    right = clock.now
    async with await open_store(backend.where, secret, clock=clock, restore_check_file=tmp_path / "check") as store:
        await store.restore_check.go_on()
        assert store.restore_check.past == right
        clock.now = right + 8 * 86400
        await store.restore_check.go_on()
        assert store.restore_check.past <= right + 600
        clock.now = right + 60
        await store.restore_check.go_on()
        assert store.restore_check.past == right + 60
        clock.now += 3600
        for _ in range(7):
            await store.restore_check.go_on()
        assert store.restore_check.past == clock.now


@pytest.mark.promise("A replaced store is an alarm until an administrator accepts it")
@pytest.mark.parametrize("how", ["older", "of another site", "by backup"])
@pytest.mark.parametrize("then", ["look", "checkpoint and look", "restart"])
async def test_a_copy_over_the_file_of_a_serving_relay_is_noticed(
    sqlite: Backend, secret: SiteSecret, clock: Clock, tmp_path: Path, how: str, then: str
) -> None:
    """As `cp old/relay.db relay.db` does it: the same file, with other content."""
    path, file, copy = Path(sqlite.where), tmp_path / "check", tmp_path / "copy"
    if how == "of another site":
        other = Clock()
        other.now += 86400
        await _check(sqlite_file(copy), secret, other, tmp_path / "another's check")
    else:
        await _check(sqlite, secret, clock, file)
        shutil.copyfile(path, copy)
    if how == "by backup":
        with closing(sqlite3.connect(copy, isolation_level=None)) as connection:
            restore_check.mark_as_copy(connection)
    clock.now += 60
    async with await open_store(path, secret, clock=clock, restore_check_file=file) as store:
        await store.restore_check.go_on()
        clock.now += 60
        await store.restore_check.go_on()
        await store.restore_check.look()
        assert store.restore_check.doubt == "", "what goes on is the one that was"
        await store.first_seen.waits_for(b"a mail")
        with path.open("r+b") as there, copy.open("rb") as older:
            there.truncate()
            shutil.copyfileobj(older, there)
        clock.now += 10
        if then == "checkpoint and look":
            await store.restore_check._database.scrub()
        if then != "restart":
            await store.restore_check.look()
            assert "the store is" in store.restore_check.doubt
            assert store.restore_check.trusted_from == clock.now
    async with await open_store(path, secret, clock=clock, restore_check_file=file) as store:
        assert "the store is" in await store.restore_check.doubts()
        await store.restore_check.accept()
        clock.now += 60
        await store.restore_check.go_on()
        await store.restore_check.look()
        assert await store.restore_check.doubts() == ""


FROZEN = """
import asyncio, os, signal, sys
from pathlib import Path
from relay.store.secret import SiteSecret
from relay.store.store import open_store

def clock():  # called before the check's transaction, and within it, when the row is locked
    calls.append(True)
    if len(calls) == freeze_at:
        print("frozen", flush=True)
        os.kill(os.getpid(), signal.SIGSTOP)
    return float(sys.argv[3])

async def main():
    async with await open_store(sys.argv[1], SiteSecret.load(Path(sys.argv[2])), clock=clock) as store:
        global freeze_at
        freeze_at = len(calls) + 2
        await store.restore_check.go_on()

calls, freeze_at = [], 0
asyncio.run(main())
"""


@pytest.mark.parametrize("restored", [False, True])
async def test_a_relay_that_is_frozen_in_its_beat_keeps_no_other_one_from_starting(
    postgresql: Backend, secret: SiteSecret, secret_path: Path, clock: Clock, tmp_path: Path, restored: bool
) -> None:
    """It would do so for 20 s; a relay that has to change the row itself waits, since a restored store must be marked."""
    await _check(postgresql, secret, clock, tmp_path / "check")
    clock.now += 60
    if restored:
        (tmp_path / "check").write_text(str(clock.now + 3600))
    with python(FROZEN, postgresql.where, str(secret_path), str(clock.now)) as frozen:
        assert frozen.stdout is not None
        assert await asyncio.to_thread(frozen.stdout.readline) == "frozen\n"
        beating = _check(postgresql, secret, clock, tmp_path / "check", busy_timeout=0.5)
        if restored:
            with pytest.raises(StoreUnavailable, match="lock timeout"):
                await beating
        else:
            assert await beating == 0.0
        frozen.send_signal(signal.SIGCONT)
        assert await asyncio.to_thread(frozen.wait, 30) == 0
    clock.now += 60
    assert await _check(postgresql, secret, clock, tmp_path / "check") == (clock.now if restored else 0.0)


async def test_a_clock_that_was_ahead_for_long_and_is_right_again_makes_as_little_of_the_past(
    backend: Backend, secret: SiteSecret, clock: Clock
) -> None:
    right = clock.now
    async with await open_store(backend.where, secret, clock=clock) as store:
        await store.restore_check.go_on()
        clock.now = right + 8 * 86400
        for _ in range(6):
            await store.restore_check.go_on()
        assert store.restore_check.past == right + 3600
        clock.now = right + 60
        for _ in range(6):
            await store.restore_check.go_on()
        assert store.restore_check.past == clock.now
        clock.now = 0.0
        await store.restore_check.go_on()
        assert store.restore_check.past == right + 60 - 600, "and one that is far behind has not all kept for years"


async def test_a_store_that_is_set_back_while_the_clock_catches_up_with_a_jump_is_noticed(
    backend: Backend, secret: SiteSecret, clock: Clock, tmp_path: Path
) -> None:
    right, file = clock.now, tmp_path / "check"
    clock.now = right + 7 * 86400
    await _check(backend, secret, clock, file)
    clock.now = right + 60
    await _check(backend, secret, clock, file)
    [(before,)] = await backend.run("SELECT mark FROM restore_check")
    clock.now = right + 120
    await _check(backend, secret, clock, file)
    await backend.run("UPDATE restore_check SET mark = ?", before)
    assert await _check(backend, secret, clock, file) == clock.now


async def test_a_clock_that_is_set_while_the_relay_runs_is_told(
    backend: Backend, secret: SiteSecret, clock: Clock, monkeypatch: pytest.MonkeyPatch, log: LogCapture
) -> None:
    async with await open_store(backend.where, secret, clock=clock) as store:
        passed = 1000.0
        monkeypatch.setattr(restore_check, "boot_time", lambda: passed)
        for seconds, set_by in ((0, 0), (60, 0), (60, -3600), (60, 30), (60, 7 * 86400)):
            passed += seconds
            clock.now += seconds + set_by
            await store.restore_check.go_on()
    told = [(each["log_level"], each["by_s"]) for each in log.entries if each["event"] == "clock_was_set"]
    assert told == [("error", -3600), ("error", 604_800)], "what a time server corrects is nothing to tell"


async def test_where_no_file_can_be_written_it_goes_on_and_says_so(
    backend: Backend, secret: SiteSecret, clock: Clock, tmp_path: Path, log: LogCapture
) -> None:
    """A secret that is a systemd credential lies where nothing can be written: keys are destroyed all the same."""
    (tmp_path / "nowhere").touch()
    async with await open_store(
        backend.where, secret, clock=clock, restore_check_file=tmp_path / "nowhere" / "beat"
    ) as store:
        await store.restore_check.go_on()
        clock.now += 60
        await store.restore_check.go_on()
        assert store.restore_check.past == clock.now
    assert [each["event"] for each in log.entries].count("restore_check_not_written") == 1, "once is enough"


async def _doubts(backend: Backend, secret: SiteSecret, file: Path | None, *, known_here: bool = False) -> str:
    """What one relay doubts after its start."""
    opening = open_store(backend.where, secret, restore_check_file=file, known_here=known_here)
    async with await opening as store:
        await store.restore_check.go_on()
        return store.restore_check.doubt


async def _accept(backend: Backend, secret: SiteSecret, file: Path) -> str:
    async with await open_store(backend.where, secret, restore_check_file=file) as store:
        return await store.restore_check.accept()


async def test_a_relay_that_joins_a_site_has_no_file_and_doubts_nothing(
    postgresql: Backend, secret: SiteSecret, tmp_path: Path
) -> None:
    assert await _doubts(postgresql, secret, tmp_path / "one") == ""
    assert await _doubts(postgresql, secret, tmp_path / "two") == ""
    assert await _doubts(postgresql, secret, tmp_path / "two", known_here=True) == ""
    (tmp_path / "two").unlink()
    assert "is missing" in await _doubts(postgresql, secret, tmp_path / "two", known_here=True)


async def test_a_relay_that_joins_with_a_secret_of_its_own_is_doubt(
    postgresql: Backend, secret: SiteSecret, tmp_path: Path
) -> None:
    assert await _doubts(postgresql, secret, tmp_path / "one") == ""
    other = SiteSecret.load_or_create(tmp_path / "other.secret")
    assert f"sealed under site secret {secret.ids[0]}" in await _doubts(postgresql, other, tmp_path / "two")
    assert "sealed under site secret" in await _doubts(postgresql, secret, tmp_path / "one"), "each relay says so"


async def test_a_relay_that_was_away_while_another_one_was_accepted_doubts_nothing(
    postgresql: Backend, secret: SiteSecret, tmp_path: Path
) -> None:
    for name in ("one", "two"):
        assert await _doubts(postgresql, secret, tmp_path / name) == ""
    await postgresql.run("DELETE FROM restore_check")
    await postgresql.run("DELETE FROM store_identity")
    assert "is empty" in await _doubts(postgresql, secret, tmp_path / "one")
    assert "is empty" in await _accept(postgresql, secret, tmp_path / "one")
    assert await _doubts(postgresql, secret, tmp_path / "two") == ""


async def test_relays_that_start_first_at_the_same_time_doubt_nothing(
    backend: Backend, secret: SiteSecret, tmp_path: Path
) -> None:
    files = [tmp_path / "one"] * 4 if backend.name == "sqlite" else [tmp_path / str(number) for number in range(4)]
    assert await asyncio.gather(*(_doubts(backend, secret, file) for file in files)) == [""] * 4
    for file in files:
        assert await _doubts(backend, secret, file) == ""


@pytest.mark.parametrize("when", ["before its row", "before its file"])
async def test_a_relay_that_was_killed_in_its_first_check_doubts_nothing_afterwards(
    backend: Backend, secret: SiteSecret, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, when: str
) -> None:
    def killed(*_: object) -> None:
        raise RuntimeError("killed")

    name = "_move_on" if when == "before its row" else "_write"
    async with await open_store(backend.where, secret, restore_check_file=tmp_path / "check") as store:
        monkeypatch.setattr(store.restore_check, name, killed)
        with pytest.raises(RuntimeError, match="killed"):
            await store.restore_check.go_on()
    assert await _doubts(backend, secret, tmp_path / "check") == ""


@pytest.mark.parametrize("doubtful", [False, True])
async def test_a_store_of_the_release_before_is_taken_over_without_doubt_unless_it_is_older(
    backend: Backend, secret: SiteSecret, tmp_path: Path, doubtful: bool
) -> None:
    """It has a mark and no identity, and the file a mark alone."""
    file = tmp_path / "check"
    assert await _doubts(backend, secret, file) == ""
    await backend.run("DELETE FROM store_identity")
    [(mark,)] = await backend.run("SELECT mark FROM restore_check")
    file.write_text(repr(mark + 100 if doubtful else mark))
    doubt = await _doubts(backend, secret, file)
    assert ("is older than" in doubt) == doubtful
    assert bool(doubt) == doubtful
    assert await _doubts(backend, secret, file) == doubt


async def test_a_store_of_the_release_before_whose_file_had_no_place_is_taken_over_without_doubt(
    backend: Backend, secret: SiteSecret, tmp_path: Path
) -> None:
    assert await _doubts(backend, secret, None) == ""
    await backend.run("DELETE FROM store_identity")
    assert await _doubts(backend, secret, tmp_path / "check") == ""
    assert (tmp_path / "check").is_file()


async def test_a_secret_that_is_rotated_as_the_manual_says_is_no_doubt_and_one_taken_out_too_early_is(
    backend: Backend, secret: SiteSecret, secret_path: Path, tmp_path: Path
) -> None:
    file = tmp_path / "check"
    assert await _doubts(backend, secret, file) == ""
    both = SiteSecret.rotate(secret_path)
    newest = secret_path.read_bytes().splitlines(keepends=True)[0]
    assert await _doubts(backend, both, file) == ""
    async with await open_store(backend.where, both, restore_check_file=file) as store:
        await store.reseal()
    secret_path.write_bytes(newest)
    alone = SiteSecret.load(secret_path)
    assert await _doubts(backend, alone, file) == ""
    both = SiteSecret.rotate(secret_path)
    secret_path.write_bytes(secret_path.read_bytes().splitlines(keepends=True)[0])
    assert f"sealed under site secret {alone.ids[0]}" in await _doubts(backend, SiteSecret.load(secret_path), file)


async def test_a_store_that_becomes_another_one_under_the_relay_is_noticed_at_its_next_look(
    backend: Backend, secret: SiteSecret, tmp_path: Path
) -> None:
    async with await open_store(backend.where, secret, restore_check_file=tmp_path / "check") as store:
        await store.restore_check.go_on()
        await store.restore_check.look()
        assert store.restore_check.doubt == ""
        await backend.run("UPDATE store_identity SET store_id = 'another'")
        (tmp_path / "check").unlink()
        await store.restore_check.look()
        assert "another store" in store.restore_check.doubt
        assert store.restore_check.trusted_from > 0


async def test_that_a_store_is_accepted_is_seen_by_all_relays_at_their_next_look(
    backend: Backend, secret: SiteSecret, tmp_path: Path
) -> None:
    file = tmp_path / "check"
    assert await _doubts(backend, secret, file) == ""
    await backend.run("DELETE FROM restore_check")
    async with await open_store(backend.where, secret, restore_check_file=file) as store:
        await store.restore_check.go_on()
        assert "lost its mark" in store.restore_check.doubt
        assert "lost its mark" in await _accept(backend, secret, file)
        await store.restore_check.look()
        assert store.restore_check.doubt == ""
        await store.restore_check.go_on()
        assert store.restore_check.doubt == ""
