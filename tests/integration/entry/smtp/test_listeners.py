"""Each listener is a folder that can be taken away: the rest of the relay runs without it, and says where it is missed.
Whatever knows a listener by name, beside the list in config/listeners.py and the listener's own commands, fails here.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from importlib import import_module
from inspect import signature
from pathlib import Path

import pytest
from click.testing import CliRunner

import relay
from relay.cli import COMMANDS
from relay.cli.lazy import LazyGroup
from relay.config.listeners import LISTENERS, IncomingSettings, OutgoingSettings, listening_settings
from relay.config.reference import SAMPLES, model_of, value_of
from relay.entry import ListenerModule

TREE = Path(relay.__file__).parent
SHARED = {"__init__", "budget", "outgoing_router", "listening", "server_tls", "streams", "transaction"}
"""What stands beside the listeners, for all of them."""
COMMAND_OF = {each.listener: name for name, each in COMMANDS.items() if each.listener}
"""The command that is there for a listener alone."""

LOOK = """
import importlib, json, pkgutil, sys
from pathlib import Path
import relay
from click.testing import CliRunner
command, config = sys.argv[1:]
failed = {}
for module in pkgutil.walk_packages(relay.__path__, "relay."):
    try:
        if module.name not in ("relay.__main__", f"relay.cli.{command}"):
            importlib.import_module(module.name)
    except Exception as error:
        failed[module.name] = repr(error)
from relay.cli import cli
helped = CliRunner().invoke(cli, ["--help"])
missed = CliRunner().invoke(cli, [command, "--help"]) if command else None
checked = CliRunner().invoke(cli, ["check", "--config", config, "--json"])
print(json.dumps([
    failed, helped.exit_code, helped.output, missed and repr(missed.exception), checked.exit_code, checked.output
]))
"""


def test_every_listener_is_tried_here() -> None:
    folders = {each.parent.name for each in (TREE / "entry").glob("*/__init__.py")}
    files = {each.stem for each in (TREE / "entry").glob("*.py")} - SHARED
    assert folders | files == set(LISTENERS), "relay/config/listeners.py::LISTENERS has each of relay/entry"


@pytest.mark.parametrize("listener", LISTENERS)
def test_each_listener_has_what_the_relay_asks_of_it(listener: str) -> None:
    module = import_module(f"relay.entry.{listener}")
    found = module if not hasattr(module, "__path__") else import_module(f"{module.__name__}.listener")
    wanted = {name: signature(function) for name, function in vars(ListenerModule).items() if not name.startswith("_")}
    missing = {name for name in wanted if not hasattr(found, name)}
    assert not missing, f"{found.__name__} has not all of ListenerModule (relay/entry/__init__.py)"
    for name, contract in wanted.items():
        made = signature(getattr(found, name))
        assert list(made.parameters.values()) == list(contract.parameters.values())[1:], name
        yields = "AsyncIterator[Listener]" if name == "listener" else contract.return_annotation
        assert made.return_annotation == yields, f"{name}: mypy compares with the contract only what is said to be one"


def test_a_setting_of_both_directions_needs_its_listener_in_both() -> None:
    listed = {setting for settings in LISTENERS.values() for setting in settings}
    for one, other in (("outgoing", "incoming"), ("incoming", "outgoing")):
        missing = {f"{other}.{name}" for name in listening_settings(one) if has_setting(other, name)} - listed
        assert missing == set(), "relay/config/listeners.py::LISTENERS"


def has_setting(table: str, name: str) -> bool:
    return name in (OutgoingSettings.model_fields if table == "outgoing" else IncomingSettings.model_fields)


def tables_that_set(setting: str) -> str:
    """The table of one direction with an address of this setting; or the example of a table of its own."""
    table, _, name = setting.partition(".")
    if name:
        return f'[{table}]\nnext_hop = "127.0.0.1:9"\n{name} = "127.0.0.1:0"\n'
    model = model_of(table)
    assert model is not None
    lines = [f"{each} = {value_of(model.model_fields[each], value)}\n" for each, value in model.examples.items()]
    header = f"{table}.{SAMPLES[table]}" if table in SAMPLES else table
    return f'[outgoing]\nnext_hop = "127.0.0.1:9"\nlmtp = "127.0.0.1:0"\n[{header}]\n{"".join(lines)}'


@pytest.mark.parametrize("listener", LISTENERS)
def test_a_listener_that_was_taken_away_is_missed_by_its_own_command_and_settings_alone(
    listener: str, tmp_path: Path
) -> None:
    shutil.copytree(TREE, tmp_path / "relay")
    entry = tmp_path / "relay" / "entry"
    if (entry / listener).is_dir():
        shutil.rmtree(entry / listener)
    else:
        (entry / f"{listener}.py").unlink()
    config = tmp_path / "relay.toml"
    config.write_text(
        '[site]\nname = "alice"\ndomains = ["alice.example"]\nhostname = "relay.alice.example"\nsae_id = "sae"\n'
        '[policies]\ndirectory = "policies"\n[store]\ndatabase = "store.sqlite"\nsecret = "secret"\n'
        + tables_that_set(LISTENERS[listener][0])
    )
    command = COMMAND_OF.get(listener, "")
    ran = subprocess.run(
        [sys.executable, "-c", LOOK, command, str(config)], cwd=tmp_path, env={"PYTHONPATH": str(tmp_path)},
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    failed, helped, said, missed, checked, found = json.loads(ran.stdout.splitlines()[-1])
    assert not failed
    assert helped == 0
    assert "serve" in said
    if command:
        assert f"{command} " in said
        assert f"this relay has no relay.entry.{listener}" in said
        assert f"this relay has no relay.entry.{listener}" in missed
    assert checked == 1
    assert (
        f"is set, and this relay has no relay.entry.{listener}, which it needs" in json.loads(found)[0]["problems"][0]
    )


@pytest.mark.parametrize(("listener", "there"), [("smtp", True), ("outgoing_router", True), ("nothing", False)])
def test_a_command_finds_its_listener_whether_that_is_a_folder_or_a_file(listener: str, there: bool) -> None:
    later = {"serve": COMMANDS["serve"]._replace(listener=listener)}
    ran = CliRunner().invoke(LazyGroup(later=later), ["serve", "--help"])
    assert (ran.exit_code == 0 and "Usage" in ran.output) == there
