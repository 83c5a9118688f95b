"""The peer document: one signed file with all that another site needs to seal for this one; reading and writing.
Standard: JSON (RFC 8259), base64 (RFC 4648), composite ML-DSA (composite.py) over the inner JSON with a context string.

The file is a JSON object of exactly three members, at most 3 MiB::

    {"format": 2, "document": BASE64, "signature": BASE64}

`document` is the inner JSON object. Its raw octets are signed, so there is nothing to canonicalise. The key is
the key of its own `signing` certificate (ML-DSA-87 with ECDSA P-384), the context "qumail-relay peer document 2". The
number is the format. CMS signatures have no context, so neither can be mistaken for the other::

    name         the site's name                  serial      higher in every newer document
    domains      its mail domains, A-labels       issued      when the document was made (RFC 3339)
    sae_id       its SAE (ETSI GS QKD 014)        levels      those that it opens: otp, aes, pqc, rsa, or none
    kme_groups   KME groups whose keys it has     certificates  ca, signing, kem, rsa_encryption, rsa_signing
    kems         (may be left out) public key of each further KEM it opens, by name (relay/formats/cms/recipients.py)

Keys of further KEMs are base64 of liboqs' octets, of exactly the KEM's size. Certificates are base64
DER. `ca` issued the others. Each of them names all of `domains`, and its subjectKeyIdentifier is made from its public
key (RFC 5280, 4.2.1.2; RFC 7093). No public key, subjectKeyIdentifier, or issuer with serial number is that of another
peer or of the site that reads it. Levels pqc and rsa need their certificates, otp and aes a KME group. A site without
levels only sends: nothing may be sealed for it. An unknown, missing or duplicate member makes the document invalid. The
signature proves nothing until the fingerprint was compared over another channel, such as a telephone. That covers keys
and domains, but does not prove who owns the domains.
The serial number is the Unix time in seconds, or one more than the last one if that is higher.
"""

from __future__ import annotations

import base64
import binascii
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Literal, TypeVar

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.serialization import Encoding
from pydantic import AfterValidator, AwareDatetime, BaseModel, BeforeValidator, ConfigDict, Field, ValidationError

from relay.errors import BadStructure, ConfigError
from relay.files.stamps import is_there
from relay.formats.characters import is_printable
from relay.formats.cms import FURTHER_KEMS, KEMS, der
from relay.formats.mailbox import is_folded_domain
from relay.identity import files
from relay.identity.certificates import (
    UNREADABLE,
    check_ca,
    check_certificate,
    check_issued_by,
    domains_of,
    valid_now,
)
from relay.identity.composite import CompositeSigningPrivateKey, CompositeSigningPublicKey
from relay.identity.pairs import Identity, Role, fingerprint, public_key
from relay.identity.x509_keys import key_of
from relay.levels import LEVELS, QUANTUM, SEALING, SealingLevel

FORMAT = 2
MAX_DOCUMENT = 3 * 2**20
"""Maximum size of a peer document, in octets: a Classic McEliece public key of 1 MiB is base64-encoded twice."""
_CONTEXT = b"qumail-relay peer document %d" % FORMAT
_NEEDED: Mapping[str, tuple[Role, ...]] = {level.name: tuple(map(Role, level.certificates)) for level in LEVELS}
"""The certificates, besides `signing`, that sealing for a peer, or verifying, needs at each level."""
RENEW = "renew them: qumail-relay identity new --renew"
"""The remedy for certificates that have expired or lack a domain."""
_SERIAL = "serial"


class BadDocument(ConfigError):
    """Not a whole, consistent, signed peer document of a known format; the text has no unprintable characters."""


class PinRefused(ConfigError):
    """A valid document that contradicts known facts."""


class Rollback(PinRefused):
    """The serial number is lower than the pinned document's, or equal with different content."""


class ChangedKey(PinRefused):
    """The CA's or the signing key is not the pinned one."""


