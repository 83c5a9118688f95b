"""Two relays of one site on one PostgreSQL, killed, frozen, cut off and without their database at random, under load.
Standard: RFC 5321 6.1; nothing is lost, and what came twice had left just before its relay was hit. Needs PostgreSQL.

`python -m tests.system.crash.two_relays --seconds 600` runs it for as long as one likes.
"""

from __future__ import annotations

import asyncio
import random
import shutil
import signal
import tempfile
import time
from collections import Counter, defaultdict
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import aiosmtplib
import click

from relay.formats import mime
from relay.kme import DevelopmentKMEs, LinkSettings
from relay.store.secret import SiteSecret
from tests.system.crash.outcome import tell_and_exit
from tests.system.crash.watch import key_ids
from tests.testlib import mails
from tests.testlib.databases import PostgreSQLServer, find_programs
from tests.testlib.sink import Sink
from tests.testlib.sites import RelayProcess, Site, make_site, relay_process
from tests.testlib.submit import submit
from tests.testlib.wire import Wire

GAP_S = 0.5
"""Window, in seconds, before a fault in which a copy may have left unrecorded; generous, for a busy machine."""
LEASE_S = 2.5
SHORT_LEASES = f"""
from relay.store import claims
claims.LEASE_S, claims.RENEW_S, claims.PATIENCE_S, claims.MARGIN_S = {LEASE_S}, 0.3, 1.0, 0.4
"""
POLICIES = {"default.toml": 'levels = ["aes"]\n', "open.example.toml": 'levels = ["plaintext"]\n'}
FAULTS = {"kill": 5, "freeze": 2, "cut_off": 2, "restart_database": 1}
"""What can happen, and how often each is chosen against the others."""
PEOPLE = ("ben@bob.example", "bea@bob.example", "press@open.example")


@dataclass
class Copy:
    """One recipient's copy of a message, when it was taken and from which relay."""

    at: float
    relay: int
    sealed: bytes = field(repr=False)


class Mailboxes(Sink):
    """They take some time, and now and then have none."""

    def __init__(self, chance: random.Random) -> None:
        super().__init__()
        self.chance = chance
        self.copies: defaultdict[tuple[int, str], list[Copy]] = defaultdict(list)

    async def handle_RCPT(self, server: Any, session: Any, envelope: Any, address: str, options: list[str]) -> str:
        if self.chance.random() < 0.1:
            return "451 4.2.0 busy"
        return await super().handle_RCPT(server, session, envelope, address, options)

    async def handle_DATA(self, server: Any, session: Any, envelope: Any) -> str:
        await asyncio.sleep(self.chance.uniform(0, 0.05))
        content = bytes(envelope.content)
        header = mime.header_of(content)
        number = int(header.partition(b"Message-ID: <")[2].partition(b"@")[0])
        sealed = mime.sealed_content(mails.untraced(content)) if mime.is_sealed(content) else b""
        for recipient in envelope.rcpt_tos:
            relay = 1 if b"relay-1." in header else 0
            self.copies[number, recipient].append(Copy(time.monotonic(), relay, sealed))
        return "250 taken"


@dataclass
class Hit:
    """From when to when something was wrong with a relay, or with both (None), or with the client of one message."""

    kind: str
    relay: int | None
    start: float
    end: float = float("inf")
    message: int | None = None

    def explains(self, message: int, copy: Copy) -> bool:
        """Whether the relay may have had no time, or no way, to write down that this copy was taken.

        A client that leaves while it is answered has not heard it, and the relay does not know.
        """
        concerned = self.relay in (None, copy.relay) and self.message in (None, message)
        return concerned and self.start - GAP_S <= copy.at <= self.end


@dataclass
class Report:
    """What a run has found; `faults` are broken promises, and there must be none."""

    messages: int = 0
    copies: int = 0
    repeated: Counter[str] = field(default_factory=Counter)
    ciphertexts: int = 0
    keys_issued: int = 0
    interrupted: int = 0
    hits: Counter[str] = field(default_factory=Counter)
    faults: list[str] = field(default_factory=list)


