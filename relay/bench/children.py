"""Processes of a benchmark: started as their own, asked in lines of JSON, gone when the benchmark ends.
Standard: one JSON value a line (JSON Lines), first the child's greeting, then one answer for each question.
"""

from __future__ import annotations

import asyncio
import json
import select
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from relay.errors import RelayError

START_S = 30.0
"""How long a process may take until it is ready."""
STOP_S = 10.0
"""How long a process may take to end before it is killed."""


class BenchmarkFailed(RelayError):
    """What was measured did not work, so there are no figures."""


class Child:
    """A running module of ours that answers questions; `greeting` is what it said first."""

    def __init__(self, module: str, process: subprocess.Popen[bytes]) -> None:
        self._module = module
        self._process = process
        self.greeting = self._next(START_S)

    def ask(self, question: object, timeout: float) -> Any:
        """The answer, waited for `timeout` seconds at most. Raises BenchmarkFailed."""
        assert self._process.stdin is not None  # noqa: S101 - opened below with a pipe
        try:
            self._process.stdin.write(json.dumps(question).encode() + b"\n")
            self._process.stdin.flush()
        except OSError as error:
            raise BenchmarkFailed(f"{self._module} has ended: {error}") from error
        return self._next(timeout)

    def _next(self, timeout: float) -> Any:
        assert self._process.stdout is not None  # noqa: S101 - opened below with a pipe
        readable, _, _ = select.select([self._process.stdout], [], [], timeout)
        line = self._process.stdout.readline() if readable else b""
        if not line:
            raise BenchmarkFailed(f"{self._module}: {'it has ended' if readable else 'no answer in time'}")
        return json.loads(line)


@contextmanager
def child(module: str, *arguments: str) -> Iterator[Child]:
    """`python -m module arguments`, which calls `serve_parent`. Raises BenchmarkFailed."""
    command = [sys.executable, "-m", module, *arguments]
    with _process(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        yield Child(module, process)


@contextmanager
def command(*arguments: str, ready_file: Path, log_file: Path) -> Iterator[str]:
    """`python -m relay arguments`, ready when `ready_file` is there; gives what stands in it.

    Raises BenchmarkFailed, with the end of what the command wrote to `log_file`.
    """
    with (
        log_file.open("wb") as log,
        _process([sys.executable, "-m", "relay", *arguments], stdout=log, stderr=log) as process,
    ):
        until = time.monotonic() + START_S
        while not ready_file.exists():
            if process.poll() is not None or time.monotonic() > until:
                said = log_file.read_text(errors="replace")[-2000:]
                raise BenchmarkFailed(f"`{arguments[0]}` did not start: {said}")
            time.sleep(0.02)
        yield ready_file.read_text()


@contextmanager
def _process(command: list[str], **streams: Any) -> Iterator[subprocess.Popen[bytes]]:
    # A session of its own: Ctrl-C reaches only the parent, which then ends its children one by one.
    process = subprocess.Popen(command, start_new_session=True, **streams)  # noqa: S603 - our own modules
    try:
        yield process
    finally:
        process.terminate()
        try:
            process.wait(STOP_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        for stream in (process.stdin, process.stdout):
            if stream is not None:
                stream.close()


async def serve_parent(greeting: object, answer: Callable[[Any], Awaitable[object]]) -> None:
    """The child's side: greets, then answers each question until the parent is gone."""
    _say(greeting)
    while line := await asyncio.to_thread(sys.stdin.readline):
        _say(await answer(json.loads(line)))


def _say(value: object) -> None:
    sys.stdout.write(json.dumps(value) + "\n")
    sys.stdout.flush()