@dataclass(frozen=True)
class PeerCertificates:
    """The content of a peer document; `domains` in A-labels, `issued` aware, `serial` higher in each newer one.

    `name` is that of the document, and once pinned the one that it is pinned under. `ca` and
    `signing` are the pinned keys; the other certificates may be missing. `further_kems` has a public key for each
    further KEM that it can open.
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

    def not_opened(self, level: str) -> str:
        """Why mail at this level cannot be opened there, by its document, or ""."""
        if not self.levels:
            return f"peer {self.name!r} cannot receive: its document says that it opens no sealed mail"
        return "" if level in self.levels else f"peer {self.name!r} does not open level {level}, by its document"

    @property
    def certificates(self) -> dict[Role, x509.Certificate]:
        """Its certificates, without the CA's."""
        every = {
            Role.KEM: self.kem,
            Role.SIGNING: self.signing,
            Role.RSA_ENCRYPTION: self.rsa_encryption,
            Role.RSA_SIGNING: self.rsa_signing,
        }
        return {role: certificate for role, certificate in every.items() if certificate is not None}

    @property
    def fingerprint(self) -> str:
        """The fingerprint to compare over the telephone: of the two pinned keys and the domains (pairs.py)."""
        return fingerprint(self.ca, self.signing, self.domains)

    @property
    def pinned_keys(self) -> tuple[bytes, bytes]:
        """The CA's and the signing key (SubjectPublicKeyInfo, DER): a document with others is another site's."""
        return public_key(self.ca), public_key(self.signing)


def only_sending(documents: Mapping[str, PeerCertificates]) -> set[str]:
    """The peers that open no sealed mail, by their documents."""
    return {name for name, document in documents.items() if not document.levels}


def check_consistent(peer: PeerCertificates) -> None:
    """Raises BadDocument unless certificates, domains and levels are consistent; ignores dates."""
    _checked("ca", check_ca, peer.ca)
    for role, certificate in peer.certificates.items():
        _checked(role, check_certificate, certificate, role)
        _checked(role, check_issued_by, certificate, peer.ca)
        if missing := sorted(set(peer.domains) - set(domains_of(certificate))):
            raise BadDocument(f"certificate {role}: does not name the domain {missing[0]}")
    for level in peer.levels:
        if missing_role := next((role for role in _NEEDED.get(level, ()) if role not in peer.certificates), None):
            raise BadDocument(f"level {level} needs a certificate for {missing_role.label}")
        if level in QUANTUM and not peer.kme_groups:
            raise BadDocument(f"level {level} needs a KME group")
    for name, octets in peer.further_kems.items():
        if len(octets) != KEMS[name].public_key_octets:
            raise BadDocument(f"KEM {name}: {len(octets)} octets are not a public key of it")
    for kind, values in (("domain", peer.domains), ("level", peer.levels), ("KME group", peer.kme_groups)):
        if len(set(values)) != len(values):
            raise BadDocument(f"a {kind} is named twice")


def _checked(name: str, check: Callable[..., None], *arguments: object) -> None:
    try:
        check(*arguments)
    except ValueError as error:
        raise BadDocument(f"certificate {name}: {error}") from error


def _domain(value: str) -> str:
    if not is_folded_domain(value):
        raise ValueError("not a mail domain in lower case and A-labels")
    return value


def _printable(value: str) -> str:
    if not is_printable(value):
        raise ValueError("has characters that cannot be printed")
    return value


def _unbase64(value: object) -> bytes:
    if not isinstance(value, str):
        raise ValueError("not base64 in a string")  # noqa: TRY004  # pydantic takes ValueError only
    try:
        return base64.b64decode(value, validate=True)
    except (binascii.Error, ValueError) as error:
        raise ValueError("not base64") from error


def _certificate(value: object) -> x509.Certificate:
    octets = _unbase64(value)
    try:
        serial = _serial_number(octets)
        # Checked before loading: `cryptography` accepts a number that is not positive, with a mere warning.
        certificate = x509.load_der_x509_certificate(octets) if _is_positive(serial) else None
    except (*UNREADABLE, BadStructure, IndexError) as error:
        raise ValueError("not an X.509 certificate in base64 DER") from error
    if certificate is None:
        raise ValueError("a certificate whose serial number is not positive (RFC 5280, 4.1.2.2)")
    return certificate


