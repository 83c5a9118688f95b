"""A relay that is told to stop, or to read its files again, in the middle of a mail: nothing is lost or sent twice.
Standard: RFC 5321 3.8 (421); SIGTERM and SIGHUP as service managers send them.
"""

from __future__ import annotations

import asyncio
import signal
import struct
import subprocess
import sys
from contextlib import AsyncExitStack
from pathlib import Path
from socket import SO_LINGER, SOL_SOCKET

import pytest

from relay.entry.listening import bound
from relay.errors import ConfigError
from relay.kme import DevelopmentKMEs
from tests.integration.entry.smtp.recipes import Running, serving
from tests.integration.entry.smtp.test_lmtp import with_lmtp
from tests.testlib import mails, relay_command, sites
from tests.testlib.sink import Sink
from tests.testlib.sites import Site, make_site, relay_process
from tests.testlib.submit import submit, talking


@pytest.fixture
def site(tmp_path: Path, kmes: DevelopmentKMEs, wire: Sink) -> Site:
    return with_lmtp(
        make_site(tmp_path / "alice", "alice", state=kmes.state_dir, kme_url=kmes.urls[0], outgoing=wire.address)
    )


@pytest.mark.in_process
@pytest.mark.parametrize(("name", "hello"), [("outgoing", "EHLO"), ("outgoing_lmtp", "LHLO")])
async def test_sigterm_lets_the_mail_in_flight_end_and_takes_no_other(
    site: Site, wire: Sink, name: str, hello: str
) -> None:
    wire.gate = asyncio.Event()
    async with relay_process(site) as relay, talking(relay.addresses[name]) as idle:
        assert (await idle.say(f"{hello} a.example")).code == 250
        async with talking(relay.addresses[name]) as talk:
            await talk.begin(hello=hello)
            await talk.send(mails.plain() + b".\r\n")
            await wire.reached.wait()
            relay.process.send_signal(signal.SIGTERM)
            assert str(await idle.reply()).startswith("421 4.3.2")
            assert await idle.ended()
            with pytest.raises(ConnectionRefusedError):
                await asyncio.open_connection(*relay.addresses[name])
            wire.gate.set()
            assert (await talk.reply()).code == 250
            assert await talk.ended()
        assert await relay.process.wait() == 0
    assert len(wire.got) == 1


async def test_sighup_loses_neither_connection_nor_mail_in_flight(site: Site, wire: Sink) -> None:
    wire.gate = asyncio.Event()
    async with AsyncExitStack() as stack:
        relay = await stack.enter_async_context(relay_process(site))
        idle, talk = [await stack.enter_async_context(talking(relay.addresses["outgoing"])) for _ in range(2)]
        await idle.say("EHLO a.example")
        await talk.begin()
        await talk.send(mails.plain() + b".\r\n")
        await wire.reached.wait()
        # The edit must be there whole before the relay can see it, and SIGHUP is answered by what the log says.
        edit = site.directory / "edited.toml"
        edit.write_text('levels = ["plaintext"]\n')
        edit.replace(site.directory / "policies" / "bob.example.toml")
        relay.process.send_signal(signal.SIGHUP)
        async with asyncio.timeout(60):
            while relay.log.count('"event": "policies_loaded"') < sites.WORKERS:
                await asyncio.sleep(0.02)
        wire.gate.set()
        assert (await talk.reply()).code == 250
        assert (await talk.say("NOOP")).code == 250
        for command in ("MAIL FROM:<a@alice.example>", "RCPT TO:<b@bob.example>", "DATA"):
            assert (await idle.say(command)).code in (250, 354)
        await idle.send(mails.plain() + b".\r\n")
        assert (await idle.reply()).code == 250
    assert b"figures" not in wire.got[0].message
    assert wire.got[1].message.endswith(mails.plain())


async def begun(running: Running) -> None:
    """A client whose mail is inside, and which has left."""
    running.recipe.gate.clear()
    async with talking(running.address) as talk:
        await talk.begin()
        await talk.send(b"x\r\n.\r\n")
        await running.recipe.arrived.wait()


async def test_stopping_also_waits_for_a_delivery_whose_client_is_gone() -> None:
    async with serving() as running:
        await begun(running)
        stopping = asyncio.create_task(running.entry.stop(grace=30))
        await asyncio.sleep(0)
        running.recipe.gate.set()
        await stopping
        assert len(running.recipe.mails) == 1
        assert running.recipe.cancelled == 0


