"""`qumail-relay ...` as a process of its own, forked from one that has loaded everything: loading takes over a second.
Standard: what a test can tell from `python -m relay` is how long it takes; some tests start that one nevertheless.
"""

from __future__ import annotations

import asyncio
import atexit
import ctypes
import fcntl
import importlib
import json
import os
import pkgutil
import selectors
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import IO, Any, NamedTuple
from unittest.mock import patch

import click

from relay.process.worker import Worker
from relay.runtime.notify import without_manager
from tests.testlib.forking import share_all

ROOT = Path(__file__).parents[2]
MOST, MOST_FILES = 65_536, 250
_PR_SET_PDEATHSIG = 1
SERVING = ("relay.process", "relay.entry", "relay.keys", "relay.key_receiver", "relay.forward", "relay.status")
"""What a relay loads only when it serves, as its configuration asks for it."""


class RelayCommand:
    """One that runs: as asyncio.subprocess.Process, as far as tests need that."""

    def __init__(self, pid: int, status: int) -> None:
        """`status` is a pipe that brings the exit status."""
        self.pid = pid
        self._status = status
        self._returncode: int | None = None
        self._waiting: list[asyncio.Future[None]] = []

    def __del__(self) -> None:
        if self._status >= 0:
            os.close(self._status)

    @property
    def returncode(self) -> int | None:
        """The exit status, negative for a signal; None while it runs."""
        if self._returncode is None:
            with suppress(BlockingIOError):
                self._returncode = int(os.read(self._status, MOST))
        return self._returncode

    async def wait(self) -> int:
        """The exit status, when it has ended."""
        loop = asyncio.get_running_loop()
        while (ended := self.returncode) is None:
            if not self._waiting:
                loop.add_reader(self._status, self._wake)
            ready = loop.create_future()
            self._waiting.append(ready)
            try:
                await ready
            finally:
                self._waiting.remove(ready)
                if not self._waiting:
                    loop.remove_reader(self._status)
        return ended

    def _wake(self) -> None:
        for each in self._waiting:
            if not each.done():
                each.set_result(None)

    def send_signal(self, number: int) -> None:
        """Unless it has ended."""
        if self.returncode is None:
            os.kill(self.pid, number)

    def terminate(self) -> None:
        """SIGTERM."""
        self.send_signal(signal.SIGTERM)

    def kill(self) -> None:
        """SIGKILL."""
        self.send_signal(signal.SIGKILL)


def workers_of(pid: int) -> list[int]:
    """The processes of the workers of this relay that have not ended."""
    connection = _way()
    connection.send(json.dumps(pid).encode())
    found: list[int] = json.loads(connection.recv(MOST))
    return found


async def start(
    *arguments: str | Path,
    stdin: IO[bytes] | None = None,
    stdout: IO[bytes] | None = None,
    stderr: IO[bytes] | None = None,
    environment: Mapping[str, str] | None = None,
    group: int | None = None,
    before: str = "",
) -> RelayCommand:
    """Starts it. Files that are not given lead nowhere.

    `group` is the group it runs under, where root may choose; `before` is a program that it runs first.
    """
    asked = {
        "arguments": [str(each) for each in arguments],
        "environment": {**os.environ, **(environment or {})},
        "directory": str(Path.cwd()),
        "group": group,
        "before": before,
    }
    nowhere = os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC)
    try:
        return _forked(asked, [file.fileno() if file is not None else nowhere for file in (stdin, stdout, stderr)])
    finally:
        os.close(nowhere)


def _forked(asked: dict[str, Any], files: Sequence[int]) -> RelayCommand:
    """The files are the standard ones."""
    read, write = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
    try:
        connection = _way()
        # At once and without an await: answers come in the order of the questions.
        socket.send_fds(connection, [json.dumps(asked).encode()], [write, *files])
        pid = int(connection.recv(MOST))
    except BaseException:
        os.close(read)
        raise
    finally:
        os.close(write)
    return RelayCommand(pid, read)


async def run(
    *arguments: str | Path, stdin: bytes = b"", environment: Mapping[str, str] | None = None, before: str = ""
) -> tuple[int, str, bytes]:
    """Exit status, standard error, standard output of `qumail-relay ...`; `before` is a program that it runs first."""
    with tempfile.TemporaryFile() as given, tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
        given.write(stdin)
        given.seek(0)
        process = await start(*arguments, stdin=given, stdout=out, stderr=err, environment=environment, before=before)
        status = await process.wait()
        out.seek(0)
        err.seek(0)
        said = err.read()
        assert b"Traceback" not in said, said.decode()
        return status, said.decode(), out.read()


def _worker(worker: Worker, relay_toml: Path) -> RelayCommand:
    """In place of `WorkerProcess`: forked here as well, which makes them no children of the relay's process."""
    arguments = ["serve", "--config", str(relay_toml), "--worker", worker.as_json()]
    asked: dict[str, Any] = {"arguments": arguments, "environment": without_manager(os.environ), "group": None}
    asked |= {"directory": str(Path.cwd()), "before": _BEFORE[0]}
    asked |= {"relay": os.getpid(), "descriptors": worker.descriptors}
    return _forked(asked, [0, 1, 2, *worker.descriptors])


_BEFORE = [""]
"""The program that this relay, and each of its workers, runs first."""


