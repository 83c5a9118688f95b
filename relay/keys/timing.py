"""Time, sleep and chance in one value, so that a test can put simulated ones in their place.
Standard: PEP 418 (the monotonic clock, which never goes back).
"""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Timing:
    """`clock` gives seconds that never go back, `sleep` waits seconds, `chance` gives a number from 0 to 1.

    Chance is for jitter only, never for secrets.
    """

    clock: Callable[[], float] = time.monotonic
    sleep: Callable[[float], Awaitable[None]] = asyncio.sleep
    chance: Callable[[], float] = random.random


REAL_TIME = Timing()
