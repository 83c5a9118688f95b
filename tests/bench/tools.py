"""What sends the mail of a round and what takes it in the end: Postfix's smtp-source and smtp-sink, which cost least.
Where they are not installed, our own client and server do (traffic.py, sink.py), which bound what can be measured.
"""

from __future__ import annotations

import asyncio
import itertools
import os
import re
import shutil
import time
from asyncio.subprocess import DEVNULL, PIPE, Process
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

from tests.bench.processes import listens, process
from tests.bench.sink import BenchSink
from tests.bench.traffic import TIMEOUT_S, TOO_SLOW, Handover, mails_of, send

_PATH = f"{os.environ.get('PATH', '')}:/usr/sbin:/usr/lib/postfix/sbin"
_SOURCE, _SINK = shutil.which("smtp-source", path=_PATH), shutil.which("smtp-sink", path=_PATH)
_MESSAGES = re.compile(rb"mesg=(\d+)\r")
HEADER_OCTETS = 120
"""Approximate size of the header that smtp-source writes, in bytes."""


def why_not(need: str) -> str:
    """Why something that a way needs is not there, in words; "" where it is."""
    match need:
        case "smtp-source" if not (_SOURCE and _SINK):
            return "smtp-source and smtp-sink are not installed (they come with Postfix)"
        case "Postfix" if shutil.which("postfix", path=_PATH) is None:
            return "Postfix is not installed"
        case "Dovecot" if shutil.which("dovecot", path=_PATH) is None:
            return "Dovecot is not installed"
        case "Postfix" | "Dovecot" if os.geteuid() != 0:
            return f"only root can start a {need} of its own"
    return ""


async def send_new(port: int, size: int, number: int, *, connections: int, recipient: str, lmtp: bool) -> Handover:
    """Mails of `size` bytes that differ, `number` of them, by smtp-source where it is there."""
    if not (_SOURCE and _SINK):
        mails = itertools.islice(mails_of(size), number)
        return await send(port, mails, connections=connections, recipient=recipient, lmtp=lmtp)
    options = ("-s", connections, "-m", number, "-l", size - HEADER_OCTETS, "-f", "ann@alice.example", "-t", recipient)
    command = [_SOURCE, *(["-L"] if lmtp else []), *map(str, options), f"127.0.0.1:{port}"]
    started = time.perf_counter()
    try:
        async with asyncio.timeout(TIMEOUT_S), process(*command, stdout=DEVNULL, stderr=PIPE) as source:
            _, complaint = await source.communicate()
    except TimeoutError:
        return Handover(fault=TOO_SLOW)
    if source.returncode:
        return Handover(fault=complaint.decode(errors="replace").strip() or "smtp-source failed")
    return Handover(number, time.perf_counter() - started)


@asynccontextmanager
async def taking(port: int) -> AsyncIterator[Callable[[], int]]:
    """Takes mail at a local port, by smtp-sink where it is there; returns a function that says how many have come so
    far.
    """
    if not (_SOURCE and _SINK):
        async with BenchSink(port) as sink:
            totals = itertools.accumulate(sink.count().mails for _ in itertools.count())
            yield lambda: next(totals)
        return
    user = ["-u", "nobody"] if os.geteuid() == 0 else []
    async with process(_SINK, *user, "-c", f"127.0.0.1:{port}", "512", stdout=PIPE, stderr=DEVNULL) as started:
        counter = _Counter()
        reading = asyncio.create_task(counter.read(started))
        await listens(port, "smtp-sink")
        try:
            yield lambda: counter.mails
        finally:
            reading.cancel()


class _Counter:
    """Reads what smtp-sink says of the mails that have come."""

    mails = 0

    async def read(self, sink: Process) -> None:
        assert sink.stdout is not None
        rest = b""
        while said := await sink.stdout.read(65_536):
            if matches := _MESSAGES.findall(said := rest + said):
                self.mails = int(matches[-1])
            rest = said[said.rfind(b"\r") + 1 :]
