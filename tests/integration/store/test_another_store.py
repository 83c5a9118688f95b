"""A store that is not the one that was is told by mail, over restarts, until an administrator says that it is meant.
Standard: a relay that serves as a process, over both back ends; its mail, `check`, and the command that it names.
"""

from __future__ import annotations

import asyncio
import json
import shutil
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

from relay.kme import DevelopmentKMEs
from tests.testlib.alarms import standing, until_written, with_alarms
from tests.testlib.databases import Backend, empty, sqlite_file
from tests.testlib.mails import plain
from tests.testlib.relay_command import run
from tests.testlib.sink import Sink
from tests.testlib.sites import Site, make_site, relay_process
from tests.testlib.submit import submit

NAME = "store_is_another"
SHORT = "from tests.system import drill; drill.kept = drill.shortened(); drill.kept.__enter__()"
IDENTITY = "SELECT store_id, former_id, secret_id, doubt FROM store_identity"


@dataclass(frozen=True)
class Served:
    """A site whose relay has served from this store, and may have stopped; the copy is from before its last run."""

    site: Site
    backend: Backend
    copy: Path

    @property
    def database(self) -> Path:
        return self.site.directory / "relay.db"

    def remove_database(self) -> None:
        for path in self.site.directory.glob("relay.db*"):
            path.unlink()


def bob(directory: Path, kmes: DevelopmentKMEs, sink: Sink, database: str = "relay.db") -> Site:
    site = make_site(directory, "bob", state=kmes.state_dir, kme_url=kmes.urls[1], incoming=sink.address)
    text = site.config_file.read_text()
    site.config_file.write_text(text.replace('database = "relay.db"', f'database = "{database}"'))
    return with_alarms(site, 'mail_to = ["root@bob.example"]')


@pytest.fixture
def where(tmp_path: Path, request: pytest.FixtureRequest) -> Backend:
    if getattr(request, "param", "sqlite") == "sqlite":
        return sqlite_file(tmp_path / "bob" / "relay.db")
    backend: Backend = request.getfixturevalue("postgresql")
    return backend


@pytest.fixture
async def served(tmp_path: Path, kmes: DevelopmentKMEs, sink: Sink, where: Backend) -> Served:
    site = bob(tmp_path / "bob", kmes, sink, where.where)
    copy = tmp_path / "copy"
    async with relay_process(site):
        pass
    shutil.copytree(site.directory, copy)
    async with relay_process(site):
        assert standing(site) == [], "a first start and a restart are no alarm"
    return Served(site, where, copy)


async def _deleted(served: Served) -> None:
    if served.backend.name == "sqlite":
        served.remove_database()
    else:
        await empty(served.backend)


async def _deleted_with_the_file_beside_the_secret(served: Served) -> None:
    await _deleted(served)
    (served.site.directory / "restore.check").unlink()


async def _all_but_the_audit_record_gone(served: Served) -> None:
    """As where the store's copy did not come along with a restore."""
    await _deleted_with_the_file_beside_the_secret(served)
    for each in served.site.directory.glob("*.json"):
        each.unlink()


async def _older(served: Served) -> None:
    if served.backend.name == "sqlite":
        served.remove_database()
        shutil.copy(served.copy / "relay.db", served.database)
    else:
        await served.backend.run("UPDATE restore_check SET mark = mark - 100")


async def _older_without_the_file_beside_the_secret(served: Served) -> None:
    await _older(served)
    (served.site.directory / "restore.check").unlink()


async def _anothers(served: Served) -> None:
    """It is newer, and goes on: only its identity is another's."""
    await served.backend.run("UPDATE store_identity SET store_id = 'another'")
    await served.backend.run("UPDATE restore_check SET mark = mark + 100")


async def _its_mark_gone(served: Served) -> None:
    await served.backend.run("DELETE FROM restore_check")


async def _its_mark_and_identity_gone(served: Served) -> None:
    await served.backend.run("DELETE FROM restore_check")
    await served.backend.run("DELETE FROM store_identity")


async def _another_secret(served: Served) -> None:
    """Gone: the relay makes one anew."""
    (served.site.directory / "site.secret").unlink()


FOLLOWED = ("deleted with the file beside the secret", "another's")
"""By these the alarm is followed over restarts to its end."""

Harm = Callable[[Served], Awaitable[None]]
HARM: dict[str, tuple[Harm, str]] = {
    "deleted": (_deleted, "empty"),
    "deleted with the file beside the secret": (_deleted_with_the_file_beside_the_secret, "empty"),
    "all but the audit record gone": (_all_but_the_audit_record_gone, "empty"),
    "older": (_older, "is older than"),
    "older without the file beside the secret": (_older_without_the_file_beside_the_secret, "restore.check"),
    "another's": (_anothers, "another store"),
    "its mark gone": (_its_mark_gone, "lost its mark"),
    "its mark and identity gone": (_its_mark_and_identity_gone, "is empty"),
    "another secret": (_another_secret, "site secret"),
}


