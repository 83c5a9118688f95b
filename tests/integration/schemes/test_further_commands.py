"""Further KEMs at the command line: seal and open, policy check and explain, identity new, check.
Standard: deploy/INSTALL.md.
"""

from __future__ import annotations

import asyncio
import os
import re
import shutil
import subprocess
import sys
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import pytest
from click.testing import CliRunner

from relay.cli.identity import identity as identity_command
from relay.cli.policy import policy as policy_command
from relay.config import TCPAddress, load_config
from relay.formats.cms import FURTHER_KEMS
from relay.identity import (
    identity_findings,
    liboqs,
    read_document,
)
from relay.kme import DevelopmentKMEs
from tests.integration.schemes.further_kems import HQC, MISSING, ROOT, ask_for, use, with_kems
from tests.testlib import mails
from tests.testlib.identities import Identities, Person
from tests.testlib.sites import Site, make_site


def run(where: Path, *arguments: str | Path, stdin: bytes = b"") -> subprocess.CompletedProcess[bytes]:
    """Runs a command, with the stand-in and some library in the places of liboqs where that is not installed."""
    environment = dict(os.environ)
    if MISSING:
        (where / "python").mkdir(exist_ok=True)
        (where / "python/oqs.py").write_text(
            "import sys\nfrom tests.testlib.stand_in_oqs import stand_in\nsys.modules[__name__] = stand_in()\n"
        )
        (where / "lib").mkdir(exist_ok=True)
        some_library = re.search(r"\S+/libc\.so\S*", Path("/proc/self/maps").read_text())
        assert some_library
        (where / "lib/liboqs.so").unlink(missing_ok=True)
        (where / "lib/liboqs.so").symlink_to(some_library[0])
        environment |= {"OQS_INSTALL_PATH": str(where), "PYTHONPATH": f"{where}/python:{ROOT}"}
    command = [sys.executable, "-m", "relay", *map(str, arguments)]
    return subprocess.run(command, input=stdin, capture_output=True, check=False, cwd=ROOT, env=environment)


async def test_seal_and_open_give_the_file_back_through_all_kems(
    library: None, identities: Identities, kmes: DevelopmentKMEs, tmp_path: Path
) -> None:
    people = replace(identities, bob=with_kems(identities.bob, tmp_path / "bob-identity", "bob", "1"))
    first, second = kmes.urls
    address = TCPAddress("127.0.0.1", 1)
    policy = {"default.toml": 'levels = ["pqc+aes"]\n'}
    alice = make_site(
        tmp_path / "alice", "alice", state=kmes.state_dir, kme_url=first, outgoing=address, identities=people,
        policies=policy,
    )  # fmt: skip
    ask_for(alice, *FURTHER_KEMS)
    bob = make_site(tmp_path / "bob", "bob", state=kmes.state_dir, kme_url=second, incoming=address, identities=people)
    original = mails.random_attachment()
    (tmp_path / "original.eml").write_bytes(original)
    addresses = ("--from", "ann@alice.example", "--to", "ben@bob.example")
    sealed = await asyncio.to_thread(
        run, tmp_path, "seal", "--config", alice.config_file, *addresses, tmp_path / "original.eml"
    )
    assert (sealed.returncode, sealed.stderr) == (0, b"")
    opened = await asyncio.to_thread(run, tmp_path, "open", "--config", bob.config_file, "-", stdin=sealed.stdout)
    assert (opened.returncode, opened.stderr, opened.stdout) == (0, b"", original)


def home(directory: Path, person: Person) -> Path:
    """A relay.toml that names a copy of an identity."""
    directory.mkdir()
    shutil.copytree(person.directory, directory / "identity")
    (directory / "relay.toml").write_text(
        '[site]\nname = "alice"\ndomains = ["alice.example"]\nsae_id = "2"\n'
        '[outgoing]\nlisten = "127.0.0.1:0"\nnext_hop = "127.0.0.1:25"\n[policies]\ndirectory = "policies"\n'
        '[store]\ndatabase = "relay.db"\nsecret = "secret"\n[identity]\ndirectory = "identity"\npeers_directory = "peers"\n'
    )
    return directory / "relay.toml"


@pytest.mark.usefixtures("library")
def test_identity_new_adds_keys_and_shows_them(identities: Identities, tmp_path: Path) -> None:
    config = home(tmp_path / "home", identities.alice)
    made = CliRunner().invoke(identity_command, ["new", "--config", str(config), "--kem", HQC])
    assert made.exit_code == 0, made.output
    assert "Further KEMs: hqc-256" in made.stdout
    shown = CliRunner().invoke(identity_command, ["show", "--config", str(config), "--json"])
    assert '"hqc-256"' in shown.stdout
    exported = CliRunner().invoke(identity_command, ["export", "--config", str(config)])
    assert set(read_document(exported.stdout.encode()).further_kems) == {HQC}
    usage = CliRunner().invoke(identity_command, ["new", "--config", str(config), "--kem", HQC, "--csr"])
    assert usage.exit_code == 2


def test_policy_check_says_what_to_install(sites: tuple[Site, Site], monkeypatch: pytest.MonkeyPatch) -> None:
    alice, _ = sites
    ask_for(alice, HQC)
    use(monkeypatch, f"the native library liboqs is missing: {liboqs.INSTALL}")
    result = CliRunner().invoke(policy_command, ["check", "--config", str(alice.config_file), "--strict"])
    assert result.exit_code == 1
    said = "one.toml:1: no level that stands here can be had for peer 'bob', so this mail is held or refused: pqc: hqc-256: "
    assert f"{said}the native library liboqs is missing" in result.output
    assert "pip install liboqs-python" in result.output


def test_check_says_that_we_cannot_open_what_we_asked_for(
    people: Identities, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = load_config(home(tmp_path / "home", replace(people.alice, directory=people.bob.directory)))
    now = datetime.now(UTC)
    before = identity_findings(config, now)
    use(monkeypatch, f"the native library liboqs is missing: {liboqs.INSTALL}")
    (_, wrong), *_ = identity_findings(config, now)
    assert not any("liboqs" in problem for _, problems in before for problem in problems)
    assert sum("pip install liboqs-python" in problem for problem in wrong) == len(FURTHER_KEMS)
