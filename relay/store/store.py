"""The store: a class for each thing that it keeps, over one database, opened and closed together.
What each promises is in __init__.py.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Self

import structlog

from relay.counting.board import Board
from relay.errors import StoreUnavailable
from relay.store.canaries import Canaries
from relay.store.claims import Claims
from relay.store.database import Database, open_database
from relay.store.delivery_records import DeliveryRecords
from relay.store.history import History
from relay.store.kme_memory import IssuedKeyMemory, Trials
from relay.store.quarantine import FirstSeen, Quarantine
from relay.store.quarantine_table import SEALED_MESSAGES
from relay.store.rate_limits import RateLimits
from relay.store.received import ReceivedKeys
from relay.store.received_table import SEALED_KEYS
from relay.store.restore_check import RestoreCheck
from relay.store.secret import SiteSecret

SEALED_ROWS = (SEALED_KEYS, SEALED_MESSAGES)
BUSY_TIMEOUT_S = 5.0
"""Seconds to wait for another writer before the mail is held."""

log = structlog.get_logger(__name__)


class Store:
    """An open store; `async with` closes it."""

    def __init__(
        self,
        database: Database,
        secret: SiteSecret,
        clock: Callable[[], float],
        restore_check_file: Path | None,
        board: Board | None = None,
        *,
        known_here: bool = False,
    ) -> None:
        self._database = database
        self._secret = secret
        self.restore_check = RestoreCheck(database, restore_check_file, clock, secret.ids, known_here=known_here)

        def stamp() -> float:
            """The time for rows with an age limit: by a clock far behind they would expire at once."""
            return max(clock(), self.restore_check.past)

        self.received = ReceivedKeys(database, secret, stamp)
        self.issued_keys = IssuedKeyMemory(database, secret, stamp)
        self.trials = Trials(database, clock)
        self.claims = Claims(database, board=board)
        self.deliveries = DeliveryRecords(database, self.claims, self.received, stamp)
        self.quarantine = Quarantine(database, secret, clock)
        self.first_seen = FirstSeen(database, clock)
        self.rate_limits = RateLimits(database, clock)
        self.history = History(database, clock)
        self.canaries = Canaries(database, clock)

    @property
    def sealed_under(self) -> str:
        """The id of the secret under which this process seals."""
        return self._secret.ids[0]

    async def missing_secrets(self) -> dict[str, int]:
        """The ids of missing secrets that rows are sealed under, with the number of rows.

        Raises StoreUnavailable.
        """
        missing = [await each.missing_secrets(self._database, self._secret) for each in SEALED_ROWS]
        return dict(sum(missing, Counter[str]()))

    async def reseal(self) -> int:
        """Reseals all rows under older secrets with the newest one; returns how many.

        After that, the older secrets may be removed from the file. Raises StoreUnavailable, also if some rows could not
        be opened; all others are resealed then.
        """
        resealed = 0
        troubles = []
        for each in SEALED_ROWS:
            try:
                resealed += await each.reseal(self._database, self._secret)
            except StoreUnavailable as error:
                troubles.append(str(error))
        if troubles:
            raise StoreUnavailable("; ".join(troubles))
        await self.restore_check.resealed()
        return resealed

    async def close(self) -> None:
        """Closes all connections; to be called once, when nothing uses the store any longer.

        A locked or unavailable store is waited for once.
        """
        await self._database.quiet()
        with suppress(StoreUnavailable):
            await self.deliveries.go_on()
            await self.claims.close()
        await self._database.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()


async def open_store(
    where: str | Path,
    secret: SiteSecret,
    *,
    busy_timeout: float | None = None,
    restore_check_file: Path | None = None,
    known_here: bool = False,
    board: Board | None = None,
    clock: Callable[[], float] = time.time,
) -> Store:
    """The store in a SQLite file (a path, made if missing) or a PostgreSQL database (`postgresql://...`).

    `busy_timeout` is how many seconds to wait for another process that is writing, BUSY_TIMEOUT_S if None.
    `restore_check_file` identifies a restored store; `known_here` says that other files of a relay that served lie
    beside it. What it counts is on the `board`. `clock` gives seconds since 1970.

    Raises ConfigError (bad URL, unusable path, schema of a newer relay) and StoreUnavailable.
    """
    database = await open_database(where, busy_timeout=BUSY_TIMEOUT_S if busy_timeout is None else busy_timeout)
    store = Store(database, secret, clock, restore_check_file, board, known_here=known_here)
    try:
        await store.deliveries.load()
        await store.restore_check.load()
        for secret_id, rows in (await store.missing_secrets()).items():
            log.error("store_secret_missing", store=database.name, secret_id=secret_id, rows=rows)
            store.restore_check.sealed_under = secret_id
    except BaseException:
        await store.close()
        raise
    return store
