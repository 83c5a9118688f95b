"""The IMAP door: opens sealed messages in mailboxes that are hosted elsewhere; folder.py is the recipe.
Standard: RFC 3501 and its extensions as session.py lists them; see deploy/imap/README.md for the operator's side.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager

from relay.aio import in_background
from relay.budget import Budget
from relay.config import Address, Config
from relay.entry import Inside
from relay.entry.imap.check import states
from relay.entry.imap.watch import Mailboxes, Report, Visited
from relay.entry.listening import Where
from relay.opening.original import Originals
from relay.store import SiteSecret

__all__ = ["Mailboxes", "Report", "Visited", "door", "listens_on", "mailboxes", "states"]


def mailboxes(config: Config, originals: Originals, budget: Budget) -> Mailboxes:
    """What opens sealed messages in the mailboxes of [imap.*]."""
    secret = SiteSecret.load(config.store.secret)
    directory, hold_for = config.store.secret.parent, config.quarantine.hold_for
    return Mailboxes(config.imap, originals, secret, budget, directory, hold_for)


def listens_on(config: Config) -> dict[str, Where]:
    """Nowhere."""
    return {}


@asynccontextmanager
async def door(inside: Inside) -> AsyncIterator[IMAPDoor]:
    """Needs nothing."""
    async with AsyncExitStack() as stack:
        yield IMAPDoor(mailboxes(inside.config, inside.originals, inside.budget), stack)


class IMAPDoor:
    """The watch over all mailboxes."""

    def __init__(self, watched: Mailboxes, stack: AsyncExitStack) -> None:
        """The `stack` ends the watch in any case."""
        self._mailboxes = watched
        self._stack = stack

    async def start(self) -> dict[str, Address]:
        """Nobody connects here."""
        await self._stack.enter_async_context(in_background("mailboxes", self._mailboxes.watch()))
        return {}

    async def stop(self) -> None:
        """What is being opened is given up; any step may be repeated."""
        await self._stack.aclose()

    def reload(self) -> None:
        """There is nothing to read again: secrets are read for each login."""
