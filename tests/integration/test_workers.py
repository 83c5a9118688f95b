"""Several workers are one relay: all mail arrives once, whichever is killed, frozen or started anew, at any address.
Standard: RFC 5321 6.1; no connection is refused while a worker is started anew.
"""

from __future__ import annotations

import asyncio
import json
import os
import random
import re
import resource
import signal
import socket
import struct
import sys
from collections import Counter, defaultdict
from contextlib import AsyncExitStack, suppress
from pathlib import Path
from typing import Any

import pytest

from relay.audit.entries import LEDGER
from relay.audit.reading import records
from relay.config import TCPAddress
from relay.formats import mime
from relay.forward import stuffed
from relay.kme import DevelopmentKMEs
from relay.process import assembly
from tests.testlib import relay_command
from tests.testlib.descriptors import open_at
from tests.testlib.relay_command import run
from tests.testlib.sink import Sink
from tests.testlib.sites import RelayProcess, Site, make_site
from tests.testlib.submit import submit, talking
from tests.testlib.workers import POLICIES, events, how_often, numbered, pids, until, workers


@pytest.fixture(name="site")
def _site(tmp_path: Path, kmes: DevelopmentKMEs, sink: Sink) -> Site:
    """No key is drawn ahead of need: a worker that is frozen meanwhile would lock the others out of the store."""
    return make_site(
        tmp_path / "alice", "alice", state=kmes.state_dir, kme_url=kmes.urls[0], outgoing=sink.address,
        policies=POLICIES, kme_settings="prefetch = false",
    )  # fmt: skip


async def test_all_mail_arrives_once_and_the_keys_of_all_are_reported(site: Site, sink: Sink) -> None:
    async with workers(site, 3) as relay:
        replies = await asyncio.gather(*(submit(relay.addresses["outgoing"], numbered(each)) for each in range(30)))
        assert {reply.code for reply in replies} == {250}
        assert set(how_often(sink).values()) == {1}
        assert len(how_often(sink)) == 30
        assert set(pids(relay)) == {1, 2, 3}
        async with asyncio.timeout(60):
            while sum(row["keys_used"] for row in _levels(site.config.keys_file)) < 30:
                await asyncio.sleep(0.05)
        _, _, said = await run("keys", "status", "--json", "--config", site.config_file)
        assert sum(row["keys_used"] for row in json.loads(said)["levels"]) == 30


def _levels(report: Path) -> list[dict[str, int]]:
    found: list[dict[str, int]] = json.loads(report.read_text())["levels"] if report.exists() else []
    return found


async def test_one_mail_at_two_workers_at_once_leaves_once(site: Site, sink: Sink) -> None:
    sink.gate = asyncio.Event()
    async with workers(site, 2) as relay:
        first, second = pids(relay)[1], pids(relay)[2]
        os.kill(second, signal.SIGSTOP)
        one = asyncio.create_task(submit(relay.addresses["outgoing"], numbered(1)))
        await sink.reached.wait()
        os.kill(first, signal.SIGSTOP)
        os.kill(second, signal.SIGCONT)
        reply = await submit(relay.addresses["outgoing"], numbered(1))
        assert reply.code == 451
        os.kill(first, signal.SIGCONT)
        sink.gate.set()
        assert (await one).code == 250
    assert set(how_often(sink).values()) == {1}


async def test_what_one_worker_has_sealed_no_other_one_seals_again(site: Site, sink: Sink) -> None:
    async with workers(site, 2) as relay:
        first, second = pids(relay)[1], pids(relay)[2]
        os.kill(second, signal.SIGSTOP)
        assert (await submit(relay.addresses["outgoing"], numbered(1))).code == 250
        os.kill(first, signal.SIGSTOP)
        os.kill(second, signal.SIGCONT)
        assert (await submit(relay.addresses["outgoing"], sink.got[0].message)).code == 250
        os.kill(first, signal.SIGCONT)
    assert len({mime.sealed_content(got.message) for got in sink.got}) == 1


