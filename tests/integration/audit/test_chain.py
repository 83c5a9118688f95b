"""The chain of the audit record: no line can be changed unnoticed, by several writers, after crashes, over files.
Standard: JSON lines chained by SHA-256; addresses under a key that follows from the site secret.
"""

from __future__ import annotations

import asyncio
import fcntl
import gzip
import hashlib
import json
import os
import time
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
from hypothesis import given, settings, strategies as st
from structlog.testing import LogCapture

from relay.audit import upkeep
from relay.audit.chain import Chain, ChainFile, files_of, today
from relay.audit.entries import AddressHash, LedgerEntry, event_members
from relay.audit.reading import records
from relay.audit.upkeep import compress_finished, remove_old
from relay.audit.verifying import ExpectedLine, verify
from relay.audit.writing import Audit
from relay.errors import ConfigError, StoreUnavailable
from relay.mail import Envelope, Mail, Recipient
from relay.store.secret import SiteSecret
from relay.store.secret_file import locked

SECRET = SiteSecret(bytes(range(32)))
MAIL = Mail(Envelope("ann@alice.example", (Recipient("ben@bob.example"),)), b"Subject: x\r\n\r\nsecret content\r\n")


def entry(reason: str = "otp: no key", **what: Any) -> LedgerEntry:
    fields: dict[str, Any] = {
        "policy": "default.toml:1", "policy_version": "0123456789ab", "peer": "bob", "listed": ("otp", "aes"),
        "level": "aes", "reason": reason,
    }  # fmt: skip
    return LedgerEntry.of("downgrade", MAIL, ["ben@bob.example"], **(fields | what))


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    return tmp_path / "audit"


async def written(directory: Path, number: int = 3) -> Audit:
    audit = Audit(Chain(directory), AddressHash(SECRET))
    for count in range(number):
        await audit.record(entry(f"number {count}"))
    return audit


def the_file(directory: Path) -> Path:
    [path] = directory.iterdir()
    return path


async def test_a_line_says_what_happened_and_holds_neither_content_nor_address(directory: Path) -> None:
    await written(directory, 1)
    [line] = the_file(directory).read_bytes().splitlines()
    found = json.loads(line)
    assert {name: found[name] for name in ("number", "event", "peer", "listed", "level", "reason", "policy")} == {
        "number": 1, "event": "downgrade", "peer": "bob", "listed": ["otp", "aes"], "level": "aes",
        "reason": "number 0", "policy": "default.toml:1",
    }  # fmt: skip
    assert found["message"] == hashlib.sha256(MAIL.message).hexdigest()
    for secret in (b"secret content", b"ann", b"ben", b"bob.example"):
        assert secret not in line
    assert the_file(directory).stat().st_mode & 0o777 == 0o600


async def test_the_chain_can_be_verified_by_anybody(directory: Path) -> None:
    await written(directory)
    lines = the_file(directory).read_bytes().splitlines()
    verified = verify(directory)
    assert (verified.entries, verified.problems) == (3, ())
    assert verified.head == hashlib.sha256(lines[-1]).hexdigest()
    assert json.loads(lines[1])["previous"] == hashlib.sha256(lines[0]).hexdigest()


@pytest.mark.parametrize(
    "change",
    [
        lambda lines: [lines[0].replace(b"number 0", b"number X"), *lines[1:]],
        lambda lines: [lines[0], lines[2]],
        lambda lines: lines[1:],
        lambda lines: [lines[1], lines[0], lines[2]],
        lambda lines: [lines[0], b"garbage", *lines[1:]],
        lambda lines: [lines[0], lines[0], *lines[1:]],
        lambda lines: [lines[0], b"garbage", lines[2]],
    ],
    ids=["changed", "left out", "first left out", "swapped", "inserted", "doubled", "made unreadable"],
)
async def test_every_change_within_the_file_is_found(
    directory: Path, change: Callable[[list[bytes]], list[bytes]]
) -> None:
    await written(directory)
    the_file(directory).write_bytes(b"\n".join(change(the_file(directory).read_bytes().splitlines())) + b"\n")
    assert verify(directory).problems


async def test_a_file_that_was_cut_off_is_found_with_a_head_kept_elsewhere(directory: Path, log: LogCapture) -> None:
    await written(directory)
    heads = [each["head"] for each in log.entries if each["event"] == "ledger_written"]
    assert verify(directory, head=heads[1]).problems == ()
    the_file(directory).write_bytes(b"".join(the_file(directory).read_bytes().splitlines(keepends=True)[:2]))
    assert verify(directory).problems == ()
    assert "cut off or replaced" in verify(directory, head=heads[2]).problems[0]


