"""Detects how long files have not changed: before that is long enough, an edit may be half done.
Each file is checked at least twice; a missing file may come back, so that takes longer.
"""

from __future__ import annotations

import time
from collections.abc import Callable

LOOK_S = 0.3
"""Poll interval of files, in seconds."""
QUIET_S = 0.4
"""Time without changes after which files are read, in seconds: before, they may be half-written."""
GONE_QUIET_S = 2.0
"""Time without changes after which a file counts as gone, in seconds: many programs replace one by deleting it first.
"""


class Quiet:
    """The time without changes of some files; not thread-safe."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        """`clock` gives seconds since any moment."""
        self._clock = clock
        self._state: object = None
        self.began_at = clock()
        """The time at which the files had this state first."""

    def seconds(self, state: object, at: float) -> float:
        """Seconds for which the files have had this state; reading it began `at` this time, and has just ended."""
        if state != self._state:
            self._state = state
            self.began_at = self._clock()
        return max(0.0, at - self.began_at)

    def restart(self) -> None:
        """Restarts the period, since something else than the files shows that they are being edited."""
        self.began_at = self._clock()
