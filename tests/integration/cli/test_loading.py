"""What starting a command loads: help and commands that look at files are there before anything that serves mail.
It is told by what a fresh interpreter has imported, not by time.
"""

from __future__ import annotations

import asyncio
import json
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import click
import pytest

from relay.cli import cli
from relay.cli.lazy import LazyGroup
from relay.config import TCPAddress
from relay.kme import DevelopmentKMEs
from tests.testlib.identities import Identities
from tests.testlib.sites import make_site

SERVING = frozenset(
    {"aiohttp", "sqlalchemy", "aiosqlite", "asyncpg", "oqs", "numpy", "dns", "dkim", "prometheus_client"}
)
"""Packages that only a relay needs which seals, opens, asks or keeps something."""
OF_SERVING = (
    "relay.process.app",
    "relay.entry",
    "relay.journey.opening",
    "relay.outgoing",
    "relay.incoming",
    "relay.kme",
)
FURTHER = frozenset({"cryptography", "pydantic", "rich", "structlog"})
"""What help does without as well."""
NEVER_SERVING = (
    "rich", "pygments", "greenlet", "asyncpg", "sqlalchemy.ext.asyncio", "sqlalchemy.dialects.postgresql", "oqs",
    "numpy", "dns", "dkim", "kilter", "aioimaplib", "matplotlib", "unittest", "xml", "multiprocessing",
    "relay.kme", "relay.setup", "relay.postfix", "relay.entry.milter", "relay.entry.imap",
)  # fmt: skip
"""What takes memory that a relay with the embedded database, and without milter, mailboxes and DKIM, has no use for."""

LOADED = """
import json, sys
from relay.cli import cli
try:
    cli.main(sys.argv[1:], prog_name="qumail-relay")
except SystemExit as ended:
    status = ended.code
print("\\n" + json.dumps([status, sorted(sys.modules)]))
"""


@pytest.fixture
def site(tmp_path: Path) -> Path:
    """A site's configuration and one policy; it has no peers, and its keys are not made yet."""
    (tmp_path / "policies").mkdir()
    (tmp_path / "policies" / "bob.example.toml").write_text('levels = ["pqc+aes", "pqc", "aes"]\n')
    (tmp_path / "relay.toml").write_text(
        '[site]\nname = "alice"\ndomains = ["alice.example"]\nhostname = "relay.alice.example"\nsae_id = "sae-alice"\n'
        '[outgoing]\nlisten = "127.0.0.1:0"\nnext_hop = "127.0.0.1:9"\n[policies]\ndirectory = "policies"\n'
        '[store]\ndatabase = "store.sqlite"\nsecret = "secret"\n'
        '[identity]\ndirectory = "identity"\npeers_directory = "peers"\n'
        '[kmes.km1]\ngroup = "one"\nurl = "https://127.0.0.1:9"\nca = "ca"\ncertificate = "c"\nkey = "k"\n'
        '[peers.bob]\ndomains = ["bob.example"]\nsae_id = "sae-bob"\nkme_groups = ["one"]\n'
    )
    return tmp_path


def environment(site: Path) -> dict[str, str]:
    """This tree's relay, and the settings of this site."""
    return {"PYTHONPATH": str(Path(__file__).parents[3]), "QUMAIL_RELAY_CONFIG": str(site / "relay.toml")}


def loaded(site: Path, *arguments: str) -> tuple[int, set[str]]:
    """The exit status of a command in an interpreter of its own, and every module that it has imported."""
    ran = subprocess.run(
        [sys.executable, "-c", LOADED, *arguments],
        cwd="/", env=environment(site), capture_output=True, text=True, check=True,
    )  # fmt: skip
    status, modules = json.loads(ran.stdout.splitlines()[-1])
    return status, set(modules)


def test_what_serving_hides_from_its_libraries_is_there_for_a_postgresql(tmp_path: Path) -> None:
    """Nobody listens there: the driver has to get so far as to find that out."""
    program = (
        "import asyncio, click; from pathlib import Path; from relay.cli import cli\n"
        "cli.get_command(click.Context(cli), 'serve')\n"
        "from relay.store.secret import SiteSecret; from relay.store.store import open_store\n"
        "asyncio.run(open_store('postgresql://x@127.0.0.1:1/x', SiteSecret.load_or_create(Path('secret'))))\n"
    )
    ran = subprocess.run(
        [sys.executable, "-c", program],
        cwd="/", env=environment(tmp_path), capture_output=True, text=True,
    )  # fmt: skip
    assert "Connect call failed" in ran.stderr.splitlines()[-1], ran.stderr


