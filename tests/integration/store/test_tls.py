"""A store on another host: TLS with a verified certificate, or no connection; check says where that is not asked for.
Standard: libpq's sslmode, sslrootcert, sslcert and sslkey in the store's URL; a real PostgreSQL over TCP.
"""

from __future__ import annotations

import asyncio
import os
import shutil
import tempfile
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import trustme
from click.testing import CliRunner
from sqlalchemy import make_url, text

from relay.cli.check import check
from relay.errors import ConfigError, StoreUnavailable
from relay.store.database import open_database, transport_problem
from relay.store.postgresql import postgresql_engine
from relay.store.secret import SiteSecret
from relay.store.store import open_store
from tests.testlib.databases import PostgreSQLServer, new_server
from tests.testlib.ports import free_addresses
from tests.unit.identity.homes import write_config

USER, CERTIFIED = "relay", "certified"
"""Who needs no certificate, and who does."""
HBA = f"""\
local   all {USER}                 trust
hostssl all {USER}    127.0.0.1/32 trust
hostssl all {CERTIFIED} 127.0.0.1/32 cert
"""


@dataclass(frozen=True)
class Remote:
    """A PostgreSQL server with a certificate for localhost, which takes nobody without TLS."""

    port: int
    files: Path

    def url(self, host: str = "localhost", user: str = USER, **options: str | Path | None) -> str:
        """What stands in relay.toml; sslrootcert is the right one unless said otherwise."""
        given: dict[str, str | Path | None] = {
            "sslmode": "verify-full",
            "sslrootcert": self.files / "ca.pem",
            **options,
        }
        query = "&".join(f"{name}={value}" for name, value in given.items() if value is not None)
        return f"postgresql://{user}@{host}:{self.port}/postgres?{query}"


@pytest.fixture(scope="module")
def remote(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Remote]:
    [address] = free_addresses(1)
    with new_server(tmp_path_factory) as running, tempfile.TemporaryDirectory() as files:
        authority = _certificates(Path(files))
        _serve_tls(running, authority, address.port)
        running.start()
        try:
            asyncio.run(_make_user(running.url() + f"&port={address.port}"))
            yield Remote(address.port, Path(files))
        finally:
            running.stop()


async def _make_user(url: str) -> None:
    database = await open_database(url, busy_timeout=1.0)
    await database.write(text(f"CREATE ROLE {CERTIFIED} LOGIN SUPERUSER"))
    await database.close()


def _certificates(directory: Path) -> trustme.CA:
    """Files for clients: the authority, a stranger, and a certificate for the user who needs one."""
    authority, stranger = trustme.CA(), trustme.CA()
    authority.cert_pem.write_to_path(directory / "ca.pem")
    stranger.cert_pem.write_to_path(directory / "stranger.pem")
    for who, issuer in ((CERTIFIED, authority), ("somebody", authority), ("forged", stranger)):
        issued = issuer.issue_cert(common_name=CERTIFIED if who == "forged" else who)
        issued.private_key_pem.write_to_path(directory / f"{who}.key")
        issued.cert_chain_pems[0].write_to_path(directory / f"{who}.pem")
    return authority


def _serve_tls(server: PostgreSQLServer, authority: trustme.CA, port: int) -> None:
    data = server.directory / "data"
    own = authority.issue_cert("localhost")
    authority.cert_pem.write_to_path(data / "ca.pem")
    own.private_key_pem.write_to_path(data / "server.key")
    own.cert_chain_pems[0].write_to_path(data / "server.crt")
    (data / "server.key").chmod(0o600)
    (data / "pg_hba.conf").write_text(HBA)
    with (data / "postgresql.conf").open("a") as settings:
        settings.write(f"listen_addresses = '127.0.0.1'\nport = {port}\nssl = on\nssl_ca_file = 'ca.pem'\n")
    owner = data.stat()
    for path in (data / "server.key", data / "server.crt", data / "ca.pem"):
        shutil.chown(path, owner.st_uid, owner.st_gid)


