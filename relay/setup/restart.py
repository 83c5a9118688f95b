"""Restarts Postfix if it runs, so that all of it uses the new configuration.
Standard: postfix(1). After a mere `reload`, a connected client keeps the former configuration until it disconnects.

A content filter such as amavisd keeps its connection for the next mail, which would bypass the relay.
"""

from __future__ import annotations

import asyncio
import re
from pathlib import Path

from relay.errors import ConfigError
from relay.files import commands
from relay.postfix.settings import command

PAUSES_S = (0.2, 0.5, 1.0, 2.0, 4.0)
"""Pauses after failed starts, in seconds."""
_UNIT = re.compile(r"/(postfix[^/\s]*\.service)$", re.MULTILINE)


async def restarted(directory: Path) -> bool:
    """Restarts Postfix if it runs; returns whether it does. Raises ConfigError."""
    if not await runs(directory):
        return False
    if unit := await _unit(directory):
        await command("systemctl", None, "restart", unit)
    else:
        await command("postfix", directory, "stop")
        await _start(directory)
    return True


async def _start(directory: Path) -> None:
    """Starts Postfix, with retries: former processes may still hold the ports. Raises ConfigError."""
    for pause in PAUSES_S:
        try:
            await command("postfix", directory, "start")
        except ConfigError as error:
            failed = error
            await asyncio.sleep(pause)
        else:
            return
    how = commands.command("postfix", "-c", directory, "start")
    raise ConfigError(f"{failed}; Postfix is stopped now. Its log says why; then: {how}") from failed


async def runs(directory: Path) -> bool:
    """Whether this Postfix runs."""
    try:
        await command("postfix", directory, "status")
    except ConfigError:
        return False
    return True


async def _unit(directory: Path) -> str:
    """Postfix's systemd unit; "" if it was started by hand."""
    queue, _ = await command("postconf", directory, "-hx", "queue_directory")
    match = _UNIT.search(control_groups(Path(queue.strip(), "pid", "master.pid")))
    return match[1] if match else ""


def control_groups(pid_file: Path) -> str:
    """The control groups of the process that wrote this file, one a line (cgroups(7)); "" if there is none."""
    try:
        return Path(f"/proc/{int(pid_file.read_text())}/cgroup").read_text()
    except (OSError, ValueError):
        return ""
