"""A relay that is told to stop, or to read its files again, in the middle of a mail: nothing is lost or sent twice.
Standard: RFC 5321 3.8 (421); SIGTERM and SIGHUP as service managers send them.
"""

from __future__ import annotations

import asyncio
import signal
import struct
from contextlib import AsyncExitStack
from pathlib import Path
from socket import SO_LINGER, SOL_SOCKET

import pytest

from relay.entry.listening import bound
from relay.errors import ConfigError
from relay.kme import DevelopmentKMEs
from tests.integration.entry.smtp.recipes import Running, serving
from tests.integration.entry.smtp.test_lmtp import with_lmtp
from tests.testlib import mails
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
            while '"event": "policies_loaded"' not in relay.log:
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
