"""The marks that identify an original in a mailbox, and prove that this site wrote it.
Standard: HMAC-SHA256 (RFC 2104) under keys of the site, for one account; marks of others are removed.

An original has the name of its sealed message in X-QuMail-Protection, with a proof. The proof covers account, mark and
Message-ID only, since some servers rewrite other fields.

Other messages in the mailbox may have a forged field. The watcher appends a copy without it, marked
`none; copy-of=NAME`, and removes the message. NAME is derived from the message, so the step may be repeated.
"""

from __future__ import annotations

import hashlib
import hmac
import re

from relay.errors import MalformedMessage
from relay.formats import mime
from relay.store.secret import SiteSecret

FIELDS = ("Content-Type", "X-QuMail-Protection", "Message-ID")
"""The header fields that identify sealed messages, originals and forged marks."""
MARK_FIELD = b"x-qumail-protection"

_MARK = re.compile(rb"^X-QuMail-Protection:[^\r\n]*; (?:sealed|copy-of)=([0-9a-f]{32})(?:;[^\r\n]*)?\r?$", re.MULTILINE)
_PROOF = re.compile(rb"(.*); site=([0-9a-f]{32})", re.DOTALL)


class OriginalMarks:
    """Writes and verifies marks of one account; marks under older secrets are valid as long as these exist."""

    def __init__(self, secret: SiteSecret, account: str) -> None:
        """The same sealed message has a different mark in each account."""
        self._names = secret.derived(b"imap originals")
        self._proofs = secret.derived(b"imap proofs")
        self._account = account.encode()

    def of(self, sealed: bytes) -> tuple[str, ...]:
        """The valid marks for an original of this message, the current one first (32 hex digits each)."""
        digest = hashlib.sha256(sealed).digest()
        whole = (hmac.digest(key, self._account + b"\0" + digest, "sha256") for key in self._names)
        return tuple(each[:16].hex() for each in whole)

    def proven(self, message: bytes) -> bytes:
        """Adds the proof to the mark at the beginning of the message."""
        mark, end, rest = message.partition(b"\r\n")
        value = mark.partition(b":")[2]
        proof = self._proofs_of(value, mime.searched_header(message))[0]
        return mark + b"; site=" + proof + end + rest

    def forged(self, header: bytes) -> bool:
        """Whether these header fields have a mark that we did not write."""
        values = [raw.partition(b":")[2] for name, raw in mime.fields(header) if name == MARK_FIELD]
        if len(values) != 1:
            return bool(values)
        match = _PROOF.fullmatch(_plain(values[0]))
        return match is None or not any(
            hmac.compare_digest(match[2], each) for each in self._proofs_of(match[1], header)
        )

    def clean(self, message: bytes) -> bytes:
        """The message without its marks if they are forged, else unchanged."""
        try:
            forged = self.forged(mime.searched_header(message))
            return mime.without_marks(message) if forged else message
        except MalformedMessage:  # the header has no end
            return message

    def _proofs_of(self, mark: bytes, header: bytes) -> list[bytes]:
        """The proofs of a mark with this Message-ID, under each secret, newest first."""
        names = [_plain(raw.partition(b":")[2]) for name, raw in mime.fields(header) if name == b"message-id"]
        text = b"\0".join([self._account, _plain(mark), *names])
        return [hmac.digest(key, text, "sha256")[:16].hex().encode() for key in self._proofs]


def mark_in(header: bytes) -> str:
    """The mark in these header fields, or ""."""
    match = _MARK.search(header)
    return match[1].decode() if match else ""


def copy_of(name: str, clean: bytes) -> bytes:
    """The copy that replaces a message with a forged mark; `name` is that message's."""
    return f"X-QuMail-Protection: none; copy-of={name}\r\n".encode() + clean


def _plain(value: bytes) -> bytes:
    """A field's unfolded value."""
    return b" ".join(value.split())
