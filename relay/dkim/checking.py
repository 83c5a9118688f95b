"""Checks one signature against its message and its key record in the DNS.
Standard: RFC 6376 6.1 (verifying), RFC 8301 (weak keys), RFC 8463; each failure is a result of RFC 8601 2.7.1.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence

import dkim
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric.padding import PKCS1v15
from cryptography.hazmat.primitives.asymmetric.rsa import RSAPublicKey
from dkim.canonicalization import CanonicalizationPolicy, InvalidCanonicalizationPolicyError
from dkim.util import InvalidTagValueList, parse_tag_value

from relay.dkim.canonical import BodyHash, Header, body_hash, canonical, without_signature
from relay.dkim.keys import ADVISED_RSA_BITS
from relay.dkim.records import Answers, NotPassed, PublicKey, Tags, octets_of, public_key
from relay.formats.pieces import Octets

MAX_FIELD_OCTETS = 8192
"""Maximum length of a signature field, in octets; no real one is as long, and the time grows with it."""

SLOP_S = 300.0
"""Maximum clock skew of another site, in seconds."""
MAX_TIME_DIGITS = 12
"""Maximum number of digits of t= and x= (RFC 6376, 3.5)."""


class Checked:
    """A message with several signatures to check; each canonical form is hashed once."""

    def __init__(self, header: Header, body: Octets) -> None:
        self.header = header
        self._body = body
        self._hashes: dict[tuple[bool, int | None], BodyHash] = {}

    def check(self, tags: Tags, names: Sequence[bytes], field: bytes, answers: Answers) -> str:
        """Checks one signature; returns a remark or "". Raises NotPassed.

        `names` are the fields that it covers beside its own, raw `field`.
        """
        key = public_key(tags, answers)
        c = tags.get(b"c", b"simple/simple")
        try:
            covered = b"".join(self.header.chosen(names, c))
            itself = canonical(without_signature(field), CanonicalizationPolicy.from_c_value(c)).rstrip()
        except InvalidCanonicalizationPolicyError as error:
            raise NotPassed("permerror", "unknown canonicalisation") from error
        body = self._check_body(tags, c) if b"bh" in tags else ""
        _check_signature(key, octets_of(tags, b"b"), covered + itself)
        if body:
            raise NotPassed("policy", body)
        if isinstance(key, RSAPublicKey) and key.key_size < ADVISED_RSA_BITS:
            return f"weak RSA key of {key.key_size} bits"
        return ""

    def _check_body(self, tags: Tags, c: bytes) -> str:
        """A remark if a part of the body is not covered, else "". Raises NotPassed for a changed body."""
        limit = int(tags[b"l"]) if b"l" in tags else None
        form = (c.partition(b"/")[2] == b"relaxed", limit)
        if form not in self._hashes:
            self._hashes[form] = body_hash(self._body, relaxed=form[0], limit=limit)
        hashed = self._hashes[form]
        if limit is not None and limit > hashed.length:
            raise NotPassed("permerror", "l= is more than the body has")
        if hashed.digest != octets_of(tags, b"bh"):
            raise NotPassed("fail", "the body was changed")
        if limit is not None and limit < hashed.length:
            return f"l= leaves {hashed.length - limit} octets of the body unsigned"
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
    """Checks all tags of a DKIM-Signature at `now` (seconds since 1970); returns the covered names.

    Raises NotPassed.
    """
    try:
        dkim.validate_signature_fields(tags)
    except dkim.DKIMException as error:
        reason = re.split(r"[(:]", str(error), maxsplit=1)[0]  # the rest quotes untrusted input
        raise NotPassed("permerror", reason.strip()) from error
    except (ValueError, IndexError, KeyError) as error:
        raise NotPassed("permerror", "tags that cannot be") from error
    check_times(tags, now)
    names = [name.strip().lower() for name in tags[b"h"].split(b":")]
    if b"from" not in names:
        raise NotPassed("permerror", "From is not signed")
    if tags[b"a"] == b"rsa-sha1":
        raise NotPassed("permerror", "rsa-sha1 is no longer accepted")
    if not tags.get(b"l", b"0").isdigit():
        raise NotPassed("permerror", "l= is not a number")
    return [*names, b"from"]  # one added above the signed ones must be detected


def check_times(tags: Tags, now: float) -> None:
    """Raises NotPassed if signed after `now` (t=), or expired (x=); dkimpy tolerates ten hours of both."""
    if b"t" in tags and _seconds(tags[b"t"]) > now + SLOP_S:
        raise NotPassed("permerror", "t= value is in the future")
    if b"x" in tags and _seconds(tags[b"x"]) < now - SLOP_S:
        raise NotPassed("permerror", "x= value is past")


def _seconds(value: bytes) -> int:
    text = value.strip()
    if not text.isdigit() or len(text) > MAX_TIME_DIGITS:
        raise NotPassed("permerror", "a time that cannot be")
    return int(text)


def _check_signature(key: PublicKey, signature: bytes, data: bytes) -> None:
    try:
        if isinstance(key, RSAPublicKey):
            key.verify(signature, data, PKCS1v15(), hashes.SHA256())
        else:
            key.verify(signature, hashlib.sha256(data).digest())
    except (InvalidSignature, ValueError) as error:
        raise NotPassed("fail", "the signature does not match the header") from error
