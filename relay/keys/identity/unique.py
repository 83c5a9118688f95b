"""What messages name certificates and keys by belongs to one site: nobody can be taken for somebody else.
Standard: RFC 5652 5.3 and 6.2.1 (subjectKeyIdentifier, or issuer and serial number); RFC 9629 3 for further KEMs.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path

from cryptography import x509

from relay.errors import ConfigError
from relay.keys.identity.checks import UNREADABLE
from relay.keys.identity.fingerprint import public_key
from relay.keys.identity.further import public_keys_in
from relay.keys.identity.layout import read_certificate
from relay.keys.identity.pairs import Role, subject_key_identifier
from relay.keys.identity.peer import PeerCertificates

Name = tuple[str, bytes]
"""What a certificate or key can be told by: the kind in words, and octets that nobody else may have."""
Owners = dict[Name, list[str]]
"""Who has each name, in words."""


def owners(directory: Path, peers: Iterable[PeerCertificates]) -> Owners:
    """Whose each name is: this site's, whose identity lies in `directory` if it has one, and these peers'.

    Raises ConfigError where a certificate of ours cannot be read.
    """
    found: Owners = {name: ["this site"] for name in _ours(directory)}
    for peer in peers:
        for _, name in _names(peer):
            found.setdefault(name, []).append(_in_words(peer))
    return found


def taken(peer: PeerCertificates, owned: Owners) -> Iterator[str]:
    """What of this peer belongs to somebody else: a line for each certificate and key at fault."""
    faulty = set()
    for what, name in _names(peer):
        others = [owner for owner in owned.get(name, []) if owner != _in_words(peer)]
        if others and what not in faulty:
            faulty.add(what)
            yield f"{what}: its {name[0]} already belongs to {others[0]}"


def _in_words(peer: PeerCertificates) -> str:
    return f"peer {peer.name}"


def _names(peer: PeerCertificates) -> Iterator[tuple[str, Name]]:
    """Each certificate and each key of a further KEM in words, with its names."""
    for role, certificate in peer.certificates.items():
        for name in _certificate_names(certificate):
            yield f"certificate {role}", name
    for kem, key in peer.further_kems.items():
        yield f"KEM {kem}", _kem_name(key)


def _ours(directory: Path) -> Iterator[Name]:
    """Older pairs, which still open, included; private keys are not needed."""
    for role in Role:
        for path in sorted(directory.glob(f"{role}.*.pem")):
            try:
                yield from _certificate_names(read_certificate(path))
            except UNREADABLE as error:
                raise ConfigError(f"{path}: not a certificate that names a recipient or signer") from error
    yield from map(_kem_name, public_keys_in(directory))


def _certificate_names(certificate: x509.Certificate) -> Iterator[Name]:
    yield "public key", public_key(certificate)
    yield "subjectKeyIdentifier", subject_key_identifier(certificate)
    issuer, serial = certificate.issuer.public_bytes(), certificate.serial_number
    yield "pair of issuer and serial number", issuer + b"%d" % serial


def _kem_name(key: bytes) -> Name:
    return "public key", key
