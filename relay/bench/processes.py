"""Processes of a benchmark, each on a free port of loopback, a sealing relay among them; gone when the benchmark ends.
A session of its own for each: Ctrl-C reaches only the parent, which then ends them one by one.
"""

from __future__ import annotations

import asyncio
import json
import sys
import tempfile
from asyncio.subprocess import PIPE, Process
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from relay.bench.result import BenchmarkFailed
from relay.keys import OptimizedKMClient

START_S = 30.0
"""How long a process may take until it is ready."""
STOP_S = 10.0
"""How long a process may take to end before it is killed."""
STOCK_OF_KEYS = 10_000_000
"""What the KMEs have at the start: more than is ever used, and none comes in, so that the use can be counted."""

_RELAY_TOML = """\
[site]
name = "alice"
domains = ["alice.example"]
sae_id = "2"
hostname = "relay.alice.example"

[outgoing]
{listening}
next_hop = "127.0.0.1:{next_hop}"

[policies]
directory = "policies"

[store]
database = "relay.db"
secret = "site.secret"

[log]
format = "json"

[kmes.km1]
url = "{kme}"
group = "alice-bob"
ca = "kme/ca.pem"
certificate = "kme/sae-2.pem"
key = "kme/sae-2.key"

[peers.bob]
domains = ["bob.example"]
sae_id = "1"
kme_groups = ["alice-bob"]
"""


@asynccontextmanager
async def _process(*arguments: str, **streams: Any) -> AsyncIterator[Process]:
    process = await asyncio.create_subprocess_exec(sys.executable, "-m", *arguments, start_new_session=True, **streams)
    try:
        yield process
    finally:
        if process.returncode is None:
            process.terminate()
        try:
            async with asyncio.timeout(STOP_S):
                await process.wait()
        except TimeoutError:
            process.kill()
            await process.wait()


@asynccontextmanager
async def server(module: str, *arguments: str) -> AsyncIterator[int]:
    """`python -m module arguments`, which calls `serve`; gives its port. Raises BenchmarkFailed."""
    async with _process(module, *arguments, stdin=PIPE, stdout=PIPE) as process:
        assert process.stdout is not None  # noqa: S101 - opened with a pipe
        try:
            async with asyncio.timeout(START_S):
                line = await process.stdout.readline()
        except TimeoutError:
            line = b""
        if not line.strip().isdigit():
            raise BenchmarkFailed(f"{module} did not start")
        yield int(line)


async def serve(protocol: Callable[[], asyncio.Protocol]) -> None:
    """The other side of `server`: each connection gets its `protocol`, until the parent is gone."""
    listening = await asyncio.get_running_loop().create_server(protocol, "127.0.0.1", 0, backlog=512)
    sys.stdout.write(f"{listening.sockets[0].getsockname()[1]}\n")
    sys.stdout.flush()
    await asyncio.to_thread(sys.stdin.read)
    listening.close()


@asynccontextmanager
async def command(*arguments: str, ready_file: Path, log_file: Path) -> AsyncIterator[str]:
    """`python -m relay arguments`, ready when `ready_file` is there; gives what stands in it.

    Raises BenchmarkFailed, with the end of what the command wrote to `log_file`.
    """
    with log_file.open("wb") as log:
        async with _process("relay", *arguments, stdout=log, stderr=log) as process:
            until = asyncio.get_running_loop().time() + START_S
            while not (text := _text(ready_file)):
                if process.returncode is not None or asyncio.get_running_loop().time() > until:
                    raise BenchmarkFailed(f"`{arguments[0]}` did not start: {_text(log_file)[-2000:]}")
                await asyncio.sleep(0.02)
            yield text


def _text(path: Path) -> str:
    return path.read_text(errors="replace") if path.exists() else ""


@dataclass(frozen=True, slots=True)
class SealingRelay:
    """A relay that runs: the port of each entry by its name, what it logs, and a client of its KME."""

    ports: dict[str, int]
    log: Path
    kme: OptimizedKMClient

    async def keys_left(self) -> int:
        """How many keys its KME could still give out. Raises KeyUnavailable."""
        return (await self.kme.check_key_status("1")).stored_key_count or 0


@asynccontextmanager
async def sealing_relay(next_hop: int, listening: str = 'listen = "127.0.0.1:0"') -> AsyncIterator[SealingRelay]:
    """Development KMEs, and a relay at level aes that hands on to a local port; stopped at the end, files removed.

    `listening` are the settings of [outgoing] that say where mail comes in; the others are the defaults.
    Raises BenchmarkFailed.
    """
    async with AsyncExitStack() as stack:
        directory = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="qumail-relay-bench-")))
        state = directory / "kme"
        state.mkdir(mode=0o700)
        addresses = await stack.enter_async_context(
            command(
                "kme", "--host", "127.0.0.1", "--port", "0", "--port", "0", "--state", str(state),
                "--key-rate", "0", "--stored-keys", str(STOCK_OF_KEYS),
                ready_file=state / "endpoints.json", log_file=directory / "kme.log",
            )
        )  # fmt: skip
        url = json.loads(addresses)["KM1"]
        config_file, ready_file, log_file = directory / "relay.toml", directory / "ready", directory / "relay.log"
        config_file.write_text(_RELAY_TOML.format(listening=listening, next_hop=next_hop, kme=url))
        (directory / "policies").mkdir()
        (directory / "policies" / "default.toml").write_text('levels = ["aes"]\n')
        entries = await stack.enter_async_context(
            command(
                "serve", "--config", str(config_file), "--ready-file", str(ready_file),
                ready_file=ready_file, log_file=log_file,
            )
        )  # fmt: skip
        kme = OptimizedKMClient(url, ca=state / "ca.pem", certificate=state / "sae-2.pem", key=state / "sae-2.key")
        await stack.enter_async_context(kme)
        words = (line.split() for line in entries.splitlines())
        yield SealingRelay({name: int(address.rpartition(":")[2]) for name, address in words}, log_file, kme)