@dataclass
class Twins:
    """The two relays, their ways to the store, and what has been done to them."""

    sites: list[Site]
    wires: list[Wire]
    relays: list[RelayProcess]
    server: PostgreSQLServer
    stack: AsyncExitStack
    hits: list[Hit] = field(default_factory=list)

    async def kill(self, number: int, chance: random.Random) -> None:
        """SIGKILL, and a new process after a while."""
        relay = self.relays[number]
        relay.kill()
        await relay.process.wait()
        await asyncio.sleep(chance.uniform(0, 2))
        starting = relay_process(self.sites[number], listen=relay.addresses, before=SHORT_LEASES)
        self.relays[number] = await self.stack.enter_async_context(starting)

    async def freeze(self, number: int, chance: random.Random) -> None:
        """SIGSTOP, sometimes for longer than a lease."""
        self.relays[number].process.send_signal(signal.SIGSTOP)
        await asyncio.sleep(chance.choice((0.3, LEASE_S + 1)))
        self.relays[number].process.send_signal(signal.SIGCONT)

    async def cut_off(self, number: int, chance: random.Random) -> None:
        """No way to the database, sometimes for longer than a lease."""
        await self.wires[number].cut()
        await asyncio.sleep(chance.choice((0.3, LEASE_S + 1)))
        await self.wires[number].mend()

    async def restart_database(self, _: int, chance: random.Random) -> None:
        """As after a crash of it."""
        await asyncio.to_thread(self.server.stop)
        await asyncio.sleep(chance.choice((0.1, LEASE_S + 1)))
        await asyncio.to_thread(self.server.start)

    async def suffer(self, chance: random.Random, until: float) -> None:
        """One after the other."""
        while time.monotonic() < until:
            await asyncio.sleep(chance.uniform(0.3, 2))
            number, kind = chance.randrange(2), chance.choices(list(FAULTS), list(FAULTS.values()))[0]
            hit = Hit(kind, None if kind == "restart_database" else number, time.monotonic())
            self.hits.append(hit)
            await getattr(self, kind)(number, chance)
            hit.end = time.monotonic()


@asynccontextmanager
async def twins(directory: Path, server: PostgreSQLServer, kmes: DevelopmentKMEs, sink: Sink) -> AsyncIterator[Twins]:
    """Both run."""
    async with AsyncExitStack() as stack:
        first = make_site(
            directory / "0", "alice", state=kmes.state_dir, kme_url=kmes.urls[0], outgoing=sink.address,
            policies=POLICIES, kme_settings="prefetch = false",
        )  # fmt: skip
        SiteSecret.load_or_create(first.config.store.secret)
        shutil.copytree(first.directory, directory / "1")
        sites, wires, relays = [first, Site(directory / "1")], [], []
        for number, site in enumerate(sites):
            wires.append(await stack.enter_async_context(Wire(server.directory / ".s.PGSQL.5432")))
            text = site.config_file.read_text().replace("relay.alice", f"relay-{number}.alice")
            url = f"postgresql://relay@{wires[-1].address}/postgres"
            site.config_file.write_text(text.replace('database = "relay.db"', f'database = "{url}"'))
            relays.append(await stack.enter_async_context(relay_process(site, before=SHORT_LEASES)))
        yield Twins(sites, wires, relays, server, stack)


