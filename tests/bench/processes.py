"""Processes of a benchmark, each on a free port of loopback, and gone when the benchmark ends.
A session of its own for each: Ctrl-C reaches only the parent, which then ends them one by one.
"""

from __future__ import annotations

import asyncio
import sys
import time
from asyncio.subprocess import PIPE, Process
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.bench.result import BenchmarkFailed

START_S = 30.0
"""Start timeout of a process, in seconds."""
STOP_S = 10.0
"""Shutdown grace period of a process before it is killed, in seconds."""


@dataclass(frozen=True, slots=True)
class BenchServer:
    """One that runs: its ports by the names of its listeners ("" is the first), its process, and what it logs."""

    ports: dict[str, int]
    pid: int = 0
    log: Path | None = None


@asynccontextmanager
async def process(*arguments: str, **streams: Any) -> AsyncIterator[Process]:
    """A program that runs while the context lasts; `streams` are those of create_subprocess_exec."""
    started = await asyncio.create_subprocess_exec(*arguments, start_new_session=True, **streams)
    try:
        yield started
    finally:
        with suppress(ProcessLookupError):
            started.terminate()
        try:
            async with asyncio.timeout(STOP_S):
                await started.wait()
        except TimeoutError:
            started.kill()
            await started.wait()


@asynccontextmanager
async def server(module: str, *arguments: str) -> AsyncIterator[BenchServer]:
    """`python -m module arguments`, which calls `serve`. Raises BenchmarkFailed."""
    async with process(sys.executable, "-m", module, *arguments, stdin=PIPE, stdout=PIPE) as started:
        assert started.stdout is not None
        try:
            async with asyncio.timeout(START_S):
                line = await started.stdout.readline()
        except TimeoutError:
            line = b""
        if not line.strip().isdigit():
            raise BenchmarkFailed(f"{module} did not start")
        yield BenchServer({"": int(line)}, started.pid)


async def serve(protocol: Callable[[], asyncio.Protocol]) -> None:
    """The other side of `server`: each connection gets its `protocol`, until the parent is gone."""
    listening = await asyncio.get_running_loop().create_server(protocol, "127.0.0.1", 0, backlog=512)
    sys.stdout.write(f"{listening.sockets[0].getsockname()[1]}\n")
    sys.stdout.flush()
    await asyncio.to_thread(sys.stdin.read)
    listening.close()


@asynccontextmanager
async def command(*arguments: str, ready_file: Path, log_file: Path) -> AsyncIterator[tuple[str, int]]:
    """`python -m relay arguments`, ready when `ready_file` is there; gives what stands in it, and the process ID.

    Raises BenchmarkFailed, with the end of what the command wrote to `log_file`.
    """
    with log_file.open("wb") as log:
        async with process(sys.executable, "-m", "relay", *arguments, stdout=log, stderr=log) as started:
            until = asyncio.get_running_loop().time() + START_S
            while not (text := _text(ready_file)):
                if started.returncode is not None or asyncio.get_running_loop().time() > until:
                    raise BenchmarkFailed(f"`{arguments[0]}` did not start: {_text(log_file)[-2000:]}")
                await asyncio.sleep(0.02)
            yield text, started.pid


async def listens(port: int, name: str) -> None:
    """Until somebody listens at a local port. Raises BenchmarkFailed."""
    until = time.monotonic() + START_S
    while time.monotonic() < until:
        try:
            _, writer = await asyncio.open_connection("127.0.0.1", port)
        except OSError:
            await asyncio.sleep(0.02)
        else:
            writer.close()
            return
    raise BenchmarkFailed(f"{name} did not start")


def _text(path: Path) -> str:
    return path.read_text(errors="replace") if path.exists() else ""
