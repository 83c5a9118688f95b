"""A relay whose listening sockets the service manager holds: it takes them over, and leaves the ports to nobody else.
Standard: sd_listen_fds(3), played by a program that runs the relay with these descriptors; one process and two workers.
"""

from __future__ import annotations

import asyncio
import errno
import re
import signal
import socket
import sys
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, suppress
from pathlib import Path

import pytest

from relay.config import TCPAddress
from relay.kme import DevelopmentKMEs
from tests.testlib import mails
from tests.testlib.descriptors import open_at
from tests.testlib.sink import Sink
from tests.testlib.sites import Site, make_site
from tests.testlib.submit import submit

MANAGER = """
import fcntl, os, sys
passed = [int(each) for each in sys.argv[1].split()]
given = [fcntl.fcntl(each, fcntl.F_DUPFD_CLOEXEC, 100) for each in passed]
for each in passed:
    os.set_inheritable(each, False)
for number, each in enumerate(given, start=3):
    os.dup2(each, number)
os.environ |= {"LISTEN_PID": str(os.getpid()), "LISTEN_FDS": str(len(given)), "LISTEN_FDNAMES": ":".join("x" * len(given))}
os.execv(sys.executable, [sys.executable, "-P", "-m", "relay", *sys.argv[2:]])
"""


@pytest.fixture(params=["one process", "two workers"])
def site(tmp_path: Path, kmes: DevelopmentKMEs, sink: Sink, request: pytest.FixtureRequest) -> Site:
    made = make_site(tmp_path / "alice", "alice", state=kmes.state_dir, kme_url=kmes.urls[0], outgoing=sink.address)
    made.set_workers(["one process", "two workers"].index(request.param) + 1)
    return made


one_process = pytest.mark.parametrize("site", ["one process"], indirect=True)
"""For what is settled before there are workers."""


def held(host: str = "127.0.0.1") -> socket.socket:
    return socket.create_server((host, 0), backlog=100)


def address_of(listening: socket.socket) -> TCPAddress:
    host, port, *_ = listening.getsockname()
    return TCPAddress(host, port)


def listen_at(site: Site, listening: socket.socket) -> None:
    text = site.config_file.read_text()
    assert 'listen = "127.0.0.1:0"' in text
    site.config_file.write_text(text.replace('listen = "127.0.0.1:0"', f'listen = "{address_of(listening)}"', 1))


@asynccontextmanager
async def started(site: Site, sockets: Sequence[socket.socket]) -> AsyncIterator[asyncio.subprocess.Process]:
    """A relay that is started with these sockets; its log is in relay.log."""
    descriptors = [each.fileno() for each in sockets]
    with (site.directory / "relay.log").open("ab") as log:
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-P", "-c", MANAGER, " ".join(map(str, descriptors)),
            "serve", "--config", str(site.config_file), "--ready-file", str(site.directory / "ready"),
            pass_fds=descriptors, stderr=log,
        )  # fmt: skip
    try:
        yield process
    finally:
        if process.returncode is None:
            process.terminate()
        await process.wait()


async def serves(site: Site, process: asyncio.subprocess.Process) -> None:
    ready = site.directory / "ready"
    async with asyncio.timeout(60):
        while not ready.exists():
            assert process.returncode is None, (site.directory / "relay.log").read_text()
            await asyncio.sleep(0.02)
    ready.unlink()