@cache
def _way() -> socket.socket:
    """The way to the process that forks: one for each process that runs tests; it ends with that."""
    if _LISTENING:  # this one was forked by it
        connection = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        connection.connect(_LISTENING[0])
        return connection
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    code = (
        f"import sys; sys.path.insert(0, {str(ROOT)!r}); "
        f"from tests.testlib.relay_command import fork_for_ever; fork_for_ever({theirs.fileno()})"
    )
    with theirs:
        process = subprocess.Popen(
            [sys.executable, "-P", "-c", code],
            pass_fds=[theirs.fileno()], stdin=subprocess.DEVNULL, start_new_session=True,
        )  # fmt: skip

    def end() -> None:
        ours.close()
        process.wait()

    atexit.register(end)
    return ours


def fork_for_ever(descriptor: int) -> None:
    """What that process does."""
    from relay.cli import cli

    _load(cli)
    for package in map(importlib.import_module, SERVING):
        for module in pkgutil.walk_packages(package.__path__, f"{package.__name__}."):
            importlib.import_module(module.name)
    share_all()
    first = socket.socket(fileno=descriptor)
    ended, wake = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    signal.set_wakeup_fd(wake, warn_on_full_buffer=False)
    running: dict[int, _Running] = {}
    with selectors.DefaultSelector() as selector, socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as listening:
        listening.bind(f"\0qumail-relay-tests-{os.getpid()}")
        listening.listen()
        _LISTENING.append(listening.getsockname())
        for each in (first, listening, ended):
            selector.register(each, selectors.EVENT_READ)
        while True:
            for key, _ in selector.select():
                if key.fileobj == ended:
                    os.read(ended, MOST)
                    _tell_who_ended(running)
                elif key.fileobj is listening:
                    selector.register(listening.accept()[0], selectors.EVENT_READ)
                elif isinstance(key.fileobj, socket.socket) and not _fork(key.fileobj, running):
                    if key.fileobj is first:
                        return
                    selector.unregister(key.fileobj)
                    key.fileobj.close()


_LISTENING: list[str | bytes] = []
"""Where it listens, for processes that it has forked and that have others forked."""


class _Running(NamedTuple):
    """A pipe for its exit status, and the process of the relay of which it is a worker."""

    status: int
    relay: int | None


def _fork(connection: socket.socket, running: dict[int, _Running]) -> bool:
    """Answers one question; False where there is none any more."""
    try:
        message, files, _, _ = socket.recv_fds(connection, MOST, MOST_FILES)
    except ConnectionError:
        return False
    if not message:
        return False
    asked = json.loads(message)
    if isinstance(asked, int):
        connection.send(json.dumps([pid for pid, each in running.items() if each.relay == asked]).encode())
        return True
    pid = os.fork()
    if pid == 0:
        _become(asked, files[1:])
    running[pid] = _Running(files[0], asked.get("relay"))
    for file in files[1:]:
        os.close(file)
    with suppress(OSError):  # who asked may have been killed
        connection.send(str(pid).encode())
    return True


def _load(group: click.Group) -> None:
    """All its commands, and theirs."""
    context = click.Context(group)
    for name in group.list_commands(context):
        command = group.get_command(context, name)
        if isinstance(command, click.Group):
            _load(command)


def _tell_who_ended(running: dict[int, _Running]) -> None:
    with suppress(ChildProcessError):
        while (found := os.waitpid(-1, os.WNOHANG))[0]:
            status = running.pop(found[0]).status
            with suppress(BrokenPipeError):
                os.write(status, str(os.waitstatus_to_exitcode(found[1])).encode())
            os.close(status)


def _end_with_the_forker() -> None:
    """After the last change of users, which would undo it: of a test run that is killed no relay stays (prctl(2))."""
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


def _become(asked: dict[str, Any], files: list[int]) -> None:
    """The forked process is `qumail-relay` from here on; does not return."""
    status = 1
    try:
        signal.set_wakeup_fd(-1)
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        _take(files, [0, 1, 2, *asked.get("descriptors", ())])
        os.setsid()
        os.chdir(asked["directory"])
        os.environ.clear()
        os.environ.update(asked["environment"])
        if asked["group"] is not None:
            os.setregid(asked["group"], asked["group"])
        _end_with_the_forker()
        from relay.cli import main

        _believe_files_at_once()
        patch("relay.process.workers.WorkerProcess", _worker).start()
        _BEFORE[:] = [asked["before"]]
        exec(asked["before"], {})
        sys.argv = ["qumail-relay", *asked["arguments"]]
        main()
        status = 0
    except SystemExit as end:
        status = end.code if isinstance(end.code, int) else int(end.code is not None)
    except BaseException:  # noqa: BLE001 - as the interpreter does
        sys.excepthook(*sys.exc_info())
    finally:
        with suppress(BaseException):
            sys.stdout.flush()
            sys.stderr.flush()
        os._exit(status)


def _believe_files_at_once() -> None:
    """As a relay does that takes its second to start: those of policies, which a test has just written."""
    from relay.policy import starting

    patch.object(starting, "QUIET_S", 0.0).start()
    patch.object(starting, "GONE_QUIET_S", 0.0).start()


def _take(files: Sequence[int], numbers: Sequence[int]) -> None:
    """The files under these numbers, and no others."""
    above = max(*files, *numbers) + 1
    high = [fcntl.fcntl(file, fcntl.F_DUPFD, above) for file in files]
    for file, number in zip(high, numbers, strict=True):
        os.dup2(file, number)
    for number in range(max(high) + 1):
        if number not in numbers:
            with suppress(OSError):
                os.close(number)
    os.closerange(max(high) + 1, MOST)
