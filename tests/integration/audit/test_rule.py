"""Whatever somebody who can write to the files does to them: what a checkpoint covers is there, or `verify` says so.
Standard: deploy/AUDIT.md, "The rule"; a verifier written from that document alone agrees, over every edit generated here.
"""

from __future__ import annotations

import gzip
import hashlib
import json
import shutil
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from hypothesis import given, settings, strategies as st

from relay.audit import checkpoint, entries
from relay.audit.chain import Chain, number_of, record_in
from relay.audit.entries import AddressHash, event_members
from relay.audit.reading import records
from relay.audit.upkeep import compress_finished, remove_old
from relay.audit.verifying import verify
from relay.audit.writing import Audit
from relay.cli.audit import audit
from relay.cli.ledger import ledger
from relay.errors import ConfigError
from tests.testlib import second_verifier
from tests.testlib.identities import fixed_signing_key

KEY = fixed_signing_key()
SIGNER = checkpoint.signer_of(KEY.public_key())
EARLIER = Path(__file__).parents[2] / "data" / "audit" / "earlier"
"""A record of an earlier release, with a checkpoint: files without `begun`, all events, a torn line, a removal."""
KEEP_DAYS = 30
EVENTS = (
    "mail", "Killed", "downgrade", "plaintext", "shadow", "released", "dropped", "opened", "policies", "removed", "gap",
)  # fmt: skip

Lines = list[bytes]
Files = dict[str, Lines]
"""The lines of each file, by its name; those of a name that ends with .gz are compressed."""


def members(event: str, when: datetime) -> bytes:
    """A record of this kind; mail of a killed relay and policies have the time of what happened before."""
    fields: dict[str, Any] = {"filling": "x" * 20}
    if event in ("Killed", "policies"):
        when -= timedelta(days=400)
    if event == "Killed":
        event, fields = "mail", {"reason": "Killed", **fields}
    said = {"time": f"{when:%Y-%m-%dT%H:%M:%S}.000Z", "event": event, **fields}
    return json.dumps(said)[1:-1].encode()


async def make(directory: Path, last: str, ago: int) -> None:
    """A record of several days whose first ones were removed, up to a record of `last`, `ago` days before today."""
    days = [("gap", "mail"), ("policies", "plaintext", "mail"), ("Killed", "opened"), ("released", "policies"), (last,)]
    now = datetime.now(UTC)
    for number, events in enumerate(days):
        day = now - timedelta(days=ago + len(days) - 1 - number)
        with pytest.MonkeyPatch.context() as clock:
            clock.setattr("relay.audit.chain.today", lambda day=day: f"{day:%Y-%m-%d}")
            clock.setattr(entries, "now", lambda day=day: f"{day:%Y-%m-%dT%H:%M:%S}.000Z")
            chain = Chain(directory)
            if number == len(days) - 1:
                removing = Audit(Chain(directory), AddressHash(None))
                await remove_old(removing, 1, 2**30, day.timestamp())
                await removing.close()
            chain.append([members(event, day) for event in events if event != "removed"], flush=False)
            chain.close()


def keep(directory: Path, to: Path, keep_days: int | None = KEEP_DAYS) -> None:
    found = verify(directory)
    assert found.problems == ()
    said = checkpoint.Checkpoint(
        "alice", "sae-alice", "relay", entries.now(), found.lasting, found.number, found.head, keep_days, found.days
    )
    to.write_text(checkpoint.sign(said, KEY))


@cache  # thousands of edits of a record are tried against one
def signed(octets: bytes) -> checkpoint.SignedCheckpoint:
    return checkpoint.read(octets, "x")


def is_found(directory: Path, kept: Path) -> bool:
    """Whether `audit verify` finds a fault."""
    try:
        return verify(directory, signed(kept.read_bytes()).checkpoint.expected).problems != ()
    except ConfigError:
        return True


def read(directory: Path) -> Files:
    found = {}
    for path in sorted(directory.glob("0*")):
        octets = path.read_bytes()
        found[path.name] = (gzip.decompress(octets) if path.suffix == ".gz" else octets).splitlines()
    return found


def write(directory: Path, files: Files) -> None:
    for path in directory.glob("0*"):
        path.unlink()
    for name, lines in files.items():
        octets = b"".join(line + b"\n" for line in lines)
        (directory / name).write_bytes(gzip.compress(octets, 1) if name.endswith(".gz") else octets)


