"""Root pastes what `check` and the errors print, while the relay's account exchanges what it is about.
Standard: sh(1) and bash(1), which run the lines as they were printed.
"""

from __future__ import annotations

import ctypes
import os
import re
import signal
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

from relay.files import permissions, rights
from relay.files.commands import as_user, command
from tests.testlib.as_root import attempts, state_of
from tests.testlib.nobody import NOBODY, as_nobody, by_root
from tests.testlib.roots_site import (
    Place,
    place as place,  # a fixture
)

_AT_FDCWD, _RENAME_EXCHANGE = -100, 2
ATTEMPTS = 150
NAMES = (
    "$(id>x).toml", "`id>x`.toml", "a b.toml", "a';id>x;'.toml", 'a"$(id>x)".toml', "-rf.toml", "a\nid>x\n.toml",
    "a\x1b]0;x\x07.toml", "a\\$(id>x).toml", "a\u202ex.toml", "a'\nid>x;'.toml", "~root.toml", "*.toml", "a\x9b31m.toml",
)  # fmt: skip


@contextmanager
def exchanging(*pairs: tuple[Path, Path]) -> Iterator[None]:
    """The relay's account, which exchanges these as fast as it can."""
    libc = ctypes.CDLL(None)
    adversary = os.fork()
    if not adversary:
        os.setgroups([])
        os.setgid(NOBODY.pw_gid)
        os.setuid(NOBODY.pw_uid)
        while True:
            for one, other in pairs:
                libc.renameat2(_AT_FDCWD, os.fsencode(one), _AT_FDCWD, os.fsencode(other), _RENAME_EXCHANGE)
    try:
        yield
    finally:
        os.kill(adversary, signal.SIGKILL)
        os.waitpid(adversary, 0)


def pasted(line: str, shell: str = "bash", cwd: Path | None = None) -> None:
    subprocess.run([shell, "-c", line], cwd=cwd or "/", capture_output=True, check=False, timeout=30)


@pytest.mark.promise("Commands shown to root are safe to paste")
@by_root
@pytest.mark.parametrize("shell", ["bash", "sh"])
@pytest.mark.parametrize("name", NAMES)
def test_a_name_is_one_word_whatever_is_in_it(place: Place, name: str, shell: str) -> None:
    file = place.site / "policies" / name
    file.write_text("")
    file.chmod(0o666)
    (cwd := place.site.parent / "cwd").mkdir()
    line = rights.typed_by_root(file, "chmod", "o-w")
    assert line.isprintable()
    pasted(line, shell, cwd)
    assert list(cwd.iterdir()) == []
    if shell == "bash":
        assert file.stat().st_mode & 0o777 == 0o664


@by_root
def test_check_prints_a_planted_name_so_that_root_can_paste_it(place: Place) -> None:
    planted = place.site / "policies" / "$(touch x).toml"
    planted.write_text('levels = ["plaintext"]\nreason = "inside"\n')
    planted.chmod(0o666)
    said = " ".join(attempts("check", *place.config, environment={"COLUMNS": "1000"}).said.split())
    assert f"everybody can write to it: chmod o-w '{planted}'" in said


