"""One site's certificates and keys cannot be taken for another's: a claim of such an identifier is refused.
Standard: RFC 5652 5.3 and 6.2.1 (how messages name certificates), RFC 5280 4.1.2.2 and 4.2.1.2, RFC 7093.
"""

from __future__ import annotations

import base64
import hashlib
import json
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import pytest
from click.testing import CliRunner

from relay.cli.check import check
from relay.config import load_config
from relay.errors import ConfigError
from relay.formats.cms import KEMS
from relay.identity import PeerCertificates, identity_findings, load_identity, trusted_peers
from relay.identity.composite import CompositeSigningPrivateKey
from relay.identity.directory import write_certificate
from relay.identity.document import BadDocument, PinRefused
from relay.identity.pairs import Role, public_key, subject_key_identifier
from relay.identity.x509_keys import key_of
from relay.journey.opening import MailOpener
from relay.journey.opening.layers import Layers
from relay.schemes.pqc import PQC
from relay.schemes.rsa import RSA
from relay.store.delivery_attempts import Begun
from tests.unit.identity.forgeries import ca_key, certified, document, pinned, under_another_name, with_kems
from tests.unit.identity.homes import NOW, Home, pin
from tests.unit.identity.test_commands import run, wrong
from tests.vectors.case import DIRECTORY, read
from tests.vectors.people import Person, person
from tests.vectors.settings import CONFIG

every_order = pytest.mark.parametrize("order", [("alice", "carol"), ("carol", "alice")], ids="-".join)
every_role = pytest.mark.parametrize("role", list(Role))


@pytest.mark.promise("A peer cannot claim another's key identifier")
@every_role
def test_a_key_identifier_of_another_peer_is_refused(
    role: Role, alice: Home, bob: Home, carol: Home, tmp_path: Path
) -> None:
    """Carol's certificates are right but for the identifier: whatever names Bob's certificate would name hers too."""
    pin(alice.config, bob.document(), now=NOW)
    bobs = subject_key_identifier(bob.identity.certificates[role])
    forged = certified(carol.identity.certificates[role], ca_key(carol), ski=bobs)
    path = tmp_path / "carol.json"
    path.write_bytes(document(carol, **{role: forged}))
    said = wrong(run(alice, "import", path, "--yes"))
    assert f"certificate {role}" in said
    assert "subjectKeyIdentifier" in said
    assert not (alice.peers / "carol.json").exists()


@every_role
@pytest.mark.parametrize("owner", ["bob", "alice"])
def test_a_public_key_of_another_peer_or_of_ours_is_refused(
    owner: str, role: Role, alice: Home, bob: Home, carol: Home
) -> None:
    """Carol has no use for such a certificate but to be taken for its owner."""
    pin(alice.config, bob.document(), now=NOW)
    theirs = {"alice": alice, "bob": bob}[owner].identity.certificates[role]
    forged = certified(carol.identity.certificates[role], ca_key(carol), key=key_of(theirs))
    whose = {"alice": "this site", "bob": "peer bob"}[owner]
    with pytest.raises(ConfigError) as caught:
        pin(alice.config, document(carol, **{role: forged}), replace=True, now=NOW)
    if role is not Role.SIGNING:  # whose key has to sign the document
        assert isinstance(caught.value, PinRefused)
        assert caught.value.problems == [f"certificate {role}: its public key already belongs to {whose}"]


@pytest.mark.parametrize("owner", ["bob", "alice"])
def test_an_issuer_and_serial_number_of_another_peer_or_of_ours_are_refused(
    owner: str, alice: Home, bob: Home, carol: Home
) -> None:
    pin(alice.config, bob.document(), now=NOW)
    identity = {"alice": alice, "bob": bob}[owner].identity
    serials = {role: certificate.serial_number for role, certificate in identity.certificates.items()}
    with pytest.raises(PinRefused) as caught:
        pin(alice.config, under_another_name(carol, identity.ca.subject, serials), now=NOW)
    whose = {"alice": "this site", "bob": "peer bob"}[owner]
    assert caught.value.problems == [
        f"certificate {role}: its pair of issuer and serial number already belongs to {whose}" for role in Role
    ]


def test_sites_may_have_certificates_of_one_ca(alice: Home, bob: Home, carol: Home) -> None:
    """Or of two with one name, as long as the serial numbers differ."""
    pin(alice.config, bob.document(), now=NOW)
    assert pin(alice.config, under_another_name(carol, bob.identity.ca.subject, {}), now=NOW).change == "new"
    assert set(trusted_peers(alice.config)) == {"bob", "carol"}


@pytest.mark.parametrize("owner", ["bob", "alice"])
def test_a_key_of_a_further_kem_of_another_peer_or_of_ours_is_refused(
    owner: str, alice: Home, bob: Home, carol: Home
) -> None:
    key = bytes(KEMS["hqc-256"].public_key_octets)
    others = b"\1" + key[1:]
    pin(alice.config, with_kems(bob, **{"hqc-256": key if owner == "bob" else others}), now=NOW)
    if owner == "alice":
        _own_kem(alice, key)
    whose = {"alice": "this site", "bob": "peer bob"}[owner]
    with pytest.raises(PinRefused) as caught:
        pin(alice.config, with_kems(carol, **{"hqc-256": key}), now=NOW)
    assert caught.value.problems == [f"KEM hqc-256: its public key already belongs to {whose}"]
    assert pin(alice.config, with_kems(carol, **{"hqc-256": b"\2" + key[1:]}), now=NOW).change == "new"


