"""What mail that is built to be slow does to other mail: `python -m tests.system.slow_mail`, outside the suite.
It prints how long other mail waits, how long the event loop is held, and what each kind costs beside a plain mail.

Two parts: relays in this process, whose event loop is measured as in test_loop_clock.py, and one that is a process of its
own, for times that an administrator would see.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import itertools
import logging
import os
import platform
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from functools import partial
from pathlib import Path

import structlog

from relay.config import TCPAddress
from relay.errors import MalformedMessage
from relay.formats import mime
from relay.kme import DevelopmentKMEs, LinkSettings
from relay.process import app
from tests.bench.sink import BenchSink
from tests.testlib import mails
from tests.testlib.exact_sink import ExactSink
from tests.testlib.hostile import MAKERS
from tests.testlib.loop_clock import loop_clock
from tests.testlib.sites import Site, make_site, relay_process
from tests.testlib.submit import submit

TARGETS = "no other mail waits 0.2 s, the loop is not held for 50 ms, no kind costs twice what a plain mail does"
SETTINGS = 'max_message_size = "20 MiB"\nlmtp = "127.0.0.1:0"\n'
POLICY = """
levels = ["aes"]
priority = "low"

[[when]]
subject_tag = "[secret]"
priority = "normal"

[[when]]
header = "X-Secret: y*e*s*"
priority = "normal"

[[when]]
attachment_name = ["*secret*plan*", "*a*a*a*a*b"]
priority = "normal"

[[when]]
attachment_name = "*.png"
sender = "*@alice.example"
priority = "normal"
"""
SMALL, LARGE = 250_000, 8_000_000
_ABOUT = ("semicolon", "equal", "escaped", "quotes that", "quotes between", "parameter", "name", "charset", "part", "boundar",
          "news", "type", "digest", "rules")  # fmt: skip
SHORT = mails.plain().replace(b"Message-ID: <1@alice.example>\r\n", b"")
KINDS = tuple(kind for kind in MAKERS if any(word in kind for word in _ABOUT) and "From" not in kind)
"""Those that are about parts, their types and names."""
say = partial(print, flush=True)
LARGEST = ("semicolons in quotes", "escaped quotes")
ROUNDS, FEWEST = 3, 50
"""How often all of a load is sent, and how many mails at least are sent beside it."""
TIMES = {SMALL: 8, LARGE: 3}
"""How often each kind is sent to be measured."""


@contextlib.asynccontextmanager
async def site(directory: Path, hop: TCPAddress) -> AsyncIterator[Site]:
    """Alice's site, whose rules ask for everything."""
    link = LinkSettings(key_rate=1e9, stored_key_limit=1_000_000)
    async with DevelopmentKMEs(state_dir=directory / "kme", host="127.0.0.1", ports=(0, 0), link=link) as kmes:
        yield make_site(
            directory / "alice", "alice", state=kmes.state_dir, kme_url=kmes.urls[0], settings=SETTINGS,
            policies={"default.toml": POLICY}, outgoing=hop,
        )  # fmt: skip


