"""The delivery journal: who has a mail already and what the sealed forms of the rest look like, until all have it.
Standard: RFC 5321 4.5.4.1 and 6.1: a retry completes what was not delivered and repeats nothing.

Only sealed forms are kept, never plaintext. A mail server may split a mail over several transactions, at once or later:
each is about its own recipients and leaves those of others alone.

Where several relays share the store, or several recipients one answer, a try begins with claims (see claims.py). Of a
recipient whom another relay has claimed meanwhile, nothing but that he has the mail is written. Else nothing is written
for a mail that leaves at once.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import secrets
import time
from collections.abc import Callable, Coroutine, Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, TypeVar

from sqlalchemy import Boolean, Column, Double, Insert, LargeBinary, String, Table, Text, delete, func, select
from sqlalchemy.ext.asyncio import AsyncConnection

from relay.errors import DeliveryUnderWay, StoreUnavailable
from relay.mail import Mail
from relay.store.claims import Change, Claims
from relay.store.database import Database, metadata, to_its_end
from relay.store.group_commit import GroupCommit
from relay.store.requeued import begin_before, postfix_owner

KEEP_FOR_S = 5 * 86400.0
"""How long a mail's journal waits for a retry: as long as mail servers keep trying."""
MOST_LATE_OCTETS = 32 * 2**20
"""So much of sealed forms is kept in memory while the store cannot be written."""
AT_ONCE = 500
"""Addresses in one statement; SQLite has a limit on parameters."""

_Result = TypeVar("_Result")

_forms = Table(
    "sealed_forms",
    metadata,
    Column("form", String(32), primary_key=True),
    Column("mail", LargeBinary(32), nullable=False, index=True),
    Column("facts", Text, nullable=False),
    Column("message", LargeBinary, nullable=False),
    Column("written_at", Double, nullable=False),
)
"""What waits to be sent again: `mail` is mail_key(), `facts` is JSON."""

_deliveries = Table(
    "deliveries",
    metadata,
    Column("mail", LargeBinary(32), primary_key=True),
    Column("recipient", Text, primary_key=True),
    Column("delivered", Boolean, nullable=False),
    Column("form", String(32)),
    Column("written_at", Double, nullable=False),
)
"""One recipient (a mailbox) of a mail: he has it, or `form` waits for him."""


@dataclass(frozen=True, slots=True)
class JournalForm:
    """A sealed form of a mail that waits for its recipients.

    `facts` are whatever its maker wants back, as JSON; `name` is "" for one that is not in the journal yet.
    """

    recipients: tuple[str, ...]
    facts: dict[str, Any]
    message: bytes = field(repr=False)
    name: str = ""


@dataclass(frozen=True, slots=True)
class Begun:
    """What earlier tries of a mail have left: who has it, and the forms that wait.

    `relay` is the name under which its recipients are claimed, "" where nobody else could claim them.
    """

    delivered: frozenset[str] = frozenset()
    forms: tuple[JournalForm, ...] = ()
    relay: str = ""


@dataclass(slots=True)
class _Beginning:
    direction: str
    key: bytes
    recipients: Sequence[str]
    begun: Begun | None = None

    @property
    def places(self) -> dict[bytes, str]:
        return {place(self.key, recipient): self.direction for recipient in self.recipients}


@dataclass(frozen=True, slots=True)
class _Change:
    """What is known of `recipients` is replaced by `rows`, and claims on them under the name `relay` end.

    `forms` are new ones, and `known` says whether there may be something to replace. A row that says that somebody has
    the mail counts whoever has the claim.
    """

    key: bytes
    recipients: Sequence[str] = ()
    rows: list[dict[str, Any]] = field(default_factory=list)
    forms: list[dict[str, Any]] = field(default_factory=list, repr=False)
    relay: str = ""
    known: bool = True

    @property
    def claims(self) -> dict[bytes, str]:
        """The claims that end with it."""
        return {place(self.key, recipient): self.relay for recipient in self.recipients} if self.relay else {}

    @property
    def facts(self) -> _Change:
        """As much of it as a retry must know; without the forms it costs another key."""
        return replace(self, rows=[row for row in self.rows if row["delivered"]], forms=[])

    @property
    def octets(self) -> int:
        """How much there is of its forms."""
        return sum(len(form["message"]) for form in self.forms)


def mail_key(direction: str, mail: Mail) -> bytes:
    """SHA-256 over direction, sender and message: 32 octets that every transaction with the same mail has.

    It is still the same once Postfix has queued it again.
    """
    digest = hashlib.sha256(direction.encode() + b"\0")
    digest.update(mail.envelope.sender.encode("utf-8", "surrogateescape") + b"\0\0")
    digest.update(memoryview(mail.message)[begin_before(mail.message, postfix_owner()) :])
    return digest.digest()


def place(key: bytes, recipient: str) -> bytes:
    """What a recipient of a mail is called where claims are."""
    return hashlib.sha256(key + recipient.encode("utf-8", "surrogatepass")).digest()


