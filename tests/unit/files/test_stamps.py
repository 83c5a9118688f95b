"""What the file system says of a file: it is there, it is gone, or nobody can tell; and what to do about the last.
Standard: ENOENT and ENOTDIR alone mean gone (path_resolution(7)); a remedy takes nothing away from anybody else.
"""

from __future__ import annotations

import errno
import os
import re
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from relay.errors import ConfigError
from relay.files import permissions
from relay.files.permissions import cause, denial_at
from relay.files.stamps import Unknown, files_in, is_there, read_regular, stamp_of, stamp_of_directory, stamps_in
from relay.identity import files
from relay.store import secret_file
from tests.testlib.nobody import NOBODY, as_nobody, by_root


@pytest.fixture
def top() -> Iterator[Path]:
    """A directory that others can search, with one/two/three.toml in it."""
    with tempfile.TemporaryDirectory() as name:
        directory = Path(name)
        directory.chmod(0o755)
        (directory / "one/two").mkdir(parents=True)
        (directory / "one/two/three.toml").write_text("")
        yield directory


def test_only_what_is_not_there_is_gone(top: Path) -> None:
    assert stamp_of(top / "one/two/three.toml") == stamp_of(str(top / "one/two/three.toml"))
    assert [stamp_of(top / name) for name in ("four", "four/five", "one/two/three.toml/four")] == [None] * 3
    (top / "loop").symlink_to("loop")
    (top / "dangling").symlink_to("nowhere")
    assert stamp_of(top / "loop") == stamp_of_directory(top / "loop") == Unknown(errno.ELOOP)
    assert isinstance(stamp_of(top / "loop", follow=False), tuple)
    assert stamp_of(top / "dangling") is None
    assert stamp_of_directory(top / "one/two/three.toml") is None


@by_root
@pytest.mark.parametrize("closed", ["one", "one/two"])
def test_nobody_can_tell_what_is_in_a_directory_that_cannot_be_searched(top: Path, closed: str) -> None:
    (top / closed).chmod(0o644)
    (top / "link").symlink_to("one/two/three.toml")
    with as_nobody():
        for name in ("one/two/three.toml", "one/two/four", "link"):
            assert stamp_of(top / name) == Unknown(errno.EACCES)
            with pytest.raises(
                ConfigError, match=rf"{closed}: cannot be searched by nobody.*: chmod o\+x {top}/{closed}"
            ):
                is_there(top / name)
        assert stamp_of_directory(top / "one/two") == Unknown(errno.EACCES)
        assert stamps_in(top / "one/two") == {top / "one/two": Unknown(errno.EACCES)}
        with pytest.raises(ConfigError, match=f"{top}/{closed}: cannot be searched by nobody"):
            files_in(top / "one/two")


@by_root
def test_a_directory_that_cannot_be_listed_is_not_empty(top: Path) -> None:
    assert files_in(top / "one/two", "*.toml") == [top / "one/two/three.toml"]
    assert (files_in(top / "one/two", "*.json"), files_in(top / "gone")) == ([], [])
    (top / "one/two").chmod(0o711)
    with as_nobody():
        assert stamps_in(top / "one/two") == {top / "one/two": Unknown(errno.EACCES)}
        with pytest.raises(ConfigError, match="two: cannot be read by nobody"):
            files_in(top / "one/two")


@pytest.mark.parametrize("number", [errno.EIO, errno.ESTALE, errno.ENAMETOOLONG])
def test_what_fails_otherwise_is_not_gone(top: Path, number: int, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*_: Any, **__: Any) -> os.stat_result:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "stat", fails)
    monkeypatch.setattr(Path, "stat", fails)
    assert stamp_of(top / "one") == stamp_of_directory(top / "one") == Unknown(number)
    with pytest.raises(ConfigError, match=f"{top}/one: cannot be read: {os.strerror(number)}$"):
        is_there(top / "one")
    with pytest.raises(ConfigError, match=f"{top}/one: cannot be read: {os.strerror(number)}$"):
        files_in(top / "one")


def _owned_by_nobody(path: Path) -> None:
    os.chown(path, NOBODY.pw_uid, -1)
    path.chmod(0o055)


def _in_its_group(path: Path) -> None:
    os.chown(path, -1, NOBODY.pw_gid)
    path.chmod(0o640)


def _of_another_user(path: Path) -> None:
    os.chown(path, 1, 1)
    path.chmod(0o750)


@pytest.fixture(autouse=True)
def _acl_tools(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "which", "/usr/bin/{}".format)


REMEDIES: list[tuple[str, Callable[[Path], None], str]] = [
    ("one", lambda path: path.chmod(0o744), "mode 0744, owner root:root): chmod o+x {}"),
    ("one", lambda path: path.chmod(0o700), "mode 0700, owner root:root): setfacl -m u:nobody:x {}"),
    ("one", lambda path: path.chmod(0o750), "mode 0750, owner root:root): setfacl -m u:nobody:x {}"),
    ("one", _owned_by_nobody, "mode 0055, owner nobody:root): runuser --pty -u nobody -- chmod u+x {}"),
    ("one", _in_its_group, "mode 0640, owner root:nogroup): chmod g+x {}"),
    ("one", _of_another_user, "mode 0750, owner daemon:daemon): runuser --pty -u daemon -- setfacl -m u:nobody:x {}"),
    ("one/two", lambda path: path.chmod(0), "mode 0000, owner root:root): systemd hides it from the relay"),
    ("one/two", lambda path: path.chmod(0o711), "mode 0711, owner root:root): setfacl -m u:nobody:r {}"),
]


