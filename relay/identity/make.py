"""Creates and renews a site's keys and certificates, under its own CA or for certification by an organisation's CA.
Standard: PKCS#10 (RFC 2986) for the three keys that can sign; a bare public key for the KEM, which cannot.

A key is written before its certificate: an interrupted run leaves the previous keys usable, and the next run completes
it.

A PKCS#10 request proves possession of the private key by a signature. A KEM's key cannot sign, and the statement of
possession of RFC 9883 needs a CA that supports it. So the CA gets the public key and the required
extensions, and trusts the site. A false claim would harm the site alone, which could not open mail sealed for it. The
certificate of the CA itself, `ca.pem`, is put beside the others. It may be an intermediate one; peers pin it together
with our signing key.
"""

from __future__ import annotations

import base64
import textwrap
from collections.abc import Callable, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import NotRequired, TypedDict, Unpack

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.hazmat.primitives.serialization import Encoding

from relay.errors import ConfigError
from relay.files.stamps import files_in
from relay.formats.mailbox import is_folded_domain
from relay.identity import certificates, files, further
from relay.identity.composite import (
    CompositeKEMPrivateKey,
    CompositeSigningPrivateKey,
    kem_key,
    signing_key,
)
from relay.identity.directory import (
    as_rsa,
    ca_stem,
    file_of,
    load_identity,
    read_certificate,
    read_key,
    read_passphrase,
    stem_of,
    stems,
    write_certificate,
    write_key,
)
from relay.identity.pairs import Identity, PrivateKey, Role
from relay.identity.x509_keys import info_of

VALID_DAYS = 730
"""Default validity of a certificate, in days."""
RSA_BITS = 4096

Progress = Callable[[str], None]
"""Progress callback, called before each key; RSA takes seconds."""


class About(TypedDict):
    """Common arguments of creating, renewing and requesting.

    `name` is the site's, `domains` are in A-labels; `passphrase` is the file with the passphrase of the private keys.
    `kems` are the further KEMs to create keys for; `now` is aware.
    """

    name: str
    domains: Sequence[str]
    kems: NotRequired[Sequence[str]]
    valid_days: NotRequired[int]
    passphrase: NotRequired[Path | None]
    now: NotRequired[datetime]
    progress: NotRequired[Progress]


def create_identity(directory: Path, **about: Unpack[About]) -> Identity:
    """Creates the missing parts of an identity in `directory`: CA, four keys and their certificates.

    An interrupted run is completed by the next one. Raises ConfigError, also if the identity is complete.
    """
    maker = _Maker(directory, **about)
    with files.changing(directory):
        missing = [role for role in Role if not maker.has_certificate(role)]
        missing_kems = [kem for kem in dict.fromkeys(maker.kems) if kem not in further.names_in(directory)]
        if missing or not missing_kems:
            _refuse_requested(directory)
        if not missing and not missing_kems:
            raise ConfigError(f"{directory}: the identity is complete; `qumail-relay identity new --renew` renews it")
        if missing:
            ca, ca_key = maker.ca()
            for role in missing:
                maker.certify(role, maker.waiting_key(role) or maker.new_key(role), ca, ca_key)
        for kem in missing_kems:
            maker.new_further_kem(kem)
    return maker.loaded()


def needs_nothing(directory: Path) -> bool:
    """Whether `create_identity` has nothing to do: each role has a certificate, or they were requested from a CA."""
    return all(_has_certificate(directory, role) for role in Role) or bool(files_in(directory, "*.csr"))


