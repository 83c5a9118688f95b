"""The process that forks workers: one that does not answer is killed, and the next worker comes from another one."""

from __future__ import annotations

import os
import shutil
import socket
from pathlib import Path

import pytest

from relay.process import fork_server
from relay.process.fork_server import ForkServer
from relay.process.worker import Worker


async def test_one_that_hangs_is_killed_and_not_asked_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fork_server, "LOAD_S", 0.05)
    sleep = shutil.which("sleep")
    assert sleep is not None
    pid = os.posix_spawn(sleep, ["sleep", "60"], os.environ)
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with theirs:
        server = ForkServer(pid, ours, Path("relay.toml"))
        with pytest.raises(TimeoutError):
            await server.start(Worker(1, 2, {}, -1, theirs.fileno(), -1, -1))
    with pytest.raises(ChildProcessError):
        os.waitpid(pid, 0)
    assert await server.status(1) is None


async def test_one_that_hangs_after_it_has_answered_is_killed_sooner(monkeypatch: pytest.MonkeyPatch) -> None:
    """It has loaded everything by then; the next worker does not come from it."""
    monkeypatch.setattr(fork_server, "LOAD_S", 600.0)
    monkeypatch.setattr(fork_server, "ANSWER_S", 0.05)
    sleep = shutil.which("sleep")
    assert sleep is not None
    pid = os.posix_spawn(sleep, ["sleep", "60"], os.environ)
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with theirs:
        server = ForkServer(pid, ours, Path("relay.toml"))
        theirs.send(b"7")
        assert await server.status(1) == 7
        with pytest.raises(TimeoutError):
            await server.start(Worker(1, 2, {}, -1, theirs.fileno(), -1, -1))
    with pytest.raises(ChildProcessError):
        os.waitpid(pid, 0)


def test_a_worker_has_its_descriptors_under_the_numbers_that_came() -> None:
    worker = Worker(2, 3, {"incoming": (5, 6), "status": (7,)}, 8, 9, 10, 11, worker_id=4, place=1)
    came = worker.renumbered(range(20, 20 + len(worker.descriptors)))
    assert came.descriptors == tuple(range(20, 20 + len(worker.descriptors)))
    assert came.sockets == {"incoming": (20, 21), "status": (22,)}
    assert (came.lock, came.number, came.worker_id, came.place) == (-1, 2, 4, 1)
