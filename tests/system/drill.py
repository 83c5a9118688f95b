"""The drill: one relay, one fault after the other; each must raise its alarm within a minute and end it once repaired.
Standard: relay/counting/alarms.py. `python -m tests.system.drill` runs it in true time (half an hour), and prints when.
"""

from __future__ import annotations

import argparse
import asyncio
import math
import sqlite3
import sys
import time
from base64 import b64encode
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import AsyncExitStack, ExitStack, asynccontextmanager, contextmanager
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from tempfile import TemporaryDirectory
from unittest.mock import patch

import aiohttp
import trustme
from prometheus_client.parser import text_string_to_metric_families

from relay.canary import asking
from relay.canary.box import ANSWER_S
from relay.canary.message import LOCAL_PART
from relay.config import CanarySettings, TCPAddress
from relay.counting.alarms import ALARMS
from relay.formats import cms
from relay.kme import DevelopmentKMEs, LinkSettings
from relay.postfix import watch
from relay.process import app
from relay.runtime.aio import clock_offset, in_background
from relay.status import alarms, exposition, measures, next_start, observation, ready, rules
from relay.store import store
from tests.testlib import mails
from tests.testlib.mail_server import MailServer
from tests.testlib.sink import Got, Sink
from tests.testlib.sites import Site, make_site, relay_process
from tests.testlib.submit import SMTPReply, submit

LIMIT_S = 60.0
"""An alarm must have begun by then."""
CANARY_S, CANARY_LATE_S = 60.0, 10.0
"""How often the peer is asked, and how late a canary may be."""
SHORTER = 60
"""How much shorter all times of alarms are in the suite."""
_SETTINGS = """
[limits]
messages_in_flight = "1 MiB"

[status]
listen = "127.0.0.1:0"
certificate = "status.pem"
key = "status.key"
"""
_SEALED = (
    b"From: <%d@bob.example>\r\nMIME-Version: 1.0\r\nContent-Transfer-Encoding: base64\r\n"
    b"Content-Type: application/pkcs7-mime; smime-type=authEnveloped-data\r\n\r\n%b\r\n"
)
"""Nothing that can be parsed, but with the name of a quantum key in it."""


@dataclass
class Scene:
    """A relay that serves, and all around it."""

    site: Site
    kmes: DevelopmentKMEs
    outside: MailServer
    inside: Sink
    outgoing: TCPAddress = TCPAddress("", 0)
    incoming: TCPAddress = TCPAddress("", 0)
    status: TCPAddress = TCPAddress("", 0)
    patches: ExitStack = field(default_factory=ExitStack)
    tasks: list[asyncio.Task[SMTPReply]] = field(default_factory=list)
    number: int = 0

    async def out(self) -> SMTPReply:
        """A mail that was never sent before leaves."""
        self.number += 1
        return await submit(self.outgoing, mails.plain().replace(b"<1@", b"<%d@" % self.number))

    async def into(self, message: bytes | None = None, sender: str = "eve@elsewhere.example") -> SMTPReply:
        """One comes in."""
        self.number += 1
        message = message or mails.plain().replace(b"<1@", b"<%d@" % self.number)
        return await submit(self.incoming, message, sender=sender, recipients=["ann@alice.example"])

    async def standing(self) -> set[str]:
        """The alarms that /metrics has."""
        url = f"https://{self.status}/metrics"
        async with aiohttp.ClientSession() as session, session.get(url, ssl=False) as response:
            text = await response.text()
        families = {each.name: each for each in text_string_to_metric_families(text)}
        return {each.labels["alarm"] for each in families["qumail_alarm"].samples if each.value}

    async def until(self, alarm: str, *, stands: bool, limit: float) -> float:
        """How many seconds it took."""
        began = time.monotonic()
        standing: set[str] = set()
        try:
            async with asyncio.timeout(limit):
                while (alarm in (standing := await self.standing())) != stands:
                    await asyncio.sleep(0.05)
        except TimeoutError as error:
            what = "begun" if stands else "ended"
            raise AssertionError(f"{alarm} has not {what} within {limit:.0f} s; there are {standing}") from error
        return time.monotonic() - began

    def give_certificate(self, days: float) -> None:
        """That of [status] ends in so many days."""
        now = datetime.now(UTC)
        issued = trustme.CA().issue_cert(
            "localhost", not_before=now - timedelta(days=400), not_after=now + timedelta(days=days)
        )
        issued.cert_chain_pems[0].write_to_path(self.site.directory / "status.pem")
        issued.private_key_pem.write_to_path(self.site.directory / "status.key")
        (self.site.directory / "status.key").chmod(0o600)


Step = Callable[[Scene], Awaitable[None]]


@dataclass(frozen=True)
class Fault:
    """What goes wrong, the alarm that says so, and the repair."""

    name: str
    alarm: str
    begin: Step
    repair: Step


@dataclass(frozen=True)
class Row:
    """When its alarm began and ended, in seconds after the fault and after the repair."""

    fault: str
    alarm: str
    began: float
    ended: float


