"""What a Postfix that runs does otherwise than its files say: clients that connected before these were changed.
Standard: proc(5); smtpd(8) reads its settings when it starts, and serves a client for as long as that stays.
"""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from relay.postfix.settings import PostfixFault, command

RESTART = "restart Postfix (`systemctl restart postfix`; without systemd `postfix stop; postfix start`)"
_PPID, _STARTTIME = 1, 19
"""Fields of /proc/PID/stat, counted behind the name."""


async def by_former_settings(directory: Path) -> list[PostfixFault]:
    """That smtpd processes of this Postfix have run since before main.cf or master.cf was changed; [] for none.

    Raises ConfigError where postconf does not tell where its queue is.
    """
    queue, _ = await command("postconf", directory, "-hx", "queue_directory")
    older = await asyncio.to_thread(_older, directory, Path(queue.strip()))
    if not older:
        return []
    text = (
        "has run since before main.cf or master.cf was changed: its client's mail goes by the former settings, past "
        "the relay"
    )
    where = f"smtpd of {directory}, process {', '.join(map(str, older))}"
    return [PostfixFault("connected-before", where, text, RESTART)]


def _older(directory: Path, queue: Path) -> list[int]:
    """The smtpd processes that began before a file was changed last. Blocks."""
    try:
        master = int((queue / "pid" / "master.pid").read_text())
        changed = max((directory / name).stat().st_mtime for name in ("main.cf", "master.cf"))
    except (OSError, ValueError):
        return []
    return sorted(pid for pid, started in _smtpd_of(master) if started < changed)


def _smtpd_of(master: int) -> Iterator[tuple[int, float]]:
    """Each smtpd process that this one has started: its number, and when it began, in seconds since the epoch."""
    booted = time.time() - time.clock_gettime(time.CLOCK_BOOTTIME)
    ticks = os.sysconf("SC_CLK_TCK")
    for process in Path("/proc").iterdir():
        if not process.name.isdigit():
            continue
        with suppress(OSError, ValueError, IndexError):  # it has ended meanwhile
            _, _, said = (process / "stat").read_text().partition(" (")
            name, _, fields = said.rpartition(") ")
            if name == "smtpd" and int(fields.split()[_PPID]) == master:
                yield int(process.name), booted + int(fields.split()[_STARTTIME]) / ticks
