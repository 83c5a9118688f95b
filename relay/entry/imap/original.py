"""Opens one sealed message of a mailbox, and marks the original so that it is known again for what it was made from."""

from __future__ import annotations

import hashlib
import hmac
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta

from relay import mime
from relay.addresses import read_addresses
from relay.aio import off_loop
from relay.errors import DeliveryUnderWay, MalformedMessage, NotNamed, PolicyRefuses, Replayed
from relay.opening import Opened
from relay.opening.original import Original, Originals
from relay.store import SiteSecret

MAX_FIELD_OCTETS = 8192
KEYS_ARE_THERE = timedelta(minutes=10)
"""A message that has been in its mailbox for so long does not wait for keys to come."""

_MARK = re.compile(rb"^X-QuMail-Protection:[^\r\n]*; (?:sealed|copy-of)=([0-9a-f]{32})(?:;[^\r\n]*)?\r?$", re.MULTILINE)


@dataclass(frozen=True, slots=True)
class Replacement:
    """What takes the place of a message in the mailbox, and its mark; `opened` is None where nothing was sealed."""

    message: bytes = field(repr=False)
    mark: str
    opened: Opened | None


class Marks:
    """Names for sealed messages that nobody else can make up: an original carries that of what it was made from."""

    def __init__(self, secret: SiteSecret, account: str) -> None:
        """The same sealed message has another mark in another account."""
        self._keys = secret.derived(b"imap originals")
        self._account = account.encode()

    def of(self, sealed: bytes) -> tuple[str, ...]:
        """The marks that an original of this message may carry, the one to write now first (32 hex digits each)."""
        digest = hashlib.sha256(sealed).digest()
        whole = (hmac.digest(key, self._account + b"\0" + digest, "sha256") for key in self._keys)
        return tuple(each[:16].hex() for each in whole)


def mark_in(header: bytes) -> str:
    """What these header fields carry as a mark, or ""."""
    match = _MARK.search(header)
    return match[1].decode() if match else ""


def sender_of(sealed: bytes) -> str:
    """Whom a message in a mailbox is from: its envelope sender, else the one address in From; "" where neither is.

    The server that delivered it has put the envelope sender on top, as Return-Path (RFC 5321, 4.4). A sender may
    choose that freely, but gains nothing: whose keys or signature opened the message decides whether it counts.
    """
    authors: list[bytes] = []
    for name, raw in mime.fields(mime.header_of(sealed)):
        value = raw.partition(b":")[2]
        if name == b"return-path" and len(raw) <= MAX_FIELD_OCTETS:
            return value.replace(b"\r\n", b"").decode("utf-8", "replace").strip().strip("<>")
        if name == b"from":
            authors.append(value)
    try:
        [field] = authors
        [author] = read_addresses(field)
    except ValueError:  # two fields, two addresses, or none that can be read without doubt
        return ""
    return str(author)


async def open_original(
    originals: Originals,
    sealed: bytes,
    mark: str,
    mailboxes: Sequence[str],
    under_way: set[bytes],
    proven: Callable[[bytes], bytes],
    *,
    patient: bool,
) -> Replacement | None:
    """The original with `mark`, `proven` to be ours, or None where the message is not sealed for us.

    `mailboxes` are those whose mail the mailbox gets. The mail is `under_way` until whoever gets the original takes it
    out: a copy has to wait. With `patient`, keys that its KME does not know yet are waited for. Raises TryLater or
    Refuse, and then nobody is claimed and nothing under way.
    """
    # A claim of our own from before we were killed does not count: one watcher at a time has the mailbox.
    original = await originals.open(
        sealed, sender_of(sealed), mailboxes, patient=patient, mailbox=True, mark=f"; sealed={mark}"
    )
    if original is None:
        return None
    opened = original.opened
    if not original.message:
        raise (
            Replayed("it was opened before")
            if opened.served
            else NotNamed("its sealed envelope names none of this mailbox's addresses; see `addresses`")
        )
    if opened.mail in under_way:
        await originals.opener.give_up(opened)
        raise DeliveryUnderWay("another copy of it is being opened")
    under_way.add(opened.mail)
    try:
        _check(original)
        message = await off_loop(len(original.message), proven, original.message)
    except BaseException:
        under_way.discard(opened.mail)
        await originals.opener.give_up(opened)
        raise
    return Replacement(message, mark, opened)


def _check(original: Original) -> None:
    """Raises MalformedMessage and PolicyRefuses for what stays sealed: a mailbox has no quarantine."""
    if b"\0" in original.message:
        raise MalformedMessage("a NUL, which IMAP cannot carry")
    if original.missed and original.missed.otherwise != "mark":
        raise PolicyRefuses(original.missed.cause)


def has_just_come(date: str) -> bool:
    """Whether a message with this INTERNALDATE may have come before its keys; those of an old one are there or gone."""
    age = age_of(date)
    return age is None or age < KEYS_ARE_THERE


def age_of(date: str) -> timedelta | None:
    """How long ago this INTERNALDATE was, None where it is none."""
    try:
        return datetime.now(UTC) - datetime.strptime(date.strip(), "%d-%b-%Y %H:%M:%S %z")
    except ValueError:
        return None
