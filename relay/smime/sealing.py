"""Level smime, outgoing: a message signed by this site, then encrypted to one certificate of its recipients.
Standard: RFC 8551 3.4.2 and 3.7 (signed, then encrypted), RFC 9788 (header protection).
"""

from __future__ import annotations

import secrets
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import UTC, datetime

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric.ec import SECP384R1, EllipticCurvePrivateKey
from cryptography.hazmat.primitives.serialization import pkcs7

from relay.config import ALL_PARTNERS, Config, SMIMESettings
from relay.errors import CannotSeal
from relay.files.stamps import Stamps, stamps_of
from relay.formats import mime
from relay.formats.cms import der, oids as cms_oids
from relay.formats.mailbox import folded_mailbox
from relay.formats.pieces import Pieces
from relay.formats.protected import protected_entity
from relay.identity.certificates import UNREADABLE
from relay.smime import oids
from relay.smime.directory import CertificateDirectory
from relay.smime.enveloping import enveloped_pieces
from relay.smime.own import OwnKey, load_own, signing_key, why_none_signs

_BEFORE = (
    b'Content-Type: multipart/signed; protocol="application/pkcs7-signature";\r\n micalg=%s; boundary="%s"\r\n'
    b"\r\n--%s\r\n"
)
_BEHIND = (
    b'\r\n--%s\r\nContent-Type: application/pkcs7-signature; name="smime.p7s"\r\n'
    b'Content-Transfer-Encoding: base64\r\nContent-Disposition: attachment; filename="smime.p7s"\r\n'
    b"\r\n%s--%s--\r\n"
)
_GCM, _CBC = der.oid(cms_oids.ID_AES256_GCM), der.oid(oids.ID_AES256_CBC)


@dataclass(frozen=True, slots=True)
class SMIMESealer:
    """Seals at level smime with this site's own keys; `directory` has the certificates of others."""

    settings: SMIMESettings
    keys: tuple[OwnKey, ...]
    directory: CertificateDirectory
    domains: frozenset[str]

    @classmethod
    def of(cls, config: Config) -> SMIMESealer | None:
        """As relay.toml says; None without [smime]. Raises ConfigError."""
        if config.smime is None:
            return None
        directory = CertificateDirectory(config.certificates_directory)
        return cls(config.smime, load_own(config.smime.keys), directory, frozenset(config.site.domains))

    def certificate(self, sender: str, recipient: str) -> tuple[x509.Certificate | None, str]:
        """The certificate to seal to for a mailbox, or None and why not."""
        now = datetime.now(UTC)
        if cause := self.not_signed(sender):
            return None, cause
        if signing_key(self.keys, now) is None:
            return None, why_none_signs(self.keys, now)
        found = self.directory.of(recipient)
        certificate = found.to_seal(now)
        return certificate, "" if certificate is not None else found.why_not(now)

    def not_signed(self, sender: str) -> str:
        """Why nothing of this sender is signed, ever, or "": the certificates speak for this site's users."""
        domain = folded_mailbox(sender.removesuffix(".")).rpartition("@")[2]
        if not sender or domain in self.domains:
            return ""
        return "the sender's domain is none of site.domains, for which this site signs"

    def seal(self, original: bytes, certificate: x509.Certificate, mailboxes: Iterable[str]) -> bytes:
        """The message for these mailboxes, which share the certificate. Raises CannotSeal and MalformedMessage."""
        now = datetime.now(UTC)
        own = signing_key(self.keys, now)
        if own is None:
            raise CannotSeal(why_none_signs(self.keys, now))
        domains = {mailbox.rpartition("@")[2] for mailbox in mailboxes}
        shown = mime.shown_header(original, mime.VISIBLE_TO_OTHERS) + b"Subject: [...]\r\n"
        entity = signed(bytes(protected_entity(original, shown)), own)
        cbc = _is_for(self.settings.cbc, domains) or knows_only_cbc(certificate)
        pkcs1 = _is_for(self.settings.pkcs1, domains)
        pieces = enveloped_pieces(entity, certificate, cbc=cbc, pkcs1=pkcs1)
        kind = b"enveloped-data" if cbc else b"authEnveloped-data"
        return mime.sealed_message(original, pieces, kind=kind, shown=shown)


def smime_stamps(config: Config) -> Stamps:
    """Stamps of the files of this site's own keys and certificates."""
    keys = config.smime.keys if config.smime is not None else ()
    return stamps_of(
        path for each in keys for path in (each.certificate, each.key, each.passphrase) if path is not None
    )


def signed(entity: bytes, own: OwnKey) -> Pieces:
    """A multipart/signed entity (RFC 8551, 3.5.3), with the certificates up to the root's child.

    Other than opaque SignedData it makes the message no larger by a third, and all programs know it.
    """
    curve = own.key.curve if isinstance(own.key, EllipticCurvePrivateKey) else None
    digest, name = (hashes.SHA384(), b"sha-384") if isinstance(curve, SECP384R1) else (hashes.SHA256(), b"sha-256")
    builder = pkcs7.PKCS7SignatureBuilder().set_data(entity).add_signer(own.certificate, own.key, digest)
    for each in own.chain:
        if each.issuer != each.subject:
            builder = builder.add_certificate(each)
    options = [
        pkcs7.PKCS7Options.DetachedSignature, pkcs7.PKCS7Options.Binary, pkcs7.PKCS7Options.NoCapabilities,
    ]  # fmt: skip
    signature = mime.base64_text(builder.sign(serialization.Encoding.DER, options))
    boundary = secrets.token_hex(24).encode()
    return Pieces.of(_BEFORE % (name, boundary, boundary), entity, _BEHIND % (boundary, signature, boundary))


def knows_only_cbc(certificate: x509.Certificate) -> bool:
    """Whether its SMIMECapabilities (RFC 4262) name AES-256-CBC, and not AES-256-GCM."""
    try:
        extension = certificate.extensions.get_extension_for_oid(oids.ID_CAPABILITIES).value
    except UNREADABLE:
        return False
    octets = extension.public_bytes()
    return _CBC in octets and _GCM not in octets


def _is_for(partners: tuple[str, ...], domains: set[str]) -> bool:
    return ALL_PARTNERS in partners or not domains.isdisjoint(partners)