async def test_the_same_octets_again_at_another_worker_are_another_mail_as_they_are_at_one(
    site: Site, sink: Sink
) -> None:
    """What has been delivered is marked for others for a moment, should its client not have heard: that is waited for."""
    async with workers(site, 2) as relay:
        first, second = pids(relay)[1], pids(relay)[2]
        os.kill(second, signal.SIGSTOP)
        assert (await submit(relay.addresses["outgoing"], numbered(1))).code == 250
        os.kill(first, signal.SIGSTOP)
        os.kill(second, signal.SIGCONT)
        async with talking(relay.addresses["outgoing"]) as talk:
            await talk.begin()
            await talk.send(b"".join(stuffed(numbered(1))))
            os.kill(first, signal.SIGCONT)
            assert (await talk.reply()).code == 250
    assert set(how_often(sink).values()) == {2}


async def test_a_mail_in_clear_that_another_worker_delivered_stands_in_the_ledger_when_it_comes_again(
    site: Site, sink: Sink
) -> None:
    """The worker that held it has written its line, and does not know that it has left since."""
    site.write_policies({"bob.example.toml": 'levels = ["plaintext"]\nreason = "public"\n'})
    sink.on_data = ["451 4.2.0 busy"]
    async with workers(site, 2) as relay:
        first, second = pids(relay)[1], pids(relay)[2]
        os.kill(second, signal.SIGSTOP)
        assert (await submit(relay.addresses["outgoing"], numbered(1))).code == 451
        delivered = []
        for awake, asleep in ((second, first), (first, second)):
            os.kill(asleep, signal.SIGSTOP)
            os.kill(awake, signal.SIGCONT)
            async with talking(relay.addresses["outgoing"]) as talk:
                await talk.begin()
                await talk.send(b"".join(stuffed(numbered(1))))
                os.kill(asleep, signal.SIGCONT)  # the end of its mark is waited for
                reply = await talk.reply()
            assert reply.code == 250
            delivered.append(reply.text.rpartition(" ")[2])
    assert set(delivered) <= {each["mail"] for each in records(site.config.audit_directory, events=LEDGER)}


async def test_while_the_last_mails_end_connections_are_refused_and_wait_for_nobody(site: Site, sink: Sink) -> None:
    sink.gate = asyncio.Event()
    async with workers(site, 2) as relay:
        last = asyncio.create_task(submit(relay.addresses["outgoing"], numbered(1)))
        await sink.reached.wait()
        relay.process.terminate()
        with pytest.raises(ConnectionRefusedError):
            async with asyncio.timeout(20):
                while True:  # until all have closed the socket, which resets who waits there
                    with suppress(ConnectionResetError):
                        _, writer = await asyncio.open_connection(*relay.addresses["outgoing"])
                        writer.close()
        sink.gate.set()
        assert (await last).code == 250
        assert await relay.process.wait() == 0


@pytest.mark.parametrize("rotated", [False, True])
async def test_what_a_killed_worker_had_sent_another_one_sends_no_second_time(
    site: Site, sink: Sink, rotated: bool
) -> None:
    """It is killed after the next hop's 250, and its client has not heard of that.

    It may know a site secret that the other one has not read when it started.
    """
    async with workers(site, 2) as relay:
        if rotated:
            status, said, _ = await run("keys", "rotate-secret", "--config", site.config_file)
            assert status == 0, said
            os.kill(pids(relay)[1], signal.SIGKILL)
            await until(relay, "relay_serves", 3)
        ended = len(events(relay, "worker_ended"))
        first, second = pids(relay)[1], pids(relay)[2]
        os.kill(second, signal.SIGSTOP)
        reader, writer = await asyncio.open_connection(*relay.addresses["outgoing"])
        for line in (b"EHLO c.example", b"MAIL FROM:<ann@alice.example>", b"RCPT TO:<ben@bob.example>", b"DATA"):
            writer.write(line + b"\r\n")
        while not (await reader.readline()).startswith(b"354"):
            pass
        writer.write(numbered(1))
        writer.write(b".\r\n")
        await sink.messages(1)
        await until(relay, "sealed_and_sent")
        os.kill(first, signal.SIGKILL)
        await until(relay, "worker_ended", ended + 1)
        writer.close()  # it has read nothing
        os.kill(second, signal.SIGCONT)
        async with asyncio.timeout(60):
            while (reply := await submit(relay.addresses["outgoing"], numbered(1))).code != 250:
                assert reply.code == 451, reply
        await until(relay, "worker_started", ended + 3)
    assert set(how_often(sink).values()) == {1}


