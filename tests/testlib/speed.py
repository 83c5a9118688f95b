"""How slow this machine is at this moment, so that a limit of processor time means the same on any machine.
Standard: the time of a fixed piece of work, right where a limit was exceeded.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable

_TYPICAL_S = 0.01
"""What `_work` takes on a machine like that for which the limits in seconds were set."""
_WORDS = re.compile(rb"(\w+)[ \r\n]")


def slowness() -> float:
    """How many times slower than the reference machine this one is now; at least 1."""
    return max(1.0, *(_work_seconds() / _TYPICAL_S for _ in range(3)))


def seconds(work: Callable[[], object]) -> float:
    """Processor time of this process, the best of three, as it would be on that machine."""
    times = []
    for _ in range(3):
        began = time.process_time()
        work()
        times.append(time.process_time() - began)
    return min(times) / slowness()


def _work_seconds() -> float:
    began = time.thread_time()
    _work()
    return time.thread_time() - began


def _work() -> int:
    """What readers of mail do: numbers, pieces of octets, a pattern, a dictionary."""
    text, found, number = b"The figures are 42 and 43, as they were.\r\n" * 400, {}, 0
    for match in _WORDS.finditer(text):
        found[match[1], number & 63] = text[match.start() : match.end()]
        number += len(match[1])
    for each in range(200_000):
        number += each
    return number + len(found)
