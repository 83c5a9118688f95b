"""What is known of who has put a set of policies into force, what is kept of sets, and how they are compared and found.
Standard: deploy/AUDIT.md; what a stranger could have written counts for nothing, and each bound is kept.
"""

from __future__ import annotations

import json
import os
import sqlite3
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from structlog.testing import capture_logs

from relay.audit import policy_places
from relay.audit.chain import START, Chain, ChainPlace
from relay.audit.entries import AddressHash, event_members
from relay.audit.policy_fields import MAX_DIFFERENCES, of_comparison, of_step
from relay.audit.policy_places import POLICIES, PolicyRecordPlaces, newest_first
from relay.audit.reading import records
from relay.errors import ConfigError
from relay.policy import compare as comparing, kept
from relay.policy.compare import Comparison, Difference, compare
from relay.policy.comparing import kinds, time_limit
from relay.policy.decide import PolicySet
from relay.policy.installing import Installer, read_note, write_note
from relay.policy.kept import KeptSets
from relay.policy.last_good import MAX_COMPARED, LastGood
from relay.policy.load import PolicyFolder
from relay.policy.reload import PoliciesInForce
from relay.policy.step import MAX_NAMES, Names, SetStep
from relay.runtime import heap
from relay.store.secret import SiteSecret
from tests.testlib.nobody import as_nobody, by_root
from tests.testlib.policy_files import AES, PEERS, write

PQC = 'levels = ["pqc"]\n'
CLEAR = 'levels = ["plaintext"]\nreason = "public"\n'
FLOOR = '[[floor]]\nsender = "*@board.alice.example"\nlevels = ["otp"]\n'
VERSION = "0123456789ab"


# --- who it was -----------------------------------------------------------------------------------------------------


@pytest.fixture(name="link")
def _link(tmp_path: Path) -> Path:
    """The link to a set, as `policy install` leaves it."""
    (tmp_path / "set").mkdir()
    beside, link = tmp_path / "beside", tmp_path / "policies"
    beside.symlink_to("set")
    write_note(link, beside, VERSION)
    return beside.rename(link)


def note_of(link: Path) -> Path:
    return link.with_name(".policies.installed")


