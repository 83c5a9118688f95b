"""What somebody who can write to the record can do to it, generated: a kept checkpoint shows all of it.
Standard: deploy/AUDIT.md; what a checkpoint covers may go by the retention that it signed, and not otherwise.
"""

from __future__ import annotations

import base64
import gzip
import hashlib
import json
import os
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
from click.testing import CliRunner, Result
from cryptography.hazmat.primitives.asymmetric.mldsa import MLDSA87PrivateKey
from hypothesis import given, settings, strategies as st

from relay.audit import checkpoint, entries
from relay.audit.chain import Chain
from relay.audit.entries import AddressHash, event_members
from relay.audit.upkeep import remove_old
from relay.audit.verifying import ExpectedLine, verify
from relay.audit.writing import Audit
from relay.cli.audit import audit
from relay.errors import ConfigError

RECORDS, COVERED, FILE_OCTETS = 12, 8, 900
OLD = 30
KEY = MLDSA87PrivateKey.from_seed_bytes(bytes(range(32)))
Lines = list[bytes]
Files = dict[str, Lines]


def fresh(directory: Path, number: int = RECORDS) -> None:
    chain = Chain(directory, file_octets=FILE_OCTETS)
    for count in range(number):
        chain.append([event_members("mail", {"count": count, "filling": "x" * 60})], flush=False)
    chain.close()


def kept_checkpoint(directory: Path, to: Path, keep_days: int | None = 366) -> None:
    found = verify(directory)
    said = checkpoint.Checkpoint(
        "alice", "sae-alice", "relay", entries.now(), found.first, found.number, found.head, keep_days
    )
    to.write_text(checkpoint.sign(said, KEY))


def verified(directory: Path, kept: Path | None = None) -> Result:
    words = ["verify", "--directory", str(directory)]
    if kept is not None:
        words += ["--checkpoint", str(kept), "--signer", checkpoint.signer_of(KEY.public_key())]
    return CliRunner().invoke(audit, words)


def is_found(result: Result) -> bool:
    """It is said, and nothing else is wrong with the command."""
    assert result.exception is None or isinstance(result.exception, SystemExit | ConfigError), result.exception
    return result.exit_code != 0


def read(directory: Path) -> Files:
    return {path.name: path.read_bytes().splitlines() for path in sorted(directory.iterdir())}


def write(directory: Path, files: Files) -> None:
    for path in directory.iterdir():
        path.unlink()
    for name, lines in files.items():
        (directory / name).write_bytes(b"".join(line + b"\n" for line in lines))


def every(files: Files) -> Lines:
    return [line for name in sorted(files) for line in files[name]]


def edited(files: Files, change: Callable[[Lines], Lines]) -> Files:
    """All lines with this change, in files of as many lines as before as far as they reach."""
    lines, found = change(every(files)), {}
    for name in sorted(files):
        found[name], lines = lines[: len(files[name])], lines[len(files[name]) :]
    found[max(found)] += lines
    return found


# --- what is put right again afterwards


def as_it_is(files: Files) -> Files:
    return files


def chained_anew(files: Files) -> Files:
    """All numbers and hashes fit."""
    found: Files = {}
    number, head = 0, "0" * 64
    for name in sorted(files):
        found[name] = []
        for line in files[name]:
            number += 1
            found[name].append(line_of(json.loads(line), number, head))
            head = hashlib.sha256(found[name][-1]).hexdigest()
    return found


def removal_recorded(files: Files) -> Files:
    """The last record says that all before the first one were removed as too old."""
    lines = every(files)
    if not lines:
        return files
    first, last = json.loads(lines[0]), json.loads(lines[-1])
    said = {
        "time": entries.now(),
        "event": "removed",
        "last": first["number"] - 1,
        "head": first["previous"],
        "files": 1,
    }
    own = line_of(said, last["number"] + 1, hashlib.sha256(lines[-1]).hexdigest())
    newest = max(files)
    return files | {newest: [*files[newest], own]}


def renamed(files: Files) -> Files:
    """Files that have lines are called after their first one, and the others are gone."""
    return {f"{json.loads(lines[0])['number']:012}{name[12:]}": lines for name, lines in files.items() if lines}


def line_of(record: dict[str, Any], number: int, previous: str) -> bytes:
    rest = {name: value for name, value in record.items() if name not in ("number", "previous")}
    return json.dumps({"number": number, **rest, "previous": previous}).encode()