async def test_workers_started_anew_refuse_nobody_and_lose_nothing(site: Site, sink: Sink) -> None:
    async with workers(site, 2) as relay:
        before = pids(relay)
        stop, replies = asyncio.Event(), []

        async def send(which: int) -> None:
            number = 0
            while not stop.is_set():
                replies.append(await submit(relay.addresses["outgoing"], numbered(1000 * which + number)))
                number += 1

        senders = [asyncio.create_task(send(which)) for which in range(1, 4)]
        os.kill(relay.process.pid, signal.SIGUSR1)
        await until(relay, "workers_started_anew")
        stop.set()
        await asyncio.gather(*senders)
        assert not [str(reply) for reply in replies if reply.code != 250]
        assert len(how_often(sink)) == len(replies)
        assert set(how_often(sink).values()) == {1}
        after = pids(relay)
        assert not set(before.values()) & set(after.values())
        assert after.keys() == before.keys()


async def test_the_log_says_what_the_exchange_of_workers_waits_for(site: Site, sink: Sink) -> None:
    sink.gate = asyncio.Event()
    soon = "from relay.entry import listening; listening.LEAVE_S, listening.WAITS_S = 0.1, 0.1"
    async with workers(site, 2, before=soon) as relay:
        mail = asyncio.create_task(submit(relay.addresses["outgoing"], numbered(1)))
        await sink.reached.wait()
        os.kill(relay.process.pid, signal.SIGUSR1)
        [waits, *_] = await until(relay, "worker_waits_for_mail")
        assert (waits["listener"], waits["mails"]) == ("outgoing.smtp", 1)
        assert waits["worker"] in (1, 2)
        assert not events(relay, "workers_started_anew")
        sink.gate.set()
        assert (await mail).code == 250
        await until(relay, "workers_started_anew")


async def test_a_worker_is_a_program_of_its_own_with_its_descriptors_and_signals_and_an_ended_one_is_replaced(
    site: Site, sink: Sink, tmp_path: Path
) -> None:
    """The program that is installed: not one in the current directory, whose names are the same."""
    for name in ("relay.py", "structlog.py"):
        (tmp_path / name).write_text(f"raise SystemExit('{name} of somebody else')")
    text = site.config_file.read_text()
    site.config_file.write_text(f"{text}\n[limits]\nworkers = 2\n")
    ready = site.directory / "ready"
    arguments = ["-P", "-m", "relay", "serve", "--config", str(site.config_file), "--ready-file", str(ready)]
    with (site.directory / "relay.log").open("ab") as log:
        process = await asyncio.create_subprocess_exec(sys.executable, *arguments, cwd=tmp_path, stderr=log)
    relay = RelayProcess(process, {}, site.directory / "relay.log")
    try:
        await until(relay, "worker_started", 2)
        for pid in pids(relay).values():  # while they load: they are blocked until they can be handled
            os.kill(pid, signal.SIGUSR1)
        async with asyncio.timeout(60):
            while not ready.exists():
                await asyncio.sleep(0.02)
        os.kill(pids(relay)[1], signal.SIGKILL)
        served = (await until(relay, "relay_serves", 3))[2]
        assert [each["status"] for each in events(relay, "worker_ended")] == [-signal.SIGKILL]
        host, _, port = str(served["outgoing"]).rpartition(":")
        assert (await submit(TCPAddress(host, int(port)), numbered(1))).code == 250
        assert {os.getsid(pid) for pid in pids(relay).values()} == set(pids(relay).values())
        of_each = Counter(each for pid in (process.pid, *pids(relay).values()) for each in _sockets(pid))
        listeners = set.intersection(*map(_sockets, [process.pid, *pids(relay).values()]))
        assert {each for each, times in of_each.items() if times > 1} == listeners
        assert len(listeners) == 1
    finally:
        process.terminate()
        assert await process.wait() == 0
    assert not any(map(_lives, pids(relay).values()))


