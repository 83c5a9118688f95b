"""Under the real unit, with its sandbox: mail that goes past the relay, a lost store and mail that stops are told by mail.
Standard: the package on a machine that has booted with systemd; what an administrator, or a tool of theirs, does to it.
"""

from __future__ import annotations

import email
import json
import re
import time
from collections.abc import Iterator
from email import policy
from pathlib import Path

import pytest

from tests.integration.deploy.conftest import site_under_systemd
from tests.testlib.booted import BootedMachine
from tests.testlib.identities import Identities

RELOAD = "; postfix reload"
MAIL_CF = "/etc/postfix/main.cf"
WITHIN_S = 60.0
REQUIRED = 'levels = ["plaintext"]\nreason = "of no account"\nrequire = "sealed"\nunprotected = "quarantine"\n'
NOT_SEALED = """\
import smtplib
mail = b"From: ann@bob.example\\r\\nTo: ann@alice.example\\r\\nMessage-ID: <1@bob.example>\\r\\n\\r\\nThe body.\\r\\n"
smtplib.LMTP("127.0.0.1", 15034).sendmail("ann@bob.example", ["ann@alice.example"], mail)
"""


@pytest.fixture(scope="module")
def machine(package: Path, identities: Identities, tmp_path_factory: pytest.TempPathFactory) -> Iterator[BootedMachine]:
    """A site whose postmaster is Ann, with a peer in whose name mail has to be sealed; mail to Carol is held."""
    directory = tmp_path_factory.mktemp("watched")
    with site_under_systemd(directory, package, identities, "--postmaster", "ann@alice.example") as made:
        made.path("/etc/qumail-relay/policies/bob.example.toml").write_text(REQUIRED)
        with made.path("/etc/qumail-relay/relay.toml").open("a") as relay_toml:
            relay_toml.write('\n[peers.bob]\ndomains = ["bob.example"]\nsae_id = "bob"\n')
        made.run("systemctl", "start", "qumail-relay")
        made.until('"postfix_judged"', "journalctl", "--unit=qumail-relay", "--output=cat", "--no-pager")
        made.until("alarms", "cat", "/var/lib/qumail-relay/alarms.json")
        until(made)
        yield made


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


@pytest.mark.timeout(900)
def test_what_its_sandbox_or_the_files_modes_keep_from_the_relay_is_said(machine: BootedMachine) -> None:
    machine.run("chmod", "600", "/etc/postfix/master.cf")
    assert (
        "chgrp qumail-relay /etc/postfix/master.cf && chmod g+r"
        in until(machine, "postfix_unwatched")["postfix_unwatched"]
    )
    machine.run("sh", "-c", "chgrp qumail-relay /etc/postfix/master.cf && chmod g+r /etc/postfix/master.cf")
    until(machine)


def mails(machine: BootedMachine) -> list[str]:
    """The texts of all mails that Ann has, the oldest first."""
    try:
        mailbox = machine.path("/var/mail/ann").read_bytes()
    except FileNotFoundError:
        return []
    each = re.split(rb"^From .*\n", mailbox, flags=re.MULTILINE)[1:]
    return [email.message_from_bytes(message, policy=policy.default).get_content() for message in each]


def mailed(machine: BootedMachine, notice: str, began: float) -> str:
    """The part of a mail that has this notice, which has come within a minute of `began`."""
    while True:
        for part in re.split(r"\n(?=\w+ (?:\(.*\) )?(?:begins|stands|ends); since )", "".join(mails(machine))):
            if part.startswith(f"{notice}; since "):
                return part
        assert time.monotonic() - began < WITHIN_S, f"{notice}:\n{mails(machine)}\n{machine.log()}"
        time.sleep(0.2)


def alarms(machine: BootedMachine) -> set[str]:
    said = machine.path("/var/lib/qumail-relay/alarms.json").read_text()
    return {each["alarm"] for each in json.loads(said)["alarms"]}


def until_alarms(machine: BootedMachine, *names: str) -> None:
    """Waits for a minute until just these stand."""
    deadline = time.monotonic() + WITHIN_S
    while alarms(machine) != set(names):
        assert time.monotonic() < deadline, f"{alarms(machine)}\n{machine.log()}"
        time.sleep(0.2)


def check(machine: BootedMachine) -> str:
    return machine.run("qumail-relay", "check", may_fail=True)


@pytest.mark.promise("Nobody takes the relay out of Postfix's configuration unnoticed")
@pytest.mark.timeout(900)
def test_a_lost_filter_a_lost_store_and_mail_that_stops_are_mailed_within_a_minute_with_what_to_type(
    machine: BootedMachine,
) -> None:
    # Nothing has been mailed yet: after a mail of warnings the next ones wait for minutes.
    machine.run("systemctl", "stop", "qumail-relay")
    machine.run("rm", "-f", "/var/lib/qumail-relay/alarms.json", "/var/mail/ann")
    machine.run("systemctl", "start", "qumail-relay")
    began = time.monotonic()
    machine.run("/usr/bin/python3", "-c", NOT_SEALED)
    mailed(machine, "mail_put_aside (bob unprotected) begins", began)

    machine.run("cp", MAIL_CF, "/root/main.cf.right")
    began = time.monotonic()
    machine.run("sh", "-c", f"postconf -e content_filter={RELOAD}")
    said = mailed(machine, "postfix_bypasses (no-way-in) begins", began)
    assert "run `qumail-relay setup` again" in said
    assert "WRONG  alarm postfix_bypasses no-way-in" in check(machine)
    machine.run("sh", "-c", f"cp /root/main.cf.right {MAIL_CF}; systemctl restart postfix")
    until_alarms(machine, "mail_put_aside", "unsealed_from_peer")

    machine.run("systemctl", "stop", "qumail-relay")
    machine.run("sh", "-c", "rm /var/lib/qumail-relay/relay.db*")
    began = time.monotonic()
    machine.run("systemctl", "start", "qumail-relay")
    [accept] = re.findall("`(qumail-relay store accept)`", mailed(machine, "store_is_another begins", began))
    mailed(machine, "postfix_bypasses (no-way-in) ends", began)
    machine.run("systemctl", "restart", "qumail-relay")
    assert "WRONG  store  /var/lib/qumail-relay/relay.db: the store is empty" in check(machine)
    assert {"store_is_another", "mail_put_aside"} <= alarms(machine)
    assert not re.search("^(mail_put_aside|store_is_another) .*ends;", "".join(mails(machine)), re.MULTILINE)
    assert "the store is empty" in machine.run("sh", "-c", accept)
    until_alarms(machine, "unsealed_from_peer")
    began = time.monotonic()
    mailed(machine, "store_is_another ends", began)

    # The mail of this alarm comes through the outgoing listener: it goes inside, and must not end the alarm.
    for number in range(3):
        text = f"From: ann@alice.example\nTo: to{number}@carol.example\nSubject: {number}\n\nheld\n"
        machine.run("/usr/sbin/sendmail", "-f", "ann@alice.example", f"to{number}@carol.example", said=text)
    began = time.monotonic()
    assert "is held since" in machine.until("WRONG  held mail outgoing", "qumail-relay", "check")
    assert "`qumail-relay policy explain SENDER RECIPIENT`" in mailed(machine, "mail_stuck (outgoing) begins", began)
    explained = machine.run(
        "qumail-relay", "policy", "explain", "ann@alice.example", "to1@carol.example", may_fail=True
    )
    assert "no policy covers" in explained
    assert "mail_stuck" in alarms(machine)
