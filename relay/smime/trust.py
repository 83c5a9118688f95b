"""Whether a signer's certificate counts for an author: pinned, or issued for the address by a CA that the site trusts.
Standard: RFC 8550 (S/MIME certificates), RFC 5280 (paths, CRLs); paths are built by `cryptography`'s verifier.

A certificate counts for exactly the addresses in its rfc822Names. One of a domain counts only if the administrator has
pinned it. Nothing is fetched: what a certificate names (CRLs, issuers) is not looked up.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Literal, NamedTuple

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePublicKey
from cryptography.hazmat.primitives.asymmetric.rsa import RSAPublicKey
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from cryptography.x509.oid import ExtendedKeyUsageOID
from cryptography.x509.verification import (
    Criticality,
    ExtensionPolicy,
    Policy,
    PolicyBuilder,
    Store,
    VerificationError,
)

from relay.identity.certificates import UNREADABLE
from relay.smime.usable import comparable, unusable_for_signing

MAX_INTERMEDIATES = 8
"""Maximum number of CA certificates of a message that are considered."""
MAX_DEPTH = 5
"""Maximum number of intermediate CAs."""
_MAX_SIGNERS_KEPT = 100
"""Maximum number of keys of which it is remembered whether they have signed a CRL."""
_USES = frozenset({ExtendedKeyUsageOID.EMAIL_PROTECTION, ExtendedKeyUsageOID.ANY_EXTENDED_KEY_USAGE})
_SHA2 = frozenset({"sha256", "sha384", "sha512"})


Verdict = Literal["good", "unknown", "bad", "no"]
"""What a signature is worth: of the author; of somebody whom nobody here vouches for; wrong; there is none."""


class SignatureJudgement(NamedTuple):
    """What a signature is worth, and why it is not good, "" if it is."""

    verdict: Verdict
    reason: str = ""


@dataclass(frozen=True, slots=True)
class RevocationList:
    """A CRL with the serial numbers in it, which are looked up for each mail, and who is known to have signed it.

    One that is not `complete` has a critical extension: only changes, or a part of the certificates (RFC 5280, 5.2). It
    says nothing about certificates that it does not list.
    """

    crl: x509.CertificateRevocationList = field(repr=False)
    revoked: frozenset[int] = field(repr=False)
    complete: bool
    _signed_by: dict[bytes, bool] = field(default_factory=dict, init=False, repr=False, compare=False)

    @classmethod
    def of(cls, crl: x509.CertificateRevocationList) -> RevocationList:
        """Reads the whole list, once: a search takes a second for each million of entries. Raises ValueError."""
        complete = not any(each.critical for each in crl.extensions)
        return cls(crl, frozenset(each.serial_number for each in crl), complete)

    def is_current(self, now: datetime) -> bool:
        """Whether it may be relied on at this aware time."""
        crl = self.crl
        return self.complete and crl.next_update_utc is not None and crl.last_update_utc <= now <= crl.next_update_utc

    def is_signed_by(self, issuer: x509.Certificate) -> bool:
        """Whether this CA has signed it; raises nothing."""
        octets = _key_octets(issuer) if issuer.subject == self.crl.issuer else b""
        known = self._signed_by.get(octets) if octets else False
        if known is None:
            if len(self._signed_by) >= _MAX_SIGNERS_KEPT:  # anybody may send certificates of that name
                self._signed_by.clear()
            known = self._signed_by[octets] = _signed_by(self.crl, issuer)
        return known


@dataclass(frozen=True, slots=True)
class Trust:
    """What the site trusts. `pinned` returns the accepted certificates of a comparable mailbox, its domain's included.

    `anchors` are CAs whose certificates count for the addresses in them; without any, only pinned ones count. With a
    CRL of an issuer, a certificate of that issuer is good only while the CRL is current.
    """

    pinned: Callable[[str], Sequence[x509.Certificate]]
    anchors: Sequence[x509.Certificate] = ()
    crls: Sequence[RevocationList] = field(default=(), repr=False)

    def judge(
        self, certificate: x509.Certificate, others: Sequence[x509.Certificate], author: str, now: datetime
    ) -> SignatureJudgement:
        """What a signature by this certificate is worth in a mail from `author` (comparable, ASCII) at `now`.

        `others` came with the message: they may complete a path, and prove nothing by themselves.
        """
        try:
            return self._judged(certificate, others, author, now)
        except UNREADABLE as error:
            return SignatureJudgement("bad", f"its certificate is malformed ({type(error).__name__})")

    def _judged(
        self, certificate: x509.Certificate, others: Sequence[x509.Certificate], author: str, now: datetime
    ) -> SignatureJudgement:
        if reason := unusable_for_signing(certificate, now):
            return SignatureJudgement("bad", f"its certificate does not count: {reason}")
        pinned = certificate in self.pinned(author)
        if not pinned and author not in rfc822_names(certificate):
            return SignatureJudgement("bad", "its certificate is for another address")
        path = [certificate, *self.anchors, *others] if pinned else self._path(certificate, others, now)
        if not path:
            return SignatureJudgement("unknown", "its certificate is not pinned, and no CA that counts here issued it")
        return self._revoked(path, now) or SignatureJudgement("good")

    def _path(
        self, certificate: x509.Certificate, others: Sequence[x509.Certificate], now: datetime
    ) -> list[x509.Certificate]:
        """The certificates from this one to an anchor, [] if there is no valid path (RFC 5280, 6.1)."""
        if not self.anchors:
            return []
        # One certificate for each name and key, or the number of paths could be exponential.
        issuers = {(each.subject, octets): each for each in others if (octets := _key_octets(each))}
        builder = PolicyBuilder().store(Store(list(self.anchors))).time(now.replace(tzinfo=None))
        builder = builder.max_chain_depth(MAX_DEPTH).extension_policies(ca_policy=_of_ca(), ee_policy=_of_person())
        try:
            return builder.build_client_verifier().verify(certificate, list(issuers.values())[:MAX_INTERMEDIATES]).chain
        except (VerificationError, *UNREADABLE):
            return []

    def _revoked(self, path: Sequence[x509.Certificate], now: datetime) -> SignatureJudgement | None:
        """Why the CRLs speak against a certificate of this path; the last ones of it may be issuers only."""
        for certificate in path:
            crls = [each for each in self.crls if each.crl.issuer == certificate.issuer]
            # Before their signatures: who left out the CA that made one would pass for somebody who is not on it.
            if any(certificate.serial_number in each.revoked for each in crls):
                return SignatureJudgement("bad", "its certificate or that of its CA was revoked")
            if crls and not any(each.is_current(now) and any(map(each.is_signed_by, path)) for each in crls):
                return SignatureJudgement("unknown", "no CRL of its CA is current and signed by a CA known here")
        return None


def rfc822_names(certificate: x509.Certificate) -> frozenset[str]:
    """The comparable mailboxes in the rfc822Names of its SubjectAlternativeName; none for a certificate without."""
    try:
        names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except x509.ExtensionNotFound:
        return frozenset()
    return frozenset(comparable(name) for name in names.get_values_for_type(x509.RFC822Name))


def _check_ca_usage(_: Policy, __: x509.Certificate, usage: x509.ExtendedKeyUsage | None) -> None:
    """Raises ValueError for a CA that may not issue certificates for mail."""
    if usage is not None and _USES.isdisjoint(usage):
        raise ValueError("not for mail")


def _of_ca() -> ExtensionPolicy:
    policy = ExtensionPolicy.webpki_defaults_ca()
    return policy.may_be_present(x509.ExtendedKeyUsage, Criticality.AGNOSTIC, _check_ca_usage)


def _of_person() -> ExtensionPolicy:
    """Usage and names are checked here; the verifier refuses critical extensions that it does not know."""
    return ExtensionPolicy.permit_all()


def _key_octets(certificate: x509.Certificate) -> bytes:
    """Its public key, b"" for one that is of no use here."""
    try:
        key = certificate.public_key()
    except UNREADABLE:
        return b""
    if not isinstance(key, RSAPublicKey | EllipticCurvePublicKey):
        return b""
    return key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)


def _signed_by(crl: x509.CertificateRevocationList, issuer: x509.Certificate) -> bool:
    algorithm = crl.signature_hash_algorithm
    if algorithm is None or algorithm.name not in _SHA2:
        return False
    try:
        key = issuer.public_key()
        return isinstance(key, RSAPublicKey | EllipticCurvePublicKey) and crl.is_signature_valid(key)
    except UNREADABLE:
        return False