REPAIRS: dict[str, Callable[[Files], Files]] = {
    "as it is": as_it_is,
    "chained anew": chained_anew,
    "removal recorded": removal_recorded,
    "removal recorded and files renamed": lambda files: renamed(removal_recorded(files)),
    "chained anew with a removal": lambda files: chained_anew(removal_recorded(files)),
}


def edits() -> Iterator[tuple[str, Callable[[Lines], Lines]]]:
    own = line_of({"time": entries.now(), "event": "removed", "last": 0, "head": "0" * 64, "files": 1}, 1, "0" * 64)
    for begin in range(RECORDS):
        for end in range(begin + 1, RECORDS + 1):
            yield f"without {begin} to {end}", lambda lines, b=begin, e=end: lines[:b] + lines[e:]  # type: ignore[misc]
        for other in range(begin + 1, RECORDS):
            yield f"{begin} and {other} swapped", lambda lines, b=begin, o=other: swapped(lines, b, o)  # type: ignore[misc]
        yield f"{begin} twice", lambda lines, b=begin: [*lines[: b + 1], lines[b], *lines[b + 1 :]]  # type: ignore[misc]
        yield (
            f"{begin} changed",
            lambda lines, b=begin: [*lines[:b], lines[b].replace(b"xx", b"xy", 1), *lines[b + 1 :]],  # type: ignore[misc]
        )
        yield f"{begin} is a removal", lambda lines, b=begin: [*lines[:b], named(own, lines[b]), *lines[b + 1 :]]  # type: ignore[misc]
        yield f"{begin} is nothing", lambda lines, b=begin: [*lines[:b], b"", *lines[b + 1 :]]  # type: ignore[misc]


def swapped(lines: Lines, first: int, second: int) -> Lines:
    found = list(lines)
    found[first], found[second] = found[second], found[first]
    return found


