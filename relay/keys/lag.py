"""How long a key_ID that its KME does not know is waited for: lag ends soon; a key that never comes must stop nobody.
Standard: ETSI GS QKD 014 V1.1.1 says nothing of the lag between two KMEs; real ones need up to some seconds.

A mail that waits keeps its client waiting too, and anybody can send mail that names keys which do not exist. So the
patience with a key counts from when it was first asked for, over all tries, and only so many mails wait at once.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager

LAG_PATIENCE_S = 30.0
"""How long a key that the other KME has not yet synchronised is asked for before the mail is held."""
LAG_WAITING = 10
"""So many mails wait at once: half of what Postfix hands over at the same time."""
REMEMBERED = 10_000
"""So many unknown key_IDs are known again; of an older one it is as if it were asked for the first time."""


class Lag:
    """The patience of one KME group with keys that are not there yet."""

    def __init__(self, patience: float, at_once: int, clock: Callable[[], float]) -> None:
        """`patience` is in seconds; `at_once` is how many may wait."""
        self._patience = patience
        self._at_once = at_once
        self._clock = clock
        self._first_asked: OrderedDict[str, float] = OrderedDict()
        self.waiting = 0
        self.over = False
        """Set, nobody waits any more."""

    def deadline(self, key_IDs: Iterable[str]) -> float:
        """Until when they are asked for: the patience counts from when the last of them was first asked for."""
        now = self._clock()
        first = max((self._first_asked.setdefault(key_ID, now) for key_ID in key_IDs), default=now)
        while len(self._first_asked) > REMEMBERED:
            self._first_asked.popitem(last=False)
        return first + self._patience

    def came(self, key_IDs: Iterable[str]) -> None:
        """They are there: nothing of them needs to be known."""
        for key_ID in key_IDs:
            self._first_asked.pop(key_ID, None)

    @contextmanager
    def place(self) -> Iterator[bool]:
        """A place among those who wait; False where all are taken, and then it must not be waited."""
        free = self.waiting < self._at_once and not self.over
        self.waiting += free
        try:
            yield free
        finally:
            self.waiting -= free
