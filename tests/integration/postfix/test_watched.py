"""A relay that serves says within a minute that its Postfix no longer hands it mail, and that it cannot see whether.
Standard: relay/counting/alarms.py, postfix_bypasses and postfix_unwatched; the configurations are those of deploy/postfix.
"""

from __future__ import annotations

import asyncio
import json
import os
import shlex
import shutil
import sqlite3
import tempfile
import threading
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from structlog.testing import capture_logs

from relay.cli import cli
from relay.config import load_config
from relay.kme import DevelopmentKMEs
from relay.postfix import settings
from relay.postfix.watch import PostfixWatch
from relay.process import app
from tests.system.drill import shortened
from tests.testlib import postfix
from tests.testlib.house import house
from tests.testlib.nobody import as_nobody, by_root
from tests.testlib.ports import free_addresses
from tests.testlib.postfix import requires_postconf, requires_postfix
from tests.testlib.relay_command import run

pytestmark = requires_postconf

TO_RELAY, BACK = (15024, 15034), (15026, 15036)
SETTINGS = """\
[site]
name = "alice"
domains = ["alice.example"]
sae_id = "sae-alice"

[outgoing]
{outgoing}

[incoming]
{incoming}

[policies]
directory = "policies"

[store]
database = "relay.db"
secret = "site.secret"

[postfix]
directory = "{postfix}"
"""


@dataclass(frozen=True)
class Beside:
    """A relay's settings and the Postfix that they name."""

    directory: Path
    config_file: Path

    @property
    def etc(self) -> Path:
        return self.directory / "etc"

    async def change(self, commands: str) -> None:
        await postfix.change(self.directory, commands)

    def restart(self) -> None:
        """What a restart of Postfix leaves for everybody to see: the time of its master's file (master(8))."""
        (self.directory / "queue" / "pid").mkdir(parents=True, exist_ok=True)
        (self.directory / "queue" / "pid" / "master.pid").write_text("1\n")

    def alarms(self) -> dict[str, str]:
        """The causes of those that stand, by name; of several with one name together."""
        try:
            said = json.loads((self.config_file.parent / "alarms.json").read_text())
        except FileNotFoundError:
            return {}
        causes: dict[str, str] = {}
        for each in said["alarms"]:
            causes[each["alarm"]] = causes.get(each["alarm"], "") + each["cause"]
        return causes

    async def until(self, *names: str) -> dict[str, str]:
        """Waits until just these of Postfix's alarms stand, for a minute of shortened time and what a slow machine adds."""
        try:
            async with asyncio.timeout(30):
                while {each for each in self.alarms() if each.startswith("postfix")} != set(names):
                    await asyncio.sleep(0.05)
        except TimeoutError:
            pytest.fail(f"not {names}, but {self.alarms()}")
        return self.alarms()

    async def found(self) -> dict[str, list[str]]:
        """What `check` finds, by what it looked at."""
        _, error, out = await run("check", "--json", "--config", self.config_file)
        assert error == ""
        return {each["what"]: each["problems"] for each in json.loads(out)}


@pytest.fixture(autouse=True)
def _short() -> Iterator[None]:
    with shortened():
        yield


