"""A policy file that vanishes: no peer's domain falls to somebody else's plaintext, and a file is gone only after quiet.
Standard: policies/README.md; the clock is the test's own, and the relay looks at the files when the test says so.
"""

from __future__ import annotations

import itertools
import json
import os
import shutil
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from structlog.testing import LogCapture

from relay.errors import PolicyHolds
from relay.files.quiet import GONE_QUIET_S, QUIET_S
from relay.policy.content import MessageFacts
from relay.policy.decide import PolicySet
from relay.policy.load import PolicyFolder, load_policies
from relay.policy.reload import DOUBTFUL_S, PoliciesInForce
from tests.testlib.policy_files import AES, PEERS, write
from tests.testlib.watched_policies import levels, until, watched
from tests.unit.policy.test_policy_cli import (
    Run,
    log_as_before as log_as_before,  # a fixture
    site as site,  # a fixture
)

CLEAR = 'levels = ["plaintext"]\n'
PQC = 'levels = ["pqc"]\n'
RAISING = CLEAR + '[[when]]\nsubject_tag = "[secret]"\nlevels = ["aes"]\n'


class Clock:
    """Seconds that pass when the test says so."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


def in_force(directory: Path, clock: Callable[[], float]) -> PoliciesInForce:
    return PoliciesInForce(directory, PEERS, clock)


# --- a peer's domain and plaintext ------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("files", "sender", "held"),
    [
        pytest.param({"default.toml": CLEAR}, "a@alice.example", True, id="default.toml"),
        pytest.param({"example.toml": CLEAR + "subdomains = true"}, "", True, id="a parent domain's file"),
        pytest.param({"default.toml": 'peer = "carol"\n' + CLEAR}, "", True, id="default.toml with another peer"),
        pytest.param({"default.toml": AES, "bob.example.toml": CLEAR}, "", False, id="the domain's own file"),
        pytest.param({"default.toml": AES, "bob.example/x.toml": CLEAR}, "", False, id="the person's own file"),
        pytest.param({"bob.example/x.toml": CLEAR}, "", False, id="the person's file without a tag"),
    ],
)
def test_only_a_file_that_names_the_domain_or_the_address_says_plaintext_for_a_peer(
    files: dict[str, str], sender: str, held: bool, tmp_path: Path
) -> None:
    policies = load_policies(write(tmp_path, files), PEERS)
    for recipient in ("x@bob.example", "X+tag@BOB.Example"):
        explanation = policies.explain(sender, recipient)
        if not held:
            assert policies.decide(sender, recipient) == explanation.decision
            continue
        with pytest.raises(PolicyHolds, match=r"bob\.example belongs to peer 'bob'") as caught:
            policies.decide(sender, recipient)
        assert str(tmp_path / "bob.example.toml") in str(caught.value)
        assert explanation.decision is None
        assert explanation.held == str(caught.value)
        assert explanation.lookups[-1].decides


def test_everybody_else_may_have_their_mail_in_clear(tmp_path: Path) -> None:
    policies = load_policies(write(tmp_path, {"default.toml": CLEAR}), PEERS)
    for recipient in ("x@elsewhere.example", "x@lab.bob.example"):
        assert policies.decide("", recipient).in_clear


def test_a_rule_that_looks_inside_changes_nothing_so_that_rcpt_and_data_hear_the_same(tmp_path: Path) -> None:
    policies = load_policies(write(tmp_path, {"default.toml": RAISING}), PEERS)
    secret = MessageFacts(b"Subject: [secret]\r\n\r\n")
    assert policies.decide("", "x@elsewhere.example", secret).levels == ("aes",)
    for content in (None, secret):
        with pytest.raises(PolicyHolds):
            policies.decide("", "x@bob.example", content)


def test_the_commands_say_what_is_held_for_that(site: Callable[[dict[str, str]], Run]) -> None:
    run = site({"default.toml": "# for everybody\n" + CLEAR})
    checked = run("check", "--json")
    said = [each for each in json.loads(checked.output)["doubtful"] if "bob.example" in each["what"]]
    assert [(Path(each["file"]).name, each["line"]) for each in said] == [("default.toml", 2)]
    assert "create" in said[0]["what"]
    explained = run("explain", "--offline", "a@alice.example", "x@bob.example")
    assert explained.exit_code == 1
    assert "held: " in explained.output
    assert "default.toml (default): decides" in explained.output
    run = site({"default.toml": CLEAR, "bob.example.toml": AES})
    assert "belongs to peer" not in run("check").output


# --- files that vanish --------------------------------------------------------------------------------------


def test_a_file_that_vanishes_is_in_force_until_nothing_has_changed_for_a_while(
    tmp_path: Path, clock: Clock, log: LogCapture
) -> None:
    policies = in_force(write(tmp_path, {"default.toml": CLEAR, "hosted.example.toml": AES + 'peer = "bob"'}), clock)
    (tmp_path / "hosted.example.toml").unlink()
    policies.look()
    assert levels(policies, "x@hosted.example") == ("aes",)
    clock.now += GONE_QUIET_S - 0.1
    policies.look()
    assert levels(policies, "x@hosted.example") == ("aes",)
    assert not [entry for entry in log.entries if entry["event"] == "policy_file_gone"]
    clock.now += 0.2
    policies.look()
    assert levels(policies, "x@hosted.example") == ("plaintext",)
    [gone] = [entry for entry in log.entries if entry["event"] == "policy_file_gone"]
    assert (gone["files"], gone["log_level"]) == (["hosted.example.toml"], "warning")


def test_every_change_in_the_directory_begins_the_quiet_anew(tmp_path: Path, clock: Clock) -> None:
    policies = in_force(write(tmp_path, {"default.toml": CLEAR, "hosted.example.toml": AES}), clock)
    (tmp_path / "hosted.example.toml").unlink()
    for number in range(20):
        write(tmp_path, {"default.toml": f"{CLEAR}# {number}\n"})
        policies.look()
        clock.now += GONE_QUIET_S * 0.9
        policies.look()
        assert levels(policies, "x@hosted.example") == ("aes",)
    clock.now += GONE_QUIET_S
    policies.look()
    assert levels(policies, "x@hosted.example") == ("plaintext",)


def test_while_a_file_is_missing_the_whole_set_from_before_is_in_force(tmp_path: Path, clock: Clock) -> None:
    """What is deleted here may stand elsewhere, half written as yet."""
    policies = in_force(write(tmp_path, {"default.toml": AES, "bob.example.toml": AES}), clock)
    before = policies().version
    (tmp_path / "bob.example.toml").unlink()
    write(tmp_path, {"default.toml": CLEAR, "bob.example/x.toml": AES})
    policies.look()
    assert policies().version == before
    write(tmp_path, {"bob.example.toml": AES})
    policies.look()
    assert policies().version == before
    clock.now += QUIET_S * 1.1
    policies.look()
    assert (len(policies().files), levels(policies, "x@y.example")) == (3, ("plaintext",))


def test_a_file_that_is_back_after_the_quiet_but_before_it_was_noticed_is_not_gone(
    tmp_path: Path, clock: Clock
) -> None:
    policies = in_force(write(tmp_path, {"default.toml": CLEAR, "hosted.example.toml": AES}), clock)
    (tmp_path / "hosted.example.toml").unlink()
    policies.look()
    write(tmp_path, {"hosted.example.toml": 'levels = ["pqc"]\n'})
    clock.now += GONE_QUIET_S + 1
    policies.look()
    assert levels(policies, "x@hosted.example") == ("aes",)
    clock.now += QUIET_S * 1.1
    policies.look()
    assert levels(policies, "x@hosted.example") == ("pqc",)


def test_being_told_to_read_again_does_not_shorten_the_quiet(tmp_path: Path, clock: Clock) -> None:
    policies = in_force(write(tmp_path, {"default.toml": CLEAR, "hosted.example.toml": AES}), clock)
    (tmp_path / "hosted.example.toml").unlink()
    for _ in range(2):
        policies.reload()
    assert levels(policies, "x@hosted.example") == ("aes",)
    clock.now += GONE_QUIET_S
    policies.reload()
    assert levels(policies, "x@hosted.example") == ("plaintext",)


def by_rename(path: Path, text: str) -> Iterator[None]:
    (path.parent / f".{path.name}.new").write_text(text)
    yield
    (path.parent / f".{path.name}.new").replace(path)
    yield


def by_unlink_and_create(path: Path, text: str) -> Iterator[None]:
    path.unlink()
    yield
    path.write_text(text)
    yield


def by_backup(path: Path, text: str) -> Iterator[None]:
    """As vim does with backupcopy=no: the file becomes the backup, then a new one is written."""
    path.replace(path.parent / f"{path.name}~")
    yield
    with path.open("w") as file:
        yield
        file.write(text)
        file.flush()
        yield
    (path.parent / f"{path.name}~").unlink()
    yield


def by_checkout(path: Path, text: str) -> Iterator[None]:
    """As git does: each file of the change is unlinked, directories that are empty go, and all is written anew."""
    files = {each: each.read_text() for each in sorted(path.parent.glob("*.toml"))}
    for each in files:
        each.unlink()
        yield
    path.parent.rmdir()
    yield
    path.parent.mkdir()
    yield
    for each, before in files.items():
        each.write_text(text if each == path else before)
        yield


def by_directory(path: Path, text: str) -> Iterator[None]:
    """The directory is renamed away, and comes back."""
    away = path.parent.with_name(f".{path.parent.name}.away")
    path.parent.rename(away)
    yield
    (away / path.name).write_text(text)
    yield
    away.rename(path.parent)
    yield


def by_new_directory(path: Path, text: str) -> Iterator[None]:
    """A directory with the new files is put where the old one was."""
    new = path.parent.with_name(f".{path.parent.name}.new")
    shutil.copytree(path.parent, new)
    (new / path.name).write_text(text)
    yield
    shutil.rmtree(path.parent)
    yield
    new.rename(path.parent)
    yield


def by_link(path: Path, text: str) -> Iterator[None]:
    """A link takes the file's place."""
    target = path.parent / f"..{path.name}"
    target.write_text(text)
    path.unlink()
    yield
    path.symlink_to(target.name)
    yield


