"""Keys for further KEMs: made, renewed, protected like the others, and carried by the site's document.
Standard: relay/identity/further.py.
"""

from __future__ import annotations

import shutil
import stat
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from relay.errors import (
    ConfigError,
)
from relay.formats import cms
from relay.formats.cms import FURTHER_KEMS
from relay.identity import (
    PeerCertificates,
    create_identity,
    load_identity,
    make_passphrase,
    read_document,
    renew_identity,
)
from relay.identity.document import BadDocument, write_document
from relay.schemes.further_kem import FurtherKEM
from tests.integration.schemes.further_kems import HQC, document, with_kems
from tests.testlib.identities import Identities
from tests.testlib.keys import MemoryKeys


@pytest.mark.usefixtures("library")
@pytest.mark.parametrize("encrypted", [False, True], ids=["plain", "encrypted"])
def test_keys_are_added_to_an_identity_and_protected_like_the_others(
    identities: Identities, tmp_path: Path, encrypted: bool
) -> None:
    directory, passphrase = tmp_path / "new", None
    if encrypted:
        passphrase = tmp_path / "passphrase"
        assert make_passphrase(passphrase, directory)
        directory.mkdir(mode=0o700, exist_ok=True)
        for path in identities.alice.directory.glob("rsa_*.key"):  # made once, as RSA keys take seconds
            shutil.copy2(path, directory)
    else:
        shutil.copytree(identities.alice.directory, directory)
    arguments: dict[str, Any] = {"name": "alice", "domains": ["alice.example"], "passphrase": passphrase}
    made = create_identity(directory, kems=(HQC, HQC), **arguments)
    assert [pair.name for pair in made.further_kems] == [HQC]
    [key], [public] = directory.glob("kem-hqc-256.*.key"), directory.glob("kem-hqc-256.*.pub")
    assert {stat.S_IMODE(path.stat().st_mode) for path in (key, public)} == {0o600}
    with pytest.raises(ConfigError, match="the identity is complete"):
        create_identity(directory, kems=(HQC,), **arguments)
    again = load_identity(directory, passphrase=passphrase)
    assert again.further_kems == made.further_kems
    assert again.offered_kems == {HQC: made.further_kems[0].public_key}
    assert made.further_kems[0].private_key.hex() not in repr(made)
    if encrypted:
        with pytest.raises(ConfigError, match="passphrase"):
            load_identity(directory)
        key.write_bytes(
            key.read_bytes().replace(b'"salt":"', b'"salt":"AAAA', 1).replace(b'"salt": "', b'"salt": "AAAA', 1)
        )
        with pytest.raises(ConfigError, match="another one, or the file is damaged"):
            load_identity(directory, passphrase=passphrase)
    key.chmod(0o644)
    with pytest.raises(ConfigError, match="chmod 600"):
        load_identity(directory, passphrase=passphrase)


@pytest.mark.parametrize(
    ("suffix", "content"),
    [("pub", b""), ("pub", b"{}"), ("key", b"not json"), ("key", b'{"format":2,"kem":"hqc-256","private_key":""}')],
)
def test_a_damaged_key_file_is_named(people: Identities, suffix: str, content: bytes) -> None:
    [path] = people.bob.directory.glob(f"kem-hqc-256.*.{suffix}")
    path.write_bytes(content)
    with pytest.raises(ConfigError, match=rf"kem-hqc-256\.[0-9a-f]+\.{suffix}: not a key file"):
        load_identity(people.bob.directory)


def test_a_public_key_in_the_place_of_another_is_refused(people: Identities, tmp_path: Path) -> None:
    eve = with_kems(people.eve, tmp_path / "eve", "eve", "3", (HQC,))
    [theirs], [path] = eve.directory.glob("kem-*.pub"), people.bob.directory.glob("kem-hqc-256.*.pub")
    shutil.copy2(theirs, path)
    with pytest.raises(ConfigError, match="the public key of another file"):
        load_identity(people.bob.directory)
    [frodo] = people.bob.directory.glob("kem-frodo*.pub")
    shutil.copy2(frodo, path)
    with pytest.raises(ConfigError, match="not a public key of hqc-256"):
        load_identity(people.bob.directory)


def test_a_key_without_its_public_file_does_not_count(people: Identities) -> None:
    """An interrupted run leaves it so."""
    [path] = people.bob.directory.glob("kem-hqc-256.*.pub")
    path.unlink()
    assert HQC not in load_identity(people.bob.directory).offered_kems


async def test_renewing_makes_new_keys_and_the_old_ones_still_open(
    people: Identities, monkeypatch: pytest.MonkeyPatch
) -> None:
    bob = people.bob
    older = (await FurtherKEM(HQC).seal(b"before", people.to_bob(), MemoryKeys())).der
    like = bob.identity.rsa_encryption.private_key
    monkeypatch.setattr("relay.identity.make.rsa.generate_private_key", lambda **_: like)
    early = datetime.now(UTC) - timedelta(minutes=10)
    renewed = renew_identity(bob.directory, name="bob", domains=["bob.example"], now=early)
    assert len(renewed.further_kems) == 2 * len(FURTHER_KEMS)
    assert all(renewed.offered_kems[name] != bob.identity.offered_kems[name] for name in FURTHER_KEMS)
    opening = replace(people.at_bob(), identity=renewed)
    assert (await FurtherKEM(HQC).open(cms.decode_enveloped(older), opening)).payload == b"before"
    peer = read_document(document(bob.directory, renewed, "bob", "1"))
    assert peer.further_kems == renewed.offered_kems
    newer = (await FurtherKEM(HQC).seal(b"after", replace(people.to_bob(), certificates=peer), MemoryKeys())).der
    assert (await FurtherKEM(HQC).open(cms.decode_enveloped(newer), opening)).payload == b"after"


@pytest.mark.usefixtures("no_library")
def test_without_the_library_no_keys_are_made_and_nothing_is_changed(identities: Identities, tmp_path: Path) -> None:
    directory = tmp_path / "carol"
    with pytest.raises(ConfigError, match="pip install liboqs-python"):
        create_identity(directory, name="carol", domains=["carol.example"], kems=(HQC,))
    assert not directory.exists()


def test_the_document_carries_the_public_keys_and_stays_within_its_bounds(people: Identities) -> None:
    peer = people.bob.certificates
    assert peer.further_kems == people.bob.identity.offered_kems
    assert set(peer.further_kems) == set(FURTHER_KEMS)
    assert len(people.bob.document) > 1_800_000
    assert b'"kems"' not in people.alice.document
    assert people.alice.certificates.further_kems == {}


@pytest.mark.parametrize(
    ("kems", "expected"),
    [({HQC: b"short"}, "5 octets are not a public key"), ({"rot13": b"x"}, "rot13")],
)
def test_a_document_with_doubtful_keys_is_refused_though_signed(
    identities: Identities, kems: dict[str, bytes], expected: str
) -> None:
    peer: PeerCertificates = replace(identities.bob.certificates, further_kems=kems)
    with pytest.raises((BadDocument, KeyError), match=expected):
        write_document(peer, identities.bob.identity.signing.private_key)
