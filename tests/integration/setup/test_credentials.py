"""Site secret and passphrase as credentials of systemd: made by setup, renewed, and never on the disk in plain.
Standard: systemd.exec(5), CREDENTIALS. A stand-in for systemd-creds here; test_two_machines.py has the real one.
"""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from click.testing import Result

from relay.cli import credentials
from relay.cli.check_store import secret_state
from relay.cli.units import Unit
from relay.config import load_config
from relay.errors import ConfigError, StoreUnavailable
from relay.files import credentials as places
from relay.store.secret import SiteSecret
from tests.integration.setup import answered
from tests.integration.setup.answered import USUAL, contents

pytestmark = [
    pytest.mark.usefixtures("without_the_end"),
    pytest.mark.skipif(os.geteuid() != 0, reason="root alone can make credentials"),
]
CREDENTIAL = ("--secret", "credential")


def run(home: Path, *words: str, group: str = "setup", typed: str = "") -> Result:
    """As a process of its own, whose environment ends with it."""
    try:
        return answered.run(home, *words, group=group, typed=typed)
    finally:
        os.environ.pop("CREDENTIALS_DIRECTORY", None)


@dataclass
class Systemd:
    """Encrypts by turning bytes around, and gives a unit its credentials in `run`."""

    directory: Path
    tpm2: bool = False
    gives_none: bool = False
    asked: list[str] = field(default_factory=list)

    @property
    def run(self) -> Path:
        return self.directory / "run"

    def __call__(self, program: str, *words: str, said: bytes = b"") -> bytes:
        self.asked.append(" ".join((program, *words)))
        if program == "systemd-run" and "trial" in str(words):
            [option] = [word for word in words if "SetCredentialEncrypted" in word]
            return b"" if self.gives_none else option.rpartition("encrypted")[2][::-1].encode()
        if program == "systemd-run":
            [unit] = [word.partition("=")[2] for word in words if word.startswith("--unit=")]
            self.starts(unit, [word.partition("LoadCredentialEncrypted=")[2] for word in words if "LoadCred" in word])
        elif words[0] == "has-tpm2" and not self.tpm2:
            raise ConfigError("no")
        elif words[0] == "encrypt":
            return b"encrypted " + said[::-1]
        elif words[0] == "decrypt":
            return (said or Path(words[-2]).read_bytes()).removeprefix(b"encrypted ")[::-1]
        return b""

    def starts(self, unit: str, loads: list[str]) -> None:
        given = self.run / f"{unit}.service"
        given.mkdir(parents=True, exist_ok=True)
        for each in loads:
            name, _, file = each.partition(":")
            (given / name).write_bytes(self("systemd-creds", "decrypt", file, "-"))
            (given / name).chmod(0o400)

    def starts_the_relay(self) -> None:
        lines = self.drop_in.read_text().splitlines()
        self.starts("qumail-relay", [each.partition("=")[2] for each in lines if each.startswith("LoadCred")])

    @property
    def drop_in(self) -> Path:
        return self.directory / "units" / "qumail-relay.service.d" / "credentials.conf"

    def encrypted(self, name: str) -> Path:
        return self.directory / "credstore" / f"qumail-relay.{name}"


