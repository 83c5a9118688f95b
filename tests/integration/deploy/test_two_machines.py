"""Two machines with systemd and Postfix: the package and `setup`, as deploy/INSTALL.md says to type it, and mail between.
Standard: the commands as they stand there, answers counted; copies of this machine, or bare ones (tests/README.md).
"""

from __future__ import annotations

import json
import re
import shlex
import shutil
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

from tests.integration.deploy.conftest import LEVELS, mail_server
from tests.integration.deploy.test_operating import blocks as of_operating
from tests.testlib.booted import BootedMachine, booted_machine, connect
from tests.testlib.terminal import Terminal
from tests.testlib.throwaway import MachineNotMade

README = (Path(__file__).parents[3] / "deploy" / "INSTALL.md").read_text()
MOST_ANSWERS = 11
KMES = "/var/lib/development/qumail-relay/kme"
FORWARD = """
import asyncio, sys
async def copy(reader, writer):
    while data := await reader.read(65536):
        writer.write(data)
    writer.close()
async def take(reader, writer):
    other = await asyncio.open_connection(sys.argv[3], int(sys.argv[2]))
    await asyncio.gather(copy(reader, other[1]), copy(other[0], writer), return_exceptions=True)
async def main():
    await (await asyncio.start_server(take, sys.argv[1], int(sys.argv[2]))).serve_forever()
asyncio.run(main())
"""
"""A site has its KME in its own house; here Bob's is at Alice's machine, and its certificate is for localhost."""


def blocks(section: str) -> list[list[str]]:
    """The commands of each block of a section."""
    text = README.split(f"## {section}\n")[1].split("\n## ")[0]
    return [block.splitlines() for block in re.findall("```sh\n(.*?)```", text, re.DOTALL)]


def typed(machine: BootedMachine, directory: Path, command: str, answers: Mapping[str, str]) -> Terminal:
    """Runs a command at a terminal and answers what it asks; an empty answer takes the default."""
    words = shlex.split(command)
    terminal = Terminal(
        machine.command("sh", "-c", f"cd /root && exec {shlex.join(words)}"), directory=directory, environment={}
    )
    while (question := terminal.asked(list(answers))) is not None:
        terminal.answer(answers[question])
    assert terminal.end() == 0, terminal.shown
    return terminal


def broken_settings_fail_the_reload_and_are_a_warning_in_the_journal(machine: BootedMachine) -> None:
    relay_toml = machine.path("/etc/qumail-relay/relay.toml")
    as_it_was = relay_toml.read_text()
    journal = ("journalctl", "--unit=qumail-relay", "--output=cat")
    relay_toml.write_text(f"{as_it_was}\nno_setting = 1\n")
    assert "failed" in machine.run("systemctl", "reload", "qumail-relay", may_fail=True)
    machine.until("no_setting", *journal)
    assert "relay_toml_not_reloaded" not in machine.run(*journal), "the relay was told nothing"
    machine.run("systemctl", "kill", "--kill-whom=main", "--signal=HUP", "qumail-relay")
    machine.until("relay_toml_not_reloaded", *journal, "--priority=warning")
    assert "relay_serves" not in machine.run(*journal, "--priority=warning")
    assert "relay_serves" in machine.run(*journal, "--priority=info")
    relay_toml.write_text(as_it_was)
    machine.run("systemctl", "reload", "qumail-relay")