def _sockets(pid: int) -> set[str]:
    return {each for each in open_at(pid) if each.startswith("socket:")}


async def test_a_relay_toml_that_is_edited_counts_for_no_worker_before_the_relay_is_started_again(
    site: Site, sink: Sink
) -> None:
    async with workers(site, 2) as relay:
        site.config_file.write_text("this is no TOML")
        os.kill(pids(relay)[1], signal.SIGKILL)
        await until(relay, "relay_serves", 3)
        assert (await submit(relay.addresses["outgoing"], numbered(1))).code == 250


async def test_a_relay_toml_that_cannot_be_read_holds_up_nothing_else(site: Site, sink: Sink, tmp_path: Path) -> None:
    """One on a server that does not answer, and a pipe, are met by a reload alone."""
    hangs = tmp_path / "hangs"
    before = (
        "import threading\nfrom pathlib import Path\nfrom relay.files import toml\nread = toml.read\n"
        f"def hanging(path):\n    Path({str(hangs)!r}).exists() and threading.Event().wait()\n    return read(path)\n"
        "toml.read = hanging"
    )
    async with workers(site, 2, before=before) as relay:
        text = site.config_file.read_text()
        site.config_file.unlink()
        os.mkfifo(site.config_file)
        relay.process.send_signal(signal.SIGHUP)
        [refused] = await until(relay, "relay_toml_not_reloaded")
        assert "not a regular file" in str(refused["problems"])
        site.config_file.unlink()
        site.config_file.write_text(
            text.replace("[peers.bob]", '[aliases]\n"a@alice.example" = ["ann@alice.example"]\n[peers.bob]')
        )
        relay.process.send_signal(signal.SIGHUP)
        await until(relay, "relay_toml_reloaded")
        hangs.touch()
        relay.process.send_signal(signal.SIGHUP)
        os.kill(pids(relay)[2], signal.SIGKILL)
        await until(relay, "relay_serves", 3)
        assert (await submit(relay.addresses["outgoing"], numbered(1))).code == 250
        relay.process.terminate()
        async with asyncio.timeout(60):
            assert await relay.process.wait() == 0


async def test_workers_end_when_the_process_that_starts_them_is_killed(site: Site, sink: Sink) -> None:
    async with workers(site, 2) as relay:
        running = pids(relay)
        relay.process.kill()
        await relay.process.wait()
        async with asyncio.timeout(60):
            while any(_lives(pid) for pid in running.values()):
                await asyncio.sleep(0.02)
    async with workers(site, 2) as relay:  # nothing keeps the database's lock, or the address
        assert (await submit(relay.addresses["outgoing"], numbered(1))).code == 250


async def test_a_relay_whose_workers_cannot_start_ends_and_says_why(site: Site) -> None:
    site.config_file.write_text(site.config_file.read_text() + "\n[limits]\nworkers = 2\n")
    (site.directory / "site.secret").mkdir()
    status, said, _ = await run("serve", "--config", site.config_file)
    assert status == 1
    assert "a worker could not start" in said
    assert said.count("site.secret") == 2


