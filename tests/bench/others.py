"""What is measured otherwise than by rounds of mail: latency at a quiet pace, memory, mailboxes, and short commands.
Each part puts its figures under names of its own, which stand in cases.py.
"""

from __future__ import annotations

import asyncio
import itertools
import statistics
import sys
import time
from asyncio.subprocess import DEVNULL
from collections.abc import Callable

from tests.bench.cases import MB
from tests.bench.figures import BenchFigures
from tests.bench.imap import measure_imap
from tests.bench.processes import process
from tests.bench.result import BenchmarkFailed
from tests.bench.servers import Servers
from tests.bench.tools import taking, why_not
from tests.bench.traffic import Handover, mails_of, send, send_one
from tests.bench.usage import Usage

PACE_S = 0.1
"""Pause between two mails, in seconds."""
LATENCY_SIZE, LARGE = 4_000, 25 * MB
RECIPIENT = "aes@bob.example"
KEPT_S = 60.0
"""Delay after the last large mail until memory use is read, in seconds."""

Say = Callable[[str, float], None]
"""Hears of each step before it is taken, and of the seconds that it is expected to take."""
EXPECTED_S = {"latency": (3.0, 40.0), "memory": (4.0, 65.0), "imap": (9.0, 60.0), "commands": (3.0, 15.0)}
"""Expected duration of each part, in seconds: with --quick and without."""


async def measure_latency(servers: Servers, figures: BenchFigures, say: Say, *, quick: bool) -> None:
    """How long mails take that come one by one: straight to the sink, by a relay that seals, by one that opens."""
    rounds, mails = (1, 10) if quick else (3, 110)
    listeners = {"sink": "sink", "pass-through": "pass-through", "sealing": "alice", "opening": "bob"}
    ports = {name: await servers.port(listener) for name, listener in listeners.items()}
    async with taking(servers.sink):
        for number in range(rounds):
            say(f"latency: round {number + 1} of {rounds}", 12.0 if not quick else 3.0)
            took: dict[str, list[float]] = {name: [] for name in ports}
            for message in await servers.sealed(LATENCY_SIZE, mails, RECIPIENT):
                # Each way has its part of the pace for itself, so that no mail waits for that of another way.
                for name, port in ports.items():
                    next_one = time.perf_counter() + PACE_S / len(ports)
                    began = time.perf_counter()
                    content = message if name == "opening" else next(mails_of(LATENCY_SIZE))
                    fault = await send_one(port, content, recipient=RECIPIENT)
                    took[name].append((time.perf_counter() - began) * 1000)
                    servers.accepted(Handover(fault=fault), f"latency, {name}")
                    await asyncio.sleep(max(0.0, next_one - time.perf_counter()))
            for name, times in took.items():
                percentiles = statistics.quantiles(times[len(times) // 10 :], n=100, method="inclusive")
                figures.add(f"latency, {name}", "p50 ms", percentiles[49])
                figures.add(f"latency, {name}", "p99 ms", percentiles[98])


async def measure_memory(servers: Servers, figures: BenchFigures, say: Say, *, quick: bool) -> None:
    """What a relay that seals holds beyond what it held after its first small mails."""
    say("memory: a fresh relay", 2.0)
    server = await servers.server("alice-idle")
    usage, port = Usage(server.pid), server.ports[""]

    async def send_large(size: int, number: int, at_once: int) -> None:
        mails = itertools.islice(mails_of(size), number)
        servers.accepted(await send(port, mails, connections=at_once, recipient=RECIPIENT), "memory")

    async with taking(servers.sink):
        await send_large(LATENCY_SIZE, 20, 2)
        idle = usage.resident()
        if not idle:
            figures.note("memory, idle", "this system does not tell what processes hold")
            return
        figures.add("memory, idle, first process", "MB", usage.resident(first_alone=True))
        figures.add("memory, idle", "MB", idle)
        for name, at_once in (("one 25 MB mail", 1), ("four 25 MB mails", 4)):
            say(f"memory: {name}", 1.0)
            usage.forget_peak()
            await send_large(LARGE, at_once, at_once)
            figures.add(f"memory, {name} above idle", "MB", usage.peak() - idle)
            figures.add(f"memory, {name} above idle", "x size", (usage.peak() - idle) * 1e6 / (LARGE * at_once))
        if quick:
            figures.note("memory, kept above idle", "a quick run does not wait for it")
            return
        say("memory: what is kept a minute later", KEPT_S)
        await asyncio.sleep(KEPT_S)
        figures.add("memory, kept above idle", "MB", usage.resident() - idle)


async def measure_mailbox(servers: Servers, figures: BenchFigures, say: Say, *, quick: bool) -> None:
    """Notes why not where there is no Dovecot."""
    if why := why_not("Dovecot"):
        figures.note("IMAP, opened", why)
        return
    rounds, messages = (1, 20) if quick else (3, 1_000)
    await measure_imap(servers, figures, say, rounds=rounds, messages=messages)


async def measure_commands(servers: Servers, figures: BenchFigures, say: Say, *, quick: bool) -> None:
    """From starting the interpreter to its end."""
    config_file = await servers.config_file(
        "alice-commands", '[outgoing]\nlisten = "127.0.0.1:0"\nnext_hop = "127.0.0.1:1"\n'
    )
    commands = {"--help": ("--help",), "policy list": ("policy", "list", "--config", str(config_file))}
    for number in range(1 if quick else 5):
        for name, arguments in commands.items():
            say(f"commands: {name}, round {number + 1}", 1.5)
            began = time.perf_counter()
            async with process(sys.executable, "-m", "relay", *arguments, stdout=DEVNULL, stderr=DEVNULL) as started:
                status = await started.wait()
            if status:
                raise BenchmarkFailed(f"`{' '.join(arguments)}` ended with exit status {status}")
            figures.add(f"command, {name}", "s", time.perf_counter() - began)


MEASURED = {
    "latency": measure_latency, "memory": measure_memory, "imap": measure_mailbox, "commands": measure_commands
}  # fmt: skip
"""Each part of cases.py's OTHERS."""
