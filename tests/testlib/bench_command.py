"""`python -m tests.bench` as a process whose relays, key servers and commands are forked, as in relay_command.py.
Standard: what it measures says nothing of speed; the sites have identities that were made already.
"""

from __future__ import annotations

import asyncio
import shutil
import tempfile
from asyncio.subprocess import DEVNULL, Process
from pathlib import Path
from typing import Any
from unittest.mock import patch

from relay.identity import Identity, load_identity
from tests.bench.servers import Servers
from tests.testlib import relay_command
from tests.testlib.identities import Identities
from tests.testlib.relay_command import RelayCommand

_execute = asyncio.create_subprocess_exec


async def run_bench(directory: Path, identities: Identities, *options: str) -> tuple[int, str, bytes]:
    """Exit status, standard error and standard output; temporary files lie under `directory`."""
    return await relay_command.run(
        environment={"TMPDIR": str(directory)},
        before=(
            "from tests.bench.__main__ import bench; from tests.testlib.bench_command import prepare; "
            f"prepare({str(identities.alice.directory.parent)!r}); bench({options!r})"
        ),
    )  # fmt: skip


def prepare(people: str) -> None:
    """What the process does first; identities are copied from below `people`."""

    def copied(servers: Servers, site: str) -> Identity:
        shutil.copytree(Path(people) / site, servers.directory / f"{site}-identity")
        return load_identity(servers.directory / f"{site}-identity")

    tempfile.tempdir = None  # the process that was forked has another one
    patch.object(Servers, "_identity", copied).start()
    patch.object(asyncio, "create_subprocess_exec", _forked).start()


async def _forked(*command: str, **how: Any) -> Process | RelayCommand:
    """asyncio.create_subprocess_exec, but for `python -m relay` whose output nobody reads through a pipe."""
    stdout, stderr = how.get("stdout"), how.get("stderr")
    if command[1:3] != ("-m", "relay") or {stdout, stderr} & {asyncio.subprocess.PIPE}:
        return await _execute(*command, **how)
    stdout, stderr = (None if each == DEVNULL else each for each in (stdout, stderr))
    return await relay_command.start(*command[3:], stdout=stdout, stderr=stderr)
