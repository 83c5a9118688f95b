"""/readyz: ready while mail is sealed or held safely, whatever is away; not ready while all mail would be held here.
Standard: it says why, and is ready again by itself.
"""

from __future__ import annotations

import asyncio
import math
import os
import sqlite3
import tempfile
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import cast

import aiohttp
import pytest

from relay.config import Config, TCPAddress
from relay.counting.board import Board
from relay.errors import ConfigError
from relay.kme import DevelopmentKMEs
from relay.process import app
from relay.status import Watched, exposition, ready
from relay.status.next_start import check_store_file
from relay.store import store
from relay.store.secret import SiteSecret, fresh_secret
from tests.testlib import mails
from tests.testlib.alarms import standing
from tests.testlib.nobody import as_nobody, by_root, give_to_nobody
from tests.testlib.sink import Sink
from tests.testlib.sites import Site, make_site
from tests.testlib.status_numbers import numbers, with_status
from tests.testlib.submit import submit


@pytest.fixture(name="site")
def _site(tmp_path: Path, kmes: DevelopmentKMEs, sink: Sink, monkeypatch: pytest.MonkeyPatch) -> Site:
    monkeypatch.setattr(ready, "LOOK_S", 0.02)
    monkeypatch.setattr(exposition, "SHARE", math.inf)  # what is told is never a moment old
    return with_status(
        make_site(tmp_path / "alice", "alice", state=kmes.state_dir, kme_url=kmes.urls[0], outgoing=sink.address)
    )


async def readyz(address: TCPAddress) -> tuple[int, str]:
    async with aiohttp.ClientSession() as session, session.get(f"http://{address}/readyz") as response:
        return response.status, await response.text()


async def until(address: TCPAddress, is_right: Callable[[int, str], bool]) -> None:
    async with asyncio.timeout(30):
        while not is_right(*await readyz(address)):
            await asyncio.sleep(0.02)


async def test_without_keys_next_hop_and_policy_it_is_ready_to_hold_mail(
    site: Site, kmes: DevelopmentKMEs, sink: Sink
) -> None:
    async with app.running(site.config) as addresses:
        assert await readyz(addresses["status"]) == (200, "ready\n")
        await kmes.stop()
        (site.directory / "policies" / "default.toml").write_text("broken")
        sink.on_data = ["451 later"]
        assert (await submit(addresses["outgoing"], mails.plain())).code == 451
        assert await readyz(addresses["status"]) == (200, "ready\n")
        found = await numbers(addresses["status"])
        assert found.sum("qumail_mails_total", outcome="held") == 1
        assert found.sum("qumail_ready") == 1


