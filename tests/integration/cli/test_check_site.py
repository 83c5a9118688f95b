"""What `check` says of a site at a glance, and that a relay without quantum keys for a peer says so everywhere.
Standard: one group and one peer need no names; what is left out by mistake is told from what is meant.
"""

from __future__ import annotations

import asyncio
import json
import os
import pwd
import signal
import socket
import struct
from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import CliRunner

from relay.cli import check_site, cli, units
from relay.config import TCPAddress
from relay.formats import mime
from relay.identity import with_documents
from relay.kme import DevelopmentKMEs
from tests.testlib import mails
from tests.testlib.identities import Identities
from tests.testlib.nobody import by_root
from tests.testlib.ports import free_address
from tests.testlib.relay_command import run
from tests.testlib.sink import Sink
from tests.testlib.sites import Site, give_identity, make_site, relay_process

GROUPS = 'kme_groups = ["alice-bob"]\n'
ADDRESSES = ("--from", "ann@alice.example", "--to", "ben@bob.example")


@pytest.fixture
def alice(tmp_path: Path, kmes: DevelopmentKMEs, sink: Sink) -> Site:
    return make_site(tmp_path / "alice", "alice", state=kmes.state_dir, kme_url=kmes.urls[0], outgoing=sink.address)


def edit(site: Site, before: str, after: str) -> None:
    text = site.config_file.read_text()
    assert before in text
    site.config_file.write_text(text.replace(before, after))


def with_second_group(site: Site) -> None:
    """Another group and no name of one for the peer: nobody can tell which is meant."""
    edit(site, GROUPS, "")
    table = site.config_file.read_text().split("[kmes.kme]")[1].split("[peers.bob]")[0]
    with site.config_file.open("a") as file:
        file.write(f"[kmes.other]{table.replace('alice-bob', 'another')}")


async def findings(site: Site) -> dict[str, list[str]]:
    _, _, out = await run("check", "--json", "--config", site.config_file)
    return {each["what"]: each["problems"] for each in json.loads(out)}


async def test_one_group_and_one_peer_need_no_names(alice: Site, tmp_path: Path, kmes: DevelopmentKMEs) -> None:
    bob = make_site(tmp_path / "bob", "bob", state=kmes.state_dir, kme_url=kmes.urls[1], incoming=None, outgoing=None)
    edit(bob, "[policies]", '[incoming]\nlisten = "127.0.0.1:0"\nnext_hop = "127.0.0.1:25"\n[policies]')
    for site in (alice, bob):
        edit(site, GROUPS, "")
    (tmp_path / "mail").write_bytes(mails.plain())
    status, err, sealed = await run("seal", "--config", alice.config_file, *ADDRESSES, tmp_path / "mail")
    assert (status, err) == (0, "")
    assert mime.is_sealed(sealed)
    status, err, opened = await run("open", "--config", bob.config_file, "-", stdin=sealed)
    assert (status, err, opened) == (0, "", mails.plain())


async def test_a_peer_without_a_group_is_found_by_check_keys_status_and_the_log(alice: Site) -> None:
    with_second_group(alice)
    problem, nothing = (await findings(alice))["peer bob"]
    assert nothing.startswith("nothing can be sealed for it")
    assert problem.startswith(
        "no KME group is shared with it, so that NO QUANTUM KEYS are used; our groups: alice-bob,"
    )
    status, _, out = await run("keys", "status", "--json", "--config", alice.config_file)
    assert status == 1
    assert json.loads(out)["peers_without_keys"] == [{"peer": "bob", "problem": problem}]
    async with relay_process(alice) as relay:
        [line] = [line for line in relay.log_file.read_text().splitlines() if "peer_without_quantum_keys" in line]
    assert json.loads(line) | {"peer": "bob", "cause": problem, "level": "warning"} == json.loads(line)