class Journal:
    """The journal of one store."""

    def __init__(self, database: Database, claims: Claims, clock: Callable[[], float] = time.time) -> None:
        """`clock` gives seconds since 1970."""
        self._database = database
        self._claims = claims
        self._clock = clock
        self._known: set[bytes] | None = None
        self._begin = GroupCommit(self._write_beginnings)
        self._commit = GroupCommit(self._write)
        self._late: dict[bytes, list[_Change]] = {}
        self._writing_late = asyncio.Lock()

    @to_its_end
    async def load(self) -> None:
        """Reads which mails are in the journal. With SQLite one process writes it and needs to look no more.

        It changes only inside of transactions that write, of which there is one at a time.
        """
        if self._database.is_sqlite:
            async with self._database.reading() as connection:
                self._known = set(await connection.scalars(select(_deliveries.c.mail).distinct()))

    def knows(self, key: bytes) -> bool:
        """Whether there may be something of the mail in the journal."""
        return self._known is None or key in self._known

    def check(self, relay: str) -> None:
        """To be called last before a mail leaves that was begun as `relay`. Raises DeliveryUnderWay."""
        self._claims.check(relay)

    @property
    def settled(self) -> bool:
        """Whether nothing waits to be written."""
        return not self._late

    def later(self, work: Coroutine[Any, Any, _Result]) -> asyncio.Task[_Result]:
        """Begins work with the journal that nobody need wait for; it ends before the store is closed."""
        return self._database.later(work)

    @to_its_end
    async def begin(self, direction: str, key: bytes, recipients: Sequence[str], *, intent: bool = False) -> Begun:
        """One try of a mail for these recipients begins; what is known of them.

        With `intent` this is on the disk when it returns, also where nobody else uses the store. Whoever is cancelled
        has begun nothing. This process must have no other try of it under way. Raises DeliveryUnderWay where another
        try is under way, and StoreUnavailable.
        """
        if key in self._late:
            await self._write_late()
        if self._known is not None and not intent and not self.knows(key):
            return Begun()
        # A try of ours that ended in a way nobody foresaw has left its claims.
        self.break_off(key, recipients)
        beginning = _Beginning(direction, key, recipients)
        await self._begin(beginning)
        if beginning.begun is None:
            raise DeliveryUnderWay("another relay, or another try, has the same mail to the same recipient now")
        return beginning.begun

    def break_off(self, key: bytes, recipients: Sequence[str]) -> None:
        """Nothing comes of a try that has begun: what was known is left as it is."""
        self._claims.drop(place(key, recipient) for recipient in recipients)

    @to_its_end
    async def remember(self, key: bytes, delivered: Iterable[str]) -> None:
        """These have the mail. On the disk when it returns; what could not be written is written later.

        Raises StoreUnavailable.
        """
        now = self._clock()
        await self._done(_Change(key, rows=[_row(key, recipient, True, None, now) for recipient in delivered]))

    @to_its_end
    async def settle(
        self,
        key: bytes,
        begun: Begun,
        recipients: Sequence[str],
        delivered: Iterable[str] = (),
        forms: Sequence[JournalForm] = (),
    ) -> None:
        """The end of a try: of its recipients, who is to be known as having the mail, and which forms wait for whom.

        On the disk when it returns. Of the other ones nothing needs to be known any more. Raises StoreUnavailable; then
        it is written later, without its forms where there are too many of them.
        """
        now = self._clock()
        rows = [_row(key, recipient, True, None, now) for recipient in delivered]
        new: list[dict[str, Any]] = []
        for form in forms:
            name = form.name or secrets.token_hex(16)
            rows += [_row(key, recipient, False, name, now) for recipient in form.recipients]
            if not form.name:
                facts = json.dumps(form.facts)
                new.append({"form": name, "mail": key, "facts": facts, "message": form.message, "written_at": now})
        known = bool(begun.delivered or begun.forms)
        if begun.relay or rows or known:
            await self._done(_Change(key, recipients, rows, new, begun.relay, known))

    @to_its_end
    async def go_on(self) -> None:
        """Writes what could not be written when it should have been. Raises StoreUnavailable."""
        await self._write_late()

    async def _done(self, change: _Change) -> None:
        try:
            await self._commit(change)
        except StoreUnavailable:
            late = change if not change.forms or self._room_for(change) else change.facts
            if late.rows:  # until that is written a retry must not begin, here or elsewhere
                self._late.setdefault(change.key, []).append(late)
            else:
                self._claims.drop(change.claims)
            raise

    def _room_for(self, change: _Change) -> bool:
        late = (each for changes in self._late.values() for each in changes)
        return sum(each.octets for each in late) + change.octets <= MOST_LATE_OCTETS

    async def _write_late(self) -> None:
        async with self._writing_late:
            late = {key: list(changes) for key, changes in self._late.items()}
            if late:
                await self._write([change for changes in late.values() for change in changes])
            for key, written in late.items():
                self._late[key] = self._late[key][len(written) :]
                if not self._late[key]:
                    del self._late[key]

    async def _write_beginnings(self, beginnings: Sequence[_Beginning]) -> None:
        """In one transaction; what was written of a mail by the one who had it before is seen."""
        wanted = {at: kind for each in beginnings for at, kind in each.places.items()}
        begun: list[Begun | None] = []
        async with self._claims.change(wanted) as change:
            free = set(change.taken)
            for each in beginnings:
                ours = free.issuperset(each.places)
                begun.append(await self._recall(change, each) if ours else None)
                free -= each.places.keys() if ours else set()
            await change.give_back(free)
        for each, found in zip(beginnings, begun, strict=True):
            each.begun = found

    async def _recall(self, change: Change, beginning: _Beginning) -> Begun:
        if not self.knows(beginning.key):
            return Begun(relay=change.relay)
        delivered: set[str] = set()
        waiting: dict[str, list[str]] = {}
        for some in _in_portions(beginning.recipients):
            here = (_deliveries.c.mail == beginning.key) & _deliveries.c.recipient.in_(some)
            for row in await change.connection.execute(select(_deliveries).where(here)):
                if row.delivered:
                    delivered.add(row.recipient)
                elif row.form is not None:
                    waiting.setdefault(row.form, []).append(row.recipient)
        forms = [
            JournalForm(tuple(waiting[row.form]), json.loads(row.facts), row.message, row.form)
            for some in _in_portions(list(waiting))
            for row in await change.connection.execute(select(_forms).where(_forms.c.form.in_(some)))
        ]
        return Begun(frozenset(delivered), tuple(forms), change.relay)

    async def _write(self, changes: Sequence[_Change]) -> None:
        """In one transaction, in their order; a change that is written twice changes nothing."""
        async with self._claims.change() as change:
            ours = await change.end({at: relay for each in changes for at, relay in each.claims.items()})
            for each in (each for each in changes if each.known or each.rows):
                lost = {
                    recipient for recipient in each.recipients if each.relay and place(each.key, recipient) not in ours
                }
                await self._replace(change.connection, each, lost)

    async def _replace(self, connection: AsyncConnection, change: _Change, lost: set[str]) -> None:
        """`lost` are recipients on whom somebody else may have a claim by now, and all that he knows is newer."""
        rows = [row for row in change.rows if row["delivered"] or row["recipient"] not in lost]
        named = {row["form"] for row in rows}
        if forms := [form for form in change.forms if form["form"] in named]:
            await connection.execute(self._database.insert(_forms).on_conflict_do_nothing(), forms)
        await _forget(connection, change.key, [each for each in change.recipients if each not in lost])
        if rows:
            await connection.execute(self._put_rows(), rows)
        await _sweep_forms(connection, change.key)
        if self._known is not None:
            await self._note(connection, self._known, change)

    def _put_rows(self) -> Insert:
        """Another relay may have written of the same recipient meanwhile."""
        put = self._database.insert(_deliveries)
        newer = {name: put.excluded[name] for name in ("delivered", "form", "written_at")}
        return put.on_conflict_do_update(index_elements=["mail", "recipient"], set_=newer)

    async def _note(self, connection: AsyncConnection, known: set[bytes], change: _Change) -> None:
        rest = select(_deliveries.c.recipient).where(_deliveries.c.mail == change.key).limit(1)
        if change.rows:
            known.add(change.key)
        elif (await connection.execute(rest)).first() is None:
            known.discard(change.key)

    @to_its_end
    async def expire(self, now: float | None = None) -> int:
        """Forgets what nobody tried again for KEEP_FOR_S; returns how many recipients waited for that.

        `now` is seconds since 1970, by default the clock's.
        """
        before = (self._clock() if now is None else now) - KEEP_FOR_S
        old = _deliveries.c.written_at < before
        async with self._database.writing() as connection:
            waited = await connection.scalar(select(func.count()).where(old, ~_deliveries.c.delivered))
            gone = await connection.execute(delete(_deliveries).where(old))
            wanted = select(_deliveries.c.form).where(_deliveries.c.form.is_not(None))
            await connection.execute(delete(_forms).where(_forms.c.written_at < before, _forms.c.form.not_in(wanted)))
            if self._known is not None and gone.rowcount:
                self._known = set(await connection.scalars(select(_deliveries.c.mail).distinct()))
        return int(waited or 0)


def _row(key: bytes, recipient: str, delivered: bool, form: str | None, now: float) -> dict[str, Any]:
    return {"mail": key, "recipient": recipient, "delivered": delivered, "form": form, "written_at": now}


async def _forget(connection: AsyncConnection, key: bytes, recipients: Sequence[str]) -> None:
    for some in _in_portions(recipients):
        await connection.execute(
            delete(_deliveries).where(_deliveries.c.mail == key, _deliveries.c.recipient.in_(some))
        )


async def _sweep_forms(connection: AsyncConnection, key: bytes) -> None:
    """Destroys the forms of a mail for which nobody waits any more."""
    wanted = select(_deliveries.c.form).where(_deliveries.c.mail == key, _deliveries.c.form.is_not(None))
    await connection.execute(delete(_forms).where(_forms.c.mail == key, _forms.c.form.not_in(wanted)))


def _in_portions(values: Sequence[str]) -> list[Sequence[str]]:
    return [values[start : start + AT_ONCE] for start in range(0, len(values), AT_ONCE)]
