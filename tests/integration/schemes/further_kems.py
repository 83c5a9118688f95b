"""Sites with keys for further KEMs, for the tests around liboqs.
Nothing is downloaded; a stand-in is in the place of liboqs where that is not installed.
"""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import pytest

from relay.formats.cms import FURTHER_KEMS
from relay.identity import (
    Identity,
    create_identity,
    liboqs,
    peer_document,
)
from tests.testlib.identities import Person
from tests.testlib.sites import Site

ROOT = Path(__file__).parents[3]
HQC = "hqc-256"
MISSING = liboqs.missing()
"""Asked before any test puts something in the place of the library."""
FAMILIES = pytest.mark.parametrize("kem", FURTHER_KEMS)


def use(monkeypatch: pytest.MonkeyPatch, library: object) -> None:
    """As if this were what looking for liboqs had found."""
    monkeypatch.setattr(liboqs, "_load", lambda: library)


def ask_for(site: Site, *kems: str) -> None:
    """Has the site put layers of these KEMs around what it seals for its peer at level pqc."""
    text = re.sub(r"^further_kems = .*\n", "", site.config_file.read_text(), flags=re.MULTILINE)
    site.config_file.write_text(
        re.sub(r"^(\[peers\.\w+\]\n)", rf"\1further_kems = {list(kems)}\n", text, flags=re.MULTILINE)
    )


def with_kems(person: Person, directory: Path, name: str, sae: str, kems: tuple[str, ...] = FURTHER_KEMS) -> Person:
    """A copy of a site with keys for further KEMs."""
    shutil.copytree(person.directory, directory)
    identity = create_identity(directory, name=name, domains=[f"{name}.example"], kems=kems)
    return Person(directory, identity, document(directory, identity, name, sae))


def document(directory: Path, identity: Identity, name: str, sae: str) -> bytes:
    return peer_document(
        directory, identity, name=name, domains=[f"{name}.example"], sae_id=sae, kme_groups=["alice-bob"],
        levels=("otp", "aes", "pqc", "rsa"),
    )  # fmt: skip
