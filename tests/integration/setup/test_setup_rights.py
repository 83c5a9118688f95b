"""Who may read what `qumail-relay setup` writes, whose it is, and that a write is done whole or not at all.
Standard: deploy/INSTALL.md.
"""

from __future__ import annotations

import os
import shutil
import stat
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from relay.config import load_config
from relay.errors import ConfigError
from relay.setup.answers import Answers, KMEAccess, SitePaths
from relay.setup.files import Owner, put
from relay.setup.relay_toml import relay_toml
from relay.setup.site import write_configuration
from tests.integration.setup.answered import USUAL, run
from tests.testlib.identities import Identities

pytestmark = pytest.mark.usefixtures("without_the_end")


def test_nobody_else_can_read_anything(home: Path) -> None:
    run(home, *USUAL)
    for path in (home, *home.rglob("*")):
        forbidden = 0o077 if path != home else 0o022  # the test has made that one
        assert not stat.S_IMODE(path.stat().st_mode) & forbidden, path


@pytest.mark.parametrize("words", [["--yes", "--kme", "none"], ["--undo"]])
def test_a_user_who_may_not_read_the_configuration_is_told_so_in_one_line(tmp_path: Path, words: list[str]) -> None:
    if os.geteuid():
        pytest.skip("becoming another user needs root")
    become = (
        "import os, relay.cli, relay.cli.setup; os.setgroups([]); os.setgid(65534); os.setuid(65534); relay.cli.main()"
    )
    with tempfile.TemporaryDirectory() as name:
        directory = Path(name)
        directory.chmod(0o755)
        (directory / "etc").mkdir(mode=0o700)
        done = subprocess.run(
            [sys.executable, "-c", become, "setup", "--config", str(directory / "etc/relay.toml"), *words],
            capture_output=True, text=True, check=False, cwd="/",
            env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[3])},
        )  # fmt: skip
    assert done.returncode == 1
    assert "Traceback" not in done.stderr
    assert done.stderr.count("\n") == 1
    assert f"{directory}/etc" in done.stderr
    assert "root" in done.stderr


def test_where_root_sets_up_for_another_the_configuration_is_roots_and_the_state_is_theirs(tmp_path: Path) -> None:
    owner = Owner(65534, 65534)
    if not owner.is_another:
        pytest.skip("needs root")
    answers = Answers("a", ("a.example",), "1", None)
    write_configuration(answers, SitePaths(tmp_path / "a" / "relay.toml", tmp_path / "s"), owner)
    for path in (tmp_path / "a", *(tmp_path / "a").rglob("*")):
        found = path.stat()
        assert (found.st_uid, found.st_gid) == (0, 65534)
        assert stat.S_IMODE(found.st_mode) == (0o750 if path.is_dir() else 0o640)


def test_what_is_written_can_be_read_whatever_the_names_are(tmp_path: Path) -> None:
    places = SitePaths(tmp_path / "relay.toml", tmp_path / 'with "quotes" \\ and é')
    kme = KMEAccess("https://k", tmp_path, tmp_path, tmp_path, 'gr"oup')
    answers = Answers('na"me\\', ("bücher.example",), "sae\t1", kme)
    (tmp_path / "relay.toml").write_text(relay_toml(answers, places))
    config = load_config(tmp_path / "relay.toml")
    assert (config.site.name, config.site.sae_id) == ('na"me\\', "sae\t1")
    assert config.store.database == places.state / "relay.db"
    assert config.kmes["kme"].group == 'gr"oup'


def test_a_write_that_fails_leaves_the_file_that_was_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"before")

    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(ConfigError, match="No space left"):
        put(path, b"after", Owner.myself(), replace=True)
    assert [each.name for each in tmp_path.iterdir()] == ["file"]
    assert path.read_bytes() == b"before"


def _why_not_as_nobody() -> str:
    if os.geteuid():
        return "giving files to another user needs root"
    try:
        subprocess.run([sys.executable, "-c", ""], user="nobody", check=True)
    except PermissionError:
        return f"another user cannot run {sys.executable}"
    return ""


@pytest.mark.skipif(bool(_why_not_as_nobody()), reason=_why_not_as_nobody() or "another user can run it")
def test_keys_and_secret_belong_to_the_relays_user_who_can_serve_with_them(
    identities: Identities, monkeypatch: pytest.MonkeyPatch
) -> None:
    nobody = Owner.named("nobody")
    monkeypatch.undo()
    with tempfile.TemporaryDirectory() as name:
        directory = Path(name)
        directory.chmod(0o755)  # pytest's directories are root's alone
        shutil.copytree(identities.alice.directory, directory / "alice/state/identity")
        for path in (directory / "alice/state", *(directory / "alice/state").rglob("*")):
            os.chown(path, nobody.uid, nobody.gid)
        (directory / "alice").chmod(0o755)
        (directory / "alice/state").chmod(0o700)
        done = subprocess.run(
            [sys.executable, "-m", "relay", "setup", "--config", str(directory / "alice/relay.toml"), "--user", "nobody",
             "--yes", "--domain", "alice.example", "--kme", "none", "--postfix", "none"],
            env={**os.environ, "XDG_STATE_HOME": str(directory / "xdg"), "PYTHONPATH": str(Path(__file__).parents[3])},
            capture_output=True, text=True, check=False,
        )  # fmt: skip
        assert done.returncode == 0, done.stdout + done.stderr
        assert "ok     to alice.example: goes on as policy says: plaintext" in done.stdout
        assert "ok     store secret" in done.stdout
        for path in (directory / "alice/state").rglob("*"):
            assert path.stat().st_uid == nobody.uid, path
        assert (directory / "alice/relay.toml").stat().st_uid == 0
