"""What is announced before mail leaves: found after a kill, whatever stood in the same place before.
Standard: each test leaves a `Pending` as a killed process would.
"""

from __future__ import annotations

import errno
import itertools
import json
import os
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import NoReturn

import pytest

from relay.audit.chain import Chain
from relay.audit.entries import AddressHash
from relay.audit.reading import records
from relay.audit.recovery import take_over_announced
from relay.audit.verifying import verify
from relay.audit.writing import ANNOUNCED_SUFFIX, Audit, Pending
from relay.errors import StoreUnavailable
from relay.store.record_files import left_behind


@pytest.fixture
def pending(tmp_path: Path) -> Iterator[Pending]:
    made = Pending(tmp_path)
    yield made
    made.close()


def announced(directory: Path, pending: Pending) -> list[bytes]:
    """What the next process finds of this one, which ends now."""
    pending.close()
    return sorted(itertools.chain.from_iterable(file.records for file in left_behind(directory, ANNOUNCED_SUFFIX)))


def test_what_is_not_recorded_is_found_and_nothing_else(tmp_path: Path, pending: Pending) -> None:
    pending.recorded(pending.add(b"recorded, and longer than what comes"), 1)
    pending.add(b"left")
    assert announced(tmp_path, pending) == [b"left"]


def test_a_file_is_written_anew_once_all_of_it_is_recorded(tmp_path: Path, pending: Pending) -> None:
    """However much passes, there is room for what has not been recorded, and what is behind it reveals nothing."""
    record = b"x" * 100_000
    for number in range(1000):
        places = [pending.add(record), pending.add(b"y%d" % number)]
        pending.turn()
        for where in places:
            pending.recorded(where, 1)
    assert len([*tmp_path.iterdir()]) <= 2
    pending.add(b"last")
    assert announced(tmp_path, pending) == [b"last"]


def test_what_is_announced_while_others_are_recorded_stays(tmp_path: Path, pending: Pending) -> None:
    """A next hop that takes long over one mail costs one file, in which that stands with what is recorded."""
    pending.add(b"slow")
    for _ in range(1000):
        before = [pending.add(b"x" * 70_000) for _ in range(2)]
        pending.turn()
        for where in before:
            pending.recorded(where, 1)
    assert len([*tmp_path.iterdir()]) <= 3
    assert b"slow" in announced(tmp_path, pending)


def test_what_is_larger_than_a_file_has_one_of_its_own(tmp_path: Path, pending: Pending) -> None:
    large = b"z" * (5 * 2**20)
    where = pending.add(large)
    pending.add(b"small")
    assert announced(tmp_path, pending) == [b"small", large]
    assert where.open == 1


async def test_a_record_that_cannot_be_made_stands_in_nobodys_way(tmp_path: Path) -> None:
    audit = Audit(Chain(tmp_path / "audit"), AddressHash(None))

    def broken() -> bytes:
        raise RuntimeError("a fault of ours")

    audit.note(broken)
    audit.note(lambda: b'"event": "mail"')
    await audit.close()
    assert [each["event"] for each in records(tmp_path / "audit")] == ["gap", "mail"]
    assert not verify(tmp_path / "audit").problems


ANNOUNCED = {
    "when": 1_700_000_000_000_000_000, "behind": [1, 0], "recipients": ["ben@bob.example"], "names": ["ab" * 32],
    "mail": "1f",
}  # fmt: skip


def left(directory: Path, record: dict[str, object]) -> None:
    """What a killed process has announced."""
    killed = Pending(directory)
    killed.add(json.dumps(record).encode())
    killed.close()


async def all_have_it(names: Collection[str]) -> Collection[str]:
    return names


async def test_what_cannot_be_written_yet_is_written_once_and_says_who_has_the_mail(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    left(tmp_path / "pending", ANNOUNCED)
    audit = Audit(Chain(tmp_path / "audit"), AddressHash(None))

    def full(*_: object, **__: object) -> NoReturn:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as disk:
        disk.setattr(audit.chain, "append", full)
        for _ in range(3):
            with pytest.raises(StoreUnavailable):
                await take_over_announced(tmp_path / "pending", audit, all_have_it)
    await take_over_announced(tmp_path / "pending", audit, all_have_it)
    await audit.close()
    [record] = records(tmp_path / "audit")
    assert (record["outcome"], record["recipients"]) == ("delivered", ["ben@bob.example"])
    assert not [*(tmp_path / "pending").iterdir()]


@pytest.mark.parametrize(
    "changed",
    [
        {"when": "x"},
        {"when": 10**40},
        {"behind": 7},
        {"behind": ["a", 0]},
        {"names": []},
        {"recipients": [7]},
        {"mail": []},
    ],
)
async def test_an_announcement_of_another_form_stays_and_is_in_nobodys_way(
    tmp_path: Path, changed: dict[str, object]
) -> None:
    left(tmp_path / "pending", ANNOUNCED | changed)
    left(tmp_path / "pending", ANNOUNCED)
    audit = Audit(Chain(tmp_path / "audit"), AddressHash(None))
    await take_over_announced(tmp_path / "pending", audit, all_have_it)
    await audit.close()
    assert len(list(records(tmp_path / "audit"))) == 1
    assert len([*(tmp_path / "pending").iterdir()]) == 1
