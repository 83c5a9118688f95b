"""Each door is a folder that can be taken away: the rest of the relay runs without it, and says where it is missed.
Whatever knows a door by name, beside app.py's list and the door's own commands, fails here.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from relay import app

TREE = Path(app.__file__).parent
OF_DOORS = {"smtp": "users", "milter": "", "imap": "imap"}
"""Each door, and the command that is there for it alone."""
SETTINGS = {"smtp": 'listen = "127.0.0.1:0"', "milter": 'milter = "127.0.0.1:0"', "imap": 'lmtp = "127.0.0.1:0"'}
IMAP = '\n[imap.ann]\nhost = "imap.example"\nuser = "ann@alice.example"\npassword_file = "password"\n'

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


def test_every_door_is_tried_here() -> None:
    folders = {each.parent.name for each in (TREE / "entry").glob("*/__init__.py")}
    assert folders == set(app.DOORS) == set(OF_DOORS)


@pytest.mark.parametrize("door", OF_DOORS)
def test_a_door_that_was_taken_away_is_missed_by_its_own_command_and_settings_alone(door: str, tmp_path: Path) -> None:
    shutil.copytree(TREE, tmp_path / "relay")
    shutil.rmtree(tmp_path / "relay" / "entry" / door)
    config = tmp_path / "relay.toml"
    config.write_text(
        '[site]\nname = "alice"\ndomains = ["alice.example"]\nhostname = "relay.alice.example"\nsae_id = "sae"\n'
        '[policies]\ndirectory = "policies"\n[store]\ndatabase = "store.sqlite"\nsecret = "secret"\n'
        f'[outgoing]\nnext_hop = "127.0.0.1:9"\n{SETTINGS[door]}\n{IMAP if door == "imap" else ""}'
    )
    command = OF_DOORS[door]
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
        assert f"this relay has no relay.entry.{door}" in said
        assert f"this relay has no relay.entry.{door}" in missed
    assert checked == 1
    assert f"is set, and this relay has no relay.entry.{door}, which it needs" in json.loads(found)[0]["problems"][0]