async def test_what_a_crash_broke_off_is_told_and_the_chain_goes_on_over_it(directory: Path) -> None:
    audit = await written(directory, 2)
    with the_file(directory).open("ab") as file:
        file.write(b'{"number": 3, "time"')
    await audit.record(entry("after the crash"))
    verified = verify(directory)
    assert (verified.entries, verified.problems, verified.broken_off) == (
        3,
        (),
        (f"{the_file(directory)}:3",),
    )
    assert [each["reason"] for each in records(directory)] == ["number 0", "number 1", "after the crash"]


async def test_many_at_once_and_several_writers_make_one_chain(directory: Path) -> None:
    audits = [Audit(Chain(directory), AddressHash(SECRET)) for _ in range(4)]
    await asyncio.gather(*(audits[number % 4].record(entry(str(number))) for number in range(200)))
    verified = verify(directory)
    assert (verified.entries, verified.problems) == (200, ())


async def test_a_long_ledger_with_long_lines_goes_on(directory: Path) -> None:
    audit = Audit(Chain(directory), AddressHash(None))
    await audit.record(entry())
    many = LedgerEntry.of(
        "plaintext", MAIL, [f"{'x' * 60}{n}@bob.example" for n in range(1000)], policy="p", policy_version="v",
        peer=None, listed=("plaintext",), level="plaintext", reason="r" * 10_000,
    )  # fmt: skip
    await audit.record(many)
    await audit.record(entry())
    assert (verify(directory).entries, verify(directory).problems) == (3, ())
    assert len(list(records(directory))[1]["recipients"]) == 1000


async def test_a_mail_to_very_many_has_as_many_lines_as_each_can_be_read(directory: Path) -> None:
    audit = Audit(Chain(directory), AddressHash(None))
    everybody = [f"{'x' * 64}{n}@{'d' * 60}.bob.example" for n in range(9000)]
    everybody += ["\U0001f511" * 60 + f"{n}@bob.example" for n in range(1000)]
    await audit.record(LedgerEntry.of("plaintext", MAIL, everybody, policy="p", policy_version="v", peer=None,
        listed=("plaintext",), level="plaintext", reason="r" * 10_000))  # fmt: skip
    audit.note(lambda: event_members("mail", {"recipients": everybody}))  # which nobody divided
    await audit.record(entry())
    assert verify(directory).problems == ()
    found = list(records(directory))
    assert [who for each in found[:-2] for who in each["recipients"]] == everybody
    assert {each["message"] for each in found[:-2]} == {MAIL.digest}
    assert [each["event"] for each in found[-2:]] == ["gap", "downgrade"]


async def test_a_ledger_that_cannot_be_written_holds_the_mail(tmp_path: Path) -> None:
    with pytest.raises(StoreUnavailable, match="the audit record cannot be written: No such file"):
        await Audit(Chain(tmp_path / "gone" / "audit"), AddressHash(SECRET)).record(entry())


def test_what_is_no_audit_record_is_said(tmp_path: Path) -> None:
    (tmp_path / "000000000001-2026-11-25.jsonl").write_bytes(b"x" * 2_000_000)
    with pytest.raises(ConfigError, match="this is no audit record"):
        verify(tmp_path)
    with pytest.raises(ConfigError, match="cannot be read"):
        verify(tmp_path / "nothing")
    (tmp_path / "000000000001-2026-11-25.jsonl").rename(tmp_path / "000000000001-2026-11-25.jsonl.gz")
    with pytest.raises(ConfigError, match="cannot be read"):
        verify(tmp_path)


def test_hashed_addresses_are_found_again_also_after_the_secret_was_rotated() -> None:
    before, after = AddressHash(SECRET), AddressHash(SiteSecret(bytes(32), bytes(range(32))))
    assert before.write("Ben@Bob.example") in after.spellings("ben@bob.example")
    assert before.write("ben@bob.example") != AddressHash(SiteSecret(bytes(32))).write("ben@bob.example")


# --- files ----------------------------------------------------------------------------------------------------------