async def findings(site: Site) -> list[str]:
    _, _, out = await run("check", "--json", "--config", site.config_file)
    about = ("store", "store secret", f"alarm {NAME}")
    return [problem for each in json.loads(out) if each["what"] in about for problem in each["problems"]]


async def told(sink: Sink) -> str:
    """The first mail about it, within a minute."""
    async with asyncio.timeout(60):
        number = 1
        while NAME.encode() not in (await sink.messages(number))[-1].message:
            number += 1
    return sink.got[-1].message.decode().replace("=\r\n", "")


async def accept(site: Site) -> str:
    status, error, out = await run("store", "accept", "--config", site.config_file)
    assert (status, error) == (0, "")
    return out.decode()


async def _is_an_alarm_until_it_is_accepted(served: Served, sink: Sink, words: str) -> None:
    site = served.site
    before = await findings(site)
    assert any(words in each for each in before), before
    async with relay_process(site):
        mail = await told(sink)
        assert f"{NAME} begins" in mail
        assert words in mail
        assert "qumail-relay store accept" in mail
        [problem] = await findings(site)
        assert words in problem
        assert "qumail-relay store accept" in problem
    [problem] = await findings(site)
    assert f"qumail-relay store accept --config {site.config_file}" in problem
    async with relay_process(site) as relay:
        await until_written(site, NAME)
        assert "alarm_ends" not in relay.log, "a restart ends nothing"
        assert words in await accept(site)
        await until_written(site)
        assert await findings(site) == []
        assert "is the one that was" in await accept(site)
    assert b"another" not in await _identity(served)
    async with relay_process(site):
        await until_written(site)
        assert await findings(site) == []


async def _identity(served: Served) -> bytes:
    [row] = await served.backend.run(IDENTITY)
    return repr(row[3]).encode()


@pytest.mark.promise("A replaced store is an alarm until an administrator accepts it")
@pytest.mark.parametrize(
    ("where", "how"), [*(("sqlite", each) for each in FOLLOWED), ("postgresql", "older")], indirect=["where"]
)
async def test_a_store_that_is_not_the_one_that_was_is_an_alarm_until_it_is_accepted(
    served: Served, sink: Sink, how: str
) -> None:
    harm, words = HARM[how]
    await harm(served)
    await _is_an_alarm_until_it_is_accepted(served, sink, words)


@pytest.mark.promise("A replaced store is an alarm until an administrator accepts it")
@pytest.mark.parametrize(
    ("where", "how"),
    [("sqlite", each) for each in HARM if each not in FOLLOWED]
    + [("postgresql", each) for each in ("deleted", "another secret")],
    indirect=["where"],
)
async def test_whatever_has_become_of_it_is_told_by_mail_with_the_command_that_accepts_it(
    served: Served, sink: Sink, how: str
) -> None:
    harm, words = HARM[how]
    await harm(served)
    async with relay_process(served.site):
        mail = await told(sink)
    assert f"{NAME} begins" in mail
    assert words in mail
    assert "qumail-relay store accept" in mail
    [problem] = await findings(served.site)
    assert words in problem
    await accept(served.site)
    assert b"another" not in await _identity(served)


@pytest.mark.parametrize("where", ["postgresql"], indirect=True)
async def test_a_database_that_is_emptied_or_set_back_under_a_serving_relay_is_told(served: Served, sink: Sink) -> None:
    async with relay_process(served.site, before=SHORT):
        await _older(served)
        assert "is older than" in await told(sink)
    await accept(served.site)
    async with relay_process(served.site, before=SHORT) as relay:
        await until_written(served.site)
        await _deleted(served)
        reply = await submit(
            relay.addresses["incoming"], plain(), sender="x@else.example", recipients=["ben@bob.example"]
        )
        assert reply.code == 451
        await _until(served.site, lambda alarms: "store_unwritable" in alarms)


@pytest.mark.promise("A replaced store is an alarm until an administrator accepts it")
async def test_alarms_about_what_it_has_lost_stand_until_it_is_accepted(served: Served, sink: Sink) -> None:
    site, to = served.site, ["ben@bob.example"]
    site.write_policies({"alice.example.toml": 'levels = ["aes"]\nrequire = "sealed"\nunprotected = "quarantine"\n'})
    async with relay_process(site) as relay:
        reply = await submit(relay.addresses["incoming"], plain(), sender="eve@alice.example", recipients=to)
        assert reply.code == 250
        await _until(site, lambda alarms: "mail_put_aside" in alarms)
    async with relay_process(site):
        shutil.copyfile(served.copy / "relay.db", served.database)  # over it, while the relay serves
        await told(sink)
        assert any("is older than" in each for each in await findings(site))
    async with relay_process(site):
        await _until(site, lambda alarms: {"mail_put_aside", NAME} <= alarms)
        await accept(site)
        await _until(site, lambda alarms: not {"mail_put_aside", NAME} & alarms)


async def _until(site: Site, they: Callable[[set[str]], bool]) -> None:
    """The alarms that stand are as they should be: others may stand too."""
    async with asyncio.timeout(60):
        while not they({each["alarm"] for each in standing(site)}):
            await asyncio.sleep(0.02)
