"""Whose settings root takes: those that root alone can have written; a program that others can exchange it never runs.
Standard: deploy/RUNNING.md, Rights.
"""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
from click.testing import CliRunner

from relay.cli import cli
from relay.kme import DevelopmentKMEs
from tests.integration.test_reloading import events, until
from tests.testlib import mails
from tests.testlib.as_root import EndedCommand, attempts
from tests.testlib.nobody import as_nobody
from tests.testlib.roots_site import (
    Place,
    nobody,
    place as place,  # a fixture
)
from tests.testlib.sink import Sink
from tests.testlib.sites import make_site
from tests.testlib.submit import submit
from tests.testlib.workers import pids, workers

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="giving files to another user needs root")

IMAP = """
[imap.box]
host = "127.0.0.1"
port = 1
user = "ben@alice.example"
token_command = ["{}", "-c", "id -u >>{}"]
"""
WITHOUT_SETTINGS: tuple[tuple[str, ...], ...] = (
    ("check",), ("imap", "once"), ("keys", "status"), ("quarantine", "list"), ("identity", "show"), ("identity", "invite"),
    ("identity", "new"), ("policy", "list"), ("policy", "simulate", "/dev/null"), ("audit", "verify"), ("users", "list"),
    ("serve",), ("serve", "--check"),
)  # fmt: skip
NO_CONFIG = {"QUMAIL_RELAY_CONFIG": ""}


def token_command(place: Place, program: str = "/bin/sh") -> Path:
    """The settings have a program run that writes down who runs it; where that will stand."""
    (place.site / "policies/alice.example.toml").write_text('levels = ["plaintext"]\nreason = "inside"\n')
    ran = place.site.parent / "ran"
    ran.touch()
    ran.chmod(0o666)
    settings = place.site / "relay.toml"
    settings.write_text(settings.read_text().partition("\n[imap.")[0] + IMAP.format(program, ran))
    return ran


def give(*paths: Path) -> None:
    for path in paths:
        os.chown(path, nobody().uid, nobody().gid, follow_symlinks=False)


def run(*commands: Sequence[str | Path], cwd: Path | None = None) -> list[EndedCommand]:
    happened = attempts(commands=commands, cwd=cwd, environment=NO_CONFIG)
    assert [each.said for each in happened.ended if each.status == "traceback"] == []
    return happened.ended


@pytest.mark.promise("Root's working directory counts for nothing")
@pytest.mark.skipif(Path("/etc/qumail-relay/relay.toml").exists(), reason="a relay is installed on this machine")
@pytest.mark.parametrize("user", ["root", "the relay's user"])
def test_a_relay_toml_in_the_current_directory_counts_for_nobody(place: Place, user: str) -> None:
    """It names programs, and somebody else may have planted it where an administrator happens to be."""
    ran = token_command(place)
    place.give()
    if user == "root":
        ended = [(str(each.status), each.said) for each in run(*WITHOUT_SETTINGS, cwd=place.site)]
    else:
        for words in WITHOUT_SETTINGS:  # loads the command: this Python may be one that only root can read
            CliRunner().invoke(cli, [*words, "--help"])
        with as_nobody():
            os.chdir(place.site)
            try:
                done = [CliRunner().invoke(cli, words, env=NO_CONFIG) for words in WITHOUT_SETTINGS]
            finally:
                os.chdir("/")
        ended = [(str(each.exit_code), each.output or str(each.exception)) for each in done]
    for status, said in ended:
        assert status == "1", said
        assert "/etc/qumail-relay/relay.toml" in said
    assert ran.read_text() == ""
    said = " ".join(CliRunner().invoke(cli, ["policy", "list", "--help"]).output.split()).replace("- ", "-")
    assert "default: /etc/qumail-relay/relay.toml" in said