async def _kme_hangs(scene: Scene) -> None:
    for call in ("status", "enc_keys", "dec_keys"):
        scene.kmes.km1.misbehave(call, "hang", times=None)
    scene.tasks.append(asyncio.create_task(scene.out()))


async def _kme_behaves(scene: Scene) -> None:
    scene.kmes.km1.behave()
    scene.kmes.km1.limits = {}
    await asyncio.gather(*scene.tasks)
    scene.tasks.clear()


async def _keys_run_dry(scene: Scene) -> None:
    scene.kmes.km1.limits = {"stored_key_count": 0}
    scene.kmes.km1.misbehave("enc_keys", "none", times=None)
    for _ in range(100):
        if (await scene.out()).code == 451:
            return
    raise AssertionError("keys never ran dry")


async def _disk_full(scene: Scene) -> None:
    scene.patches.enter_context(patch.object(observation, "free_octets", lambda _: 1000))


async def _undo(scene: Scene) -> None:
    scene.patches.close()


async def _store_locked(scene: Scene) -> None:
    connection = sqlite3.connect(scene.site.directory / "relay.db", isolation_level=None)
    connection.execute("BEGIN IMMEDIATE")
    scene.patches.callback(connection.close)


async def _certificate_expires(scene: Scene) -> None:
    scene.give_certificate(-1)


async def _certificate_renewed(scene: Scene) -> None:
    scene.give_certificate(100)


async def _peer_gone(scene: Scene) -> None:
    await scene.outside.stop()
    assert (await scene.out()).code == 451


async def _peer_back(scene: Scene) -> None:
    await scene.outside.start()


async def _next_hop_refuses(scene: Scene) -> None:
    scene.inside.on_data = ["550 5.7.1 no"] * 3
    for _ in range(3):
        assert (await scene.into()).code // 100 == 5


async def _next_hop_takes(scene: Scene) -> None:
    assert (await scene.into()).code == 250


async def _policy_broken(scene: Scene) -> None:
    (scene.site.directory / "policies" / "default.toml").write_text("levels = nothing\n")


async def _policy_repaired(scene: Scene) -> None:
    (scene.site.directory / "policies" / "default.toml").write_text('levels = ["aes"]\n')


async def _clock_jumps(scene: Scene) -> None:
    true = clock_offset
    scene.patches.enter_context(patch.object(observation, "clock_offset", lambda: true() + 86_400))


async def _memory_at_limit(scene: Scene) -> None:
    scene.outside.gate = asyncio.Event()
    scene.tasks += [asyncio.create_task(scene.out()) for _ in range(4)]


async def _memory_free(scene: Scene) -> None:
    assert scene.outside.gate is not None
    scene.outside.gate.set()
    assert [each.code for each in await asyncio.gather(*scene.tasks)] == [250] * 4
    scene.outside.gate = None
    scene.tasks.clear()


async def _forged_flood(scene: Scene) -> None:
    for number in range(25):
        body = b64encode(cms.QUANTUM_KEY_NAMES[0] + b"%d" % number)
        assert (await scene.into(_SEALED % (number, body), sender=f"{number}@bob.example")).code == 250


async def _canary_lost(scene: Scene) -> None:
    """From here on the next one is lost, at the moment when this returns."""
    scene.outside.is_open = False
    number = len(scene.outside.got)
    while not _is_canary((await scene.outside.messages(number + 1, timeout=2 * CANARY_S))[number]):
        number += 1


async def _canary_back(scene: Scene) -> None:
    scene.outside.is_open = True


async def _nothing(_: Scene) -> None:
    """It ends when no more comes."""


async def _loop_blocked(_: Scene) -> None:
    for _number in range(6):
        time.sleep(0.6)  # which is the fault
        await asyncio.sleep(0.01)


FAULTS = (
    Fault("policy broken", "policy_broken", _policy_broken, _policy_repaired),
    Fault("clock jumps", "clock_jumped", _clock_jumps, _undo),
    Fault("disk full", "disk_full", _disk_full, _undo),
    Fault("store locked", "store_unwritable", _store_locked, _undo),
    Fault("certificate expired", "certificate_ended", _certificate_expires, _certificate_renewed),
    Fault("peer gone", "next_hop_away", _peer_gone, _peer_back),
    Fault("next hop refuses", "next_hop_refuses", _next_hop_refuses, _next_hop_takes),
    Fault("memory at limit", "memory_full", _memory_at_limit, _memory_free),
    Fault("event loop late", "event_loop_late", _loop_blocked, _nothing),
    Fault("forged flood", "quarantine_grows", _forged_flood, _nothing),
    Fault("keys run dry", "keys_gone", _keys_run_dry, _kme_behaves),
    Fault("KME hangs", "kme_away", _kme_hangs, _kme_behaves),
    Fault("canary lost", "canary_late", _canary_lost, _canary_back),
)


