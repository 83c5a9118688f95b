"""The tables of deliveries, and the transactions that begin and end attempts.
Standard: many attempts share a transaction, in order of arrival; only the holder of a claim (claims.py) writes.

delivery_records.py explains the rows; names are digests, as in relay/mail.py. For SQLite, small rows are WITHOUT ROWID,
with only the indexes that queries use: each further tree is a page written for each mail.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from sqlalchemy import Column, Connection, Double, Index, LargeBinary, Row, String, Table, Text, delete, select

from relay.errors import DeliveryUnderWay, RelayError, Replayed
from relay.mail import OpenedMail
from relay.store.claims import ClaimsTransaction
from relay.store.database import Database, batches, metadata
from relay.store.one_step import InsertNew, PutRows
from relay.store.received_table import Bound, FreshKey, KeysUsed, NewRows, bind_keys, mark_used

KEEP_FOR_S = 5 * 86400.0
"""Time for which a mail's record is kept for a retry, in seconds: as long as mail servers retry."""

recipient_rows = Table(
    "deliveries",
    metadata,
    Column("recipient", LargeBinary(32), primary_key=True),
    Column("mail", LargeBinary(32), nullable=False, index=True),
    Column("copy", String(32)),
    Column("forget_at", Double),
    sqlite_with_rowid=False,
)
"""Names as in relay/mail.py. `copy` is what waits for them, NULL: they have the mail. `forget_at` is in seconds
since 1970, NULL for a mail in `opened_mails`."""
# Not for PostgreSQL too: for its option, SQLAlchemy would load all that it has for that server.
Index("ix_deliveries_forget_at", recipient_rows.c.forget_at, sqlite_where=recipient_rows.c.forget_at.is_not(None))

copy_rows = Table(
    "sealed_copies",
    metadata,
    Column("copy", String(32), primary_key=True),
    Column("mail", LargeBinary(32), nullable=False, index=True),
    Column("facts", Text, nullable=False),
    Column("message", LargeBinary, nullable=False),
    Column("forget_at", Double, nullable=False),
)
"""What waits to be sent again; `facts` is JSON."""

opened_rows = Table(
    "opened_mails",
    metadata,
    Column("mail", LargeBinary(32), primary_key=True),
    Column("fingerprint", LargeBinary(32), nullable=False),
    Column("forget_at", Double, nullable=False, index=True),
    sqlite_with_rowid=False,
)

RecipientState = Literal["due", "served", "busy"]
"""A recipient who is to get the mail now, has it, or gets it at this moment from another attempt."""


@dataclass(frozen=True, slots=True)
class WaitingCopy:
    """A sealed copy of a mail that waits for its recipients, who are given as mailboxes.

    `facts` are whatever its maker wants back, as JSON; `name` is "" for one that is not in the store yet.
    """

    recipients: tuple[str, ...]
    facts: dict[str, Any]
    message: bytes = field(repr=False)
    name: str = ""


@dataclass(frozen=True, slots=True)
class Begun:
    """What is left of earlier attempts of a mail: mailboxes that have it, and waiting copies.

    Those `busy` are being served by another attempt (only for opened mail). `relay` is the owner of the claims, "" if
    nobody else could claim them.
    """

    delivered: frozenset[str] = frozenset()
    copies: tuple[WaitingCopy, ...] = ()
    busy: frozenset[str] = frozenset()
    relay: str = ""

    def state(self, mailbox: str) -> RecipientState:
        """The state of one of the requested mailboxes."""
        return "served" if mailbox in self.delivered else "busy" if mailbox in self.busy else "due"


@dataclass(slots=True)
class Beginning:
    """An attempt that begins, for these mailboxes by their names, and what was found; `first`: nobody tried it
    before.
    """

    kind: str
    mail: bytes
    mailboxes: dict[bytes, str]
    opened: OpenedMail | None = None
    bound: Sequence[Bound] = ()
    first: bool = False
    begun: Begun = field(default_factory=Begun)
    trouble: RelayError | None = None


@dataclass(slots=True, eq=False)
class Settlement:
    """What is to be written of some recipients of a mail; what stood there of those in `replaced` goes.

    `claims` end with it, each under its name. Of an `opened` mail `served` are all who have it, once that is written.
    Where these are `complete`, `used` are keys for which nobody waits any longer.
    """

    mail: bytes
    delivered: Collection[bytes] = ()
    waiting: dict[bytes, str] = field(default_factory=dict)
    copies: list[dict[str, Any]] = field(default_factory=list, repr=False)
    replaced: Collection[bytes] = ()
    claims: Mapping[bytes, str] = field(default_factory=dict)
    opened: bool = False
    served: set[bytes] = field(default_factory=set)
    complete: Callable[[set[bytes]], bool] = lambda _: False
    used: Sequence[KeysUsed] = ()

    @property
    def size(self) -> int:
        """Size of its copies, in bytes."""
        return sum(len(copy["message"]) for copy in self.copies)


