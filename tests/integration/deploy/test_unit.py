"""The relay under what its unit asks for: it tells how it is, and needs no memory that is written and run.
Standard: sd_notify(3); prctl(2) PR_SET_MDWE, by which systemd has MemoryDenyWriteExecute; systemd-analyze looks at the
rest in ../postfix/test_deploy_postfix.py.
"""

from __future__ import annotations

import asyncio
import ctypes
import os
import re
import socket
import subprocess
import sys
from contextlib import closing
from pathlib import Path

import pytest

from relay.kme import DevelopmentKMEs
from tests.testlib import mails
from tests.testlib.identities import Identities
from tests.testlib.sink import Sink
from tests.testlib.sites import make_site, relay_process
from tests.testlib.submit import submit

UNIT = (Path(__file__).parents[3] / "deploy" / "qumail-relay.service").read_text()
DENY = "import ctypes; assert ctypes.CDLL(None).prctl(65, 1, 0, 0, 0) == 0"
"""PR_SET_MDWE, PR_MDWE_REFUSE_EXEC_GAIN: for this process and what it starts."""


async def test_the_manager_hears_of_start_life_and_end_in_this_order(
    tmp_path: Path, kmes: DevelopmentKMEs, sink: Sink, monkeypatch: pytest.MonkeyPatch
) -> None:
    site = make_site(tmp_path, "alice", state=kmes.state_dir, kme_url=kmes.urls[0], outgoing=sink.address)
    loop = asyncio.get_running_loop()
    with closing(socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)) as manager:
        name = f"qumail-{os.getpid()}"
        manager.bind(f"\0{name}")
        manager.setblocking(False)
        monkeypatch.setenv("NOTIFY_SOCKET", f"@{name}")
        monkeypatch.setenv("WATCHDOG_USEC", "100000")
        async with asyncio.timeout(30), relay_process(site) as relay:
            while (said := await loop.sock_recv(manager, 100)) == b"WATCHDOG=1":
                pass
            assert said == b"READY=1"
            assert "relay_serves" in relay.log
            assert await loop.sock_recv(manager, 100) == b"WATCHDOG=1"
            relay.process.terminate()
            while (said := await loop.sock_recv(manager, 100)) == b"WATCHDOG=1":
                pass
            assert said == b"STOPPING=1"
            assert await relay.process.wait() == 0


def test_the_unit_waits_for_what_the_relay_says() -> None:
    assert re.search(r"^Type=notify$", UNIT, re.MULTILINE)
    assert re.search(r"^WatchdogSec=\d+$", UNIT, re.MULTILINE)
    assert re.search(r"^MemoryDenyWriteExecute=yes$", UNIT, re.MULTILINE)


def _cannot_deny() -> bool:
    """PR_GET_MDWE: Linux before 6.3 has none."""
    return sys.platform != "linux" or bool(ctypes.CDLL(None).prctl(66, 0, 0, 0, 0) < 0)


@pytest.mark.skipif(_cannot_deny(), reason="this kernel cannot deny memory that is written and run")
async def test_mail_goes_through_at_each_level_where_no_memory_may_be_written_and_run(
    tmp_path: Path, kmes: DevelopmentKMEs, sink: Sink, wire: Sink, identities: Identities
) -> None:
    bob = make_site(
        tmp_path / "bob",
        "bob",
        state=kmes.state_dir,
        kme_url=kmes.urls[1],
        incoming=sink.address,
        identities=identities,
    )
    async with relay_process(bob, before=DENY) as incoming:
        alice = make_site(
            tmp_path / "alice",
            "alice",
            state=kmes.state_dir,
            kme_url=kmes.urls[0],
            outgoing=incoming.addresses["incoming"],
            identities=identities,
            policies={"bob.example.toml": 'levels = ["aes"]\n'},
        )
        for level in ("aes", "otp", "pqc", "rsa"):
            alice.write_policies({"bob.example.toml": f'levels = ["{level}"]\n'})
            async with relay_process(alice, before=DENY) as outgoing:
                assert (await submit(outgoing.addresses["outgoing"], mails.plain())).code == 250
    assert [got.message.endswith(mails.plain()) for got in sink.got] == [True] * 4


@pytest.mark.skipif(_cannot_deny(), reason="this kernel cannot deny memory that is written and run")
def test_the_log_stands_where_the_mail_servers_stands() -> None:
    assert re.search(r"^SyslogFacility=mail$", UNIT, re.MULTILINE)


def test_everything_can_be_loaded_where_no_memory_may_be_written_and_run() -> None:
    """What the relay stands on, submission and mailboxes included."""
    program = (
        f"{DENY}\nimport mmap, pkgutil, importlib, relay\n"
        "try: mmap.mmap(-1, 4096, prot=7)\nexcept PermissionError: print('denied')\n"
        "for each in pkgutil.walk_packages(relay.__path__, 'relay.'):\n"
        "    if each.name != 'relay.__main__': importlib.import_module(each.name)\n"
        "import argon2; argon2.PasswordHasher().verify(argon2.PasswordHasher().hash('x'), 'x')\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, "denied\n"), done.stderr
