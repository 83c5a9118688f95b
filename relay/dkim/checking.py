"""Checks one signature against its message and the key record that the DNS has for it.
Standard: RFC 6376 6.1 (verifying), RFC 8301 (what is too weak), RFC 8463; each failure is a result of RFC 8601 2.7.1.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import re
from collections.abc import Mapping, Sequence

import dkim
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from cryptography.hazmat.primitives.asymmetric.padding import PKCS1v15
from cryptography.hazmat.primitives.asymmetric.rsa import RSAPublicKey
from dkim.canonicalization import CanonicalizationPolicy, InvalidCanonicalizationPolicyError
from dkim.util import InvalidTagValueList, parse_tag_value

from relay.dkim.canonical import BodyHash, Header, body_hash, canonical, without_signature
from relay.dkim.keys import ADVISED_RSA_BITS, LEAST_RSA_BITS, record_name
from relay.dkim.records import Answers

MAX_RSA_BITS = 8192
"""Longer keys cost more than they are worth; RFC 8301, 3.2 asks for 4096."""
MAX_FIELD_OCTETS = 8192
"""No real signature is as long, and time grows with it."""

SLOP_S = 300.0
"""So far another site's clock may be off."""
MAX_TIME_DIGITS = 12
"""As RFC 6376, 3.5 has it for t= and x=."""

Tags = Mapping[bytes, bytes]
PublicKey = RSAPublicKey | Ed25519PublicKey

_DOMAIN = re.compile(rb"(?=.{1,253}\Z)[A-Za-z0-9_-]{1,63}(?:\.[A-Za-z0-9_-]{1,63})*")


class NotPassed(Exception):
    """A signature did not pass: with which result (RFC 8601, 2.7.1), and why."""

    def __init__(self, result: str, reason: str) -> None:
        super().__init__(reason)
        self.result = result
        self.reason = reason


class Checked:
    """A message of which several signatures are checked: each form of it is hashed once."""

    def __init__(self, header: Header, body: bytes) -> None:
        self.header = header
        self._body = body
        self._hashes: dict[tuple[bool, int | None], BodyHash] = {}

    def check(self, tags: Tags, names: Sequence[bytes], field: bytes, answers: Answers) -> str:
        """Checks one signature; gives a remark on it, "" for none. Raises NotPassed.

        `names` are those of the fields that it covers beside its own, raw `field`.
        """
        key = public_key(tags, answers)
        c = tags.get(b"c", b"simple/simple")
        try:
            covered = b"".join(self.header.chosen(names, c))
            itself = canonical(without_signature(field), CanonicalizationPolicy.from_c_value(c)).rstrip()
        except InvalidCanonicalizationPolicyError as error:
            raise NotPassed("permerror", "unknown canonicalisation") from error
        body = self._check_body(tags, c) if b"bh" in tags else ""
        _check_signature(key, _octets(tags, b"b"), covered + itself)
        if body:
            raise NotPassed("policy", body)
        if isinstance(key, RSAPublicKey) and key.key_size < ADVISED_RSA_BITS:
            return f"weak RSA key of {key.key_size} bits"
        return ""

    def _check_body(self, tags: Tags, c: bytes) -> str:
        """What of the body is not covered, "" where it is whole. Raises NotPassed where it is another one."""
        limit = int(tags[b"l"]) if b"l" in tags else None
        form = (c.partition(b"/")[2] == b"relaxed", limit)
        if form not in self._hashes:
            self._hashes[form] = body_hash(self._body, relaxed=form[0], limit=limit)
        found = self._hashes[form]
        if limit is not None and limit > found.length:
            raise NotPassed("permerror", "l= is more than the body has")
        if found.digest != _octets(tags, b"bh"):
            raise NotPassed("fail", "the body was changed")
        if limit is not None and limit < found.length:
            return f"l= leaves {found.length - limit} octets of the body unsigned"
        return ""


def parse_tags(field: bytes) -> dict[bytes, bytes]:
    """The tags of a signature field, with blanks for all folding. Raises NotPassed."""
    if len(field) > MAX_FIELD_OCTETS:
        raise NotPassed("permerror", f"a signature field of more than {MAX_FIELD_OCTETS} octets")
    try:
        return dict(parse_tag_value(b" ".join(field.partition(b":")[2].split())))
    except (InvalidTagValueList, IndexError) as error:
        raise NotPassed("permerror", "not a list of tags") from error


