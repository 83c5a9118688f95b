"""`check` and a serving relay say that files of the installed program are gone or others', before a start finds out.
Standard: RECORD of an installed distribution (PyPA); the installation here is made up, and lies beside the real one.
"""

from __future__ import annotations

import asyncio
import base64
import hashlib
import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import CliRunner

from relay.cli import cli
from relay.kme import DevelopmentKMEs
from relay.runtime import program
from tests.testlib.nobody import by_root
from tests.testlib.sink import Sink
from tests.testlib.sites import Site, make_site, relay_process

FILES = {"relay/__init__.py": b"", "relay/mail.py": b"MAIL = 1\n", "other/parts.py": b"PARTS = 1\n"}

SHORT = "from tests.system import drill; drill.kept = drill.shortened(); drill.kept.__enter__()"

INSTALLED = """
from pathlib import Path
from relay.runtime import program
program._site = lambda: Path("{0}")
program.places = lambda: (Path("{0}"),)
"""


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where the program is installed."""
    place = tmp_path / "env"
    for distribution, package in (("qumail_relay-1.dist-info", "relay"), ("other-2.dist-info", "other")):
        rows = [
            f"{distribution}/RECORD,,",
            "../../../bin/moved,sha256=AAAA,5",
            f"{distribution}/METADATA,sha256=AAAA,5",
            "relay/__pycache__/mail.pyc,,",
        ]
        for name, content in FILES.items():
            if name.startswith(package):
                (place / name).parent.mkdir(parents=True, exist_ok=True)
                (place / name).write_bytes(content)
                digest = base64.urlsafe_b64encode(hashlib.sha256(content).digest()).rstrip(b"=").decode()
                rows.append(f"{name},sha256={digest},{len(content)}")
        (place / distribution).mkdir()
        (place / distribution / "RECORD").write_text("\n".join(rows) + "\n")
    monkeypatch.setattr(program, "_site", lambda: place)
    monkeypatch.setattr(program, "places", lambda: (place,))
    return place


@pytest.fixture
def alice(tmp_path: Path, kmes: DevelopmentKMEs, sink: Sink) -> Site:
    return make_site(tmp_path / "alice", "alice", state=kmes.state_dir, kme_url=kmes.urls[0], outgoing=sink.address)


async def found(alice: Site) -> list[str]:
    words = ["check", "--json", "--config", str(alice.config_file)]
    done = await asyncio.to_thread(CliRunner().invoke, cli, words)
    return [problem for each in json.loads(done.stdout) if each["what"] == "program" for problem in each["problems"]]


async def test_what_is_as_it_was_installed_is_well(alice: Site, site: Path) -> None:
    assert await found(alice) == []


@pytest.mark.parametrize(
    ("edit", "named"),
    [
        (lambda site: (site / "relay/mail.py").unlink(), "relay/mail.py"),
        (lambda site: (site / "relay/mail.py").write_bytes(b"MAIL = 2\n"), "relay/mail.py"),
        (lambda site: (site / "other/parts.py").write_bytes(b""), "other/parts.py"),
    ],
    ids=["gone", "changed", "emptied"],
)
async def test_a_file_that_is_not_as_it_was_installed_is_named(
    alice: Site, site: Path, edit: Callable[[Path], object], named: str
) -> None:
    edit(site)
    [problem] = await found(alice)
    assert f"{site / named}: is not as it was installed" in problem
    assert "install the same release again" in problem


def given_to_a_group(path: Path) -> None:
    os.chown(path, 0, 7)
    path.chmod(0o664)


@by_root
@pytest.mark.parametrize(
    "give",
    [
        lambda path: path.chmod(0o666),
        given_to_a_group,
        lambda path: os.chown(path, 65534, 65534),
        lambda path: path.parent.chmod(0o777),
    ],
    ids=["everybody", "group", "owner", "directory"],
)
async def test_a_file_of_the_program_that_others_can_change_is_named(
    alice: Site, site: Path, give: Callable[[Path], object]
) -> None:
    give(site / "other/parts.py")
    [problem] = await found(alice)
    assert "can be changed by others than root" in problem
    assert f"chown -hR root:root {site} && chmod -R go-w {site}" in problem


async def test_a_serving_relay_says_that_a_file_of_its_program_is_gone(alice: Site, site: Path) -> None:
    async with relay_process(alice, before=SHORT + INSTALLED.format(site)):
        (site / "relay/mail.py").unlink()
        async with asyncio.timeout(30):
            while "mail.py: is not as it was installed" not in _alarms(alice):
                await asyncio.sleep(0.05)


def _alarms(alice: Site) -> str:
    path = alice.directory / "alarms.json"
    return path.read_text() if path.exists() else ""