@pytest.mark.parametrize(
    ("levels", "held"), [('["pqc"]', True), ('["pqc", "pqc+aes"]', True), ('["pqc", "aes"]', False), ('["aes"]', False)]
)
@pytest.mark.parametrize("where", ["default.toml", "bob.example.toml", "rule"])
async def test_a_policy_none_of_whose_levels_can_be_had_for_a_peer_is_found(
    alice: Site, where: str, levels: str, held: bool
) -> None:
    if where == "rule":
        text = f'levels = ["plaintext"]\n[[when]]\nsender = "ann@alice.example"\nlevels = {levels}\n'
        alice.write_policies({"bob.example.toml": text})
    else:
        alice.write_policies({where: f"levels = {levels}\n"})
    found = (await findings(alice))["policies"]
    problems = [each for each in found if "is always passed over" not in each]
    assert len(problems) == held
    assert len(found) == ("pqc" in levels)
    line = 4 if where == "rule" else 1
    name = "bob.example.toml" if where == "rule" else where
    start = f"{alice.directory / 'policies' / name}:{line}: no level that stands here can be had for peer 'bob'"
    assert all(each.startswith(start) for each in problems)


@pytest.mark.parametrize(
    ("name", "text"),
    [
        (
            "bob.example.toml",
            'levels = ["aes"]\n[[when]]\nsender = "ann@alice.example"\nuntil = 2020-01-01\nlevels = ["pqc+aes", "pqc"]\n',
        ),
        (
            "bob.example.toml",
            'levels = ["aes"]\n[[when]]\nsender = "ann@alice.example"\nsince = 2999-01-01\nlevels = ["pqc+aes", "pqc"]\n',
        ),
        ("other.example.toml", 'peer = "bob"\nlevels = ["pqc+aes", "pqc"]\nuntil = 2020-01-01\nreason = "x"\n'),
    ],
)
async def test_what_does_not_count_today_holds_no_mail(alice: Site, name: str, text: str) -> None:
    alice.write_policies({"default.toml": 'levels = ["aes"]\n', name: text})
    assert not [each for each in (await findings(alice))["policies"] if "no level that stands here" in each]


async def test_in_shadow_mode_no_mail_is_held_whatever_policies_list(alice: Site) -> None:
    alice.write_policies({"default.toml": 'levels = ["pqc+aes", "pqc"]\n'})
    edit(alice, "[policies]\n", "[policies]\nshadow = true\n")
    assert (await findings(alice))["policies"] == []


async def test_no_quantum_keys_on_purpose_are_no_finding(alice: Site) -> None:
    with_second_group(alice)
    edit(alice, 'sae_id = "1"\n', 'sae_id = "1"\nkme_groups = []\n')
    assert with_documents(alice.config)[0].peers["bob"].kme_groups == ()
    assert not with_documents(alice.config)[0].peers_without_keys


async def test_a_document_that_names_our_group_does_not_count_where_none_is_meant(
    alice: Site, tmp_path: Path, kmes: DevelopmentKMEs, sink: Sink, identities: Identities
) -> None:
    site = make_site(
        tmp_path / "other", "alice", state=kmes.state_dir, kme_url=kmes.urls[0], outgoing=sink.address, identities=identities
    )  # fmt: skip
    assert with_documents(site.config)[0].peers["bob"].kme_groups == ("alice-bob",)
    edit(site, GROUPS, "")
    assert with_documents(site.config)[0].peers["bob"].kme_groups == ("alice-bob",)
    edit(site, 'sae_id = "1"\n', 'sae_id = "1"\nkme_groups = []\n')
    assert with_documents(site.config)[0].peers["bob"].kme_groups == ()


async def test_a_line_for_each_kme_peer_level_and_listener_under_a_summary_and_over_what_to_run_next(
    alice: Site,
) -> None:
    _, _, out = await run("check", "--config", alice.config_file)
    lines = out.decode().splitlines()
    assert lines[0].startswith("All ")
    starts = [" ".join(line.split()[:3]) for line in lines]
    for what in ("KME kme", "peer bob", "level otp", "level aes", "level pqc", "level rsa", "listener outgoing.listen"):
        assert f"ok {what}" in starts
    assert lines[-1].startswith("Next   ")
    firsts = {line.split()[0] for line in lines[1:]}
    assert firsts <= {"ok", "WRONG", "NOTE", "Next"}, "no line is broken where nobody has a terminal"
    assert "qumail-relay serve" in out.decode()


