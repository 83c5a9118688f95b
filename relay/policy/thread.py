"""The thread that follows edits of policies: it waits for a file descriptor, a timeout or a wake-up.
Standard: poll(2), and eventfd(2) for the wake-up; stopping it never takes longer than some seconds.
"""

from __future__ import annotations

import os
import select
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from contextvars import copy_context

JOIN_S = 5.0
"""Maximum wait for the thread to end, in seconds."""


class WatchThread:
    """A thread that waits for a file descriptor or a wake-up, until it is stopped."""

    def __init__(self, work: Callable[[WatchThread], None], ended: Callable[[], object]) -> None:
        """Starts `work`; calls `ended` when that returns."""
        self._ending = False
        self._wake_up = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        context = copy_context()  # the worker ID, for the log
        self._thread = threading.Thread(target=context.run, args=(self._run, work, ended), name="watch", daemon=True)
        self._thread.start()

    def wake(self) -> None:
        """Interrupts the current wait."""
        os.eventfd_write(self._wake_up, 1)

    def wait(self, fd: int | None, seconds: float, gather: float) -> bool:
        """Waits until `fd` is readable, and then `gather` seconds, or for `seconds`; False if the thread has to end."""
        poll = select.poll()
        for each in (self._wake_up, fd):
            if each is not None:
                poll.register(each, select.POLLIN)
        ready = poll.poll(seconds * 1000)
        if any(each == fd for each, _ in ready):
            time.sleep(gather)
        with suppress(BlockingIOError):
            os.eventfd_read(self._wake_up)
        return not self._ending

    def end(self) -> None:
        """Stops the work, and waits up to JOIN_S: it may be in the middle of 100,000 files."""
        self._ending = True
        self.wake()
        self._thread.join(JOIN_S)
        if not self._thread.is_alive():
            os.close(self._wake_up)

    def _run(self, work: Callable[[WatchThread], None], ended: Callable[[], object]) -> None:
        try:
            work(self)
        finally:
            with suppress(RuntimeError):  # the event loop may be closed by now
                ended()