HIDDEN = "0-"
"""With this before its name a file is none of the record."""


def every(files: Files) -> Lines:
    return [line for name in sorted(files) for line in files[name]]


# --- edits


def of_records(files: Files) -> Iterator[tuple[str, Files]]:
    lines = every(files)
    for at, line in enumerate(lines):
        before, rest = lines[:at], lines[at + 1 :]
        for what, instead in {
            "twice": [line, line],
            "changed": [line.replace(b"x", b"y", 1)],
            "empty": [b""],
            "cut short": [line[:9]],
            "behind a torn line": [b'{"n', line],
            "replaced by a removal": [removal(line)],
            "behind a removal": [removal(line), line],
        }.items():
            yield f"{at} {what}", laid(files, [*before, *instead, *rest])
        for other in range(at + 1, len(lines)):
            yield f"{at} and {other} swapped", laid(files, swapped(lines, at, other))
        for end in range(at + 1, len(lines) + 1):
            yield f"without {at} to {end}", laid(files, before + lines[end:])


def of_files(files: Files) -> Iterator[tuple[str, Files]]:
    names = sorted(files)
    for at, name in enumerate(names):
        stem, day, plain, lines, rest = (
            name[:12],
            name[13:23],
            name.removesuffix(".gz"),
            files[name],
            without(files, name),
        )
        yield f"without {name}", rest
        yield f"without all up to {name}", {each: files[each] for each in names[at + 1 :]}
        yield f"only up to {name}", {each: files[each] for each in names[: at + 1]}
        yield f"{name} empty", files | {name: []}
        yield f"{name} packed or not", rest | {plain if name != plain else f"{name}.gz": lines}
        yield f"{name} hidden", rest | {f"{HIDDEN}{name}": lines}
        for new in (f"{int(stem) + 1:012}", f"{int(stem) + 9**9:012}", f"0{stem}", f"{int(stem) - 1:012}"):
            yield f"{name} called {new}", rest | {name.replace(stem, new): lines}
        for new in ("2020-01-01", "2999-01-01"):
            yield f"{name} of {new}", rest | {name.replace(day, new): lines}
            yield f"{name} of {new} too", files | {name.replace(day, new): lines}
        for other in names[at + 1 :]:
            yield f"{name} and {other} swapped", files | {name: files[other], other: lines}
            yield f"{other} in {name}", without(files, other) | {name: lines + files[other]}
        for cut in range(1, len(lines)):
            second = f"{number_of(lines[cut]) or 9:012}{plain[12:]}"
            yield f"{name} in two at {cut}", rest | {name: lines[:cut], second: lines[cut:]}


def without(files: Files, name: str) -> Files:
    return {each: lines for each, lines in files.items() if each != name}


def swapped(lines: Lines, first: int, second: int) -> Lines:
    found = list(lines)
    found[first], found[second] = found[second], found[first]
    return found


def laid(files: Files, lines: Lines) -> Files:
    """These lines, in files of as many lines as before as far as they reach."""
    found = dict[str, Lines]()
    for name in sorted(files):
        found[name], lines = lines[: len(files[name])], lines[len(files[name]) :]
    found[max(found)] += lines
    return found


def removal(instead: bytes) -> bytes:
    """A removal of all before a line, in that line's place."""
    record = record_in(instead) or {"number": 1, "previous": ""}
    said = {"time": "2020-01-01T00:00:00.000Z", "event": "removed", "files": 1}
    return line_of(
        said | {"last": record["number"] - 1, "head": record["previous"]}, record["number"], record["previous"]
    )


def line_of(record: dict[str, Any], number: int, previous: str) -> bytes:
    rest = {name: value for name, value in record.items() if name not in ("number", "previous")}
    return json.dumps({"number": number, **rest, "previous": previous}).encode()


# --- what is put right again afterwards


def as_it_is(files: Files) -> Files:
    return files


def removal_recorded(files: Files) -> Files:
    """The last record says that all before the first one were removed as too old."""
    whole = [json.loads(line) for line in every(files)]
    if not whole:
        return files
    first, last = whole[0], whole[-1]
    own = {"time": "2020-01-01T00:00:00.000Z", "event": "removed", "files": 1}
    own |= {"last": first["number"] - 1, "head": first["previous"]}
    newest = max(files)
    line = line_of(own, last["number"] + 1, hashlib.sha256(files[newest][-1]).hexdigest()) if files[newest] else b""
    return files | {newest: [*files[newest], line]}