def _lives(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


async def test_of_a_kme_that_drops_undelivered_keys_one_process_draws(kmes: DevelopmentKMEs, site: Site) -> None:
    kmes.link.drops_undelivered = True
    site.config_file.write_text(site.config_file.read_text().replace("prefetch = false\n", ""))
    async with assembly.parts(site.config, prefetch=False):
        pass  # a store that remembers it
    await run("check", "--trial-keys", "--no-next-hops", "--config", site.config_file)
    async with workers(site, 3) as relay:
        await until(relay, "workers_end")
        first = pids(relay)[1]
        async with asyncio.timeout(60):
            while sum(map(_lives, pids(relay).values())) > 1:
                await asyncio.sleep(0.05)
        assert _lives(first)
    text = site.config_file.read_text().replace("[kmes.kme]\n", "[kmes.kme]\none_batch_at_a_time = true\n")
    site.config_file.write_text(text)
    _, said, _ = await run("serve", "--config", site.config_file)
    assert "set workers = 1" in said


async def test_connections_to_all_workers_count_together_but_for_those_of_one_that_has_ended(
    tmp_path: Path, kmes: DevelopmentKMEs, sink: Sink
) -> None:
    site = make_site(
        tmp_path / "alice", "alice", state=kmes.state_dir, kme_url=kmes.urls[0], outgoing=sink.address,
        settings='trusted = ["192.0.2.0/24"]\nconnections_per_client = 4',
    )  # fmt: skip
    async with workers(site, 2) as relay, AsyncExitStack() as stack:

        async def greeting() -> bytes:
            reader, writer = await asyncio.open_connection(*relay.addresses["outgoing"])
            stack.callback(writer.close)
            return (await reader.readline())[:3]

        first, second = pids(relay)[1], pids(relay)[2]
        os.kill(second, signal.SIGSTOP)
        assert [await greeting() for _ in range(3)] == [b"220"] * 3
        os.kill(first, signal.SIGSTOP)
        os.kill(second, signal.SIGCONT)
        assert [await greeting() for _ in range(2)] == [b"220", b"421"]
        os.kill(first, signal.SIGKILL)
        await until(relay, "worker_ended")
        assert [await greeting() for _ in range(4)] == [b"220", b"220", b"220", b"421"]


async def test_a_worker_that_hangs_is_replaced_and_so_is_one_that_hangs_before_it_serves(
    site: Site, sink: Sink
) -> None:
    before = "from relay.process import workers; workers.LOOK_S, workers.MOST_STARTING = 2.5, 5"
    async with workers(site, 2, before=before) as relay:
        os.kill(pids(relay)[2], signal.SIGSTOP)
        starting = (await until(relay, "worker_started", 3))[2]["process"]
        os.kill(int(str(starting)), signal.SIGSTOP)
        await until(relay, "worker_hangs", 2)
        await until(relay, "relay_serves", 3)
        assert [(each["worker"], each["serves"]) for each in events(relay, "worker_hangs")] == [(2, True), (2, False)]
        assert (await submit(relay.addresses["outgoing"], numbered(1))).code == 250


async def test_a_worker_that_does_not_end_holds_up_the_end_of_the_relay_for_so_long_only(site: Site) -> None:
    async with workers(site, 2, before="from relay.process import workers; workers.STOP_S = 1.0") as relay:
        os.kill(pids(relay)[2], signal.SIGSTOP)
        relay.process.send_signal(signal.SIGTERM)
        async with asyncio.timeout(60):
            assert await relay.process.wait() == 0
        assert [each["worker"] for each in events(relay, "worker_does_not_end")] == [2]


async def test_the_service_manager_hears_of_the_relay_as_a_whole(
    tmp_path: Path, site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(str(tmp_path / "notify"))
        manager.setblocking(False)
        monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "notify"))
        async with workers(site, 2):
            pass
        said = []
        with suppress(BlockingIOError):
            while True:
                said.append(manager.recv(100))
    assert said == [b"READY=1", b"STOPPING=1"]


async def test_a_worker_that_cannot_be_started_at_once_is_started_later(site: Site, sink: Sink) -> None:
    """There is no descriptor left for a while."""
    async with workers(site, 2) as relay:
        before = pids(relay)
        limits = resource.prlimit(relay.process.pid, resource.RLIMIT_NOFILE)
        used = len(list(Path(f"/proc/{relay.process.pid}/fd").iterdir()))
        resource.prlimit(relay.process.pid, resource.RLIMIT_NOFILE, (used, limits[1]))
        os.kill(before[1], signal.SIGKILL)
        os.kill(relay.process.pid, signal.SIGUSR1)
        await until(relay, "workers_not_started_anew")
        await until(relay, "worker_not_started")
        resource.prlimit(relay.process.pid, resource.RLIMIT_NOFILE, limits)
        await until(relay, "relay_serves", 3)
        os.kill(relay.process.pid, signal.SIGUSR1)
        await until(relay, "workers_started_anew")
        assert not set(before.values()) & set(pids(relay).values())
        assert (await submit(relay.addresses["outgoing"], numbered(1))).code == 250


