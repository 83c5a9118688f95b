"""A local user takes no port of the relay, whatever becomes of the relay: systemd holds them from the first moment on.
Standard: systemd.socket(5); a machine that boots with systemd, where another user tries bind(2) all the time.
"""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.integration.deploy.conftest import site_under_systemd
from tests.testlib.booted import BootedMachine
from tests.testlib.identities import Identities

RELAY_TOML = "/etc/qumail-relay/relay.toml"
DROP_IN = "/etc/systemd/system/qumail-relay.socket.d/addresses.conf"
JOURNAL = ("journalctl", "--unit=qumail-relay", "--output=cat")
SERVES = ("systemctl", "show", "--property=ActiveState", "qumail-relay")
RESTARTS = "systemctl show --property=NRestarts --value qumail-relay"
COMMAND = "/usr/bin/qumail-relay"
STOLEN = "/tmp/stolen"
THIEF = """
import socket, sys, time
while True:
    time.sleep(0.0005)
    with socket.socket() as listening:
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listening.bind(("127.0.0.1", 15024))
            listening.listen()
        except OSError:
            continue
        with open(sys.argv[1], "ab", 0) as stolen:
            stolen.write(b"has the port\\n")
            while True:
                client, _ = listening.accept()
                with client, client.makefile("rwb", 0) as lines:
                    lines.write(b"220 relay LMTP\\r\\n")
                    content = False
                    for line in lines:
                        stolen.write(line)
                        if content and line != b".\\r\\n":
                            continue
                        content = line[:4].upper() == b"DATA"
                        lines.write(b"354 go on\\r\\n" if content else b"250 2.0.0 ok\\r\\n")
"""
"""Takes the port once it is free, says 250 to everything, and writes down what it gets.

It tries two thousand times a second: a relay that starts anew would leave the port free for hundreds of tries.
"""
KNOCK = """
import socket, time
while True:
    with socket.socket() as client:
        client.settimeout(0.05)
        try:
            client.connect(("127.0.0.1", 15024))
            client.recv(1)
        except OSError:
            time.sleep(0.01)
"""
"""Connects again and again."""


@pytest.fixture(scope="module")
def alice(package: Path, identities: Identities, tmp_path_factory: pytest.TempPathFactory) -> Iterator[BootedMachine]:
    """A site whose Postfix hands mail to a relay that serves; mallory has an account there."""
    with site_under_systemd(tmp_path_factory.mktemp("alice"), package, identities) as machine:
        machine.run("systemctl", "start", "qumail-relay")
        machine.run("useradd", "mallory")
        yield machine


@pytest.fixture
def spins(alice: BootedMachine) -> Iterator[None]:
    """Mallory waits for the port to be free."""
    alice.run("systemd-run", "--unit=thief", "--collect", "--uid=mallory", "python3", "-c", THIEF, STOLEN)
    yield
    alice.run("systemctl", "stop", "thief")


def send(machine: BootedMachine, text: str) -> None:
    message = f"From: ann@alice.example\nTo: ann@alice.example\nSubject: {text}\n\n{text}\n"
    machine.run("/usr/sbin/sendmail", "-f", "ann@alice.example", "ann@alice.example", said=message)


def restarted(machine: BootedMachine) -> None:
    machine.run("systemctl", "restart", "qumail-relay", may_fail=True)


def killed(machine: BootedMachine) -> None:
    machine.run("systemctl", "kill", "--signal=KILL", "qumail-relay")


def stopped_and_started(machine: BootedMachine) -> None:
    machine.run("systemctl", "stop", "qumail-relay")
    send(machine, "sent while it was stopped")
    machine.run("postqueue", "-f")
    assert machine.run("systemctl", "is-active", "qumail-relay", may_fail=True).strip() == "inactive", "it was stopped"
    machine.run("systemctl", "start", "qumail-relay")
    machine.run("postqueue", "-f")
    machine.until("sent while it was stopped", "cat", "/var/mail/ann")


def upgraded(machine: BootedMachine) -> None:
    machine.run("sh", "-c", "dpkg --install /root/qumail-relay_*.deb")


def unable_to_start(machine: BootedMachine) -> None:
    """More often than systemd starts a unit by default, while clients come and come. With any limit it lets go at last."""
    limits = ("StartLimitIntervalUSec", "qumail-relay.service"), ("TriggerLimitIntervalUSec", "qumail-relay.socket")
    for limit, unit in limits:
        assert machine.run("systemctl", "show", "--value", f"--property={limit}", unit).strip() == "0"
    relay_toml = machine.path(RELAY_TOML)
    as_it_was = relay_toml.read_text()
    relay_toml.write_text(f"{as_it_was}\nno_setting = 1\n")
    machine.run("systemd-run", "--unit=knock", "--collect", "python3", "-c", KNOCK)
    machine.run("systemctl", "restart", "qumail-relay", may_fail=True)
    machine.run("mv", COMMAND, f"{COMMAND}.away")  # a program that is gone fails sooner than one that reads settings
    machine.until("yes", "sh", "-c", f"[ $({RESTARTS}) -ge 6 ] && echo yes")
    machine.run("mv", f"{COMMAND}.away", COMMAND)
    relay_toml.write_text(as_it_was)
    machine.until("ActiveState=active", *SERVES)
    machine.run("systemctl", "stop", "knock")