BY_DIRECTORY = [by_checkout, by_directory, by_new_directory]
"""These replace all files of a directory at once: that of all policies has a test of its own."""
WAYS = [by_rename, by_unlink_and_create, by_backup, by_link, *BY_DIRECTORY]


@pytest.mark.promise("A policy file that vanishes lets nothing out in clear")
@pytest.mark.parametrize(
    ("way", "place"),
    [
        pytest.param(way, place, id=f"{way.__name__}-{place}")
        for way in WAYS
        for place in ("bob.example/x.toml", "hosted.example/x.toml", "hosted.example.toml")
        if "/" in place or way not in BY_DIRECTORY
    ],
)
@pytest.mark.parametrize("looked", [1, 2, 3])
def test_replacing_a_file_in_any_way_never_lets_mail_out_in_clear(
    way: Callable[[Path, str], Iterator[None]], place: str, looked: int, tmp_path: Path, clock: Clock
) -> None:
    """After each step of the edit, whether or not it was looked at, the decision is one of those before and after."""
    directory = write(tmp_path / "policies", {"default.toml": CLEAR, place: 'peer = "bob"\n' + AES, "z.toml": AES})
    recipient = "x@" + place.partition("/")[0].removesuffix(".toml")
    policies = in_force(directory, clock)
    for number, text in enumerate(["pqc", "aes", "pqc"]):
        for step, _ in enumerate(way(directory / place, f'peer = "bob"\nlevels = ["{text}"]\n')):
            if (step + number) % looked == 0:
                policies.look()
            assert levels(policies, recipient)[0] in ("aes", "pqc")
            clock.now += GONE_QUIET_S / 4
        policies.look()
        clock.now += QUIET_S * 1.1
        policies.look()
        assert levels(policies, recipient) == (text,)