async def test_a_relay_that_waits_to_start_a_worker_again_stops_at_once(site: Site, sink: Sink) -> None:
    async with workers(site, 2) as relay:
        (site.directory / "site.secret").rename(site.directory / "elsewhere")
        (site.directory / "site.secret").mkdir()
        os.kill(pids(relay)[1], signal.SIGKILL)
        await until(relay, "worker_ended", 2)  # the next one is started after five seconds
        relay.process.terminate()
        async with asyncio.timeout(4):
            assert await relay.process.wait() == 0


async def test_a_relay_of_which_no_worker_serves_or_can_be_started_ends_as_failed(site: Site, sink: Sink) -> None:
    """Connections would wait for nobody; the service manager starts it anew, and shows that it has failed."""
    async with workers(
        site, 2, before="from relay.process import workers; workers.PAUSES_S, workers.TRIES = (0.05,), 2"
    ) as relay:
        (site.directory / "site.secret").rename(site.directory / "elsewhere")
        (site.directory / "site.secret").mkdir()
        for process in pids(relay).values():
            os.kill(process, signal.SIGKILL)
        async with asyncio.timeout(60):
            assert await relay.process.wait() == 1
        assert "no worker serves, and none can be started" in relay.log


@pytest.mark.parametrize("number", [signal.SIGHUP, signal.SIGUSR1])
async def test_signals_that_come_while_workers_start_end_none(site: Site, sink: Sink, number: signal.Signals) -> None:
    text = site.config_file.read_text()
    site.config_file.write_text(f"{text}\n[limits]\nworkers = 2\n")
    with (site.directory / "relay.log").open("ab") as log:
        process = await relay_command.start("serve", "--config", site.config_file, stderr=log)
    relay = RelayProcess(process, {}, site.directory / "relay.log")
    try:
        await until(relay, "worker_started", 2)
        process.send_signal(number)
        await until(relay, "relay_serves", 2)
        if number == signal.SIGUSR1:
            await until(relay, "workers_started_anew")
        assert not events(relay, "worker_ended")
    finally:
        process.terminate()
        assert await process.wait() >= 0  # no signal has ended it


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
@pytest.mark.parametrize("workers", [1, 2])
async def test_a_relay_that_is_told_to_stop_before_it_serves_ends_well(
    site: Site, number: signal.Signals, workers: int
) -> None:
    text = site.config_file.read_text()
    site.config_file.write_text(f"{text}\n[limits]\nworkers = {workers}\n")
    before = (
        "import os, signal\nfrom relay.entry import listening\nbind = listening.all_bound\n"
        f"async def told(where, passed):\n    os.kill(os.getpid(), {number.value})\n    return await bind(where, passed)\n"
        "from relay.process import app\napp.all_bound = told"
    )
    with (site.directory / "relay.log").open("ab") as log:
        process = await relay_command.start("serve", "--config", site.config_file, stderr=log, before=before)
    async with asyncio.timeout(60):
        assert await process.wait() == 0, (site.directory / "relay.log").read_text()


async def test_sigusr1_to_all_processes_ends_none_that_serves(site: Site, sink: Sink) -> None:
    """As `systemctl kill --signal=USR1` sends it."""
    async with workers(site, 2) as relay:
        before = pids(relay)
        for pid in before.values():
            receivers = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
            for process in (pid, *map(int, receivers)):
                os.kill(process, signal.SIGUSR1)
        os.kill(relay.process.pid, signal.SIGUSR1)
        await until(relay, "workers_started_anew")
        assert not events(relay, "worker_ended")
        assert not events(relay, "key_receiver_ended")


