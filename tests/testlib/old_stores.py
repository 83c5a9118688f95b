"""Stores that earlier releases have left behind, killed with mail under way: made by those releases, kept in data/stores.
Standard: `python -m tests.testlib.old_stores COMMIT` makes one anew, from that commit and with what is installed here.

Alice's relay and Bob's serve as processes of that commit; what sends, receives and issues keys is of today. When both
are killed, Alice has delivered a mail to one of two recipients, has one that waits for all, and has just sent one. Bob
has delivered one, has one for one of two, has the keys of one that waits, and has keys of another in no store yet. Two
wait in quarantine.
"""

from __future__ import annotations

import argparse
import asyncio
import base64
import json
import os
import shutil
import signal
import sqlite3
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, closing, contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import asyncpg

from relay.config import TCPAddress
from relay.formats import mime
from relay.kme import DevelopmentKMEs, LinkSettings
from tests.testlib import mails
from tests.testlib.databases import PostgreSQLServer, find_programs
from tests.testlib.sink import Sink
from tests.testlib.sites import Site, make_site
from tests.testlib.submit import submit

ROOT = Path(__file__).parents[2]
DATA = ROOT / "tests" / "data" / "stores"
BEN, BEA, EVE = "ben@bob.example", "bea@bob.example", "eve@bob.example"
ANN, EVA = "ann@alice.example", "eva@alice.example"
BUSY = "450 4.2.1 mailbox busy"
POLICIES = {"default.toml": 'levels = ["aes"]\n', "bob.example/bea.toml": 'levels = ["otp"]\n'}
BOBS_POLICIES = {
    **POLICIES,
    "alice.example/eva.toml": 'levels = ["aes"]\nrequire = "otp"\nunprotected = "quarantine"\n',
}
KMES = "prefetch = false\n"
OF_STATE = ("store.beat", "restore.check", "site.secret", "alarms.json", "held.json")
DIRECTORIES = ("keys.spool", "sent.recent", "audit.pending", "audit")
BACKENDS = ("sqlite", "postgresql")


@dataclass(frozen=True)
class OldStores:
    """What one release has left behind on one back end; `made_at` is in seconds since 1970."""

    commit: str
    schema: int
    backend: str
    made_at: float
    files: dict[str, bytes] = field(repr=False)
    """By path: mails, and for each site an SQL dump and what lay beside its database."""

    @classmethod
    def read(cls, path: Path) -> OldStores:
        """From one of the files in data/stores."""
        content = json.loads(path.read_text())
        files = {name: base64.b64decode(each) for name, each in content.pop("binary").items()}
        return cls(**content | {"files": files | {name: each.encode() for name, each in content["files"].items()}})

    def write(self) -> None:
        """Into data/stores."""
        texts = {name: each.decode() for name, each in self.files.items() if _is_text(each)}
        binary = {name: base64.b64encode(each).decode() for name, each in self.files.items() if name not in texts}
        content = asdict(self) | {"files": texts, "binary": binary}
        DATA.mkdir(exist_ok=True)
        (DATA / f"{self.name}.json").write_text(json.dumps(content, indent=0, sort_keys=True) + "\n")

    @property
    def name(self) -> str:
        """For people."""
        return f"{self.schema}-{self.commit}-{self.backend}"

    def mail(self, name: str) -> bytes:
        """A mail as it was submitted, or as Alice has sealed it."""
        return self.files[f"{name}.eml"]

    def dump(self, name: str) -> str:
        """The database of this site as SQL."""
        return self.files[f"{name}.sql"].decode()

    def put(self, name: str, directory: Path) -> None:
        """Puts the files beside the database, and an SQLite database, into a site's directory."""
        for path, content in self.files.items():
            if path.startswith(f"{name}/"):
                file = directory / path.removeprefix(f"{name}/")
                file.parent.mkdir(mode=0o700, exist_ok=True)
                file.touch(mode=0o600)
                file.write_bytes(content)
        if self.backend == "sqlite":
            with closing(sqlite3.connect(directory / "relay.db")) as database:
                database.executescript(self.dump(name))
            (directory / "relay.db").chmod(0o600)

    async def load(self, name: str, url: str) -> None:
        """Fills an empty PostgreSQL database."""
        connection = await asyncpg.connect(url)
        try:
            await connection.execute(self.dump(name))
        finally:
            await connection.close()


def _is_text(content: bytes) -> bool:
    try:
        return "\0" not in content.decode()
    except UnicodeDecodeError:
        return False


def all_stores() -> list[OldStores]:
    """All that there are, in the order of their schemas."""
    return [OldStores.read(path) for path in sorted(DATA.glob("*.json"))]


