"""Processes of a benchmark, each on a free port of loopback, a sealing relay among them; gone when the benchmark ends.
Those that are asked speak in JSON Lines: first the child's greeting, then one answer for each question.
"""

from __future__ import annotations

import asyncio
import json
import select
import ssl
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Awaitable, Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from relay.bench.result import BenchmarkFailed

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


async def serve_parent(greeting: object, answer: Callable[[Any], Awaitable[object]] | None = None) -> None:
    """The child's side: greets, then answers each question until the parent is gone; without `answer` there is none."""
    _say(greeting)
    while line := await asyncio.to_thread(sys.stdin.readline):
        _say(await answer(json.loads(line)) if answer else None)


async def serve(
    protocol: Callable[[], asyncio.Protocol], answer: Callable[[Any], Awaitable[object]] | None = None
) -> None:
    """A child that is a server: greets with the port at which each connection gets its `protocol`."""
    server = await asyncio.get_running_loop().create_server(protocol, "127.0.0.1", 0, backlog=512)
    await serve_parent(server.sockets[0].getsockname()[1], answer)
    server.close()


def _say(value: object) -> None:
    sys.stdout.write(json.dumps(value) + "\n")
    sys.stdout.flush()


@dataclass(frozen=True, slots=True)
class KeyStock:
    """What the site's KME says of itself; it lies in `state` (a directory) how to ask."""

    url: str
    state: Path

    @property
    def left(self) -> int:
        """How many keys the KME could still give out (ETSI GS QKD 014, 6.1: stored_key_count)."""
        context = ssl.create_default_context(cafile=self.state / "ca.pem")
        context.load_cert_chain(self.state / "sae-2.pem", self.state / "sae-2.key")
        address = f"{self.url}/api/v1/keys/1/status"
        try:
            with urllib.request.urlopen(address, timeout=10, context=context) as answer:  # noqa: S310 - https
                return int(json.load(answer)["stored_key_count"])
        except (OSError, ValueError, KeyError) as error:
            raise BenchmarkFailed(f"the development KME does not say what it has: {error}") from error


@dataclass(frozen=True, slots=True)
class SealingRelay:
    """A relay that runs: the port of each entry by its name, and what it logs; `keys` is what its KME has."""

    ports: dict[str, int]
    log: Path
    keys: KeyStock


@contextmanager
def sealing_relay(next_hop: int, listening: str = 'listen = "127.0.0.1:0"') -> Iterator[SealingRelay]:
    """Development KMEs, and a relay at level aes that hands on to a local port; stopped at the end, files removed.

    `listening` are the settings of [outgoing] that say where mail comes in. Raises BenchmarkFailed.
    """
    with ExitStack() as stack:
        directory = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="qumail-relay-bench-")))
        state = directory / "kme"
        state.mkdir(mode=0o700)
        addresses = stack.enter_context(
            command(
                "kme", "--host", "127.0.0.1", "--port", "0", "--port", "0", "--state", str(state),
                "--key-rate", "0", "--stored-keys", str(STOCK_OF_KEYS),
                ready_file=state / "endpoints.json", log_file=directory / "kme.log",
            )
        )  # fmt: skip
        keys = KeyStock(json.loads(addresses)["KM1"], state)
        config_file, ready_file = directory / "relay.toml", directory / "ready"
        config_file.write_text(_RELAY_TOML.format(listening=listening, next_hop=next_hop, kme=keys.url))
        (directory / "policies").mkdir()
        (directory / "policies" / "default.toml").write_text('levels = ["aes"]\n')
        relay_log = directory / "relay.log"
        entries = stack.enter_context(
            command(
                "serve", "--config", str(config_file), "--ready-file", str(ready_file),
                ready_file=ready_file, log_file=relay_log,
            )
        )  # fmt: skip
        words = (line.split() for line in entries.splitlines())
        yield SealingRelay({name: int(address.rpartition(":")[2]) for name, address in words}, relay_log, keys)
