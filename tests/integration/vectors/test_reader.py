"""The independent reader over all test vectors: the same original for the same recipients, or the same refusal.
Standard: relay/FORMAT.md; tests/vectors/README.md says what a file holds.
"""

from __future__ import annotations

import hashlib
import subprocess
import sys
from pathlib import Path

import pytest

from tests.reader import Delivered, Held, Outcome, PassedOn, receive, vector
from tests.reader.mailboxes import mailbox
from tests.reader.memory import Memory
from tests.reader.vector import Vector

FILES = sorted(vector.VECTORS.glob("*.txt"))
STEPS = {  # of section 9, in which each kind may come out
    "bad structure": {1, 5, 8, 9, 10},
    "unknown peer": {2},
    "not accepted": {3, 10},
    "key destroyed": {4},
    "key used": {4, 7},
    "bad tag": {6},
    "bad signature": {9},
    "not named": {10, 11},
    "outside window": {10},
    "replayed": {11},
}


def _received(case: Vector) -> Outcome:
    recipients = case.several("recipient")
    return receive(case.message, case.site, case.keys, case.memory, case.now, recipients)


def _kind(outcome: Outcome) -> str:
    """The word that tests/vectors/README.md has for an outcome."""
    match outcome:
        case Delivered():
            return "success"
        case PassedOn():
            return "not for us"
        case Held():
            return "no key"
    return outcome.kind if outcome.step in STEPS[outcome.kind] else f"{outcome.kind} in step {outcome.step}"


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_each_vector_ends_as_its_file_says_and_what_it_delivers_is_delivered_to_nobody_again(path: Path) -> None:
    case = vector.read(path)
    outcome = _received(case)
    assert _kind(outcome) == case.one("expect")
    _check_bindings(case, outcome)
    if isinstance(outcome, Delivered):
        assert hashlib.sha256(outcome.original).hexdigest() == case.one("sha256")
        assert (outcome.peer, outcome.sender) == (case.one("by"), case.one("from"))
        assert outcome.protection == case.one("level")
        assert outcome.fingerprint.hex() == case.one("fingerprint")
        for name, addresses in (("due", outcome.recipients), ("served", outcome.served), ("aside", outcome.aside)):
            assert {*map(mailbox, addresses)} == {*map(mailbox, case.several(name))}
        _check_that_nobody_gets_it_again(case, outcome)
    else:
        assert outcome.memory.seen == case.memory.seen


def _check_bindings(case: Vector, outcome: Outcome) -> None:
    """What the file says is bound by now, and nothing else."""
    before, after = case.memory, outcome.memory
    newly = {
        key: (binding.level, binding.fingerprints - getattr(before.bound.get(key), "fingerprints", frozenset()))
        for key, binding in after.bound.items()
        if binding != before.bound.get(key)
    }
    binds = vector.bound(case.several("binds"))
    assert newly == {key: (binding.level, binding.fingerprints) for key, binding in binds.items()}


def _check_that_nobody_gets_it_again(case: Vector, first: Delivered) -> None:
    """What each success leaves behind makes of the same message one that everybody has."""
    again = receive(case.message, case.site, case.keys, first.memory, case.now, case.several("recipient"))
    assert isinstance(again, Delivered)
    assert again.recipients == ()
    assert set(again.served) == {*first.recipients, *first.served}
    assert again.memory.bound == first.memory.bound


@pytest.mark.parametrize("name", ["pqc-for-eve", "rsa-for-eve"])
def test_what_a_relay_sealed_for_our_users_and_nobody_here_can_open_is_not_passed_on(name: str) -> None:
    case = vector.read(vector.VECTORS / f"{name}.txt")
    marked = b"X-QuMail-Sealed: of another site\r\n" + case.message
    for recipients, passed_on in ((["ben@bob.example"], False), (["carl@carol.example"], True)):
        outcome = receive(marked, case.site, case.keys, case.memory, case.now, recipients)
        assert isinstance(outcome, PassedOn) is passed_on


def test_the_reader_imports_nothing_of_the_relay() -> None:
    program = (
        "import pkgutil, importlib, sys, tests.reader\n"
        "for module in pkgutil.iter_modules(tests.reader.__path__): importlib.import_module('tests.reader.' + module.name)\n"
        "print(*sorted(name for name in sys.modules if name.partition('.')[0] == 'relay'))"
    )
    root = Path(__file__).parents[3]
    done = subprocess.run([sys.executable, "-c", program], cwd=root, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == ""


def test_memory_is_a_value_that_no_message_changes() -> None:
    case = vector.read(vector.VECTORS / "aes-plain.txt")
    memory = case.memory
    _received(case)
    assert memory == Memory()