def renamed(files: Files) -> Files:
    """Files that have lines are called after their first record, and the others are gone."""
    found = {}
    for name, lines in files.items():
        if lines:
            first = json.loads(lines[0])
            found[f"{first['number']:012}-{first.get('begun', name[13:23])}{name[23:]}"] = lines
    return found


def chained_anew(files: Files) -> Files:
    """All numbers and hashes fit, and so do names."""
    found: Files = {}
    number, head = 0, "0" * 64
    for name in sorted(files):
        new = f"{number + 1:012}{name[12:]}"
        found[new] = []
        for line in files[name]:
            number += 1
            record = {key: value for key, value in json.loads(line).items() if key not in ("begun", "number")}
            found[new].append(line_of(({} if found[new] else {"begun": name[13:23]}) | record, number, head))
            head = hashlib.sha256(found[new][-1]).hexdigest()
    return found


REPAIRS: dict[str, Callable[[Files], Files]] = {
    "as it is": as_it_is,
    "removal recorded": removal_recorded,
    "removal recorded and files renamed": lambda files: renamed(removal_recorded(files)),
    "chained anew": chained_anew,
    "chained anew with a removal": lambda files: chained_anew(removal_recorded(files)),
}


class Kept:
    """A record, what a checkpoint covers of it, and what somebody who edits it may try."""

    def __init__(self, work: Path) -> None:
        self.directory, self.kept = work / "audit", work / "kept.json"
        self.files = read(self.directory)
        number = checkpoint.read(self.kept.read_bytes(), "x").checkpoint.number
        self.covered = [line for line in every(self.files) if b'"prev' in line and json.loads(line)["number"] <= number]

    def missed(self, what: str, changed: Files) -> str:
        """What two verifiers differ about, and what is missing though both say that nothing is."""
        write(self.directory, changed)
        found = is_found(self.directory, self.kept)
        if found == second_verifier.fits(self.directory, self.kept, SIGNER, datetime.now(UTC).date()):
            return f"{what}: {'found by ours alone' if found else 'not found by ours alone'}"
        record = {name: lines for name, lines in changed.items() if not name.startswith(HIDDEN)}
        intact = [line for line in every(record) if line in self.covered] == self.covered
        return "" if found or intact else what

    def try_all(self, edits: Iterator[tuple[str, Files]], repair: str) -> list[str]:
        missed = []
        for what, edited in edits:
            try:
                changed = REPAIRS[repair](edited)
            except (ValueError, IndexError, KeyError):  # a line that is none cannot be chained
                continue
            missed.append(self.missed(f"{what}, {repair}", changed))
        write(self.directory, self.files)
        return [each for each in missed if each]


async def place(work: Path, last: str, ago: int = 0) -> Kept:
    work.mkdir(exist_ok=True)
    await make(work / "audit", last, ago)
    keep(work / "audit", work / "kept.json")
    chain = Chain(work / "audit", file_octets=400)
    for event in ("mail", "policies", "gap"):
        chain.append([members(event, datetime.now(UTC))], flush=False)
    chain.close()
    await compress_finished(work / "audit")
    return Kept(work)


@pytest.mark.promise("Writers of the record cannot change or remove records under a checkpoint")
@pytest.mark.parametrize("last", ["mail", "Killed", "policies", "removed", "gap"])
async def test_whatever_the_last_record_covered_is_no_edit_of_files_or_of_their_beginning_is_missed(
    tmp_path: Path, last: str
) -> None:
    kept = await place(tmp_path, last)
    assert len(kept.files) >= 4
    assert verify(kept.directory).first > 1
    assert kept.missed("nothing", kept.files) == ""
    name, lines = next(iter(kept.files.items()))
    assert kept.missed("a copy that is none of the record", kept.files | {f"{HIDDEN}{name}": lines}) == ""
    assert not is_found(kept.directory, kept.kept)
    for repair in REPAIRS:
        assert kept.try_all(of_files(kept.files), repair) == []
        beginnings = ((what, edited) for what, edited in of_records(kept.files) if what.startswith("without 0 to"))
        assert kept.try_all(beginnings, repair) == []


