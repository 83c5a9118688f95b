"""One relay serves from an embedded database; a second one would deliver what the first has in hand.
Standard: flock(2) on the database file itself: whatever name leads to it, and the kernel ends it with its process.

Commands beside a relay that serves (`imap once`, `open`, `keys`) do not ask: they share the database on purpose.
"""

from __future__ import annotations

import asyncio
import fcntl
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import structlog

from relay.errors import ConfigError
from relay.store.engines import make_sqlite_file

log = structlog.get_logger(__name__)

WAIT_S = 5.0
"""So long one that starts waits for another that ends."""
LOOK_S = 0.05
_LOCKS = Path("/proc/locks")


@asynccontextmanager
async def sole_relay(database: Path) -> AsyncIterator[None]:
    """From here to the end of the block no other process serves from this file, which is made if missing.

    The store is to be opened within the block, and closed. Waits a moment for a process that serves; one that is forked
    meanwhile would keep the lock. Raises ConfigError.
    """
    loop = asyncio.get_running_loop()
    until = loop.time() + WAIT_S
    waits = False
    while (file := _locked(database)) is None:
        other = await asyncio.to_thread(_holder, database)
        if loop.time() >= until:
            raise ConfigError(
                f"{database}: another relay (process {other}) serves from this database, and two send mail twice: "
                "stop that one, give this one a database of its own, or let both share PostgreSQL"
            )
        if not waits:
            log.warning("relay_waits", database=str(database), for_process=other, at_most_s=WAIT_S)
            waits = True
        await asyncio.sleep(LOOK_S)
    try:
        yield
    finally:
        # After the store: to close any descriptor of this file takes SQLite's own locks (fcntl) from the whole process.
        os.close(file)


def _locked(database: Path) -> int | None:
    """The file under its lock, as a descriptor; None where another process has it."""
    try:
        make_sqlite_file(database)
        file = os.open(database, os.O_RDWR | os.O_CLOEXEC | os.O_NONBLOCK)
        held = False
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            # What was moved away while we looked is not what SQLite will open.
            held = os.path.samestat(os.fstat(file), database.stat())
        except BlockingIOError:
            pass
        finally:
            if not held:
                os.close(file)
    except OSError as error:
        raise ConfigError(f"{database}: cannot be made or opened: {error.strerror}") from error
    return file if held else None


def _holder(database: Path) -> str:
    """The number of the process that serves, for people; "unknown" where the system does not tell."""
    try:
        inode = database.stat().st_ino
        locks = [line.split() for line in _LOCKS.read_text().splitlines()]
    except OSError:
        return "unknown"
    found = [lock[4] for lock in locks if lock[1:2] == ["FLOCK"] and lock[5].endswith(f":{inode}")]
    return found[0] if found else "unknown"
