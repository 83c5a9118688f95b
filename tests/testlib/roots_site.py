"""A site as a package sets it up, in a temporary directory: the configuration is root's, the state is nobody's.
Standard: deploy/RUNNING.md, Rights.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from relay.setup.files import Owner
from relay.store.secret import SiteSecret
from tests.testlib.identities import Identities

RELAY_TOML = """\
[site]
name = "alice"
domains = ["alice.example"]
sae_id = "2"
[outgoing]
listen = "127.0.0.1:0"
next_hop = "127.0.0.1:1"
[incoming]
listen = "127.0.0.1:0"
next_hop = "127.0.0.1:1"
[policies]
directory = "policies"
[store]
database = "state/relay.db"
secret = "state/site.secret"
[identity]
directory = "state/identity"
peers_directory = "state/peers"
[submission]
listen = "127.0.0.1:0"
certificate = "kme/ca.pem"
key = "kme/ca.pem"
users = "state/users"
"""


def nobody() -> Owner:
    return Owner.named("nobody")


@dataclass(frozen=True)
class Place:
    """A site whose configuration is root's and whose state is nobody's, a root's directory and file, and an invitation."""

    site: Path
    state: Path
    victim: Path
    file: Path
    document: Path

    @property
    def config(self) -> tuple[str, str]:
        return "--config", str(self.site / "relay.toml")

    def give(self) -> None:
        """All of the state is nobody's."""
        for path in (self.state, *self.state.rglob("*")):
            os.chown(path, nobody().uid, nobody().gid, follow_symlinks=False)


@pytest.fixture
def place(identities: Identities) -> Iterator[Place]:
    with tempfile.TemporaryDirectory() as name:
        top = Path(name)
        top.chmod(0o755)  # pytest's directories are root's alone
        made = Place(top / "site", top / "site/state", top / "roots", top / "roots/file", top / "bob.json")
        for directory in (made.site, made.site / "policies", made.victim):
            directory.mkdir(mode=0o755)
        made.state.mkdir(mode=0o700)
        (made.site / "relay.toml").write_text(RELAY_TOML)
        made.file.write_text("root's\n")
        made.document.write_bytes(identities.bob.document)
        SiteSecret.load_or_create(made.state / "site.secret")
        shutil.copytree(identities.alice.directory, made.state / "identity")
        (made.state / "peers").mkdir(mode=0o700)
        made.give()
        yield made