def test_a_strangers_settings_that_root_names_are_used_as_that_stranger(place: Place) -> None:
    ran = token_command(place)
    place.give()
    give(place.site, place.site / "relay.toml", place.site / "policies")
    ended = run(("check", *place.config), ("imap", "once", *place.config), ("identity", "invite", *place.config))
    assert {each.user for each in ended} == {nobody().uid}
    assert set(ran.read_text().split()) == {str(nobody().uid)}
    [serves] = run(("serve", *place.config))
    assert serves.status == 1
    assert "runuser --pty -u nobody" in serves.said


def test_what_the_settings_have_run_is_run_as_the_relays_user(place: Place) -> None:
    ran = token_command(place)
    run(("check", *place.config), ("imap", "once", *place.config))
    assert set(ran.read_text().split()) == {str(nobody().uid)}


def for_everybody(place: Place) -> None:
    (place.site / "relay.toml").chmod(0o666)


def for_a_group(place: Place) -> None:
    os.chown(place.site / "relay.toml", 0, nobody().gid)
    (place.site / "relay.toml").chmod(0o660)


def in_a_directory_for_everybody(place: Place) -> None:
    place.site.chmod(0o777)


def below_a_directory_for_everybody(place: Place) -> None:
    place.site.parent.chmod(0o777)


@pytest.mark.promise("Root takes settings from nobody else")
@pytest.mark.parametrize(
    "opened", [for_everybody, for_a_group, in_a_directory_for_everybody, below_a_directory_for_everybody]
)
def test_root_takes_no_settings_that_others_can_write_and_check_says_so(
    place: Place, opened: Callable[[Place], None]
) -> None:
    ran = token_command(place)
    opened(place)
    commands = [(*words, *place.config) for words in WITHOUT_SETTINGS]
    for each in run(*commands):
        assert each.status == 1, each
        assert "can write to" in each.said, each
        assert "chmod" in each.said, each
    assert ran.read_text() == ""


def test_a_state_directory_of_roots_in_which_others_can_write_is_nobodys(place: Place) -> None:
    os.chown(place.state, 0, nobody().gid)
    place.state.chmod(0o770)
    [checked, listed] = run(("check", *place.config), ("quarantine", "list", *place.config))
    assert checked.status == listed.status == 1
    assert "group nogroup can write to" in " ".join(checked.said.split())


def test_a_relay_has_one_user(place: Place) -> None:
    os.chown(place.state / "peers", 1, 1)  # it is below the directory of the relay's user, who decides there
    assert {each.user for each in run(("keys", "status", *place.config))} == {nobody().uid}
    elsewhere = place.site / "peers"
    elsewhere.mkdir()
    os.chown(elsewhere, 1, 1)
    settings = place.site / "relay.toml"
    settings.write_text(settings.read_text().replace("state/peers", "peers"))
    [status] = run(("keys", "status", *place.config))
    assert status.status == 1
    assert "the relay runs as one user" in status.said


@pytest.mark.promise("Root takes settings from nobody else")
def test_a_relay_of_roots_runs_no_program_that_others_can_exchange(place: Place) -> None:
    os.chown(place.state, 0, 0)
    for path in place.state.rglob("*"):
        os.chown(path, 0, 0)
    programs = place.site.parent / "programs"
    programs.mkdir()
    (programs / "sh").symlink_to("/bin/sh")
    ran = token_command(place, str(programs / "sh"))
    give(programs)
    [once] = run(("imap", "once", *place.config))
    assert "root does not run it: user nobody can change it" in once.said
    assert ran.read_text() == ""
    os.chown(programs, 0, 0)
    run(("imap", "once", *place.config))
    assert set(ran.read_text().split()) == {"0"}


def policies_for_everybody(place: Place) -> str:
    (place.site / "policies").chmod(0o777)
    return "everybody can write to"


def a_policy_for_everybody(place: Place) -> str:
    (place.site / "policies/alice.example.toml").chmod(0o666)
    return "alice.example.toml: everybody can write to it: chmod o-w"


def a_directory_of_policies_for_everybody(place: Place) -> str:
    (place.site / "policies/bob.example").mkdir()
    (place.site / "policies/bob.example").chmod(0o777)
    return "policies/bob.example: everybody can write to it"