async def test_what_is_wrong_stands_at_the_top_and_the_first_thing_to_do_at_the_end(alice: Site, sink: Sink) -> None:
    await sink.stop()
    status, _, out = await run("check", "--config", alice.config_file)
    await sink.start()
    assert status == 1
    assert "are wrong: outgoing next hop." in " ".join(out.decode().split())
    assert f"fix what is wrong, then: qumail-relay check --config {alice.config_file}" in out.decode()


async def test_faults_come_before_the_start(alice: Site) -> None:
    wrong: list[check_site.State] = [
        ("listener outgoing.listen", "127.0.0.1:0: nobody listens", ()),
        ("KME kme", "", ("kme/sae.key: cannot be read",)),
    ]
    steps = list(check_site.next_steps(alice.config_file, alice.config, wrong))
    assert [step.split(",")[0].split(":")[0] for step in steps] == ["fix what is wrong", "start the relay"]


async def test_where_no_postfix_is_meant_nothing_is_recommended_for_one(alice: Site) -> None:
    _, _, out = await run("check", "--config", alice.config_file)
    assert b"ok     Postfix  none is watched: relay.toml names none ([postfix] directory)" in out
    assert b"--postfix" not in out


@pytest.mark.parametrize(
    ("of_development", "host"), [(True, "localhost"), (False, "localhost"), (True, "kme.bob.example")]
)
async def test_only_development_key_servers_of_this_site_are_to_be_run(
    alice: Site, of_development: bool, host: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(check_site, "from_development_kme", lambda _: of_development)
    edit(alice, alice.config.kmes["kme"].url, f"https://{host}:1")
    wrong: list[check_site.State] = [("KME kme", "", ("KMEUnreachable: it does not answer",))]
    steps = list(check_site.next_steps(alice.config_file, alice.config, wrong))
    assert any("qumail-relay kme" in each for each in steps) == (of_development and host == "localhost")


async def test_a_listener_says_whether_a_relay_listens_there(alice: Site) -> None:
    async with relay_process(alice) as relay:
        edit(alice, 'listen = "127.0.0.1:0"', f'listen = "{relay.addresses["outgoing"]}"')
        _, _, out = await run("check", "--json", "--config", alice.config_file)
    [listener] = [each["detail"] for each in json.loads(out) if each["what"] == "listener outgoing.listen"]
    risk = "without systemd another user of this machine could take this port while the relay restarts"
    assert listener == f"{relay.addresses['outgoing']}: listens; {risk}"


@pytest.mark.parametrize("host", ["127.0.0.1", "127.0.0.2", "0.0.0.0", "::1", "::"])
def test_whose_socket_listens_at_an_address_is_read_from_the_kernel(host: str) -> None:
    try:
        listening = socket.create_server((host, 0), family=socket.AF_INET6 if ":" in host else socket.AF_INET)
    except OSError:
        pytest.skip("no such address here")
    with listening:
        address = str(TCPAddress(host, listening.getsockname()[1]))
        assert address in units.listening_as(os.geteuid())
        assert address not in units.listening_as(os.geteuid() + 1)
    assert address not in units.listening_as(os.geteuid())


async def test_the_first_check_of_the_first_relay_toml_finds_what_is_not_there_yet_and_nothing_else() -> None:
    """Without any KME, key or Postfix: no line is about a table that is an example."""
    deploy = Path(__file__).parents[3] / "deploy"
    _, _, out = await run("check", "--json", "--config", deploy / "relay.toml")
    wrong = {each["what"] for each in json.loads(out) if each["problems"]}
    assert wrong <= {"policies", "identity", "KME kme", "outgoing next hop", "incoming next hop", "Postfix"}
    assert "policies" in wrong


async def test_a_listener_at_which_another_program_listens_is_wrong_for_the_relay_cannot_start(
    alice: Site, sink: Sink
) -> None:
    edit(alice, 'listen = "127.0.0.1:0"', f'listen = "{sink.address}"')
    [problem] = (await findings(alice))["listener outgoing.listen"]
    assert f"{sink.address}: a program of user" in problem
    assert "the relay cannot start" in problem


async def test_a_listener_that_a_serving_relay_does_not_open_is_wrong(alice: Site) -> None:
    free = free_address().port
    async with relay_process(alice):
        edit(alice, 'listen = "127.0.0.1:0"', f'listen = "127.0.0.1:{free}"')
        [problem] = (await findings(alice))["listener outgoing.listen"]
        done = await asyncio.to_thread(CliRunner().invoke, cli, ["check", "--config", str(alice.config_file)])
    assert "was started with other settings" in problem
    assert "restart the relay: " in done.output
    assert " start the relay: " not in done.output, "it runs"
    assert (await findings(alice))["listener outgoing.listen"] == []


@pytest.mark.parametrize(
    ("unit", "well"),
    [
        ("UnitFileState=enabled\nActiveState=active\nSubState=running\nResult=success\n", True),
        ("UnitFileState=enabled\nActiveState=activating\nSubState=start\nResult=success\n", True),
        ("UnitFileState=static\nActiveState=inactive\nSubState=dead\nResult=success\n", True),
        ("UnitFileState=enabled\nActiveState=inactive\nSubState=dead\nResult=success\n", False),
        ("UnitFileState=enabled\nActiveState=activating\nSubState=auto-restart\nResult=exit-code\n", False),
        ("UnitFileState=enabled\nActiveState=failed\nSubState=failed\nResult=exit-code\n", False),
    ],
)
async def test_an_enabled_unit_that_does_not_run_is_wrong_once_it_was_started(
    alice: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, unit: str, well: bool
) -> None:
    started = _unit(tmp_path, monkeypatch, systemctl=unit)

    def wrong(*words: str) -> tuple[bool, str]:
        done = CliRunner().invoke(cli, ["check", "--config", str(alice.config_file), *words])
        return "it is enabled and does not run" in " ".join(done.output.split()), done.output

    assert (await asyncio.to_thread(wrong))[0] is False  # it is another relay.toml than the unit's
    started("qumail-relay", alice.config_file)
    found, said = await asyncio.to_thread(wrong)
    assert found is not well
    assert "start the relay: systemctl start qumail-relay" in said
    assert (await asyncio.to_thread(wrong, "--before-start"))[0] is False


@pytest.mark.parametrize(("state", "remedy"), [("disabled", "enable"), ("masked", "unmask")])
async def test_a_unit_that_does_not_start_with_the_machine_is_wrong(
    alice: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, state: str, remedy: str
) -> None:
    said = f"UnitFileState={state}\nActiveState=active\n"
    _unit(tmp_path, monkeypatch, systemctl=said)("qumail-relay", alice.config_file)
    done = await asyncio.to_thread(CliRunner().invoke, cli, ["check", "--config", str(alice.config_file)])
    said = " ".join(done.output.split())
    assert f"it is {state}: after the next boot no relay serves" in said
    assert f"as root: systemctl {remedy} " in said
    assert done.exit_code == 1


@pytest.mark.parametrize(
    ("state", "said"),
    [
        (
            "FreezerState=frozen",
            "it is frozen: no mail goes, and the relay cannot say so itself: as root: systemctl thaw",
        ),
        (
            "ExecStart={ path=/opt/gone/qumail-relay ; argv[]=qumail-relay serve }",
            "its program /opt/gone/qumail-relay is",
        ),
    ],
)
async def test_a_unit_that_is_frozen_or_whose_program_is_gone_is_wrong(
    alice: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, state: str, said: str
) -> None:
    unit = f"UnitFileState=enabled\nActiveState=active\nSubState=running\n{state}\n"
    _unit(tmp_path, monkeypatch, systemctl=unit)("qumail-relay", alice.config_file)
    done = await asyncio.to_thread(CliRunner().invoke, cli, ["check", "--config", str(alice.config_file)])
    assert said in " ".join(done.output.split())
    assert done.exit_code == 1


@by_root
@pytest.mark.parametrize("left", [True, False])
async def test_of_a_masked_unit_whose_ports_systemd_holds_check_says_unmask_and_not_to_end_systemd(
    alice: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, left: bool
) -> None:
    started = _unit(tmp_path, monkeypatch, systemctl="UnitFileState=masked\nActiveState=inactive\n")
    (tmp_path / "etc").mkdir()
    (tmp_path / "etc" / "qumail-relay.service").symlink_to("/dev/null")
    if left:
        started("qumail-relay", alice.config_file)
    else:
        monkeypatch.setitem(
            units._MASKED, "qumail-relay.service", f"ExecStart=qumail-relay serve --config {alice.config_file}"
        )
    with socket.create_server(("127.0.0.1", 0)) as held:
        address = f"127.0.0.1:{held.getsockname()[1]}"
        edit(alice, 'listen = "127.0.0.1:0"', f'listen = "{address}"')
        drop_in = tmp_path / "etc" / "qumail-relay.socket.d"
        drop_in.mkdir()
        (drop_in / "addresses.conf").write_text(f"[Socket]\nListenStream={address}\n")
        done = await asyncio.to_thread(CliRunner().invoke, cli, ["check", "--config", str(alice.config_file)])
    said = " ".join(done.output.split())
    assert "it is masked: after the next boot no relay serves" in said
    assert "systemctl unmask qumail-relay" in said
    assert "end that program" not in said


async def test_a_serving_relay_that_does_not_answer_is_wrong(alice: Site) -> None:
    free = free_address().port
    edit(alice, 'listen = "127.0.0.1:0"', f'listen = "127.0.0.1:{free}"')
    async with relay_process(alice) as relay:
        assert (await findings(alice))["listener outgoing.listen"] == []
        os.kill(relay.process.pid, signal.SIGSTOP)
        try:
            [problem] = (await findings(alice))["listener outgoing.listen"]
        finally:
            os.kill(relay.process.pid, signal.SIGCONT)
    assert "does not answer within" in problem


@pytest.mark.parametrize(
    ("dropped", "well"), [("ExecStart=\nExecStart=/opt/qumail-relay serve --config {}", False), ("Nice=1", True)]
)
async def test_a_unit_that_a_drop_in_has_serve_with_another_file_is_wrong(
    alice: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, dropped: str, well: bool
) -> None:
    _unit(tmp_path, monkeypatch)("alice", alice.config_file)
    other = alice.config_file.with_name("other.toml")
    other.write_bytes(alice.config_file.read_bytes())
    drop_in = tmp_path / "etc" / "alice.service.d" / "b.conf"
    drop_in.parent.mkdir(parents=True)
    drop_in.write_text(f"[Service]\n{dropped.format(other)}\n")

    def wrong(file: Path) -> bool:
        said = " ".join(CliRunner().invoke(cli, ["check", "--config", str(file)]).output.split())
        return f"a drop-in has it serve with {other}, and what is checked here is another file" in said

    assert await asyncio.to_thread(wrong, alice.config_file) is not well
    assert await asyncio.to_thread(wrong, other) is False
    assert (units.unit_of(other) is not None) is not well


@pytest.mark.parametrize(
    ("policies", "well"),
    [
        ({}, False),
        ({"default.toml": 'levels = ["aes"]\n'}, True),
        ({"bob.example.toml": 'levels = ["aes"]\n'}, True),
        ({"bob.example/ben.toml": 'levels = ["aes"]\n'}, True),
    ],
)
async def test_a_peer_whom_no_policy_covers_is_wrong(alice: Site, policies: dict[str, str], well: bool) -> None:
    (alice.directory / "policies" / "default.toml").unlink()
    alice.write_policies({"alice.example.toml": 'levels = ["plaintext"]\n', **policies})
    done = await asyncio.to_thread(CliRunner().invoke, cli, ["check", "--config", str(alice.config_file)])
    said = "bob.example.toml:1: not there, and no other file covers bob.example: mail to peer 'bob' is held"
    assert ("WRONG  policies" in done.output) is not well
    assert (said in done.output) is not well


@pytest.mark.parametrize(
    ("named", "booted", "command"),
    [
        ("relay.toml", True, "systemctl start alice"),
        ("./../alice/relay.toml", True, "systemctl start alice"),
        ("other.toml", True, "qumail-relay serve --config"),
        ("relay.toml", False, "qumail-relay serve --config"),
    ],
)
async def test_what_starts_the_relay_is_the_unit_that_reads_its_file_and_else_a_command(
    alice: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, named: str, booted: bool, command: str
) -> None:
    _unit(tmp_path, monkeypatch)("alice", alice.directory / named)
    if not booted:
        monkeypatch.setattr(units, "BOOTED", tmp_path / "not")
    done = await asyncio.to_thread(CliRunner().invoke, cli, ["check", "--config", str(alice.config_file)])
    assert f"Next   start the relay: {command}" in done.output
    assert ("systemctl" in done.output) == command.startswith("systemctl")


async def test_what_was_installed_since_is_run_by_the_unit_that_lies_there_now(
    alice: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """systemd goes by a unit file that is gone until it is told to look again."""
    _unit(tmp_path, monkeypatch)("alice", alice.config_file)
    command = "systemctl daemon-reload && systemctl restart alice"
    assert units.how_to_run_what_is_installed(alice.config_file) == command


async def test_relay_toml_is_to_be_edited_only_where_it_is_what_is_wrong(
    alice: Site,
) -> None:
    documents = alice.directory / "peers"
    documents.mkdir(mode=0o700)
    (documents / "bob.json").write_text("no document")
    alarm = {"alarm": "disk_full", "about": "", "cause": "2 octets are free", "since": 1.0, "told": 1.0}
    alice.config.alarms_file.write_text(json.dumps({"alarms": [alarm]}))
    (alice.directory / "relay.db.schema-3").touch()
    os.utime(alice.directory / "relay.db.schema-3", (1, 1))
    edit(alice, "[store]", '[identity]\ndirectory = "identity"\npeers_directory = "peers"\n\n[store]')
    done = await asyncio.to_thread(CliRunner().invoke, cli, ["check", "--config", str(alice.config_file)])
    assert "bob.json: not a peer document" in done.output
    assert "alarm disk_full" in done.output
    assert "relay.db.schema-3: is the store before" in done.output.replace("\n", " ")
    remedy = "move it away, and import the peer's document again: qumail-relay identity import --name bob FILE"
    assert remedy in " ".join(done.output.split())
    assert "Next   fix what is wrong, then: " in done.output
    edit(alice, "[store]", "[stores]")
    done = await asyncio.to_thread(CliRunner().invoke, cli, ["check", "--config", str(alice.config_file)])
    assert f"Next   edit {alice.config_file}, then: " in done.output


@pytest.mark.parametrize("user", [None, "nobody"])
async def test_a_state_that_is_not_the_unit_users_is_wrong(
    alice: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, user: str | None
) -> None:
    """Such a relay does not start, and a command that goes by the owner alone would find all well."""
    _unit(tmp_path, monkeypatch)("alice", alice.config_file, user or pwd.getpwuid(os.geteuid()).pw_name)
    done = await asyncio.to_thread(CliRunner().invoke, cli, ["check", "--config", str(alice.config_file)])
    assert ("unit alice runs as nobody" in done.output) == (user is not None)
    assert ("chown -hR nobody: " in done.output) == (user is not None)


def _unit(directory: Path, monkeypatch: pytest.MonkeyPatch, systemctl: str = "") -> Callable[..., None]:
    """What writes a unit where systemd looks, by its name and the file that its relay reads; what `systemctl` says."""
    if systemctl:
        (directory / "systemctl").write_text(f"#!/bin/sh\ncat <<END\n{systemctl}END\n")
        (directory / "systemctl").chmod(0o755)
        monkeypatch.setenv("PATH", str(directory), prepend=":")
    monkeypatch.setattr(units, "BOOTED", directory)
    monkeypatch.setattr(units, "DIRECTORIES", (directory / "etc", directory / "lib"))
    (directory / "lib").mkdir()
    text = (Path(__file__).parents[3] / "deploy" / "qumail-relay.service").read_text()

    def write(name: str, file: Path, user: str = "") -> None:
        said = text.replace(str(units.DEFAULT_CONFIG), str(file))
        user = user or pwd.getpwuid(os.geteuid()).pw_name
        (directory / "lib" / f"{name}.service").write_text(said.replace("User=qumail-relay", f"User={user}"))

    return write


async def test_without_a_configuration_check_names_setup(tmp_path: Path) -> None:
    status, _, out = await run("check", "--config", tmp_path / "relay.toml")
    assert status == 1
    assert f"Next   set this site up: qumail-relay setup --config {tmp_path / 'relay.toml'}" in out.decode()


@by_root
@pytest.mark.parametrize("by", ["mode", "group", "ACL"])
async def test_a_private_key_that_another_user_can_read_is_wrong(alice: Site, by: str) -> None:
    [key] = {kme.key for kme in alice.config.kmes.values() if kme.key is not None}
    own = alice.directory / "own.key"
    own.write_bytes(key.read_bytes())
    own.chmod(0o604 if by == "mode" else 0o640)
    daemon = pwd.getpwnam("daemon")
    if by == "group":
        os.chown(own, 0, daemon.pw_gid)
    elif by == "ACL":
        entries = [(1, 6, -1), (2, 4, daemon.pw_uid), (4, 0, -1), (0x10, 4, -1), (0x20, 0, -1)]
        packed = b"".join(struct.pack("<HHi", *each) for each in entries)
        os.setxattr(own, "system.posix_acl_access", struct.pack("<I", 2) + packed)
    edit(alice, str(key), str(own))
    done = await asyncio.to_thread(CliRunner().invoke, cli, ["check", "--config", str(alice.config_file)])
    who, bits = {
        "mode": ("everybody", "o-r"),
        "group": ("user daemon, of group daemon,", "g-r"),
        "ACL": ("user daemon", "g-r"),
    }[by]
    assert f"{own}: {who} can read this private file: chmod {bits} {own}" in " ".join(done.output.split())
    own.chmod(0o600)
    done = await asyncio.to_thread(CliRunner().invoke, cli, ["check", "--config", str(alice.config_file)])
    assert "can read this private file" not in done.output


async def test_a_policy_for_a_domain_that_is_no_peers_any_more_is_wrong(alice: Site) -> None:
    alice.write_policies({"carol.example.toml": 'levels = ["pqc"]\n', "dave.example.toml": 'levels = ["plaintext"]\n'})
    done = await asyncio.to_thread(CliRunner().invoke, cli, ["check", "--config", str(alice.config_file)])
    said = " ".join(done.output.split())
    assert "carol.example.toml:1: no peer has carol.example, and mail to it is held: accept the peer" in said
    assert "no peer has dave.example" not in said


async def test_an_identity_that_cannot_be_renewed_is_wrong_unless_its_key_is_kept_elsewhere(
    alice: Site, identities: Identities
) -> None:
    give_identity(alice, identities, "alice", "bob")
    assert (await findings(alice))["identity"] == []
    (alice.directory / "identity" / "ca.key").unlink()
    [said] = (await findings(alice))["identity"]
    assert f"{alice.directory / 'identity/ca.key'}: missing: certificates cannot be renewed" in said
    edit(alice, "[identity]\n", "[identity]\nca_key_elsewhere = true\n")
    assert (await findings(alice))["identity"] == []


async def test_a_relay_whose_identity_is_gone_does_not_start(alice: Site, identities: Identities) -> None:
    """It would hand on as it is what peers have sealed for it."""
    give_identity(alice, identities, "alice", "bob")
    (alice.directory / "identity").rename(alice.directory / "elsewhere")
    edit(alice, 'domains = ["bob.example"]\n', "")
    status, said, _ = await run("serve", "--config", alice.config_file)
    assert status == 1
    assert f"{alice.directory / 'identity'}: not there: put it back" in said


async def test_a_relay_whose_identity_is_of_an_earlier_release_does_not_start_and_says_what_to_type(
    alice: Site, identities: Identities
) -> None:
    """The mail server holds the mail meanwhile: with half of the keys it would leave weaker than level pqc says."""
    give_identity(alice, identities, "alice", "bob")
    [path] = (alice.directory / "identity").glob("kem.*.key")
    path.write_text(path.read_text().partition("-----END PRIVATE KEY-----\n")[0] + "-----END PRIVATE KEY-----\n")
    status, said, _ = await run("serve", "--config", alice.config_file)
    assert status == 1
    assert f"{path}: a key of an earlier release, without the half of P-384" in said
    assert "`qumail-relay identity new`" in said
    assert any("`qumail-relay identity new`" in each for each in (await findings(alice))["identity"])
