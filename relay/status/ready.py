"""Readiness: whether mail is sealed or held safely; if not, other relays should get the mail.
It is checked at intervals, so that no request waits for a disk or a database.

Still ready: a KME or the next hop is unavailable, keys have run out, a policy file is broken. Mail is held then, and
nothing is lost; the previous policies are in force. Not ready, since all mail would be held: the store cannot be
written, or its disk is full. The same holds if the second process has ended, or a required audit record cannot be
written. Also not ready: the last check is too old, so the relay hangs.
"""

from __future__ import annotations

import asyncio
import os
import time
from pathlib import Path

import structlog

from relay.counting import metrics
from relay.errors import StoreUnavailable
from relay.files import permissions
from relay.files.sqlite import no_room
from relay.status import Watched

log = structlog.get_logger(__name__)

LOOK_S = 10.0
PATIENCE_S = 10.0
"""Maximum time the store may take to write a row, in seconds."""
STALE_S = 60.0
"""Maximum age of an observation, in seconds."""


_STORE = "store_unwritable"


class Readiness:
    """The result of the last check; call `look` once before using it."""

    def __init__(self, watched: Watched) -> None:
        self._watched = watched
        self._found: dict[str, str] = {}
        self._looked_at = time.monotonic()

    @property
    def found(self) -> dict[str, str]:
        """Why it is not ready, by alarm (relay/counting/alarms.py); empty if ready."""
        ago = time.monotonic() - self._looked_at
        return self._found if ago <= STALE_S else {**self._found, "not_watched": f"nobody has looked for {ago:.0f} s"}

    @property
    def causes(self) -> tuple[str, ...]:
        """Why it is not ready, as texts."""
        return tuple(self.found.values())

    async def keep_up(self) -> None:
        """Checks every LOOK_S seconds, until cancelled."""
        while True:
            await asyncio.sleep(LOOK_S)
            await self.look()

    async def look(self) -> None:
        """Checks now."""
        faults = await self._look()
        causes = list(faults.values())
        if faults != self._found:
            (log.error if causes else log.info)("relay_not_ready" if causes else "relay_is_ready", causes=causes)
        self._found, self._looked_at = faults, time.monotonic()
        self._watched.board.set(metrics.STORE_WRITABLE, to=not faults.get(_STORE))
        self._watched.board.set(metrics.READY, to=not causes)

    async def _look(self) -> dict[str, str]:
        """The current faults, by alarm."""
        watched = self._watched
        looked = {
            _STORE: await self._store() or await asyncio.to_thread(_no_files, watched.config.state_directory),
            "disk_full": await asyncio.to_thread(_disk, watched.config.state_directory),
        }
        if watched.config.audit.holds and (cause := await asyncio.to_thread(watched.audit.why_not_writable)):
            looked["audit_unwritable"] = f"the audit record cannot be written: {cause}"
        if watched.receiving.process_has_ended:
            looked["key_receiver_ended"] = (
                "the second process has ended, which asks for received keys: the relay is to be started anew"
            )
        return {name: cause for name, cause in looked.items() if cause}

    async def _store(self) -> str:
        """Why the store cannot be written, or ""."""
        try:
            async with asyncio.timeout(PATIENCE_S):
                await self._watched.store.received.ready()
                await self._watched.store.restore_check.look()
        except TimeoutError:
            return f"the store was not written within {PATIENCE_S:.0f} s"
        except StoreUnavailable as error:
            return f"the store cannot be written: {error}"
        return ""


def _no_files(directory: Path) -> str:
    """Why no file can be made beside the store, or ""; files that are open already do not show that."""
    if os.access(directory, os.W_OK | os.X_OK, effective_ids=True):
        return ""
    return f"{directory}: no file can be made there{permissions.another_owner(directory)}"


def _disk(directory: Path) -> str:
    try:
        return no_room(directory)
    except OSError as error:
        return f"{directory}: {error.strerror}"
