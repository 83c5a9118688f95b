"""Whether a mailbox is watched, and if not, since when and why: what the alarm about it and the metric go by.
Standard: relay/counting/alarms.py (`mailbox_unwatched`); a label is one of a few words, what a server says is not.
"""

from __future__ import annotations

import math
import time
from typing import Literal, NamedTuple, get_args

from relay.counting import metrics
from relay.counting.board import Board

Why = Literal["connection", "login", "folder", "settings", "error"]
"""No connection, or one that breaks; the login is refused; a folder; our settings or files; what nobody foresaw."""


class Failure(NamedTuple):
    """One thing that fails, since a time in seconds since 1970; `cause` is what was said last."""

    since: float
    why: Why
    cause: str


class Condition:
    """What fails at one account now: a folder, or "" for all that comes before the folders."""

    def __init__(self, account: str, board: Board) -> None:
        self._account = account
        self._board = board
        self._failing: dict[str, Failure] = {}

    def fails(self, mailbox: str, why: Why, cause: str) -> None:
        """It failed once more, or for the first time."""
        before = self._failing.get(mailbox)
        self._failing[mailbox] = Failure(before.since if before is not None else time.time(), why, cause)
        self._show()

    def works(self, mailbox: str = "") -> None:
        """It was done."""
        self._failing.pop(mailbox, None)
        self._show()

    def is_left(self) -> None:
        """Another process watches the account."""
        self._failing.clear()
        self._show()

    def _show(self) -> None:
        longest = min(self._failing.values(), default=None)
        for why in get_args(Why):
            since = longest.since if longest is not None and longest.why == why else math.nan
            self._board.set(metrics.MAILBOX_UNWATCHED, self._account, why, to=since)
        if longest is not None:
            self._board.unwatched[self._account] = longest.cause
        else:
            self._board.unwatched.pop(self._account, None)