@pytest.mark.parametrize("way", BY_DIRECTORY, ids=lambda way: way.__name__)
def test_replacing_the_directory_of_all_policies_never_lets_mail_out_in_clear(
    way: Callable[[Path, str], Iterator[None]], tmp_path: Path, clock: Clock
) -> None:
    directory = write(tmp_path / "policies", {"a.example.toml": AES, "default.toml": CLEAR, "hosted.example.toml": AES})
    policies = in_force(directory, clock)
    for text in ("pqc", "aes"):
        for _ in way(directory / "hosted.example.toml", f'levels = ["{text}"]\n'):
            policies.look()
            assert levels(policies, "x@hosted.example")[0] in ("aes", "pqc")
            clock.now += GONE_QUIET_S / 4
        policies.look()
        clock.now += QUIET_S * 1.1
        policies.look()
        assert levels(policies, "x@hosted.example") == (text,)


# --- a moment of quiet --------------------------------------------------------------------------------------


def test_a_set_comes_into_force_when_none_of_its_files_changes_any_more(tmp_path: Path, clock: Clock) -> None:
    """As in a checkout of many files."""
    policies = in_force(write(tmp_path, {"default.toml": AES}), clock)
    before = policies().version
    for number in range(20):
        write(tmp_path, {f"d{number}.example.toml": PQC})
        policies.look()
        assert policies().version == before
        clock.now += QUIET_S * 0.9
        policies.look()
        assert policies().version == before
    clock.now += QUIET_S * 0.2
    policies.look()
    assert len(policies().files) == 21