async def test_a_relay_that_serves_keeps_nothing_in_memory_that_it_has_no_use_for(
    tmp_path: Path, kmes: DevelopmentKMEs, identities: Identities
) -> None:
    here = make_site(
        tmp_path / "alice", "alice", state=kmes.state_dir, kme_url=kmes.urls[0], identities=identities,
        outgoing=TCPAddress("127.0.0.1", 9), incoming=TCPAddress("127.0.0.1", 9),
        policies={"default.toml": 'levels = ["otp", "aes", "pqc+aes", "pqc", "rsa+aes", "rsa"]\n'},
    )  # fmt: skip
    with here.config_file.open("a") as file:
        file.write('\n[status]\nlisten = "127.0.0.1:0"\n')
    ready = here.directory / "ready"
    relay = await asyncio.create_subprocess_exec(
        sys.executable, "-c", LOADED, "serve", "--config", here.config_file, "--ready-file", ready,
        cwd="/", env=environment(here.directory), stdout=subprocess.PIPE,
    )  # fmt: skip
    async with asyncio.timeout(30):
        while not ready.exists():
            assert relay.returncode is None
            await asyncio.sleep(0.02)
        relay.send_signal(signal.SIGTERM)
        said, _ = await relay.communicate()
    status, modules = json.loads(said.splitlines()[-1])
    assert status == 0
    assert {"relay.process.app", "relay.status.listener", "relay.schemes.pqc", "aiohttp"} <= set(modules)
    assert not [name for name in modules if name.startswith(NEVER_SERVING)]


def test_what_its_settings_can_need_is_loaded_before_a_relay_serves(site: Path) -> None:
    """A release that replaces the installed one meanwhile is of another relay."""
    text = (site / "relay.toml").read_text()
    (site / "relay.toml").write_text(text.replace('"127.0.0.1:9"', '["127.0.0.1:9", "mx:other.example"]') + "[dkim]\n")
    program = (
        "import sys; from pathlib import Path; from relay.config import load_config; from relay.process import app\n"
        "app.load(load_config(Path(sys.argv[1]))); print(*sys.modules)"
    )
    ran = subprocess.run(
        [sys.executable, "-c", program, str(site / "relay.toml")],
        cwd="/", env=environment(site), capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert {"relay.forward.mx", "relay.dkim.in_force", "relay.policy.compare"} <= set(ran.stdout.split())


def packages(modules: set[str]) -> set[str]:
    return {name.partition(".")[0] for name in modules}


@pytest.mark.parametrize(
    "command",
    [
        ["policy", "list", "--clear"],
        ["policy", "check"],
        ["policy", "explain", "--offline", "ann@alice.example", "ben@bob.example"],
        ["policy", "test"],
        ["identity", "show"],
        ["audit", "verify"],
        ["audit", "export"],
        ["ledger", "show"],
    ],
    ids=" ".join,
)
def test_a_command_that_looks_at_files_loads_nothing_that_serves_mail(site: Path, command: list[str]) -> None:
    if command[0] == "identity":
        assert loaded(site, "identity", "new")[0] == 0
    status, modules = loaded(site, *command)
    assert status == 0
    assert not SERVING & packages(modules)
    assert not [name for name in modules if name.startswith(OF_SERVING)]


def test_keys_status_beside_a_relay_that_serves_loads_nothing_that_asks_a_kme(site: Path) -> None:
    (site / "keys.json").write_text('{"pools": [], "levels": []}')
    _, modules = loaded(site, "keys", "status", "--json")
    assert not SERVING & packages(modules)
    assert not [name for name in modules if name.startswith((*OF_SERVING, "relay.keys.client"))]


def test_what_is_in_quarantine_is_listed_without_all_of_a_relay(site: Path) -> None:
    assert loaded(site, "identity", "new")[0] == 0
    _, modules = loaded(site, "quarantine", "list")
    assert not [name for name in modules if name.startswith(("relay.process.app", "relay.entry", "aiohttp"))]


@pytest.mark.parametrize("group", [[], ["policy"]], ids=["", "policy"])
def test_help_loads_no_command(site: Path, group: list[str]) -> None:
    status, modules = loaded(site, *group, "--help")
    assert status == 0
    assert not (SERVING | FURTHER) & packages(modules)
    commands = {f"relay.cli.{name}" for name in ("lazy", "policy", "stdout")}
    assert {name for name in modules if name.startswith("relay.cli.")} <= commands


def lazy_commands(group: LazyGroup) -> Iterator[tuple[str, str, click.Command]]:
    """Of each command that a group loads later: its name, its help there, and itself."""
    for name, later in group._later.items():
        command = group.get_command(click.Context(group), name)
        assert command is not None
        yield name, later.help, command
        if isinstance(command, LazyGroup):
            yield from lazy_commands(command)


def test_what_help_says_of_a_command_is_what_the_command_says_of_itself() -> None:
    assert isinstance(cli, LazyGroup)
    seen = dict[str, str]()
    for name, said, command in lazy_commands(cli):
        shown = click.Command(name, help=said).get_short_help_str(10_000)
        assert shown == command.get_short_help_str(10_000), name
        seen[name] = said
    assert {"serve", "list", "dkim"} <= set(seen)