async def test_while_the_store_cannot_be_written_it_is_not_ready(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(store, "BUSY_TIMEOUT_S", 0.1)
    async with app.running(site.config) as addresses:
        status = addresses["status"]
        with sqlite3.connect(site.directory / "relay.db", isolation_level=None) as somebody:
            somebody.execute("BEGIN IMMEDIATE")
            await until(status, lambda code, text: code == 503 and "not ready: the store cannot be written" in text)
            found = await numbers(status)
            assert (found.sum("qumail_ready"), found.sum("qumail_store_writable")) == (0, 0)
            async with aiohttp.ClientSession() as session, session.get(f"http://{status}/healthz") as response:
                assert response.status == 200, "a restart would not help"
        somebody.close()
        await until(status, lambda code, text: (code, text) == (200, "ready\n"))
        assert (await numbers(status)).sum("qumail_store_writable") == 1


async def test_without_the_file_of_its_store_it_is_not_ready(site: Site) -> None:
    path = site.directory / "relay.db"
    async with app.running(site.config) as addresses:
        status = addresses["status"]
        path.rename(site.directory / "elsewhere")
        await until(status, lambda code, text: code == 503 and f"{path}: is not the file from which" in text)
        (site.directory / "elsewhere").rename(path)
        await until(status, lambda code, text: (code, text) == (200, "ready\n"))
        os.truncate(path, 0)
        await until(status, lambda code, text: code == 503 and f"{path}: was emptied" in text)


async def test_a_secret_with_which_a_restart_would_open_nothing_is_an_alarm_while_mail_flows(site: Site) -> None:
    path = site.config.store.secret

    async def until_standing(*names: str) -> None:
        async with asyncio.timeout(30):
            while {each["alarm"] for each in standing(site)} != {*names}:
                await asyncio.sleep(0.02)

    async with app.running(site.config) as addresses:
        await until_standing()
        before = path.read_bytes()
        for content in (b"x" + before[1:], fresh_secret(), fresh_secret() + before):
            path.write_bytes(content)
            await until_standing(*(() if before in content else ("store_is_another",)))
            assert await readyz(addresses["status"]) == (200, "ready\n")


@by_root
async def test_what_a_restart_could_not_open_is_said_and_only_what_holds_mail_makes_it_not_ready() -> None:
    """Its open files go on being written, so that nothing else shows it."""
    with tempfile.TemporaryDirectory() as place:
        directory = Path(place)
        secret, database = directory / "site.secret", directory / "relay.db"
        database.touch()
        loaded = SiteSecret.load_or_create(secret)
        of_store = SimpleNamespace(database=database, secret=secret)
        config = SimpleNamespace(
            state_directory=directory, audit=SimpleNamespace(holds=False), store=of_store, ldap=None
        )  # fmt: skip
        receiving = SimpleNamespace(process_has_ended=False, process_silent_s=0.0)
        store_as_open = SimpleNamespace(
            received=SimpleNamespace(ready=_is_well),
            restore_check=SimpleNamespace(look=_is_well),
            sealed_under=loaded.ids[0],
        )
        watched = SimpleNamespace(config=config, receiving=receiving, store=store_as_open, board=Board())
        readiness = ready.Readiness(cast("Watched", watched))
        give_to_nobody(directory)
        with as_nobody():
            check_store_file(cast("Config", config))
        for owner, mode, remedy in (
            (None, 0, rf"runuser .* chmod u\+rw {database}"),
            (0, 0, "it belongs to user root: "),
        ):
            database.chmod(mode)
            if owner is not None:
                os.chown(database, owner, owner)
            with as_nobody():
                with pytest.raises(ConfigError, match=f"{database}: a relay that starts cannot open it: {remedy}"):
                    check_store_file(cast("Config", config))
                await readiness.look()
                assert not readiness.causes, "mail flows"
        os.chown(directory, 0, 0)
        with as_nobody():
            await readiness.look()
        [cause] = readiness.causes
        assert cause.startswith(f"{directory}: no file can be made there: it belongs to user root: ")


async def _is_well() -> None:
    pass


async def test_on_a_full_disk_it_is_not_ready(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    async with app.running(site.config) as addresses:
        monkeypatch.setattr(ready, "no_room", lambda directory: f"{directory}: no space left on its disk")
        await until(addresses["status"], lambda code, text: code == 503 and "no space left on its disk" in text)
        monkeypatch.setattr(ready, "no_room", lambda directory: "")
        await until(addresses["status"], lambda code, text: code == 200)


async def test_a_relay_that_has_not_looked_for_long_is_not_ready(monkeypatch: pytest.MonkeyPatch) -> None:
    """As where the threads that look hang in a file system that does not answer."""
    now = [1000.0]
    monkeypatch.setattr("relay.status.ready.time.monotonic", lambda: now[0])
    readiness = ready.Readiness(cast("Watched", None))
    assert not readiness.causes
    now[0] += 61
    assert readiness.causes == ("nobody has looked for 61 s",)


async def test_a_store_that_hangs_is_one_that_cannot_be_written(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ready, "PATIENCE_S", 0.05)

    async def hangs() -> None:
        await asyncio.Event().wait()

    async with app.running(site.config) as addresses:
        seen: list[Watched] = []
        real = ready.Readiness._store

        async def hanging(self: ready.Readiness) -> str:
            monkeypatch.setattr(type(self._watched.store.received), "ready", lambda _: hangs())
            seen.append(self._watched)
            return await real(self)

        monkeypatch.setattr(ready.Readiness, "_store", hanging)
        await until(addresses["status"], lambda code, text: code == 503 and "was not written within" in text)
        monkeypatch.undo()
        assert seen
