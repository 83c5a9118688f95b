"""What a mail is called in the store: the same name at each attempt, at all relays of a site.
A mail that was opened is called by what its sealed envelope says, any other by its sender and its bytes.

Postfix may read a mail into its queue once more (`postsuper -r`), and each time puts one trace field on top of it.
Such a mail keeps its name (postsuper(1), pickup(8)): Postfix hands it in as its own user, whom no program runs as.
Whatever else is on top makes another mail of it. A program that hands in the same bytes twice means two mails, and one
taken for the other would be lost. So nothing is left out but these fields, and only above another Received field.
"""

from __future__ import annotations

import hashlib
import pwd
import re
from dataclasses import dataclass, field
from functools import cache

from relay.mail import Mail

USER = "postfix"
"""The mail_owner of every Postfix that was not set up otherwise."""
_FIELD = re.compile(
    rb"Received: by [^ \r\n]{1,255} \([^\r\n]{1,255}, from userid ([0-9]{1,10})\)\r\n"
    rb"\tid [0-9A-Za-z]{1,64}; [^\r\n]{1,99}\r\n(?=[Rr]eceived:)"
)


def name_as_it_came(direction: str, mail: Mail) -> bytes:
    """SHA-256 over direction, sender and message: 32 bytes that every transaction with the same mail has."""
    digest = hashlib.sha256(direction.encode() + b"\0")
    digest.update(mail.envelope.sender.encode("utf-8", "surrogateescape") + b"\0\0")
    digest.update(memoryview(mail.message)[begin_before(mail.message, postfix_owner()) :])
    return digest.digest()


def recipient_name(mail: bytes, mailbox: str) -> bytes:
    """What a recipient of the mail with this name is called: 32 bytes, so that the store names nobody (RFC 7693)."""
    return hashlib.blake2b(mail + mailbox.encode("utf-8", "surrogatepass"), digest_size=32).digest()


def sealed_name(envelope_id: bytes, master_sae: str) -> bytes:
    """What a sealed copy is called, at both sites: 32 bytes, which nobody else can know."""
    return hashlib.sha256(envelope_id + master_sae.encode("utf-8", "surrogatepass")).digest()


@dataclass(frozen=True, slots=True)
class OpenedMail:
    """A mail by what its sealed envelope says: `id` is unique for its master SAE; `forget_at` in seconds since 1970."""

    master_sae: str
    id: bytes
    fingerprint: bytes
    forget_at: float
    mailboxes: tuple[str, ...] = field(repr=False)
    name: bytes = field(init=False)
    """SHA-256 over the two, 32 bytes."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "name", sealed_name(self.id, self.master_sae))


def begin_before(message: bytes, owner: int | None) -> int:
    """Returns the offset, in bytes, of the message as it was before it was queued again; 0 for one that was not.

    `owner` is the number of Postfix's own user on the host of the relay, None where it has none.
    """
    begin = 0
    while (trace := _FIELD.match(message, begin)) and int(trace[1]) == owner:
        begin = trace.end()
    return begin


@cache
def postfix_owner() -> int | None:
    """The number of Postfix's own user here, or None; asked once."""
    try:
        return pwd.getpwnam(USER).pw_uid
    except KeyError:
        return None
