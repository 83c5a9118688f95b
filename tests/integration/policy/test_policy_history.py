"""Each set of policies that comes into force is in the audit record: what changed, by whom, and what that weakens.
Standard: deploy/AUDIT.md; `policy log` tells it, the last sets are kept, and `policy diff` takes their versions.
"""

from __future__ import annotations

import asyncio
import getpass
import json
import os
import shutil
import stat
import tempfile
from pathlib import Path
from typing import Any

import pytest

from relay.formats import mime
from relay.kme import DevelopmentKMEs
from relay.policy.kept import kept_file
from tests.integration.entry.smtp.test_trouble import full_disk
from tests.testlib import mails, relay_command
from tests.testlib.nobody import AS_NOBODY, NOBODY, by_root, give_to_nobody
from tests.testlib.sink import Sink
from tests.testlib.sites import RelayProcess, Site, make_site, relay_process, serving
from tests.testlib.status_numbers import numbers, with_status
from tests.testlib.submit import submit
from tests.testlib.workers import until as logged, workers

AES = 'levels = ["aes"]\n'
PQC = 'levels = ["pqc"]\n'
CLEAR = 'levels = ["plaintext"]\nreason = "public"\n'
POLICIES = {"default.toml": AES, "bob.example.toml": AES, "bob.example/ann.toml": AES}
Records = list[dict[str, Any]]


@pytest.fixture(name="site")
def _site(tmp_path: Path, kmes: DevelopmentKMEs, sink: Sink) -> Site:
    return make_site(
        tmp_path / "alice", "alice", state=kmes.state_dir, kme_url=kmes.urls[0], outgoing=sink.address,
        policies=POLICIES,
    )  # fmt: skip


async def policy(site: Site, command: str, *arguments: str, user: str = "", status: int = 0) -> tuple[str, str]:
    """Standard output and error of a policy command, that `user` runs by sudo."""
    environment = {**os.environ, "SUDO_USER": user} if user else None
    ended, said, out = await relay_command.run(
        "policy", command, "--config", site.config_file, *arguments, environment=environment
    )
    assert ended == status, said
    return out.decode(), said


async def told(site: Site, number: int = 0, *options: str) -> Records:
    """What `policy log --json` says, once there are so many sets."""
    async with asyncio.timeout(30):
        while True:
            found: Records = json.loads((await policy(site, "log", "--json", *options))[0])
            if len(found) >= number:
                return found
            await asyncio.sleep(0.05)


async def verified(site: Site) -> None:
    status, said, _ = await relay_command.run("audit", "verify", "--config", site.config_file)
    assert status == 0, said


def linked(site: Site, **sets: str) -> None:
    """The policies become a link to the first of these sets, each of which says this for bob.example."""
    policies = site.directory / "policies"
    policies.rename(site.directory / "before")
    for name, text in sets.items():
        (site.directory / name / "bob.example").mkdir(parents=True)
        for file, said in (POLICIES | {"bob.example.toml": text}).items():
            (site.directory / name / file).write_text(said)
    policies.symlink_to(next(iter(sets)))


async def test_an_edit_is_recorded_with_whose_it_is_and_what_it_weakens(site: Site) -> None:
    async with serving(site):
        [first] = await told(site, 1)
        site.write_policies({"bob.example.toml": CLEAR, "bob.example/ann.toml": PQC, "new.example.toml": AES})
        edit, _ = await told(site, 2)
    assert (first["way"], first["before"], first["files"], first["weaker"]) == ("start", "", 3, None)
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
    text, _ = await policy(site, "log", "-n", "1")
    assert text.startswith(f"version {edit['version']}  weaker than before\n")
    for part in ("bob.example/ann.toml", "to ann@bob.example", "Older ones are left out"):
        assert part in text


