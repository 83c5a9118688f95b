"""The user of a command: root goes on as the relay's user, others hear as whom to run it, and nobody to give files away.
Standard: deploy/RUNNING.md, Rights.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from relay.errors import ConfigError
from relay.identity import files
from relay.setup.files import Owner
from relay.store.secret import SiteSecret

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="giving files to another user needs root")

LOADED = (
    "import aiosqlite, sqlalchemy.dialects.sqlite.aiosqlite, relay.process.app, relay.cli.check, relay.cli.keys_plan"
)
"""Before root is left: this Python may be one that only root can read."""
RELAY_TOML = """\
[site]
name = "alice"
domains = ["alice.example"]
sae_id = "2"
[outgoing]
listen = "127.0.0.1:0"
next_hop = "127.0.0.1:1"
[policies]
directory = "policies"
[store]
database = "state/relay.db"
secret = "state/site.secret"
"""


@pytest.fixture
def site() -> Iterator[Path]:
    """A site's directory: the configuration is root's, the state is nobody's."""
    with tempfile.TemporaryDirectory() as name:
        directory = Path(name)
        directory.chmod(0o755)  # pytest's directories are root's alone
        (directory / "relay.toml").write_text(RELAY_TOML)
        (directory / "policies").mkdir()
        state = directory / "state"
        state.mkdir(mode=0o700)
        SiteSecret.load_or_create(state / "site.secret")
        for path in (state, state / "site.secret"):
            os.chown(path, nobody().uid, nobody().gid)
        yield directory


def nobody() -> Owner:
    return Owner.named("nobody")


def run(site: Path, *words: str, before: str = "") -> subprocess.CompletedProcess[str]:
    program = f"{LOADED}; import os, relay.cli; {before} relay.cli.main()"
    return subprocess.run(
        [sys.executable, "-c", program, *words, "--config", str(site / "relay.toml")],
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[3])},
        capture_output=True, text=True, check=False, cwd="/",
    )  # fmt: skip


@pytest.mark.parametrize("words", [("quarantine", "list"), ("keys", "status"), ("keys", "rotate-secret")])
def test_root_runs_what_needs_the_relays_files_as_the_relays_user(site: Path, words: tuple[str, ...]) -> None:
    done = run(site, *words)
    assert done.returncode == 0, done.stderr
    assert {path.stat().st_uid for path in (site / "state").rglob("*")} == {nobody().uid}


def test_root_sees_in_check_what_the_relay_sees(site: Path) -> None:
    (site / "policies/alice.example.toml").write_text('levels = ["plaintext"]\nreason = "inside"\n')
    (site / "policies/alice.example.toml").chmod(0o600)
    (site / "policies/d1.example").mkdir(mode=0o755)
    (site / "policies/d1.example").chmod(0o644)
    said = " ".join(run(site, "check").stdout.split())
    assert "ok store secret" in said
    assert "Permission denied" in said
    assert f"chmod o+x {site}/policies/d1.example" in said
    (site / "policies/d1.example").chmod(0o755)
    said = " ".join(run(site, "check").stdout.split())
    assert "alice.example.toml" in said.split("WRONG policies")[1]


def test_policy_check_by_root_says_all_that_the_relay_may_not_read(site: Path) -> None:
    policies = site / "policies"
    (policies / "bob.example").mkdir()
    for name in ("alice.example.toml", "bob.example/ben.toml", "bob.example/eve.toml"):
        (policies / name).write_text('levels = ["plaintext"]\nreason = "inside"\n')
    assert run(site, "policy", "check").returncode == 0
    closed = policies / "alice.example.toml", policies / "bob.example/ben.toml"
    for path in closed:
        path.chmod(0o600)
    done = run(site, "policy", "check")
    assert done.returncode == 1
    said = ": cannot be read by nobody: Permission denied (mode 0600, owner root:root): "
    assert [line.partition(said)[0] for line in done.stderr.splitlines()] == list(map(str, closed))
    assert [
        line.endswith(f"setfacl -m u:nobody:r {path}")
        for line, path in zip(done.stderr.splitlines(), closed, strict=True)
    ]
    os.chown(closed[0], nobody().uid, -1)
    (policies / "bob.example").chmod(0o700)
    done = run(site, "policy", "check")
    [line] = done.stderr.splitlines()
    assert line.startswith(
        f"{policies / 'bob.example'}: cannot be read by nobody: Permission denied (mode 0700, owner root:root)"
    )


def test_another_user_hears_as_whom_to_run_it(site: Path) -> None:
    done = run(site, "keys", "rotate-secret", before="os.setgroups([]); os.setgid(1); os.setuid(1);")
    assert done.returncode == 1
    assert done.stderr.endswith("Permission denied: run this as root, or as the relay's user\n")


def test_a_child_of_setup_is_of_the_user_that_setup_names_not_of_the_owner_of_the_state(site: Path) -> None:
    done = run(site, "--as-user", "1", "1", "keys", "rotate-secret")
    assert done.returncode == 1
    assert done.stderr.endswith("Permission denied: run this as root, or as the relay's user\n")


def test_nobody_is_told_to_give_the_files_of_the_relay_away(site: Path) -> None:
    belongs = r"belongs to user nobody, and this runs as root.*runuser --pty -u nobody -- qumail-relay"
    with pytest.raises(ConfigError, match=belongs) as said:
        SiteSecret.load(site / "state/site.secret")
    assert "chown" not in str(said.value)


def test_a_secret_of_the_identity_says_the_same(site: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 1)
    with pytest.raises(
        ConfigError, match=r"belongs to user nobody, and this runs as daemon.*runuser --pty -u nobody -- "
    ):
        files.check_directory(site / "state")