@by_root
@pytest.mark.parametrize(("closed", "close", "said"), REMEDIES)
@pytest.mark.parametrize("way", ["one/two", "./one/../one/two", "link", "far"])
def test_the_part_that_denies_access_is_named_with_what_to_do(
    top: Path, closed: str, close: Callable[[Path], None], said: str, way: str
) -> None:
    (top / "link").symlink_to("one/two")
    (top / "far").symlink_to(top / "link")
    close(top / closed)
    with as_nobody():
        denial = str(denial_at(top / way))
        assert denial_at(top) is None
    assert said.format(top / closed) in denial
    assert denial.startswith(f"{top / closed}: cannot be ")


@by_root
def test_where_the_tools_for_acls_are_missing_the_remedy_installs_them(
    top: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As on a bare Debian."""
    monkeypatch.setattr(shutil, "which", lambda _: None)
    (top / "one").chmod(0o700)
    with as_nobody():
        assert f": apt install acl && setfacl -m u:nobody:x {top / 'one'}" in str(denial_at(top / "one/two"))


@by_root
def test_nothing_of_roots_home_is_given_away(monkeypatch: pytest.MonkeyPatch, top: Path) -> None:
    monkeypatch.setattr(permissions, "HOMES", (str(top),))
    (top / "one").chmod(0o700)
    with as_nobody(group=1):
        assert str(denial_at(top / "one/two")).endswith("put what the relay needs elsewhere")


@by_root
def test_a_file_of_roots_is_given_to_the_group_of_its_own_that_the_relay_has(top: Path) -> None:
    (top / "one").chmod(0o700)
    with as_nobody(group=1):
        assert str(denial_at(top / "one/two")).endswith(f"chgrp daemon {top}/one && chmod g+x {top}/one")


@by_root
def test_a_remedy_opens_what_is_private_to_nobody_else(top: Path) -> None:
    file = top / "one/two/three.toml"
    denied = PermissionError(errno.EACCES, os.strerror(errno.EACCES))
    file.chmod(0o600)
    with as_nobody():
        assert cause(file, denied).endswith(f"setfacl -m u:nobody:r {file}")
        assert cause(file, denied, private=True).endswith(f"(mode 0600, owner root:root): chown -h nobody: {file}")
    os.chown(top / "one", 1, 1)
    (top / "one").chmod(0o700)
    with as_nobody():
        assert cause(file, denied, private=True).endswith("as root: runuser --pty -u daemon -- qumail-relay ...")
    assert cause(file, denied, "") == f"{file}: Permission denied"


def test_a_file_that_stands_where_a_directory_should_denies_nothing(tmp_path: Path) -> None:
    (tmp_path / "file").touch(mode=0o600)
    (tmp_path / "link").symlink_to("file/below")
    assert denial_at(tmp_path / "link") is None


@by_root
def test_to_open_what_a_link_leads_to_is_advised_only_if_the_link_is_meant(top: Path) -> None:
    (top / "secret").touch(mode=0o600)
    (top / "a.toml").symlink_to("secret")
    with as_nobody():
        assert ": a link leads there; if that is meant: setfacl" in str(denial_at(top / "a.toml"))
        assert "a link" not in str(denial_at(top / "secret"))


def test_what_is_no_regular_file_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")
    with pytest.raises(OSError, match="not a regular file"):
        read_regular(tmp_path / "fifo")
    (tmp_path / "file").write_bytes(b"x")
    with (tmp_path / "holes").open("wb") as holes:
        holes.truncate(20 * 2**30)
    with pytest.raises(OSError, match="File too large"):
        read_regular(tmp_path / "holes")
    assert read_regular(tmp_path / "file") == b"x"


@by_root
@pytest.mark.parametrize("read", [secret_file.read, files.read_secret])
def test_what_root_shows_to_the_relays_group_alone_is_read_and_else_the_remedy_works(
    top: Path, read: Callable[[Path], bytes]
) -> None:
    file = top / "one/two/three.toml"
    file.write_text("secret")
    os.chown(file, 0, NOBODY.pw_gid)
    file.chmod(0o640)
    with as_nobody():
        assert read(file) == b"secret"
    for group, mode in ((NOBODY.pw_gid, 0o660), (NOBODY.pw_gid, 0o644), (0, 0o640)):
        os.chown(file, 0, group)
        file.chmod(mode)
        with as_nobody(), pytest.raises(ConfigError) as caught:
            read(file)
        subprocess.run(["sh", "-ec", re.sub(r".*: (?=(chown|chmod) )", "", str(caught.value))], check=True)
        with as_nobody():
            assert read(file) == b"secret"