def credentials_are_copied_renewed_and_put_back(machine: BootedMachine) -> None:
    """As OPERATING.md says it; without the host's key the machine is another one, which opens none of them."""
    state, secret = machine.path("/var/lib/qumail-relay"), machine.path("/root/qumail-relay-site.secret")
    assert not (state / "site.secret").exists()
    assert all(b"ENCRYPTED" in each.read_bytes() for each in (state / "identity").glob("*.key"))
    copy, put_back, older = of_operating("Credentials")
    _, renew, _ = of_operating("Keys and certificates")
    machine.run("sh", "-ec", renew)
    machine.run("sh", "-ec", copy)
    before = secret.read_text().splitlines()
    assert len(before) == 2
    machine.run("sh", "-ec", older)
    machine.run("sh", "-ec", copy)
    assert secret.read_text().splitlines() == before[:1]
    machine.run("sh", "-ec", "rm /etc/credstore.encrypted/qumail-relay.* /var/lib/systemd/credential.secret")
    machine.run("rm", "/etc/systemd/system/qumail-relay.service.d/credentials.conf")
    machine.run("systemctl", "daemon-reload")
    machine.run("systemctl", "restart", "qumail-relay", may_fail=True)
    assert "is there only while qumail-relay.service runs with it" in machine.run(
        "qumail-relay", "check", may_fail=True
    )
    machine.run("sh", "-ec", put_back)
    machine.until("active", "systemctl", "is-active", "qumail-relay")
    machine.run("systemctl", "reload", "qumail-relay")


def send(machine: BootedMachine, recipient: str, text: str) -> None:
    message = f"From: ann@alice.example\nTo: {recipient}\nSubject: {text}\n\n{text}\n"
    machine.run("/usr/sbin/sendmail", "-f", "ann@alice.example", recipient, said=message)


def mailbox(machine: BootedMachine, user: str, text: str) -> str:
    return machine.until(text, "sh", "-c", f"postqueue -f; cat /var/mail/{user}")


@contextmanager
def machines(directory: Path) -> Iterator[tuple[BootedMachine, BootedMachine]]:
    with ExitStack() as stack:
        made = []
        for name in ("alice", "bob"):
            (directory / name).mkdir()
            try:
                made.append(stack.enter_context(booted_machine(directory / name, name)))
            except MachineNotMade as error:
                pytest.skip(f"no machine with systemd can be booted: {error}")
        yield made[0], made[1]


