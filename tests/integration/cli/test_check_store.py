"""What `check` says of the store's file and of those beside it: gone, empty, another program's, of no use.
Standard: what is lost with a file is said before the relay starts without it; nothing waits for a FIFO.
"""

from __future__ import annotations

import json
import os
import shutil
import sqlite3
import tempfile
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import pytest

from relay.kme import DevelopmentKMEs
from relay.process import app
from relay.store.secret import SiteSecret
from relay.store.sqlite import serving
from tests.testlib.ports import free_address
from tests.testlib.relay_command import run
from tests.testlib.sink import Sink
from tests.testlib.sites import Site, make_site, relay_process

Findings = dict[str, list[str]]
REGULAR = ("restore.check", "held.json", "alarms.json", "former_peers.json", "keys.json")


@pytest.fixture
def site(tmp_path: Path, kmes: DevelopmentKMEs, sink: Sink) -> Site:
    address = sink.address
    return make_site(
        tmp_path / "bob", "bob", state=kmes.state_dir, kme_url=kmes.urls[1], incoming=address, outgoing=address
    )


async def findings(site: Site) -> Findings:
    _, _, out = await run("check", "--json", "--config", site.config_file)
    return {each["what"]: each["problems"] for each in json.loads(out)}


async def has_served(site: Site) -> None:
    async with app.running(site.config):
        pass
    assert (await findings(site))["store"] == []


def fifo(path: Path) -> None:
    path.unlink(missing_ok=True)
    os.mkfifo(path)


def directory(path: Path) -> None:
    path.unlink(missing_ok=True)
    path.mkdir()


def no_database(path: Path) -> None:
    path.write_bytes(b"no database\n" * 1000)


def of_another_program(path: Path) -> None:
    path.unlink(missing_ok=True)
    with closing(sqlite3.connect(path)) as connection:
        connection.execute("CREATE TABLE bookmarks (url TEXT)")


def of_a_newer_relay(path: Path) -> None:
    with closing(sqlite3.connect(path)) as connection, connection:
        connection.execute("UPDATE store_schema SET version = 99")


@pytest.mark.parametrize(
    ("made", "said"),
    [
        (fifo, "no regular file: move it away"),
        (directory, "no regular file: move it away"),
        (no_database, "is not an SQLite database: move it away"),
        (of_another_program, "has another program's tables and none of a relay's: move it away"),
        (of_a_newer_relay, "was written by a newer relay (schema 99, "),
    ],
)
async def test_what_is_no_relays_database_is_said_wherever_the_store_is_opened(
    site: Site, made: Callable[[Path], None], said: str
) -> None:
    await has_served(site)
    path = site.directory / "relay.db"
    made(path)
    found = await findings(site)
    assert any(str(path) in each and said in each for each in found["store"]), found["store"]
    for command in (("quarantine", "list"), ("serve",)):
        status, err, _ = await run(*command, "--config", site.config_file)
        assert status != 0
        assert said in err
        assert str(path) in err
    if made is of_another_program:
        with closing(sqlite3.connect(path)) as connection:
            assert connection.execute("SELECT name FROM sqlite_master").fetchall() == [("bookmarks",)]


async def test_where_there_has_been_no_store_yet_all_is_well(site: Site) -> None:
    assert (await findings(site))["store"] == []


@pytest.mark.promise("Received keys and messages in quarantine lie sealed under the site's secret")
async def test_a_secret_on_the_file_system_of_what_it_seals_is_said_to_be_there_and_is_no_fault(site: Site) -> None:
    await has_served(site)
    said = f"on the same file system as {site.directory / 'relay.db'}, which it seals: "
    assert said in await secret_line(site)
    with another_file_system(site.directory) as elsewhere:
        secret = shutil.copy(site.directory / "site.secret", elsewhere)
        settings = site.config_file.read_text().replace('"site.secret"', f'"{secret}"')
        site.config_file.write_text(settings)
        assert await secret_line(site) == str(secret)


