"""What `check` says where the files of a serving relay were given to another user, as a restore by root does.
Standard: the words are about the owner, with the command that puts it right; the relay's own ports are not accused.
"""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from relay.kme import DevelopmentKMEs
from tests.testlib.nobody import AS_NOBODY, NOBODY, by_root, give_to_nobody
from tests.testlib.ports import free_address
from tests.testlib.relay_command import run
from tests.testlib.sink import Sink
from tests.testlib.sites import RelayProcess, Site, make_site, relay_process

pytestmark = by_root

DAEMON = 1
LOADED = "import _strptime; from relay.formats import characters; characters.load()"
"""Run before a command of root that becomes another user: this Python may be one that only root can read."""
LOOKS_OFTEN = (
    "from relay.status import ready; from relay.store import database; ready.LOOK_S = database.FILE_LOOK_S = 0.1"
)


@pytest.fixture
def top() -> Iterator[Path]:
    """A directory that others can search."""
    with tempfile.TemporaryDirectory() as name:
        Path(name).chmod(0o755)
        yield Path(name)


@pytest.fixture
def site(top: Path, kmes: DevelopmentKMEs, sink: Sink) -> Site:
    """Nobody's."""
    made = make_site(
        top / "bob", "bob", state=shutil.copytree(kmes.state_dir, top / "kme"), kme_url=kmes.urls[1],
        incoming=sink.address, outgoing=sink.address,
    )  # fmt: skip
    give_to_nobody(top)
    (top / "kme").chmod(0o755)
    made.directory.chmod(0o700)
    return made


def settings_of_root(site: Site) -> Path:
    """The relay.toml of the site, in a directory of root's."""
    text = site.config_file.read_text()
    for name in ("relay.db", "site.secret", "policies"):
        text = text.replace(f'"{name}"', f'"{site.directory / name}"')
    path = site.directory.parent / "etc/relay.toml"
    path.parent.mkdir()
    path.write_text(text)
    os.chown(path.parents[1], 0, 0)
    return path


def give_to_daemon(*directories: Path) -> None:
    for directory in directories:
        for each in (directory, *directory.rglob("*")):
            with suppress(FileNotFoundError):  # a file that the relay has put in place meanwhile
                os.chown(each, DAEMON, DAEMON, follow_symlinks=False)


async def not_ready(relay: RelayProcess, *, named: str) -> str:
    """The causes in which `named` is; a look that began before the directory was changed has others first."""
    async with asyncio.timeout(30):
        while True:
            for line in relay.log.splitlines():
                if '"relay_not_ready"' in line and named in line:
                    return str(json.loads(line)["causes"])
            await asyncio.sleep(0.05)


async def problems(config_file: Path) -> dict[str, list[str]]:
    """What `check` finds wrong."""
    _, err, out = await run("check", "--json", "--config", config_file, before=LOADED)
    assert out, err
    return {each["what"]: each["problems"] for each in json.loads(out) if each["problems"]}


async def test_a_changed_owner_is_said_with_the_command_that_puts_it_right_and_no_port_is_accused(site: Site) -> None:
    state = site.directory
    listen = {"incoming": free_address(), "outgoing": free_address()}
    async with relay_process(site, listen=listen, before=f"{AS_NOBODY}; {LOOKS_OFTEN}") as relay:
        config_file = settings_of_root(site)
        give_to_daemon(state, state.parent / "kme")
        cause = await not_ready(relay, named="relay.db: ")
        found = await problems(config_file)
        os.chown(state, 0, 0)  # so that the relay's user reads nothing there
        alarm = {"alarm": "disk_full", "about": "", "cause": "2 octets are free", "since": 1.0, "told": 1.0}
        (state / "alarms.json").write_text(json.dumps({"alarms": [alarm]}))
        of_root = await problems(config_file)
    assert list(of_root)[:2] == ["owner", "configuration"], "the remedy that cures is first"
    assert of_root["owner"][0].endswith(f": chown -hR {NOBODY.pw_name}: {state}")
    assert "alarm disk_full" in of_root
    assert "moved or deleted" not in cause
    assert (
        f"relay.db: can no longer be looked at by the relay that serves from it: Permission denied at {state}: "
        in cause
    )
    assert "it belongs to user daemon: " in cause
    [owner] = found["owner"]
    assert owner == (
        f"{state}: belongs to user daemon, and the relay that serves runs as {NOBODY.pw_name}, so that it can write "
        f"nothing there, and does not start again: chown -hR {NOBODY.pw_name}: {state}"
    )
    assert not [each for said in found.values() for each in said if "another port" in each or "moved or del" in each]


async def test_a_disk_mounted_over_the_state_has_no_right_taken_from_the_relay(site: Site) -> None:
    """By what the state then shows the relay would be root's; the unit knows better."""
    config_file, top = settings_of_root(site), site.directory.parent
    [key] = top.glob("kme/sae-1.key")
    os.chown(key, 0, NOBODY.pw_gid)
    key.chmod(0o640)
    site.directory.rename(top / "below")
    site.directory.mkdir(mode=0o755)
    (top / "units").mkdir()
    unit = f"[Service]\nUser={NOBODY.pw_name}\nExecStart=/usr/bin/qumail-relay serve --config {config_file}\n"
    (top / "units" / "qumail-relay.service").write_text(unit)
    booted = f"from relay.cli import units; units.DIRECTORIES = (units.Path({str(top / 'units')!r}),)"
    _, _, out = await run(
        "check", "--json", "--config", config_file, before=f"{LOADED}; {booted}; units.BOOTED = units.Path('/')"
    )
    found = {each["what"]: each["problems"] for each in json.loads(out)}
    assert f"belongs to user root, and unit qumail-relay runs as {NOBODY.pw_name}" in found["owner"][0]
    assert f"user {NOBODY.pw_name}" not in str(found["rights"])