@pytest.fixture(params=["content-filter", "milter", "smarthost"])
def integration(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@asynccontextmanager
async def serving(directory: Path, integration: str = "content-filter") -> AsyncIterator[Beside]:
    """A relay that serves beside a Postfix as deploy/postfix has it."""
    numbers = (15024, 15025, 15026, 15028, 15034, 15036, 15038)
    at = dict(zip(numbers, free_addresses(len(numbers)), strict=True))
    fragments, outgoing, incoming = {
        "content-filter": (("outgoing-lmtp", "incoming-lmtp"), "lmtp", "lmtp"),
        "milter": (("milter",), "milter", "milter"),
        "smarthost": (("smarthost",), "listen", ""),
    }[integration]
    first = {"lmtp": 15024, "milter": 15028, "listen": 15025}[outgoing]
    next_hop = at[15026] if incoming else "mail.alice.example:25"
    tables = [f'{outgoing} = "{at[first]}"\nnext_hop = "{next_hop}"']
    tables += [f'{incoming} = "{at[first + 10]}"\nnext_hop = "{at[15036]}"'] if incoming else []
    ports = {str(port): str(address.port) for port, address in at.items()}
    made = directory / "p"
    made.mkdir()
    await postfix.configure(made, fragments, ports=ports)
    text = SETTINGS.format(outgoing=tables[0], incoming=tables[-1], postfix=made / "etc")
    text = text if incoming else text.replace(f"[incoming]\n{tables[-1]}\n\n", "")
    (directory / "relay.toml").write_text(text)
    (directory / "policies").mkdir()
    (directory / "policies" / "default.toml").write_text('levels = ["aes"]\n')
    beside = Beside(made, directory / "relay.toml")
    with capture_logs() as logs:
        async with app.running(load_config(beside.config_file)), asyncio.timeout(120):
            while not any(each["event"] == "postfix_judged" for each in logs):
                await asyncio.sleep(0.05)
            await beside.until()
            yield beside


LOST = {
    "content-filter": "postconf -e content_filter=",
    "milter": "postconf -e smtpd_milters= non_smtpd_milters=",
    "smarthost": "postconf -e relayhost=",
}


@pytest.mark.promise("Nobody takes the relay out of Postfix's configuration unnoticed")
async def test_mail_that_no_longer_comes_through_the_relay_is_an_alarm_until_it_does(
    tmp_path: Path, integration: str
) -> None:
    async with serving(tmp_path, integration) as beside:
        kept = (beside.etc / "main.cf").read_text()
        await beside.change(LOST[integration])
        cause = (await beside.until("postfix_bypasses"))["postfix_bypasses"]
        what = "leaves in clear" if integration == "milter" else "LEAVES IN CLEAR past the relay"
        assert what in cause
        found = await beside.found()
        assert any(what in each for each in found["Postfix"]), found
        assert any(each.startswith("alarm postfix_bypasses") for each in found)
        beside.restart()
        (beside.etc / "main.cf").write_text(kept)
        os.utime(beside.etc / "main.cf", (0, 0))  # as `cp -p` from a backup
        async with asyncio.timeout(30):
            while "Postfix was not restarted since" not in beside.alarms().get("postfix_bypasses", ""):
                await asyncio.sleep(0.05)
        beside.restart()
        await beside.until()
        assert (await beside.found())["Postfix"] == []


async def test_a_milter_without_whose_answer_mail_goes_on_is_an_alarm(tmp_path: Path) -> None:
    async with serving(tmp_path, "milter") as beside:
        await beside.change("postconf -e milter_default_action=accept")
        assert "goes on in clear" in (await beside.until("postfix_bypasses"))["postfix_bypasses"]


async def restored(beside: Beside) -> None:
    """The main.cf of before the relay, copied over the one that there is: `cp -p`, with its old time."""
    before = beside.directory / "before"
    await postfix.configure(before_directory(before), (), settings={"message_size_limit": "75000000"})
    shutil.copy2(before / "etc" / "main.cf", beside.etc / "main.cf")


def before_directory(directory: Path) -> Path:
    directory.mkdir()
    return directory


async def renamed(beside: Beside) -> None:
    """As configuration management writes it: a new file in place of the old one."""
    text = (beside.etc / "main.cf").read_text()
    new = beside.etc / "main.cf.new"
    new.write_text("".join(line for line in text.splitlines(True) if not line.startswith("content_filter")))
    new.rename(beside.etc / "main.cf")


async def for_submission_alone(beside: Beside) -> None:
    await beside.change("postconf -P submission/inet/content_filter=")


async def by_a_table(beside: Beside) -> None:
    """A table that main.cf has named before begins to lead mail past the relay."""
    (beside.directory / "checks").write_text("/^X-Way:/ FILTER smtp:[192.0.2.1]:25\n")


@pytest.mark.promise("Nobody takes the relay out of Postfix's configuration unnoticed")
async def test_however_the_configuration_changes_it_is_judged_anew(tmp_path: Path) -> None:
    async with serving(tmp_path) as beside:
        (beside.directory / "checks").write_text("")
        await beside.change("postconf -e header_checks=regexp:$PWD/checks")
        kept = {path: path.read_text() for path in (*beside.etc.glob("m*.cf"), beside.directory / "checks")}
        # The table last: by then the relay has judged the files that name it.
        for happens in (restored, renamed, for_submission_alone, by_a_table):
            await happens(beside)
            await beside.until("postfix_bypasses")
            for path, text in kept.items():
                path.write_text(text)
            beside.restart()
            await beside.until()


@pytest.mark.promise("Nobody takes the relay out of Postfix's configuration unnoticed")
async def test_what_cannot_be_read_is_an_alarm_and_ends_none(tmp_path: Path) -> None:
    async with serving(tmp_path) as beside:
        kept = (beside.etc / "main.cf").read_text()
        (beside.etc / "main.cf").unlink()
        assert "No such file or directory" in (await beside.until("postfix_unwatched"))["postfix_unwatched"]
        assert "alarm postfix_unwatched" in await beside.found()
        await beside.change(f"cat >etc/main.cf <<'end'\n{kept}end\n{LOST['content-filter']}")
        await beside.until("postfix_bypasses")
        (beside.etc / "main.cf").unlink()
        await beside.until("postfix_bypasses", "postfix_unwatched")
        (beside.etc / "main.cf").write_text(kept)
        async with asyncio.timeout(30):
            while "cannot be seen" not in (cause := beside.alarms().get("postfix_bypasses", "")):
                await asyncio.sleep(0.05)
        assert "queue/pid/master.pid: No such file or directory" in cause
        beside.restart()
        await beside.until()


async def test_a_setting_without_a_rule_is_said_and_keeps_no_other_alarm_alive(tmp_path: Path) -> None:
    async with serving(tmp_path) as beside:
        await beside.change("postconf -e smtp_bind_address=127.0.0.1 default_transport=retry:later")
        causes = await beside.until("postfix_holds", "postfix_unwatched")
        assert "smtp_bind_address = 127.0.0.1" in causes["postfix_unwatched"]
        await beside.change("postconf -X default_transport")
        beside.restart()
        await beside.until("postfix_unwatched")


async def test_an_alarm_of_before_a_restart_stands_until_the_configuration_is_judged_well(tmp_path: Path) -> None:
    async with serving(tmp_path) as beside:
        kept = (beside.etc / "main.cf").read_text()
        await beside.change(LOST["content-filter"])
        await beside.until("postfix_bypasses")
    (beside.etc / "main.cf").unlink()
    async with app.running(load_config(beside.config_file)):
        await beside.until("postfix_bypasses", "postfix_unwatched")
        (beside.etc / "main.cf").write_text(kept)
        beside.restart()
        await beside.until()


async def test_a_table_that_is_gone_is_said_not_to_be_watched(tmp_path: Path) -> None:
    async with serving(tmp_path) as beside:
        await beside.change("postconf -e header_checks=regexp:$PWD/checks")
        cause = (await beside.until("postfix_unwatched"))["postfix_unwatched"]
        assert f"regexp:{beside.directory}/checks: whether it leads mail past the relay cannot be seen" in cause
        (beside.directory / "checks").write_text("")
        await beside.until()


async def test_one_finding_that_stands_hides_no_other(tmp_path: Path) -> None:
    async with serving(tmp_path) as beside:
        (beside.directory / "aliases").write_text("ann: eva@elsewhere.example\n")
        await beside.change("postconf -e alias_maps=texthash:$PWD/aliases")
        await beside.until("postfix_bypasses")
        await beside.change(LOST["content-filter"])
        async with asyncio.timeout(30):
            while "LEAVES IN CLEAR" not in beside.alarms().get("postfix_bypasses", ""):
                await asyncio.sleep(0.05)
        written = json.loads((beside.config_file.parent / "alarms.json").read_text())["alarms"]
        assert {each["about"] for each in written} >= {"no-way-in"}, "it has begun by itself"


async def test_addresses_of_people_stand_in_no_alarm(tmp_path: Path) -> None:
    async with serving(tmp_path) as beside:
        (beside.directory / "aliases").write_text("ann: eva@elsewhere.example\n")
        await beside.change("postconf -e alias_maps=texthash:$PWD/aliases")
        cause = (await beside.until("postfix_bypasses"))["postfix_bypasses"]
        assert "forwards to an address" in cause
        assert "eva" not in cause


async def test_a_postconf_that_hangs_is_said_and_holds_nothing_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    program = tmp_path / "bin" / "postconf"
    program.parent.mkdir()
    program.write_text("#!/bin/sh\nexec sleep 600\n")
    program.chmod(0o755)
    asked_in = set()
    asked = settings.command

    async def command(*words: Any, **said: Any) -> tuple[str, str]:
        asked_in.add(threading.current_thread())
        return await asked(*words, **said)

    monkeypatch.setattr(settings, "command", command)
    # From the start: the judgement that is under way when postconf begins to hang keeps its timeout.
    monkeypatch.setattr("relay.postfix.watch.JUDGE_S", 3.0)
    async with serving(tmp_path) as beside:
        with monkeypatch.context() as hanging:
            hanging.setenv("PATH", f"{program.parent}:/usr/bin:/bin")
            (beside.etc / "main.cf").touch()
            assert "not read within" in (await beside.until("postfix_unwatched"))["postfix_unwatched"]
        await beside.until()
    assert asked_in
    assert threading.main_thread() not in asked_in, "no part of it is in the event loop"


@by_root
async def test_a_file_that_the_relays_user_may_not_read_is_named_with_what_to_type() -> None:
    with tempfile.TemporaryDirectory() as place:
        directory = Path(place)
        directory.chmod(0o755)
        await postfix.configure(directory, ("outgoing-lmtp",))
        (directory / "etc").chmod(0o755)
        odd = (directory / "etc").rename(directory / "it's; odd")
        (odd / "master.cf").chmod(0o600)
        config = load_config(Path("relay.toml"), of_nobody(odd))
        watch = PostfixWatch(odd, lambda: config)
        with as_nobody():
            await watch.look()
        assert f"{shlex.quote(str(odd / 'master.cf'))}: cannot be read by nobody: Permission denied" in watch.unknown
        assert f"setfacl -m u:nobody:r '{place}/it'\"'\"'s; odd/master.cf'" in watch.unknown
        (odd / "master.cf").chmod(0o644)
        with as_nobody():
            await watch.look()
        assert (watch.unknown, watch.past) == ("", {})


def of_nobody(directory: Path) -> str:
    outgoing = 'lmtp = "127.0.0.1:15024"\nnext_hop = "127.0.0.1:15026"'
    text = SETTINGS.format(outgoing=outgoing, incoming="", postfix=directory)
    return text.replace("[incoming]\n\n", "").replace("it's; odd", "odd")


async def test_a_peer_that_is_accepted_while_the_relay_serves_is_judged_at_once(tmp_path: Path) -> None:
    await postfix.configure(tmp_path, ("outgoing-lmtp",), settings={"mydestination": "alice.example, eve.example"})
    text = of_nobody(tmp_path / "etc")
    eve = '\n[peers.eve]\ndomains = ["eve.example"]\nsae_id = "sae-eve"\nkme_groups = []\n'
    configs = [load_config(Path("relay.toml"), text)]
    watch = PostfixWatch(tmp_path / "etc", lambda: configs[-1])
    await watch.look()
    assert "peer-is-local" not in watch.past
    configs.append(load_config(Path("relay.toml"), text + eve))
    await watch.look()
    assert "eve.example" in watch.past["peer-is-local"]


async def test_check_says_where_no_postfix_is_named_and_complains_of_none_unless_one_hands_mail_to_the_relay(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with serving(tmp_path) as beside:
        text = beside.config_file.read_text()
        beside.config_file.write_text(text.replace(f'[postfix]\ndirectory = "{beside.etc}"\n', ""))
        for usual, problems in ((tmp_path / "none", 0), (beside.etc, 1)):
            monkeypatch.setattr("relay.cli.check_listeners.USUAL_POSTFIX", usual)
            words = ["check", "--config", str(beside.config_file), "--json"]
            done = await asyncio.to_thread(CliRunner().invoke, cli, words)
            [said] = [each for each in json.loads(done.stdout) if each["what"] == "Postfix"]
            assert len(said["problems"]) == problems


@pytest.mark.promise("Nobody takes the relay out of Postfix's configuration unnoticed")
@requires_postfix
@pytest.mark.parametrize("way", ["lmtp", "milter"])
async def test_that_the_store_cannot_be_written_reaches_a_mailbox_of_the_site_while_it_cannot(
    tmp_path: Path, kmes: DevelopmentKMEs, way: str
) -> None:
    """The mail of an alarm does not wait for the relay that it is about."""
    tables = '\n[alarms]\nmail_to = ["postmaster@alice.example"]\n'
    async with house(way, tmp_path, kmes, tables=tables) as alice:
        with closing(sqlite3.connect(alice.site.directory / "relay.db", isolation_level=None)) as locked:
            locked.execute("BEGIN IMMEDIATE")
            [got] = await alice.own.messages(1)
            assert b"store_unwritable begins" in got.message
            assert got.recipients == ("postmaster@alice.example",)