def _serial_number(certificate: bytes) -> bytes:
    """The contents of the INTEGER after the optional version (RFC 5280, 4.1)."""
    [contents] = der.children(certificate, 1)
    to_be_signed = der.children(contents, 3)[0]
    return bytes(der.children(to_be_signed, 10)[1 if to_be_signed[:1] == _VERSION else 0])


def _is_positive(integer: bytes) -> bool:
    return any(integer) and integer[0] < 0x80


def _further_kem(value: str) -> str:
    if value not in FURTHER_KEMS:
        raise ValueError("not a KEM that is known here")
    return value


_VERSION = b"\xa0"
_Text = Annotated[str, Field(min_length=1, max_length=128), AfterValidator(_printable)]
_Octets = Annotated[bytes, BeforeValidator(_unbase64)]
_Certificate = Annotated[x509.Certificate, BeforeValidator(_certificate)]
_Levels = tuple[SealingLevel, ...]


class _Strict(BaseModel):
    model_config = ConfigDict(strict=True, extra="forbid", frozen=True, arbitrary_types_allowed=True)


class _File(_Strict):
    format: Literal[2]
    document: _Octets
    signature: _Octets


class _SiteCertificates(_Strict):
    ca: _Certificate
    signing: _Certificate
    kem: _Certificate | None = None
    rsa_encryption: _Certificate | None = None
    rsa_signing: _Certificate | None = None


class _Document(_Strict):
    name: _Text
    domains: Annotated[tuple[Annotated[str, AfterValidator(_domain)], ...], Field(min_length=1, max_length=1000)]
    sae_id: _Text
    kme_groups: Annotated[tuple[_Text, ...], Field(max_length=100)]
    levels: Annotated[_Levels, Field(max_length=len(SEALING))]
    serial: Annotated[int, Field(ge=1, lt=2**63)]
    issued: AwareDatetime
    certificates: _SiteCertificates
    kems: dict[Annotated[str, AfterValidator(_further_kem)], _Octets] = {}


_Model = TypeVar("_Model", bound=BaseModel)


def read_document(raw: bytes) -> PeerCertificates:
    """The content of a complete peer document, signed by the key it names.

    Ignores dates; only the fingerprint shows whether that key is the peer's own. Raises BadDocument.
    """
    if len(raw) > MAX_DOCUMENT:
        raise BadDocument(f"a peer document has at most {MAX_DOCUMENT} octets")
    _check_format(raw)
    file = _parsed(raw, _File)
    content = _parsed(file.document, _Document)
    fields = dict(content)
    certificates, kems = fields.pop("certificates"), fields.pop("kems")
    peer = PeerCertificates(format=file.format, further_kems=kems, **fields, **dict(certificates))
    check_consistent(peer)
    _check_signature(certificates.signing, file)
    return peer


def write_document(peer: PeerCertificates, key: CompositeSigningPrivateKey) -> bytes:
    """The peer document with this content, signed with the key of `peer.signing`. Raises BadDocument."""
    check_consistent(peer)
    certificates = {role.value: certificate for role, certificate in peer.certificates.items()}
    inner: dict[str, object] = {
        "name": peer.name,
        "domains": peer.domains,
        "sae_id": peer.sae_id,
        "kme_groups": peer.kme_groups,
        "levels": peer.levels,
        "serial": peer.serial,
        "issued": peer.issued.isoformat(),
        "certificates": {
            name: _base64(certificate.public_bytes(Encoding.DER))
            for name, certificate in {"ca": peer.ca, **certificates}.items()
        },
    }
    if peer.further_kems:
        inner["kems"] = {name: _base64(public_key) for name, public_key in peer.further_kems.items()}
    document = json.dumps(inner, ensure_ascii=False).encode()
    file = {"format": FORMAT, "document": _base64(document), "signature": _base64(key.sign(document, _CONTEXT))}
    raw = json.dumps(file, indent=2).encode() + b"\n"
    if read_document(raw) != peer:
        raise BadDocument("the document does not read back as it was written")
    return raw


