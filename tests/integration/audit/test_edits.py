"""Torn lines, retention, and files that are none: what a checkpoint covers is found to be there, or to be missing.
Standard: deploy/AUDIT.md; edits of files and records in general are in test_rule.py.
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
from hypothesis import given, settings, strategies as st

from relay.audit import entries
from relay.audit.chain import Chain, head_behind, record_in, today
from relay.audit.entries import AddressHash, event_members
from relay.audit.upkeep import remove_old
from relay.audit.verifying import ExpectedLine, verify
from relay.audit.writing import Audit
from relay.cli.audit import audit
from relay.errors import ConfigError
from tests.integration.audit.test_rule import (
    SIGNER,
    Files,
    Lines,
    every,
    keep,
    line_of,
    read,
    removal_recorded,
    swapped,
    write,
)

FILE_OCTETS = 900
OLD = 30


def fresh(directory: Path, number: int) -> None:
    chain = Chain(directory, file_octets=FILE_OCTETS)
    for count in range(number):
        chain.append([event_members("mail", {"count": count, "filling": "x" * 60})], flush=False)
    chain.close()


def verified(directory: Path, kept: Path | None = None) -> Result:
    words = ["verify", "--directory", str(directory)]
    if kept is not None:
        words += ["--checkpoint", str(kept), "--signer", SIGNER]
    return CliRunner().invoke(audit, words)


def is_found(result: Result) -> bool:
    """It is said, and nothing else is wrong with the command."""
    assert result.exception is None or isinstance(result.exception, SystemExit | ConfigError), result.exception
    return result.exit_code != 0


@pytest.mark.promise("Writers of the record cannot change or remove records under a checkpoint")
def test_every_covered_file_in_whose_place_is_something_else_is_found(tmp_path: Path) -> None:
    directory, kept = tmp_path / "audit", tmp_path / "kept.json"
    fresh(directory, 8)
    keep(directory, kept)
    fresh(directory, 4)
    original = read(directory)
    missed = []
    for name in (each for each in sorted(original) if int(each[:12]) <= 8):
        for what, put in _instead(tmp_path, original).items():
            write(directory, original)
            path = directory / name
            path.unlink()
            put(path)
            missed += [] if is_found(verified(directory, kept)) else [f"{name} is {what}"]
            path.rmdir() if path.is_dir() and not path.is_symlink() else path.unlink(missing_ok=True)
            path.with_name(f"{path.name}.gz").unlink(missing_ok=True)
    assert missed == []


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


def test_what_was_removed_with_a_record_of_ones_own_is_a_hole(tmp_path: Path) -> None:
    """Only the file with the line of the checkpoint is left, and what came after it."""
    directory, kept = tmp_path / "audit", tmp_path / "kept.json"
    fresh(directory, 8)
    keep(directory, kept)
    fresh(directory, 4)
    covered = [name for name in read(directory) if int(name[:12]) <= 8]
    files = {name: lines for name, lines in read(directory).items() if name >= max(covered)}
    write(directory, removal_recorded(files))
    assert not is_found(verified(directory)), "the chain alone does not show it"
    result = verified(directory, kept)
    assert is_found(result)
    assert f"numbers 1 to {int(min(files)[:12]) - 1}, which the checkpoint covers, are missing" in result.stderr
    assert f"records are kept for 30 days, and these may be of {today()}" in result.stderr


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


def in_one_file(lines: Lines) -> Lines:
    """The same lines, as if no file but the first one had been begun."""
    number, head, found = 0, "0" * 64, []
    for line in lines:
        if (record := record_in(line)) is not None:
            number += 1
            line = line_of({name: value for name, value in record.items() if name != "begun"}, number, head)
        head = head_behind(head, hashlib.sha256(line).hexdigest(), whole=record is not None)
        found.append(line)
    return found


@pytest.mark.promise("Writers of the record cannot change or remove records under a checkpoint")
def test_no_torn_line_lets_anybody_change_what_is_before_it(torn: tuple[Path, ExpectedLine], tmp_path: Path) -> None:
    covered = in_one_file(every(read(torn[0]))[: -len(TORN)])
    copy = tmp_path / "000000000001-2026-11-25.jsonl"
    copy.write_bytes(b"".join(line + b"\n" for line in covered))
    found = verify(tmp_path)
    assert found.problems == ()
    expected, missed = ExpectedLine(found.number, found.head), []
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
        files = read(directory)
        first, *others = files[min(files)]
        for other in ([], [b"another"], [first, first]):
            write(directory, files | {min(files): [*other, *others]})
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


@pytest.mark.promise("Writers of the record cannot change or remove records under a checkpoint")
@pytest.mark.parametrize(("keep_days", "days", "fine"), [(10, 30, True), (366, 30, False), (None, 30, False)])
async def test_what_retention_removed_after_the_checkpoint_fits_it_once_it_is_as_old_as_the_checkpoint_says(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, keep_days: int | None, days: int, fine: bool
) -> None:
    directory, kept = tmp_path / "audit", tmp_path / "kept.json"
    with monkeypatch.context() as past:
        _past(days, past)
        fresh(directory, OLD)
        keep(directory, kept, keep_days)
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
    keep(directory, kept)
    fresh(directory, OLD)
    await remove_old(Audit(Chain(directory), AddressHash(None)), 10, 2**30, time.time() + 12 * 86400)
    assert not is_found(verified(directory, kept))


async def test_what_was_removed_before_the_checkpoint_was_taken_fits_it(tmp_path: Path) -> None:
    directory, kept = tmp_path / "audit", tmp_path / "kept.json"
    fresh(directory, OLD)
    await remove_old(Audit(Chain(directory), AddressHash(None)), 10, 2**30, time.time() + 12 * 86400)
    keep(directory, kept)
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
    keep(directory, kept)
    write(directory, after)
    assert not is_found(verified(directory, kept))


def test_a_head_alone_shows_that_what_was_before_it_is_missing(tmp_path: Path) -> None:
    directory = tmp_path / "audit"
    fresh(directory, 8)
    files = read(directory)
    head = hashlib.sha256(every(files)[-1]).hexdigest()
    write(directory, removal_recorded({name: lines for name, lines in files.items() if name != min(files)}))
    result = CliRunner().invoke(audit, ["verify", "--directory", str(directory), "--head", head])
    assert is_found(result)


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