def test_a_file_that_grows_without_a_word_from_the_kernel_is_not_taken(tmp_path: Path, clock: Clock) -> None:
    policies = in_force(write(tmp_path, {"default.toml": AES}), clock)
    write(tmp_path, {"default.toml": PQC})
    policies.look()
    for number in range(1, 5):
        write(tmp_path, {"default.toml": PQC + "# more\n" * number})
        clock.now += QUIET_S * 1.1
        policies.look()
        assert levels(policies) == ("aes",)
    clock.now += QUIET_S * 1.1
    policies.look()
    assert levels(policies) == ("pqc",)


def test_what_changes_while_it_is_read_is_read_again(
    tmp_path: Path, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    policies = in_force(write(tmp_path, {"default.toml": AES}), clock)
    read_again = PolicyFolder.read_again

    def edited(self: PolicyFolder, *of: Any) -> PolicySet:
        monkeypatch.setattr(PolicyFolder, "read_again", read_again)
        result = read_again(self, *of)
        write(tmp_path, {"default.toml": PQC, "bob.example.toml": PQC})
        return result

    monkeypatch.setattr(PolicyFolder, "read_again", edited)
    write(tmp_path, {"default.toml": 'levels = ["plaintext"]\n'})
    for counts in ("aes", "aes", "pqc"):
        policies.look()
        assert levels(policies, "x@y.example") == (counts,)
        clock.now += QUIET_S * 1.1


def test_a_link_that_is_swapped_back_while_files_are_read_leaves_nothing_of_the_other_set(
    tmp_path: Path, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, text in (("one", AES), ("two", CLEAR)):
        write(tmp_path / name, {"default.toml": text, "hosted.example.toml": text})

    def swap(to: str) -> None:
        (tmp_path / "new").symlink_to(to)
        (tmp_path / "new").replace(tmp_path / "policies")

    swap("one")
    policies = in_force(tmp_path / "policies", clock)
    read_again = PolicyFolder.read_again

    def swapped(self: PolicyFolder, *of: Any) -> PolicySet:
        monkeypatch.setattr(PolicyFolder, "read_again", read_again)
        result = read_again(self, *of)
        swap("one")
        return result

    monkeypatch.setattr(PolicyFolder, "read_again", swapped)
    swap("two")
    for number in range(5):
        policies.look()
        clock.now += QUIET_S * 1.1
        if number == 2:
            write(tmp_path / "one", {"hosted.example.toml": PQC})
    assert levels(policies, "x@hosted.example") == ("pqc",)
    assert levels(policies, "x@y.example") == ("aes",)


def test_an_edit_that_file_times_are_too_coarse_to_show_counts_a_little_later(
    tmp_path: Path, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    policies = in_force(write(tmp_path, {"default.toml": AES}), clock)
    [stamp] = policies._read.files.values()
    monkeypatch.setattr("relay.policy.walk.stamp_of", lambda *_of, **_how: stamp)
    write(tmp_path, {"default.toml": PQC})
    policies.look()
    clock.now += DOUBTFUL_S / 2
    policies.look()
    assert levels(policies) == ("aes",)
    clock.now += DOUBTFUL_S / 2
    policies.look()
    assert levels(policies) == ("pqc",)


async def test_no_mail_leaves_in_clear_while_files_are_replaced_under_a_watch(tmp_path: Path) -> None:
    """The kernel tells of the edits, which come as fast as they can; every decision that can be seen is looked at."""
    place = tmp_path / "policies" / "hosted.example" / "x.toml"
    directory = write(tmp_path / "policies", {"default.toml": CLEAR, "hosted.example/x.toml": AES})
    done = threading.Event()

    def edit() -> None:
        for number, way in zip(range(40), itertools.cycle(WAYS), strict=False):
            for _ in way(place, f'levels = ["{("aes", "pqc")[number % 2]}"]\n'):
                os.sched_yield()
        place.unlink(missing_ok=True)
        place.write_text('levels = ["otp"]\n')
        done.set()

    async with watched(directory) as policies:
        thread = threading.Thread(target=edit)
        thread.start()
        seen = set()

        def over() -> bool:
            seen.add(levels(policies, "x@hosted.example"))
            return done.is_set() and levels(policies, "x@hosted.example") == ("otp",)

        await until(over)
        thread.join()
    assert ("plaintext",) not in seen


async def test_a_deleted_file_is_gone_in_the_end_without_any_other_event(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("relay.policy.reload.GONE_QUIET_S", 0.2)
    write(tmp_path, {"default.toml": CLEAR, "hosted.example.toml": AES})
    async with watched(tmp_path) as policies:
        (tmp_path / "hosted.example.toml").unlink()
        await until(lambda: levels(policies, "x@hosted.example") == ("plaintext",))
