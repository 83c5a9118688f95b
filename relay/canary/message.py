"""The format of canaries (question, receipt, note on unsealed mail): an address, a few header fields, a JSON object.
Standard: relay/FORMAT.md, section 11; RFC 8259, RFC 3834 5 (Auto-Submitted). Any other form is refused.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import format_datetime, make_msgid
from typing import Any, Literal

from relay.errors import BadStructure, MalformedMessage
from relay.formats import mime
from relay.formats.mailbox import folded_domain

LOCAL_PART = "qumail-canary"
CONTENT_TYPE = "application/vnd.qumail.canary+json"
VERSION = 1
NONCE_OCTETS = 32
MAX_OCTETS = 4096
"""Maximum message size, in bytes."""
_NONCE = re.compile(rf"[0-9a-f]{{{2 * NONCE_OCTETS}}}")
_EXPECTED = {b"auto-submitted": b"auto-generated", b"content-type": CONTENT_TYPE.encode(), b"mime-version": b"1.0"}
"""Required fields, each exactly once, with these values."""

Kind = Literal["question", "receipt", "unsealed"]
_KINDS: tuple[Kind, ...] = ("question", "receipt", "unsealed")
MOST_TOLD = 1_000_000_000
"""Maximum number of mails that a note names."""


@dataclass(frozen=True, slots=True)
class CanaryNote:
    """A question, a receipt, which has the nonce of its question, or a note on unsealed mail; none has a secret.

    `sender` is the number of mails with the receiver's domains in MAIL FROM, `author` of those with them in From alone.
    """

    kind: Kind
    nonce: bytes
    sender: int = 0
    author: int = 0


def canary_address(domains: Sequence[str]) -> str:
    """The canary address of a site: at the first of its mail domains."""
    return f"{LOCAL_PART}@{folded_domain(domains[0])}"


def write(note: CanaryNote, from_: str, to: str, hostname: str) -> bytes:
    """The message for the journey out."""
    numbers = {"sender": note.sender, "author": note.author} if note.kind == "unsealed" else {}
    body = json.dumps({"canary": VERSION, "kind": note.kind, "nonce": note.nonce.hex(), **numbers})
    lines = (
        f"From: <{from_}>",
        f"To: <{to}>",
        "Subject: QuMail canary",
        f"Date: {format_datetime(datetime.now(UTC))}",
        f"Message-ID: {make_msgid(domain=hostname)}",
        "Auto-Submitted: auto-generated",
        "MIME-Version: 1.0",
        f"Content-Type: {CONTENT_TYPE}",
        "",
        body,
        "",
    )
    return "\r\n".join(lines).encode()


def read(message: bytes) -> CanaryNote:
    """Parses an opened message. Raises BadStructure if it is no canary."""
    if len(message) > MAX_OCTETS:
        raise BadStructure(f"a canary has at most {MAX_OCTETS} octets")
    try:
        header, body = mime.split(message)
        said = json.loads(body.decode("ascii"), object_pairs_hook=_each_once)
    except (MalformedMessage, ValueError, RecursionError) as error:
        raise BadStructure("its body is no JSON object") from error
    fields = [(name, raw.partition(b":")[2].strip()) for name, raw in mime.fields(header)]
    if sorted(each for each in fields if each[0] in _EXPECTED) != sorted(_EXPECTED.items()):
        raise BadStructure("its header is not that of a canary")
    return _note(said)


def _each_once(members: list[tuple[str, Any]]) -> dict[str, Any]:
    if len(dict(members)) != len(members):
        raise ValueError("a name stands there twice")
    return dict(members)


def _note(said: object) -> CanaryNote:
    if not isinstance(said, dict):
        raise BadStructure("its body is no JSON object")
    numbers = ("sender", "author") if said.get("kind") == "unsealed" else ()
    if said.keys() != {"canary", "kind", "nonce", *numbers}:
        raise BadStructure("it has other members than a canary")
    version, kind, nonce = said["canary"], said["kind"], said["nonce"]
    if type(version) is not int or version != VERSION:
        raise BadStructure(f"{VERSION} is the only version of canaries")
    if kind not in _KINDS or not isinstance(nonce, str) or not _NONCE.fullmatch(nonce):
        raise BadStructure("kind or nonce is not that of a canary")
    mails = [said[each] for each in numbers]
    if not all(type(each) is int and 0 <= each <= MOST_TOLD for each in mails):
        raise BadStructure("its numbers are not those of a note")
    return CanaryNote(kind, bytes.fromhex(nonce), *mails)
