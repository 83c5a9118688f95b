"""The thread that follows edits of policies: it waits for a file descriptor, a timeout or a wake-up.
Standard: poll(2), and a pipe for the wake-up; stopping it never takes longer than some seconds.
"""

from __future__ import annotations

import os
import select
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from contextvars import copy_context

GATHER_S = 0.05
"""Interval at which changes are gathered, in seconds."""
JOIN_S = 5.0
"""Maximum wait for the thread to end, in seconds."""


class WatchThread:
    """A thread that waits for a file descriptor or a wake-up, until it is stopped."""

    def __init__(self, work: Callable[[WatchThread], None], ended: Callable[[], object]) -> None:
        """Starts `work`; calls `ended` when that returns."""
        self._ending = False
        self._read_end, self._write_end = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        context = copy_context()  # the worker ID, for the log
        self._thread = threading.Thread(target=context.run, args=(self._run, work, ended), name="watch", daemon=True)
        self._thread.start()

    def wake(self) -> None:
        """Interrupts the current wait."""
        with suppress(BlockingIOError):
            os.write(self._write_end, b"!")

    def wait(self, fd: int | None, seconds: float) -> bool:
        """Waits until `fd` is readable or the timeout is over; False if the thread has to end."""
        poll = select.poll()
        for each in (self._read_end, fd):
            if each is not None:
                poll.register(each, select.POLLIN)
        ready = poll.poll(seconds * 1000)
        if any(each == fd for each, _ in ready):
            time.sleep(GATHER_S)
        with suppress(BlockingIOError):
            os.read(self._read_end, 4096)
        return not self._ending

    def end(self) -> None:
        """Stops the work, and waits up to JOIN_S: it may be in the middle of 100,000 files."""
        self._ending = True
        self.wake()
        self._thread.join(JOIN_S)
        if not self._thread.is_alive():
            os.close(self._read_end)
            os.close(self._write_end)

    def _run(self, work: Callable[[WatchThread], None], ended: Callable[[], object]) -> None:
        try:
            work(self)
        finally:
            with suppress(RuntimeError):  # the event loop may be closed by now
                ended()
