"""Files that a POSIX ACL lets others use are not for us alone, though their mode looks as if.
Standard: acl(5): the group bits of the mode are the mask, the most that anybody whom the ACL names may do.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from tempfile import mkdtemp

import pytest

from relay.errors import ConfigError
from relay.files.rights import others_can_write
from relay.identity.files import read_secret
from relay.keys.psk import PSK
from relay.store.secret_file import read
from tests.testlib.acl import let
from tests.testlib.nobody import NOBODY, as_nobody, by_root

EVE = 54321
pytestmark = by_root


@pytest.fixture
def path() -> Iterator[Path]:
    """A file that is root's, and that the relay's group may read, where everybody may look."""
    directory = Path(mkdtemp(dir="/run"))  # all directories above it are root's alone
    directory.chmod(0o755)
    file = directory / "site.secret"
    try:
        file.write_text("ab" * 32)
        os.chown(file, 0, NOBODY.pw_gid)
        file.chmod(0o640)
        yield file
    finally:
        shutil.rmtree(directory)


@pytest.mark.parametrize("group", [False, True])
def test_a_secret_that_root_shows_the_relay_and_an_ACL_somebody_else_is_refused(path: Path, group: bool) -> None:
    with as_nobody():
        assert read(path) == read_secret(path) == b"ab" * 32
    let(path, EVE, os.R_OK, group=group)
    with as_nobody():
        for reading in (read, read_secret):
            with pytest.raises(ConfigError, match=r"mode 0640 lets others read or write it: .*chmod 600"):
                reading(path)


def test_a_secret_that_an_ACL_lets_the_relay_alone_read_is_fine(path: Path) -> None:
    let(path, NOBODY.pw_uid, os.R_OK)
    with as_nobody():
        assert read(path) == b"ab" * 32


@pytest.mark.parametrize("group", [False, True])
def test_a_pre_shared_key_that_an_ACL_shows_somebody_is_refused(path: Path, group: bool) -> None:
    os.chown(path, 0, 0)
    assert PSK("us", path).read()
    let(path, EVE, os.R_OK, group=group)
    with pytest.raises(ConfigError, match=f"{EVE} may use it; make it"):
        PSK("us", path).read()


@pytest.mark.parametrize("group", [False, True])
@pytest.mark.parametrize("at", ["file", "directory"])
@pytest.mark.parametrize("owned", [False, True], ids=["of root's group", "of another group"])
def test_who_may_write_by_an_ACL_can_write(path: Path, group: bool, at: str, owned: bool) -> None:
    written = path if at == "file" else path.parent
    os.chown(written, 0, NOBODY.pw_gid if owned else 0)
    os.chown(path, 0, NOBODY.pw_gid if owned and at == "file" else 0)
    let(written, EVE, os.R_OK | os.X_OK, group=group)
    assert others_can_write(path) == "", "who may only read does no harm"
    let(written, EVE, os.R_OK | os.W_OK, group=group)
    assert f"{'group' if group else 'user'} {EVE}, by an ACL, can write to {written}: " in (
        said := others_can_write(path)
    )
    assert f"setfacl -x {'g' if group else 'u'}:{EVE} {written}" in said
    assert others_can_write(path, (EVE,)) == "" or group or owned


def test_rights_that_the_mask_takes_away_are_none(path: Path) -> None:
    os.chown(path, 0, 0)
    let(path, EVE, os.R_OK | os.W_OK)
    path.chmod(0o600)
    assert others_can_write(path) == ""