@pytest.mark.promise("Commands shown to root are safe to paste")
@by_root
@pytest.mark.parametrize(
    "planted", ["link", "hard link", "link in a link's directory", "exchanged", "directory exchanged"]
)
@pytest.mark.parametrize("kind", ["owner", "mode"])
def test_no_root_file_changes_hands_by_what_an_error_says_to_type(place: Place, planted: str, kind: str) -> None:
    """The secret belongs to root, or others can read it; the relay's account leads the command to a file of root's."""
    secret, victim = place.state / "site.secret", place.file
    (below := place.state / "below").mkdir()
    os.chown(below, NOBODY.pw_uid, NOBODY.pw_gid)
    target = below / victim.name if "directory" in planted else secret
    target.write_bytes(b"x")
    os.chown(target, *((0, 0) if kind == "owner" else (NOBODY.pw_uid, NOBODY.pw_gid)))
    target.chmod(0o644)
    with as_nobody():
        status = target.stat()
        line = permissions.keep_to_us(target, status) if kind == "mode" else permissions.give_to_us(target)
    before = state_of(place.victim)
    pairs: list[tuple[Path, Path]] = []
    with suppress(OSError):
        if planted == "link":
            target.unlink()
            target.symlink_to(victim)
        elif planted == "hard link":
            target.unlink()
            target.hardlink_to(victim)
            before = state_of(place.victim)
        elif planted == "link in a link's directory":
            target.unlink()
            below.rmdir()
            below.symlink_to(place.victim)
        else:
            other = place.state / "other"
            other.symlink_to(place.victim if planted == "directory exchanged" else victim)
            os.chown(other, NOBODY.pw_uid, NOBODY.pw_gid, follow_symlinks=False)
            pairs.append((below if planted == "directory exchanged" else target, other))
    with exchanging(*pairs):
        for _ in range(ATTEMPTS if pairs else 1):
            pasted(line)
            assert state_of(place.victim) == before, line


def changes_to(victim: Path, said: str) -> list[str]:
    """The commands in a text that change a file or directory there."""
    return re.findall(rf"\b(?:chown|chgrp|chmod|setfacl)\b [^;,]*{victim}\b", " ".join(said.split()))


@by_root
@pytest.mark.parametrize(
    "name", ["site.secret", "relay.db", "identity", "peers/x.json", "audit", "keys.spool", "users"]
)
def test_nothing_is_to_be_typed_about_what_a_link_of_the_relays_account_leads_to(place: Place, name: str) -> None:
    place.victim.chmod(0o700)
    planted = place.state / name
    planted.parent.mkdir(exist_ok=True)
    if planted.is_dir():
        planted.rename(place.state / "away")
    planted.unlink(missing_ok=True)
    planted.symlink_to(place.file)
    place.give()
    said = attempts("check", *place.config, environment={"COLUMNS": "1000"}).said
    assert str(planted) in said
    assert changes_to(place.victim, said) == []
    assert f"a link leads there, {planted}" in said or str(place.victim) not in said


@by_root
def test_nor_while_that_account_exchanges_the_link_as_fast_as_it_can(place: Place) -> None:
    place.victim.chmod(0o700)
    planted = place.state / "link"
    planted.symlink_to(place.file)
    place.give()
    with exchanging((place.state / "site.secret", planted)):
        ended = attempts("check", *place.config, number=12, environment={"COLUMNS": "1000"}).ended
    assert any(str(place.victim) in each.said for each in ended), "the link was there at times"
    assert [changes_to(place.victim, each.said) for each in ended] == [[]] * 12


@by_root
def test_what_an_error_says_to_type_does_what_it_says(place: Place) -> None:
    secret = place.state / "site.secret"
    os.chown(secret, 0, 0)
    secret.chmod(0o644)
    with as_nobody():
        line = permissions.keep_to_us(secret, secret.stat())
    pasted(line, "sh")
    assert (secret.stat().st_uid, secret.stat().st_mode & 0o777) == (NOBODY.pw_uid, 0o600)
    (place.site / "relay.toml").chmod(0o666)
    said = attempts("check", *place.config, environment={"COLUMNS": "1000"}).said
    match = re.search(r"chmod o-w [^\s,]+", said)
    assert match is not None, said
    pasted(match[0], "sh")
    assert (place.site / "relay.toml").stat().st_mode & 0o777 == 0o664


def test_a_command_is_printed_with_each_word_quoted_and_paths_are_no_options() -> None:
    assert command("chmod", "o-w", Path("-R")) == "chmod o-w ./-R"
    assert command("x", "a b", "c'd") == "x 'a b' 'c'\"'\"'d'"
    assert as_user("ann", "true") == "runuser --pty -u ann -- true"
