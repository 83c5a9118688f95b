"""Certificates out of a file of any usual kind, and the names under which each may be filed.
Standard: RFC 7468 (PEM), X.690 (DER), RFC 2315 and RFC 5652 (PKCS#7, certificates only).
"""

from __future__ import annotations

import binascii
import re
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime

from cryptography import x509
from cryptography.hazmat.primitives.serialization import pkcs7

from relay.errors import ConfigError
from relay.formats.cms import ber
from relay.identity.certificates import UNREADABLE
from relay.smime.directory import MAX_CERTIFICATES, CertificateDirectory, fingerprint
from relay.smime.usable import addresses_of, domains_of, unusable_for_sealing, unusable_for_signing

MAX_OCTETS = 4 * 2**20
"""Maximum size of a file with certificates, in bytes."""
_PEM = re.compile(rb"-----BEGIN (?:PKCS7|CMS)-----([^-]*)-----END")


@dataclass(frozen=True, slots=True)
class Offered:
    """A certificate to be filed under `names`: the mailboxes that it names, or domains; `uses` says what it is for."""

    certificate: x509.Certificate
    names: tuple[str, ...]
    uses: str


def certificates_in(content: bytes) -> list[x509.Certificate]:
    """The certificates in PEM, DER or PKCS#7 (either encoding). Raises ConfigError for anything else."""
    for read in (
        x509.load_pem_x509_certificates,
        lambda octets: [x509.load_der_x509_certificate(octets)],
        _of_pkcs7,
    ):
        try:
            if found := read(content):
                return found
        except UNREADABLE:
            continue
    raise ConfigError("no certificates in it, neither in PEM, DER nor PKCS#7")


def offered(found: Iterable[x509.Certificate], domains: Iterable[str], now: datetime) -> list[Offered]:
    """What may be filed of these certificates: under `domains` if given, else under the mailboxes that each names.

    Certificates of CAs are left out. Raises ConfigError for one that is of no use, or does not name a domain.
    """
    wanted = tuple(domains)
    result: list[Offered] = []
    for certificate in found:
        if _is_ca(certificate):
            continue
        subject = certificate.subject.rfc4514_string()
        if missing := [each for each in wanted if each not in domains_of(certificate)]:
            raise ConfigError(f"{subject}: names no address at {missing[0]}, and {missing[0]} neither")
        names = wanted or tuple(sorted(addresses_of(certificate)))
        if not names:
            raise ConfigError(f"{subject}: names no mail address; where it is a gateway's, give its --domain")
        result.append(Offered(certificate, names, _uses(certificate, subject, now)))
    if not result:
        raise ConfigError("there are certificates of CAs alone")
    return result


def file_under(directory: CertificateDirectory, name: str, certificate: x509.Certificate) -> None:
    """Adds the certificate to the file of a name, beside those that are there. Raises ConfigError.

    Of more than MAX_CERTIFICATES those that end first are removed.
    """
    before = directory.named(name)
    file = directory.file_of(name)
    if before.cause and file is not None and file.exists():
        raise ConfigError(before.cause)
    each = {fingerprint(one): one for one in (*before.certificates, certificate)}
    newest = sorted(each.values(), key=lambda one: one.not_valid_after_utc, reverse=True)
    directory.put(name, newest[:MAX_CERTIFICATES])


def _of_pkcs7(content: bytes) -> list[x509.Certificate]:
    """Those in PKCS#7, DER or PEM; in any order, as OpenSSL and Windows write the SET of them."""
    armoured = _PEM.search(content)
    octets = binascii.a2b_base64(armoured[1]) if armoured is not None else content
    return pkcs7.load_der_pkcs7_certificates(ber.to_der(octets))


def _uses(certificate: x509.Certificate, subject: str, now: datetime) -> str:
    """What the certificate is good for. Raises ConfigError for neither sealing nor signatures."""
    sealing, signing = unusable_for_sealing(certificate, now), unusable_for_signing(certificate, now)
    if sealing and signing:
        raise ConfigError(f"{subject}: {sealing}")
    return "signatures only" if sealing else "sealing only" if signing else "sealing and signatures"


def _is_ca(certificate: x509.Certificate) -> bool:
    try:
        return certificate.extensions.get_extension_for_class(x509.BasicConstraints).value.ca
    except UNREADABLE:
        return False