def named(own: bytes, instead: bytes) -> bytes:
    """A removal of all before a line, in that line's place."""
    number, previous = json.loads(instead)["number"], json.loads(instead)["previous"]
    return line_of(json.loads(own) | {"last": number - 1, "head": previous}, number, previous)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A record, and a checkpoint that covers most of it."""
    work = tmp_path_factory.mktemp("edits")
    fresh(work / "audit", COVERED)
    kept_checkpoint(work / "audit", work / "kept.json")
    fresh(work / "audit", RECORDS - COVERED)
    assert len(list((work / "audit").iterdir())) >= 3
    assert not is_found(verified(work / "audit", work / "kept.json"))
    return work


def try_it(place: Path, original: Files, changed: Files, what: str) -> str:
    """What was changed and is not found."""
    write(place / "audit", changed)
    intact = every(read(place / "audit"))[:COVERED] == every(original)[:COVERED]
    found = is_found(verified(place / "audit", place / "kept.json"))
    return what if not intact and not found else ""


@pytest.mark.parametrize("repair", REPAIRS)
def test_every_edit_of_lines_that_touches_what_a_checkpoint_covers_is_found(place: Path, repair: str) -> None:
    original = read(place / "audit")
    try:
        missed = []
        for what, change in edits():
            changed = edited(original, change)
            with_repair = REPAIRS[repair]
            try:
                changed = with_repair(changed)
            except ValueError:  # a line that is none cannot be chained
                continue
            missed.append(try_it(place, original, changed, what))
        assert [each for each in missed if each] == []
    finally:
        write(place / "audit", original)


def test_every_file_that_is_removed_emptied_swapped_or_something_else_is_found(place: Path, tmp_path: Path) -> None:
    original = read(place / "audit")
    names = sorted(original)
    missed = []
    try:
        for name in names:
            for repair, put_right in REPAIRS.items():
                rest = {each: lines for each, lines in original.items() if each != name}
                missed.append(try_it(place, original, put_right(rest), f"{name} is gone, {repair}"))
                missed.append(try_it(place, original, put_right(original | {name: []}), f"{name} is empty, {repair}"))
                for other in names:
                    both = original | {name: original[other], other: original[name]}
                    missed.append(try_it(place, original, put_right(both), f"{name} is {other}, {repair}"))
                    twice = original | {f"{name[:12]}-2999-01-01.jsonl": original[other]}
                    missed.append(try_it(place, original, twice, f"{other} is there as {name} too"))
            for what, put in _instead(tmp_path, original).items():
                write(place / "audit", original)
                path = place / "audit" / name
                path.unlink()
                put(path)
                covered = int(name[:12]) <= COVERED
                if not is_found(verified(place / "audit", place / "kept.json")) and covered:
                    missed.append(f"{name} is {what}")
                path.rmdir() if path.is_dir() and not path.is_symlink() else path.unlink(missing_ok=True)
                path.with_name(f"{name}.gz").unlink(missing_ok=True)
        assert [each for each in missed if each] == []
    finally:
        write(place / "audit", original)


def _instead(tmp_path: Path, original: Files) -> dict[str, Callable[[Path], object]]:
    some = tmp_path / "some"
    some.write_bytes(original[max(original)][0] + b"\n")
    return {
        "a FIFO": os.mkfifo,
        "a FIFO, and compressed": lambda path: os.mkfifo(path.with_name(f"{path.name}.gz")),
        "a directory": Path.mkdir,
        "a link to nothing": lambda path: path.symlink_to(tmp_path / "nothing"),
        "a link to a device": lambda path: path.symlink_to("/dev/zero"),
        "another one, compressed": lambda path: path.with_name(f"{path.name}.gz").write_bytes(gzip.compress(b"{}\n")),
        "no gzip file": lambda path: path.with_name(f"{path.name}.gz").write_bytes(b"{}\n"),
    }


@given(data=st.data())
@settings(max_examples=80, deadline=None)
def test_edits_one_after_the_other_are_found_as_well(place: Path, data: st.DataObject) -> None:
    original = read(place / "audit")
    changed, what = original, []
    try:
        for _ in range(data.draw(st.integers(1, 3))):
            name, change = data.draw(st.sampled_from([*edits()]))
            repair = data.draw(st.sampled_from(sorted(REPAIRS)))
            try:
                changed = REPAIRS[repair](edited(changed, change))
            except (ValueError, IndexError):
                continue
            what.append(f"{name}, {repair}")
        assert not try_it(place, original, changed, "; ".join(what) or "nothing")
    finally:
        write(place / "audit", original)


def test_what_was_removed_with_a_record_of_ones_own_is_a_hole(place: Path) -> None:
    """Only the line of the checkpoint is left, and what came after it."""
    original = read(place / "audit")
    try:
        write(place / "audit", renamed(removal_recorded(edited(original, lambda lines: lines[COVERED - 1 :]))))
        assert not is_found(verified(place / "audit")), "the chain alone does not show it"
        result = verified(place / "audit", place / "kept.json")
        assert is_found(result)
        assert "numbers 1 to 7, which the checkpoint covers, are missing" in result.stderr
        assert "no more than 0 days old" in result.stderr
    finally:
        write(place / "audit", original)


# --- lines that a crash cut short, which have no number and no hash of what is before them


TORN = (b'{"number": 4, "ti', b"", b"no JSON", b"[]")
"""What a crash leaves behind, and what somebody puts there."""


def torn_at(directory: Path, *lines: bytes) -> None:
    """The newest file ends with these, the last without its end."""
    with max(directory.iterdir()).open("ab") as file:
        file.write(b"\n".join(lines))


@pytest.fixture(scope="module")
def torn(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, ExpectedLine]:
    """A record that was cut short again and again, at the beginning and the end of files too, and its last line."""
    directory = tmp_path_factory.mktemp("torn") / "audit"
    for number, (count, lines) in enumerate([(2, TORN[:1]), (1, TORN[1:3]), (3, TORN[:2]), (3, ()), (0, TORN)]):
        fresh(directory, count)
        torn_at(directory, *lines)
        if number in (1, 2):  # the day is over
            max(directory.iterdir()).chmod(0o400)
        if number == 1:  # and the first record of the next one is cut short
            (directory / "000000000004-2020-01-01.jsonl").write_bytes(TORN[0])
    found = verify(directory)
    assert (found.number, found.problems, len(found.broken_off)) == (9, (), 9)
    return directory, ExpectedLine(found.number, found.head)


def edits_of(lines: Lines) -> Iterator[tuple[str, Lines]]:
    """Each with what it makes of the lines."""
    for at, line in enumerate(lines):
        before, rest = lines[:at], lines[at + 1 :]
        yield f"without {at}", before + rest
        yield f"{at} longer", [*before, line + b" ", *rest]
        yield f"{at} in other words", [*before, line.replace(b"xx", b"xy", 1), *rest]
        for other in range(at + 1, len(lines)):
            yield f"{at} and {other} swapped", swapped(lines, at, other)
        for each in TORN:
            yield f"{each!r} before {at}", [*before, each, line, *rest]
            yield f"{each!r} for {at}", [*before, each, *rest]


def chained_up_to(lines: Lines, end: int) -> Lines:
    """Numbers and hashes of the first lines fit, by whichever rule somebody may try."""
    number, head, found = 0, "0" * 64, []
    for line in lines[:end]:
        try:
            record = json.loads(line)
        except ValueError:
            record = None
        if isinstance(record, dict):
            number += 1
            line = line_of(record, number, head)
        head = hashlib.sha256(line).hexdigest()
        found.append(line)
    return [*found, *lines[end:]]


def test_no_torn_line_lets_anybody_change_what_is_before_it(torn: tuple[Path, ExpectedLine], tmp_path: Path) -> None:
    directory, expected = torn
    covered = every(read(directory))[: -len(TORN)]
    copy = tmp_path / "000000000001-2026-11-25.jsonl"
    missed = []
    for what, changed in edits_of(covered):
        # Who changes something chains anew what is before a torn line, or all.
        for end in (at for at, line in enumerate([*changed, TORN[0]]) if at == 0 or line in TORN):
            lines = chained_up_to(changed, end) if end else changed
            if lines == covered:
                continue
            copy.write_bytes(b"".join(line + b"\n" for line in lines))
            if not verify(tmp_path, expected).problems:
                missed.append(f"{what}, chained anew up to {end}")
    assert missed == []


async def test_files_that_begin_with_torn_lines_may_be_the_first_that_are_left(torn: tuple[Path, ExpectedLine]) -> None:
    directory, _ = torn
    original = read(directory)
    try:
        await remove_old(Audit(Chain(directory), AddressHash(None)), 10, 2**30, time.time() + 400_000 * 86400)
        found = verify(directory)
        assert found.first > 1
        assert found.problems == ()
        assert TORN[0] in every(read(directory))[:1], "the case is there"
        first, *others = every(read(directory))
        for other in ([], [b"another"], [first, first]):
            write(directory, {min(read(directory)): [*other, *others]})
            assert "no record has those before as removed" in verify(directory).problems[0]
    finally:
        write(directory, original)


@given(batches=st.lists(st.tuples(st.integers(0, 3), st.lists(st.sampled_from(TORN), max_size=3)), max_size=8))
@settings(max_examples=25, deadline=None)
def test_wherever_a_crash_cuts_a_line_short_the_chain_goes_on(batches: list[tuple[int, Lines]]) -> None:
    with TemporaryDirectory() as work:
        directory = Path(work) / "audit"
        fresh(directory, 1)
        beside = Chain(directory, file_octets=FILE_OCTETS)  # a process that has the file open meanwhile
        for number, lines in batches:
            beside.append([event_members("mail", {"filling": "x" * 60})], flush=False)
            torn_at(directory, *lines)
            fresh(directory, number)
        found = verify(directory)
        assert (found.number, found.problems) == (1 + sum(number + 1 for number, _ in batches), ())
        beside.close()


# --- retention


def _past(days: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Records are made so many days ago."""
    then = f"{datetime.now(UTC) - timedelta(days=days):%Y-%m-%dT%H:%M:%S}.000Z"
    monkeypatch.setattr(entries, "now", lambda: then)


