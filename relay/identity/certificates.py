"""The certificates of sites: validation before use, and issuing of this site's own.
Standard: RFC 5280; draft-ietf-lamps-pq-composite-kem (keyEncipherment alone), draft-ietf-lamps-pq-composite-sigs,
RFC 2986 (PKCS#10 requests).
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from datetime import datetime, timedelta

from cryptography import x509
from cryptography.exceptions import InternalError, InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric.rsa import RSAPrivateKey, RSAPublicKey
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from relay.errors import BadStructure
from relay.formats.characters import is_printable
from relay.formats.cms import der
from relay.identity import x509_keys
from relay.identity.composite import CompositeKEMPublicKey, CompositeSigningPrivateKey, CompositeSigningPublicKey
from relay.identity.pairs import Role, public_key, subject_key_identifier
from relay.identity.x509_keys import PublicKey, certified, identifier_of, key_of, requested

CA_DAYS = 3652
"""Validity of our own CA's certificate, in days; a renewal issues a new one for the same key if needed."""
CLOCK_SKEW = timedelta(hours=1)
"""Time by which certificates are backdated, because a peer's clock may be slow."""
MIN_RSA_BITS = 4096
MAX_RSA_BITS = 8192
"""Maximum RSA key length, in bits; a longer key would only cost time."""
MAX_RSA_EXPONENT = 2**32
KEM_ALGORITHM = "id-MLKEM1024-ECDH-P384-SHA3-256"
SKI_LENGTH = 20
"""Length of the SubjectKeyIdentifier by which we name recipients, in octets."""

UNREADABLE = (
    ValueError,
    TypeError,
    InvalidSignature,
    UnsupportedAlgorithm,
    InternalError,
    BadStructure,
    x509.InvalidVersion,
    x509.DuplicateExtension,
    x509.ExtensionNotFound,
    x509.UnsupportedGeneralNameType,
)
"""Exceptions of `cryptography` for an invalid certificate."""

_KEY_TYPES = {
    Role.KEM: CompositeKEMPublicKey,
    Role.SIGNING: CompositeSigningPublicKey,
    Role.RSA_ENCRYPTION: RSAPublicKey,
    Role.RSA_SIGNING: RSAPublicKey,
}
_UNDERSTOOD = (
    x509.BasicConstraints,
    x509.KeyUsage,
    x509.ExtendedKeyUsage,
    x509.SubjectAlternativeName,
    x509.NameConstraints,
    x509.CertificatePolicies,
)
"""Extensions that may be critical: those that are checked here, and those that bind only the CA."""


def valid_now(certificate: x509.Certificate, now: datetime) -> bool:
    """Whether `now`, an aware time, lies in the certificate's validity (RFC 5280, 4.1.2.5: both ends included)."""
    return certificate.not_valid_before_utc <= now <= certificate.not_valid_after_utc


def domains_of(certificate: x509.Certificate) -> tuple[str, ...]:
    """The dNSNames of its SubjectAlternativeName, in lower case; none without that extension."""
    try:
        names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except x509.ExtensionNotFound:
        return ()
    return tuple(name.lower() for name in names.get_values_for_type(x509.DNSName))


def check_ca(certificate: x509.Certificate) -> None:
    """Raises ValueError with the reason if a certificate is not that of an acceptable CA."""
    try:
        extensions = certificate.extensions
        if not extensions.get_extension_for_class(x509.BasicConstraints).value.ca:
            raise ValueError("it is not the certificate of a CA (basicConstraints)")
        if not extensions.get_extension_for_class(x509.KeyUsage).value.key_cert_sign:
            raise ValueError("its key may not sign certificates (keyUsage)")
        _check_rsa(certificate)
        _check_critical(certificate)
    except UNREADABLE as error:
        raise ValueError(_reason(error)) from error


def check_certificate(certificate: x509.Certificate, role: Role) -> None:
    """Raises ValueError with the reason if a certificate is unusable in this role; ignores dates and issuer."""
    try:
        _check_type(certificate, role)
        _check_rsa(certificate)
        _check_usage(certificate, role)
        _check_critical(certificate)
        _check_identifier(certificate)
        if not domains_of(certificate):
            raise ValueError("it names no mail domain (subjectAltName, dNSName)")
    except UNREADABLE as error:
        raise ValueError(_reason(error)) from error