@pytest.mark.parametrize("directory", ["", '\ndirectory = "own"'])
async def test_a_relay_whose_secret_is_a_credential_keeps_its_files_elsewhere_and_check_is_well(
    site: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, directory: str
) -> None:
    SiteSecret.load_or_create(tmp_path / "credentials" / "site.secret")
    named = '"/run/credentials/qumail-relay.service/site.secret"'
    site.config_file.write_text(site.config_file.read_text().replace('"site.secret"', named + directory))
    [missing] = (await findings(site))["store secret"]
    assert "credential site.secret is there only while qumail-relay.service runs with it" in missing
    monkeypatch.setenv("CREDENTIALS_DIRECTORY", str(tmp_path / "credentials"))
    await has_served(site)
    own = site.directory / "own" if directory else site.directory
    for name in ("alarms.json", "keys.json", "former_peers.json", "restore.check", "audit"):
        assert (own / name).exists(), name
    found = await findings(site)
    assert (found["store secret"], found["rights"], found["state files"]) == ([], [], [])


async def secret_line(site: Site) -> str:
    """What `check` says of the secret, in which nothing is wrong."""
    environment = {"STATE_DIRECTORY": str(site.directory)}
    _, _, out = await run("check", "--json", "--config", site.config_file, environment=environment)
    [line] = [each for each in json.loads(out) if each["what"] == "store secret"]
    assert line["problems"] == []
    return str(line["detail"])


@contextmanager
def another_file_system(than: Path) -> Iterator[Path]:
    """A directory on another file system."""
    for each in map(Path, ("/dev/shm", "/tmp", "/var/tmp", "/run")):
        if each.is_dir() and os.access(each, os.W_OK) and each.stat().st_dev != than.stat().st_dev:
            with tempfile.TemporaryDirectory(dir=each) as made:
                yield Path(made)
            return
    pytest.skip("all directories that can be written are on one file system")


@pytest.mark.parametrize("what", ["gone", "empty"])
async def test_a_store_that_was_there_is_missed(site: Site, what: str) -> None:
    await has_served(site)
    path = site.directory / "relay.db"
    path.unlink()
    if what == "empty":
        path.touch()
    [problem] = (await findings(site))["store"]
    assert problem.startswith(f"{path}: is gone or empty, and {site.directory / 'restore.check'} says ")
    assert "what was delivered" in problem


async def test_a_store_that_is_emptied_under_a_relay_is_missed(site: Site) -> None:
    async with relay_process(site):
        os.truncate(site.directory / "relay.db", 0)
        [problem] = (await findings(site))["store"]
    assert "is gone or empty" in problem


@pytest.mark.parametrize("what", ["deleted", "moved", "another"])
async def test_a_file_taken_away_from_under_the_relay_that_serves_is_named_and_no_listener_is_accused(
    site: Site, what: str
) -> None:
    path = site.directory / "relay.db"
    listen = {"incoming": free_address(), "outgoing": free_address()}
    async with relay_process(site, listen=listen):
        if what == "deleted":
            path.unlink()
        else:
            path.rename(site.directory / "elsewhere")
        if what == "another":
            of_another_program(path)
        found = await findings(site)
        status, err, _ = await run("quarantine", "list", "--config", site.config_file)
    told = f"{path}: is not the file from which the relay serves, which was moved or deleted: "
    assert any(told in each for each in found["store"]), found["store"]
    assert status != 0
    assert told in err
    assert [found[f"listener {name}.listen"] for name in listen] == [[], []]