def policies_in_a_directory_for_everybody(place: Place) -> str:
    (place.site / "sets").mkdir()
    (place.site / "policies").rename(place.site / "sets/1")
    (place.site / "policies").symlink_to("sets/1")
    (place.site / "sets").chmod(0o777)
    return "/sets: chmod o-w"


def a_certificate_that_another_user_can_exchange(place: Place) -> str:
    (place.site / "kme").mkdir()
    (place.site / "kme/ca.pem").touch(mode=0o600)
    os.chown(place.site / "kme", 1, 1)
    return "kme/ca.pem: user daemon can change it"


def a_program_that_another_user_can_exchange(place: Place) -> str:
    programs = place.site.parent / "programs"
    programs.mkdir()
    (programs / "sh").symlink_to("/bin/sh")
    token_command(place, str(programs / "sh"))
    os.chown(programs, 1, 1)
    return "programs/sh: user daemon can change it"


@pytest.mark.promise("`check` finds others who can change the relay's settings and programs")
@pytest.mark.parametrize(
    "opened",
    [
        policies_for_everybody, a_policy_for_everybody, a_directory_of_policies_for_everybody,
        policies_in_a_directory_for_everybody, a_certificate_that_another_user_can_exchange,
        a_program_that_another_user_can_exchange,
    ],
)  # fmt: skip
def test_check_finds_who_else_can_change_what_the_relay_goes_by(place: Place, opened: Callable[[Place], str]) -> None:
    token_command(place)
    words = ("check", *place.config, "--no-next-hops", "--before-start", "--json")
    [before] = run(words)
    assert rights(before) == []
    problem = opened(place)
    [after] = run(words)
    assert [problem in each for each in rights(after)] == [True], rights(after)


def test_the_relay_itself_may_own_all_of_it_and_a_group_may_edit_policies(place: Place) -> None:
    token_command(place)
    os.chown(place.site / "policies", 0, 1)
    (place.site / "policies").chmod(0o2775)
    words = ("check", *place.config, "--no-next-hops", "--before-start", "--json")
    assert rights(*run(words)) == []
    give(place.site, *place.site.rglob("*"))
    assert rights(*run(words)) == []


def rights(ended: EndedCommand) -> list[str]:
    """What `check` says of rights."""
    said = ended.said[ended.said.index("[") :]
    [found] = [each["problems"] for each in json.loads(said) if each["what"] == "rights"]
    return list(found)


@pytest.mark.parametrize("number", [1, 2])
async def test_a_relay_of_roots_takes_no_settings_at_sighup_that_others_can_have_written(
    tmp_path: Path, kmes: DevelopmentKMEs, sink: Sink, number: int
) -> None:
    site = make_site(
        tmp_path / "alice", "alice", state=kmes.state_dir, kme_url=kmes.urls[0], outgoing=sink.address,
        policies={"default.toml": 'levels = ["aes"]\n'},
    )  # fmt: skip
    async with workers(site, number) as relay:
        text = site.config_file.read_text()
        site.config_file.chmod(0o666)
        site.config_file.write_text(
            text.replace("[peers.bob]", '[aliases]\n"a@alice.example" = ["ann@alice.example"]\n[peers.bob]')
        )
        relay.process.send_signal(signal.SIGHUP)
        [problem] = (await until(relay, "relay_toml_not_reloaded"))["problems"]
        assert problem.startswith(f"{site.config_file}: root takes no settings from it: everybody can write to ")
        if number > 1:
            os.kill(pids(relay)[1], signal.SIGKILL)
            await until(relay, "relay_serves", 3)
        assert (await submit(relay.addresses["outgoing"], mails.plain())).code == 250
        assert events(relay, "relay_toml_reloaded") == []
        site.config_file.chmod(0o600)
        relay.process.send_signal(signal.SIGHUP)
        await until(relay, "relay_toml_reloaded")
