"""One mail: the SMTP envelope and the message's bytes, immutable, as it travels through the relay, and its name.
Standard: RFC 5321 (envelope), RFC 3461 (DSN parameters), RFC 6531 (SMTPUTF8).

The name is the same at each attempt, at all relays of a site; the store knows a mail by it. A mail that was opened is
called by what its sealed envelope says, any other by its sender and its bytes.
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
"""What became of a mail for each of its recipients, in their order: None where the next hop has accepted it."""

MAILBOX = re.compile(r"""([^@"\\]+|"(?:[^"\\]|\\.)*")@(\[[^\[\]@"\\]+\]|[^\s@"\\()\[\],:;]+)""")
"""RFC 5321, 4.1.2, but for characters of the local part that are of no danger; exactly one "@" is outside quotes."""


def for_all(outcomes: Iterable[RelayError | None]) -> RelayError | None:
    """The one outcome for all recipients where only one can be given (SMTP): hold before refuse before accepted."""
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
    """The one spelling of the address: recipients who have the same one are the same."""

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
        """The same as mailboxes; one that was given twice is here twice."""
        return tuple([recipient.mailbox for recipient in self.recipients])


@dataclass(frozen=True, slots=True)
class Origin:
    """Where a mail came from, in the terms of XFORWARD (decoded; "" where it is not known), for log and next hop.

    `name` and `addr` are the client's host name and IP address, `port` its port. `proto` is SMTP or ESMTP, `helo` what
    it said. `ident` is the queue ID of the mail server that handed the mail on, `source` LOCAL or REMOTE. `user` is the
    name under which a user has authenticated; it is never sent on. `asks_user` says that the listener learns of every
    client whether it has authenticated: then no `user` means that it has not.
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
        """The user's name, "" for a client that has not authenticated; None where that is not known."""
        return self.user if self.user or self.asks_user else None


UNKNOWN = Origin()
OURS = "relay"
"""The listener name of mail without retries: nothing of it waits in a queue."""


def never_absent() -> float:
    """No client waits for the answer, or it is unknown whether one does."""
    return 0.0


@dataclass(frozen=True, slots=True)
class Mail:
    """Envelope and raw message (header, CRLFCRLF, body; lines end in CRLF; no dot-stuffing).

    `id` names the mail in log lines, as does `message_id` (mime.message_id_hash of the message), which it has at the
    other site too. `trace` goes on top of the message when it is sent on: the Received field of this relay (RFC 5321,
    4.4) and the like. It is no part of what is sealed. `origin` is the client it came from, and `each_answered` says
    whether that client hears an outcome for each recipient (LMTP), or one for all. `listener` is where it came in, in
    the words of metrics (smtp, lmtp, submission, ...), `OURS` where we have written it, "" for none of them. `absent`
    says for how many seconds the client may have been gone by now: 0.0 where it is there, infinite where it hears
    nothing. Of a mail that is `confirmed` its listener says whether the client has heard the outcomes.
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
        """The same mail with RET=HDRS (RFC 3461, 4.3): a bounce of what was readable here quotes no content."""
        return self.changed(envelope=replace(self.envelope, ret="HDRS"))

    def changed(
        self, *, envelope: Envelope | None = None, message: bytes | None = None, trace: bytes | None = None
    ) -> Mail:
        """The same mail but for what is given: a third of the time of dataclasses.replace, for it happens often."""
        return Mail(
            self.envelope if envelope is None else envelope, self.message if message is None else message, self.id,
            self.trace if trace is None else trace, self.origin, self.each_answered, self.listener, self.message_id,
            self.absent, self.confirmed,
        )  # fmt: skip

    @property
    def size(self) -> int:
        """The bytes that are sent on."""
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

    `message` takes the place of what the mail server has, for `recipients` alone: the others have theirs, or theirs
    goes another way. None means that the mail server drops the mail. `opened` says that the message was inside the
    one before, whose trace fields stay on top. `outcomes` are as usual; where one is not None, nothing is replaced.
    `taken` is to be called once with whether the mail server has heard of it; else a retry would be taken for a copy.
    """

    outcomes: Outcomes
    message: bytes | None = field(default=None, repr=False)
    recipients: tuple[str, ...] = ()
    opened: bool = False
    taken: Callable[[bool], None] | None = None


def domain_of(address: str) -> str:
    """The domain of an address as domains are compared, or "" where there is none (the null sender, `postmaster`)."""
    return folded_domain(address.rpartition("@")[2]) if "@" in address else ""


POSTFIX_USER = "postfix"
"""The mail_owner of every Postfix that was not set up otherwise."""
_QUEUED_AGAIN = re.compile(
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

    `owner` is the number of Postfix's own user on the host of the relay, None where it has none. Postfix may read a
    mail into its queue once more (`postsuper -r`), and each time puts one trace field on top of it. Such a mail keeps
    its name (postsuper(1), pickup(8)): Postfix hands it in as its own user, whom no program runs as. Whatever else is
    on top makes another mail of it. A program that hands in the same bytes twice means two mails, and one taken for
    the other would be lost. So nothing is left out but these fields, and only above another Received field.
    """
    begin = 0
    while (trace := _QUEUED_AGAIN.match(message, begin)) and int(trace[1]) == owner:
        begin = trace.end()
    return begin


@cache
def postfix_owner() -> int | None:
    """The number of Postfix's own user here, or None; asked once."""
    try:
        return pwd.getpwnam(POSTFIX_USER).pw_uid
    except KeyError:
        return None