def small_files(directory: Path, number: int = 40, octets: int = 2000, second: str = "") -> None:
    """`number` records in files that are full soon; the clock says `second`, a day, while the second one is begun."""
    day, wrong = today(), False
    chain = Chain(directory, file_octets=octets)
    with pytest.MonkeyPatch.context() as clock:
        clock.setattr("relay.audit.chain.today", lambda: second if wrong else day)
        for count in range(number):
            wrong = second != "" and 10 <= count < 15
            chain.append([event_members("test", {"count": count, "filling": "x" * 100})], flush=False)
    chain.close()


def names(directory: Path) -> list[str]:
    return sorted(path.name for path in directory.iterdir())


def test_one_chain_goes_over_all_files_and_finished_ones_are_read_only(directory: Path) -> None:
    small_files(directory)
    paths = sorted(directory.iterdir())
    assert len(paths) > 3
    assert {path.stat().st_mode & 0o777 for path in paths[:-1]} == {0o400}
    assert paths[-1].stat().st_mode & 0o777 == 0o600
    found = verify(directory)
    assert (found.first, found.number, found.problems) == (1, 40, ())
    assert [each["count"] for each in records(directory)] == list(range(40))


def test_a_writer_whose_file_another_one_has_finished_goes_on_in_the_next(directory: Path) -> None:
    first, second = Chain(directory, file_octets=2000), Chain(directory, file_octets=2000)
    for count in range(40):
        chain = second if count % 7 else first
        chain.append([event_members("test", {"count": count, "filling": "x" * 100})], flush=False)
    found = verify(directory)
    assert (found.number, found.problems) == (40, ())


def test_a_writer_that_was_killed_between_two_files_leaves_the_chain_whole(directory: Path) -> None:
    small_files(directory)
    newest = max(directory.iterdir())
    newest.chmod(0o400)  # finished, and the next one is not there yet
    small_files(directory, 1)
    (directory / f"{42:012}-2026-11-25.jsonl").touch(mode=0o600)  # begun, and nothing is in it yet
    max(directory.iterdir()).chmod(0o600)
    small_files(directory, 1)
    found = verify(directory)
    assert (found.number, found.problems) == (42, ())


def test_a_file_that_is_missing_in_the_middle_or_at_the_beginning_is_found(directory: Path) -> None:
    small_files(directory)
    first, second, *_ = sorted(directory.iterdir())
    second.rename(directory / "kept")
    assert any("is expected" in problem for problem in verify(directory).problems)
    (directory / "kept").rename(second)
    first.unlink()
    assert "no record has those before as removed" in verify(directory).problems[0]


def test_a_file_that_was_moved_away_is_written_to_no_more_and_the_gap_is_seen_until_it_is_back(
    directory: Path, tmp_path: Path
) -> None:
    chains = Chain(directory), Chain(directory)
    for chain in chains:
        chain.append([event_members("test", {})], flush=False)
    [path] = directory.iterdir()
    path.rename(tmp_path / "moved")
    for chain in chains:
        chain.append([event_members("test", {})], flush=False)
    assert len((tmp_path / "moved").read_bytes().splitlines()) == 2
    assert [each["number"] for each in records(directory)] == [3, 4]
    assert "no record has those before as removed" in verify(directory).problems[0]
    (tmp_path / "moved").rename(path)
    found = verify(directory)
    assert (found.number, found.problems) == (4, ())


def test_a_directory_that_was_moved_away_is_made_anew_or_its_place_is_no_directory_and_that_is_said(
    directory: Path, tmp_path: Path
) -> None:
    chain = Chain(directory)
    chain.append([event_members("test", {})], flush=False)
    directory.rename(tmp_path / "moved")
    directory.touch()
    with pytest.raises(NotADirectoryError):
        chain.append([event_members("test", {})], flush=False)
    directory.unlink()
    chain.append([event_members("test", {})], flush=False)
    assert [each["number"] for each in records(directory)] == [2]


async def test_after_the_newest_files_are_gone_the_chain_goes_on_behind_the_last_record_of_what_is_left(
    directory: Path,
) -> None:
    small_files(directory)
    await compress_finished(directory)
    for path in sorted(directory.iterdir())[-2:]:
        path.unlink()
    number = verify(directory).number
    small_files(directory, 1)
    found = verify(directory)
    assert (found.number, found.problems) == (number + 1, ())
    assert list(records(directory))[-1]["number"] == number + 1


def test_two_files_of_one_number_are_both_read_and_found(directory: Path) -> None:
    small_files(directory, 3)
    [path] = directory.iterdir()
    path.with_name("000000000001-2020-01-01.jsonl").write_bytes(path.read_bytes())
    assert f"{path}:1: number 1, and 4 is expected" in verify(directory).problems
    assert len(list(records(directory))) == 6


