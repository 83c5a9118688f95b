"""Forks the workers of a relay from a process that has loaded their modules and serves nothing: they share memory.
Standard: descriptors are passed by SCM_RIGHTS (unix(7)); pidfd_open(2) reports the end of a process.

It has no event loop and a single thread, so that a fork copies everything. The supervisor starts it, and requests each
worker from it. It starts another one if that has ended, or another release may be installed.
"""

from __future__ import annotations

import asyncio
import errno
import json
import os
import signal
import socket
import sys
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, cast

from relay.process.worker import Worker
from relay.runtime import heap
from relay.runtime.aio import readable
from relay.runtime.notify import without_manager
from relay.runtime.prctl import name_process

LOAD_S, ANSWER_S = 60.0, 10.0
"""Timeouts for the fork server's replies, in seconds: first while it loads everything, then for each other."""
MOST, MOST_FILES = 65_536, 253
"""Maximum size of a request, in bytes, and Linux's maximum number of descriptors in a message."""
_HELD = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2)
"""Signals for the relay: blocked in the fork server, and delivered to a worker after the fork."""


class Forked:
    """The process of a worker, which is the child of the fork server."""

    def __init__(self, server: ForkServer, pid: int, pidfd: int) -> None:
        """`pidfd` refers to the process, and is closed once that has ended."""
        self.pid = pid
        self._server = server
        self._pidfd = pidfd
        self._ended = asyncio.Event()
        asyncio.get_running_loop().add_reader(pidfd, self._end)

    def _end(self) -> None:
        asyncio.get_running_loop().remove_reader(self._pidfd)
        os.close(self._pidfd)
        self._ended.set()

    async def wait(self) -> None:
        """Returns when the process has ended."""
        await self._ended.wait()

    async def status(self) -> int | None:
        """The exit status, once; negative for a signal, None if the fork server has ended."""
        return await self._server.status(self.pid)

    def send_signal(self, number: int) -> None:
        """Sends a signal, unless the process has ended."""
        if not self._ended.is_set():
            with suppress(ProcessLookupError):
                signal.pidfd_send_signal(self._pidfd, number)


class ForkServer:
    """The supervisor's handle of the fork server."""

    def __init__(self, pid: int, channel: socket.socket, relay_toml: Path) -> None:
        """`pid` is a child of this process, and `channel` the connection to it."""
        channel.setblocking(False)
        self._pid = pid
        self._way: socket.socket | None = channel
        self._relay_toml = relay_toml
        self._turn = asyncio.Lock()
        self._has_loaded = False

    async def start(self, worker: Worker) -> Forked:
        """Forks a process that serves as this worker. Raises OSError if that fails."""
        answer, files = await self._ask(worker.as_json(), worker.descriptors)
        if not files:
            raise OSError(f"no process for a worker, or no descriptor for it: {answer}")
        return Forked(self, answer, files[0])

    async def status(self, pid: int) -> int | None:
        """See Forked."""
        if self._way is None:
            return None
        try:
            status, _ = await self._ask(str(pid))
        except OSError:
            return None
        return cast(int | None, status)

    async def renew(self) -> None:
        """Replaces the fork server by one that runs the currently installed release."""
        async with self._turn:
            self.close()

    def close(self) -> None:
        """Kills it; no request may be pending."""
        if self._way is not None:
            self._way.close()
            self._way, self._has_loaded = None, False
            os.kill(self._pid, signal.SIGKILL)  # even if it hangs; it has no state
            os.waitpid(self._pid, 0)

    async def _ask(self, question: str, descriptors: Sequence[int] = ()) -> tuple[Any, list[int]]:
        """Its reply with descriptors. Raises OSError; then it is closed."""
        async with self._turn:
            self._way = self._way or self._begun()
            try:
                async with asyncio.timeout(ANSWER_S if self._has_loaded else LOAD_S):
                    answer = await _answer(self._way, question, descriptors)
                self._has_loaded = True
                return answer
            except BaseException:
                self.close()
                raise

    def _begun(self) -> socket.socket:
        """Starts another one and returns the connection to it. Raises OSError."""
        ours, theirs = _channel()
        with theirs:
            theirs.set_inheritable(True)
            # Without -P, modules in the current directory would be run.
            command = [sys.executable, "-P", "-m", "relay", "serve", "--config", str(self._relay_toml)]
            command += ["--fork-server", str(theirs.fileno())]
            self._pid = os.posix_spawn(sys.executable, command, os.environ)
        ours.setblocking(False)
        return ours


async def _answer(channel: socket.socket, question: str, descriptors: Sequence[int]) -> tuple[Any, list[int]]:
    """See ForkServer._ask."""
    socket.send_fds(channel, [question.encode()], descriptors)
    await readable(channel)
    answer, files, _, _ = socket.recv_fds(channel, MOST, 1, socket.MSG_CMSG_CLOEXEC)
    if not answer:
        raise BrokenPipeError(errno.EPIPE, "the process that forks workers has ended")
    return json.loads(answer), files


def begin(relay_toml: Path) -> ForkServer | socket.socket:
    """Forks the fork server; in it, returns the connection for `forked_worker`.

    Call it before there are an event loop and threads.
    """
    ours, theirs = _channel()
    heap.set_aside()  # a collection would write on the pages that are shared
    if pid := os.fork():
        theirs.close()
        return ForkServer(pid, ours, relay_toml)
    ours.close()
    return theirs


def forked_worker(channel: socket.socket, load: Callable[[Worker], None]) -> Worker:
    """Makes this process the fork server; returns in each forked process, with its worker.

    `load` loads the modules of the first worker, which are those of all. Exits when the supervisor has ended.
    """
    signal.pthread_sigmask(signal.SIG_BLOCK, _HELD)
    os.setsid()
    os.closerange(3, channel.fileno())
    os.closerange(channel.fileno() + 1, os.sysconf("SC_OPEN_MAX"))
    for name in os.environ.keys() - without_manager(os.environ).keys():
        del os.environ[name]
    name_process("relay forks")
    loaded = False
    while True:
        question, files, _, _ = socket.recv_fds(channel, MOST, MOST_FILES, socket.MSG_CMSG_CLOEXEC)
        if not question:
            os._exit(0)  # at once: until then, workers killed with their supervisor are zombies
        asked = json.loads(question)
        if isinstance(asked, int):
            channel.send(json.dumps(_status(asked)).encode())
            continue
        worker = Worker.from_json(question.decode()).renumbered(files)
        if not loaded:
            load(worker)
            heap.set_aside()  # a collection would write to the shared pages
            loaded = True
        try:
            pid = os.fork()
        except OSError as error:
            channel.send(json.dumps(str(error)).encode())
        else:
            if pid == 0:
                _become(worker, channel)
                return worker
            pidfd = os.pidfd_open(pid)
            socket.send_fds(channel, [str(pid).encode()], [pidfd])
            os.close(pidfd)
        for each in files:
            os.close(each)


def _become(worker: Worker, channel: socket.socket) -> None:
    channel.close()
    os.setsid()
    name_process(f"relay worker {worker.number}")
    signal.pthread_sigmask(signal.SIG_UNBLOCK, _HELD)


def _status(pid: int) -> int | None:
    try:
        ended, status = os.waitpid(pid, os.WNOHANG)
    except ChildProcessError:  # of another fork server
        return None
    return os.waitstatus_to_exitcode(status) if ended else None


def _channel() -> tuple[socket.socket, socket.socket]:
    return socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
