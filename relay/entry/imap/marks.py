"""The marks by which an original in a mailbox is known again, and which prove that this site wrote it.
Standard: HMAC-SHA256 (RFC 2104) under keys of the site, for one account; marks of others are removed.

An original carries the name of the sealed message that it was made from, in X-QuMail-Protection, and a proof. The
proof covers account, mark and Message-ID: these alone, since some servers rewrite all other fields.

A message that reaches a mailbox by itself may bring such a field. The watcher puts a copy without it into the mailbox,
marked `none; copy-of=NAME`, and removes the message. The name is that of the message, so the step may be repeated.
"""

from __future__ import annotations

import hashlib
import hmac
import re

from relay.errors import MalformedMessage
from relay.formats import mime
from relay.store.secret import SiteSecret

FIELDS = ("Content-Type", "X-QuMail-Protection", "Message-ID")
"""The header fields that identify sealed messages, originals, and marks that nobody here wrote."""
MARK_FIELD = b"x-qumail-protection"

_MARK = re.compile(rb"^X-QuMail-Protection:[^\r\n]*; (?:sealed|copy-of)=([0-9a-f]{32})(?:;[^\r\n]*)?\r?$", re.MULTILINE)
_PROOF = re.compile(rb"(.*); site=([0-9a-f]{32})", re.DOTALL)


class OriginalMarks:
    """What only this site can write, for one account; what it wrote under older secrets holds while these are there."""

    def __init__(self, secret: SiteSecret, account: str) -> None:
        """Marks of one account: the same sealed message has another mark in another account."""
        self._names = secret.derived(b"imap originals")
        self._proofs = secret.derived(b"imap proofs")
        self._account = account.encode()

    def of(self, sealed: bytes) -> tuple[str, ...]:
        """The marks that an original of this message may carry, the one to write now first (32 hex digits each)."""
        digest = hashlib.sha256(sealed).digest()
        whole = (hmac.digest(key, self._account + b"\0" + digest, "sha256") for key in self._names)
        return tuple(each[:16].hex() for each in whole)

    def proven(self, message: bytes) -> bytes:
        """The message, which begins with its mark, with the proof at the end of that."""
        mark, end, rest = message.partition(b"\r\n")
        value = mark.partition(b":")[2]
        proof = self._proofs_of(value, mime.searched_header(message))[0]
        return mark + b"; site=" + proof + end + rest

    def forged(self, header: bytes) -> bool:
        """Whether these header fields have a mark, and it is not one that we wrote."""
        values = [raw.partition(b":")[2] for name, raw in mime.fields(header) if name == MARK_FIELD]
        if len(values) != 1:
            return bool(values)
        match = _PROOF.fullmatch(_plain(values[0]))
        return match is None or not any(
            hmac.compare_digest(match[2], each) for each in self._proofs_of(match[1], header)
        )

    def clean(self, message: bytes) -> bytes:
        """The whole message without marks, where they are forged; otherwise the same octets."""
        try:
            forged = self.forged(mime.searched_header(message))
            return mime.without_fields(message, mime.OUR_MARKS) if forged else message
        except MalformedMessage:  # no end of the header can be found
            return message

    def _proofs_of(self, mark: bytes, header: bytes) -> list[bytes]:
        """The proofs of a mark beside this Message-ID under each secret, that of the newest first."""
        names = [_plain(raw.partition(b":")[2]) for name, raw in mime.fields(header) if name == b"message-id"]
        text = b"\0".join([self._account, _plain(mark), *names])
        return [hmac.digest(key, text, "sha256")[:16].hex().encode() for key in self._proofs]


def mark_in(header: bytes) -> str:
    """What these header fields carry as a mark, or ""."""
    match = _MARK.search(header)
    return match[1].decode() if match else ""


def copy_of(name: str, clean: bytes) -> bytes:
    """The copy that takes the place of a message whose mark was forged; `name` is that message's."""
    return f"X-QuMail-Protection: none; copy-of={name}\r\n".encode() + clean


def _plain(value: bytes) -> bytes:
    """A field's value whatever its folding."""
    return b" ".join(value.split())