def renew_identity(directory: Path, **about: Unpack[About]) -> Identity:
    """Creates new encryption keys, and new certificates for all four roles, from the site's own CA.

    The signing keys and the CA's key stay, so that peers still recognise us; the previous encryption keys stay for
    opening. The same applies to the existing further KEMs and those of `kems`. Peers need the new peer
    document before the old certificates end. Raises ConfigError.
    """
    _refuse_requested(directory)
    about["kems"] = tuple(dict.fromkeys((*further.names_in(directory), *about.get("kems", ()))))
    maker = _Maker(directory, **about)
    before = maker.loaded()
    # Newer than the previous ones, even if the clock went back.
    newest = max(certificate.not_valid_before_utc for certificate in before.certificates.values())
    maker.now = max(maker.now, newest + certificates.CLOCK_SKEW + timedelta(seconds=1))
    with files.changing(directory):
        ca, ca_key = maker.renewed_ca()
        maker.certify(Role.SIGNING, before.signing.private_key, ca, ca_key)
        maker.certify(Role.RSA_SIGNING, before.rsa_signing.private_key, ca, ca_key)
        for role in (Role.KEM, Role.RSA_ENCRYPTION):
            maker.certify(role, maker.new_key(role), ca, ca_key)
        for kem in maker.kems:
            maker.new_further_kem(kem)
    return load_identity(directory, passphrase=about.get("passphrase"), now=about.get("now"))


def request_certificates(directory: Path, *, renew: bool = False, **about: Unpack[About]) -> list[Path]:
    """Creates the missing ones of the four keys and returns the files for the organisation's CA.

    With `renew` it creates new encryption keys and requests all four certificates again. The current ones stay in use
    until the new certificates exist. A second call repeats the same requests. Raises ConfigError.
    """
    maker = _Maker(directory, **about)
    before = maker.loaded() if renew else None
    with files.changing(directory):
        if file_of(ca_stem(directory), "key").exists():
            raise ConfigError(f"{directory}: this identity has its own CA (ca.key); request another one elsewhere")
        requested: list[Path] = []
        for role in Role:
            if (key := _key_to_certify(maker, role, before)) is not None:
                requested += maker.request(role, key)
    if not requested:
        raise ConfigError(f"{directory}: all certificates are here; --renew asks for new ones")
    return requested


def _has_certificate(directory: Path, role: Role) -> bool:
    return any(file_of(stem, "pem").exists() for stem in stems(directory, role))


def _no_progress(step: str) -> None:
    """Progress callback that does nothing."""


def _refuse_requested(directory: Path) -> None:
    if bool(files_in(directory, "*.csr")):
        raise ConfigError(
            f"{directory}: an organisation's CA was asked for these certificates (*.csr): put them here as .pem files, "
            "renew them with --csr --renew, or use another directory to begin anew"
        )


def _key_to_certify(maker: _Maker, role: Role, before: Identity | None) -> PrivateKey | None:
    if waiting := maker.waiting_key(role):
        return waiting
    if before is not None and role is Role.SIGNING:
        return before.signing.private_key
    if before is not None and role is Role.RSA_SIGNING:
        return before.rsa_signing.private_key
    if before is not None or not maker.has_certificate(role):
        return maker.new_key(role)
    return None


def _pem(label: str, octets: bytes) -> bytes:
    """RFC 7468, in lines of 64 characters."""
    lines = textwrap.wrap(base64.b64encode(octets).decode(), 64)
    return "\n".join((f"-----BEGIN {label}-----", *lines, f"-----END {label}-----", "")).encode()


