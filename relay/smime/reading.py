"""Reads a whole S/MIME message: opens it, verifies it, and puts together what is handed on.
Standard: RFC 8551 3 (opaque, clear-signed and nested messages), RFC 1847 2.1, RFC 9788 (protected header fields).

**Against EFAIL**: only a message that is encrypted as a whole is opened. Nothing is taken out of a multipart, and
nothing is put before or behind what was opened. Content in CBC, which nothing protects, is marked unless a good
signature inside covers it, and handed on only if it is text throughout. The gadgets of that attack leave blocks of
random octets.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Literal, NamedTuple

from cryptography import x509

from relay.errors import BadStructure, CannotOpen, MalformedMessage, NotForUs
from relay.formats import mime, parameters
from relay.formats.addresses import read_addresses
from relay.formats.cms import der, oids
from relay.formats.cms.smime_enveloped import ID_ENVELOPED_DATA, decode_others_enveloped
from relay.formats.cms.smime_signed import OthersSigned, decode_others_signed
from relay.formats.doubt import InDoubt
from relay.levels import SMIME
from relay.smime.decrypting import decrypt
from relay.smime.own import OwnKey
from relay.smime.trust import SignatureJudgement, Trust, Verdict, rfc822_names
from relay.smime.usable import comparable
from relay.smime.verifying import VerifiedSigners, verify

MAX_LAYERS = 4
"""Maximum number of nested layers: a triple wrapped message (RFC 2634, 1.1) has three."""
MAX_PREAMBLE_OCTETS = 500
MAX_BLANKS = 100
"""Maximum number of blanks behind a delimiter."""

_CMS_BEGINNING_OCTETS = 32
"""Where the type of a ContentInfo stands, in BER too."""
_SIGNED = der.oid(oids.ID_SIGNED_DATA)
_ENVELOPED = (der.oid(ID_ENVELOPED_DATA), der.oid(oids.ID_AUTH_ENVELOPED_DATA))
_CMS_TYPES = frozenset({"application/pkcs7-mime", "application/x-pkcs7-mime"})
_SIGNATURE_TYPES = frozenset({"application/pkcs7-signature", "application/x-pkcs7-signature"})
_SHOWN = frozenset(
    {b"from", b"to", b"cc", b"subject", b"date", b"message-id", b"reply-to", b"sender", b"in-reply-to", b"references",
     b"comments", b"keywords", b"organization", b"resent-from", b"resent-sender", b"resent-to", b"resent-cc",
     b"importance", b"priority", b"x-priority", b"sensitivity", b"auto-submitted"}
)  # fmt: skip
"""Fields of the author, which people see; in a message with protected fields, only protected ones of these count.