def test_a_lock_that_somebody_does_not_let_go_of_is_waited_for_some_seconds(
    directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("relay.audit.chain.LOCK_S", 0.05)
    small_files(directory, 1)
    with locked(directory), pytest.raises(OSError, match="somebody has held its lock"):
        Chain(directory).append([event_members("test", {})], flush=False)
    small_files(directory, 1)
    assert verify(directory).number == 2


async def test_finished_files_are_compressed_and_read_as_before(directory: Path) -> None:
    small_files(directory)
    before, octets = verify(directory), {path.name: path.stat().st_size for path in directory.iterdir()}
    await compress_finished(directory)
    assert verify(directory) == before
    compressed = [path for path in directory.iterdir() if path.suffix == ".gz"]
    assert len(compressed) == len(octets) - 2
    assert {path.stat().st_mode & 0o777 for path in compressed} == {0o400}
    assert all(path.stat().st_size < octets[path.stem] for path in compressed)
    small_files(directory, 1)
    assert verify(directory).problems == ()


async def test_a_file_that_is_compressed_while_it_is_about_to_be_read_is_read(directory: Path) -> None:
    small_files(directory)
    reading = records(directory)
    first = next(reading)
    await compress_finished(directory)
    assert [each["count"] for each in (first, *reading)] == list(range(40))


async def test_old_files_that_are_removed_while_the_record_is_verified_are_no_fault(
    directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    small_files(directory)
    await remove_old(Audit(Chain(directory), AddressHash(SECRET)), 10, 2**30, time.time() + 12 * 86400)
    there = [each for each in directory.iterdir() if each.suffix == ".jsonl"]
    gone = there[0].with_name("000000000001-2026-11-20.jsonl")
    gone.touch()

    def removed_meanwhile(directory: Path) -> list[ChainFile]:
        files = files_of(directory)
        gone.unlink()
        return files

    monkeypatch.setattr("relay.audit.reading.files_of", removed_meanwhile)
    found = verify(directory)
    assert (found.first > 1, found.problems, gone.exists()) == (True, (), False)


def test_a_line_whose_end_is_being_written_is_read_whole(directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    small_files(directory, 3)
    [path] = directory.iterdir()
    octets = path.read_bytes()
    path.write_bytes(octets[:-20])
    monkeypatch.setattr("relay.audit.chain.sleep", lambda _: path.write_bytes(octets))
    found = verify(directory)
    assert (found.number, found.problems, found.broken_off) == (3, (), ())


async def test_two_processes_that_compress_at_once_leave_what_the_other_one_does(directory: Path) -> None:
    small_files(directory)
    before, oldest = verify(directory), min(directory.iterdir())
    with (directory / f".{oldest.name}.gz").open("wb") as other:
        fcntl.flock(other, fcntl.LOCK_EX)
        other.write(b"half")
        other.flush()
        await compress_finished(directory)
        assert oldest.exists()
        assert os.fstat(other.fileno()).st_size == 4
    assert verify(directory) == before
    await asyncio.gather(*(compress_finished(directory) for _ in range(4)))
    assert verify(directory) == before
    assert not [path for path in directory.iterdir() if path.name.startswith(".")]


async def test_a_file_that_another_process_takes_away_meanwhile_keeps_nobody_from_tidying_up(
    directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    small_files(directory)
    gone = ChainFile(1, "2026-11-01", directory / "000000000001-2026-11-01.jsonl")
    monkeypatch.setattr(upkeep, "files_of", lambda there: [gone, *files_of(there)])
    await compress_finished(directory)
    await remove_old(Audit(Chain(directory), AddressHash(SECRET)), 10, 2**30, time.time())
    assert verify(directory).problems == ()


async def test_what_a_kill_leaves_half_compressed_is_no_part_of_it_and_is_compressed_again(directory: Path) -> None:
    small_files(directory)
    oldest = min(directory.iterdir())
    (directory / f".{oldest.name}.gz").write_bytes(b"half")
    (directory / f"{oldest.name}.gz").write_bytes(gzip.compress(oldest.read_bytes()))
    assert verify(directory).problems == ()
    await compress_finished(directory)
    assert verify(directory).problems == ()
    assert not oldest.exists()


async def test_old_files_are_removed_with_a_record_of_that_and_what_is_left_is_one_chain(directory: Path) -> None:
    small_files(directory)
    audit = Audit(Chain(directory), AddressHash(SECRET))
    await remove_old(audit, 10, 2**30, time.time())
    assert verify(directory).first == 1, "nothing is old"
    await compress_finished(directory)
    await remove_old(audit, 10, 2**30, time.time() + 12 * 86400)
    found = verify(directory)
    assert found.first > 1
    assert found.problems == ()
    assert [each["last"] for each in records(directory) if each["event"] == "removed"] == [found.first - 1]
    assert len(names(directory)) >= 2


async def test_a_file_that_was_begun_while_the_clock_was_wrong_has_no_younger_one_removed(directory: Path) -> None:
    small_files(directory, second="2020-01-01")
    audit = Audit(Chain(directory), AddressHash(SECRET))
    await remove_old(audit, 10, 2**30, time.time())
    found = verify(directory)
    assert (found.first, found.number, found.problems) == (1, 40, ())
    await remove_old(audit, 10, 2**30, time.time() + 12 * 86400)
    assert verify(directory).first > 1, "when all before it are old, it goes with them"
    assert verify(directory).problems == ()


def test_a_day_that_is_asked_for_is_found_also_in_a_file_that_was_begun_while_the_clock_was_ahead(
    directory: Path,
) -> None:
    small_files(directory, second="2999-01-01")
    assert {11, 15} <= {each["number"] for each in records(directory, "2999-01-01")}
    assert 1 not in {each["number"] for each in records(directory, "2999-01-01")}


async def test_where_nothing_was_ever_recorded_nothing_is_removed(directory: Path) -> None:
    await compress_finished(directory)
    await remove_old(Audit(Chain(directory), AddressHash(SECRET)), 10, 2**30, time.time())
    assert not directory.exists()


async def test_more_than_there_may_be_is_removed_early_and_said(directory: Path, log: LogCapture) -> None:
    small_files(directory)
    audit = Audit(Chain(directory), AddressHash(SECRET))
    before = len(names(directory))
    await remove_old(audit, 366, 10, time.time())
    assert len(names(directory)) == before - 1
    assert verify(directory).problems == ()
    assert [each["event"] for each in log.entries if each["log_level"] == "warning"] == ["audit_full"]


@pytest.mark.promise("Writers of the record cannot change or remove records under a checkpoint")
async def test_a_chain_that_was_written_anew_fits_no_checkpoint_and_no_head_of_the_old_one(directory: Path) -> None:
    await written(directory)
    kept = verify(directory)
    expected = ExpectedLine(kept.number, kept.head)
    assert verify(directory, expected).problems == ()
    path = the_file(directory)
    await written(directory, 1)
    assert verify(directory, expected).problems == (), "what came later does not matter"
    path.unlink()
    await written(directory, 5)
    assert verify(directory).problems == ()
    assert "the record was replaced" in verify(directory, expected).problems[0]
    path.unlink()
    await written(directory, 2)
    assert "before the checkpoint" in verify(directory, expected).problems[0]


@pytest.mark.promise("The protection of each mail is on record")
@given(
    batches=st.lists(st.lists(st.binary(max_size=200), min_size=1, max_size=4), min_size=1, max_size=12),
    file_octets=st.integers(300, 3000),
    data=st.data(),
)
@settings(max_examples=60, deadline=None)
def test_whatever_is_written_is_read_as_it_was_and_each_change_of_an_octet_is_found(
    batches: list[list[bytes]], file_octets: int, data: st.DataObject
) -> None:
    with TemporaryDirectory() as work:
        directory = Path(work) / "audit"
        for batch in batches:  # each by a process of its own
            chain = Chain(directory, file_octets)
            chain.append([event_members("test", {"said": each.decode("latin-1")}) for each in batch], flush=False)
            chain.close()
        found = verify(directory)
        said = [each for batch in batches for each in batch]
        assert (found.number, found.problems) == (len(said), ())
        assert [each["said"].encode("latin-1") for each in records(directory)] == said
        path = data.draw(st.sampled_from(sorted(directory.iterdir())))
        octets = bytearray(path.read_bytes())
        place = data.draw(st.integers(0, len(octets) - 1))
        octets[place] ^= data.draw(st.integers(1, 255))
        path.chmod(0o600)
        path.write_bytes(octets)
        expected = ExpectedLine(found.number, found.head)
        try:
            changed = verify(directory, expected)
        except ConfigError:
            return
        assert changed.problems
