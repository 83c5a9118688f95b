"""Each set of policies that comes into force is in the audit record: what changed, by whom, and what that weakens.
Standard: deploy/AUDIT.md; `policy log` tells it, the last sets are kept, and `policy diff` takes their versions.
"""

from __future__ import annotations

import asyncio
import getpass
import json
from pathlib import Path
from typing import Any

import pytest

from relay.kme import DevelopmentKMEs
from tests.testlib import relay_command
from tests.testlib.sink import Sink
from tests.testlib.sites import Site, make_site, serving

AES = 'levels = ["aes"]\n'
PQC = 'levels = ["pqc"]\n'
CLEAR = 'levels = ["plaintext"]\nreason = "public"\n'
Records = list[dict[str, Any]]


@pytest.fixture(name="site")
def _site(tmp_path: Path, kmes: DevelopmentKMEs, sink: Sink) -> Site:
    policies = {"default.toml": AES, "bob.example.toml": AES, "bob.example/ann.toml": AES}
    return make_site(
        tmp_path / "alice", "alice", state=kmes.state_dir, kme_url=kmes.urls[0], outgoing=sink.address,
        policies=policies,
    )  # fmt: skip


async def told(site: Site, *options: str) -> Records:
    """What `policy log --json` says."""
    status, said, out = await relay_command.run("policy", "log", "--config", site.config_file, "--json", *options)
    assert status == 0, said
    found: Records = json.loads(out)
    return found


async def until_told(site: Site, number: int) -> Records:
    """The same, once there are so many."""
    async with asyncio.timeout(30):
        while len(found := await told(site)) < number:
            await asyncio.sleep(0.1)
    return found


async def verified(site: Site) -> None:
    status, said, _ = await relay_command.run("audit", "verify", "--config", site.config_file)
    assert status == 0, said


async def test_an_edit_is_recorded_with_whose_it_is_and_what_it_weakens(site: Site) -> None:
    async with serving(site):
        [first] = await until_told(site, 1)
        assert (first["way"], first["before"], first["files"], first["weaker"]) == ("start", "", 3, None)
        site.write_policies({"bob.example.toml": CLEAR, "bob.example/ann.toml": PQC, "new.example.toml": AES})
        edit, _ = await until_told(site, 2)
    assert (edit["way"], edit["by"], edit["known_by"]) == ("edit", getpass.getuser(), "files")
    assert (edit["added"], edit["removed"]) == (["new.example.toml"], [])
    assert sorted(edit["changed"]) == ["bob.example.toml", "bob.example/ann.toml"]
    assert (edit["before"], edit["weaker"], edit["compared"]) == (first["version"], True, "all")
    assert any("everybody else at bob.example" in each and "plaintext" in each for each in edit["weakened"])
    await verified(site)
    _, _, exported = await relay_command.run("audit", "export", "--config", site.config_file)
    assert [json.loads(line)["event"] for line in exported.splitlines()] == ["policies"] * 2
    assert b"ann@" not in exported
    assert b"ann.toml" not in exported
    _, _, text = await relay_command.run("policy", "log", "--config", site.config_file)
    print(text.decode())
    assert "bob.example/ann.toml" in text.decode()
