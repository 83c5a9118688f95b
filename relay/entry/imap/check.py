"""The mailboxes' part of `qumail-relay check`: login, folders, and missing server capabilities.
Standard: RFC 3501; one login for each account; no message is read, and nothing is changed.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator

from relay.config import Config, IMAPSettings, TCPAddress
from relay.entry.imap.folder import LOST, OPENED, UNOPENED
from relay.entry.imap.login import credential
from relay.entry.imap.session import Selected, Session, connected
from relay.errors import ConfigError, MailboxUnavailable

PATIENCE_S = 10.0
"""Timeout of a check, in seconds."""


async def states(config: Config) -> AsyncIterator[tuple[str, str, tuple[str, ...]]]:
    """For each account of [imap.*]: each item checked, its state and its faults."""
    for name, account in config.imap.items():
        patient = account.model_copy(update={"timeout": min(account.timeout, PATIENCE_S)})
        title, where = f"mailbox {name}", str(TCPAddress(account.host, account.port))
        try:
            async with connected(patient, await credential(patient)) as session:
                problems = [problem async for problem in _problems(session, account)]
                yield title, f"{where}: {', '.join(_remarks(session, account))}", tuple(problems)
        except ConfigError as error:
            yield title, where, tuple(error.problems)
        except MailboxUnavailable as error:
            yield title, where, (str(error),)


async def _problems(session: Session, account: IMAPSettings) -> AsyncIterator[str]:
    for folder in account.folders:
        if session.receives_sealed(folder):
            yield f"sealed_folder is {folder!r}, which is one of folders; sealed messages must leave those"
        try:
            selected = await session.select(folder)
        except MailboxUnavailable as error:
            if session.protocol.failure is not None:
                raise
            yield f"folder {folder!r}: {error}"
        else:
            for problem in _cannot_keep(selected, account):
                yield f"folder {folder!r}: {problem}"
    if account.after == "delete" and not session.can("UIDPLUS"):
        yield 'the server has no UIDPLUS, so sealed messages would only be marked as deleted; write after = "move"'


def _cannot_keep(selected: Selected, account: IMAPSettings) -> Iterator[str]:
    if account.after == "flag" and not selected.keeps(OPENED):
        yield f'the server keeps no flag {OPENED}: write after = "move"'
    if missing := [flag for flag in (UNOPENED, LOST) if not selected.keeps(flag)]:
        yield f"the server keeps no flag {' or '.join(missing)}: the log alone says what stays sealed"


def _remarks(session: Session, account: IMAPSettings) -> Iterator[str]:
    yield f"{len(account.folders)} folders"
    if account.after == "move":
        yield f"sealed messages go to {session.place(account.sealed_folder)}"
        if not session.can("MOVE"):
            yield "no MOVE, so they are copied and deleted"
    if not account.idle or not session.can("IDLE"):
        yield f"no IDLE, so new mail is found every {account.poll:.0f} s"
