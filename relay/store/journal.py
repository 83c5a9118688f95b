"""The delivery journal: who has a mail already and what the sealed forms of the rest look like, until all have it.
Standard: RFC 5321 4.5.4.1 and 6.1: a retry completes what was not delivered and repeats nothing.

Nothing is written for a mail that leaves at once. Only sealed forms are kept, never plaintext. A mail server may split
a mail over several transactions, at once or later: each is about its own recipients and leaves those of others alone.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import secrets
import time
from collections.abc import Callable, Coroutine, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

from sqlalchemy import Boolean, Column, Double, Insert, LargeBinary, String, Table, Text, delete, func, select
from sqlalchemy.ext.asyncio import AsyncConnection

from relay.mail import Mail
from relay.store.database import Database, metadata, to_its_end
from relay.store.group_commit import GroupCommit
from relay.store.requeued import begin_before, postfix_owner

KEEP_FOR_S = 5 * 86400.0
"""How long a mail's journal waits for a retry: as long as mail servers keep trying."""
AT_ONCE = 500
"""Addresses in one statement; SQLite has a limit on parameters."""

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
class _Change:
    """What is known of these recipients is replaced by `rows`; `forms` are new ones."""

    key: bytes
    recipients: Sequence[str]
    rows: list[dict[str, Any]] = field(default_factory=list)
    forms: list[dict[str, Any]] = field(default_factory=list, repr=False)


@dataclass(frozen=True, slots=True)
class Begun:
    """What earlier tries of a mail have left: who has it, and the forms that wait."""

    delivered: frozenset[str] = frozenset()
    forms: tuple[JournalForm, ...] = ()


def mail_key(direction: str, mail: Mail) -> bytes:
    """SHA-256 over direction, sender and message: 32 octets that every transaction with the same mail has.

    It is still the same once Postfix has queued it again.
    """
    digest = hashlib.sha256(direction.encode() + b"\0")
    digest.update(mail.envelope.sender.encode("utf-8", "surrogateescape") + b"\0\0")
    digest.update(memoryview(mail.message)[begin_before(mail.message, postfix_owner()) :])
    return digest.digest()


class Journal:
    """The journal of one store."""

    def __init__(self, database: Database, clock: Callable[[], float] = time.time) -> None:
        """`clock` gives seconds since 1970."""
        self._database = database
        self._clock = clock
        self._known: set[bytes] | None = None
        self._commit = GroupCommit(self._write)

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

    def later(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        """Begins work with the journal that nobody need wait for; it ends before the store is closed."""
        return self._database.later(work)

    @to_its_end
    async def recall(self, key: bytes, recipients: Sequence[str]) -> Begun:
        """What is known of a mail for these recipients; nothing of a mail that is not in the journal."""
        if not self.knows(key):
            return Begun()
        delivered: set[str] = set()
        waiting: dict[str, list[str]] = {}
        async with self._database.reading() as connection:
            for some in _in_portions(recipients):
                rows = await connection.execute(
                    select(_deliveries).where(_deliveries.c.mail == key, _deliveries.c.recipient.in_(some))
                )
                for row in rows:
                    if row.delivered:
                        delivered.add(row.recipient)
                    elif row.form is not None:
                        waiting.setdefault(row.form, []).append(row.recipient)
            forms = [
                JournalForm(tuple(waiting[row.form]), json.loads(row.facts), row.message, row.form)
                for some in _in_portions(list(waiting))
                for row in await connection.execute(select(_forms).where(_forms.c.form.in_(some)))
            ]
        return Begun(frozenset(delivered), tuple(forms))

    @to_its_end
    async def remember(self, key: bytes, delivered: Iterable[str], forms: Sequence[JournalForm] = ()) -> None:
        """Writes down who has the mail, and which forms wait for whom.

        On the disk when it returns. What is known of further recipients stays; forms that wait for nobody go.
        """
        now = self._clock()
        known = [_row(key, recipient, True, None, now) for recipient in delivered]
        new: list[dict[str, Any]] = []
        for form in forms:
            name = form.name or secrets.token_hex(16)
            known += [_row(key, recipient, False, name, now) for recipient in form.recipients]
            if not form.name:
                facts = json.dumps(form.facts)
                new.append({"form": name, "mail": key, "facts": facts, "message": form.message, "written_at": now})
        await self._commit(_Change(key, [row["recipient"] for row in known], known, new))

    @to_its_end
    async def forget(self, key: bytes, recipients: Sequence[str]) -> None:
        """Nothing needs to be known of these recipients any more; others may still be asked for."""
        if self.knows(key):
            await self._commit(_Change(key, recipients))

    async def _write(self, changes: Sequence[_Change]) -> None:
        """In one transaction, in their order; a change that is written twice changes nothing."""
        async with self._database.writing() as connection:
            for change in changes:
                if change.forms:
                    values = self._database.insert(_forms).on_conflict_do_nothing()
                    await connection.execute(values, change.forms)
                await _forget(connection, change.key, change.recipients)
                if change.rows:
                    await connection.execute(self._put_rows(), change.rows)
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
    async def expire(self, keep_for: float = KEEP_FOR_S) -> int:
        """Forgets what nobody tried again for `keep_for` seconds; returns how many recipients waited for that."""
        before = self._clock() - keep_for
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
