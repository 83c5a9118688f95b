"""An account that cannot be logged in to is tried seldom, whatever its folders are, and a refused password once.
Standard: RFC 5530 response codes; providers lock accounts after some ten failed logins.
"""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from itertools import pairwise
from pathlib import Path

import pytest
from click.testing import CliRunner

from relay.cli.check import check
from relay.config import IMAPSettings
from relay.counting.board import Board
from relay.entry.imap import login as access
from relay.entry.imap.check import states as mailbox_states
from relay.entry.imap.condition import Condition
from relay.entry.imap.session import Credential, Session
from relay.errors import MailboxUnavailable
from relay.kme import DevelopmentKMEs
from tests.integration.entry.imap.conftest import Alice, bob_at, opened, original, visit
from tests.system.drill import shortened
from tests.testlib.alarms import standing, until_written
from tests.testlib.imap_double import CAPABILITIES, IMAPDouble
from tests.testlib.sites import serving

FOLDERS = ("INBOX", "a", "b", "c", "d")
REFUSED = b"TAG NO [AUTHENTICATIONFAILED] Invalid credentials (Failure)\r\n"


def logins(provider: IMAPDouble) -> int:
    return sum(line.startswith("AUTHENTICATE") for line in provider.told)


@pytest.fixture
def five_folders(provider: IMAPDouble) -> str:
    for name in FOLDERS:
        provider.folders.setdefault(name, [])
    return f"folders = {list(FOLDERS)}".replace("'", '"')


