"""One mail: the SMTP envelope and the message's bytes, immutable, as it travels through the relay.
Standard: RFC 5321 (envelope), RFC 3461 (DSN parameters), RFC 6531 (SMTPUTF8).
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass, field, replace


@dataclass(frozen=True, slots=True)
class Recipient:
    """One RCPT TO: the address without angle brackets, and its DSN parameters as they were given.

    `notify` and `orcpt` are the values of NOTIFY= and ORCPT= (RFC 3461, 4.1 and 4.2), or None.
    """

    address: str
    notify: str | None = None
    orcpt: str | None = None


@dataclass(frozen=True, slots=True)
class Envelope:
    """SMTP sender and recipients, and the parameters of MAIL FROM; only that (RFC 5321, 2.3.1).

    `sender` is "" for the null reverse-path. `ret` and `envid` are RFC 3461's RET= and ENVID=.
    """

    sender: str
    recipients: tuple[Recipient, ...]
    smtputf8: bool = False
    ret: str | None = None
    envid: str | None = None

    @property
    def addresses(self) -> tuple[str, ...]:
        """The recipients' addresses, in the order they were given."""
        return tuple(recipient.address for recipient in self.recipients)


@dataclass(frozen=True, slots=True)
class Mail:
    """Envelope and raw message (header, CRLFCRLF, body; lines end in CRLF; no dot-stuffing).

    `id` names the mail in log lines. `trace` is the Received field of this relay (RFC 5321, 4.4): it goes on
    top of what is sent on, and is no part of what is sealed.
    """

    envelope: Envelope
    message: bytes = field(repr=False)
    id: str = ""
    trace: bytes = field(default=b"", repr=False)

    def to(self, recipients: Iterable[Recipient]) -> Mail:
        """The same mail for these recipients only."""
        return replace(self, envelope=replace(self.envelope, recipients=tuple(recipients)))

    def with_message(self, message: bytes) -> Mail:
        """The same envelope around other bytes."""
        return replace(self, message=message)

    @property
    def digest(self) -> str:
        """SHA-256 of the message, as 64 hexadecimal digits."""
        return hashlib.sha256(self.message).hexdigest()


def domain_of(address: str) -> str:
    """The domain of an address in lower case, or "" where there is none (the null sender, `postmaster`)."""
    return address.rpartition("@")[2].lower() if "@" in address else ""
