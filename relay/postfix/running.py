"""Processes of a running Postfix that started before its files changed, and still use the former settings.
Standard: proc(5); smtpd(8), pickup(8) and qmqpd(8) read settings only when they start, and can run for hours.
"""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from relay.files import permissions
from relay.files.stamps import Stamps
from relay.postfix.flow import MailFlow
from relay.postfix.settings import PostfixFault, PostfixSettings

RESTART = "restart Postfix (`systemctl restart postfix`; without systemd `postfix stop; postfix start`)"
_PPID, _STARTTIME = 1, 19
"""Fields of /proc/PID/stat, counted after the name."""
_TAKES_MAIL_IN = ("pickup", "qmqpd", "smtpd")


def master_file(settings: PostfixSettings) -> Path:
    """The file that master(8) writes at each start of Postfix, but at no reload."""
    return Path(settings.value("queue_directory"), "pid", "master.pid")


def not_started_since(stamps: Stamps, master: Path) -> str:
    """Why a Postfix may still use former contents of these files, "" if it was started after they changed. Blocks.

    A reload does not count: connected clients keep the former settings, and no file shows a reload's time. The time of
    change (ctime) counts: a file restored from a backup has its old modification time.
    """
    changed = max((stamp[1] for stamp in stamps.values() if isinstance(stamp, tuple)), default=0)
    try:
        started = master.stat().st_mtime_ns
    except OSError as error:
        unseen = permissions.cause(master, error, "")
        return f"the files are right now, and whether Postfix was restarted since cannot be seen: {unseen}"
    if started > changed:
        return ""
    return f"the files are right now, and Postfix was not restarted since they were changed: {RESTART}"


async def by_former_settings(flow: MailFlow) -> list[PostfixFault]:
    """Processes of this Postfix that accept mail and started before main.cf or master.cf changed."""
    directory = flow.settings.directory
    older = await asyncio.to_thread(_older, directory, Path(flow.settings.value("queue_directory")))
    text = (
        "has run since before main.cf or master.cf was changed: what it takes in goes by the former settings, past "
        "the relay"
    )
    places = (f"{name} of {directory}, process {', '.join(map(str, older[name]))}" for name in sorted(older))
    return [PostfixFault("connected-before", where, text, RESTART) for where in places]


def _older(directory: Path, queue: Path) -> dict[str, list[int]]:
    """The processes that started before the last change of the files, by program. Blocks."""
    try:
        master = int((queue / "pid" / "master.pid").read_text())
        changed = max((directory / name).stat().st_mtime for name in ("main.cf", "master.cf"))
    except (OSError, ValueError):
        return {}
    older: dict[str, list[int]] = {}
    for name, pid, started in _children(master):
        if started < changed:
            older.setdefault(name, []).append(pid)
    return older


def _children(master: int) -> Iterator[tuple[str, int, float]]:
    """Children of a process that accept mail: program, PID, and start in seconds since the epoch."""
    booted = time.time() - time.clock_gettime(time.CLOCK_BOOTTIME)
    ticks = os.sysconf("SC_CLK_TCK")
    for process in Path("/proc").iterdir():
        if not process.name.isdigit():
            continue
        with suppress(OSError, ValueError, IndexError):  # it has ended
            _, _, said = (process / "stat").read_text().partition(" (")
            name, _, fields = said.rpartition(") ")
            if name in _TAKES_MAIL_IN and int(fields.split()[_PPID]) == master:
                yield name, int(process.name), booted + int(fields.split()[_STARTTIME]) / ticks