@asynccontextmanager
async def _relay(tree: Path, site: Site) -> AsyncIterator[tuple[int, dict[str, TCPAddress]]]:
    """`serve` of the release in `tree`: its process and addresses; killed in the end if it still runs."""
    ready = site.directory / "ready"
    with (site.directory / "relay.log").open("ab") as log:
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-P", "-m", "relay", "serve", "--config", site.config_file, "--ready-file", ready,
            cwd=site.directory, stderr=log, env={**os.environ, "PYTHONPATH": str(tree)},
        )  # fmt: skip
    try:
        while not ready.exists():
            assert process.returncode is None, (site.directory / "relay.log").read_text()
            await asyncio.sleep(0.05)
        lines = (line.split() for line in ready.read_text().splitlines())
        yield (
            process.pid,
            {name: TCPAddress(*_host_and_port(where)) for name, where in lines},
        )
    finally:
        if process.returncode is None:
            process.kill()
        await process.wait()


def _host_and_port(where: str) -> tuple[str, int]:
    host, port = where.rsplit(":", 1)
    return host, int(port)


async def _make(tree: Path, work: Path, to: Path, backend: str, server: PostgreSQLServer) -> None:
    link = LinkSettings(key_rate=1_000_000)
    async with (
        DevelopmentKMEs(state_dir=work / "kme", host="127.0.0.1", ports=(0, 0), link=link) as kmes,
        Sink() as wire,
        Sink() as hop,
    ):
        alice = make_site(
            work / "alice", "alice", state=kmes.state_dir, kme_url=kmes.urls[0], outgoing=wire.address,
            policies=POLICIES, kme_settings=KMES,
        )  # fmt: skip
        bob = make_site(
            work / "bob", "bob", state=kmes.state_dir, kme_url=kmes.urls[1], incoming=hop.address,
            policies=BOBS_POLICIES, kme_settings="lag_patience = 0\n",
        )  # fmt: skip
        if backend == "postgresql":
            for site in (alice, bob):
                await _query(server.url(), f"CREATE DATABASE {site.directory.name}")
                text = site.config_file.read_text()
                url = server.url(site.directory.name)
                site.config_file.write_text(text.replace('database = "relay.db"', f'database = "{url}"'))
        async with _relay(tree, alice) as (sealing, outgoing), _relay(tree, bob) as (opening, incoming):
            sent = _Sent(to, outgoing["outgoing"], incoming["incoming"], wire, hop)
            await sent.all(sealing, opening, lambda: _locked(bob, backend, server))
        for site in (alice, bob):
            _keep(site, to, backend, server)


@dataclass
class _Sent:
    """The mails of both sites, which are written into `to`."""

    to: Path
    outgoing: TCPAddress
    incoming: TCPAddress
    wire: Sink
    hop: Sink

    async def all(self, sealing: int, opening: int, locked: Any) -> None:
        """Leaves both relays killed, with what the top of this file says."""
        for name, recipients in (
            ("opened", [BEN]), ("opened-in-part", [BEN, EVE]), ("keys-here", [BEA]), ("keys-on-their-way", [BEA]),
            ("unprotected", [BEN]), ("tampered", [BEN]), ("just-opened", [BEN]),
        ):  # fmt: skip
            assert await self.out(name, recipients) == 250, name
            [got] = self.wire.got
            self.wire.got.clear()
            (self.to / f"{name}-sealed.eml").write_bytes(got.message)
        assert await self.into("opened", [BEN]) == 250
        self.hop.on_rcpt = {EVE: BUSY, BEA: BUSY}
        assert await self.into("opened-in-part", [BEN, EVE]) == 451
        assert await self.into("keys-here", [BEA]) == 451
        self.hop.on_rcpt = {}
        assert await self.into("unprotected", [BEN]) == 250
        sealed = self.to / "tampered-sealed.eml"
        header, body = mime.split(sealed.read_bytes())
        at = len(body) - 40
        sealed.write_bytes(header + body[:at] + (b"A" if body[at : at + 1] != b"A" else b"B") + body[at + 1 :])
        assert await self.into("tampered", [BEN]) == 250
        # What a copy of the store lacks that is older than the file beside the secret is seen by the next sweep.
        await asyncio.sleep(2.0)
        self.wire.on_rcpt = {BEA: BUSY, EVE: BUSY}
        assert await self.out("sent-in-part", [BEN, EVE]) == 451
        assert await self.out("waits", [BEA]) == 451
        assert [got.recipients for got in self.wire.got] == [(BEN,)]
        assert await self.out("just-sent", [BEN]) == 250
        os.kill(sealing, signal.SIGKILL)
        assert await self.into("just-opened", [BEN]) == 250
        with locked():
            assert await self.into("keys-on-their-way", [BEA]) == 451
            os.kill(opening, signal.SIGKILL)
            await asyncio.sleep(1.0)  # its second process ends
        assert [got.recipients for got in self.hop.got] == [(BEN,), (BEN,), (BEN,)]

    async def out(self, name: str, recipients: list[str]) -> int:
        message = mails.plain(name).replace(b"<1@", f"<{name}@".encode())
        message = message.replace(ANN.encode(), _sender(name).encode())
        (self.to / f"{name}.eml").write_bytes(message)
        return (await submit(self.outgoing, message, sender=_sender(name), recipients=recipients)).code

    async def into(self, name: str, recipients: list[str]) -> int:
        sealed = (self.to / f"{name}-sealed.eml").read_bytes()
        return (await submit(self.incoming, sealed, sender=_sender(name), recipients=recipients)).code


