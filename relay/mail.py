"""One mail: the SMTP envelope and the message's bytes, immutable, as it travels through the relay, and its name.
Standard: RFC 5321 (envelope), RFC 3461 (DSN parameters), RFC 6531 (SMTPUTF8).

The name identifies a mail in the store. It is the same at each attempt and at all relays of a site. An opened mail is
named after its sealed envelope, any other after its sender and its bytes.
"""

from __future__ import annotations

import hashlib
import pwd
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from functools import cache
from typing import Protocol

from relay.errors import Refuse, RelayError
from relay.formats.mailbox import folded_domain, folded_mailbox

Outcomes = tuple[RelayError | None, ...]
"""Outcome for each recipient of a mail, in their order; None if the next hop has accepted it."""

MAILBOX = re.compile(r"""([^@"\\]+|"(?:[^"\\]|\\.)*")@(\[[^\[\]@"\\]+\]|[^\s@"\\()\[\],:;]+)""")
"""RFC 5321, 4.1.2, with further harmless characters in the local part; exactly one "@" is outside quotes."""


def for_all(outcomes: Iterable[RelayError | None]) -> RelayError | None:
    """The one outcome for all recipients (SMTP allows only one): held before refused before accepted."""
    return min(outcomes, key=lambda each: (each is None, isinstance(each, Refuse)), default=None)


@dataclass(frozen=True, slots=True)
class Recipient:
    """One RCPT TO: the address without angle brackets, and its DSN parameters as they were given.

    `notify` and `orcpt` are the values of NOTIFY= and ORCPT= (RFC 3461, 4.1 and 4.2), or None.
    """

    address: str
    notify: str | None = None
    orcpt: str | None = None
    mailbox: str = field(init=False, repr=False, compare=False)
    """The canonical spelling of the address; two recipients are the same if it is equal."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "mailbox", folded_mailbox(self.address))


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
        return tuple([recipient.address for recipient in self.recipients])

    @property
    def mailboxes(self) -> tuple[str, ...]:
        """The recipients' mailboxes in the same order, with duplicates."""
        return tuple([recipient.mailbox for recipient in self.recipients])


@dataclass(frozen=True, slots=True)
class Origin:
    """Where a mail came from, in the terms of XFORWARD (decoded; "" if unknown), for log and next hop.

    `name`, `addr` and `port` are the client's host name, IP address and port. `proto` is SMTP or ESMTP, `helo` its HELO
    name. `ident` is the queue ID at the mail server that handed the mail on, `source` LOCAL or REMOTE. `user` is the
    authenticated user; it is never sent on. With `asks_user` an empty `user` means that the client has not
    authenticated.
    """

    name: str = ""
    addr: str = ""
    port: str = ""
    proto: str = ""
    helo: str = ""
    ident: str = ""
    source: str = ""
    user: str = ""
    asks_user: bool = False

    @property
    def login(self) -> str | None:
        """The user's name, "" for a client that has not authenticated; None if unknown."""
        return self.user if self.user or self.asks_user else None


UNKNOWN = Origin()
OURS = "relay"
"""Listener name of the relay's own mail, which is in no queue and is not retried."""


def never_absent() -> float:
    """For mail without a waiting client, or if that is unknown."""
    return 0.0


@dataclass(frozen=True, slots=True)
class Mail:
    """Envelope and raw message (header, CRLFCRLF, body; lines end in CRLF; no dot-stuffing).

    `id` names the mail in log lines; so does `message_id` (mime.message_id_hash of the message), which is the same at
    both sites. `trace` has the fields put on top when it is sent on, such as our Received (RFC 5321, 4.4); it is not
    sealed. `origin` is the client. With `each_answered` the client gets a reply for each recipient (LMTP), else one for
    all. `listener` is a metric label (smtp, lmtp, submission, ...), `OURS` for our own mail, or "". `absent` returns
    for how many seconds the client may have been gone: 0.0 if it is connected, infinite if it cannot be answered. For a
    `confirmed` mail the listener reports whether the client got the outcomes.
    """

    envelope: Envelope
    message: bytes = field(repr=False)
    id: str = ""
    trace: bytes = field(default=b"", repr=False)
    origin: Origin = UNKNOWN
    each_answered: bool = False
    listener: str = ""
    message_id: str = ""
    absent: Callable[[], float] = field(default=never_absent, repr=False, compare=False)
    confirmed: bool = False

    def to(self, recipients: Iterable[Recipient]) -> Mail:
        """The same mail for these recipients only."""
        selected = tuple(recipients)
        if selected == self.envelope.recipients:
            return self
        return self.changed(envelope=replace(self.envelope, recipients=selected))

    def with_header_in_bounces(self) -> Mail:
        """The same mail with RET=HDRS (RFC 3461, 4.3), so that a bounce does not quote content readable here."""
        return self.changed(envelope=replace(self.envelope, ret="HDRS"))

    def changed(
        self, *, envelope: Envelope | None = None, message: bytes | None = None, trace: bytes | None = None
    ) -> Mail:
        """A copy with these fields replaced; takes a third of the time of dataclasses.replace."""
        return Mail(
            self.envelope if envelope is None else envelope, self.message if message is None else message, self.id,
            self.trace if trace is None else trace, self.origin, self.each_answered, self.listener, self.message_id,
            self.absent, self.confirmed,
        )  # fmt: skip

    @property
    def size(self) -> int:
        """Number of bytes sent on."""
        return len(self.trace) + len(self.message)

    @property
    def digest(self) -> str:
        """SHA-256 of the message, as 64 hexadecimal digits."""
        return hashlib.sha256(self.message).hexdigest()