@pytest.mark.in_process
@pytest.mark.parametrize("mended", ["another password", "an hour"])
async def test_a_refused_password_is_tried_once_for_all_folders_and_not_again_until(
    mended: str,
    five_folders: str,
    alice: Alice,
    provider: IMAPDouble,
    tmp_path: Path,
    kmes: DevelopmentKMEs,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    looks = asyncio.Queue[float]()
    real = asyncio.sleep

    async def sleep(self: object, seconds: float) -> None:
        looks.put_nowait(seconds)
        await real(0.01)

    monkeypatch.setattr(access.MailboxAccess, "_sleep", sleep)
    bob = bob_at(provider, tmp_path, kmes, five_folders)
    provider.instead["AUTHENTICATE"] = [REFUSED]
    provider.put(await alice.seal(original("one")))
    async with serving(bob):
        for _ in range(10):
            await looks.get()
        assert logins(provider) == 1
        log = capsys.readouterr().out
        assert log.count("imap_login_refused") == 1
        if mended == "an hour":
            began = asyncio.get_running_loop().time()
            monkeypatch.setattr(access.MailboxAccess, "_now", lambda _: began + 3601)
        else:
            (bob.directory / "ben.password").write_text("another\n")
            monkeypatch.setattr(access, "FIRST_PAUSE_S", 0.0)
        await provider.until(lambda: len(provider.messages("Sealed")) == 1)
        await provider.until(lambda: logins(provider) == 1 + len(FOLDERS))
    assert opened(provider.messages()) == [original("one")]


async def test_once_tries_a_refused_password_a_single_time(
    five_folders: str, provider: IMAPDouble, tmp_path: Path, kmes: DevelopmentKMEs
) -> None:
    bob = bob_at(provider, tmp_path, kmes, five_folders)
    provider.instead["AUTHENTICATE"] = [REFUSED] * 9
    visits = await visit(bob)
    assert [each.folder for each in visits] == list(FOLDERS)
    assert all("AUTHENTICATIONFAILED" in each.failure for each in visits)
    assert logins(provider) == 1


@pytest.mark.parametrize(
    ("more", "answers", "capabilities", "expected"),
    [
        ("", {}, CAPABILITIES, "1 folders, sealed messages go to Sealed"),
        ("", {}, "IMAP4rev1 AUTH=PLAIN", "no MOVE, so they are copied and deleted, no IDLE"),
        ("", {"AUTHENTICATE": [REFUSED]}, CAPABILITIES, "AUTHENTICATIONFAILED"),
        ('folders = ["INBOX", "gone"]', {"SELECT": [None]}, CAPABILITIES, "the server closed the connection"),
        ('folders = ["gone", "INBOX"]', {"SELECT": [b"TAG NO no such\r\n"]}, CAPABILITIES, "folder 'gone'"),
        ('after = "delete"', {}, "IMAP4rev1 AUTH=PLAIN", "no UIDPLUS"),
        ('after = "flag"', {"SELECT": [b"* OK [UIDVALIDITY 7] x\r\nTAG OK done\r\n"]}, CAPABILITIES, "$QuMailOpened"),
    ],
)
async def test_check_looks_at_each_mailbox(
    more: str,
    answers: dict[str, list[bytes | None]],
    capabilities: str,
    expected: str,
    provider: IMAPDouble,
    tmp_path: Path,
    kmes: DevelopmentKMEs,
) -> None:
    """Login, folders, and what the server cannot do; it logs in once, and changes nothing."""
    provider.instead |= answers
    provider.capabilities = capabilities
    bob = bob_at(provider, tmp_path, kmes, more)
    [(what, detail, problems)] = [each async for each in mailbox_states(bob.config)]
    assert what == "mailbox ben"
    assert expected in "; ".join([detail, *problems])
    assert bool(problems) == (expected not in detail)
    assert logins(provider) == 1
    assert not [line for line in provider.told if re.match("UID|STORE|APPEND|CREATE", line)]


@pytest.mark.in_process
async def test_a_mailbox_that_is_not_watched_is_an_alarm_until_it_is(
    provider: IMAPDouble, tmp_path: Path, kmes: DevelopmentKMEs, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = asyncio.sleep
    monkeypatch.setattr(access.MailboxAccess, "_sleep", lambda _, seconds: real(min(seconds, 0.05)))
    monkeypatch.setattr(access, "FIRST_PAUSE_S", 0.0)
    bob = bob_at(provider, tmp_path, kmes)
    provider.instead["AUTHENTICATE"] = [REFUSED]
    with shortened():
        async with serving(bob):
            await until_written(bob, "mailbox_unwatched")
            [alarm] = standing(bob)
            (bob.directory / "ben.password").write_text("another\n")
            await until_written(bob)
    assert alarm["about"] == "ben"
    assert re.fullmatch(
        r"mailbox ben has not been watched since \d{4}-\d\d-\d\d \d\d:\d\d UTC \(login\): .*Invalid credentials.*",
        alarm["cause"],
    ), alarm


@pytest.mark.parametrize("why", ["connection", "folder", "settings"])
@pytest.mark.in_process
async def test_the_alarm_says_why_a_mailbox_is_not_watched(
    why: str, provider: IMAPDouble, tmp_path: Path, kmes: DevelopmentKMEs
) -> None:
    bob = bob_at(provider, tmp_path, kmes)
    provider.instead["SELECT"] = [b"TAG NO [NONEXISTENT] Unknown Mailbox\r\n"] * (100 if why == "folder" else 0)
    if why == "connection":
        bob.config_file.write_text(bob.config_file.read_text().replace(f"port = {provider.address.port}", "port = 1"))
    if why == "settings":
        (bob.directory / "ben.password").unlink()
    with shortened():
        async with serving(bob):
            await until_written(bob, "mailbox_unwatched")
            [alarm] = standing(bob)
    assert f" UTC ({why}): " in alarm["cause"], alarm


async def test_check_names_the_mailboxes(provider: IMAPDouble, tmp_path: Path, kmes: DevelopmentKMEs) -> None:
    bob = bob_at(provider, tmp_path, kmes)
    done = await asyncio.to_thread(CliRunner().invoke, check, ["--config", str(bob.config_file), "--json"])
    assert "mailbox ben" in [each["what"] for each in json.loads(done.output)]


async def test_where_logins_fail_for_another_reason_all_folders_share_one_growing_pause(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    clock, tries = 0.0, []

    async def sleep(self: object, seconds: float) -> None:
        nonlocal clock
        clock += seconds

    @asynccontextmanager
    async def failing(account: IMAPSettings, login: Credential) -> AsyncIterator[Session]:
        tries.append(clock)
        await asyncio.sleep(0)
        raise MailboxUnavailable("no connection")
        yield

    monkeypatch.setattr(access.MailboxAccess, "_sleep", sleep)
    monkeypatch.setattr(access.MailboxAccess, "_now", lambda _: clock)
    monkeypatch.setattr(access, "connected", failing)
    password = tmp_path / "password"
    password.touch(mode=0o600)
    password.write_text("secret")
    settings = IMAPSettings(host="localhost", user="ben@bob.example", password_file=password)
    shared = access.MailboxAccess(settings, Condition("ben", Board()))

    async def folder() -> None:
        async with shared.session():
            pass

    folders = [asyncio.create_task(folder()) for _ in FOLDERS]
    while clock < 7200:
        await asyncio.sleep(0)
    for each in folders:
        each.cancel()
    await asyncio.gather(*folders, return_exceptions=True)
    gaps = [after - before for before, after in pairwise(tries)]
    assert min(gaps) >= 1
    assert max(gaps) <= 300
    assert sum(each < 30 for each in tries) <= 6