async def test_what_takes_longer_than_the_grace_time_is_cancelled() -> None:
    async with serving() as running, talking(running.address) as talk:
        await begun(running)
        await talk.begin()
        await talk.send(b"half")
        await running.entry.stop(grace=0.05)
        assert running.recipe.cancelled == 1
        assert await talk.ended()
        assert running.budget.used == 0


async def test_content_that_is_arriving_may_end_within_the_grace_time() -> None:
    async with serving() as running, talking(running.address) as talk:
        await talk.begin()
        stopping = asyncio.create_task(running.entry.stop(grace=30))
        await asyncio.sleep(0)
        await talk.send(b"x\r\n.\r\n")
        assert (await talk.reply()).code == 250
        assert await talk.ended()
        await stopping
        assert len(running.recipe.mails) == 1


async def test_a_delivery_that_began_while_the_relay_stops_has_its_time_also_when_its_client_leaves() -> None:
    async with serving() as running:
        running.recipe.gate.clear()
        async with talking(running.address) as talk:
            await talk.begin()
            stopping = asyncio.create_task(running.entry.stop(grace=30))
            await asyncio.sleep(0)
            await talk.send(b"x\r\n.\r\n")
            await running.recipe.arrived.wait()
            linger = struct.pack("ii", 1, 0)
            talk.writer.get_extra_info("socket").setsockopt(SOL_SOCKET, SO_LINGER, linger)  # it leaves with a reset
        while list(running.entry.connections):
            await asyncio.sleep(0)
        await asyncio.sleep(0.01)
        running.recipe.gate.set()
        await stopping
        assert (len(running.recipe.mails), running.recipe.cancelled) == (1, 0)


async def test_an_address_in_use_is_named_with_its_setting() -> None:
    async with serving() as running:
        with pytest.raises(ConfigError, match=r"outgoing\.lmtp: cannot listen on 127\.0\.0\.1:\d+: "):
            await bound("outgoing.lmtp", running.address)
        assert (await submit(running.address, mails.plain())).code == 250


HALTS = """
import asyncio, pathlib, time, uvloop
from relay.process import app
here, bound, run = pathlib.Path({directory!r}), app.bound, uvloop.run

async def slowly_bound(config, passed):
    (here / "starts").touch()
    while not (here / "signals came").exists():
        await asyncio.sleep(0.01)
    return await bound(config, passed)

def slowly_run(main):
    run(main)
    (here / "ends").touch()
    while here.exists() and not (here / "last signals came").exists():  # the second process ends after the test
        time.sleep(0.01)

app.bound, uvloop.run = slowly_bound, slowly_run
"""


@pytest.mark.in_process
async def test_no_signal_for_a_relay_that_serves_ends_one_that_starts_or_stops(site: Site, wire: Sink) -> None:
    """As `systemctl kill --signal=HUP` and an operator's script send them. What SIGHUP asked for is done at last."""

    async def there(name: str) -> None:
        async with asyncio.timeout(30):
            while not (site.directory / name).exists():
                await asyncio.sleep(0.01)

    def tell_all(process: relay_command.RelayCommand) -> None:
        for number in (signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2):
            process.send_signal(number)

    site.set_workers(1)
    with (site.directory / "relay.log").open("ab") as log:
        process = await relay_command.start(
            "serve", "--config", site.config_file, "--ready-file", site.directory / "ready", stderr=log,
            before=HALTS.format(directory=str(site.directory)),
        )  # fmt: skip
    try:
        await there("starts")
        with site.config_file.open("a") as file:
            file.write('\n[peers.carol]\ndomains = ["carol.example"]\nsae_id = "sae-carol"\n')
        tell_all(process)
        (site.directory / "signals came").touch()
        await there("ready")
        async with asyncio.timeout(30):
            while "relay_toml_reloaded" not in (site.directory / "relay.log").read_text():
                await asyncio.sleep(0.01)
        process.terminate()
        tell_all(process)
        await there("ends")
        tell_all(process)
        (site.directory / "last signals came").touch()
        assert await process.wait() == 0
    finally:
        if process.returncode is None:
            process.kill()


def test_not_even_one_that_comes_while_python_itself_ends() -> None:
    """What Python does nearly last is to let go of all handlers."""
    ends = (
        "import atexit, os, signal, time; from relay.runtime import signals\n"
        "class Last:\n"
        "    def __del__(self, kill=os.kill, me=os.getpid()): [kill(me, number) for number in (1, 10, 12, 15)]\n"
        "signals.end_nothing(); os.last = Last()\n"
    )
    done = subprocess.run([sys.executable, "-c", ends], check=False, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
