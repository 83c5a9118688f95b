"""The tables of the quarantine, and sealing of messages in their rows.
A message is only returned if its row is unmodified.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from sqlalchemy import BigInteger, Column, Double, Index, Integer, LargeBinary, Row, String, Table, Text, true

from relay.mail import Envelope, Mail, Origin, Recipient
from relay.store.database import metadata
from relay.store.resealing import SealedRows
from relay.store.secret import SealedOctets, SiteSecret

messages = Table(
    "quarantine",
    metadata,
    Column("id", String(12), primary_key=True),
    Column("mail", LargeBinary(32), nullable=False, unique=True),
    Column("reason", String(32), nullable=False),
    Column("party", Text, nullable=False),
    Column("named", Text, nullable=False),
    Column("facts", Text, nullable=False),
    Column("arrived_at", Double, nullable=False),
    Column("arrivals", Integer, nullable=False),
    Column("size", BigInteger, nullable=False),
    Column("octets", BigInteger, nullable=False),
    Column("claimed_until", Double),
    Column("secret_id", Text, nullable=False),
    Column("sealed", LargeBinary, nullable=False),
    Index("quarantine_party", "party", "octets"),
)
"""`facts` is JSON; `size` are the message's bytes, `octets` what the whole entry counts with its recipients.

Times are seconds since 1970. `sealed` stands last, so that the others are read without it.
"""

recipients = Table(
    "quarantine_recipients",
    metadata,
    Column("id", String(12), primary_key=True),
    Column("address", Text, primary_key=True),
    Column("notify", Text),
    Column("orcpt", Text),
)
"""Those who still wait for a message."""

waiting_for_keys = Table(
    "waiting_for_keys",
    metadata,
    Column("mail", LargeBinary(32), primary_key=True),
    Column("waited", Double, nullable=False),
    Column("last_seen", Double, nullable=False),
)

described = [column for column in messages.c if column.name not in ("secret_id", "sealed")]
"""All columns but the message itself."""

ENTRY_OCTETS = 1024
RECIPIENT_OCTETS = 256
"""Size of a row of either table beside its text, in bytes."""


@dataclass(frozen=True, slots=True)
class Arrival:
    """A mail to quarantine, for a `reason` (a word) and a `cause` (a sentence).

    `stored` are the bytes to keep: the mail as received, or opened; then `protection` and `peer` are those of the
    sealed mail. `party` is charged for its size. `named` is the claimed peer, verified or not, or "".
    """

    mail: Mail
    reason: str
    cause: str
    party: str
    stored: bytes = field(repr=False)
    protection: str = ""
    peer: str = ""
    named: str = ""


@dataclass(frozen=True, slots=True)
class Kept:
    """A message in quarantine, without its bytes; its envelope has the recipients who still wait.

    `arrived_at` is a Unix time, `size` in bytes, `digest` the SHA-256 as 64 hexadecimal digits, `arrivals` the number
    of times it arrived.
    """

    id: str
    reason: str
    cause: str
    party: str
    named: str
    envelope: Envelope
    arrived_at: float
    arrivals: int
    size: int
    protection: str
    peer: str
    mail_id: str
    origin: Origin
    digest: str
    trace: bytes = field(repr=False)


def facts_of(arrival: Arrival) -> str:
    """The other data of the arrival for its row, as ASCII JSON."""
    mail = arrival.mail
    envelope = mail.envelope
    return json.dumps(
        {
            "cause": arrival.cause,
            "sender": envelope.sender,
            "smtputf8": envelope.smtputf8,
            "ret": envelope.ret,
            "envid": envelope.envid,
            "mail_id": mail.id,
            "trace": mail.trace.decode("utf-8", "surrogateescape"),
            "origin": asdict(mail.origin),
            "protection": arrival.protection,
            "peer": arrival.peer,
            "digest": hashlib.sha256(arrival.stored).hexdigest(),
        }
    )


def kept_of(row: Row[Any], waiting: Sequence[Recipient]) -> Kept:
    """The row and its waiting recipients, for output."""
    facts = json.loads(row.facts)
    envelope = Envelope(
        facts["sender"], tuple(waiting), smtputf8=facts["smtputf8"], ret=facts["ret"], envid=facts["envid"]
    )
    return Kept(
        id=row.id,
        reason=row.reason,
        cause=facts["cause"],
        party=row.party,
        named=row.named,
        envelope=envelope,
        arrived_at=row.arrived_at,
        arrivals=row.arrivals,
        size=row.size,
        protection=facts["protection"],
        peer=facts["peer"],
        mail_id=facts["mail_id"],
        origin=Origin(**facts["origin"]),
        digest=facts["digest"],
        trace=facts["trace"].encode("utf-8", "surrogateescape"),
    )


def sealed_message(secret: SiteSecret, name: str, mail: bytes, reason: str, facts: str, message: bytes) -> SealedOctets:
    """The message, sealed for this row only."""
    return secret.seal(message, _context(name, mail, reason, facts))


def opened_message(secret: SiteSecret, row: Row[Any]) -> bytes:
    """Opens the message. Raises StoreUnavailable if its row was modified."""
    return secret.open(SealedOctets(row.secret_id, row.sealed), _context_of(row))


def _context_of(row: Row[Any]) -> bytes:
    return _context(row.id, row.mail, row.reason, row.facts)


def _context(name: str, mail: bytes, reason: str, facts: str) -> bytes:
    parts = [messages.name.encode(), name.encode(), mail, reason.encode(), facts.encode()]
    return b"".join(len(part).to_bytes(4, "big") + part for part in parts)


def recipient_octets(recipient: Recipient) -> int:
    """The size charged for a recipient, in bytes."""
    return RECIPIENT_OCTETS + len(recipient.address.encode()) + len(recipient.orcpt or "")


SEALED_MESSAGES = SealedRows("quarantined messages", messages, messages.c.id, true(), _context_of, at_once=1)
