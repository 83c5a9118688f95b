"""A forked process begins without the keys, connections and counts of its parent: no key is given in both.
Standard: POSIX fork, by os.register_at_fork.
"""

from __future__ import annotations

import os
from functools import cache
from typing import Protocol
from weakref import WeakSet


class Forkable(Protocol):
    """It has something that only one process may use."""

    def forked(self) -> None:
        """Forgets that, in a child process."""


_living: WeakSet[Forkable] = WeakSet()


def forget_in_children(each: Forkable) -> None:
    """Has each child process that is forked from now on forget what this has."""
    _register()
    _living.add(each)


@cache
def _register() -> None:
    os.register_at_fork(after_in_child=_forked)


def _forked() -> None:
    for each in list(_living):
        each.forked()
