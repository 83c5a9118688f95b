"""Readiness: whether mail is sealed or held safely; if not, other relays should get the mail.
It is checked at intervals, so that no request waits for a disk or a database.

Still ready: a KME or the next hop is unavailable, keys have run out, a policy file is broken. Mail is held then, and
nothing is lost; the previous policies are in force. Not ready, since all mail would be held: the store cannot be
written, or its disk is full. The same holds if the second process has ended or does not answer, or a required audit
record cannot be written. Also not ready: the last check is too old, so the relay hangs.
"""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Mapping
from pathlib import Path

import structlog

from relay.config import Config
from relay.counting import metrics
from relay.errors import ConfigError, StoreUnavailable
from relay.files import permissions
from relay.files.sqlite import no_room
from relay.key_receiver import receiver
from relay.status import Watched
from relay.store.secret import SiteSecret
from relay.store.store import Store

log = structlog.get_logger(__name__)

LOOK_S = 10.0
PATIENCE_S = 10.0
"""Maximum time the store may take to write a row, in seconds."""
STALE_S = 60.0
"""Maximum age of an observation, in seconds."""


_STORE = "store_unwritable"
_ANOTHER = "store_is_another"
_GROUPS = "groups_old"
_MAIL_FLOWS = frozenset({_ANOTHER, _GROUPS})
"""Alarms during which mail flows."""


class Readiness:
    """The result of the last check; call `look` once before using it."""

    def __init__(self, watched: Watched) -> None:
        self._watched = watched
        self._found: dict[str, str] = {}
        self._looked_at = time.monotonic()

    @property
    def found(self) -> dict[str, str]:
        """What is wrong, by alarm (relay/counting/alarms.py)."""
        ago = time.monotonic() - self._looked_at
        return self._found if ago <= STALE_S else {**self._found, "not_watched": f"nobody has looked for {ago:.0f} s"}

    @property
    def holding(self) -> dict[str, str]:
        """Why the relay is not ready, by alarm; empty if ready."""
        return _holding(self.found)

    @property
    def causes(self) -> tuple[str, ...]:
        """The same, as texts."""
        return tuple(self.holding.values())

    async def keep_up(self) -> None:
        """Checks every LOOK_S seconds, until cancelled."""
        while True:
            await asyncio.sleep(LOOK_S)
            await self.look()

    async def look(self) -> None:
        """Checks now."""
        faults = await self._look()
        causes = list(_holding(faults).values())
        if faults != self._found:
            (log.error if causes else log.info)("relay_not_ready" if causes else "relay_is_ready", causes=causes)
        self._found, self._looked_at = faults, time.monotonic()
        self._watched.board.set(metrics.STORE_WRITABLE, to=not faults.get(_STORE))
        self._watched.board.set(metrics.READY, to=not causes)

    async def _look(self) -> dict[str, str]:
        """The current faults, by alarm."""
        watched = self._watched
        looked = {
            _STORE: await self._store() or await asyncio.to_thread(_no_file_made, watched.config),
            _ANOTHER: await asyncio.to_thread(_another_secret, watched.config, watched.store),
            _GROUPS: await asyncio.to_thread(_groups, watched.config),
            "disk_full": await asyncio.to_thread(_disk, watched.config.state_directory),
        }
        if watched.config.audit.holds and (cause := await asyncio.to_thread(watched.audit.why_not_writable)):
            looked["audit_unwritable"] = f"the audit record cannot be written: {cause}"
        if watched.receiving.process_has_ended:
            looked["key_receiver_ended"] = (
                "the second process has ended, which asks for received keys: the relay is to be started anew"
            )
        silent = watched.receiving.process_silent_s
        watched.board.set(metrics.KEY_RECEIVER_SILENT, to=silent)
        if silent >= receiver.SILENT_S:
            looked["key_receiver_silent"] = f"the process `relay keys` has not answered for {silent:.0f} s"
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


def _holding(faults: Mapping[str, str]) -> dict[str, str]:
    return {name: cause for name, cause in faults.items() if name not in _MAIL_FLOWS}


def _no_file_made(config: Config) -> str:
    """Why no file can be made beside the store, or ""; already open files do not show that."""
    directory = config.state_directory
    if not os.access(directory, os.W_OK | os.X_OK, effective_ids=True):
        return f"{directory}: no file can be made there{permissions.another_owner(directory)}"
    return ""


def _another_secret(config: Config, store: Store) -> str:
    """Why a new relay would lack the secret under which this one seals, or ""."""
    try:
        ids = SiteSecret.load(config.store.secret).ids
    except ConfigError as error:
        return f"a relay that starts has no site secret: {error}"
    if store.sealed_under in ids:
        return ""
    return f"{config.store.secret}: lacks site secret {store.sealed_under}, under which this relay seals: put it back"


def _groups(config: Config) -> str:
    """Why the groups of groups.toml may be out of date, or ""."""
    if config.ldap is None:
        return ""
    try:
        fetched = config.groups_fetched_file.stat().st_mtime
    except OSError as error:
        return f"{config.groups_fetched_file}: {error.strerror}: no fetch of the groups has succeeded"
    if (ago := time.time() - fetched) > config.ldap.old_after:
        return f"the last fetch of the groups that succeeded was {ago / 3600:.0f} hours ago"
    return ""


def _disk(directory: Path) -> str:
    try:
        return no_room(directory)
    except OSError as error:
        return f"{directory}: {error.strerror}"