async def run(directory: Path, server: PostgreSQLServer, *, seconds: float, seed: int, senders: int = 8) -> Report:
    """Mail flows under fire for so long; then everything is mended, and every promise is checked."""
    chance, report = random.Random(seed), Report()
    link = LinkSettings(
        key_rate=1e9, stored_key_limit=1_000_000, max_sae_id_count=0, remembered=10_000_000
    )  # no keys for trials
    async with AsyncExitStack() as stack:
        kmes = DevelopmentKMEs(state_dir=directory / "kme", host="127.0.0.1", ports=(0, 0), link=link)
        await stack.enter_async_context(kmes)
        sink = await stack.enter_async_context(Mailboxes(chance))
        both = await stack.enter_async_context(twins(directory, server, kmes, sink))
        until = time.monotonic() + seconds
        numbers = iter(range(10**9))
        sent: dict[int, list[str]] = {}

        async def sender() -> None:
            while time.monotonic() < until:
                number = next(numbers)
                sent[number] = chance.sample(PEOPLE, chance.choice((1, 2, 3)))
                await _until_taken(both, number, sent[number], chance)

        async with asyncio.TaskGroup() as group:
            group.create_task(both.suffer(chance, until))
            for _ in range(senders):
                group.create_task(sender())
        report.messages, report.keys_issued = len(sent), int(kmes.link.issued.total())
        report.hits = Counter(hit.kind for hit in both.hits)
        report.interrupted = sum(relay.log.count('"delivery_interrupted"') for relay in both.relays)
        _check(report, sent, sink, both.hits)
    return report


async def _until_taken(both: Twins, number: int, recipients: list[str], chance: random.Random) -> None:
    """As a mail server does, which may find either relay."""
    message = mails.plain(body=f"number {number}\r\n").replace(b"<1@", b"<%d@" % number)
    async with asyncio.timeout(120):
        while True:
            which = chance.randrange(2)
            address = both.relays[which].addresses["outgoing"]
            try:
                async with asyncio.timeout(chance.choice((1, 20))):  # not all clients are patient
                    reply = await submit(address, message, recipients=recipients)
            except TimeoutError:
                now = time.monotonic()
                both.hits.append(Hit("client_left", which, now, now, number))
            except (OSError, EOFError, aiosmtplib.SMTPException):
                pass
            else:
                if reply.code == 250:
                    return
                assert reply.code == 451, reply
            await asyncio.sleep(chance.uniform(0.02, 0.2))


def _check(report: Report, sent: dict[int, list[str]], sink: Mailboxes, hits: list[Hit]) -> None:
    sealed_under: defaultdict[str, set[bytes]] = defaultdict(set)
    for number, recipients in sent.items():
        for recipient in recipients:
            copies = sink.copies[number, recipient]
            report.copies += len(copies)
            if not copies:
                report.faults.append(f"message {number} to {recipient} is lost")
            for copy in copies[:-1]:
                if (hit := next((hit for hit in hits if hit.explains(number, copy)), None)) is not None:
                    report.repeated[hit.kind] += 1
                else:
                    near = [
                        (round(hit.start - copy.at, 2), hit.kind, hit.relay)
                        for hit in hits
                        if hit.message in (None, number)
                    ]
                    near = [each for each in near if -10 < each[0] < 5]
                    report.faults.append(f"message {number} to {recipient} came again: {copies}; hits near it: {near}")
            for copy in copies:
                for key_ID in key_ids(copy.sealed) if copy.sealed else ():
                    sealed_under[key_ID].add(copy.sealed)
    report.ciphertexts = len(set().union(*sealed_under.values()))
    report.faults += [f"key {key_ID} has sealed two messages" for key_ID, each in sealed_under.items() if len(each) > 1]


@click.command()
@click.option("--seconds", default=60.0, show_default=True, help="How long.")
@click.option("--seed", default=1, show_default=True, help="Chooses messages, faults and their order.")
def main(seconds: float, seed: int) -> None:
    """Two relays of one site under random faults; every promise is checked afterwards. Needs PostgreSQL."""
    programs = find_programs()
    if programs is None:
        raise click.ClickException("PostgreSQL is not installed")
    with tempfile.TemporaryDirectory(prefix="qumail-pg-") as database, tempfile.TemporaryDirectory() as directory:
        server = PostgreSQLServer(programs, Path(database))
        server.create()
        server.start()
        try:
            report = asyncio.run(run(Path(directory), server, seconds=seconds, seed=seed))
        finally:
            server.stop()
    tell_and_exit(report)


if __name__ == "__main__":
    main()
