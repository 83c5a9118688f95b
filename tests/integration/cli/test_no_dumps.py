"""What is in a relay's memory does not come out of it by a core dump or by a look at the process.
Standard: proc(5), of which the kernel gives everything that could be read to root where a process is not dumpable.
"""

from __future__ import annotations

import asyncio
import ctypes
import os
import resource
import subprocess
import sys
from pathlib import Path

import pytest

from relay.errors import ConfigError
from relay.kme import DevelopmentKMEs
from relay.runtime.prctl import forbid_core_dumps
from tests.testlib.sink import Sink
from tests.testlib.sites import make_site, relay_process

linux = pytest.mark.skipif(sys.platform != "linux", reason="only Linux has PR_SET_DUMPABLE and /proc as we know it")
OTHER_GROUP = 65534
"""Whose the process is, where root runs the tests, so that it can be told who owns what is in /proc."""


def _limit(pid: int) -> list[str]:
    lines = Path(f"/proc/{pid}/limits").read_text().splitlines()
    [line] = [line for line in lines if line.startswith("Max core file size")]
    return line.split()[4:6]


def _dumpable(pid: int) -> bool:
    """Root owns the files of a process that is not, under any user."""
    found = Path(f"/proc/{pid}/environ").stat()
    return (found.st_uid, found.st_gid) != (0, 0)


def _group() -> int | None:
    return OTHER_GROUP if os.geteuid() == 0 else None


@linux
def test_the_way_to_tell_knows_a_process_that_can_be_dumped() -> None:
    with subprocess.Popen(["cat"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, group=_group()) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdin.write(b"x")
        process.stdin.flush()
        process.stdout.read(1)
        assert _dumpable(process.pid)
        process.stdin.close()


@pytest.mark.promise("Memory is not dumped")
@linux
async def test_a_relay_that_serves_leaves_no_core_and_shows_its_memory_to_nobody(
    tmp_path: Path, kmes: DevelopmentKMEs, sink: Sink
) -> None:
    site = make_site(tmp_path / "bob", "bob", state=kmes.state_dir, kme_url=kmes.urls[1], incoming=sink.address)
    async with relay_process(site, group=_group()) as relay:
        assert _limit(relay.process.pid) == ["0", "0"]
        assert not _dumpable(relay.process.pid)


@linux
async def test_so_does_every_other_command(tmp_path: Path) -> None:
    """Whatever the console script runs: many of them have keys in memory."""
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-c", WAITING, stdin=subprocess.PIPE, stdout=subprocess.PIPE, group=_group(), cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[3])},
    )  # fmt: skip
    assert process.stdout is not None
    assert await process.stdout.readline() == b"runs\n"
    assert _limit(process.pid) == ["0", "0"]
    assert not _dumpable(process.pid)
    process.kill()
    await process.wait()


WAITING = """
import sys, click
from relay import cli
@cli.cli.command("wait")
def wait():
    print("runs", flush=True)
    sys.stdin.read()
sys.argv[1:] = ["wait"]
cli.main()
"""


def test_a_system_that_forbids_it_is_an_error_and_not_overlooked(monkeypatch: pytest.MonkeyPatch) -> None:
    class Refusing:
        def prctl(self, *_: int) -> int:
            ctypes.set_errno(1)
            return -1

    monkeypatch.setattr(sys, "platform", "linux")
    monkeypatch.setattr(ctypes, "CDLL", lambda *_, **__: Refusing())
    monkeypatch.setattr(resource, "getrlimit", lambda _: (0, 0))
    with pytest.raises(ConfigError, match="PR_SET_DUMPABLE"):
        forbid_core_dumps()


def test_where_the_limit_is_0_already_it_is_not_set_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """The systemd unit sets it, and its sandbox may forbid the call."""
    monkeypatch.setattr(sys, "platform", "other")
    monkeypatch.setattr(resource, "getrlimit", lambda _: (0, 0))
    monkeypatch.setattr(resource, "setrlimit", lambda *_: pytest.fail("set again"))
    forbid_core_dumps()
