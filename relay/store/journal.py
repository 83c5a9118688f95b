"""The delivery journal: which forms of a mail have left and what the others look like, until all have left.
Standard: RFC 5321 4.5.4.1 and 6.1: a retry completes what was not delivered and repeats nothing.

Nothing is written for a mail that leaves at once in one form. Only sealed forms are kept, never plaintext.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from sqlalchemy import Boolean, Column, Double, Integer, LargeBinary, Table, Text, delete, select

from relay.mail import Mail
from relay.store.database import Database, metadata

KEEP_FOR_S = 5 * 86400.0
"""How long a mail's journal waits for a retry: as long as mail servers keep trying."""

_forms = Table(
    "delivery_journal",
    metadata,
    Column("mail", LargeBinary(32), primary_key=True),
    Column("form", Integer, primary_key=True, autoincrement=False),
    Column("recipients", Text, nullable=False),
    Column("delivered", Boolean, nullable=False),
    Column("facts", Text, nullable=False),
    Column("message", LargeBinary),
    Column("written_at", Double, nullable=False),
)
"""`mail` is mail_key(), `recipients` and `facts` are JSON, `message` is NULL for a form that was not sealed."""


@dataclass(frozen=True, slots=True)
class JournalForm:
    """One form of a mail: the recipients it is for, whether they have it, and the sealed message.

    `facts` are whatever its maker wants back, as JSON; `message` is None for a form that is made anew.
    """

    recipients: tuple[str, ...]
    delivered: bool
    facts: dict[str, Any]
    message: bytes | None = field(repr=False)


def mail_key(mail: Mail) -> bytes:
    """SHA-256 over sender, recipients and message: 32 octets that a retry of the same mail has too."""
    digest = hashlib.sha256()
    for part in (mail.envelope.sender, *sorted(mail.envelope.addresses)):
        digest.update(part.encode("utf-8", "surrogateescape") + b"\0")
    digest.update(b"\0" + mail.message)
    return digest.digest()


class Journal:
    """The journal of one store."""

    def __init__(self, database: Database, clock: Callable[[], float] = time.time) -> None:
        """`clock` gives seconds since 1970."""
        self._database = database
        self._clock = clock
        self._known: set[bytes] | None = None

    async def load(self) -> None:
        """Reads which mails are in the journal. With SQLite one process writes it and needs to look no more."""
        if self._database.is_sqlite:
            async with self._database.reading() as connection:
                self._known = set(await connection.scalars(select(_forms.c.mail).distinct()))

    @property
    def empty(self) -> bool:
        """True where it is certain that no mail is in the journal, so that nobody has to look for one."""
        return self._known is not None and not self._known

    async def recall(self, key: bytes) -> list[JournalForm]:
        """The forms of a mail in their order; none for a mail that is not in the journal."""
        if self._known is not None and key not in self._known:
            return []
        async with self._database.reading() as connection:
            rows = await connection.execute(select(_forms).where(_forms.c.mail == key).order_by(_forms.c.form))
            return [
                JournalForm(tuple(json.loads(row.recipients)), row.delivered, json.loads(row.facts), row.message)
                for row in rows
            ]

    async def remember(self, key: bytes, forms: Sequence[JournalForm]) -> None:
        """Writes down all forms of a mail in place of what was there; on the disk when it returns."""
        rows = [
            {
                "mail": key,
                "form": number,
                "recipients": json.dumps(form.recipients),
                "delivered": form.delivered,
                "facts": json.dumps(form.facts),
                "message": None if form.delivered else form.message,
                "written_at": self._clock(),
            }
            for number, form in enumerate(forms)
        ]
        async with self._database.writing() as connection:
            await connection.execute(delete(_forms).where(_forms.c.mail == key))
            await connection.execute(_forms.insert(), rows)
        if self._known is not None:
            self._known.add(key)

    async def forget(self, key: bytes) -> None:
        """The mail has left in all its forms."""
        if self._known is not None and key not in self._known:
            return
        async with self._database.writing() as connection:
            await connection.execute(delete(_forms).where(_forms.c.mail == key))
        if self._known is not None:
            self._known.discard(key)

    async def expire(self, keep_for: float = KEEP_FOR_S) -> int:
        """Forgets mails that nobody tried again for `keep_for` seconds; returns how many forms these were."""
        async with self._database.writing() as connection:
            gone = await connection.execute(delete(_forms).where(_forms.c.written_at < self._clock() - keep_for))
        if gone.rowcount:
            await self.load()
        return int(gone.rowcount)