def test_a_note_says_who_has_installed_a_set_once(link: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    note = read_note(link, VERSION, 0)
    assert note is not None
    assert note.who == Installer((os.geteuid(),), known_by="command")
    assert read_note(link, VERSION, note.time) is None
    assert note_of(link).stat().st_mode & 0o777 == 0o644
    assert sorted(path.name for path in link.parent.iterdir()) == [".policies.installed", "policies", "set"]


def _changed(**changes: Any) -> Callable[[Path], None]:
    def change(note: Path) -> None:
        note.write_text(json.dumps(json.loads(note.read_text()) | changes))

    return change


def _a_link(note: Path) -> None:
    note.rename(note.with_name("moved")).with_name(note.name).symlink_to("moved")


def _another_link(note: Path) -> None:
    link = note.with_name("policies")
    link.rename(note.with_name("kept, so that its inode is not used again"))
    link.symlink_to("set")


def _no_link(note: Path) -> None:
    note.with_name("policies").unlink()
    note.with_name("set").rename(note.with_name("policies"))


@pytest.mark.parametrize(
    "forge",
    [
        _changed(version="ba9876543210"),
        _changed(link=1),
        _changed(time="late"),
        _changed(time=1),
        lambda note: note.write_text("[" * 4000),
        lambda note: note.write_bytes(b"\xff"),
        lambda note: note.write_text(note.read_text() + " " * 4096 + "1"),
        lambda note: note.chmod(0o664),
        lambda note: note.chmod(0o646),
        Path.unlink,
        _a_link,
        _another_link,
        _no_link,
        pytest.param(lambda note: os.chown(note, 12345, 0), marks=by_root),
        pytest.param(lambda note: os.chown(note.with_name("policies"), 12345, 0, follow_symlinks=False), marks=by_root),
    ],
    ids=["of another version", "of another link", "without a time", "an old one", "deep", "no text", "long", "of a group",
        "of all", "gone", "a link", "the link is another one", "no link", "not of the link's owner", "the link is another's"],
)  # fmt: skip
def test_a_note_that_somebody_else_may_have_put_there_counts_for_nothing(
    link: Path, forge: Callable[[Path], object]
) -> None:
    assert read_note(link, VERSION, 1) is not None
    forge(note_of(link))
    assert read_note(link, VERSION, 1) is None


@by_root
def test_only_what_root_says_of_sudo_is_believed(link: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _changed(sudo_user="ann")(note_of(link))
    found = read_note(link, VERSION, 0)
    assert found is not None
    assert found.who.sudo_user == "ann"
    for path in (link, note_of(link)):
        os.chown(path, 12345, 0, follow_symlinks=False)
    found = read_note(link, VERSION, 0)
    assert found is not None
    assert found.who == Installer((12345,), known_by="command")


# --- what is kept ---------------------------------------------------------------------------------------------------


def in_force(directory: Path, last_good: LastGood | None = None) -> PoliciesInForce:
    return PoliciesInForce(directory, PEERS, last_good=last_good or LastGood(KeptSets(directory.with_name("sets.db"))))


def edit(policies: PoliciesInForce, files: dict[str, str]) -> str:
    write(policies().directory, files)
    policies.reload()
    return policies().version


def test_the_last_sets_are_kept_and_what_they_have_in_common_is_there_once(tmp_path: Path) -> None:
    directory = write(tmp_path / "policies", {"default.toml": AES} | {f"d{n}.example.toml": PQC for n in range(50)})
    policies = in_force(directory)
    versions = [edit(policies, {"default.toml": f"{AES}# {n}\n"}) for n in range(kept.MAX_SETS + 5)]
    sets = KeptSets(tmp_path / "sets.db")
    with sets.reading() as book:
        assert [each.version for each in book.sets()] == versions[: -kept.MAX_SETS - 1 : -1]
        for each in book.sets():
            folder = PolicyFolder(tmp_path / "nowhere", PEERS)
            assert book.texts(each).read(folder).version == each.version
            assert len(folder.read_texts([]).files) == 51
    with closing(sqlite3.connect(tmp_path / "sets.db")) as database:
        assert database.execute("SELECT COUNT(*) FROM files").fetchone() == (50 + kept.MAX_SETS,)


def test_what_could_not_be_kept_is_to_be_recorded_and_the_next_set_is_kept_whole(tmp_path: Path) -> None:
    directory = write(tmp_path / "policies", {"default.toml": AES, "bob.example.toml": AES})
    (tmp_path / "sets").write_text("in the way")
    last_good = LastGood(KeptSets(tmp_path / "sets" / "sets.db"))
    with capture_logs() as logs:
        policies = in_force(directory, last_good)
        edit(policies, {"default.toml": PQC})
    assert [each["event"] for each in logs] == ["policies_not_kept", "policies_not_kept", "policies_loaded"]
    (tmp_path / "sets").unlink()
    edit(policies, {"bob.example.toml": PQC})
    assert [(each.step.way, each.step.changed.first) for each in last_good.came] == [
        ("start", ()), ("edit", ("default.toml",)), ("edit", ("bob.example.toml",))
    ]  # fmt: skip
    with last_good.sets.reading() as book:
        [newest] = book.sets()
        assert book.texts(newest).read(PolicyFolder(directory, PEERS)).version == policies().version
        assert [found for _, found in book.steps()] == [last_good.came[-1].step]


def test_where_the_file_is_lost_the_set_in_force_is_read_again_unless_it_has_changed(tmp_path: Path) -> None:
    directory = write(tmp_path / "policies", {"default.toml": AES, "bob.example.toml": AES})
    policies = in_force(directory)
    (tmp_path / "sets.db").unlink()
    edit(policies, {"default.toml": PQC})
    with KeptSets(tmp_path / "sets.db").reading() as book:
        assert [each.version for each in book.sets()] == [policies().version]


def test_many_sets_at_once_hold_no_more_memory_than_a_few(tmp_path: Path) -> None:
    last_good = LastGood(KeptSets(tmp_path / "sets.db"))
    policies = in_force(write(tmp_path / "policies", {"default.toml": AES}), last_good)
    for n in range(MAX_COMPARED + 3):
        edit(policies, {"default.toml": f"{AES}# {n}\n"})
    assert [each.now is None for each in last_good.came].count(True) == 4
    assert last_good.came[-1].missing


def test_a_step_is_read_as_it_was_written() -> None:
    said = SetStep(
        "1" * 12,
        "",
        7,
        9,
        "start",
        Installer((0, 1), "ann", "files"),
        Names.of(list("ab")),
        Names.of(["x"] * 150),
        Names(),
    )
    assert SetStep.from_json(said.as_json()) == said
    assert (len(said.changed.first), said.changed.more) == (MAX_NAMES, 50)


# --- how sets are compared ------------------------------------------------------------------------------------------


def both(tmp_path: Path, old: dict[str, str], new: dict[str, str]) -> tuple[PolicySet, PolicySet]:
    before, now = (
        PolicyFolder(write(tmp_path / name, files), PEERS).read() for name, files in (("old", old), ("new", new))
    )
    return before, now


MANY = {"default.toml": AES} | {f"d{n}.example.toml": AES for n in range(8)} | {"d1.example/ann.toml": PQC}


@pytest.mark.parametrize(
    "changes",
    [
        {"d1.example.toml": CLEAR},
        {"default.toml": CLEAR},
        {"d1.example/ann.toml": CLEAR, "d2.example/ben.toml": PQC},
        {"d3.example.toml": 'levels = ["pqc"]\nsubdomains = true\n', "sub.d3.example.toml": CLEAR},
        {"floors.toml": FLOOR},
        {"default.toml": PQC, "d1.example.toml": 'levels = ["otp"]\n', "floors.toml": FLOOR},
    ],
)
def test_recipients_for_whom_no_file_differs_are_left_out_and_nothing_is_missed(
    changes: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before, now = both(tmp_path, MANY, MANY | changes)
    part = compare(before, now, 60)
    monkeypatch.setattr(kinds, "_changed", lambda *sets: None)
    whole = compare(before, now)
    assert part.differences == whole.differences
    assert (part.weaker, part.whole, whole.whole) == (whole.weaker, True, True)
    shared = {"default.toml", "floors.toml"} & changes.keys()
    assert (part.kinds < whole.kinds / 2) is not bool(shared)


def test_what_was_found_in_many_files_is_left_out_of_later_collections(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A full garbage collection holds every thread for as long as it goes through what was found."""
    monkeypatch.setattr(comparing, "SET_ASIDE", 4)
    times: list[None] = []
    monkeypatch.setattr(heap, "set_aside", lambda: times.append(None))
    before, now = both(tmp_path, MANY, dict.fromkeys(MANY, PQC))
    assert (compare(before, now, 60).kinds, len(times)) == (12, 3)


def test_tests_that_are_gone_are_weaker_and_are_told_once(tmp_path: Path) -> None:
    tests = (
        '[[test]]\nsender = "a@b.example"\nrecipient = "ann@d1.example"\nexpect = "aes"\nfile = "d1.example/x.toml"\n'
    )
    before, now = both(tmp_path, MANY | {"tests.toml": tests}, MANY)
    found = compare(before, now, 60)
    assert (found.weaker, found.whole, len(found.differences), found.kinds) == (True, True, 1, 0)


def test_what_was_not_compared_leaves_open_whether_anything_is_weaker() -> None:
    assert of_comparison(Comparison((), 1, 2), "", AddressHash(None))["weaker"] is None


def test_what_a_difference_says_of_a_persons_file_has_the_address_hashed() -> None:
    why = ("bob.example/ann.toml:3: levels",)
    left = Difference("ann@bob.example", "x@y.example", "any message", why, "down")
    fields = of_comparison(Comparison((left,), 1, 1), "", AddressHash(SiteSecret(bytes(32))))
    hashed = AddressHash(SiteSecret(bytes(32))).write("ann@bob.example")
    assert f"bob.example/{hashed}.toml:3: levels" in fields["weakened"][0]
    assert "ann" not in fields["weakened"][0]


def test_what_takes_too_long_is_compared_in_part(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before, now = both(
        tmp_path, MANY, {name: f'{PQC}otherwise = "hold {number} h"\n' for number, name in enumerate(MANY, 1)}
    )
    ticks = iter(range(0, 10_000, 100))
    monkeypatch.setattr(time_limit, "time", SimpleNamespace(monotonic=lambda: float(next(ticks))))
    found = compare(before, now, 2200)
    assert (0 < found.done < 12, found.kinds, found.whole, found.weaker) == (True, 12, False, True)
    fields = of_comparison(found, "", AddressHash(None))
    assert (fields["compared"], fields["weaker"]) == (f"{found.done} of 12 kinds of recipients", True)


# --- how they stand in the record, and are found there --------------------------------------------------------------


def test_addresses_are_hashed_in_names_and_differences_and_there_is_no_more_than_a_few(tmp_path: Path) -> None:
    people = {f"bob.example/p{n}.toml": AES for n in range(30)}
    before, now = both(tmp_path, {"default.toml": AES} | people, {"default.toml": AES} | dict.fromkeys(people, CLEAR))
    addresses = AddressHash(SiteSecret(bytes(32)))
    fields = of_comparison(compare(before, now, 60), "", addresses)
    assert (len(fields["weakened"]), fields["weakened_more"]) == (MAX_DIFFERENCES, 10)
    said = SetStep(VERSION, "", 7, 31, "edit", Installer(), Names(), Names.of([*people, "bob.example.toml"]), Names())
    fields |= of_step(said, addresses)
    assert f"bob.example/{addresses.write('p7@bob.example')}.toml" in fields["changed"]
    assert "bob.example.toml" in fields["changed"]
    assert "p7" not in json.dumps(fields)
    assert "bob.example/p7.toml" in json.dumps(of_step(said, AddressHash(None)))


@pytest.fixture(name="directory")
def _directory(tmp_path: Path) -> Path:
    """Twelve records of policies in small files, with others between them, as a relay writes them."""
    directory = tmp_path / "audit"
    chain, places = Chain(directory, file_octets=2000), None
    for number in range(12):
        chain.append([event_members("mail", {"mail": "x" * 300})] * 3, flush=False)
        earlier: dict[str, Any] = {"earlier": list(places.behind)} if places is not None else {}
        places = PolicyRecordPlaces(chain.place, places.behind if places is not None else None)
        places.write(directory)
        chain.append([event_members(POLICIES, {"version": f"{number:012}", **earlier})], flush=False)
    chain.append([event_members("mail", {"mail": "last"})] * 30, flush=False)
    chain.close()
    return directory


def _nothing(directory: Path) -> None:
    """As it is."""


def _place_lost(directory: Path) -> None:
    (directory / ".policies").unlink()


def _place_damaged(directory: Path) -> None:
    (directory / ".policies").write_text("[[1, 2]")


def _killed_behind_the_place(directory: Path) -> None:
    places = PolicyRecordPlaces.read(directory)
    assert places is not None
    chain = Chain(directory)
    chain.append([], flush=False)
    PolicyRecordPlaces(chain.place, places.behind).write(directory)
    chain.close()


def _one_without(directory: Path) -> None:
    """A relay that had lost its place."""
    chain = Chain(directory)
    chain.append([], flush=False)
    PolicyRecordPlaces(chain.place, None).write(directory)
    chain.append([event_members(POLICIES, {"version": f"{12:012}"})], flush=False)
    chain.close()


@pytest.mark.parametrize(
    ("change", "number"),
    [(_nothing, 12), (_place_lost, 12), (_place_damaged, 12), (_killed_behind_the_place, 12), (_one_without, 13)],
)
def test_records_of_policies_are_found_the_newest_first(
    directory: Path, change: Callable[[Path], None], number: int
) -> None:
    change(directory)
    found = [int(each["version"]) for each in newest_first(directory)]
    assert found == list(range(number - 1, -1, -1))


def test_what_is_between_them_is_not_read(directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[str] = []
    monkeypatch.setattr(policy_places, "lines_in", lambda file, behind=START: read.append(file.path.name))
    assert [each["version"] for each, _ in zip(newest_first(directory), range(3), strict=False)][2] == f"{9:012}"
    assert read == []


def test_of_what_was_removed_as_too_old_nothing_is_told_and_of_all_else_everything(directory: Path) -> None:
    for file in sorted(directory.glob("0*.jsonl"))[:-1]:
        file.unlink()
        assert list(newest_first(directory)) == list(records(directory, events=(POLICIES,)))[::-1]


def test_a_place_that_cannot_be_written_is_taken_away(directory: Path) -> None:
    (directory / ".policies.new").mkdir()
    with capture_logs() as logs:
        PolicyRecordPlaces(ChainPlace(1, 0), None).write(directory)
    assert [each["event"] for each in logs] == ["policy_places_not_written"]
    assert PolicyRecordPlaces.read(directory) is None


@by_root
def test_a_record_that_may_not_be_looked_at_is_not_one_without_policies(directory: Path) -> None:
    with as_nobody(), pytest.raises(ConfigError, match="cannot be read: Permission denied"):
        list(newest_first(directory))
    assert list(newest_first(directory.with_name("nothing yet"))) == []


def test_one_file_with_many_rules_is_not_compared_for_longer(tmp_path: Path) -> None:
    def rules(number: int) -> dict[str, str]:
        senders = (f'sender = ["p{each}@a.example", "q{number}.{each}@a.example"]' for each in range(20))
        return {"default.toml": CLEAR + "".join(f'[[when]]\n{each}\nlevels = ["aes"]\n' for each in senders)}

    before, now = both(tmp_path, rules(0), rules(1))
    found = compare(before, now, 0.0)
    assert (found.done, found.whole, found.weaker, found.proven) == (0, False, False, False)
