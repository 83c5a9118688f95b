"""The tables of deliveries: who has a mail or waits for it, the sealed copies that wait, the mails that were opened.
What their rows mean is in delivery_records.py; names are digests, as in relay/mail.py.

For SQLite small rows are in the tree of their key (WITHOUT ROWID), and only in indexes that queries use. Each further
tree is a page that a mail writes.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

from sqlalchemy import Column, Connection, Double, Index, LargeBinary, String, Table, Text, delete, select

from relay.store.database import batches, metadata

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


def recipient_row(mail: bytes, recipient: bytes, copy: str | None, forget_at: float | None) -> dict[str, Any]:
    """By column name; without a copy they have the mail."""
    return {"recipient": recipient, "mail": mail, "copy": copy, "forget_at": forget_at}


def all_known(connection: Connection) -> set[bytes]:
    """The mails of which there is something, without those that were opened."""
    return set(connection.scalars(select(recipient_rows.c.mail).where(recipient_rows.c.forget_at >= 0)))


def mails_of(connection: Connection, mails: Collection[bytes]) -> set[bytes]:
    """Those of these mails of which there is still something."""
    found: set[bytes] = set()
    for some in batches(list(mails)):
        found.update(
            connection.scalars(select(recipient_rows.c.mail).where(recipient_rows.c.mail.in_(some)).distinct())
        )
    return found


def destroy_copies(connection: Connection, mails: Collection[bytes]) -> None:
    """Destroys the copies of these mails for which nobody waits now."""
    for some in batches(list(mails)):
        wanted = select(recipient_rows.c.copy).where(
            recipient_rows.c.mail.in_(some), recipient_rows.c.copy.is_not(None)
        )
        connection.execute(delete(copy_rows).where(copy_rows.c.mail.in_(some), copy_rows.c.copy.not_in(wanted)))
