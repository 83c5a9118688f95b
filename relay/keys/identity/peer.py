"""What we know of a peer: its domains, its certificates, how it can open, and the fingerprint of its keys.
Standard: SHA-256 over the SubjectPublicKeyInfos (RFC 5280, 4.1.2.7) of its CA and of its signing key.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime

from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from relay.keys.identity.checks import check_ca, check_certificate, check_issued_by, domains_of
from relay.keys.identity.errors import BadDocument
from relay.keys.identity.pairs import Role

SPOKEN = ("otp", "aes", "pqc", "rsa")
"""The levels that a document can name, strongest first."""
_NEEDED = {"pqc": (Role.KEM,), "rsa": (Role.RSA_ENCRYPTION, Role.RSA_SIGNING)}
"""The certificates, besides `signing`, without which a level cannot be sealed for a peer or verified."""
_FINGERPRINT = b"qumail-relay peer fingerprint 1\0"
_GROUP = 4
"""Hexadecimal digits read out in one breath."""


@dataclass(frozen=True)
class PeerCertificates:
    """What a peer document says; `domains` in A-labels, `issued` aware, `serial` higher in each newer one.

    `ca` and `signing` (ML-DSA-87) are the pinned keys; the other certificates may be missing.
    """

    name: str
    domains: tuple[str, ...]
    sae_id: str
    kme_groups: tuple[str, ...]
    levels: tuple[str, ...]
    format: int
    serial: int
    issued: datetime
    ca: x509.Certificate
    signing: x509.Certificate
    kem: x509.Certificate | None = None
    rsa_encryption: x509.Certificate | None = None
    rsa_signing: x509.Certificate | None = None

    @property
    def kme_group(self) -> str | None:
        """The first KME group that it names, or None; `common_groups` says which of ours it shares."""
        return self.kme_groups[0] if self.kme_groups else None

    @property
    def certificates(self) -> dict[Role, x509.Certificate]:
        """The certificates that it has, without the CA's."""
        every = {
            Role.KEM: self.kem,
            Role.SIGNING: self.signing,
            Role.RSA_ENCRYPTION: self.rsa_encryption,
            Role.RSA_SIGNING: self.rsa_signing,
        }
        return {role: certificate for role, certificate in every.items() if certificate is not None}

    @property
    def fingerprint(self) -> str:
        """SHA-256 over both pinned keys, as 16 groups of 4 hexadecimal digits, to be compared over a telephone.

        It stays the same when encryption keys or certificates are renewed.
        """
        digest = hashlib.sha256(_FINGERPRINT)
        for certificate in (self.ca, self.signing):
            digest.update(public_key_octets(certificate))
        digits = digest.hexdigest().upper()
        return " ".join(digits[start : start + _GROUP] for start in range(0, len(digits), _GROUP))

    @property
    def pinned_keys(self) -> tuple[bytes, bytes]:
        """The CA's and the signing key (SubjectPublicKeyInfo, DER): a document with others is another site's."""
        return public_key_octets(self.ca), public_key_octets(self.signing)


def public_key_octets(certificate: x509.Certificate) -> bytes:
    """The DER of a certificate's SubjectPublicKeyInfo."""
    return certificate.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)


def check_consistent(peer: PeerCertificates) -> None:
    """Raises BadDocument unless certificates, domains and levels agree with each other; dates are not looked at."""
    _checked("ca", check_ca, peer.ca)
    for role, certificate in peer.certificates.items():
        _checked(role, check_certificate, certificate, role)
        _checked(role, check_issued_by, certificate, peer.ca)
        if missing := sorted(set(peer.domains) - set(domains_of(certificate))):
            raise BadDocument(f"certificate {role}: does not name the domain {missing[0]}")
    for level in peer.levels:
        if missing_role := next((role for role in _NEEDED.get(level, ()) if role not in peer.certificates), None):
            raise BadDocument(f"level {level} needs a certificate for {missing_role.label}")
        if level in ("otp", "aes") and not peer.kme_groups:
            raise BadDocument(f"level {level} needs a KME group")
    for what, values in (("domain", peer.domains), ("level", peer.levels), ("KME group", peer.kme_groups)):
        if len(set(values)) != len(values):
            raise BadDocument(f"a {what} is named twice")


def _checked(name: str, check: Callable[..., None], *arguments: object) -> None:
    try:
        check(*arguments)
    except ValueError as error:
        raise BadDocument(f"certificate {name}: {error}") from error