@pytest.mark.promise("Writers of the record cannot change or remove records under a checkpoint")
@pytest.mark.parametrize("repair", REPAIRS)
@pytest.mark.parametrize("last", ["policies", "removed"])
async def test_every_edit_of_records_that_touches_what_a_checkpoint_covers_is_found(
    tmp_path: Path, last: str, repair: str
) -> None:
    kept = await place(tmp_path, last)
    assert kept.try_all(of_records(kept.files), repair) == []


@pytest.fixture(scope="module")
def earlier(tmp_path_factory: pytest.TempPathFactory) -> Kept:
    """A record of an earlier release that this one continues, with a checkpoint of its own."""
    work = tmp_path_factory.mktemp("earlier")
    shutil.copytree(EARLIER / "audit", work / "audit")
    chain = Chain(work / "audit", file_octets=400)
    for event in ("mail", "policies", "gap", "mail"):
        chain.append([members(event, datetime.now(UTC))], flush=False)
    keep(work / "audit", work / "kept.json")
    chain.append([members("Killed", datetime.now(UTC))], flush=False)
    chain.close()
    return Kept(work)


def test_a_record_of_an_earlier_release_is_continued_and_fits_its_checkpoint(earlier: Kept) -> None:
    for kept in (earlier.kept, EARLIER / "checkpoint.json"):
        assert not is_found(earlier.directory, kept)
        assert second_verifier.fits(earlier.directory, kept, SIGNER, datetime.now(UTC).date())
    found = verify(earlier.directory)
    assert (found.first, found.number, found.problems) == (4, 21, ())
    assert [each["number"] for each in records(earlier.directory, "2026-11-22")] == [*range(4, 22)], (
        "no file names its day"
    )


@pytest.mark.promise("Writers of the record cannot change or remove records under a checkpoint")
@pytest.mark.parametrize("repair", REPAIRS)
def test_no_edit_of_a_record_that_an_earlier_release_has_begun_is_missed(earlier: Kept, repair: str) -> None:
    assert earlier.try_all(of_files(earlier.files), repair) == []
    assert earlier.try_all(of_records(earlier.files), repair) == []


@pytest.mark.parametrize("ago", [KEEP_DAYS - 1, KEEP_DAYS, KEEP_DAYS + 1, 2 * KEEP_DAYS])
async def test_two_verifiers_agree_on_what_retention_may_have_removed(tmp_path: Path, ago: int) -> None:
    kept = await place(tmp_path, "policies", ago)
    names, left = sorted(kept.files), []
    for repair in ("as it is", "removal recorded"):
        for at in range(len(names)):
            rest = {name: kept.files[name] for name in names[at:]}
            changed = REPAIRS[repair](rest)
            write(kept.directory, changed)
            found = is_found(kept.directory, kept.kept)
            assert found != second_verifier.fits(kept.directory, kept.kept, SIGNER, datetime.now(UTC).date())
            left += [at] if repair == "removal recorded" and not found else []
    assert left == list(range({KEEP_DAYS - 1: 2, KEEP_DAYS: 3, KEEP_DAYS + 1: 4, 2 * KEEP_DAYS: 4}[ago]))


@pytest.mark.promise("Writers of the record cannot change or remove records under a checkpoint")
async def test_a_clock_that_was_set_back_lets_nobody_remove_what_is_younger(tmp_path: Path) -> None:
    """Who can set it could write one record of long ago, and remove all before that later."""
    directory, kept = tmp_path / "audit", tmp_path / "kept.json"
    for day in ("", "2020-01-01", ""):
        with pytest.MonkeyPatch.context() as clock:
            if day:
                clock.setattr("relay.audit.chain.today", lambda day=day: day)
                clock.setattr(entries, "now", lambda day=day: f"{day}T12:00:00.000Z")
            chain = Chain(directory)
            chain.append([event_members("mail", {})] * 2, flush=False)
            chain.close()
    keep(directory, kept)
    files = read(directory)
    write(directory, removal_recorded(without(files, min(files))))
    assert is_found(directory, kept)
    assert not second_verifier.fits(directory, kept, SIGNER, datetime.now(UTC).date())


