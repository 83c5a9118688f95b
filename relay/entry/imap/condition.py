"""Whether a mailbox is watched, and if not, since when and why; the source of its alarm and metric.
Standard: relay/counting/alarms.py (`mailbox_unwatched`); labels come from a fixed vocabulary, never from a server.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterable
from typing import Literal, NamedTuple, get_args

from relay.counting import metrics
from relay.counting.board import Board

Why = Literal["connection", "login", "folder", "settings", "error"]
"""No connection, or a broken one; login refused; a folder; our settings or files; an unexpected error."""


class Failure(NamedTuple):
    """A failure since a Unix time; `cause` is the latest one."""

    since: float
    why: Why
    cause: str


class Condition:
    """The current failures of one account, by folder; "" for connection and login."""

    def __init__(self, account: str, board: Board, folders: Iterable[str] = ()) -> None:
        """Until each of these `folders` was looked through, it is unknown whether the mailbox is watched."""
        self._account = account
        self._board = board
        self._unknown = {*folders}
        self._failing: dict[str, Failure] = {}

    def fails(self, mailbox: str, why: Why, cause: str) -> None:
        """Notes a failure."""
        before = self._failing.get(mailbox)
        self._failing[mailbox] = Failure(before.since if before is not None else time.time(), why, cause)
        self._show()

    def works(self, mailbox: str = "") -> None:
        """Notes a success."""
        self._failing.pop(mailbox, None)
        self._unknown.discard(mailbox)
        self._show()

    def is_left(self) -> None:
        """Clears all failures: another process watches the account."""
        self._failing.clear()
        self._unknown.clear()
        self._show()

    def _show(self) -> None:
        longest = min(self._failing.values(), default=None)
        for why in get_args(Why):
            since = longest.since if longest is not None and longest.why == why else math.nan
            self._board.set(metrics.MAILBOX_UNWATCHED, self._account, why, to=since)
        if longest is not None:
            self._board.unwatched[self._account] = longest.cause
        elif not self._unknown:
            self._board.unwatched[self._account] = ""
