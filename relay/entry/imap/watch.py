"""Watches mailboxes: for each folder a connection that opens mail, idles, and reconnects after any failure.
Standard: RFC 2177 (IDLE); login.py has the retry intervals; an account is watched by one process at a time.
"""

from __future__ import annotations

import asyncio
import fcntl
import os
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import structlog

from relay.config import Config, IMAPSettings
from relay.counting.board import Board
from relay.entry.budget import Budget
from relay.entry.imap.condition import Condition, Why
from relay.entry.imap.folder import Folder
from relay.entry.imap.login import MailboxAccess, credential, pause_after
from relay.entry.imap.marks import OriginalMarks
from relay.entry.imap.opening import MailboxOpener
from relay.entry.imap.session import LoginRefused, MailboxRefused, connected
from relay.errors import ConfigError, MailboxUnavailable
from relay.journey.opening.original import Originals
from relay.outcome.tally import Tally
from relay.store.secret import SiteSecret

log = structlog.get_logger(__name__)

LOCK_PAUSE_S = 2.0
"""Poll interval of the lock while another process has an account, in seconds."""
PROGRESS_S = 10.0
"""Interval at which a long run logs its progress, in seconds."""

Report = Callable[[str, str, int, int], None]
"""Progress callback: account, folder, the number of messages opened so far, and of those that wait."""


@dataclass(frozen=True, slots=True)
class Visited:
    """The result for a folder: messages opened, sealed ones left, those with a lost key; or why it failed."""

    account: str
    folder: str
    opened: int
    unopened: int
    lost: int = 0
    failure: str = ""


@dataclass(frozen=True, slots=True)
class Mailboxes:
    """All accounts of [imap.*]; `directory` has a lock file for each account.

    A key still unknown to all KMEs after `hold_for` seconds is lost.
    """

    accounts: Mapping[str, IMAPSettings]
    originals: Originals
    secret: SiteSecret
    budget: Budget
    directory: Path
    hold_for: float
    tally: Tally
    board: Board

    async def watch(self) -> None:
        """Opens mail that arrives in all folders of all accounts, until cancelled."""
        async with asyncio.TaskGroup() as group:
            for name in self.accounts:
                group.create_task(self._watch(name))

    async def once(self, name: str, report: Report) -> list[Visited]:
        """Opens the mail in the folders of an account now. Raises ConfigError if another process watches it."""
        with structlog.contextvars.bound_contextvars(account=name), self._locked(name) as ours:
            if not ours:
                raise ConfigError(f"imap.{name}: another process is watching this account; it opens what arrives")
            visits: list[Visited] = []
            refused = ""
            for folder in self._folders(name, report):
                failure = refused
                try:
                    if not refused:
                        await _visit(folder)
                except LoginRefused as error:  # not once more for each folder: the server may count failures
                    failure = refused = str(error)
                except (MailboxUnavailable, ConfigError) as error:
                    failure = str(error)
                visits.append(Visited(name, folder.name, folder.opened, folder.unopened, len(folder.lost), failure))
            return visits

    async def _watch(self, name: str) -> None:
        """Watches an account as soon as no other process does."""
        structlog.contextvars.bind_contextvars(account=name)
        condition = Condition(name, self.board, self.accounts[name].folders)
        said = ""
        while True:
            cause = "another process is watching this account"
            try:
                with self._locked(name) as ours:
                    if ours:
                        await self._watch_folders(name, condition)
                    condition.is_left()
            except ConfigError as error:
                cause = str(error)
                condition.fails("", "settings", cause)
            if said != cause:
                log.warning("imap_stands_by", cause=cause)
            said = cause
            await asyncio.sleep(LOCK_PAUSE_S)

    async def _watch_folders(self, name: str, condition: Condition) -> None:
        access = MailboxAccess(self.accounts[name], condition)
        async with asyncio.TaskGroup() as group:
            for folder in self._folders(name, _in_the_log()):
                group.create_task(_watch_folder(folder, access, condition))

    def _folders(self, name: str, report: Report) -> list[Folder]:
        account = self.accounts[name]
        opener = MailboxOpener(self.originals, OriginalMarks(self.secret, name), account.mailboxes, self.tally)
        return [
            Folder(account, each, opener, self.budget, self.hold_for, partial(report, name, each))
            for each in account.folders
        ]

    @contextmanager
    def _locked(self, name: str) -> Iterator[bool]:
        """Whether the account's lock was taken; it ends with the process. Raises ConfigError."""
        path = self.directory / f"imap-{name}.lock"
        try:
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError as error:
            raise ConfigError(f"{path}: cannot be written: {error.strerror}") from error
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            yield False
        except OSError as error:
            raise ConfigError(f"{path}: cannot be locked: {error.strerror}") from error
        else:
            yield True
        finally:
            os.close(descriptor)


def mailboxes(config: Config, originals: Originals, budget: Budget, tally: Tally, board: Board) -> Mailboxes:
    """The watch of the mailboxes of [imap.*]."""
    secret = SiteSecret.load(config.store.secret)
    directory, hold_for = config.own_directory, config.quarantine.hold_for
    return Mailboxes(config.imap, originals, secret, budget, directory, hold_for, tally, board)


async def _visit(folder: Folder) -> None:
    """Opens the mail in a folder now. Raises MailboxUnavailable and ConfigError."""
    async with connected(folder.account, await credential(folder.account)) as session:
        await folder.begin(session)
        await folder.work()


async def _watch_folder(folder: Folder, access: MailboxAccess, condition: Condition) -> None:
    failures = 0
    why: Why
    while True:
        try:
            async with access.session() as session:
                await folder.begin(session)
                log.info("imap_watches", folder=folder.name, sealed=folder.unopened, lost=len(folder.lost))
                while True:
                    await folder.work()
                    condition.works(folder.name)
                    if not await session.idle(folder.pause()):
                        await folder.begin(session)  # it may have been deleted and created anew
                    failures = 0
        except MailboxRefused as error:
            why, cause = "folder", str(error)
        except MailboxUnavailable as error:
            why, cause = "connection", str(error)
        except ConfigError as error:
            why, cause = "settings", str(error)
        except Exception as error:  # the next connection may succeed
            why, cause = "error", type(error).__name__
            log.error("imap_failed", folder=folder.name, exc_info=error)
        failures += 1
        condition.fails(folder.name, why, cause)
        pause = pause_after(failures)
        log.warning("imap_unavailable", folder=folder.name, cause=cause, again_in_s=round(pause, 1))
        await asyncio.sleep(pause)


def _in_the_log() -> Report:
    """Logs the progress of a long run."""
    said = time.monotonic()

    def report(account: str, folder: str, opened: int, left: int) -> None:
        nonlocal said
        if left and time.monotonic() - said >= PROGRESS_S:
            said = time.monotonic()
            log.info("imap_progress", folder=folder, opened=opened, left=left)

    return report