@pytest.mark.parametrize(("keep_days", "days", "fine"), [(10, 30, True), (366, 30, False), (None, 30, False)])
async def test_what_retention_removed_after_the_checkpoint_fits_it_once_it_is_as_old_as_the_checkpoint_says(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, keep_days: int | None, days: int, fine: bool
) -> None:
    directory, kept = tmp_path / "audit", tmp_path / "kept.json"
    with monkeypatch.context() as past:
        _past(days, past)
        fresh(directory, OLD)
        kept_checkpoint(directory, kept, keep_days)
    chain = Audit(Chain(directory), AddressHash(None))
    await remove_old(chain, 10, 2**30, time.time() + 12 * 86400)
    result = verified(directory, kept)
    assert is_found(result) == (not fine)
    if fine:
        assert "removed as too old" in result.stdout
    head = json.loads(base64.b64decode(json.loads(kept.read_text())["checkpoint"]))["head"]
    assert (not verify(directory, head=head, keep_days=keep_days).problems) == fine
    assert not verify(directory, head="0" * 64).problems, "what covers nothing misses nothing"


async def test_a_checkpoint_of_an_empty_record_misses_nothing_when_something_is_removed(tmp_path: Path) -> None:
    directory, kept = tmp_path / "audit", tmp_path / "kept.json"
    directory.mkdir()
    kept_checkpoint(directory, kept)
    fresh(directory, OLD)
    await remove_old(Audit(Chain(directory), AddressHash(None)), 10, 2**30, time.time() + 12 * 86400)
    assert not is_found(verified(directory, kept))


