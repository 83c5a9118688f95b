"""Fixtures of the tests around liboqs: the library or its stand-in, people and sites with keys for further KEMs.
Nothing is downloaded.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from relay.config import TCPAddress
from relay.identity import (
    liboqs,
)
from relay.kme import DevelopmentKMEs
from tests.integration.schemes.further_kems import use, with_kems
from tests.testlib.identities import Identities
from tests.testlib.sites import Site, make_site
from tests.testlib.stand_in_oqs import stand_in


@pytest.fixture
def library(monkeypatch: pytest.MonkeyPatch) -> None:
    """The real library where it is installed, else the stand-in."""
    if liboqs.missing():
        use(monkeypatch, stand_in())


@pytest.fixture
def no_library(monkeypatch: pytest.MonkeyPatch) -> None:
    use(monkeypatch, f"the native library liboqs is missing: {liboqs.INSTALL}")


@pytest.fixture
def people(library: None, identities: Identities, tmp_path: Path) -> Identities:
    """Alice, Eve, and Bob with keys for all further KEMs."""
    return replace(identities, bob=with_kems(identities.bob, tmp_path / "bob-identity", "bob", "1"))


@pytest.fixture
def sites(people: Identities, kmes: DevelopmentKMEs, tmp_path: Path) -> tuple[Site, Site]:
    first, second = kmes.urls
    to = TCPAddress("127.0.0.1", 1)
    state = kmes.state_dir
    alice = make_site(tmp_path / "alice", "alice", state=state, kme_url=first, outgoing=to, identities=people)
    bob = make_site(tmp_path / "bob", "bob", state=state, kme_url=second, incoming=to, identities=people)
    alice.write_policies(
        {
            "bob.example/top.toml": 'levels = ["pqc+aes"]\n',
            "bob.example/one.toml": 'levels = ["pqc"]\n',
            "bob.example/else.toml": 'levels = ["pqc", "rsa"]\n',
            "bob.example/raised.toml": 'levels = ["pqc", "rsa"]\n\n[[when]]\nheader = "MIME-Version"\nlevels = ["pqc"]\n',
        }
    )
    return alice, bob
