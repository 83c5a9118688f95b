"""What the service manager hears from a relay, and how often.
Standard: sd_notify(3), sd_watchdog_enabled(3).
"""

from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest
from structlog.testing import capture_logs

from relay.runtime import notify


@pytest.fixture(params=["file", "abstract"])
def manager(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[socket.socket]:
    """Where systemd listens."""
    monkeypatch.chdir(tmp_path)  # a socket's name has little room
    name = "notify" if request.param == "file" else f"@qumail-{os.getpid()}-{tmp_path.name}"
    monkeypatch.setenv("NOTIFY_SOCKET", name)
    with closing(socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)) as server:
        server.bind(name.replace("@", "\0"))
        server.setblocking(False)
        yield server


def test_the_manager_hears_each_state(manager: socket.socket) -> None:
    for state in (notify.READY, notify.ALIVE, notify.STOPPING):
        notify.notify(state)
        assert manager.recv(100) == state.encode()


def test_without_a_manager_nothing_is_said_and_nothing_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("NOTIFY_SOCKET", raising=False)
    with capture_logs() as logs:
        notify.notify(notify.READY)
    assert logs == []


@pytest.mark.parametrize("name", ["nowhere/notify", "x" * 200, "@" + "x" * 200, "no\udcffthing"])
def test_a_manager_that_cannot_be_told_stops_no_relay(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NOTIFY_SOCKET", name)
    with capture_logs() as logs:
        notify.notify(notify.READY)
    assert [each["event"] for each in logs] == ["service_manager_not_told"]


def test_a_manager_that_does_not_read_holds_nobody(manager: socket.socket) -> None:
    with capture_logs() as logs:
        while not logs:
            notify.notify(notify.ALIVE)
    assert logs[0]["event"] == "service_manager_not_told"


@pytest.mark.parametrize(
    ("environment", "seconds"),
    [
        ({}, None),
        ({"WATCHDOG_USEC": "60000000"}, 30.0),
        ({"WATCHDOG_USEC": "60000000", "WATCHDOG_PID": str(os.getpid())}, 30.0),
        ({"WATCHDOG_USEC": "60000000", "WATCHDOG_PID": "1"}, None),  # it waits for another process
        ({"WATCHDOG_USEC": "0"}, None),
        ({"WATCHDOG_USEC": ""}, None),
        ({"WATCHDOG_USEC": "-5"}, None),
        ({"WATCHDOG_USEC": "soon"}, None),
    ],
)
def test_a_sign_of_life_comes_twice_in_the_time_that_the_manager_waits(
    environment: dict[str, str], seconds: float | None
) -> None:
    assert notify.watchdog_seconds(environment) == seconds


async def test_signs_of_life_come_from_the_event_loop(manager: socket.socket, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WATCHDOG_USEC", "2000")
    monkeypatch.delenv("WATCHDOG_PID", raising=False)
    living = asyncio.create_task(notify.stay_alive())
    loop = asyncio.get_running_loop()
    for _ in range(3):
        assert await loop.sock_recv(manager, 100) == b"WATCHDOG=1"
    living.cancel()


async def test_without_a_watchdog_there_is_no_sign_of_life(
    manager: socket.socket, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("WATCHDOG_USEC", raising=False)
    await notify.stay_alive()
    with pytest.raises(BlockingIOError):
        manager.recv(100)
