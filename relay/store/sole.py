"""One relay serves from the directory of an embedded database; a second one would deliver what the first has in hand.
Standard: flock(2): the kernel ends a lock with the process that has it, however that ends.

Commands beside a relay that serves (`imap once`, `open`, `keys`) do not ask: they share the directory on purpose.
"""

from __future__ import annotations

import asyncio
import fcntl
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path

import structlog

from relay.errors import ConfigError

log = structlog.get_logger(__name__)

LOCK = "serve.lock"
"""The file's name; its content is the number of the process that had the lock last, for people."""
WAIT_S = 5.0
"""So long one that starts waits for another that ends."""
LOOK_S = 0.05


@asynccontextmanager
async def sole_relay(directory: Path) -> AsyncIterator[None]:
    """From here to the end of the block no other process serves from this directory, which is made if missing.

    Waits a moment for one that does. A process that is forked meanwhile would keep the lock. Raises ConfigError.
    """
    file = _opened(directory)
    try:
        await _lock(file, directory)
        with suppress(OSError):  # no room: whoever comes second is told less
            os.ftruncate(file, 0)
            os.pwrite(file, str(os.getpid()).encode(), 0)
        yield
    finally:
        os.close(file)


def _opened(directory: Path) -> int:
    path = directory / LOCK
    try:
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        return os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise ConfigError(f"{path}: cannot be made or opened: {error.strerror}") from error


async def _lock(file: int, directory: Path) -> None:
    loop = asyncio.get_running_loop()
    until = loop.time() + WAIT_S
    waits = False
    while not _locked(file):
        other = os.pread(file, 20, 0).decode("ascii", "replace") or "unknown"
        if loop.time() >= until:
            raise ConfigError(
                f"{directory}: another relay (process {other}) serves from here, and two would send mail twice: stop "
                "that one, give this one a database in a directory of its own, or let both share PostgreSQL"
            )
        if not waits:
            log.warning("relay_waits", directory=str(directory), for_process=other, at_most_s=WAIT_S)
            waits = True
        await asyncio.sleep(LOOK_S)


def _locked(file: int) -> bool:
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
