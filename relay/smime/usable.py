"""Whom an S/MIME certificate names, and what it may be used for.
Standard: RFC 8550 3 and 4.4 (names, key usage), RFC 9598 (SmtpUTF8Mailbox), RFC 5280 4.2.1.

A certificate of others may be malformed. Then it names nobody and is used for nothing.
"""

from __future__ import annotations

from collections.abc import Iterator
from datetime import datetime
from typing import TypeVar

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePublicKey
from cryptography.hazmat.primitives.asymmetric.rsa import RSAPublicKey
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from relay.formats.cms import der
from relay.formats.mailbox import folded_mailbox
from relay.identity.certificates import MAX_RSA_BITS, UNREADABLE, valid_now

MIN_RSA_BITS = 2048
"""Minimum length of an RSA key, in bits (CA/Browser Forum S/MIME BR, 6.1.5)."""
CURVES = ("secp256r1", "secp384r1")

_SMTP_UTF8_MAILBOX = x509.ObjectIdentifier("1.3.6.1.5.5.7.8.9")
_Extension = TypeVar("_Extension", bound=x509.ExtensionType)
_MAIL_USES = frozenset({ExtendedKeyUsageOID.EMAIL_PROTECTION, ExtendedKeyUsageOID.ANY_EXTENDED_KEY_USAGE})


def comparable(address: str) -> str:
    """An address as certificates are looked up: as `folded_mailbox`, without the case of an ASCII local part.

    In Unicode some letters become others in lower case: the Kelvin sign would be k.
    """
    folded = folded_mailbox(address)
    return folded.lower() if folded.isascii() else folded


def addresses_of(certificate: x509.Certificate) -> frozenset[str]:
    """The mailboxes that it names, comparable: rfc822Name, SmtpUTF8Mailbox, and emailAddress of the subject."""
    try:
        return frozenset(map(comparable, _addresses(certificate)))
    except UNREADABLE:
        return frozenset()


def domains_of(certificate: x509.Certificate) -> frozenset[str]:
    """The mail domains that it names: its dNSNames, and those of its mailboxes."""
    try:
        names = (name.lower() for name in _alternative_names(certificate).get_values_for_type(x509.DNSName))
        return frozenset((*names, *(each.rpartition("@")[2] for each in addresses_of(certificate))))
    except UNREADABLE:
        return frozenset()


def named_by(certificate: x509.Certificate, name: str) -> bool:
    """Whether it names this comparable mailbox, or this domain."""
    return name in (addresses_of(certificate) if "@" in name else domains_of(certificate))


def unusable_for_sealing(certificate: x509.Certificate, now: datetime) -> str:
    """Why nothing may be encrypted to it at this aware time, or ""."""
    try:
        return _not_valid(certificate, now) or _not_meant(certificate, signing=False)
    except UNREADABLE as error:
        return f"it is malformed ({type(error).__name__})"


def unusable_for_signing(certificate: x509.Certificate, now: datetime) -> str:
    """Why no signature of this aware time is by it, or ""."""
    try:
        return _not_valid(certificate, now) or _not_meant(certificate, signing=True)
    except UNREADABLE as error:
        return f"it is malformed ({type(error).__name__})"


def is_for_signatures_alone(certificate: x509.Certificate) -> bool:
    """Whether nothing could ever be encrypted to it, and signatures by it can be good."""
    try:
        return bool(_not_meant(certificate, signing=False)) and not _not_meant(certificate, signing=True)
    except UNREADABLE:
        return False


def _not_valid(certificate: x509.Certificate, now: datetime) -> str:
    if valid_now(certificate, now):
        return ""
    if now < certificate.not_valid_before_utc:
        return f"it is not valid before {certificate.not_valid_before_utc:%Y-%m-%d}"
    return f"it ended on {certificate.not_valid_after_utc:%Y-%m-%d}"


def _not_meant(certificate: x509.Certificate, *, signing: bool) -> str:
    """What key, key usage or extended key usage say against it (RFC 8550, 4.4.2 and 4.4.4)."""
    match key := certificate.public_key():
        case RSAPublicKey() if not MIN_RSA_BITS <= key.key_size <= MAX_RSA_BITS:
            return f"its RSA key has {key.key_size} bits; {MIN_RSA_BITS} to {MAX_RSA_BITS} are accepted"
        case EllipticCurvePublicKey() if key.curve.name not in CURVES:
            return f"its key is on curve {key.curve.name}; known are P-256 and P-384"
        case RSAPublicKey() | EllipticCurvePublicKey():
            pass
        case _:
            return "its key is neither RSA nor on an elliptic curve"
    usage = _extension(certificate, x509.KeyUsage)
    if usage is not None:
        encrypts = usage.key_encipherment if isinstance(key, RSAPublicKey) else usage.key_agreement
        if not (usage.digital_signature or usage.content_commitment if signing else encrypts):
            return f"its key may not {'sign' if signing else 'encrypt'} (keyUsage)"
    uses = _extension(certificate, x509.ExtendedKeyUsage)
    if uses is not None and _MAIL_USES.isdisjoint(uses):
        return "it is not for mail (extendedKeyUsage)"
    return ""


def _addresses(certificate: x509.Certificate) -> Iterator[str]:
    names = _alternative_names(certificate)
    yield from names.get_values_for_type(x509.RFC822Name)
    for other in names.get_values_for_type(x509.OtherName):
        if other.type_id == _SMTP_UTF8_MAILBOX:
            yield der.parse(str, other.value, "SmtpUTF8Mailbox")
    for attribute in certificate.subject.get_attributes_for_oid(NameOID.EMAIL_ADDRESS):
        if isinstance(attribute.value, str):
            yield attribute.value


def _alternative_names(certificate: x509.Certificate) -> x509.SubjectAlternativeName:
    return _extension(certificate, x509.SubjectAlternativeName) or x509.SubjectAlternativeName(())


def _extension(certificate: x509.Certificate, kind: type[_Extension]) -> _Extension | None:
    try:
        return certificate.extensions.get_extension_for_class(kind).value
    except x509.ExtensionNotFound:
        return None
