"""Opens the IMAP listener: the watch over all mailboxes.
Its interface to process/app.py and `check` is here.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager

from relay.config import Config, TCPAddress
from relay.entry import Inside, Listener, Reloadable
from relay.entry.imap.check import states as states  # for `check`
from relay.entry.imap.watch import Mailboxes, mailboxes
from relay.entry.listening import Where
from relay.runtime.aio import in_background


def listens_on(config: Config) -> dict[str, Where]:
    """No addresses."""
    return {}


def read_files(config: Config) -> None:
    """Reads nothing: an account whose files are unusable keeps no relay from starting (alarm mailbox_unwatched)."""


@asynccontextmanager
async def listener(inside: Inside) -> AsyncIterator[Listener]:
    """The listener; the watch ends with the context."""
    async with AsyncExitStack() as stack:
        watched = mailboxes(inside.config, inside.originals, inside.budget, inside.tally, inside.board)
        yield IMAPListener(watched, stack)


class IMAPListener:
    """The watch over all mailboxes."""

    def __init__(self, watched: Mailboxes, stack: AsyncExitStack) -> None:
        """`stack` ends the watch in any case."""
        self._mailboxes = watched
        self._stack = stack

    async def start(self) -> dict[str, TCPAddress]:
        """No clients connect here."""
        await self._stack.enter_async_context(in_background("mailboxes", self._mailboxes.watch))
        return {}

    async def retire(self) -> None:
        """No clients connect here."""

    async def stop(self) -> None:
        """Gives up messages being opened; each step may be repeated."""
        await self._stack.aclose()

    @property
    def reloadable(self) -> Sequence[Reloadable]:
        """Nothing: secrets are read at each login."""
        return ()