@pytest.mark.parametrize("reset", [False, True])
async def test_what_a_frozen_worker_reads_after_its_client_was_served_by_another_it_does_not_deliver(
    site: Site, sink: Sink, reset: bool
) -> None:
    """Its client gave up, which looks as if it only sent no more: its mail has lain there too long for that."""
    async with workers(site, 2) as relay:
        first, second = pids(relay)[1], pids(relay)[2]
        os.kill(second, signal.SIGSTOP)
        async with talking(relay.addresses["outgoing"]) as talk:
            await talk.begin()
            os.kill(first, signal.SIGSTOP)
            await talk.send(b"".join(stuffed(numbered(1))))
            if reset:
                linger = struct.pack("ii", 1, 0)
                talk.writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
        os.kill(second, signal.SIGCONT)
        assert (await submit(relay.addresses["outgoing"], numbered(1))).code == 250
        os.kill(first, signal.SIGCONT)
        async with asyncio.timeout(60):
            while not (events(relay, "mail_not_accepted") or events(relay, "client_gone_before_the_answer")):
                await asyncio.sleep(0.02)
    assert set(how_often(sink).values()) == {1}


async def test_who_is_cut_off_before_the_answer_and_tries_again_at_any_worker_has_the_mail_once(
    site: Site, sink: Sink, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Mail to one and to two recipients; the next hop answers a while after the client is gone."""
    takes, gone = sink.handle_DATA, defaultdict[int, asyncio.Event](asyncio.Event)

    async def slowly(server: Any, session: Any, envelope: Any) -> str:
        number = re.search(rb"<(\d+)\.worker@", envelope.content)
        assert number is not None
        await gone[int(number[1])].wait()
        await asyncio.sleep(random.uniform(0.02, 0.08))  # the relay hears of it
        return await takes(server, session, envelope)

    monkeypatch.setattr(sink, "handle_DATA", slowly)

    async def cut_off(relay: RelayProcess, number: int) -> None:
        recipients = ("ben@bob.example", "bea@bob.example")[: 1 + number % 2]
        reader, writer = await asyncio.open_connection(*relay.addresses["outgoing"])
        lines = ["EHLO c.example", "MAIL FROM:<ann@alice.example>", *(f"RCPT TO:<{each}>" for each in recipients)]
        writer.write("".join(f"{line}\r\n" for line in [*lines, "DATA"]).encode())
        while not (await reader.readline()).startswith(b"354"):
            pass
        writer.writelines(stuffed(numbered(number)))
        await writer.drain()
        await asyncio.sleep(0.005)  # the relay reads it meanwhile
        writer.transport.abort()
        with suppress(OSError):
            await writer.wait_closed()
        gone[number].set()
        while (await submit(relay.addresses["outgoing"], numbered(number), recipients=recipients)).code != 250:
            pass

    async with workers(site, 3) as relay:
        for first in range(0, 120, 6):
            await asyncio.gather(*(cut_off(relay, first + number) for number in range(6)))
    assert len(how_often(sink)) == 120
    assert set(how_often(sink).values()) == {1}


async def test_a_worker_that_dies_while_all_are_started_anew_is_renewed_as_well(site: Site, sink: Sink) -> None:
    """Two have its place then, and neither waits for the other for ever."""
    soon = "from relay.process import workers; workers.SOON_S, workers.PAUSES_S = 0.0, (0.0,)"
    async with workers(site, 2, before=soon) as relay:
        before = pids(relay)
        os.kill(relay.process.pid, signal.SIGUSR1)
        await until(relay, "worker_started", 3)
        os.kill(before[1], signal.SIGKILL)
        await until(relay, "workers_started_anew")
        os.kill(relay.process.pid, signal.SIGUSR1)
        await until(relay, "workers_started_anew", 2)
        async with asyncio.timeout(30):
            while len(relay_command.workers_of(relay.process.pid)) != 2:
                await asyncio.sleep(0.05)
        assert (await submit(relay.addresses["outgoing"], numbered(1))).code == 250
    assert set(how_often(sink).values()) == {1}