@pytest.fixture
def systemd(home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Systemd:
    made = Systemd(tmp_path / "systemd")
    (made.directory / "units").mkdir(parents=True)
    unit = Unit("qumail-relay", home / "relay.toml", "root", home / "relay.toml")
    monkeypatch.setenv("CREDENTIALS_DIRECTORY", "")
    monkeypatch.setattr(places, "PLACE", made.run)
    monkeypatch.setattr(credentials, "PLACE", made.run)
    monkeypatch.setattr(credentials, "STORE", made.directory / "credstore")
    monkeypatch.setattr(credentials, "DIRECTORIES", (made.directory / "units",))
    monkeypatch.setattr(credentials, "BOOTED", tmp_path)
    monkeypatch.setattr(credentials, "unit_of", lambda _: unit)
    monkeypatch.setattr(credentials, "systemctl", lambda *words: made("systemctl", *words).decode())
    monkeypatch.setattr(credentials, "_run", made)
    return made


@pytest.mark.promise("A secret that is a credential is on the disk encrypted alone")
def test_the_secret_and_a_passphrase_are_on_the_disk_encrypted_alone_and_the_relay_gets_them(
    home: Path, systemd: Systemd
) -> None:
    result = run(home, *USUAL, *CREDENTIAL)
    assert result.exit_code == 0, result.output
    config = load_config(home / "relay.toml")
    assert config.store.secret == systemd.run / "qumail-relay.service" / "site.secret"
    assert config.identity is not None
    assert config.identity.passphrase == config.store.secret.with_name("identity.passphrase")
    assert "LoadCredentialEncrypted=site.secret:" in systemd.drop_in.read_text()
    assert systemd.encrypted("site.secret").stat().st_mode & 0o777 == 0o600
    with pytest.raises(ConfigError, match=r"is there only while qumail-relay\.service runs with it"):
        SiteSecret.load(config.store.secret)
    systemd.starts_the_relay()
    plain = config.store.secret.read_bytes()
    assert SiteSecret.load(config.store.secret).ids
    everywhere = [*contents(home).values(), *contents(systemd.directory / "credstore").values()]
    assert not [content for _, content in everywhere if plain.strip() in content]
    assert config.own_directory == config.state_directory == home / "state"
    assert secret_state(config)[1].endswith(": a credential of systemd; the disk has it encrypted (deploy/THREATS.md)")
    asked, before = len(systemd.asked), contents(systemd.directory / "credstore")
    assert run(home, "--yes", "--postfix", "none").exit_code == 0
    assert contents(systemd.directory / "credstore") == before
    assert "systemctl daemon-reload" not in systemd.asked[asked:], "nothing has changed"


def test_a_secret_that_was_a_file_becomes_the_credential_and_check_names_the_file_that_is_left(
    home: Path, systemd: Systemd
) -> None:
    assert run(home, *USUAL).exit_code == 0
    file = home / "state" / "site.secret"
    assert run(home, "--yes", *CREDENTIAL).exit_code == 2, "another answer needs --replace"
    assert run(home, "--yes", "--replace", *CREDENTIAL).exit_code == 0
    config = load_config(home / "relay.toml")
    systemd.starts_the_relay()
    assert SiteSecret.load(config.store.secret).ids == SiteSecret.load(file).ids
    [problem] = secret_state(config)[2]
    assert f"{file}: lies in plain beside what it seals" in problem
    file.unlink()
    assert secret_state(config)[2] == ()
    back = run(home, "--yes", "--replace", "--secret", "file")
    assert "by hand" in back.output
    assert load_config(home / "relay.toml") == config


@pytest.mark.promise("A secret that is a credential is on the disk encrypted alone")
def test_a_credential_that_is_gone_is_not_made_anew_beside_what_it_has_sealed(home: Path, systemd: Systemd) -> None:
    assert run(home, *USUAL, *CREDENTIAL).exit_code == 0
    (home / "state" / "relay.db").touch()
    systemd.encrypted("site.secret").unlink()
    result = run(home, "--yes", "--postfix", "none")
    assert result.exit_code == 1
    assert "is missing, and there is something here that only it opens: put site.secret back" in str(result.exception)
    assert not systemd.encrypted("site.secret").exists()


def test_a_new_secret_stands_before_the_old_one_and_reseal_waits_for_the_restart(home: Path, systemd: Systemd) -> None:
    assert run(home, *USUAL, *CREDENTIAL).exit_code == 0
    config = load_config(home / "relay.toml")
    systemd.starts_the_relay()
    [old] = SiteSecret.load(config.store.secret).ids
    result = run(home, group="keys rotate-secret")
    assert "older ones kept: 1" in result.output
    with pytest.raises(StoreUnavailable, match="the relay that serves has an older secret: restart it"):
        run(home, group="keys reseal")
    (config.store.secret.parent / "site.secret").chmod(0o600)
    systemd.starts_the_relay()
    assert SiteSecret.load(config.store.secret).ids[1:] == (old,)
    assert run(home, group="keys reseal").exit_code == 0


@pytest.mark.parametrize(("answer", "is_credential"), [("\n", True), ("file\n", False)])
def test_where_there_is_a_tpm2_it_is_asked_and_a_credential_by_default(
    home: Path, systemd: Systemd, answer: str, is_credential: bool
) -> None:
    systemd.tpm2 = True
    result = run(home, "--postfix", "none", typed=f"alice.example\nlater\nnone\n\n\n{answer}")
    assert "Site secret (credential, file) [credential]:" in result.output
    assert (load_config(home / "relay.toml").store.secret.parent.parent == systemd.run) == is_credential


def test_without_a_tpm2_it_is_a_file_unasked_and_that_is_said(home: Path, systemd: Systemd) -> None:
    result = run(home, "--postfix", "none", typed="alice.example\nlater\nnone\n\n\n")
    assert result.exit_code == 0, result.output
    assert "who has the disk has all of it" in " ".join(result.output.split())
    assert load_config(home / "relay.toml").store.secret == home / "state" / "site.secret"


def test_where_systemd_does_not_run_or_gives_none_a_credential_is_refused_before_anything_is_written(
    home: Path, systemd: Systemd, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    systemd.gives_none = True
    assert "no credentials: systemd gives none to its units" in str(run(home, *USUAL, *CREDENTIAL).exception)
    monkeypatch.setattr(credentials, "BOOTED", tmp_path / "not there")
    assert "no credentials: systemd does not run" in str(run(home, *USUAL, *CREDENTIAL).exception)
    assert not (home / "relay.toml").exists()