async def test_an_install_is_known_by_its_note_and_a_link_that_is_swapped_by_the_owner_of_its_files(site: Site) -> None:
    linked(site, one=AES, two=CLEAR)
    me, root = getpass.getuser(), os.geteuid() == 0
    async with serving(site):
        await told(site, 1)
        await policy(site, "install", str(site.directory / "two"), "--json", user="ann")
        installed, first = await told(site, 2)
        assert (installed["way"], installed["by"], installed["known_by"]) == ("install", me, "command")
        assert installed.get("sudo_user") == ("ann" if root else None)
        (site.directory / "beside").symlink_to("one")
        (site.directory / "beside").replace(site.directory / "policies")
        swapped, *_ = await told(site, 3)
        assert (swapped["way"], swapped["by"], swapped["known_by"]) == ("edit", me, "files")
        assert (swapped["version"], swapped["weaker"]) == (first["version"], False)
    text, _ = await policy(site, "log")
    for part in ("by sudo of ann" if root else me, "whose files changed", "policy install"):
        assert part in text


async def test_what_was_edited_or_installed_while_the_relay_was_stopped_is_recorded_at_its_start(site: Site) -> None:
    linked(site, one=AES, two=CLEAR)
    async with serving(site):
        await told(site, 1)
    async with serving(site):
        pass
    assert len(await told(site)) == 1, "the same set once more is no other set"
    site.write_policies({"bob.example.toml": PQC})
    async with serving(site):
        edited, first = await told(site, 2)
    await policy(site, "install", str(site.directory / "two"))
    async with serving(site):
        installed, *_ = await told(site, 3)
    assert (edited["way"], edited["known_by"], edited["changed"]) == ("start", "files", ["bob.example.toml"])
    assert (edited["before"], edited["weaker"]) == (first["version"], True)
    assert (installed["way"], installed["known_by"]) == ("start", "command")
    assert "found at a start: policy install while the relay did not run" in (await policy(site, "log"))[0]
    await verified(site)


KILLED = """
import os, signal
from relay.audit.policies import PolicyRecords
from relay.policy.last_good import LastGood
calls = []
def killing(self, *arguments, **names):
    calls.append(1)
    if len(calls) > 1:
        os.kill(os.getpid(), signal.SIGKILL)
    return before(self, *arguments, **names)
before = {of}
{of} = killing
"""


@pytest.mark.in_process
@pytest.mark.parametrize(
    ("where", "way"),
    [("LastGood.keep", "start"), ("PolicyRecords._members", "edit"), ("PolicyRecords._mark", "edit")],
    ids=["before it is kept", "before it is recorded", "before it is known to be recorded"],
)
async def test_a_set_is_recorded_once_wherever_the_relay_is_killed(site: Site, where: str, way: str) -> None:
    async with relay_process(site, before=KILLED.format(of=where)) as relay:
        await told(site, 1)
        site.write_policies({"bob.example.toml": CLEAR})
        async with asyncio.timeout(30):
            await relay.process.wait()
    async with serving(site):
        await told(site, 2)
        site.write_policies({"bob.example.toml": PQC})
        last, killed, first = await told(site, 3)
    assert (killed["way"], killed["before"], killed["changed"]) == (way, first["version"], ["bob.example.toml"])
    assert (killed["weaker"], killed["compared"], last["before"]) == (True, "all", killed["version"])
    await verified(site)


@pytest.mark.in_process
async def test_with_a_full_disk_an_edit_comes_into_force_and_is_recorded_when_there_is_room(site: Site) -> None:
    async with relay_process(with_status(site)) as relay:
        [first] = await told(site, 1)
        with full_disk(relay):
            site.write_policies({"bob.example.toml": PQC})
            await until_in_force_is_another(relay, first["version"])
        full, _ = await told(site, 2)
        assert (full["way"], full["before"], full["weaker"]) == ("edit", first["version"], True)
        site.write_policies({"bob.example.toml": CLEAR})
        last, *_ = await told(site, 3)
    assert (last["before"], last["changed"]) == (full["version"], ["bob.example.toml"])
    await verified(site)


async def until_in_force_is_another(relay: RelayProcess, version: str) -> None:
    async with asyncio.timeout(30):
        while (await numbers(relay.addresses["status"])).sum("qumail_policy_info", version=version):
            await asyncio.sleep(0.05)


async def test_of_several_workers_one_records(site: Site) -> None:
    async with workers(site, 2) as relay:
        await told(site, 1)
        site.write_policies({"bob.example.toml": PQC})
        await logged(relay, "policies_loaded", 2)
        await told(site, 2)
    assert len(await told(site)) == 2