@pytest.mark.promise("No local user gets Postfix's mail at a port of the relay")
@pytest.mark.timeout(300)
@pytest.mark.usefixtures("spins")
@pytest.mark.parametrize("becomes", [restarted, killed, stopped_and_started, upgraded, unable_to_start])
def test_nobody_else_gets_a_mail_while_the_relay_is(
    alice: BootedMachine, becomes: Callable[[BootedMachine], None]
) -> None:
    text = f"the vault opens: {becomes.__name__}"
    send(alice, f"{text}, before")
    becomes(alice)
    send(alice, text)
    alice.run("postqueue", "-f")
    assert not alice.path(STOLEN).exists(), alice.path(STOLEN).read_text()
    alice.until("ActiveState=active", *SERVES)
    alice.run("postqueue", "-f")
    alice.until(f"{text}\n", "sh", "-c", "postqueue -f; cat /var/mail/ann")
    assert not alice.path(STOLEN).exists(), alice.path(STOLEN).read_text()


CHECK = ("runuser", "-u", "qumail-relay", "--", "qumail-relay", "check", "--no-next-hops")
RISK = "another user of this machine could take this port while the relay restarts"


@pytest.mark.promise("No local user gets Postfix's mail at a port of the relay")
@pytest.mark.timeout(300)
def test_check_says_where_a_port_is_not_held_and_what_it_says_to_type_has_it_held(alice: BootedMachine) -> None:
    """As after an upgrade from a relay that listened by itself."""
    alice.run("systemctl", "stop", "qumail-relay.socket")
    assert alice.run("systemctl", "is-active", "qumail-relay", may_fail=True).strip() == "inactive", "they go together"
    shutil.rmtree(alice.path(DROP_IN).parent)
    alice.run("systemctl", "daemon-reload")
    alice.run("systemctl", "start", "qumail-relay")
    alice.run("systemctl", "restart", "qumail-relay")
    said = alice.run(*CHECK, may_fail=True)
    assert said.count(RISK) == 3, "outgoing, incoming and status"
    command = re.findall(rf"127.0.0.1:15024: {RISK}: as root: (.*)", said)[0]
    said = alice.run("sh", "-c", command)
    assert said.endswith("after: systemctl restart qumail-relay.socket\n")
    assert RISK in alice.run(*CHECK, may_fail=True), "not yet"
    alice.run("sh", "-c", said.split("after: ")[1])
    alice.until("ActiveState=active", *SERVES)
    assert RISK not in alice.run(*CHECK, may_fail=True)
    assert "held by systemd" in alice.run("sh", "-c", command)
    assert alice.run("systemctl", "is-enabled", "qumail-relay.socket").strip() == "enabled", "from the next boot on too"
    assert "sockets.target" in alice.run("systemctl", "show", "--property=Before", "qumail-relay.socket")


@pytest.mark.timeout(300)
def test_with_another_address_in_relay_toml_a_relay_starts_once_systemd_holds_it(alice: BootedMachine) -> None:
    relay_toml = alice.path(RELAY_TOML)
    as_it_was = relay_toml.read_text()
    assert "127.0.0.1:15029" in as_it_was
    relay_toml.write_text(as_it_was.replace("127.0.0.1:15029", "127.0.0.1:15099"))
    alice.run("systemctl", "restart", "qumail-relay", may_fail=True)
    alice.until("systemd passes no socket for 127.0.0.1:15099, but others: as root: qumail-relay setup", *JOURNAL)
    alice.until(RISK, *CHECK)
    assert "held by systemd from now on" in alice.run("qumail-relay", "setup", "--hold-ports"), "none serves"
    alice.until("ActiveState=active", *SERVES)
    assert RISK not in alice.run(*CHECK, may_fail=True)
    relay_toml.write_text(as_it_was)
    alice.run("systemctl", "stop", "qumail-relay")
    assert "held by systemd from now on" in alice.run("qumail-relay", "setup", "--hold-ports"), "none serves"
    alice.run("systemctl", "start", "qumail-relay")


@pytest.mark.timeout(300)
def test_what_waits_for_a_relay_that_is_stopped_is_named_with_the_command_that_starts_it(alice: BootedMachine) -> None:
    alice.run("systemctl", "stop", "qumail-relay")
    for command in (CHECK, ("qumail-relay", "check", "--postfix")):
        said = alice.run(*command, may_fail=True)
        assert (
            "127.0.0.1:15024: systemd holds it, and nobody listens" in said
            or "15024: nobody listens, and Postfix" in said
        )
        assert "systemctl start qumail-relay\n" in said
    alice.run("systemctl", "start", "qumail-relay")
    assert "NOW" not in alice.run("qumail-relay", "setup", "--yes", "--apply")
