"""Periodic measurements of each process, and of the site by the first one, written to the board.
No mail and no response waits for them; failures are logged and retried.
"""

from __future__ import annotations

import asyncio
import math
import os
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import suppress
from pathlib import Path

import structlog
from cryptography import x509

from relay.counting import metrics
from relay.files.stamps import read_regular
from relay.key_receiver import SPOOL
from relay.keys import report
from relay.levels import SMIME
from relay.runtime.release import installed
from relay.status import Watched
from relay.store.sent import SENT

log = structlog.get_logger(__name__)

MEASURE_S = 2.0
LAG_S = 0.25
SITE_S = 30.0
_PAGE = os.sysconf("SC_PAGE_SIZE")


async def keep_lag(watched: Watched) -> None:
    """Measures the lag of the event loop, until cancelled."""
    lag = watched.board.spread(metrics.LOOP_LAG)
    loop = asyncio.get_running_loop()
    while True:
        due = loop.time() + LAG_S
        await asyncio.sleep(LAG_S)
        lag.observe(max(0.0, loop.time() - due))


async def keep_own(watched: Watched) -> None:
    """Measures this process, and updates its knowledge of the audit record's end, until cancelled."""
    board = watched.board
    board.set(metrics.STARTED, to=time.time())
    board.set(metrics.BUILD, installed().version, to=1)
    board.set(metrics.MESSAGE_MEMORY_LIMIT, to=watched.budget.size)

    async def look() -> None:
        board.set(metrics.RESIDENT, to=_resident())
        board.set(metrics.MESSAGE_MEMORY, to=watched.budget.used)
        report.show(watched.keys, board)
        await asyncio.to_thread(watched.audit.chain.look)

    await _periodically("process", MEASURE_S, look)


async def keep_forecasts(watched: Watched) -> None:
    """Forecasts of keys over all processes, until cancelled; runs in one process."""

    async def look() -> None:
        watched.board.set(metrics.WORKERS, to=watched.board.processes)
        report.show_forecasts(watched.keys, watched.board, await watched.board.totals())

    await _periodically("keys", MEASURE_S, look)


async def keep_site(watched: Watched) -> None:
    """Measures certificates and disk usage, until cancelled; runs in one process."""
    reported: set[tuple[str, str]] = set()

    async def look() -> None:
        nonlocal reported
        reported = await _site(watched, reported)

    await _periodically("site", SITE_S, look)


async def _periodically(name: str, seconds: float, look: Callable[[], Awaitable[None]]) -> None:
    """Calls `look` at this interval; failures are logged, since stale values would look healthy."""
    while True:
        try:
            await look()
        except Exception as error:  # noqa: BLE001 - the next call may succeed
            log.warning("not_measured", what=name, cause=f"{type(error).__name__}: {error}")
        await asyncio.sleep(seconds)


async def _site(watched: Watched, reported: set[tuple[str, str]]) -> set[tuple[str, str]]:
    """Updates certificate expiry; `reported`, and the result, are those on the board: peers may be removed."""
    board, directory = watched.board, watched.config.state_directory
    expiry = await asyncio.to_thread(lambda: dict(_certificates(watched)))
    for of, name in reported - expiry.keys():
        board.set(metrics.CERTIFICATE, of, name, to=math.nan)
    for (of, name), ends in expiry.items():
        board.set(metrics.CERTIFICATE, of, name, to=ends)
    for journal, where in (("keys", SPOOL), ("sent", SENT)):
        board.set(metrics.JOURNAL_BYTES, journal, to=await asyncio.to_thread(_octets, directory / where))
    board.set(metrics.WAITING, to=await watched.store.deliveries.waiting())
    board.set(metrics.AUDIT_WRITABLE, to=not await asyncio.to_thread(watched.audit.why_not_writable))
    return set(expiry)


def _certificates(watched: Watched) -> Iterator[tuple[tuple[str, str], float]]:
    """The expiry of each certificate; blocks."""
    config, sites = watched.config, watched.known()
    for pool in (pool for group in watched.keys.groups.values() for pool in group.pools):
        with suppress(OSError, ValueError):  # unreadable files are reported elsewhere
            for end in sorted(pool.client.transport.tls.ends(), key=lambda each: each.until, reverse=True):
                yield (end.of, pool.client.name), end.until.timestamp()
    if sites.identity is not None:
        for role, certificate in sites.identity.certificates.items():
            yield ("site", str(role)), certificate.not_valid_after_utc.timestamp()
        yield ("site", "ca"), sites.identity.ca.not_valid_after_utc.timestamp()
    for name, peer in sites.certificates.items():
        all_of_it = [peer.ca, *peer.certificates.values()]
        yield ("peer", name), min(each.not_valid_after_utc for each in all_of_it).timestamp()
    for name, until in watched.smime_ends().items():
        yield (SMIME, name), until.timestamp()
    for of, table in (("submission", config.submission), ("status", config.status)):
        if table is not None and table.certificate is not None:
            with suppress(OSError, ValueError):  # logged when it was read for TLS
                [leaf, *_] = x509.load_pem_x509_certificates(read_regular(table.certificate))
                yield (of, ""), leaf.not_valid_after_utc.timestamp()


def _octets(directory: Path) -> int:
    """The size of all files there, in bytes; files deleted meanwhile are skipped."""
    total = 0
    with suppress(FileNotFoundError), os.scandir(directory) as entries:
        for each in entries:
            with suppress(FileNotFoundError):
                total += each.stat().st_size
    return total


def _resident() -> int:
    """Resident memory, in bytes; proc(5)."""
    return int(Path("/proc/self/statm").read_bytes().split()[1]) * _PAGE
