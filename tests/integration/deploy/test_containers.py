"""The containers, as far as they can be looked at without an engine; with podman: tests/system/containers.py.
Standard: the Compose Specification; Containerfile(5).
"""

from __future__ import annotations

import json
import re
import shlex
import shutil
import subprocess
from pathlib import Path
from typing import Any

import click
import pytest

from relay.cli import cli

ROOT = Path(__file__).parents[3]
CONTAINER = ROOT / "deploy" / "container"
PROGRAMS = ("key-servers", "site")
IMAGE = (CONTAINER / "Containerfile").read_text()


def compose() -> dict[str, Any]:
    """YAML that is JSON but for lines of comment."""
    lines = (CONTAINER / "compose.yaml").read_text().splitlines()
    found: dict[str, Any] = json.loads("\n".join(line for line in lines if not line.startswith("#")))
    return found


def test_what_the_image_takes_out_of_the_tree_is_there() -> None:
    taken = re.findall(r"^COPY (?!--from)(.+) \S+$", IMAGE, re.MULTILINE)
    assert all((ROOT / each).exists() for words in taken for each in words.split())
    assert "COPY deploy/container/site deploy/container/key-servers /usr/local/bin/" in IMAGE
    assert (ROOT / "deploy/debian/build").exists()


def test_each_service_has_an_image_a_program_and_volumes_that_are_there() -> None:
    found = compose()
    services = found["services"]
    assert services.keys() == {"kme", "alice", "bob"}
    [built] = [service for service in services.values() if "build" in service]
    file = CONTAINER / built["build"]["context"] / built["build"]["dockerfile"]
    assert file.samefile(CONTAINER / "Containerfile")
    for service in services.values():
        assert service["image"] == built["image"]
        assert service["command"][0] in PROGRAMS
        assert {each.split(":")[0] for each in service["volumes"]} <= found["volumes"].keys()
        assert set(service.get("depends_on", [])) <= services.keys()
        # A client that reaches a relay's own ports can send as anybody.
        assert all(re.fullmatch(r"127\.0\.0\.1:\d+:143", port) for port in service.get("ports", []))


def test_the_two_sites_are_each_others_peers_with_keys_of_their_own() -> None:
    services = compose()["services"]
    (_, *alice), (_, *bob) = services["alice"]["command"], services["bob"]["command"]
    assert alice[:2] == bob[1::-1]
    assert (alice[2:], bob[2:]) == (["2", "13000"], ["1", "14000"])
    private = [{each for each in services[name]["volumes"] if each.startswith(name)} for name in ("alice", "bob")]
    assert [len(each) for each in private] == [3, 3]


@pytest.mark.parametrize("program", PROGRAMS)
def test_a_program_is_one_that_sh_can_read_and_whose_commands_the_relay_has(program: str) -> None:
    subprocess.run(["sh", "-n", CONTAINER / program], check=True)
    assert (CONTAINER / program).stat().st_mode & 0o111
    text = (CONTAINER / program).read_text().replace("\\\n", " ")
    lines = re.findall(r"(?:^|\|\| |exec )\s*(?:qumail-relay|\$relay) ([a-z].*)$", text, re.MULTILINE)
    assert lines
    for line in lines:
        words = shlex.split(line.replace("$port", "13000").replace("/invitations/$peer", "-"))
        command: click.Command = cli
        context = click.Context(cli)
        while isinstance(command, click.Group):
            found = command.get_command(context, words[0])
            assert found is not None, line
            command, context = found, click.Context(found, info_name=words.pop(0), parent=context)
        command.parse_args(context, words)


@pytest.mark.skipif(shutil.which("shellcheck") is None, reason="shellcheck is not installed")
def test_shellcheck_finds_nothing() -> None:
    files = [CONTAINER / program for program in PROGRAMS]
    assert subprocess.run(["shellcheck", *files], capture_output=True, text=True).stdout == ""