def check_issued_by(certificate: x509.Certificate, ca: x509.Certificate) -> None:
    """Raises ValueError unless `ca` issued the certificate: names and signature (RFC 5280, 6.1.3)."""
    try:
        x509_keys.check_issued_by(certificate, ca)
    except UNREADABLE as error:
        raise ValueError("the site's CA certificate did not issue it") from error


def _check_type(certificate: x509.Certificate, role: Role) -> None:
    if not isinstance(key_of(certificate), _KEY_TYPES[role]):
        raise TypeError(f"its key is not one for {role.label}")


def _check_rsa(certificate: x509.Certificate) -> None:
    key = key_of(certificate)
    if not isinstance(key, RSAPublicKey):
        return
    if not MIN_RSA_BITS <= key.key_size <= MAX_RSA_BITS:
        raise ValueError(f"its RSA key has {key.key_size} bits; from {MIN_RSA_BITS} to {MAX_RSA_BITS} are taken")
    if key.public_numbers().e > MAX_RSA_EXPONENT:
        raise ValueError("its RSA key has a public exponent above 32 bits")


def _check_identifier(certificate: x509.Certificate) -> None:
    """Raises ValueError unless the SubjectKeyIdentifier is derived from the key: messages name certificates by it."""
    ski = subject_key_identifier(certificate)
    if len(ski) != SKI_LENGTH:
        raise ValueError(f"its subjectKeyIdentifier has {len(ski)} octets, not {SKI_LENGTH}")
    if ski not in _identifiers(certificate):
        raise ValueError(
            "its subjectKeyIdentifier is not made from its public key (RFC 5280, 4.2.1.2; RFC 7093): "
            "have the CA make it of the key, as OpenSSL does with `subjectKeyIdentifier = hash`"
        )


def _identifiers(certificate: x509.Certificate) -> Iterator[bytes]:
    """Usual identifiers of a public key: SHA-1 of its bits or of SubjectPublicKeyInfo, RFC 7093's methods 1 to 3."""
    info = public_key(certificate)
    [inside] = der.children(info, 1)
    bits = der.children(inside, 2)[1][1:]
    for digest in ("sha1", "sha256", "sha384", "sha512"):
        yield hashlib.new(digest, bits, usedforsecurity=False).digest()[:SKI_LENGTH]
    yield hashlib.sha1(info, usedforsecurity=False).digest()


def _check_usage(certificate: x509.Certificate, role: Role) -> None:
    extensions = certificate.extensions
    usage = extensions.get_extension_for_class(x509.KeyUsage).value
    if role.signs and not usage.digital_signature:
        raise ValueError("its keyUsage lacks digitalSignature")
    if not role.signs and not usage.key_encipherment:
        raise ValueError("its keyUsage lacks keyEncipherment")
    if role is Role.KEM and usage != _key_usage(key_encipherment=True):
        raise ValueError("keyEncipherment must be the only keyUsage of a KEM's certificate (RFC 9935)")
    if role is Role.SIGNING and (usage.key_encipherment or usage.data_encipherment or usage.key_agreement):
        raise ValueError("a signing certificate may only sign (RFC 9881)")
    if usage.key_cert_sign or _is_ca(certificate):
        raise ValueError("it is the certificate of a CA")


def _is_ca(certificate: x509.Certificate) -> bool:
    try:
        return certificate.extensions.get_extension_for_class(x509.BasicConstraints).value.ca
    except x509.ExtensionNotFound:
        return False


def _check_critical(certificate: x509.Certificate) -> None:
    """Raises ValueError for an unknown critical extension (RFC 5280, 4.2)."""
    for extension in certificate.extensions:
        if extension.critical and not isinstance(extension.value, _UNDERSTOOD):
            raise ValueError(f"it has a critical extension that is not understood: {extension.oid.dotted_string}")


def _reason(error: Exception) -> str:
    return str(error) or "it cannot be read"


# Issuing our own