@contextmanager
def shortened(by: float = SHORTER) -> Iterator[None]:
    """All times of alarms divided by so much, so that each fault takes seconds."""
    shorter = {
        name: replace(each, after_s=each.after_s / by, clear_s=each.clear_s / by) for name, each in ALARMS.items()
    }
    with ExitStack() as stack:
        for module, name, value in (
            (alarms, "ALARMS", shorter),
            (alarms, "LOOK_S", alarms.LOOK_S / by),
            (observation, "SAMPLE_S", observation.SAMPLE_S / by),
            (observation, "WINDOW_S", 3.0),
            (rules, "WINDOW_S", 3.0),
            (rules, "MINUTE_S", 2.0),
            (rules, "TRY_S", 2.0),
            (rules, "KME_S", 1.0),
            (ready, "LOOK_S", 0.1),
            (measures, "SITE_S", 0.1),
            (measures, "MEASURE_S", 0.1),
            (store, "BUSY_TIMEOUT_S", 0.5),
            (asking, "LOOK_S", 0.1),
            (exposition, "SHARE", math.inf),
            (watch, "LOOK_S", 0.1),
            (next_start, "LOOK_S", 0.1),
        ):
            stack.enter_context(patch.object(module, name, value))
        yield


@asynccontextmanager
async def scene_in(
    directory: Path, canary_s: float = CANARY_S, canary_late_s: float = CANARY_LATE_S
) -> AsyncIterator[Scene]:
    """Alice's relay, both directions, its KME, and a mail server at each side; Bob's, whom it asks so often."""
    link = LinkSettings(key_rate=1_000_000)
    async with AsyncExitStack() as stack:
        kmes = await stack.enter_async_context(
            DevelopmentKMEs(state_dir=directory / "kme", host="127.0.0.1", ports=(0, 0), link=link)
        )
        # Less often than it takes for an alarm: a canary whose key got lost in a fault is put off each time.
        carrying = [MailServer(carries=_is_canary, again_s=0.5, tries=5) for _ in range(2)]
        outside, back = [await stack.enter_async_context(each) for each in carrying]
        inside = await stack.enter_async_context(Sink())
        site = make_site(
            directory / "alice", "alice", state=kmes.state_dir, kme_url=kmes.urls[0], outgoing=outside.address,
            incoming=inside.address, kme_settings="timeout = 1\ncache_high = 2\n",
        )  # fmt: skip
        site.config_file.write_text(f"{site.config_file.read_text()}{_SETTINGS}")
        scene = Scene(site, kmes, outside, inside)
        scene.give_certificate(100)
        bob = make_site(
            directory / "bob", "bob", state=kmes.state_dir, kme_url=kmes.urls[1], outgoing=back.address,
            incoming=inside.address,
        )  # fmt: skip
        answers_s = min(ANSWER_S, canary_s / 2)
        before = f"from relay.canary import box; box.ANSWER_S = {answers_s}"
        outside.to = (await stack.enter_async_context(relay_process(bob, before=before))).addresses["incoming"]
        asks = CanarySettings.model_construct(
            every=canary_s, late_after=canary_late_s
        )  # less than may be set, where times are shortened
        found = await stack.enter_async_context(app.running(site.config.model_copy(update={"canary": asks})))
        scene.outgoing, scene.incoming, scene.status = found["outgoing"], found["incoming"], found["status"]
        back.to = scene.incoming
        for each in (outside, back):
            await stack.enter_async_context(in_background("mail server", each.carry))
        yield scene


def _is_canary(got: Got) -> bool:
    return got.recipients[0].startswith(LOCAL_PART)


async def drill(scene: Scene, faults: tuple[Fault, ...] = FAULTS, *, ends_within: float) -> list[Row]:
    """One after the other. Raises TimeoutError where an alarm does not begin or end in time."""
    rows = []
    for fault in faults:
        await scene.until(fault.alarm, stands=False, limit=ends_within)
        await fault.begin(scene)
        began = await scene.until(fault.alarm, stands=True, limit=LIMIT_S)
        await fault.repair(scene)
        rows.append(
            Row(fault.name, fault.alarm, began, await scene.until(fault.alarm, stands=False, limit=ends_within))
        )
        print(as_line(rows[-1]), file=sys.stderr)  # noqa: T201
    return rows


def as_line(row: Row) -> str:
    """For people."""
    return f"{row.fault:22}{row.alarm:20}begins after {row.began:6.1f} s, ends {row.ended:6.1f} s after the repair"


async def _true_time(only: str) -> None:
    with TemporaryDirectory() as directory:
        async with scene_in(Path(directory)) as scene:
            await drill(scene, tuple(each for each in FAULTS if only in each.name), ends_within=1200.0)


def main() -> None:
    """For the command line."""
    parser = argparse.ArgumentParser(
        prog="python -m tests.system.drill",
        description="One fault after the other, in true time: half an hour for all of them.",
    )
    parser.add_argument("--only", metavar="WORD", default="", help="only faults whose name has this in it")
    asyncio.run(_true_time(parser.parse_args().only))


if __name__ == "__main__":
    main()