def test_a_lock_on_another_file_of_the_same_number_is_no_relay(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Small file systems number their files alike."""
    path = tmp_path / "relay.db"
    path.touch()
    (tmp_path / "locks").write_text(f"1: FLOCK  ADVISORY  WRITE {os.getpid()} 00:2a:{path.stat().st_ino} 0 EOF\n")
    monkeypatch.setattr("relay.store.sqlite._LOCKS", tmp_path / "locks")
    assert serving(path) is False
    with path.open("rb"):
        assert serving(path) is True


@pytest.mark.parametrize("made", [fifo, directory])
@pytest.mark.parametrize("name", REGULAR)
async def test_what_stands_where_a_file_of_the_relay_has_to_be_is_said(
    site: Site, name: str, made: Callable[[Path], None]
) -> None:
    path = site.directory / name
    made(path)
    [problem] = (await findings(site))["state files"]
    assert problem.startswith(f"{path}: is no regular file: move it away; until then ")


HOSTILE = {
    "nothing": b"",
    "too much": b"",
    "a NUL": b"\0",
    "a list": b"[]",
    "a number": b"17",
    "a word": b'"word"',
    "text in no encoding": b"\xff\xfe\xff",
    "an unclosed depth": b"[" * 100_000,
    "a depth": b'{"a":' * 900 + b"1" + b"}" * 900,
    "a long number": b"9" * 10_000,
    "rows that are none": b'{"alarms": [1, [], {}], "pools": [1, "x"], "levels": {}, "domains": [[]], "clock": {}, "rows": 1}',
    "no moments": b'{"alarms": [{"alarm": "disk_full", "about": "", "cause": "", "since": NaN, "told": Infinity}], "pools":'
    b' [{"kme": [], "peer": {}, "trouble": 1}], "levels": [], "domains": {"a": 1}, "key": "", "clock": 1e999, "rows": ""}',
    "a directory with NUL": b'{"alarms": [], "domains": {}, "pools": [], "levels": [], "release": {"version": "1", '
    b'"directory": "\\u0000", "stamp": ""}}',
}


async def test_whatever_stands_in_the_files_of_a_relay_check_goes_on_and_names_those_that_are_damaged(
    site: Site,
) -> None:
    for what, content in HOSTILE.items():
        for name in REGULAR:
            (site.directory / name).write_bytes(content)
            if what == "too much":
                os.truncate(site.directory / name, 100 * 2**20)
        status, err, out = await run("check", "--json", "--config", site.config_file)
        assert (status, err) == (1, ""), what
        found = {each["what"]: each["problems"] for each in json.loads(out)}
        damaged = [name for name in REGULAR[1:] if f"{site.directory / name}: cannot be read" in str(found)]
        whole = ["alarms.json", "former_peers.json", "keys.json"] if what == "a directory with NUL" else []
        assert set(REGULAR[1:]) - set(damaged) == set(whole), (what, found)
        assert (await run("keys", "status", "--config", site.config_file))[1] == "", what


@pytest.mark.parametrize("made", [fifo, Path.touch])
@pytest.mark.parametrize("name", ["policies.kept", "audit.pending"])
async def test_what_stands_where_a_directory_of_the_relay_has_to_be_is_said(
    site: Site, name: str, made: Callable[[Path], None]
) -> None:
    path = site.directory / name
    made(path)
    [problem] = (await findings(site))["state files"]
    assert problem.startswith(f"{path}: is no directory: move it away; until then ")


async def test_files_that_are_as_they_have_to_be_are_well(site: Site) -> None:
    await has_served(site)
    assert (await findings(site))["state files"] == []


async def test_names_that_somebody_planted_are_no_commands_where_check_names_them(site: Site) -> None:
    await has_served(site)
    copy, planted = site.directory / "relay.db.schema-3", "schema-3;touch pwn"
    policy = site.directory / "policies" / "a;touch pwn.toml"
    for path in (copy, copy.with_name(f"relay.db.{planted}"), copy.with_name("relay.db.schema-$(touch pwn2)"), policy):
        path.touch()
        os.utime(path, (1, 1))
    policy.chmod(0o666)
    said = await findings(site)
    [problem] = said["store"]
    assert problem.startswith(f"{copy}: is the store before an upgrade, ")
    assert problem.endswith(f": rm {copy}")
    assert any(each.startswith(f"'{policy}': everybody can write to it: ") for each in said["rights"])
