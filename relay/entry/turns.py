"""Gives others their turn on the event loop: what has come at once is not all worked through at once.
Standard: no client holds the loop for more than a few milliseconds, however much it sends without waiting.
"""

from __future__ import annotations

import asyncio
import time

TURN_S = 0.005
"""So long one connection may go on before all others have had their turn."""


class Turns:
    """For one connection: `give` is awaited between two commands."""

    def __init__(self) -> None:
        """The first turn begins now."""
        self._began = time.monotonic()

    async def give(self) -> None:
        """Lets everybody else go on, if this turn has been long."""
        if time.monotonic() - self._began > TURN_S:
            await asyncio.sleep(0)
            self._began = time.monotonic()
