"""The directory of other people's and gateways' certificates: one PEM file for each address or domain.
Standard: the file of an address is used before that of its domain, whole; its name follows from the address.

`bob.example/ben.pem` is for ben@bob.example, `bob.example.pem` for everybody else at bob.example (percent-encoded,
RFC 3986 2.1). A look-up opens at most two files, so a start reads none. A file counts from the next look-up on. An
unreadable file is not gone: nothing is sealed for its address.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from urllib.parse import quote, unquote

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization

from relay.errors import ConfigError
from relay.files import sync_directory, written_beside
from relay.files.stamps import Seen, is_gone, stamp_of
from relay.formats.mailbox import is_folded_domain
from relay.identity.files import read_public
from relay.smime.usable import comparable, named_by, unusable_for_sealing

SUFFIX = ".pem"
MAX_CERTIFICATES = 20
"""Maximum number of certificates in a file: the current ones, and those before."""
_CACHED = 10_000
"""Maximum number of files whose certificates are kept in memory."""


@dataclass(frozen=True, slots=True)
class Found:
    """The certificates for a mailbox. `name` is the mailbox, or the domain, in whose file they are.

    Without any, `cause` says why.
    """

    name: str
    certificates: tuple[x509.Certificate, ...] = ()
    cause: str = ""

    def to_seal(self, now: datetime) -> x509.Certificate | None:
        """The certificate to encrypt to at this aware time: of those that are usable, the one that began last."""
        usable = [each for each in self.certificates if not self._trouble(each, now)]
        return max(usable, key=lambda each: (each.not_valid_before_utc, fingerprint(each)), default=None)

    def why_not(self, now: datetime) -> str:
        """Why `to_seal` has none."""
        troubles = [f"{short_name(each)}: {self._trouble(each, now)}" for each in self.certificates]
        return self.cause or f"no usable certificate of {self.name}: {'; '.join(troubles)}"

    def _trouble(self, certificate: x509.Certificate, now: datetime) -> str:
        if not named_by(certificate, self.name):
            return f"it does not name {self.name}"
        return unusable_for_sealing(certificate, now)


@dataclass(frozen=True, slots=True)
class CertificateDirectory:
    """The certificates of others in files below `path`."""

    path: Path
    _read_before: dict[Path, tuple[Seen, Found]] = field(default_factory=dict, init=False, repr=False, compare=False)

    def of(self, mailbox: str) -> Found:
        """What is there for a mailbox: its own file, else that of its domain; raises nothing."""
        name = comparable(mailbox)
        for each in (name, name.rpartition("@")[2]):
            found = self._read(each)
            if found is not None:
                return found
        return Found(name, cause=f"no certificate of {name} or its domain was imported")

    def named(self, name: str) -> Found:
        """What is there for exactly this comparable mailbox, or domain; raises nothing."""
        return self._read(name) or Found(name, cause=f"no certificate of {name} was imported")

    def in_use(self) -> list[Found]:
        """What is there now for the mailboxes and domains that were looked up lately; blocks."""
        return [self.named(found.name) for _, found in list(self._read_before.values())]

    def names(self) -> Iterator[str]:
        """All mailboxes and domains with a file, sorted. Raises OSError."""
        try:
            entries = sorted(os.scandir(self.path), key=lambda each: each.name)
        except OSError as error:
            if is_gone(error):
                return
            raise
        for entry in entries:
            if entry.is_dir():
                files = sorted(each.name for each in os.scandir(entry.path))
                yield from (f"{_local(each)}@{entry.name}" for each in files if each.endswith(SUFFIX))
            elif entry.name.endswith(SUFFIX):
                yield entry.name.removesuffix(SUFFIX)

    def put(self, name: str, certificates: Sequence[x509.Certificate]) -> None:
        """Writes the file of a comparable mailbox, or domain; without certificates removes it. Raises ConfigError."""
        file = self.file_of(name)
        if file is None:
            raise ConfigError(f"{name!r} is neither a mail address nor a mail domain")
        content = b"".join(each.public_bytes(serialization.Encoding.PEM) for each in certificates)
        try:
            if content:
                file.parent.mkdir(mode=0o755, parents=True, exist_ok=True)
                with written_beside(file, content, mode=0o644, beginning=".writing-") as temporary:
                    temporary.replace(file)
            elif file.exists():
                file.unlink()
                sync_directory(file.parent)
        except OSError as error:
            raise ConfigError(f"{file}: cannot be written: {error.strerror}") from error
        finally:
            if file.parent != self.path:
                with suppress(OSError):  # of one that has files
                    file.parent.rmdir()

    def file_of(self, name: str) -> Path | None:
        """The file of a comparable mailbox, or domain; None for what is neither."""
        local, at, domain = name.rpartition("@")
        if not is_folded_domain(domain) or (at and not local):
            return None
        if at:
            return self.path / domain / f"{quote(local, safe='', errors='surrogatepass')}{SUFFIX}"
        return self.path / f"{domain}{SUFFIX}"

    def _read(self, name: str) -> Found | None:
        """The content of one file, read again if it has changed; None if there is none."""
        file = self.file_of(name)
        if file is None or (stamp := stamp_of(file)) is None:
            return None
        before = self._read_before.get(file)
        if before is not None and before[0] == stamp:
            return before[1]
        found = _parsed(file, name)
        if not found.cause:
            if len(self._read_before) >= _CACHED:
                self._read_before.clear()
            self._read_before[file] = stamp, found
        return found


def fingerprint(certificate: x509.Certificate) -> str:
    """SHA-256 of the certificate, in hexadecimal digits."""
    return certificate.fingerprint(hashes.SHA256()).hex()


def short_name(certificate: x509.Certificate) -> str:
    """The first digits of the fingerprint, enough for a person to find the certificate in `certificates list`."""
    return fingerprint(certificate)[:16]


def _local(file: str) -> str:
    return unquote(file.removesuffix(SUFFIX), errors="surrogatepass")


def _parsed(file: Path, name: str) -> Found:
    try:
        certificates = x509.load_pem_x509_certificates(read_public(file))
    except ConfigError as error:
        return Found(name, cause=str(error))
    except ValueError as error:
        return Found(name, cause=f"{file}: not certificates in PEM: {error}")
    if len(certificates) > MAX_CERTIFICATES:
        return Found(name, cause=f"{file}: more than {MAX_CERTIFICATES} certificates")
    return Found(name, tuple(certificates))
