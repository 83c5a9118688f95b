"""Level smime, incoming: this site's keys and what it trusts, and the reading of mail beside the event loop.
Standard: RFC 8551; RFC 5280 (CAs and CRLs are files that relay.toml names).
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TypeVar

import structlog
from cryptography import x509

from relay.config import Config, SMIMESettings
from relay.errors import CannotOpen, ConfigError
from relay.files.stamps import Stamps, stamps_of
from relay.formats import mime
from relay.identity.certificates import UNREADABLE
from relay.identity.files import read_public
from relay.mail import domain_of
from relay.runtime.aio import off_loop
from relay.smime.directory import CertificateDirectory, fingerprint
from relay.smime.offers import Offers
from relay.smime.own import OwnKey
from relay.smime.reading import SMIMEReading, may_be_smime, read
from relay.smime.trust import RevocationList, Trust
from relay.smime.usable import named_by, unusable_for_sealing

log = structlog.get_logger(__name__)

_PEM = b"-----BEGIN"
T = TypeVar("T")


@dataclass(slots=True)
class SMIMEOpener:
    """Reads S/MIME mail with the site's own keys; a changed file of anchors or CRLs counts from the next mail on."""

    settings: SMIMESettings
    domains: Sequence[str]
    keys: Callable[[], Sequence[OwnKey]]
    pinned: Callable[[str], Sequence[x509.Certificate]]
    offers: Offers
    _trust: Trust
    _read_at: Stamps

    @classmethod
    def of(cls, config: Config, keys: Callable[[], Sequence[OwnKey]]) -> SMIMEOpener | None:
        """As relay.toml says, with the keys in force; None without [smime]. Raises ConfigError."""
        settings = config.smime
        if settings is None:
            return None
        directory = CertificateDirectory(config.certificates_directory)
        offers = Offers(CertificateDirectory(config.offered_certificates_directory))
        return cls.of_settings(settings, config.site.domains, keys, directory, offers)

    @classmethod
    def of_settings(
        cls,
        settings: SMIMESettings,
        domains: Sequence[str],
        keys: Callable[[], Sequence[OwnKey]],
        directory: CertificateDirectory,
        offers: Offers,
    ) -> SMIMEOpener:
        """As `of`, from its parts. Raises ConfigError."""
        pinned, read_at = pinned_in(directory), _stamps(settings)
        return cls(settings, domains, keys, pinned, offers, trusted(settings, pinned), read_at)

    async def read(self, message: bytes, mailboxes: Sequence[str]) -> SMIMEReading | None:
        """The mail to these mailboxes, opened and verified in a thread; None if it is neither for us nor signed.

        Raises CannotOpen for one that is for us, and goes on as it came.
        """
        if not await off_loop(mime.header_work(message), may_be_smime, message):
            return None
        try:
            reading = await asyncio.to_thread(self._read, message, mailboxes)
        except CannotOpen as error:
            log.warning("smime_not_opened", cause=str(error), recipients=len(mailboxes))
            raise
        if reading is not None:
            verdict, reason = reading.signature
            facts = {"signed": verdict, "reason": reason, "signer": reading.signer}
            if reading.opened:
                log.info("smime_opened", **facts, unauthenticated=reading.unauthenticated)
            else:
                log.info("smime_verified", **facts)
        return reading

    def _read(self, message: bytes, mailboxes: Sequence[str]) -> SMIMEReading | None:
        now = datetime.now(UTC)
        reading = read(message, self.keys(), self.trusted(), mailboxes, now)
        if reading is not None and reading.offered is not None:
            self._keep(*reading.offered, now, vouched=reading.signature.verdict == "good")
        return reading

    def _keep(self, author: str, certificate: x509.Certificate, now: datetime, *, vouched: bool) -> None:
        """Keeps a certificate that the administrator may accept: one of others, to which could be sealed."""
        if domain_of(author) in self.domains or unusable_for_sealing(certificate, now):
            return
        if certificate in self.pinned(author):
            return
        try:
            if self.offers.keep(author, certificate, now, vouched=vouched):
                log.info("certificate_offered", address=author, fingerprint=fingerprint(certificate), known_ca=vouched)
        except (ConfigError, OSError) as error:
            log.warning("offered_certificate_not_kept", cause=str(error))

    def trusted(self) -> Trust:
        """What is trusted now; after a faulty edit, what was."""
        if (now := _stamps(self.settings)) != self._read_at:
            self._read_at = now
            try:
                self._trust = trusted(self.settings, self.pinned)
            except ConfigError as error:
                log.error("smime_trust_not_reloaded", problems=error.problems)
        return self._trust

    async def opens(self, message: bytes, mailboxes: Sequence[str]) -> bool:
        """Whether `read` opens the mail to these mailboxes."""
        if not await off_loop(mime.header_work(message), may_be_smime, message):
            return False
        try:
            now = datetime.now(UTC)
            reading = await asyncio.to_thread(read, message, self.keys(), self.trusted(), mailboxes, now)
        except CannotOpen:
            return False
        return reading is not None and reading.opened


def trusted(settings: SMIMESettings, pinned: Callable[[str], Sequence[x509.Certificate]]) -> Trust:
    """What the site trusts, with the anchors and CRLs of relay.toml. Raises ConfigError."""
    anchors = [each for file in settings.anchors for each in _certificates(file)]
    return Trust(pinned, anchors, [_crl(file) for file in settings.crls])


def _stamps(settings: SMIMESettings) -> Stamps:
    return stamps_of((*settings.anchors, *settings.crls))


def pinned_in(directory: CertificateDirectory) -> Callable[[str], Sequence[x509.Certificate]]:
    """Returns the certificates in the file of a comparable mailbox and in that of its domain, if they name it."""

    def pinned(mailbox: str) -> list[x509.Certificate]:
        found = (directory.named(mailbox), directory.named(mailbox.rpartition("@")[2]))
        return [each for some in found for each in some.certificates if named_by(each, some.name)]

    return pinned


def _certificates(file: Path) -> list[x509.Certificate]:
    certificates = _read(file, x509.load_pem_x509_certificates, "certificates in PEM")
    for each in certificates:
        if not _is_ca(each):
            raise ConfigError(
                f"{file}: {each.subject.rfc4514_string()}: not the certificate of a CA (basicConstraints)"
            )
    return certificates


def _is_ca(certificate: x509.Certificate) -> bool:
    try:
        return certificate.extensions.get_extension_for_class(x509.BasicConstraints).value.ca
    except UNREADABLE:
        return False


def _crl(file: Path) -> RevocationList:
    def load(content: bytes) -> RevocationList:
        pem = content.startswith(_PEM)
        return RevocationList.of(x509.load_pem_x509_crl(content) if pem else x509.load_der_x509_crl(content))

    return _read(file, load, "a CRL in PEM or DER")


def _read(file: Path, load: Callable[[bytes], T], what: str) -> T:
    content = read_public(file)
    try:
        return load(content)
    except UNREADABLE as error:
        raise ConfigError(f"{file}: not {what}: {error}") from error