@pytest.fixture(autouse=True)
def _home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No certificates and settings of the user who runs the tests."""
    monkeypatch.setenv("HOME", str(tmp_path))
    for name in ("PGSSLMODE", "PGSSLROOTCERT", "PGSSLCERT", "PGSSLKEY", "PGHOST", "PGSERVICE"):
        monkeypatch.delenv(name, raising=False)


async def test_with_verify_full_the_store_is_reached_over_tls(remote: Remote, secret: SiteSecret) -> None:
    async with await open_store(remote.url(), secret) as store:
        await store.received.put("g", "alice", {"k": b"key"})
    database = await open_database(remote.url(), busy_timeout=1.0)
    try:
        found = await database.rows(text("SELECT ssl, version FROM pg_stat_ssl WHERE pid = pg_backend_pid()"))
        assert found == [(True, "TLSv1.3")]
    finally:
        await database.close()


@pytest.mark.parametrize(
    ("host", "options", "cause"),
    [
        ("127.0.0.1", {}, "certificate"),
        ("localhost", {"sslrootcert": "stranger.pem"}, "certificate"),
        ("127.0.0.1", {"sslmode": "verify-ca", "sslrootcert": "stranger.pem"}, "certificate"),
        ("localhost", {"sslmode": "disable", "sslrootcert": None}, "no pg_hba.conf entry"),
    ],
    ids=["another name", "another authority", "verify-ca", "the server wants TLS"],
)
async def test_a_server_with_another_name_or_authority_is_not_spoken_to(
    remote: Remote, secret: SiteSecret, host: str, options: dict[str, Any], cause: str
) -> None:
    if name := options.get("sslrootcert"):
        options = options | {"sslrootcert": str(remote.files / name)}
    with pytest.raises(StoreUnavailable, match=cause):
        await open_store(remote.url(host, **options), secret)


async def test_verify_ca_looks_at_the_authority_alone(remote: Remote, secret: SiteSecret) -> None:
    await (await open_store(remote.url("127.0.0.1", sslmode="verify-ca"), secret)).close()


async def test_the_server_may_want_a_certificate_of_ours(remote: Remote, secret: SiteSecret) -> None:
    def url(who: str) -> str:
        return remote.url(user=CERTIFIED, sslcert=remote.files / f"{who}.pem", sslkey=remote.files / f"{who}.key")

    with pytest.raises(StoreUnavailable, match="certificate"):
        await open_store(remote.url(user=CERTIFIED), secret)
    for who in ("somebody", "forged"):
        with pytest.raises(StoreUnavailable):
            await open_store(url(who), secret)
    await (await open_store(url(CERTIFIED), secret)).close()


@asynccontextmanager
async def _without_tls() -> AsyncIterator[tuple[int, bytearray]]:
    """A server that says that it has no TLS, on a port, and what it is told after that; at the end it has heard all."""
    told, heard = bytearray(), asyncio.Event()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readexactly(8)
        writer.write(b"N")
        told.extend(await reader.read())
        writer.close()
        heard.set()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    async with server:
        yield server.sockets[0].getsockname()[1], told
        await heard.wait()


@pytest.mark.parametrize("mode", ["require", "verify-ca", "verify-full"])
async def test_a_server_that_refuses_tls_is_told_nothing(remote: Remote, secret: SiteSecret, mode: str) -> None:
    async with _without_tls() as (port, told):
        url = Remote(port, remote.files).url("127.0.0.1", sslmode=mode)
        with pytest.raises(StoreUnavailable, match="rejected SSL"):
            await open_store(url, secret)
    assert told == b""


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        ({"sslmode": "verify_full"}, "sslmode: 'verify_full' is none of disable, allow, prefer, require, verify-ca, verify-full"),
        ({"sslrootcert": "/nowhere/ca.pem"}, "sslrootcert: /nowhere/ca.pem: No such file or directory"),
        ({"sslrootcert": "/etc"}, "sslrootcert: /etc: Is a directory"),
        ({"sslrootcert": "/etc/passwd"}, "sslrootcert: /etc/passwd: no certificates in PEM"),
        ({"sslrootcert": None}, "sslrootcert: not set"),
        ({"sslcert": "/nowhere/relay.pem"}, "sslcert: /nowhere/relay.pem: No such file or directory"),
        ({"sslcert": "somebody.pem", "sslkey": "forged.key"}, "sslcert, sslkey: "),
    ],
)  # fmt: skip
async def test_settings_that_cannot_be_right_are_said_before_anything_is_tried(
    remote: Remote, secret: SiteSecret, options: dict[str, Any], problem: str
) -> None:
    for name in ("sslcert", "sslkey"):
        if (value := options.get(name)) and "/" not in value:
            options = options | {name: str(remote.files / value)}
    with pytest.raises(ConfigError) as caught:
        await open_store(remote.url("hunter2.example", **options), secret)
    assert problem in str(caught.value)


@pytest.mark.parametrize(
    ("name", "error"), [("sslrootcert", ConfigError), ("sslcert", ConfigError), ("sslcrl", StoreUnavailable)]
)
async def test_a_fifo_in_place_of_a_file_for_tls_is_not_waited_for(
    secret: SiteSecret, tmp_path: Path, name: str, error: type[Exception]
) -> None:
    trustme.CA().cert_pem.write_to_path(tmp_path / "ca.pem")
    os.mkfifo(tmp_path / "fifo")
    files = f"sslrootcert={tmp_path}/ca.pem&{name}={tmp_path}/fifo"
    with pytest.raises(error, match=f"{name}: {tmp_path}/fifo: not a regular file"):
        await open_store(f"postgresql://relay@localhost:1/mail?sslmode=verify-full&{files}", secret)


async def test_a_fifo_that_takes_such_a_files_place_later_holds_up_no_event_loop(
    remote: Remote, tmp_path: Path
) -> None:
    authority = shutil.copy(remote.files / "ca.pem", tmp_path / "ca.pem")
    engine = postgresql_engine(make_url(remote.url(sslrootcert=authority)), 5, busy_timeout=1.0, pool_timeout=1.0)
    async with engine.connect() as connected:
        os.mkfifo(tmp_path / "fifo")
        (tmp_path / "fifo").rename(authority)
        with pytest.raises(StoreUnavailable, match=f"sslrootcert: {authority}: not a regular file"):
            await engine.connect()
        assert (await connected.execute(text("SELECT 1"))).scalar() == 1
    await engine.dispose()


@pytest.mark.parametrize(
    ("where", "weak"),
    [
        ("/var/lib/qumail-relay/relay.db", False),
        ("postgresql://relay@/mail", False),
        ("postgresql://relay@localhost/mail", False),
        ("postgresql://relay@127.0.0.2/mail", False),
        ("postgresql://relay@[::1]/mail", False),
        ("postgresql://relay@/mail?host=/run/postgresql", False),
        ("postgresql://relay@db.example/mail?sslmode=verify-full", False),
        ("postgresql://relay@/mail?host=db.example&sslmode=verify-full", False),
        ("postgresql://relay@db.example/mail", True),
        ("postgresql://relay@192.0.2.1/mail", True),
        ("postgresql://relay@[2001:db8::1]/mail", True),
        ("postgresql://relay@db.example/mail?sslmode=prefer", True),
        ("postgresql://relay@db.example/mail?sslmode=require", True),
        ("postgresql://relay@db.example/mail?sslmode=verify-ca", True),
        ("postgresql://relay@/mail?host=db.example", True),
        ("postgresql://relay@/mail?host=/run/postgresql&host=db.example", True),
        ("postgresql://relay@/mail?host=localhost,db.example:5433", True),
        ("postgresql://relay@/mail?service=mail", True),
    ],
)
def test_a_store_on_another_host_without_verify_full_is_told(where: str, weak: bool) -> None:
    said = transport_problem(Path(where) if where.startswith("/") else where)
    assert bool(said) == weak
    assert not weak or "sslmode=verify-full" in said


def test_the_environment_counts_as_it_does_for_the_driver(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PGHOST", "db.example")
    assert transport_problem("postgresql://relay@/mail")
    monkeypatch.setenv("PGSSLMODE", "verify-full")
    assert not transport_problem("postgresql://relay@/mail")
    assert transport_problem("postgresql://relay@/mail?sslmode=prefer")


@pytest.mark.parametrize(("options", "open_to_others"), [("", True), ("?sslmode=verify-full", False)])
def test_check_says_so_without_the_password(tmp_path: Path, options: str, open_to_others: bool) -> None:
    home = write_config(tmp_path, "alice")
    where = f"postgresql://relay:hunter2@db.example/mail{options}"
    home.config_file.write_text(home.config_file.read_text().replace('"relay.db"', f'"{where}"'))
    said = CliRunner().invoke(check, ["--config", str(home.config_file)]).stdout
    assert ("WRONG  store  db.example is another host" in said) == open_to_others
    assert "hunter2" not in said
