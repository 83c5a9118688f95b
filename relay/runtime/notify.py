"""Reports the relay's state to the service manager: ready, alive, stopping.
Standard: sd_notify(3); without NOTIFY_SOCKET nothing is reported, and nothing else changes.
"""

from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import Mapping

import structlog

log = structlog.get_logger(__name__)

READY = "READY=1"
STOPPING = "STOPPING=1"
ALIVE = "WATCHDOG=1"


def notify(state: str) -> None:
    """Sends a state to the service manager, if there is one. Never blocks, never fails."""
    address = os.environ.get("NOTIFY_SOCKET", "")
    if not address:
        return
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as client:
            client.setblocking(False)
            # @ stands for NUL: an abstract socket.
            client.sendto(state.encode(), "\0" + address[1:] if address[0] == "@" else address)
    except (OSError, ValueError) as error:
        log.warning("service_manager_not_told", state=state, cause=str(error))


def without_manager(environment: Mapping[str, str]) -> dict[str, str]:
    """The environment without the service manager's socket, for child processes."""
    return {name: value for name, value in environment.items() if name not in ("NOTIFY_SOCKET", "WATCHDOG_USEC")}


def watchdog_seconds(environment: Mapping[str, str]) -> float | None:
    """Interval of ALIVE: half the watchdog timeout; None without a watchdog."""
    text = environment.get("WATCHDOG_USEC", "")
    if not text.isascii() or not text.isdigit() or int(text) == 0:
        return None
    if environment.get("WATCHDOG_PID", str(os.getpid())) != str(os.getpid()):
        return None
    return int(text) / 1_000_000 / 2


async def stay_alive() -> None:
    """Sends ALIVE from the event loop until cancelled, so that a relay whose loop hangs is restarted."""
    seconds = watchdog_seconds(os.environ)
    while seconds is not None:
        notify(ALIVE)
        await asyncio.sleep(seconds)