def plain(octets: int) -> bytes:
    """A short header and lines of text."""
    line = b"The figures are 42 and 43, as they were last year and the year before.\r\n"
    return SHORT + line * (octets // len(line))


def load() -> list[bytes]:
    """20 mails of 250 KB and 3 of 8 MB."""
    small = [MAKERS[KINDS[number % len(KINDS)]](SMALL) for number in range(20)]
    return small + [MAKERS[name](LARGE) for name in ("everything that rules ask for", *LARGEST)]


LOADS: Mapping[str, Callable[[], list[bytes]]] = {
    "nothing": list,
    "plain mail": lambda: [plain(SMALL)] * 20 + [plain(LARGE)] * 3,
    "slow mail": load,
}


@contextlib.asynccontextmanager
async def sink_process() -> AsyncIterator[TCPAddress]:
    """Where mail goes, as a process of its own."""
    command = [sys.executable, "-m", "tests.system.slow_mail", "--sink"]
    process = await asyncio.create_subprocess_exec(*command, stdout=subprocess.PIPE)
    assert process.stdout is not None
    try:
        yield TCPAddress("127.0.0.1", int(await process.stdout.readline()))
    finally:
        process.terminate()
        await process.wait()


_numbers = itertools.count(1)


def new(message: bytes) -> bytes:
    """The message as one that was never sent before: what comes twice is not read again."""
    return b"Message-ID: <%d.%d@alice.example>\r\n" % (os.getpid(), next(_numbers)) + message


async def send(address: TCPAddress, messages: Sequence[bytes]) -> None:
    """All of them at once, a connection each."""
    await asyncio.gather(*[submit(address, new(message)) for message in messages])


async def waits(address: TCPAddress, what: str) -> list[float]:
    """Seconds that each small mail took while another process sent these, for three rounds."""
    found: list[float] = []
    command = [sys.executable, "-m", "tests.system.slow_mail", "--send", what, "--to", str(address)]
    sender = await asyncio.create_subprocess_exec(*command, stdout=subprocess.PIPE)
    assert sender.stdout is not None
    await sender.stdout.readline()
    over = asyncio.create_task(sender.wait())
    while not over.done() or len(found) < FEWEST:
        began = time.monotonic()
        await submit(address, new(SHORT))
        found.append(time.monotonic() - began)
    return sorted(found)


def alike(message: bytes) -> bytes:
    """A plain mail of this size, with a header as long and of as many lines, if that is not too long."""
    try:
        header = mime.searched_header(message)
    except MalformedMessage:
        return plain(len(message))
    usual = mime.header_of(SHORT)
    rest, lines = len(header) - len(usual), header.count(b"\n") - usual.count(b"\n")
    field = b"X-Note: ".ljust(max(10, rest // max(lines, 1)) - 2, b"x") + b"\r\n"
    longer = usual + field * (max(0, rest) // len(field))
    line = b"The figures are 42 and 43, as they were last year and the year before.\r\n"
    return longer + b"\r\n" + line * ((len(message) - len(longer)) // len(line))


def used(pid: int) -> float:
    """Seconds of processor time of a process's threads."""
    tasks = Path(f"/proc/{pid}/task").iterdir()
    return sum(int((task / "schedstat").read_text().split()[0]) for task in tasks) / 1e9


async def costs(pid: int, address: TCPAddress, messages: Mapping[str, bytes], times: int) -> dict[str, float]:
    """Processor time that the relay takes for each of these, the least of several times."""
    found: dict[str, float] = {}
    for name, message in messages.items():
        for _ in range(times):
            before = used(pid)
            await submit(address, new(message))
            found[name] = min(found.get(name, 1e9), used(pid) - before)
    return found


async def other_mail(directory: Path) -> None:
    """How long other mail waits, with the relay as a process of its own."""
    async with sink_process() as hop, site(directory, hop) as made, relay_process(made) as relay:
        for what in LOADS:
            found = await waits(relay.addresses["outgoing"], what)
            middle, slowest = found[len(found) // 2] * 1000, found[-1] * 1000
            say(f"beside {what:<12} {len(found):5} mails waited {middle:5.0f} ms, the slowest {slowest:5.0f} ms")


async def each_kind(directory: Path, names: Sequence[str], sizes: Sequence[int]) -> None:
    """What each kind costs, as a multiple of what a plain mail of its size does."""
    async with ExactSink() as sink, site(directory, sink.address) as made, relay_process(made) as relay:
        address, pid = relay.addresses["outgoing"], relay.process.pid
        for size in sizes:
            await costs(pid, address, {"warm": plain(size)}, 3)
            messages = {name: MAKERS[name](size) for name in names}
            ratios = []
            for name, message in messages.items():
                compared = {"body": plain(len(message)), "both": alike(message)}
                usual = await costs(pid, address, compared, TIMES[size])
                sink.arrived.clear()
                slow = (await costs(pid, address, {name: message}, TIMES[size]))[name]
                ratios.append((slow / usual["both"], slow / usual["body"], slow, name, bool(sink.arrived)))
            say("  octets  times a plain mail, a short header")
            for *factors, took, name, left in sorted(ratios, reverse=True):
                beside = " ".join([f"{factor:20.2f}" for factor in factors])
                say(f"{size:8} {beside} {took * 1000:7.1f} ms {'' if left else '(refused) '}{name}")


async def loop_held(directory: Path) -> None:
    """How long the event loop of the relay works on one thing, with all of it at once."""
    async with ExactSink() as sink, site(directory, sink.address) as made, app.running(made.config) as addresses:
        with loop_clock() as clock:
            await send(addresses["outgoing"], load())
        say(f"the loop was held for {clock.slowest * 1000:.0f} ms at most\n{clock.where}")


async def main() -> None:
    """Everything, or what was asked for."""
    parser = argparse.ArgumentParser(prog="python -m tests.system.slow_mail", description=__doc__)
    parser.add_argument("--kind", action="append", help="only kinds (MAKERS) that have this in their names")
    parser.add_argument("--small", action="store_true", help="no mails of 8 MB")
    parser.add_argument("--sink", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--send", choices=LOADS, help=argparse.SUPPRESS)
    parser.add_argument("--to", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.sink:
        async with BenchSink() as sink:
            say(sink.port)
            await asyncio.Event().wait()
    if arguments.send:
        host, _, port = arguments.to.rpartition(":")
        messages = LOADS[arguments.send]()
        say("ready")
        for _ in range(ROUNDS):
            await send(TCPAddress(host, int(port)), messages)
        return
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.CRITICAL))
    names = [name for name in MAKERS if not arguments.kind or any(each in name for each in arguments.kind)]
    say(f"Python {platform.python_version()}; {TARGETS}")
    for part in (other_mail, loop_held):
        if not arguments.kind:
            with tempfile.TemporaryDirectory() as directory:
                await part(Path(directory))
    with tempfile.TemporaryDirectory() as directory:
        await each_kind(Path(directory), names, [SMALL] if arguments.small else [SMALL, LARGE])


if __name__ == "__main__":
    sys.exit(asyncio.run(main()))
