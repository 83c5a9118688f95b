"""Policies of which nobody can tell whether they are there: the set before stays in force until somebody can.
Standard: only ENOENT and ENOTDIR mean gone.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from relay.errors import ConfigError
from relay.files.quiet import GONE_QUIET_S
from relay.policy.load import load_policies
from relay.policy.site import SiteFacts
from tests.testlib.policy_files import AES, PEERS, write
from tests.testlib.watched_policies import levels
from tests.unit.policy.test_policy_vanishing import (
    CLEAR,
    PQC,
    Clock,
    clock as clock,  # a fixture
    in_force,
)

FILES = {"default.toml": CLEAR, "d1.example/x.toml": AES, "d1.example/y.toml": AES}
Fail = Callable[[str, int], None]


@pytest.fixture
def fail(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Fail]:
    """Has all calls for a name and below it fail with an error, or work again (0)."""
    failing: dict[str, int] = {}

    def failing_as_told(name: str) -> None:
        call: Any = getattr(os, name)

        def wrapped(path: Any, *rest: Any, **named: Any) -> Any:
            for place, number in failing.items():
                below = os.path.normpath(os.fspath(path)) + "/"
                if number and isinstance(path, str | Path) and below.startswith(f"{tmp_path / place}/"):
                    raise OSError(number, os.strerror(number), str(path))
            return call(path, *rest, **named)

        monkeypatch.setattr(os, name, wrapped)

    for name in ("stat", "lstat", "scandir", "open"):
        failing_as_told(name)
    yield failing.__setitem__
    failing.clear()


@pytest.mark.parametrize("number", [errno.EACCES, errno.EIO, errno.ESTALE, errno.ELOOP], ids=errno.errorcode.get)
@pytest.mark.parametrize("place", ["d1.example", "d1.example/x.toml", ""])
def test_what_cannot_be_looked_at_stays_in_force_and_is_said(
    tmp_path: Path, clock: Clock, fail: Fail, number: int, place: str
) -> None:
    policies = in_force(write(tmp_path, FILES), clock)
    before = policies().version
    write(tmp_path, {"d1.example/x.toml": PQC})
    fail(place, number)
    for _ in range(4):
        policies.look()
        clock.now += GONE_QUIET_S * 2
        policies.look()
        assert policies().version == before
    told = f"cannot be read: {os.strerror(number)}"
    assert [each for each in policies.problems if each.startswith(f"{tmp_path / place}") and each.endswith(told)]
    fail(place, 0)
    for _ in range(2):
        policies.look()
        clock.now += GONE_QUIET_S * 2
    assert (levels(policies, "x@d1.example"), policies.problems) == (("pqc",), ())


@pytest.mark.parametrize("place", ["", "d1.example", "d1.example/x.toml"])
def test_nothing_starts_with_a_part_of_the_set(tmp_path: Path, fail: Fail, place: str) -> None:
    write(tmp_path, FILES)
    fail(place, errno.EIO)
    with pytest.raises(ConfigError, match=f"{tmp_path / place}.*: cannot be read: Input/output error"):
        load_policies(tmp_path, PEERS)


def test_many_files_in_a_directory_that_fails_are_one_fault(tmp_path: Path, clock: Clock, fail: Fail) -> None:
    files = {f"d1.example/{number}.toml": AES for number in range(50)}
    policies = in_force(write(tmp_path, FILES | files), clock)
    fail("d1.example", errno.ESTALE)
    policies.look()
    clock.now += 1
    policies.look()
    assert policies.problems == (f"{tmp_path}/d1.example: cannot be read: {os.strerror(errno.ESTALE)}",)


def test_other_peers_meanwhile_leave_it_in_force_too(tmp_path: Path, clock: Clock, fail: Fail) -> None:
    policies = in_force(write(tmp_path, FILES), clock)
    fail("d1.example", errno.EACCES)
    policies.set_peers({"carol": ["carol.example"]})
    policies.look()
    clock.now += GONE_QUIET_S * 2
    policies.look()
    assert levels(policies, "x@d1.example") == ("aes",)
    fail("d1.example", 0)
    policies.look()
    clock.now += GONE_QUIET_S * 2
    policies.look()
    assert (levels(policies, "x@d1.example"), policies.problems) == (("aes",), ())


def test_whose_mail_a_peer_takes_counts_at_once_and_after_the_next_look(tmp_path: Path, clock: Clock) -> None:
    policies = in_force(write(tmp_path, {"bob.example.toml": AES}), clock)
    for domains, possible in ((["news.example"], ("aes",)), ([], ())):
        policies.set_peers(PEERS, SiteFacts(takes_from={"bob": frozenset(domains)}))
        for _ in range(3):
            assert policies().decide("x@news.example", "x@bob.example").possible == possible
            policies.look()
            clock.now += GONE_QUIET_S
