"""What we know of a peer from its document: its domains, its certificates, and how it can open.
Certificates, domains and levels must agree with each other.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import datetime

from cryptography import x509

from relay.cms import KEMS
from relay.errors import ConfigError
from relay.identity.checks import check_ca, check_certificate, check_issued_by, domains_of
from relay.identity.pairs import Role, fingerprint, public_key

SPOKEN = ("otp", "aes", "pqc", "rsa")
"""The levels that a document can name, strongest first."""
_NEEDED = {"pqc": (Role.KEM,), "rsa": (Role.RSA_ENCRYPTION, Role.RSA_SIGNING)}
"""The certificates, besides `signing`, without which a level cannot be sealed for a peer or verified."""


@dataclass(frozen=True)
class PeerCertificates:
    """What a peer document says; `domains` in A-labels, `issued` aware, `serial` higher in each newer one.

    `name` is the one that the document says, and once it is pinned the one that it is pinned under. `ca` and
    `signing` (ML-DSA-87) are the pinned keys; the other certificates may be missing. `further_kems` has a public
    key for each further KEM that it can open.
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
    further_kems: Mapping[str, bytes] = field(default_factory=dict, repr=False, hash=False)

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
        """What is compared over the telephone: that of the two pinned keys (pairs.py)."""
        return fingerprint(self.ca, self.signing)

    @property
    def pinned_keys(self) -> tuple[bytes, bytes]:
        """The CA's and the signing key (SubjectPublicKeyInfo, DER): a document with others is another site's."""
        return public_key(self.ca), public_key(self.signing)


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
    for name, octets in peer.further_kems.items():
        if len(octets) != KEMS[name].public_key_octets:
            raise BadDocument(f"KEM {name}: {len(octets)} octets are not a public key of it")
    for what, values in (("domain", peer.domains), ("level", peer.levels), ("KME group", peer.kme_groups)):
        if len(set(values)) != len(values):
            raise BadDocument(f"a {what} is named twice")


def _checked(name: str, check: Callable[..., None], *arguments: object) -> None:
    try:
        check(*arguments)
    except ValueError as error:
        raise BadDocument(f"certificate {name}: {error}") from error


class BadDocument(ConfigError):
    """Not a whole, consistent, signed peer document of a known format; the text quotes nothing unprintable."""


class PinRefused(ConfigError):
    """A valid document that contradicts what is known here."""


class Rollback(PinRefused):
    """The serial number is lower than the pinned document's, or the same with another content."""


class ChangedKey(PinRefused):
    """The CA's or the signing key is not the pinned one."""