def _own_kem(home: Home, key: bytes) -> None:
    """The public half, which is all that is looked at here."""
    path = home.identity_directory / f"kem-hqc-256.{hashlib.sha256(key).hexdigest()[:16]}.pub"
    path.touch(mode=0o600)
    said = {"format": 1, "kem": "hqc-256", "made": NOW.isoformat(), "public_key": base64.b64encode(key).decode()}
    path.write_text(json.dumps(said))


def test_the_keys_that_a_peer_had_before_may_stay_its_own(alice: Home, bob: Home) -> None:
    pin(alice.config, bob.document(), now=NOW)
    assert pin(alice.config, bob.document(), now=NOW).change == "newer"


def test_documents_that_claim_one_identifier_stop_the_relay_and_check_says_so(
    alice: Home, bob: Home, carol: Home
) -> None:
    """However they came to lie there."""
    forged = certified(
        carol.identity.certificates[Role.RSA_SIGNING], ca_key(carol),
        key=bob.identity.rsa_signing.private_key.public_key(),
    )  # fmt: skip
    pinned(alice, bob=bob.document(), carol=document(carol, rsa_signing=forged))
    with pytest.raises(ConfigError) as caught:
        trusted_peers(alice.config)
    said = "certificate rsa_signing: its public key already belongs to peer "
    assert caught.value.problems == [
        f"{alice.peers / 'bob.json'}: {said}carol",
        f"{alice.peers / 'carol.json'}: {said}bob",
    ]
    assert identity_findings(alice.config, NOW)[1] == ("peer documents", tuple(caught.value.problems))
    result = CliRunner().invoke(check, ["--config", str(alice.config_file)])
    assert result.exit_code == 1
    assert f"{said}bob" in " ".join(result.stdout.split())


# What an identifier is made from


def _bits(home: Home) -> bytes:
    return home.identity.kem.private_key.public_key().public_bytes_raw()


def _whole(home: Home) -> bytes:
    return public_key(home.identity.kem.certificate)


@pytest.mark.parametrize("digest", ["sha1", "sha256", "sha384", "sha512"])
def test_identifiers_that_other_cas_make_of_the_key_are_taken(digest: str, alice: Home, bob: Home) -> None:
    ski = hashlib.new(digest, _bits(bob)).digest()[:20]
    forged = certified(bob.identity.kem.certificate, ca_key(bob), ski=ski)
    assert pin(alice.config, document(bob, kem=forged), now=NOW).change == "new"


def test_an_identifier_of_the_whole_public_key_info_is_taken(alice: Home, bob: Home) -> None:
    ski = hashlib.sha1(_whole(bob), usedforsecurity=False).digest()
    assert pin(alice.config, document(bob, kem=certified(bob.identity.kem.certificate, ca_key(bob), ski=ski)), now=NOW)


@every_role
@pytest.mark.parametrize("ski", [bytes(20), b"\x01" * 20, hashlib.sha1(b"", usedforsecurity=False).digest()])
def test_an_identifier_that_somebody_chose_is_refused_even_if_nobody_else_has_it(
    role: Role, ski: bytes, alice: Home, bob: Home
) -> None:
    forged = certified(bob.identity.certificates[role], ca_key(bob), ski=ski)
    with pytest.raises(
        BadDocument, match=f"certificate {role}: its subjectKeyIdentifier is not made from its public key"
    ):
        pin(alice.config, document(bob, **{role: forged}), now=NOW)


def test_our_own_certificate_with_such_an_identifier_is_refused_before_peers_do(bob: Home) -> None:
    """A CA that does so would make a site that nobody can use."""
    path = bob.path("kem.*.pem")
    write_certificate(path, certified(bob.identity.kem.certificate, ca_key(bob), ski=bytes(20)))
    with pytest.raises(ConfigError, match=f"^{path}: its subjectKeyIdentifier is not made from its public key"):
        load_identity(bob.identity_directory, now=NOW)


# Should such a document be there all the same


class _Nothing:
    """No memory of what was opened, or asked for."""

    async def unanswered(self, _: object) -> bool:
        return False

    async def admit(self, *_: object) -> Begun:
        return Begun()


@pytest.mark.promise("A peer cannot claim another's key identifier")
@every_order
@pytest.mark.parametrize("level", ["pqc", "rsa"])
async def test_a_peer_that_claims_anothers_identifier_does_not_answer_for_its_mail(
    level: str, order: tuple[str, str], tmp_path: Path
) -> None:
    """The receiver tries all that match: only the key tells who has signed."""
    (tmp_path / "relay.toml").write_text(CONFIG)
    alice, eve = person("alice"), person("eve")
    peers = {"alice": alice.certificates, "carol": _claiming(alice.certificates, eve)}
    levels = {each.name: each for each in (PQC(), RSA())}
    nothing = cast(Any, None)
    case = read(DIRECTORY / f"{level}-plain.txt")
    certificates = {name: peers[name] for name in order}
    layers = Layers(load_config(tmp_path / "relay.toml"), levels, nothing, person("bob").identity, certificates)
    opener = MailOpener(lambda: layers, nothing, cast(Any, _Nothing()), clock=lambda: case.now)
    opened = await opener.open(case.message)
    assert opened is not None
    assert opened.peer == "alice"


def _claiming(peer: PeerCertificates, eve: Person) -> PeerCertificates:
    """Eve as the peer Carol, whose signing certificates have this peer's identifiers."""
    key, theirs = CompositeSigningPrivateKey.generate(), eve.certificates
    assert theirs.rsa_signing is not None
    assert peer.rsa_signing is not None
    return replace(
        theirs,
        name="carol",
        signing=certified(theirs.signing, key, ski=subject_key_identifier(peer.signing)),
        rsa_signing=certified(theirs.rsa_signing, key, ski=subject_key_identifier(peer.rsa_signing)),
    )