async def test_what_was_removed_before_the_checkpoint_was_taken_fits_it(tmp_path: Path) -> None:
    directory, kept = tmp_path / "audit", tmp_path / "kept.json"
    fresh(directory, OLD)
    await remove_old(Audit(Chain(directory), AddressHash(None)), 10, 2**30, time.time() + 12 * 86400)
    kept_checkpoint(directory, kept)
    assert verify(directory).first > 1
    assert not is_found(verified(directory, kept))
    fresh(directory, 3)
    assert not is_found(verified(directory, kept))


async def test_a_removal_that_was_killed_before_the_checkpoint_may_be_finished_after_it(tmp_path: Path) -> None:
    directory, kept = tmp_path / "audit", tmp_path / "kept.json"
    fresh(directory, OLD)
    before = read(directory)
    await remove_old(Audit(Chain(directory), AddressHash(None)), 10, 2**30, time.time() + 12 * 86400)
    after = read(directory)
    write(directory, before | after)
    kept_checkpoint(directory, kept)
    write(directory, after)
    assert not is_found(verified(directory, kept))


def test_a_head_alone_shows_that_what_was_before_it_is_missing(place: Path) -> None:
    original = read(place / "audit")
    head = hashlib.sha256(every(original)[COVERED - 1]).hexdigest()
    try:
        write(place / "audit", renamed(removal_recorded(edited(original, lambda lines: lines[COVERED - 2 :]))))
        result = CliRunner().invoke(audit, ["verify", "--directory", str(place / "audit"), "--head", head])
        assert is_found(result)
    finally:
        write(place / "audit", original)


# --- what must not break the command


@pytest.mark.parametrize(
    "said",
    [{"last": []}, {"last": {}, "head": []}, {"last": True, "head": ""}, {}, {"last": "1", "head": None}, {"last": -1}],
)
def test_a_removal_that_names_nothing_is_said(tmp_path: Path, said: dict[str, Any]) -> None:
    fresh(tmp_path / "audit", 2)
    chain = Chain(tmp_path / "audit")
    chain.append([event_members("removed", said)], flush=False)
    result = verified(tmp_path / "audit")
    assert is_found(result)
    assert "has records as removed and does not say which" in result.stderr


@pytest.mark.parametrize("name", ["000000000009-2026-11-25.jsonl", "000000000009-2026-11-25.jsonl.gz"])
def test_a_FIFO_that_is_named_like_a_record_hangs_nobody(tmp_path: Path, name: str) -> None:
    fresh(tmp_path / "audit", 2)
    os.mkfifo(tmp_path / "audit" / name)
    result = verified(tmp_path / "audit")
    assert is_found(result)
    assert "not a regular file" in str(result.exception)
    with pytest.raises(OSError, match="not a regular file"):
        Chain(tmp_path / "audit").append([event_members("test", {}) for _ in range(2000)], flush=False)


def test_times_that_go_back_are_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fresh(tmp_path / "audit", 2)
    with monkeypatch.context() as past:
        _past(2, past)
        fresh(tmp_path / "audit", 2)
    fresh(tmp_path / "audit", 1)
    result = verified(tmp_path / "audit")
    assert result.exit_code == 0, "clocks are set"
    assert result.stdout.count("2 days") == 1
    assert "before that of a record in front of it" in result.stdout
    facts = json.loads(CliRunner().invoke(audit, ["verify", "--directory", str(tmp_path / "audit"), "--json"]).stdout)
    assert len(facts["times_back"]) == 1
    chain = Chain(tmp_path / "audit")
    chain.append([b'"time": "noon", "event": "mail"', b'"event": "mail"'], flush=False)
    assert "has no time" in verified(tmp_path / "audit").stdout
