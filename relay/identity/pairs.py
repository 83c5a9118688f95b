"""The key pairs of a site: two for encryption, two for signing, and those of further KEMs.
Standard: composite ML-KEM and ML-DSA (composite.py), RFC 8017 (RSA of 4096 bits and more), RFC 5280 certificates.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Generic, TypeVar

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric.rsa import RSAPrivateKey

from relay.identity.composite import CompositeKEMPrivateKey, CompositeSigningPrivateKey
from relay.identity.further import FurtherKEMPair
from relay.identity.x509_keys import info_of, key_of

PrivateKey = CompositeKEMPrivateKey | CompositeSigningPrivateKey | RSAPrivateKey
Key = TypeVar("Key", bound=PrivateKey)


class Role(StrEnum):
    """The use of a key pair; the value names it in files and peer documents."""

    KEM = "kem"
    SIGNING = "signing"
    RSA_ENCRYPTION = "rsa_encryption"
    RSA_SIGNING = "rsa_signing"

    @property
    def label(self) -> str:
        return _LABELS[self]

    @property
    def signs(self) -> bool:
        """Whether the pair signs messages; the others decrypt them."""
        return self in (Role.SIGNING, Role.RSA_SIGNING)


_LABELS = {
    Role.KEM: "ML-KEM-1024 and P-384 encryption",
    Role.SIGNING: "ML-DSA-87 and P-384 signing",
    Role.RSA_ENCRYPTION: "RSA-4096 encryption",
    Role.RSA_SIGNING: "RSA-4096 signing",
}


@dataclass(frozen=True)
class KeyPair(Generic[Key]):
    """A private key and the certificate of its public key."""

    private_key: Key = field(repr=False)
    certificate: x509.Certificate

    @property
    def ski(self) -> bytes:
        """The certificate's SubjectKeyIdentifier, 20 octets (RFC 5280, 4.2.1.2): the name of a recipient in CMS."""
        return subject_key_identifier(self.certificate)


KEMKeyPair = KeyPair[CompositeKEMPrivateKey]
SigningKeyPair = KeyPair[CompositeSigningPrivateKey]
RSAKeyPair = KeyPair[RSAPrivateKey]


@dataclass(frozen=True)
class Identity:
    """This site's key pairs, and older ones that still open mail sealed before a renewal.

    `domains` are those of the signing certificate; `ca` issued all four current certificates.
    `further_kems` has the pairs of further KEMs, the newest first.
    """

    ca: x509.Certificate
    domains: tuple[str, ...]
    kem: KEMKeyPair
    signing: SigningKeyPair
    rsa_encryption: RSAKeyPair
    rsa_signing: RSAKeyPair
    older_kem: tuple[KEMKeyPair, ...] = ()
    older_rsa_encryption: tuple[RSAKeyPair, ...] = ()
    further_kems: tuple[FurtherKEMPair, ...] = ()

    def further_kem(self, name: str, identifier: bytes) -> FurtherKEMPair | None:
        """The pair of this KEM, current or older, that a message names; None if there is none."""
        named = (pair for pair in self.further_kems if (pair.name, pair.identifier) == (name, identifier))
        return next(named, None)

    @property
    def key_identifiers(self) -> tuple[bytes, ...]:
        """What messages name as recipients: the key identifiers of all encryption pairs, 20 octets each."""
        certified = (self.kem, self.rsa_encryption, *self.older)
        return (*(pair.ski for pair in certified), *(pair.identifier for pair in self.further_kems))

    @property
    def offered_kems(self) -> dict[str, bytes]:
        """The newest public key of each further KEM, for peers."""
        return {pair.name: pair.public_key for pair in reversed(self.further_kems)}

    @property
    def fingerprint(self) -> str:
        """The fingerprint of a document with all of `domains`, which peers compare over the telephone."""
        return self.fingerprint_for(self.domains)

    def fingerprint_for(self, domains: Iterable[str]) -> str:
        """Returns the fingerprint of a document with these domains (A-labels)."""
        return fingerprint(self.ca, self.signing.certificate, domains)

    @property
    def older(self) -> tuple[KEMKeyPair | RSAKeyPair, ...]:
        """All encryption pairs kept for opening only."""
        return (*self.older_kem, *self.older_rsa_encryption)

    @property
    def certificates(self) -> dict[Role, x509.Certificate]:
        """The four certificates in use."""
        return {
            Role.KEM: self.kem.certificate,
            Role.SIGNING: self.signing.certificate,
            Role.RSA_ENCRYPTION: self.rsa_encryption.certificate,
            Role.RSA_SIGNING: self.rsa_signing.certificate,
        }


def subject_key_identifier(certificate: x509.Certificate) -> bytes:
    """The octets of a certificate's SubjectKeyIdentifier; raises x509.ExtensionNotFound."""
    return certificate.extensions.get_extension_for_class(x509.SubjectKeyIdentifier).value.digest


_CONTEXT = b"qumail-relay peer fingerprint 2\0"
_GROUP = 4
"""Number of hexadecimal digits read out together."""


def fingerprint(ca: x509.Certificate, signing: x509.Certificate, domains: Iterable[str]) -> str:
    """16 groups of 4 hexadecimal digits; unchanged by renewed certificates of the same keys and domains.

    The hash covers a context string, the two keys and the domains. Each key is DER and so self-delimiting. The domains
    are A-labels, sorted, with an octet 0 after each.
    """
    named = b"".join(domain.encode("ascii") + b"\0" for domain in sorted(set(domains)))
    digits = hashlib.sha256(_CONTEXT + public_key(ca) + public_key(signing) + named).hexdigest().upper()
    return " ".join(digits[start : start + _GROUP] for start in range(0, len(digits), _GROUP))


def same_fingerprint(first: str, second: str) -> bool:
    """Whether both have the same digits, ignoring grouping."""
    return _digits(first) == _digits(second)


def public_key(certificate: x509.Certificate) -> bytes:
    """The DER of a certificate's SubjectPublicKeyInfo."""
    return info_of(key_of(certificate))


def _digits(text: str) -> str:
    return "".join(text.replace(":", "").replace("-", "").split()).upper()