class AttemptRows:
    """The beginnings and ends of attempts, in a transaction of the caller's."""

    def __init__(self, database: Database) -> None:
        """The rows of one store."""
        self._database = database
        new = database.insert(opened_rows).on_conflict_do_nothing().returning(opened_rows.c.mail)
        self._new_opened = InsertNew(opened_rows.c.mail, new)
        # Another relay may have written a row of the same recipient meanwhile.
        self._put = PutRows(database.insert(recipient_rows), "recipient", ("copy", "forget_at"))

    def begin(
        self,
        beginnings: Sequence[Beginning],
        fresh: Mapping[bytes, FreshKey],
        new: NewRows,
        change: ClaimsTransaction,
        may_know: Callable[[bytes], bool],
    ) -> None:
        """In the order in which they came; what the previous holder wrote is seen.

        `may_know` says whether there may be something of a mail that was not opened. What was found, or the trouble, is
        noted in each.
        """
        bound = bind_keys(change.connection, [each.bound for each in beginnings], fresh, new)
        for each, trouble in zip(beginnings, bound, strict=True):
            each.trouble = trouble
        self._refuse_replays(change.connection, [each for each in beginnings if not each.trouble])
        states, copies = self._find(change.connection, beginnings, may_know)
        free = set(change.taken)
        for each in beginnings:
            if each.trouble is None:
                free -= _found(each, states, copies, free, change.relay)
        change.give_back(free)

    def _refuse_replays(self, connection: Connection, beginnings: Sequence[Beginning]) -> None:
        """Adds rows of new mails, and detects replays; two relays with the same rows serialise here."""
        rows: dict[bytes, dict[str, Any]] = {}
        for opened in (each.opened for each in beginnings if each.opened):
            row = {"mail": opened.name, "fingerprint": opened.fingerprint, "forget_at": opened.forget_at}
            rows.setdefault(opened.name, row)
        if not rows:
            return
        added = self._new_opened.add(connection, [rows[mail] for mail in sorted(rows)])
        first: dict[bytes, bytes] = {mail: rows[mail]["fingerprint"] for mail in added}
        for some in batches(sorted(rows.keys() - added)):
            query = select(opened_rows.c.mail, opened_rows.c.fingerprint).where(opened_rows.c.mail.in_(some))
            first.update({row.mail: row.fingerprint for row in connection.execute(query)})
        for each in beginnings:
            each.first = each.mail in added
            if each.opened and first[each.mail] != each.opened.fingerprint:
                each.trouble = Replayed("the id in its sealed envelope was seen in another message")

    def _find(
        self, connection: Connection, beginnings: Sequence[Beginning], may_know: Callable[[bytes], bool]
    ) -> tuple[dict[bytes, str | None], dict[str, Row[Any]]]:
        """The existing rows, as the copy of each recipient, and these copies."""
        states: dict[bytes, str | None] = {}
        tried = [each for each in beginnings if not each.first and (each.opened or may_know(each.mail))]
        for some in batches([at for each in tried for at in each.mailboxes]):
            query = select(recipient_rows.c.recipient, recipient_rows.c.copy).where(
                recipient_rows.c.recipient.in_(some)
            )
            states.update({row.recipient: row.copy for row in connection.execute(query)})
        copies: dict[str, Row[Any]] = {}
        for names in batches(sorted({copy for copy in states.values() if copy})):
            waiting = connection.execute(select(copy_rows).where(copy_rows.c.copy.in_(names)))
            copies.update({row.copy: row for row in waiting})
        return states, copies

    def settle(
        self, outcomes: Sequence[Settlement], change: ClaimsTransaction, now: float
    ) -> tuple[set[bytes], set[bytes]]:
        """The mails of which no row is left, and those, not opened ones, of which there are rows.

        `now` is in seconds since 1970.
        """
        rows: dict[bytes, dict[str, Any] | None] = {}
        forget_at = now + KEEP_FOR_S
        ours = change.end({at: relay for each in outcomes for at, relay in each.claims.items()})
        for each in outcomes:
            # The holder of a later claim has newer information.
            lost = each.claims.keys() - ours
            until = None if each.opened else forget_at
            rows.update((at, None) for at in each.replaced if at not in lost)
            rows.update(
                (at, recipient_row(each.mail, at, copy, until)) for at, copy in each.waiting.items() if at not in lost
            )
            rows.update((at, recipient_row(each.mail, at, None, until)) for at in each.delivered)
        put = [row for at in sorted(rows) if (row := rows[at])]
        copies = {row["copy"] for row in put}
        if new := [copy for each in outcomes for copy in each.copies if copy["copy"] in copies]:
            change.connection.execute(self._database.insert(copy_rows).on_conflict_do_nothing(), new)
        for some in batches([at for at in sorted(rows) if rows[at] is None]):
            change.connection.execute(delete(recipient_rows).where(recipient_rows.c.recipient.in_(some)))
        self._put.put(change.connection, put)
        replaced = {each.mail for each in outcomes if each.replaced}
        destroy_copies(change.connection, replaced)
        left = mails_of(change.connection, replaced)
        self._note_served(change.connection, [each for each in outcomes if each.opened])
        used = [keys for each in outcomes if each.used and each.complete(each.served) for keys in each.used]
        if used:
            mark_used(change.connection, used, now)
        return replaced - left, {row["mail"] for row in put if row["forget_at"] is not None}

    def _note_served(self, connection: Connection, outcomes: Sequence[Settlement]) -> None:
        for each in outcomes:
            each.served = set(each.delivered)
        asked = [each for each in outcomes if not each.complete(each.served)]
        for some in batches(list({each.mail: None for each in asked})):
            query = select(recipient_rows.c.mail, recipient_rows.c.recipient).where(recipient_rows.c.mail.in_(some))
            served: dict[bytes, set[bytes]] = {mail: set() for mail in some}
            for row in connection.execute(query):
                served[row.mail].add(row.recipient)
            for each in asked:
                each.served |= served.get(each.mail, set())