class WayOut(Protocol):
    """outgoing.py, for mail that the relay writes itself."""

    async def process(self, mail: Mail) -> Outcomes:
        """Raises TryLater or Refuse."""


@dataclass(frozen=True, slots=True)
class InPlace:
    """The result for a mail that its mail server keeps (milter).

    `message` replaces the mail server's, for `recipients` only: the others have theirs, or get it another way. None
    means that the mail server drops the mail. With `opened`, the message was inside the previous one, whose trace
    fields stay on top. If any of the `outcomes` is not None, nothing is replaced. `taken` must be called once with
    whether the mail server got the reply; otherwise a retry would be taken for a duplicate.
    """

    outcomes: Outcomes
    message: bytes | None = field(default=None, repr=False)
    recipients: tuple[str, ...] = ()
    opened: bool = False
    taken: Callable[[bool], None] | None = None


def domain_of(address: str) -> str:
    """The folded domain of an address, "" if it has none (the null sender, `postmaster`)."""
    return folded_domain(address.rpartition("@")[2]) if "@" in address else ""


POSTFIX_USER = "postfix"
"""Postfix's default mail_owner."""
_QUEUED_AGAIN = re.compile(
    rb"Received: by [^ \r\n]{1,255} \([^\r\n]{1,255}, from userid ([0-9]{1,10})\)\r\n"
    rb"\tid [0-9A-Za-z]{1,64}; [^\r\n]{1,99}\r\n(?=[Rr]eceived:)"
)


def name_as_it_came(direction: str, mail: Mail) -> bytes:
    """SHA-256 over direction, sender and message, 32 bytes: the same for each transaction with this mail."""
    digest = hashlib.sha256(direction.encode() + b"\0")
    digest.update(mail.envelope.sender.encode("utf-8", "surrogateescape") + b"\0\0")
    digest.update(memoryview(mail.message)[begin_before(mail.message, postfix_owner()) :])
    return digest.digest()


def recipient_name(mail: bytes, mailbox: str) -> bytes:
    """The name of a recipient of the mail with this name: a hash of 32 bytes, which discloses nobody (RFC 7693)."""
    return hashlib.blake2b(mail + mailbox.encode("utf-8", "surrogatepass"), digest_size=32).digest()


def sealed_name(envelope_id: bytes, master_sae: str) -> bytes:
    """The name of a sealed copy, at both sites: 32 bytes, unpredictable for others."""
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
    """The offset, in bytes, of the message as it was before it was requeued; 0 if it was not.

    `owner` is the UID of Postfix's own user here, or None. `postsuper -r` requeues a mail, which adds a trace field on
    top each time (postsuper(1), pickup(8)). Postfix does that as its own user, whom no other program runs as, so the
    mail keeps its name. Anything else on top makes it another mail: a program that submits the same bytes twice means
    two mails. If one were taken for the other, it would be lost. So only these fields are skipped, and only above
    another Received field.
    """
    begin = 0
    while (trace := _QUEUED_AGAIN.match(message, begin)) and int(trace[1]) == owner:
        begin = trace.end()
    return begin


@cache
def postfix_owner() -> int | None:
    """The UID of Postfix's own user here, or None; cached."""
    try:
        return pwd.getpwnam(POSTFIX_USER).pw_uid
    except KeyError:
        return None
