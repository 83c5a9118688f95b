"""Runs `qumail-relay setup` and `identity accept` by flags, for the tests of both.
Standard: deploy/INSTALL.md.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from click.testing import CliRunner, Result

from relay.cli import cli
from relay.errors import ConfigError
from relay.identity import lines_of, write_invitation
from tests.testlib.identities import Person

BOBS, PEERS = ("--domain", "bob.example"), ("--peer-domain", "bob.example")
"""What is expected of Bob."""
USUAL = ("--yes", "--domain", "alice.example", "--kme", "development", "--postfix", "none")


def run(home: Path, *words: str, group: str = "setup", typed: str = "") -> Result:
    result = CliRunner().invoke(cli, [*group.split(), "--config", str(home / "relay.toml"), *words], input=typed)
    if result.exception is not None and not isinstance(result.exception, SystemExit | ConfigError):
        raise result.exception
    return result


def contents(directory: Path) -> Mapping[Path, tuple[int, bytes]]:
    """Every file, with its time and content."""
    return {path: (path.stat().st_mtime_ns, path.read_bytes()) for path in directory.rglob("*") if path.is_file()}


def invitation(directory: Path, person: Person) -> str:
    path = directory / "invitation.txt"
    path.write_text(write_invitation(person.document))
    return str(path)


def words(person: Person) -> str:
    return " ".join(lines_of(person.identity.fingerprint))
