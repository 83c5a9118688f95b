"""Alice's and Bob's keys and certificates, made once for all tests; their RSA keys are those of the test vectors.
Standard: made as `identity new` and `identity export` make them, but that making an RSA key takes a second.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from unittest.mock import patch

from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.mldsa import MLDSA87PrivateKey

from relay.formats import cms
from relay.identity import Identity, PeerCertificates, create_identity, load_identity, peer_document, read_document
from relay.identity.composite import CompositeSigningPrivateKey
from relay.levels import SEALING
from relay.schemes import Opening, Parties
from relay.schemes.signatures import signs_under
from tests.vectors.people import rsa_key


@dataclass(frozen=True)
class Person:
    """One site: where its keys lie, its identity, the document that its peers import."""

    directory: Path
    identity: Identity
    document: bytes

    @property
    def certificates(self) -> PeerCertificates:
        return read_document(self.document)


@dataclass(frozen=True)
class Identities:
    """Both sites, and a stranger who is nobody's peer."""

    alice: Person
    bob: Person
    eve: Person

    def to_bob(self) -> Parties:
        """What Alice seals with."""
        return Parties("2", "1", "bob", self.alice.identity, self.bob.certificates)

    def at_bob(self) -> Opening:
        """What Bob opens with."""
        return Opening({}, self.bob.identity, self._signers)

    def _signers(self, identifier: cms.CertificateID) -> list[PeerCertificates]:
        return [peer for peer in [self.alice.certificates] if signs_under(peer, identifier)]


def fixed_signing_key() -> CompositeSigningPrivateKey:
    """The key of the vectors of the audit record (deploy/AUDIT.md), which signs nothing else."""
    curve = ec.derive_private_key(int.from_bytes(bytes(range(1, 48))), ec.SECP384R1())
    return CompositeSigningPrivateKey(MLDSA87PrivateKey.from_seed_bytes(bytes(range(32))), curve)


def make_person(directory: Path, name: str, sae: str) -> Person:
    """A site with everything it needs for levels pqc and rsa; the one in `directory`, where that has been made."""
    documented = directory.with_suffix(".json")
    if documented.exists():
        return Person(directory, load_identity(directory), documented.read_bytes())
    domains = [f"{name}.example"]
    keys = map(rsa_key, (f"{name}-rsa-encryption", f"{name}-rsa-signing"))
    with patch("relay.identity.make.rsa.generate_private_key", lambda **_: next(keys)):
        identity = create_identity(directory, name=name, domains=domains)
    document = peer_document(
        directory, identity, name=name, domains=domains, sae_id=sae, kme_groups=["alice-bob"],
        levels=SEALING,
    )  # fmt: skip
    documented.write_bytes(document)
    return Person(directory, identity, document)


def make_identities(directory: Path) -> Identities:
    """Alice (SAE 2), Bob (SAE 1) and Eve (SAE 3)."""
    people = [make_person(directory / name, name, sae) for name, sae in (("alice", "2"), ("bob", "1"), ("eve", "3"))]
    return Identities(*people)
