"""What was found out about KMEs at the price of keys, so that a relay that starts again need not pay once more.
Standard: believed for 30 days, and only while the KME describes itself as it did then.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable

from sqlalchemy import Column, Double, LargeBinary, String, Table, select

from relay.store.database import Database, metadata

BELIEVED_S = 30 * 86400.0
"""Seconds."""

_trials = Table(
    "kme_trials",
    metadata,
    Column("kme", LargeBinary(32), primary_key=True),
    Column("described", LargeBinary(32), nullable=False),
    Column("found", String(16), nullable=False),
    Column("tried_at", Double, nullable=False),
)
"""SHA-256 over the KME's URL and the SAEs, and over what it says of itself; when, in seconds since 1970."""


class Trials:
    """The trials of one store, which all relays of a site share."""

    def __init__(self, database: Database, clock: Callable[[], float]) -> None:
        """`clock` gives seconds since 1970."""
        self._database = database
        self._clock = clock

    async def recall(self, kme: tuple[str, ...], described: tuple[object, ...]) -> str | None:
        """What was found about this KME (its URL and the SAEs) when it described itself so; None: try it.

        Raises StoreUnavailable.
        """
        query = select(_trials).where(_trials.c.kme == _digest(kme), _trials.c.described == _digest(described))
        for row in await self._database.rows(query):
            # A clock that was ahead at the trial must not have it believed for longer.
            if 0 <= self._clock() - row.tried_at < BELIEVED_S:
                return str(row.found)
        return None

    async def remember(self, kme: tuple[str, ...], described: tuple[object, ...], found: str) -> None:
        """Remembers what was `found` now, at most 16 characters. Raises StoreUnavailable."""
        row = {"described": _digest(described), "found": found, "tried_at": self._clock()}
        put = self._database.insert(_trials).values(kme=_digest(kme), **row)
        await self._database.write(put.on_conflict_do_update(index_elements=["kme"], set_=row))


def _digest(fields: tuple[object, ...]) -> bytes:
    return hashlib.sha256(json.dumps(fields).encode()).digest()
