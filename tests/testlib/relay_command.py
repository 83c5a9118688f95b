"""`qumail-relay ...` as a process of its own, forked from one that has loaded everything: loading takes over a second.
Standard: what a test can tell from `python -m relay` is how long it takes; some tests start that one nevertheless.
"""

from __future__ import annotations

import asyncio
import atexit
import json
import os
import selectors
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import IO, Any

import click

ROOT = Path(__file__).parents[2]
MOST = 65_536


class RelayCommand:
    """One that runs: as asyncio.subprocess.Process, as far as tests need that."""

    def __init__(self, pid: int, status: int) -> None:
        """`status` is a pipe that brings the exit status."""
        self.pid = pid
        self._status = status
        self._returncode: int | None = None

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
        while (ended := self.returncode) is None:
            ready = asyncio.get_running_loop().create_future()
            asyncio.get_running_loop().add_reader(self._status, ready.set_result, None)
            try:
                await ready
            finally:
                asyncio.get_running_loop().remove_reader(self._status)
        return ended

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
    read, write = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
    nowhere = os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC)
    try:
        files = [file.fileno() if file is not None else nowhere for file in (stdin, stdout, stderr)]
        connection = _forker()
        # At once and without an await: answers come in the order of the questions.
        socket.send_fds(connection, [json.dumps(asked).encode()], [*files, write])
        pid = int(connection.recv(MOST))
    finally:
        os.close(write)
        os.close(nowhere)
    return RelayCommand(pid, read)


async def run(
    *arguments: str | Path, stdin: bytes = b"", environment: Mapping[str, str] | None = None
) -> tuple[int, str, bytes]:
    """Exit status, standard error, standard output of `qumail-relay ...`."""
    with tempfile.TemporaryFile() as given, tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
        given.write(stdin)
        given.seek(0)
        process = await start(*arguments, stdin=given, stdout=out, stderr=err, environment=environment)
        status = await process.wait()
        out.seek(0)
        err.seek(0)
        said = err.read()
        assert b"Traceback" not in said, said.decode()
        return status, said.decode(), out.read()


@cache
def _forker() -> socket.socket:
    """The way to the process that forks, one for each process that runs tests; it ends with that."""
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
    connection = socket.socket(fileno=descriptor)
    ended, wake = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    signal.set_wakeup_fd(wake, warn_on_full_buffer=False)
    running: dict[int, int] = {}
    with selectors.DefaultSelector() as selector:
        selector.register(connection, selectors.EVENT_READ)
        selector.register(ended, selectors.EVENT_READ)
        while True:
            for key, _ in selector.select():
                if key.fileobj is not connection:
                    os.read(ended, MOST)
                    _tell_who_ended(running)
                    continue
                message, files, _, _ = socket.recv_fds(connection, MOST, 4)
                if not message:
                    return
                pid = os.fork()
                if pid == 0:
                    _become(json.loads(message), files)
                connection.send(str(pid).encode())
                running[pid] = files.pop()
                for file in files:
                    os.close(file)


def _load(group: click.Group) -> None:
    """All its commands, and theirs."""
    context = click.Context(group)
    for name in group.list_commands(context):
        command = group.get_command(context, name)
        if isinstance(command, click.Group):
            _load(command)


def _tell_who_ended(running: dict[int, int]) -> None:
    with suppress(ChildProcessError):
        while (found := os.waitpid(-1, os.WNOHANG))[0]:
            status = running.pop(found[0])
            with suppress(BrokenPipeError):
                os.write(status, str(os.waitstatus_to_exitcode(found[1])).encode())
            os.close(status)


def _become(asked: dict[str, Any], files: list[int]) -> None:
    """The forked process is `qumail-relay` from here on; does not return."""
    status = 1
    try:
        signal.set_wakeup_fd(-1)
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        for number in range(3):
            os.dup2(files[number], number)
        os.closerange(3, 1024)
        os.setsid()
        os.chdir(asked["directory"])
        os.environ.clear()
        os.environ.update(asked["environment"])
        if asked["group"] is not None:
            os.setregid(asked["group"], asked["group"])
        from relay.cli import main

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