class _Maker:
    """The common steps of all three, with their arguments."""

    def __init__(self, directory: Path, **about: Unpack[About]) -> None:
        self._name, self._domains = about["name"], about["domains"]
        try:
            certificates.subject(self._name, "CA")
        except ValueError as error:
            raise ConfigError(f"{self._name!r}: not a name that a certificate can carry: {error}") from error
        if invalid := [domain for domain in self._domains if not is_folded_domain(domain)]:
            raise ConfigError(f"{', '.join(invalid)}: not a mail domain in ASCII (A-labels), as certificates need it")
        if not self._domains:
            raise ConfigError("an identity needs at least one mail domain")
        self.kems = about.get("kems", ())
        further.check_names(self.kems)
        self.directory, self.now = directory, about.get("now") or datetime.now(UTC)
        self._days, self._progress = about.get("valid_days", VALID_DAYS), about.get("progress", _no_progress)
        self._passphrase_file = about.get("passphrase")
        self._passphrase = read_passphrase(self._passphrase_file)

    def loaded(self) -> Identity:
        """The current identity. Raises ConfigError."""
        return load_identity(self.directory, passphrase=self._passphrase_file, now=self.now)

    def has_certificate(self, role: Role) -> bool:
        """Whether there is a key with a certificate for this role."""
        return _has_certificate(self.directory, role)

    def ca(self) -> tuple[x509.Certificate, CompositeSigningPrivateKey]:
        """The CA, created if missing."""
        key_path, path = (file_of(ca_stem(self.directory), suffix) for suffix in ("key", "pem"))
        if not key_path.exists():
            if path.exists():
                raise ConfigError(f"{key_path}: missing; put the CA's private key back here to issue certificates")
            self._progress("the CA (ML-DSA-87 and P-384)")
            write_key(key_path, CompositeSigningPrivateKey.generate(), self._passphrase)
        key = read_key(key_path, signing_key, self._passphrase)
        if not path.exists():
            holder = certificates.subject(self._name, "QuMail Relay CA")
            write_certificate(path, certificates.ca_certificate(key, holder, self.now))
        return read_certificate(path), key

    def renewed_ca(self) -> tuple[x509.Certificate, CompositeSigningPrivateKey]:
        """The CA, with a new certificate for the same key if it would end before those it issues."""
        ca, key = self.ca()
        if ca.not_valid_after_utc < self.now + timedelta(days=self._days):
            ca = certificates.ca_certificate(key, ca.subject, self.now)
            write_certificate(file_of(ca_stem(self.directory), "pem"), ca)
        return ca, key

    def waiting_key(self, role: Role) -> PrivateKey | None:
        """A key that has no certificate yet."""
        waiting = [stem for stem in stems(self.directory, role) if not file_of(stem, "pem").exists()]
        if not waiting:
            return None
        path = file_of(waiting[-1], "key")
        if role is Role.KEM:
            return read_key(path, kem_key, self._passphrase)
        if role is Role.SIGNING:
            return read_key(path, signing_key, self._passphrase)
        return read_key(path, as_rsa, self._passphrase)

    def new_key(self, role: Role) -> PrivateKey:
        """Creates and writes a key."""
        self._progress(role.label)
        key: PrivateKey
        if role is Role.KEM:
            key = CompositeKEMPrivateKey.generate()
        elif role is Role.SIGNING:
            key = CompositeSigningPrivateKey.generate()
        else:
            key = rsa.generate_private_key(public_exponent=65537, key_size=RSA_BITS)
        write_key(file_of(stem_of(self.directory, role, key.public_key()), "key"), key, self._passphrase)
        return key

    def new_further_kem(self, name: str) -> None:
        """Creates and writes a pair of a further KEM."""
        self._progress(name)
        further.make_pair(self.directory, name, self._passphrase, self.now)

    def certify(self, role: Role, key: PrivateKey, ca: x509.Certificate, ca_key: CompositeSigningPrivateKey) -> None:
        """Issues and writes a certificate for the key from our own CA."""
        try:
            certificate = certificates.certificate(
                role, key.public_key(), name=self._name, domains=self._domains,
                ca=ca, ca_key=ca_key, now=self.now, days=self._days,
            )  # fmt: skip
        except ValueError as error:
            raise ConfigError(f"no certificate can be made for {self._name!r}: {error}") from error
        write_certificate(file_of(stem_of(self.directory, role, key.public_key()), "pem"), certificate)

    def request(self, role: Role, key: PrivateKey) -> list[Path]:
        """Writes the files with which an organisation's CA certifies the key."""
        stem = stem_of(self.directory, role, key.public_key())
        if isinstance(key, CompositeKEMPrivateKey):
            public, extensions = file_of(stem, "pub"), file_of(stem, "cnf")
            files.write(public, _pem("PUBLIC KEY", info_of(key.public_key())))
            files.write(extensions, certificates.kem_extensions(stem.name, self._domains).encode())
            return [public, extensions]
        try:
            request = certificates.signing_request(role, key, name=self._name, domains=self._domains)
        except ValueError as error:
            raise ConfigError(f"no request can be made for {self._name!r}: {error}") from error
        files.write(file_of(stem, "csr"), request.public_bytes(Encoding.PEM))
        return [file_of(stem, "csr")]