def family(pid: int) -> list[int]:
    """A process and all below it, as far as they have not ended."""
    try:
        children = [int(each) for each in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    except OSError:
        return []
    return [pid, *(each for child in children for each in family(child))]


def who_has(listening: socket.socket, pids: Sequence[int]) -> set[str]:
    """The names of the processes that have this socket open."""
    link = str(Path(f"/proc/self/fd/{listening.fileno()}").readlink())
    have = set()
    for pid in pids:
        with suppress(OSError):  # it has ended
            if link in open_at(pid):
                have.add(Path(f"/proc/{pid}/comm").read_text().strip())
    return have


async def until_only_they_have(wanted: set[str], listening: socket.socket, pid: int) -> None:
    """Some seconds: one that was just forked closes it a moment later."""
    async with asyncio.timeout(20):
        while (have := who_has(listening, family(pid))) != wanted:
            assert have >= wanted, have
            await asyncio.sleep(0.1)


@pytest.mark.promise("No local user gets Postfix's mail at a port of the relay")
@pytest.mark.parametrize(
    ("site", "end"), [("one process", signal.SIGTERM), ("two workers", signal.SIGKILL)], indirect=["site"]
)
async def test_who_connects_while_the_relay_is_away_is_served_by_the_next_one(
    site: Site, sink: Sink, end: signal.Signals
) -> None:
    with held() as listening:
        listen_at(site, listening)
        async with started(site, [listening]) as process:
            await serves(site, process)
            assert (await submit(address_of(listening), mails.plain())).code == 250
            processes = family(process.pid)
            process.send_signal(end)
            await process.wait()
        async with asyncio.timeout(60):  # a worker that is about to end may still take a connection
            while who_has(listening, processes):
                await asyncio.sleep(0.02)
        waiting = asyncio.create_task(submit(address_of(listening), mails.plain("second")))
        with pytest.raises(OSError) as refused, socket.socket() as another:
            another.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            another.bind(address_of(listening))
            another.listen()
        assert refused.value.errno == errno.EADDRINUSE
        async with started(site, [listening]) as process:
            assert (await waiting).code == 250
    assert len(sink.got) == 2


async def test_no_child_that_does_not_serve_has_them_also_after_an_upgrade(site: Site, sink: Sink) -> None:
    """The second process outlives the relay; workers are exchanged at SIGUSR1."""
    workers = site.config.limits.workers
    serving = {"relay worker 1", "relay worker 2"} if workers > 1 else set()
    log = site.directory / "relay.log"
    with held() as listening:
        listen_at(site, listening)
        async with started(site, [listening]) as process:
            await serves(site, process)
            first = {Path(f"/proc/{process.pid}/comm").read_text().strip()}
            await until_only_they_have(first | serving, listening, process.pid)
            if workers > 1:
                process.send_signal(signal.SIGUSR1)
                async with asyncio.timeout(60):
                    while "workers_started_anew" not in log.read_text():
                        await asyncio.sleep(0.05)
                await until_only_they_have(first | serving, listening, process.pid)
                _, worker, *_ = family(process.pid)
                assert b"LISTEN_FDS" not in Path(f"/proc/{worker}/environ").read_bytes()
            assert (await submit(address_of(listening), mails.plain())).code == 250


@one_process
async def test_an_address_of_ipv6_is_recognised(site: Site, sink: Sink) -> None:
    try:
        listening = socket.create_server(("::1", 0), family=socket.AF_INET6, backlog=100)
    except OSError:
        pytest.skip("no IPv6 here")
    with listening:
        listen_at(site, listening)
        async with started(site, [listening]) as process:
            await serves(site, process)
            assert (await submit(address_of(listening), mails.plain())).code == 250


@pytest.mark.promise("No local user gets Postfix's mail at a port of the relay")
@pytest.mark.parametrize(
    ("given", "why"),
    [
        ("another", r"outgoing.listen: systemd passes no socket for 127.0.0.1:\d+, but others"),
        ("one too many", r"systemd passes sockets that no setting is for: 127.0.0.1:\d+"),
        ("a datagram", "which is no listening TCP socket"),
    ],
)
@one_process
async def test_sockets_that_are_not_those_of_relay_toml_are_an_error_that_says_what_to_type(
    site: Site, kmes: DevelopmentKMEs, given: str, why: str
) -> None:
    with held() as right, held() as wrong, socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as datagram:
        listen_at(site, right)
        sockets = {"another": [wrong], "one too many": [right, wrong], "a datagram": [right, datagram]}[given]
        async with started(site, sockets) as process:
            assert await process.wait() == 1
    said = (site.directory / "relay.log").read_text()
    assert re.search(why, said), said
    assert "as root: qumail-relay setup --hold-ports" in said
    assert kmes.link.issued.total() == 0


@one_process
async def test_sockets_of_another_process_are_not_taken(
    site: Site, sink: Sink, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The variables are inherited, the descriptors need not be: 3 is something else here."""
    with held() as listening:
        listen_at(site, listening)
    monkeypatch.setattr(sys.modules[__name__], "MANAGER", MANAGER.replace("str(os.getpid())", "'1'"))
    async with started(site, []) as process:
        await serves(site, process)
        text = site.config_file.read_text()
        port = int(text.split('listen = "127.0.0.1:')[1].split('"')[0])
        assert (await submit(TCPAddress("127.0.0.1", port), mails.plain())).code == 250
