"""Fixtures of the tests of setup: a directory to set up in, and no processes of their own at the end.
Standard: each test has a directory of its own.
"""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from relay.setup import questions
from tests.testlib.identities import Identities


@pytest.fixture
def without_the_end(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Test message and `check` are processes of their own, which test_two_sites.py has; a state directory of our own."""
    monkeypatch.setattr("relay.cli.setup._as_relay", lambda *_: True)
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "xdg"))
    monkeypatch.setenv("QUMAIL_RELAY_USER", "root")


@pytest.fixture
def home(tmp_path: Path, identities: Identities, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Alice's directory, with keys that were made before, since RSA takes seconds; no Postfix at the usual place."""
    monkeypatch.setattr(questions, "USUAL_POSTFIX", tmp_path / "postfix")
    state = tmp_path / "alice" / "state"
    state.mkdir(parents=True, mode=0o700)
    shutil.copytree(identities.alice.directory, state / "identity")
    return tmp_path / "alice"