@pytest.mark.promise("A secret that is a credential is on the disk encrypted alone")
@pytest.mark.timeout(900)
def test_two_sites_by_package_and_setup_under_systemd(package: Path, tmp_path: Path) -> None:
    (_, apt, setup, start, check), (invite, accept) = blocks("1. Quick start")
    with machines(tmp_path) as (alice, bob):
        addresses = connect(alice, bob)
        mail_server(alice, "alice", "bob", addresses[1])
        mail_server(bob, "bob", "alice", addresses[0])
        for machine in (alice, bob):
            shutil.copy(package, machine.path(f"/root/{package.name}"))
            machine.run("sh", "-c", f"{apt} --yes")
            # As the unit has it, but that nobody has to wait for a minute.
            soon = machine.path("/etc/systemd/system/qumail-relay.service.d/soon.conf")
            soon.parent.mkdir()
            soon.write_text("[Service]\nWatchdogSec=10\nRestartSec=1\n")
            machine.run("systemctl", "daemon-reload")
        development = ["--setenv=XDG_STATE_HOME=/var/lib/development"]
        alice.run("systemd-run", "--unit=kmes", *development, "qumail-relay", "kme")
        alice.until("NOT quantum", "journalctl", "--unit=kmes", "--output=cat")
        alice.run("systemd-run", "--unit=out", "python3", "-c", FORWARD, addresses[0], "14000", "localhost")
        bob.run("systemd-run", "--unit=in", "python3", "-c", FORWARD, "localhost", "14000", addresses[0])
        for file in ("ca.pem", "sae-1.pem", "sae-1.key"):
            shutil.copy(alice.path(f"{KMES}/{file}"), bob.path(f"/root/{file}"))

        usual = {
            "Integration": "",
            "Everybody else": "",
            "Change Postfix so?": "y",
            "Are these the words": "y",
            "Is ": "y",
            "Unsealed in its name": "",
        }
        first = typed(
            alice, tmp_path, f"env XDG_STATE_HOME=/var/lib/development {setup}",
            usual | {"Mail domains": "alice.example", "Invitation of the other site": "", "KME": "development"},
        )  # fmt: skip
        alice.run("sh", "-c", f"cd /root && {invite}")
        shutil.copy(alice.path("/root/alice.invitation"), bob.path("/root/alice.invitation"))
        theirs = {
            "Mail domains": "bob.example", "Invitation of the other site": "alice.invitation", "KME": "https://localhost:14000",
            "SAE ID": "1", "CA file": "/root/ca.pem", "Certificate file": "/root/sae-1.pem", "Key file": "/root/sae-1.key",
        }  # fmt: skip
        second = typed(bob, tmp_path, f"{setup} --secret credential", usual | theirs)
        assert "to alice.example (peer alice): sealed: aes, 256 bits of quantum key" in second.shown
        bob.run("sh", "-c", f"cd /root && {invite.replace('alice.invitation', 'bob.invitation')}")
        shutil.copy(bob.path("/root/bob.invitation"), alice.path("/root/bob.invitation"))
        for machine in (alice, bob):
            machine.run("sh", "-c", start)
        third = typed(alice, tmp_path, accept, usual)
        assert first.answers + third.answers <= MOST_ANSWERS
        assert second.answers <= MOST_ANSWERS
        for machine in (alice, bob):
            assert "things that were looked at are well" in machine.run("sh", "-c", check)

        credentials_are_copied_renewed_and_put_back(bob)

        policies = alice.path("/etc/qumail-relay/policies/bob.example")
        policies.mkdir()
        for level in LEVELS:
            (policies / f"{level}.toml").write_text(
                f'levels = ["{level if level in ("otp", "aes") else f"{level}+aes"}"]\n'
            )
        alice.run("chown", "-R", "root:qumail-relay", "/etc/qumail-relay/policies")
        alice.run("systemctl", "reload", "qumail-relay")
        alice.until("otp.toml", "journalctl", "--unit=qumail-relay", "--output=cat")
        broken_settings_fail_the_reload_and_are_a_warning_in_the_journal(alice)
        for level in LEVELS:
            send(alice, f"{level}@bob.example", f"the vault opens at {level}")
            got = mailbox(bob, level, f"the vault opens at {level}")
            assert re.search(rf"^X-QuMail-Protection: {level}", got, re.MULTILINE), got
        sealed = [json.loads(line) for line in alice.log().splitlines() if '"sealed_and_sent"' in line]
        assert all(each["quantum_bits"] for each in sealed)
        assert len(sealed) == len(LEVELS)

        # systemd hears that it hangs, and starts it anew; the mail that waited meanwhile arrives.
        [pid] = alice.run("systemctl", "show", "--property=MainPID", "--value", "qumail-relay").split()
        alice.run("sh", "-c", f"kill -STOP {pid}")
        send(alice, "aes@bob.example", "sent while it hung")
        alice.until("NRestarts=1", "systemctl", "show", "--property=NRestarts", "qumail-relay")
        alice.until("ActiveState=active", "systemctl", "show", "--property=ActiveState", "qumail-relay")
        assert "Watchdog timeout" in alice.log()
        alice.run("postqueue", "-f")
        mailbox(bob, "aes", "sent while it hung")

        # An upgrade in the middle of it, and the end.
        alice.run("sh", "-c", f"apt-get install --reinstall --yes /root/{package.name}")
        alice.until("active", "systemctl", "is-active", "qumail-relay")
        send(alice, "aes@bob.example", "after the upgrade")
        mailbox(bob, "aes", "after the upgrade")
        for command in blocks("By package")[-1]:
            alice.run("sh", "-c", f"{command} --yes" if "apt-get" in command else command)
        assert alice.run("systemctl", "is-active", "qumail-relay", may_fail=True).strip() != "active"
        assert not alice.path("/etc/qumail-relay").exists()
        assert not alice.path("/var/lib/qumail-relay").exists()
        alice.run("postfix", "check")