def peer_document(
    directory: Path,
    identity: Identity,
    *,
    name: str,
    domains: Sequence[str],
    sae_id: str,
    kme_groups: Sequence[str],
    levels: Sequence[str],
    now: datetime | None = None,
) -> bytes:
    """The signed document that peers import; `directory` is the identity's, which stores the serial number.

    Raises ConfigError if a certificate has expired or lacks one of `domains` (in A-labels).
    """
    now = now or datetime.now(UTC)
    for role, certificate in identity.certificates.items():
        if not valid_now(certificate, now):
            raise ConfigError(f"the certificate for {role.label} is not valid now; {RENEW}")
        if missing := set(domains) - set(identity.domains):
            raise ConfigError(f"the certificates do not name {', '.join(sorted(missing))}; {RENEW}")
    with files.changing(directory):
        serial = _next_serial(directory / _SERIAL, now)
    peer = PeerCertificates(
        name=name,
        domains=tuple(domains),
        sae_id=sae_id,
        kme_groups=tuple(kme_groups),
        levels=tuple(levels),
        format=FORMAT,
        serial=serial,
        issued=now,
        ca=identity.ca,
        signing=identity.signing.certificate,
        kem=identity.kem.certificate,
        rsa_encryption=identity.rsa_encryption.certificate,
        rsa_signing=identity.rsa_signing.certificate,
        further_kems=identity.offered_kems,
    )
    return write_document(peer, identity.signing.private_key)


def _next_serial(path: Path, now: datetime) -> int:
    """A number above all previous ones, stored before it is used."""
    try:
        last = int(files.read_public(path)) if is_there(path) else 0
    except ValueError as error:
        raise ConfigError(f"{path}: not a number") from error
    serial = max(last + 1, int(now.timestamp()))
    files.write(path, b"%d\n" % serial)
    return serial


def _base64(octets: bytes) -> str:
    return base64.b64encode(octets).decode("ascii")


def _check_format(raw: bytes) -> None:
    """Raises BadDocument for another format number; the strict models check everything else."""
    parsed = _json(raw)
    number = parsed.get("format") if isinstance(parsed, dict) else None
    if not isinstance(number, int) or isinstance(number, bool):
        raise BadDocument("not a peer document (no format number)")
    if number != FORMAT:
        raise BadDocument(f"format {str(number)[:20]}; this version of QuMail Relay knows format {FORMAT} only")


def _check_signature(certificate: x509.Certificate, file: _File) -> None:
    key = key_of(certificate)
    try:
        if not isinstance(key, CompositeSigningPublicKey):
            raise BadDocument("the signing key is not one of ML-DSA-87 with P-384")
        key.verify(file.signature, file.document, _CONTEXT)
    except InvalidSignature as error:
        raise BadDocument("the signature is not that of its signing key: the document was changed") from error


def _parsed(raw: bytes, model: type[_Model]) -> _Model:
    _json(raw)
    try:
        return model.model_validate_json(raw)
    except ValidationError as error:
        fault = error.errors(include_url=False, include_input=False)[0]
        place = ".".join(ascii(str(part)[:80])[1:-1] for part in fault["loc"])
        message = fault["msg"].removeprefix("Value error, ")
        raise BadDocument(f"not a peer document: {place + ': ' if place else ''}{message}") from error


def _json(raw: bytes) -> object:
    """Parses JSON in UTF-8 without duplicate names, which readers would interpret differently."""
    try:
        return json.loads(raw.decode("utf-8"), object_pairs_hook=_unique)
    except (ValueError, RecursionError) as error:
        raise BadDocument("not a peer document: not JSON in UTF-8") from error


def _unique(pairs: list[tuple[str, object]]) -> dict[str, object]:
    members = dict(pairs)
    if len(members) != len(pairs):
        raise BadDocument("not a peer document: a name is given twice")
    return members