No other is taken from inside: what servers on this side have written (Authentication-Results, X-Spam-Flag) stays.
"""
_HP_PARAMETER = re.compile(rb';[ \t\r\n]*hp="?(?:cipher|clear)"?(?=[ \t\r\n]*(?:;|\Z))', re.IGNORECASE)
_CONTROL = bytes(range(9)) + b"\x0b\x0c" + bytes(range(0x0E, 0x20)) + b"\x7f"
_PREAMBLE = re.compile(rb"(?!.*--)[\t\r\n -;=?-~]*", re.DOTALL)
"""Text without "<" and ">": no HTML. Without "--", which other programs may take for a delimiter, and show a part."""

Kind = Literal["cms", "clear-signed", "other"]


class AuthorsCertificate(NamedTuple):
    """The certificate of a signature that fits, not revoked, which names the author (comparable)."""

    author: str
    certificate: x509.Certificate


class _Judged(NamedTuple):
    """What the signature is worth, the signer's address if it is good, and the certificate if it is the author's."""

    signature: SignatureJudgement
    signer: str = ""
    offered: AuthorsCertificate | None = None


@dataclass(frozen=True, slots=True)
class SMIMEReading:
    """What is handed on to `mailboxes`, without a mark, and what it is worth; all others get the message that came.

    `opened` is whether it was encrypted for them; if not, `message` is the one that came. With a good signature
    `signer` is the author, or their domain. `unauthenticated` content may have been changed on the way.
    """

    message: bytes = field(repr=False)
    mailboxes: frozenset[str]
    opened: bool
    signature: SignatureJudgement
    signer: str = ""
    unauthenticated: bool = False
    offered: AuthorsCertificate | None = None

    @property
    def mark(self) -> str:
        """The value of X-QuMail-Protection."""
        verdict: Verdict = self.signature.verdict
        signer = f"; signer={self.signer}" if self.signer else ""
        unauthenticated = "; unauthenticated=yes" if self.unauthenticated else ""
        return f"{SMIME if self.opened else 'none'}; signed={verdict}{signer}{unauthenticated}"


@dataclass(slots=True)
class _Unwrapping:
    """What was found from the outside in: the entity to hand on, the innermost one and its signature, and for whom."""

    shown: bytes
    inner: bytes
    mailboxes: frozenset[str]
    opened: bool = False
    authenticated: bool = True
    is_signed: bool = False
    signed: OthersSigned | None = None


def may_be_smime(message: bytes) -> bool:
    """Whether a message may be S/MIME: a fast look at the header, without false negatives. Raises MalformedMessage."""
    return b"pkcs7-" in mime.header_of(message).lower()


def read(
    message: bytes, keys: Sequence[OwnKey], trust: Trust, mailboxes: Sequence[str], now: datetime
) -> SMIMEReading | None:
    """Opens and verifies a message to these folded mailboxes; None if it is neither for us nor signed.

    Raises CannotOpen for one that is for us and cannot be opened. A key of a person opens mail for that person only.
    """
    layers = _walked(message, keys, mailboxes)
    if not layers.opened and not layers.is_signed:
        return None
    if not layers.opened:
        judged = _judged(layers, trust, _sole_author(message), now)
        return SMIMEReading(message, layers.mailboxes, False, judged.signature, judged.signer, offered=judged.offered)
    whole, judged = _put_together(message, layers, trust, now)
    unauthenticated = not layers.authenticated and judged.signature.verdict != "good"
    if unauthenticated and not _is_text(layers.shown):
        raise BadStructure("the content in CBC is not text, and no good signature covers it: it may have been changed")
    return SMIMEReading(whole, layers.mailboxes, True, *judged[:2], unauthenticated, judged.offered)


def _walked(message: bytes, keys: Sequence[OwnKey], mailboxes: Sequence[str]) -> _Unwrapping:
    """Opens layer by layer. Raises CannotOpen."""
    found = _Unwrapping(message, message, frozenset(mailboxes))
    for _ in range(MAX_LAYERS + 1):
        kind = _kind(found.inner)
        goes_on = _cms_opened(found, keys) if kind == "cms" else kind == "clear-signed" and _halved(found)
        if not goes_on:
            return found
    raise BadStructure(f"more than {MAX_LAYERS} layers")


def _cms_opened(found: _Unwrapping, keys: Sequence[OwnKey]) -> bool:
    """Opens an encrypted layer, or takes the content out of a signature; False if it is not for us, or neither.

    It is what it contains: programs leave smime-type out (RFC 8551, 3.2.2).
    """
    try:
        octets = mime.sealed_content(found.inner)
        beginning = octets[:_CMS_BEGINNING_OCTETS]
        if _SIGNED in beginning:
            return _unsigned(found, octets)
        if not any(each in beginning for each in _ENVELOPED):
            return False
        decrypted = decrypt(decode_others_enveloped(octets), keys)
    except NotForUs:
        return False
    except CannotOpen:
        if found.opened:  # it is not for us to judge what is inside
            return False
        raise
    owners = [keys[index].mailboxes for index in decrypted.by]
    theirs = frozenset(box for box in found.mailboxes if any(not each or comparable(box) in each for each in owners))
    if not theirs:
        raise NotForUs("encrypted to a key of other recipients")
    found.mailboxes = theirs
    found.shown = found.inner = decrypted.content
    found.opened, found.authenticated = True, found.authenticated and decrypted.authenticated
    found.is_signed, found.signed = False, None  # what signs the outside says nothing about the content
    return True


def _unsigned(found: _Unwrapping, octets: bytes) -> bool:
    """Takes the content out of SignedData; False if it has none. The innermost signature counts."""
    try:
        signed = decode_others_signed(octets)
    except BadStructure:
        found.is_signed, found.signed = True, None
        return False
    if signed.content is None:  # certificates alone, or what belongs into a multipart/signed
        return False
    found.is_signed, found.signed = True, signed
    found.shown = found.inner = signed.content
    return True


def _halved(found: _Unwrapping) -> bool:
    """Takes the content out of a multipart/signed; False if that cannot be had."""
    found.is_signed, found.signed = True, None
    try:
        content, signature = _halves(found.inner)
        found.shown, found.inner = found.inner, content
        found.signed = decode_others_signed(signature)
    except (BadStructure, MalformedMessage, InDoubt):
        return False
    return True


def _kind(entity: bytes) -> Kind:
    """What a MIME entity is, by its Content-Type; "other" for one that is in doubt."""
    try:
        value = mime.mime_fields(mime.header_of(entity)).get(b"content-type", b"")
        structured = parameters.parse(value) if value.isascii() else None
    except (BadStructure, MalformedMessage, InDoubt):
        return "other"
    if structured is None:
        return "other"
    if structured.value in _CMS_TYPES:
        return "cms"
    protocols = {each.decode("latin-1").lower() for each in structured.values("protocol")}
    clear_signed = structured.value == "multipart/signed" and protocols and protocols <= _SIGNATURE_TYPES
    return "clear-signed" if clear_signed else "other"


def _halves(entity: bytes) -> tuple[bytes, bytes]:
    """The signed entity of a multipart/signed, octet for octet, and the DER of its signature (RFC 1847, 2.1).

    Raises BadStructure for one with other than two parts, or with text before or behind them.
    """
    end, begin = mime.bounds(entity)
    boundaries = parameters.parse(mime.mime_fields(entity[:end])[b"content-type"]).values("boundary")
    if len(boundaries) != 1 or not 0 < len(boundaries[0]) <= 70:
        raise BadStructure("multipart/signed without one boundary")
    body = entity[begin:]
    lines = _delimiters(body, b"--" + boundaries[0])
    if [line.closes for line in lines] != [False, False, True]:
        raise BadStructure("multipart/signed has other than two parts")
    first, second, last = lines
    preamble = body[: first.start]
    behind = body[last.end : last.end + MAX_PREAMBLE_OCTETS + 1]
    if behind.strip() or max(len(behind), len(preamble)) > MAX_PREAMBLE_OCTETS or not _PREAMBLE.fullmatch(preamble):
        raise BadStructure("text before or behind the parts of multipart/signed")
    signature = body[second.end + 2 : last.start]
    header = mime.header_of(signature)
    kind = parameters.parse(mime.mime_fields(header).get(b"content-type", b"")).value
    # Nothing covers this header: a gadget of EFAIL leaves random octets in it.
    fields = [name for name, _ in mime.fields(header)]
    if kind not in _SIGNATURE_TYPES or not header.isascii() or not all(each.startswith(b"content-") for each in fields):
        raise BadStructure("the second part of multipart/signed is no signature")
    return body[first.end + 2 : second.start], mime.sealed_content(signature)


class _Delimiter(NamedTuple):
    """A delimiter line, from the line end before it to its own, which is not in it."""

    start: int
    end: int
    closes: bool


def _delimiters(body: bytes, delimiter: bytes) -> list[_Delimiter]:
    """The first four delimiter lines (RFC 2046, 5.1.1). Raises BadStructure for other lines that begin as one.

    Some programs take these for delimiters too, and would show the signed text cut off there. Anybody can exchange the
    boundary for what a line of it begins with. A regular expression would hold up the event loop.
    """
    found: list[_Delimiter] = []
    place, after = (0, len(delimiter)) if body.startswith(delimiter) else _next(body, delimiter, 0)
    while place >= 0 and len(found) < 4:
        closes = body[after : after + 2] == b"--"
        after += 2 * closes
        line = body[after : after + MAX_BLANKS + 2]
        blanks, end, _ = line.partition(b"\r\n")
        if blanks.strip(b" \t") or not (end or after + len(blanks) == len(body)):
            raise BadStructure("a line that begins like a delimiter of multipart/signed")
        found.append(_Delimiter(place, after + len(blanks), closes))
        place, after = _next(body, delimiter, after)
    return found


def _next(body: bytes, delimiter: bytes, begin: int) -> tuple[int, int]:
    """Where the next line begins with this, its line end included, and the end of that; -1 for none."""
    place = body.find(b"\r\n" + delimiter, begin)
    return place, place + 2 + len(delimiter)


def _put_together(message: bytes, layers: _Unwrapping, trust: Trust, now: datetime) -> tuple[bytes, _Judged]:
    """The opened message under the header of the outer one, and what its signature is worth. Raises BadStructure.

    The protected From counts if it is the outer one, or if the signature is good for it (RFC 9788, 4.4.2).
    """
    outer, inner = _fields(mime.header_of(message)), _fields(_header_of(layers.inner))
    content_type = next((raw for name, raw in inner if name == b"content-type"), b"")
    protected = bool(_HP_PARAMETER.search(content_type.rstrip()))
    fields = [(name, raw) for name, raw in inner if name in _SHOWN]
    fields = fields if protected else []
    if protected and not any(name == b"from" for name, _ in fields):
        fields += [each for each in outer if each[0] == b"from"]
    whole = _joined(outer, fields, layers, protected=protected)
    author = _sole_author(whole)
    judged = _judged(layers, trust, author, now)
    # An author in doubt is nobody, and no two of them are the same.
    if protected and judged.signature.verdict != "good" and (not author or author != _sole_author(message)):
        fields = [each for each in fields if each[0] != b"from"] + [each for each in outer if each[0] == b"from"]
        whole = _joined(outer, fields, layers, protected=protected)
        judged = _judged(layers, trust, _sole_author(whole), now)
    return whole, judged


def _joined(
    outer: list[tuple[bytes, bytes]], fields: list[tuple[bytes, bytes]], layers: _Unwrapping, *, protected: bool
) -> bytes:
    """The message with the outer fields, or these `fields` in place of those that people see, and the opened body."""
    gone = {name for name, _ in fields} | _SHOWN if protected else frozenset()
    kept = [
        raw for name, raw in outer if name not in gone and not name.startswith(b"content-") and name != b"mime-version"
    ]
    header = _header_of(layers.shown)
    whole = layers.shown is layers.inner  # else a multipart/signed, whose other fields nothing covers
    content = [
        raw for name, raw in _fields(header) if (name.startswith(b"content-") if whole else name == b"content-type")
    ]
    if protected and whole:
        content = [_HP_PARAMETER.sub(b"", raw.rstrip()) + b"\r\n" for raw in content]
    begin = mime.bounds(layers.shown)[1]
    parts = [*kept, *[raw for _, raw in fields], b"MIME-Version: 1.0\r\n", *content, b"\r\n"]
    message = b"".join([*parts, memoryview(layers.shown)[begin:]])
    try:
        mime.check_carriable(message, sys.maxsize)
    except MalformedMessage as error:  # no mail server could have sent it
        raise BadStructure(f"the content: {error}") from error
    return message


def _header_of(entity: bytes) -> bytes:
    """The header of what was opened, which must be one. Raises BadStructure."""
    try:
        end, begin = mime.bounds(entity)
    except MalformedMessage as error:
        raise BadStructure(f"the content: {error}") from error
    if begin == end or (end == 0 and not entity.startswith(b"\r\n")):
        raise BadStructure("the content has no MIME header")
    return entity[:end]


def _fields(header: bytes) -> list[tuple[bytes, bytes]]:
    return [(name, raw if raw.endswith(b"\r\n") else raw + b"\r\n") for name, raw in mime.fields(header)]


def _judged(layers: _Unwrapping, trust: Trust, author: str, now: datetime) -> _Judged:
    """What the signature over the innermost entity is worth for this author."""
    if not layers.is_signed:
        return _Judged(SignatureJudgement("no"))
    if layers.signed is None:
        return _bad("the signature cannot be read")
    pinned = trust.pinned(author) if author else ()
    verified: VerifiedSigners = verify(layers.signed, layers.inner, pinned)
    if not verified.signers:
        return _bad("the signature does not fit the content, or is of a kind that proves nothing")
    if not author:
        return _bad("it has no single author beyond doubt")
    judged = [(trust.judge(each, verified.others, author, now), each) for each in verified.signers]
    best, certificate = min(judged, key=lambda each: ("good", "unknown", "bad").index(each[0].verdict))
    is_theirs = best.verdict != "bad" and author in rfc822_names(certificate)
    offered = AuthorsCertificate(author, certificate) if is_theirs else None
    return _Judged(best, _name_of(certificate, author) if best.verdict == "good" else "", offered)


def _bad(reason: str) -> _Judged:
    return _Judged(SignatureJudgement("bad", reason))


def _name_of(certificate: x509.Certificate, author: str) -> str:
    """The author, if the certificate is theirs, else the domain that a pinned certificate speaks for."""
    return author if author in rfc822_names(certificate) else author.rpartition("@")[2]


def _sole_author(message: bytes) -> str:
    """The comparable mailbox of the only author, "" if there are several, or one in doubt or not in ASCII."""
    try:
        header = mime.lines_by_field(mime.searched_header(message))
        if any(not name for name, raw in header[1:]):
            return ""
        values = [raw.partition(b":")[2] for name, raw in header if name == b"from"]
        mailboxes = read_addresses(values[0], by_standard=True) if len(values) == 1 else ()
    except (InDoubt, ValueError, MalformedMessage):
        return ""
    author = comparable(str(mailboxes[0])) if len(mailboxes) == 1 else ""
    return author if author.isascii() and author.isprintable() and " " not in author else ""


def _is_text(entity: bytes) -> bool:
    """Whether it is UTF-8 without control characters, and its header ASCII."""
    if len(entity.translate(None, _CONTROL)) != len(entity) or not _header_of(entity).isascii():
        return False
    try:
        entity.decode("utf-8")
    except UnicodeDecodeError:
        return False
    return True