def ca_certificate(key: CompositeSigningPrivateKey, holder: x509.Name, now: datetime) -> x509.Certificate:
    """The self-signed certificate of a site's own CA, valid for CA_DAYS from `now` (aware)."""
    public = key.public_key()
    builder = (
        _builder(holder, holder, public, now, now + timedelta(days=CA_DAYS))
        .add_extension(x509.AuthorityKeyIdentifier(identifier_of(public), None, None), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(_key_usage(key_cert_sign=True, crl_sign=True), critical=True)
    )
    return certified(builder, public, key.sign)


def certificate(
    role: Role,
    key: PublicKey,
    *,
    name: str,
    domains: Sequence[str],
    ca: x509.Certificate,
    ca_key: CompositeSigningPrivateKey,
    now: datetime,
    days: int,
) -> x509.Certificate:
    """The certificate of one key of the site, valid for `days` from `now` but no longer than the CA's own.

    `domains` are ASCII (A-labels). Raises ValueError if X.509 cannot encode the name or a domain.
    """
    until = min(now + timedelta(days=days), ca.not_valid_after_utc)
    identifier = ca.extensions.get_extension_for_class(x509.SubjectKeyIdentifier).value
    builder = _builder(subject(name, role.label), ca.subject, key, now, until).add_extension(
        x509.AuthorityKeyIdentifier.from_issuer_subject_key_identifier(identifier), critical=False
    )
    for extension, critical in _extensions(role, domains):
        builder = builder.add_extension(extension, critical)
    return certified(builder, key, ca_key.sign)


def signing_request(
    role: Role, key: CompositeSigningPrivateKey | RSAPrivateKey, *, name: str, domains: Sequence[str]
) -> x509.CertificateSigningRequest:
    """A PKCS#10 request that asks a CA for the extensions that `certificate` would write.

    Not for a KEM's key: a request is signed by its own key, and a KEM key cannot sign.
    """
    builder = x509.CertificateSigningRequestBuilder().subject_name(subject(name, role.label))
    for extension, critical in _extensions(role, domains):
        builder = builder.add_extension(extension, critical)
    return builder.sign(key, hashes.SHA512()) if isinstance(key, RSAPrivateKey) else requested(builder, key)


def kem_extensions(stem: str, domains: Sequence[str]) -> str:
    """The extensions of the certificate that the CA has to issue for the KEM's key in `stem`.pub, as OpenSSL writes."""
    alternative_names = ",".join(f"DNS:{domain}" for domain in domains)
    return f"""\
# The certificate that QuMail Relay needs for {stem}.pub. A KEM's key cannot sign, so there is no
# PKCS#10 request for it; the CA takes our word that we have the private key.
# The CA must know {KEM_ALGORITHM} (draft-ietf-lamps-pq-composite-kem).
# Subject: /OU={Role.KEM.label}/CN={domains[0]}
basicConstraints = critical,CA:FALSE
keyUsage = critical,keyEncipherment
extendedKeyUsage = emailProtection
subjectAltName = {alternative_names}
subjectKeyIdentifier = hash
authorityKeyIdentifier = keyid
"""


def _builder(
    holder: x509.Name, issuer: x509.Name, key: PublicKey, now: datetime, until: datetime
) -> x509.CertificateBuilder:
    return (
        x509.CertificateBuilder()
        .subject_name(holder)
        .issuer_name(issuer)
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - CLOCK_SKEW)
        .not_valid_after(until)
        .add_extension(x509.SubjectKeyIdentifier(identifier_of(key)), critical=False)
    )


def subject(name: str, unit: str) -> x509.Name:
    """Returns a certificate's subject: the site's name, and the certificate's use. Raises ValueError."""
    if not is_printable(name):
        raise ValueError("it has characters that cannot be printed")
    return x509.Name(
        [x509.NameAttribute(NameOID.ORGANIZATIONAL_UNIT_NAME, unit), x509.NameAttribute(NameOID.COMMON_NAME, name)]
    )


def _extensions(role: Role, domains: Sequence[str]) -> list[tuple[x509.ExtensionType, bool]]:
    """The extensions of every certificate of a site, each with its critical flag."""
    usage = _key_usage(digital_signature=role.signs, key_encipherment=not role.signs)
    return [
        (x509.BasicConstraints(ca=False, path_length=None), True),
        (usage, True),
        (x509.ExtendedKeyUsage([ExtendedKeyUsageOID.EMAIL_PROTECTION]), False),
        (x509.SubjectAlternativeName([x509.DNSName(domain) for domain in domains]), False),
    ]


def _key_usage(
    *,
    digital_signature: bool = False,
    key_encipherment: bool = False,
    key_cert_sign: bool = False,
    crl_sign: bool = False,
) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=digital_signature,
        key_encipherment=key_encipherment,
        key_cert_sign=key_cert_sign,
        crl_sign=crl_sign,
        content_commitment=False,
        data_encipherment=False,
        key_agreement=False,
        encipher_only=False,
        decipher_only=False,
    )
