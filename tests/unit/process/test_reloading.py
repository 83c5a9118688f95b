"""When a serving relay reads certificates, keys and documents again: not while they are edited, and once for each edit.
Standard: relay/README.md, What is read again; the clock is the test's own.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from relay.files.quiet import GONE_QUIET_S, LOOK_S, QUIET_S
from relay.files.stamps import Stamps, stamps_in
from relay.process.reloading import Reloading
from tests.testlib.nobody import as_nobody, by_root

Pass = Callable[[float], int]


class Certificates:
    """What is read from a directory; counts how often it was."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self.times = 0
        self.read_at = self.stamps()

    def stamps(self) -> Stamps:
        return stamps_in(self._directory)

    def reload(self) -> None:
        self.read_at = self.stamps()
        self.times += 1


@pytest.fixture(name="file")
def _file(tmp_path: Path) -> Path:
    file = tmp_path / "in" / "certificate.pem"
    file.parent.mkdir()
    file.write_text("before")
    return file


@pytest.fixture(name="after")
async def _after(file: Path) -> Pass:
    """Lets seconds pass in which the relay looks as often as it does; returns how often the files were read."""
    now = 1000.0
    certificates = Certificates(file.parent)
    nothing: Any = None
    no_sites: Any = SimpleNamespace(read_at={}, stamps=dict)
    reloading = Reloading(nothing, no_sites, nothing, [certificates], lambda: now)

    def after(seconds: float) -> int:
        nonlocal now
        end = now + seconds
        while now < end:
            reloading.look()
            now += LOOK_S
        return certificates.times

    assert after(2 * GONE_QUIET_S) == 0
    return after


async def test_a_file_is_read_once_when_it_has_not_changed_for_a_moment(file: Path, after: Pass) -> None:
    for number in range(5):
        file.write_text(f"half {number}")
        assert after(QUIET_S * 0.9) == 0
    assert after(QUIET_S * 2) == 1
    assert after(GONE_QUIET_S * 2) == 1


async def test_a_file_that_vanishes_is_gone_after_a_longer_moment(file: Path, after: Pass) -> None:
    file.unlink()
    assert after(GONE_QUIET_S * 0.9) == 0
    assert after(GONE_QUIET_S * 0.5) == 1


async def test_a_file_that_is_back_in_time_was_not_gone(file: Path, after: Pass) -> None:
    file.unlink()
    assert after(GONE_QUIET_S * 0.9) == 0
    file.write_text("after")
    assert after(QUIET_S * 0.9) == 0
    assert after(QUIET_S * 2) == 1


@by_root
async def test_a_directory_that_cannot_be_searched_is_an_edit_and_none_of_its_files_is_gone(
    file: Path, after: Pass
) -> None:
    file.parent.parent.chmod(0o755)
    file.parent.chmod(0o700)
    with as_nobody():
        assert after(QUIET_S * 2) == 1
