"""Makes the certificates of a site: its own CA, the four that it issues, and requests to another CA.
Standard: RFC 5280; RFC 9935 (ML-KEM certificates), RFC 9881 (ML-DSA certificates), RFC 2986 (PKCS#10 requests).
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime, timedelta

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric.mldsa import MLDSA87PrivateKey, MLDSA87PublicKey
from cryptography.hazmat.primitives.asymmetric.mlkem import MLKEM1024PublicKey
from cryptography.hazmat.primitives.asymmetric.rsa import RSAPrivateKey, RSAPublicKey
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from relay.identity.pairs import Role

PublicKey = MLKEM1024PublicKey | MLDSA87PublicKey | RSAPublicKey

CA_DAYS = 3652
"""How long our own CA's certificate is valid; it is made anew, for the same key, when a renewal needs it."""
CLOCK_SKEW = timedelta(hours=1)
"""Certificates begin this long ago, because a peer's clock may be slow."""


def ca_certificate(key: MLDSA87PrivateKey, holder: x509.Name, now: datetime) -> x509.Certificate:
    """The self-signed certificate of a site's own CA, valid for CA_DAYS from `now` (aware)."""
    return (
        _builder(holder, holder, key.public_key(), now, now + timedelta(days=CA_DAYS))
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(key.public_key()), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(_key_usage(key_cert_sign=True, crl_sign=True), critical=True)
        .sign(key, None)
    )


def certificate(
    role: Role,
    key: PublicKey,
    *,
    name: str,
    domains: Sequence[str],
    ca: x509.Certificate,
    ca_key: MLDSA87PrivateKey,
    now: datetime,
    days: int,
) -> x509.Certificate:
    """The certificate of one key of the site, valid for `days` from `now` but no longer than the CA's own.

    `domains` are ASCII (A-labels). Raises ValueError where X.509 cannot carry the name or a domain.
    """
    until = min(now + timedelta(days=days), ca.not_valid_after_utc)
    identifier = ca.extensions.get_extension_for_class(x509.SubjectKeyIdentifier).value
    builder = _builder(subject(name, role.label), ca.subject, key, now, until).add_extension(
        x509.AuthorityKeyIdentifier.from_issuer_subject_key_identifier(identifier), critical=False
    )
    for extension, critical in _extensions(role, domains):
        builder = builder.add_extension(extension, critical)
    return builder.sign(ca_key, None)


def signing_request(
    role: Role, key: MLDSA87PrivateKey | RSAPrivateKey, *, name: str, domains: Sequence[str]
) -> x509.CertificateSigningRequest:
    """A PKCS#10 request that asks a CA for the extensions that `certificate` would write.

    There is none for ML-KEM: a request is signed by the key that it is about, and a KEM key cannot sign.
    """
    builder = x509.CertificateSigningRequestBuilder().subject_name(subject(name, role.label))
    for extension, critical in _extensions(role, domains):
        builder = builder.add_extension(extension, critical)
    return builder.sign(key, hashes.SHA512() if isinstance(key, RSAPrivateKey) else None)


def openssl_extensions(stem: str, domains: Sequence[str]) -> str:
    """What `openssl x509 -extfile` needs to certify the ML-KEM key in `stem`.pub, and the command, in a comment."""
    alternative_names = ",".join(f"DNS:{domain}" for domain in domains)
    return f"""\
# The certificate that QuMail Relay needs for {stem}.pub. An ML-KEM key cannot sign, so there is no
# PKCS#10 request for it; whoever runs the CA takes our word that we have the private key.
# With OpenSSL 3.5 or later:
#   openssl x509 -new -force_pubkey {stem}.pub \\
#     -subj "/OU={Role.KEM.label}/CN={domains[0]}" -CA ca.pem -CAkey ca.key \\
#     -days 730 -extfile {stem}.cnf -out {stem}.pem
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
        .public_key(key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - CLOCK_SKEW)
        .not_valid_after(until)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key), critical=False)
    )


def subject(name: str, unit: str) -> x509.Name:
    """Who a certificate is for: the site's name, and what it is to be used for. Raises ValueError."""
    if not name.isprintable():
        raise ValueError("it has characters that cannot be printed")
    return x509.Name(
        [
            x509.NameAttribute(NameOID.ORGANIZATIONAL_UNIT_NAME, unit),
            x509.NameAttribute(NameOID.COMMON_NAME, name),
        ]
    )


def _extensions(role: Role, domains: Sequence[str]) -> list[tuple[x509.ExtensionType, bool]]:
    """What every certificate of a site says, with whether it is critical."""
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