@pytest.mark.promise("Writers of the record cannot change or remove records under a checkpoint")
async def test_another_record_and_an_older_copy_are_found_spliced_with_it_or_alone(tmp_path: Path) -> None:
    kept = await place(tmp_path / "one", "Killed")
    other = await place(tmp_path / "other", "mail")
    names = sorted(set(kept.files) | set(other.files))
    for at in range(len(names) + 1):
        for before, behind in ((kept, other), (other, kept)):
            mixed = {name: before.files[name] for name in names[:at] if name in before.files}
            mixed |= {name: behind.files[name] for name in names[at:] if name in behind.files}
            for repair, put_right in REPAIRS.items():
                assert kept.missed(f"{at}, {repair}", put_right(mixed)) == ""
    for number in range(len(kept.covered)):
        older = laid(kept.files, every(kept.files)[:number])
        assert kept.missed("older", {name: lines for name, lines in older.items() if lines}) == ""


@pytest.mark.promise("Writers of the record cannot change or remove records under a checkpoint")
@given(data=st.data())
@settings(max_examples=100, deadline=None)
def test_edits_one_after_the_other_are_found_as_well(earlier: Kept, data: st.DataObject) -> None:
    changed, what = earlier.files, []
    for _ in range(data.draw(st.integers(1, 3))):
        some = data.draw(st.sampled_from([of_records, of_files]))
        try:
            if not (edits := [*some(changed)]):
                continue
            name, edited = data.draw(st.sampled_from(edits))
            repair = data.draw(st.sampled_from(sorted(REPAIRS)))
            changed = REPAIRS[repair](edited)
        except (ValueError, IndexError, KeyError):
            continue
        what.append(f"{name}, {repair}")
    assert earlier.missed("; ".join(what), changed) == ""


# --- names of files


@pytest.mark.promise("Writers of the record cannot change or remove records under a checkpoint")
async def test_no_name_of_a_file_has_export_or_ledger_leave_out_what_was_asked_for(tmp_path: Path) -> None:
    kept = await place(tmp_path, "plaintext")
    since = (datetime.now(UTC) - timedelta(days=1)).strftime("%Y-%m-%d")

    def shown(command: Any, *words: str) -> list[int]:
        result = CliRunner().invoke(command, [*words, "--directory", str(kept.directory), "--since", since])
        assert result.exit_code == 0, result.output
        lines = result.stdout.splitlines() if "--json" not in words else map(json.dumps, json.loads(result.stdout))
        return [json.loads(line)["number"] for line in lines]

    wanted = shown(audit, "export"), shown(ledger, "show", "--json")
    assert len(wanted[0]) >= 4
    assert wanted[1]
    names = sorted(kept.files)
    for some in [[name] for name in names] + [names, names[:-1]]:
        for day in ("2020-01-01", "2999-01-01"):
            write(kept.directory, {f"{n[:13]}{day}{n[23:]}" if n in some else n: kept.files[n] for n in names})
            assert (shown(audit, "export"), shown(ledger, "show", "--json")) == wanted
            assert "which is not in the file's name" in verify(kept.directory).problems[0]


async def test_a_removal_of_itself_or_of_what_comes_later_is_found(tmp_path: Path) -> None:
    kept = await place(tmp_path, "mail")
    newest = max(kept.files)
    last = json.loads(kept.files[newest][-1])["number"]
    for named in (last, last + 1, last + 2):
        said = {"time": entries.now(), "event": "removed", "last": named, "head": "0" * 64, "files": 1}
        line = line_of(said, last + 1, hashlib.sha256(kept.files[newest][-1]).hexdigest())
        assert kept.missed("removal", kept.files | {newest: [*kept.files[newest], line]}) == ""
        assert is_found(kept.directory, kept.kept) == (named > last)


async def test_since_leaves_out_files_that_were_over_before_without_reading_all_of_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept = await place(tmp_path, "mail")
    before = sorted(kept.files)[:2]
    for name in before:  # what is behind the first record is not looked at
        (kept.directory / name).chmod(0o600)
        lines = kept.files[name]
        write(kept.directory, kept.files | {name: [lines[0], b"x" * (2**20 + 2), *lines[1:]]})
        assert len(list(records(kept.directory, f"{datetime.now(UTC):%Y-%m-%d}"))) >= 4
        with pytest.raises(ConfigError, match="longer than"):
            list(records(kept.directory))