def _sender(name: str) -> str:
    return EVA if name == "unprotected" else ANN


@contextmanager
def _locked(site: Site, backend: str, server: PostgreSQLServer) -> Iterator[None]:
    """Nobody writes received keys into the database."""
    if backend == "sqlite":
        with closing(sqlite3.connect(site.directory / "relay.db", isolation_level=None)) as database:
            database.execute("BEGIN IMMEDIATE")
            yield
        return
    psql = subprocess.Popen(
        [server.programs / "psql", "-q", server.url(site.directory.name)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    assert psql.stdin is not None and psql.stdout is not None
    psql.stdin.write(b"BEGIN; LOCK TABLE received_keys IN EXCLUSIVE MODE; SELECT 1;\n")
    psql.stdin.flush()
    psql.stdout.readline()
    try:
        yield
    finally:
        psql.kill()
        psql.wait()


async def _query(url: str, statement: str) -> Any:
    connection = await asyncpg.connect(url)
    try:
        return await connection.fetchval(statement)
    finally:
        await connection.close()


def _keep(site: Site, to: Path, backend: str, server: PostgreSQLServer) -> None:
    name = site.directory.name
    kept = to / name
    kept.mkdir()
    for each in OF_STATE:
        if (site.directory / each).exists():
            shutil.copy(site.directory / each, kept / each)
    for each in DIRECTORIES:
        if (site.directory / each).is_dir():
            shutil.copytree(site.directory / each, kept / each)
    for path in kept.rglob("*"):
        if path.is_file() and path.suffix in (".spool", ".sent", ".announced"):
            path.write_bytes(path.read_bytes().rstrip(b"\0") + bytes(4))
            if path.stat().st_size == 4:
                path.unlink()
    (to / f"{name}.sql").write_text(_dump(site, backend, server))


def _dump(site: Site, backend: str, server: PostgreSQLServer) -> str:
    if backend == "sqlite":
        with closing(sqlite3.connect(site.directory / "relay.db")) as database:
            return "\n".join(database.iterdump()) + "\n"
    dumped = subprocess.run(
        [server.programs / "pg_dump", "--inserts", "--no-owner", "--no-privileges", server.url(site.directory.name)],
        check=True, capture_output=True, text=True,
    ).stdout  # fmt: skip
    lines = (line for line in dumped.splitlines() if line and not line.startswith(("--", "\\", "SET ", "SELECT pg_")))
    return "\n".join(lines) + "\n"


async def make(commit: str) -> None:
    """Makes the stores of a commit on both back ends."""
    programs = find_programs()
    assert programs is not None
    short = _said("git", "rev-parse", "--short=8", commit)
    with tempfile.TemporaryDirectory(prefix="qumail-stores-") as name:
        work = Path(name)
        work.chmod(0o755)  # PostgreSQL runs as another user
        (tree, pg) = work / "tree", work / "pg"
        tree.mkdir()
        pg.mkdir()
        archive = subprocess.run(["git", "archive", commit], cwd=ROOT, check=True, capture_output=True).stdout
        subprocess.run(["tar", "x"], cwd=tree, input=archive, check=True)
        program = "from relay.store.database import SCHEMA_VERSION; print(SCHEMA_VERSION)"
        schema = int(_said(sys.executable, "-P", "-c", program, PYTHONPATH=str(tree)))
        server = PostgreSQLServer(programs, pg)
        server.create()
        server.start()
        try:
            for backend in BACKENDS:
                to = work / f"of-{backend}"
                to.mkdir()
                await _make(tree, work / backend, to, backend, server)
                files = {str(path.relative_to(to)): path.read_bytes() for path in to.rglob("*") if path.is_file()}
                OldStores(short, schema, backend, round(time.time()), files).write()
        finally:
            server.stop()


def _said(*command: str, **environment: str) -> str:
    done = subprocess.run(
        command, cwd=ROOT, check=True, capture_output=True, text=True, env={**os.environ, **environment}
    )
    return done.stdout.strip()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        prog="python -m tests.testlib.old_stores",
        description="Makes the stores that the release of a commit leaves behind.",
    )
    parser.add_argument("commit", help="a commit of this repository")
    asyncio.run(make(parser.parse_args().commit))
