"""A relay with several workers: its processes, what they log, and mails that are told apart.
Standard: by the relay's own log, as an administrator would.
"""

from __future__ import annotations

import asyncio
import json
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from tests.testlib import mails
from tests.testlib.sink import Sink
from tests.testlib.sites import RelayProcess, Site, relay_process

POLICIES = {"default.toml": 'levels = ["aes"]\n'}


def numbered(number: int) -> bytes:
    return mails.plain().replace(b"<1@alice.example>", b"<%d.worker@alice.example>" % number)


def how_often(sink: Sink) -> Counter[bytes]:
    return Counter(line for got in sink.got for line in got.message.split(b"\r\n") if b".worker@" in line)


def events(relay: RelayProcess, name: str) -> list[dict[str, object]]:
    found = (json.loads(line) for line in relay.log.splitlines() if line.startswith("{"))
    return [each for each in found if each["event"] == name]


async def until(relay: RelayProcess, name: str, number: int = 1) -> list[dict[str, object]]:
    async with asyncio.timeout(60):
        while len(found := events(relay, name)) < number:
            assert relay.process.returncode is None, relay.log
            await asyncio.sleep(0.02)
    return found


def pids(relay: RelayProcess) -> dict[int, int]:
    """The process of each worker."""
    return {int(str(each["worker"])): int(str(each["process"])) for each in events(relay, "worker_started")}


@asynccontextmanager
async def workers(site: Site, number: int, *, before: str = "") -> AsyncIterator[RelayProcess]:
    text = site.config_file.read_text()
    if "[limits]" not in text:
        site.config_file.write_text(f"{text}\n[limits]\nworkers = {number}\n")
    async with relay_process(site, before=before) as relay:
        yield relay
