"""The site's own marks: on mail that it has sealed, and the proof in the mark of protection of mail that it has opened.
Standard: HMAC-SHA256 (RFC 2104) under keys derived from the site secret, so that nobody else can make one.

A mail server may bring back what it got from the relay. What is sealed is not sealed again, and what was opened keeps
its mark. That a message looks sealed or marked proves nothing: anybody can write that.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import re
from dataclasses import dataclass, field

from relay.formats import mime
from relay.store.secret import SiteSecret

SEALED_HERE = b"x-qumail-sealed"
"""Name of the field on sealed mail, in lower case."""
_MOST = 10
"""Maximum number of such fields that are looked at."""
_PROOF = re.compile(rb";[ \t\r\n]+site=([0-9a-f]{32})[ \t]*(?=\r\n|\Z)")


def is_by_relay(message: bytes) -> bool:
    """Whether a message has the field of a relay that seals, of any site. Raises MalformedMessage."""
    return any(name == SEALED_HERE for name, _ in mime.fields(mime.header_of(message)))


@dataclass(frozen=True, slots=True)
class SiteMarks:
    """Makes and recognises marks. All relays of a site share the secret; older ones count as long as they exist."""

    secret: SiteSecret
    _sealed_keys: tuple[bytes, ...] = field(init=False, repr=False)
    _marked_keys: tuple[bytes, ...] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        """Derives the keys, once for all mails."""
        object.__setattr__(self, "_sealed_keys", self.secret.derived(b"sealed here"))
        object.__setattr__(self, "_marked_keys", self.secret.derived(b"marked here"))

    def sealed_field(self, message: bytes, peer: str, protection: str) -> bytes:
        """The field to put on top of this sealed message. Raises MalformedMessage."""
        return b"X-QuMail-Sealed: " + self._of_sealed(message, peer, protection)[0] + b"\r\n"

    def is_sealed_here(self, marked: bytes, message: bytes, peer: str, protection: str) -> bool:
        """Whether `marked` has in its header the mark of `message`, which would leave. Raises MalformedMessage."""
        header = mime.fields(mime.header_of(marked))
        values = [raw.partition(b":")[2].strip() for name, raw in header if name == SEALED_HERE][:_MOST]
        right = self._of_sealed(message, peer, protection) if values else []
        return any(hmac.compare_digest(code, value) for code in right for value in values)

    def proven(self, message: bytes) -> bytes:
        """The message with a proof in its one mark of protection, the first line. Raises MalformedMessage."""
        end, whole = message.index(b"\r\n"), memoryview(message)
        return b"".join((whole[:end], b"; site=", self._of_marked(message)[0], whole[end:]))

    def is_proven(self, message: bytes) -> bool:
        """Whether the mark of protection is from this site, and of this message. Raises MalformedMessage."""
        header = mime.searched_header(message)
        if len(found := _PROOF.findall(header)) != 1:
            return False
        right = self._of_marked(_PROOF.sub(b"", header) + message[len(header) :])
        return any(hmac.compare_digest(code, found[0]) for code in right)

    def _of_sealed(self, message: bytes, peer: str, protection: str) -> list[bytes]:
        digest = hashlib.sha256(repr((peer, protection)).encode())
        digest.update(memoryview(message)[mime.bounds(message)[1] :])
        return [base64.b64encode(hmac.digest(key, digest.digest(), "sha256")) for key in self._sealed_keys]

    def _of_marked(self, message: bytes) -> list[bytes]:
        digest = mime.marked_digest(message)
        keys = self._marked_keys if digest else ()
        return [hmac.digest(key, digest, "sha256")[:16].hex().encode() for key in keys]
