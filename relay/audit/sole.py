"""Locks an audit record for one relay: a second one with the same directory does not start.
Standard: flock(2) on a file in the directory while the relay serves; released if it is killed.

Two relays would delete each other's files, and record each other's mail as their own.
"""

from __future__ import annotations

import asyncio
import fcntl
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import structlog

from relay.audit.chain import leads_to, make_directory
from relay.errors import ConfigError

log = structlog.get_logger(__name__)

WAIT_S, LOOK_S = 5.0, 0.05
"""Maximum wait for a relay that is stopping, and poll interval, in seconds."""
LOCK = ".relay"
"""Name of the file that a serving relay keeps locked."""


@asynccontextmanager
async def sole_recorder(directory: Path) -> AsyncIterator[None]:
    """Holds the lock until the end of the block. Raises ConfigError if another relay has it.

    If nothing can be written, [audit] decides whether mail goes on.
    """
    path = directory / LOCK
    try:
        file = await _waited_for(path)
    except OSError as error:
        file = -1
        log.error("audit_not_locked", directory=str(directory), cause=error.strerror)
    try:
        yield
    finally:
        if file >= 0:
            if leads_to(path, file):
                path.unlink()
            os.close(file)


async def _waited_for(path: Path) -> int:
    """The descriptor of the locked file. Raises ConfigError and OSError."""
    until = asyncio.get_running_loop().time() + WAIT_S
    while (file := await asyncio.to_thread(_locked, path)) is None:
        if asyncio.get_running_loop().time() > until:
            raise ConfigError(
                f"{path.parent}: another relay has its audit record there: set a directory for each in [audit]"
            )
        await asyncio.sleep(LOOK_S)
    return file


def _locked(path: Path) -> int | None:
    """The descriptor of the locked file; None if another process has the lock. Raises OSError."""
    make_directory(path.parent)
    file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    held = False
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        held = leads_to(path, file)  # a process that was stopping may have removed it
    except BlockingIOError:
        pass
    finally:
        if not held:
            os.close(file)
    return file if held else None
