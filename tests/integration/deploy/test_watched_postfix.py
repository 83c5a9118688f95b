"""Under the real unit, with its sandbox: a Postfix that no longer hands its mail to the relay is told by mail in time.
Standard: the package on a machine that has booted with systemd; what an administrator, or a tool of theirs, does to it.
"""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.testlib.booted import BootedMachine, booted_machine
from tests.testlib.throwaway import MachineNotMade

SETUP = "--yes --domain alice.example --kme none --postmaster ann@alice.example --postfix /etc/postfix --apply"
RELOAD = "; postfix reload"
MAIL_CF = "/etc/postfix/main.cf"
WITHIN_S = 60.0
OUTSIDE = "192.0.2.9"
"""Where a smarthost's mail goes: another host, as it were."""


@pytest.fixture(scope="module")
def machine(package: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[BootedMachine]:
    """A site beside a Postfix of its own, whose postmaster is ann."""
    try:
        with booted_machine(tmp_path_factory.mktemp("watched"), "alice") as made:
            settings = (
                "myhostname=mail.alice.example", "mydestination=alice.example, localhost", "inet_interfaces=all",
                "inet_protocols=ipv4", "mynetworks=127.0.0.0/8", "alias_maps=", "alias_database=", "mailbox_command=",
                "smtpd_relay_restrictions=permit_mynetworks,reject_unauth_destination", "home_mailbox=", "relayhost=",
                "compatibility_level=3.6", "transport_maps=",
            )  # fmt: skip
            made.run("postconf", "-e", *settings)
            made.run("postconf", "-M", "submission/inet=submission inet n - n - - smtpd")
            made.run("cp", MAIL_CF, "/root/main.cf.before")
            made.run("systemctl", "restart", "postfix")
            made.run("ip", "address", "add", OUTSIDE, "dev", "lo")
            made.run("useradd", "ann")
            shutil.copy(package, made.path(f"/root/{package.name}"))
            made.run("apt-get", "install", "--yes", f"/root/{package.name}")
            made.run("sh", "-c", f"qumail-relay setup {SETUP}")
            yield made
    except MachineNotMade as error:
        pytest.skip(f"no machine with systemd can be booted: {error}")


def standing(machine: BootedMachine) -> dict[str, str]:
    """The causes of the alarms about Postfix, by name."""
    said = machine.path("/var/lib/qumail-relay/alarms.json").read_text()
    return {each["alarm"]: each["cause"] for each in json.loads(said)["alarms"] if each["alarm"].startswith("postfix")}


def until(machine: BootedMachine, *names: str) -> dict[str, str]:
    """Waits for a minute until just these alarms about Postfix stand."""
    deadline = time.monotonic() + WITHIN_S
    while set(found := standing(machine)) != set(names):
        assert time.monotonic() < deadline, f"{found}\n{machine.log()}"
        time.sleep(0.2)
    return found


def told(machine: BootedMachine, name: str, state: str) -> None:
    """The mail has come, in real time. Each finding begins by itself, and all at once are in one mail."""
    machine.until(name, "sh", "-c", f"grep -E '^{name} .*{state}' /var/mail/ann || true")
    assert machine.run("grep", "-c", "^Subject: ", "/var/mail/ann").strip() == "1"


def integrate(machine: BootedMachine, integration: str) -> None:
    """Nothing has been told of yet: the relay is a new one, of this integration."""
    machine.run("systemctl", "stop", "qumail-relay")
    machine.run("rm", "-f", "/var/lib/qumail-relay/alarms.json", "/var/mail/ann")
    hop = f"--next-hop {OUTSIDE}:25" if integration == "smarthost" else ""
    flags = f"--replace --yes --apply --integration {integration} {hop}"
    machine.run("sh", "-c", f"qumail-relay setup {flags}", may_fail=True)
    machine.run("systemctl", "restart", "qumail-relay")
    [this] = machine.run("systemctl", "show", "--property=InvocationID", "--value", "qumail-relay").split()
    machine.until('"postfix_judged"', "journalctl", f"_SYSTEMD_INVOCATION_ID={this}", "--output=cat", "--no-pager")
    machine.until("alarms", "cat", "/var/lib/qumail-relay/alarms.json")
    until(machine)


LOST = {
    "content-filter": "postconf -e content_filter=",
    "milter": "postconf -e smtpd_milters= non_smtpd_milters=",
    "smarthost": "postconf -e relayhost=",
}


@pytest.mark.timeout(900)
@pytest.mark.parametrize("integration", LOST)
def test_a_postfix_that_no_longer_hands_over_mail_is_told_by_mail_within_a_minute(
    machine: BootedMachine, integration: str
) -> None:
    integrate(machine, integration)
    machine.run("cp", MAIL_CF, "/root/main.cf.right")
    began = time.monotonic()
    machine.run("sh", "-c", LOST[integration] + RELOAD)
    told(machine, "postfix_bypasses", "begins")
    assert time.monotonic() - began < WITHIN_S
    said = machine.run("qumail-relay", "check", may_fail=True)
    assert "WRONG  Postfix" in said
    assert "WRONG  alarm postfix_bypasses" in said
    machine.run("sh", "-c", f"cp /root/main.cf.right {MAIL_CF}{RELOAD}")
    until(machine)
    assert '"alarm_ends"' in machine.log()


@pytest.mark.timeout(900)
def test_what_its_sandbox_or_the_files_modes_keep_from_the_relay_is_said(machine: BootedMachine) -> None:
    integrate(machine, "content-filter")
    machine.run("chmod", "600", "/etc/postfix/master.cf")
    assert (
        "chgrp qumail-relay /etc/postfix/master.cf && chmod g+r"
        in until(machine, "postfix_unwatched")["postfix_unwatched"]
    )
    machine.run("sh", "-c", "chgrp qumail-relay /etc/postfix/master.cf && chmod g+r /etc/postfix/master.cf")
    until(machine)