@by_root
@pytest.mark.in_process
async def test_a_relay_without_rights_knows_who_of_others_has_put_policies_there(
    site: Site, kmes: DevelopmentKMEs
) -> None:
    with tempfile.TemporaryDirectory() as name:
        top = Path(name)
        top.chmod(0o755)
        text = site.config_file.read_text().replace(str(kmes.state_dir), f"{top}/kme")
        site.config_file.write_text(text.replace('"policies"', '"../policies"'))
        shutil.copytree(kmes.state_dir, top / "kme")
        linked(site, one=AES, two=CLEAR)
        for each in ("one", "two", "policies"):
            (site.directory / each).rename(top / each)
        site = Site(site.directory.rename(top / "alice"))
        give_to_nobody(top / "alice", top / "kme")
        for path in (site.directory, site.config_file):  # root takes settings that root alone can have written
            os.chown(path, 0, 0)
        site.directory.chmod(0o1777)
        async with relay_process(site, before=AS_NOBODY):
            await told(site, 1)
            await policy(site, "install", str(top / "two"), user="ann")
            installed, _ = await told(site, 2)
            (top / "two" / "bob.example.toml").write_text(PQC)
            os.chown(top / "two" / "bob.example.toml", 12345, 0)
            edited, *_ = await told(site, 3)
        assert (installed["way"], installed["by"], installed["sudo_user"]) == ("install", "root", "ann")
        assert (edited["way"], edited["by"], edited["uid"]) == ("edit", "12345", [12345])
        state = [kept_file(site.config), *site.config.audit_directory.iterdir()]
        assert {each.stat().st_uid for each in state} == {NOBODY.pw_uid}


async def test_what_is_kept_is_for_the_relays_user_alone(site: Site) -> None:
    async with serving(site):
        await told(site, 1)
    file = kept_file(site.config)
    assert [stat.S_IMODE(each.stat().st_mode) for each in (file, file.parent)] == [0o600, 0o700]
    assert {each.name for each in file.parent.iterdir()} == {file.name, file.with_suffix(".in-force").name}


@pytest.mark.parametrize("number", [1, 2])
async def test_an_install_ends_when_all_processes_of_the_relay_go_by_the_set(
    site: Site, sink: Sink, number: int
) -> None:
    """Files that are gone count last: for two seconds a program may be replacing them."""
    linked(site, one=CLEAR, two=CLEAR)
    (site.directory / "two" / "bob.example.toml").unlink()
    site.config_file.write_text(f"{site.config_file.read_text()}\n[limits]\nworkers = {number}\n")
    async with relay_process(site) as relay:
        assert (await submit(relay.addresses["outgoing"], mails.plain())).code == 250
        out, _ = await policy(site, "install", str(site.directory / "two"))
        assert "tests. The relay goes by it." in out
        for _ in range(10):
            assert (await submit(relay.addresses["outgoing"], mails.plain())).code == 250
    assert [mime.is_sealed(got.message) for got in sink.got] == [False] + [True] * 10


@pytest.mark.parametrize("held_back", ["a test fails", "not seen yet"])
async def test_a_strict_install_is_compared_with_what_is_in_force_and_not_with_an_edit_held_back(
    site: Site, held_back: str
) -> None:
    linked(site, one=AES, two=AES)
    floor, fails = (
        '[[floor]]\nsubject_tag = "[x]"\nlevels = ["otp"]\n',
        "sender = 'a@b'\nrecipient = 'x@bob.example'\nexpect = 'otp'\n",
    )
    (site.directory / "one" / "floors.toml").write_text(floor)
    two = str(site.directory / "two")
    async with serving(site):
        [first] = await told(site, 1)
        if held_back == "a test fails":
            (site.directory / "one" / "tests.toml").write_text(f"[[test]]\n{fails}")
        (site.directory / "one" / "floors.toml").unlink()
        _, said = await policy(site, "install", two, "--strict", status=1)
        assert f"version {first['version']}" in said
        assert "Not installed: something may be weaker." in said
        assert (site.directory / "policies").resolve() == site.directory / "one"
        out, _ = await policy(site, "install", two)
        assert "0 decisions differ" not in out
    [kept] = kept_file(site.config).parent.glob("*.db")
    kept.write_bytes(b"no database" * 100)
    _, said = await policy(site, "install", two, "--strict", status=1)
    assert "Not compared with the set in force" in said