def _found(
    beginning: Beginning,
    states: Mapping[bytes, str | None],
    copies: Mapping[str, Row[Any]],
    free: set[bytes],
    relay: str,
) -> set[bytes]:
    """Notes what was found for an attempt; the claims that it has. Unless it was opened, it has all recipients or none.

    `states` is the copy of each recipient who has a row, `free` are the claims that nobody has.
    """
    served = {at for at in beginning.mailboxes if at in states and states[at] is None}
    claimed = set(beginning.mailboxes) if beginning.opened is None else free & (beginning.mailboxes.keys() - served)
    if not claimed <= free:
        beginning.trouble = DeliveryUnderWay(
            "another relay, or another attempt, has the same mail to the same recipient now"
        )
        return set()
    waiting: dict[str, list[str]] = {}
    for at, mailbox in beginning.mailboxes.items():
        if (copy := states.get(at)) and copy in copies:
            waiting.setdefault(copy, []).append(mailbox)
    busy = beginning.mailboxes.keys() - served - claimed
    beginning.begun = Begun(
        frozenset(beginning.mailboxes[at] for at in served),
        tuple(
            WaitingCopy(tuple(mailboxes), json.loads(copies[name].facts), copies[name].message, name)
            for name, mailboxes in waiting.items()
        ),
        frozenset(beginning.mailboxes[at] for at in busy),
        relay,
    )
    return claimed


def recipient_row(mail: bytes, recipient: bytes, copy: str | None, forget_at: float | None) -> dict[str, Any]:
    """A row by column name; without a copy the recipient has the mail."""
    return {"recipient": recipient, "mail": mail, "copy": copy, "forget_at": forget_at}


def all_known(connection: Connection) -> set[bytes]:
    """The mails with rows, except opened ones."""
    return set(connection.scalars(select(recipient_rows.c.mail).where(recipient_rows.c.forget_at >= 0)))


def mails_of(connection: Connection, mails: Collection[bytes]) -> set[bytes]:
    """Those of these mails that still have rows."""
    found: set[bytes] = set()
    for some in batches(list(mails)):
        found.update(
            connection.scalars(select(recipient_rows.c.mail).where(recipient_rows.c.mail.in_(some)).distinct())
        )
    return found


def destroy_copies(connection: Connection, mails: Collection[bytes]) -> None:
    """Destroys the copies of these mails that no recipient waits for."""
    for some in batches(list(mails)):
        needed = select(recipient_rows.c.copy).where(
            recipient_rows.c.mail.in_(some), recipient_rows.c.copy.is_not(None)
        )
        connection.execute(delete(copy_rows).where(copy_rows.c.mail.in_(some), copy_rows.c.copy.not_in(needed)))
