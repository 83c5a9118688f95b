"""A worker's process: a new program, started with the worker's descriptors, and awaited.
Standard: execve(2); pidfd_open(2) reports the end of a process.
"""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
from pathlib import Path

from relay.process.worker import Worker
from relay.runtime.notify import without_manager

BLOCKED = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2)
"""Signals for the relay: blocked until the new program can handle them (`accept_signals`)."""


class WorkerProcess:
    """A started process, which is a child of this one."""

    def __init__(self, worker: Worker, relay_toml: Path) -> None:
        """Starts what is installed now. Raises OSError."""
        # Without -P, modules in the current directory would be run.
        command = [sys.executable, "-P", "-m", "relay", "serve", "--config", str(relay_toml)]
        before = signal.pthread_sigmask(signal.SIG_BLOCK, BLOCKED)
        try:
            self._process = subprocess.Popen(  # noqa: S603 - ourselves
                [*command, "--worker", worker.as_json()],
                pass_fds=worker.descriptors, env=without_manager(os.environ), start_new_session=True,
            )  # fmt: skip
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)
        self.pid = self._process.pid
        self._ended = asyncio.Event()
        try:
            self._pidfd = os.pidfd_open(self.pid)
        except OSError:
            self._process.kill()
            self._process.wait()
            raise
        asyncio.get_running_loop().add_reader(self._pidfd, self._end)

    def _end(self) -> None:
        asyncio.get_running_loop().remove_reader(self._pidfd)
        os.close(self._pidfd)
        self._ended.set()

    async def wait(self) -> int:
        """The exit status, negative for a signal, when the process has ended."""
        await self._ended.wait()
        return self._process.wait()

    def send_signal(self, number: int) -> None:
        """Sends a signal, unless the process has ended."""
        self._process.send_signal(number)


def accept_signals() -> None:
    """Unblocks the signals, in the new program."""
    signal.pthread_sigmask(signal.SIG_UNBLOCK, BLOCKED)