def check_tags(tags: Tags, now: float) -> list[bytes]:
    """The names that a DKIM-Signature covers, after a look at all its tags, at `now` in seconds since 1970.

    Raises NotPassed.
    """
    try:
        dkim.validate_signature_fields(tags)
    except dkim.DKIMException as error:
        reason = re.split(r"[(:]", str(error), maxsplit=1)[0]  # behind that it quotes what strangers wrote
        raise NotPassed("permerror", reason.strip()) from error
    except (ValueError, IndexError, KeyError) as error:
        raise NotPassed("permerror", "tags that cannot be") from error
    check_times(tags, now)
    names = [name.strip().lower() for name in tags[b"h"].split(b":")]
    if b"from" not in names:
        raise NotPassed("permerror", "From is not signed")
    if tags[b"a"] == b"rsa-sha1":
        raise NotPassed("permerror", "rsa-sha1 is not accepted any more")
    if not tags.get(b"l", b"0").isdigit():
        raise NotPassed("permerror", "l= is not a number")
    return [*names, b"from"]  # one that was put on top of those that are signed must not go unnoticed


def check_times(tags: Tags, now: float) -> None:
    """Raises NotPassed where it was signed after `now` (t=), or has expired (x=); dkimpy forgives ten hours of both."""
    if b"t" in tags and _seconds(tags[b"t"]) > now + SLOP_S:
        raise NotPassed("permerror", "t= value is in the future")
    if b"x" in tags and _seconds(tags[b"x"]) < now - SLOP_S:
        raise NotPassed("permerror", "x= value is past")


def _seconds(value: bytes) -> int:
    text = value.strip()
    if not text.isdigit() or len(text) > MAX_TIME_DIGITS:
        raise NotPassed("permerror", "a time that cannot be")
    return int(text)


def key_name(tags: Tags) -> str:
    """The DNS name of the key. Raises NotPassed where d= and s= make none."""
    domain, selector = tags.get(b"d", b""), tags.get(b"s", b"")
    if not _DOMAIN.fullmatch(domain) or not _DOMAIN.fullmatch(selector):
        raise NotPassed("permerror", "d= or s= is not a domain")
    return record_name(domain.decode().lower(), selector.decode().lower())


def public_key(tags: Tags, answers: Answers) -> PublicKey:
    """The key that the DNS has, if it may be used for these tags (RFC 6376, 6.1.2). Raises NotPassed."""
    texts = answers.get(key_name(tags))
    if texts is None:
        raise NotPassed("temperror", "the DNS did not answer")
    record = _record(texts)
    kind, _, digest = tags[b"a"].partition(b"-")
    if record.get(b"k", b"rsa") != kind:
        raise NotPassed("permerror", "the key is for another algorithm")
    if b"h" in record and digest not in _list(record[b"h"]):
        raise NotPassed("permerror", "the key is for another hash")
    if not {b"*", b"email"} & set(_list(record.get(b"s", b"*"))):
        raise NotPassed("permerror", "the key is not for mail")
    flags = _list(record.get(b"t", b""))
    if b"s" in flags and tags.get(b"i", b"@" + tags[b"d"]).rpartition(b"@")[2].lower() != tags[b"d"].lower():
        raise NotPassed("permerror", "the key is not for subdomains")
    if b"y" in flags:
        raise NotPassed("neutral", "the key is marked as being tested")
    return _load(kind, record)


def _record(texts: list[bytes]) -> dict[bytes, bytes]:
    if not texts:
        raise NotPassed("permerror", "there is no key in the DNS")
    for text in texts:
        try:
            record = dict(parse_tag_value(b" ".join(text.split())))
        except (InvalidTagValueList, IndexError):
            continue
        if record.get(b"v", b"DKIM1") == b"DKIM1" and b"p" in record:
            return record
    raise NotPassed("permerror", "what the DNS has is no key record")


def _load(kind: bytes, record: Mapping[bytes, bytes]) -> PublicKey:
    octets = _octets(record, b"p")
    if not octets:
        raise NotPassed("permerror", "the key was revoked")
    try:
        if kind == b"ed25519":
            return Ed25519PublicKey.from_public_bytes(octets)
        key = serialization.load_der_public_key(octets)
    except (ValueError, UnsupportedAlgorithm) as error:
        raise NotPassed("permerror", "the key cannot be read") from error
    if not isinstance(key, RSAPublicKey) or key.key_size > MAX_RSA_BITS:
        raise NotPassed("permerror", "the key is no RSA key of a usual size")
    if key.key_size < LEAST_RSA_BITS:
        raise NotPassed("fail", f"RSA key of {key.key_size} bits")
    return key


def _check_signature(key: PublicKey, signature: bytes, data: bytes) -> None:
    try:
        if isinstance(key, RSAPublicKey):
            key.verify(signature, data, PKCS1v15(), hashes.SHA256())
        else:
            key.verify(signature, hashlib.sha256(data).digest())
    except (InvalidSignature, ValueError) as error:
        raise NotPassed("fail", "the signature does not match the header") from error


def _octets(tags: Tags, name: bytes) -> bytes:
    try:
        return base64.b64decode(b"".join(tags[name].split()), validate=True)
    except (binascii.Error, ValueError) as error:
        raise NotPassed("permerror", f"{name.decode()}= is not base64") from error


def _list(value: bytes) -> list[bytes]:
    return [each.strip() for each in value.split(b":")]
