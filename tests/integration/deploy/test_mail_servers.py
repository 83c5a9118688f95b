"""Exim beside the relay, by what deploy/MAIL-SERVERS.md says to type: sealed on its way out, opened on its way in.
Standard: Debian's own packages, which cannot be installed beside Postfix: so on a copy of this machine.
"""

from __future__ import annotations

import email
import os
import re
import shutil
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from relay.formats import mime
from tests.integration.deploy.conftest import stand_in_for_systemd
from tests.testlib.identities import Identities, Person
from tests.testlib.throwaway import Machine, throwaway_machine

DOCUMENT = (Path(__file__).parents[3] / "deploy" / "MAIL-SERVERS.md").read_text()
[EXIM] = re.findall(r"^```sh\n(.*?)^```$", DOCUMENT.split("\n## Exim\n")[1].split("\n## ")[0], re.DOTALL | re.MULTILINE)
PACKAGES = ("exim4-config", "exim4-base", "exim4-daemon-light", "libidn12")
CONFIGURATION = """\
dc_eximconfig_configtype='smarthost'
dc_other_hostnames='alice.example'
dc_local_interfaces='127.0.0.1 ; ::1'
dc_readhost=''
dc_relay_domains=''
dc_minimaldns='true'
dc_relay_nets=''
dc_smarthost='outside.example'
CFILEMODE='644'
dc_use_split_config='false'
dc_hide_mailname='false'
dc_mailname_in_oh='true'
dc_localdelivery='mail_spool'
"""
OUTSIDE = """\
outside:
  driver = manualroute
  domains = ! +local_domains
  route_list = * 127.0.0.1::2525
  transport = remote_smtp
  self = send
"""
"""Stands for Debian's routers to the world, which send nothing to this host."""
DEADLINE_S = 60
PYTHON = "/usr/lib/qumail-relay/bin/python"
"""That of the package, which has aiosmtpd."""
BODY = "The vault opens at 06:30."
MAIL = f"From: {{}}\nTo: {{}}\nSubject: The vault\nMessage-ID: <{{}}>\n\n{BODY}\n"


@pytest.fixture(scope="session")
def debs(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Debian's packages of Exim, which are fetched and not installed."""
    directory = tmp_path_factory.mktemp("debs")
    if os.geteuid() != 0 or shutil.which("apt-get") is None:
        pytest.skip("Exim is fetched by apt-get, and installed by root")
    got = subprocess.run(["apt-get", "download", *PACKAGES], cwd=directory, capture_output=True, text=True)
    if got.returncode:
        pytest.skip(f"Exim cannot be fetched: {got.stderr.strip()[-200:]}")
    return sorted(directory.glob("*.deb"))


@pytest.fixture(scope="module")
def after_setup(
    after_installation: Machine,
    debs: list[Path],
    identities: Identities,
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Machine]:
    """Exim and a relay with Bob for a peer; nothing runs yet."""
    with throwaway_machine(tmp_path_factory.mktemp("alice"), after_installation) as machine:
        if machine.run("sh", "-c", "dpkg -s postfix 2>/dev/null", may_fail=True):
            machine.run("dpkg", "--remove", "--force-depends", "postfix")
        for deb in debs:
            shutil.copy(deb, machine.path(f"/tmp/{deb.name}"))
        machine.path("/etc/exim4").mkdir(exist_ok=True)
        machine.path("/etc/exim4/update-exim4.conf.conf").write_text(CONFIGURATION)
        names = [f"/tmp/{deb.name}" for deb in debs]
        machine.run(
            "env", "DEBIAN_FRONTEND=noninteractive", "dpkg", "--install", "--force-depends", "--force-confold", *names
        )
        machine.run("useradd", "--create-home", "ann")
        site(machine, "/etc/qumail-relay/relay.toml", "/var/lib/qumail-relay", identities.alice, identities.bob)
        machine.path("/etc/exim4/conf.d/router/060_outside").write_text(OUTSIDE)
        stand_in_for_systemd(machine)
        yield machine


@pytest.fixture
def alice(after_setup: Machine, tmp_path: Path) -> Iterator[Machine]:
    """Both serve; all that leaves ends at port 2525."""
    with throwaway_machine(tmp_path, after_setup) as machine:
        outside = "aiosmtpd.handlers.Mailbox /tmp/outside"
        machine.run("sh", "-c", f"{PYTHON} -I -m aiosmtpd -n -l 127.0.0.1:2525 -c {outside} >/tmp/log 2>&1 &")
        machine.run("systemctl", "start", "qumail-relay")
        machine.run("sh", "-ec", EXIM)
        yield machine


def site(machine: Machine, config: str, state: str, person: Person, peer: Person) -> None:
    name, other = person.certificates.name, peer.certificates.name
    user = "root" if config.startswith("/tmp") else "qumail-relay"
    shutil.copytree(person.directory, machine.path(f"{state}/identity"))
    machine.run("chown", "-R", f"{user}:", state)
    document = machine.path(f"/tmp/{other}.json")
    document.write_bytes(peer.document)
    flags = f"--domain {name}.example --sae-id {person.certificates.sae_id} --kme none --postfix none --user {user}"
    flags += f" --peer-domain {other}.example"
    if user == "root":
        flags += " --port-base 15120"  # the other site's relay serves at the usual ones
    machine.run(
        "sh", "-c", f"qumail-relay setup --yes --config {config} --state {state} --peer /tmp/{other}.json {flags}"
    )


def until(what: object) -> object:
    """Looks until it is so."""
    assert callable(what)
    end = time.monotonic() + DEADLINE_S
    while not (found := what()):
        assert time.monotonic() < end, "it did not become so"
        time.sleep(0.05)
    return found


def left(machine: Machine) -> list[bytes]:
    """What has reached the outside."""
    return [path.read_bytes() for path in sorted(machine.path("/tmp/outside").glob("new/*"))]


def send(machine: Machine, sender: str, recipient: str, name: str) -> None:
    machine.path("/tmp/mail").write_text(MAIL.format(sender, recipient, name))
    machine.run("sh", "-c", f"sendmail -f {sender} {recipient} </tmp/mail")


def crlf(message: bytes) -> bytes:
    return message.replace(b"\r\n", b"\n").replace(b"\n", b"\r\n")


def test_mail_leaves_sealed_arrives_opened_and_waits_while_the_relay_is_away(
    alice: Machine, identities: Identities
) -> None:
    send(alice, "ann@alice.example", "ben@bob.example", "1@alice.example")
    until(lambda: left(alice))
    [sealed] = left(alice)
    assert mime.is_sealed(crlf(sealed))
    assert BODY.encode() not in sealed
    assert email.message_from_bytes(sealed)["Subject"] == "[...]"

    site(alice, "/tmp/bob/relay.toml", "/tmp/bob/state", identities.bob, identities.alice)
    alice.path("/tmp/mail").write_text(MAIL.format("ben@bob.example", "ann@alice.example", "2@bob.example"))
    seal = "qumail-relay seal --config /tmp/bob/relay.toml --from ben@bob.example --to ann@alice.example /tmp/mail"
    alice.run("sh", "-c", f"{seal} >/tmp/sealed")
    assert mime.is_sealed(crlf(alice.path("/tmp/sealed").read_bytes()))
    submit = "import smtplib; smtplib.SMTP('127.0.0.1', 25).sendmail('ben@bob.example', ['ann@alice.example'], "
    alice.run("/usr/bin/python3", "-c", f"{submit}open('/tmp/sealed', 'rb').read())")
    box = alice.path("/var/mail/ann")
    until(lambda: box.exists() and BODY in box.read_text())
    assert "X-QuMail-Protection: pqc" in box.read_text()

    alice.run("systemctl", "stop", "qumail-relay")

    send(alice, "ann@alice.example", "ben@bob.example", "3@alice.example")
    until(lambda: "ben@bob.example" in alice.run("exim4", "-bp"))
    assert len(left(alice)) == 1
    alice.run("systemctl", "start", "qumail-relay")
    alice.run("exim4", "-qff")
    until(lambda: len(left(alice)) > 1)
    assert [mime.is_sealed(crlf(each)) for each in left(alice)] == [True, True]


def test_what_exim_gives_back_is_sealed_too(alice: Machine) -> None:
    """A bounce of what it took and could not deliver: it is a mail like any other."""
    alice.path("/tmp/mail").write_text(MAIL.format("ben@bob.example", "nobody@alice.example", "4@bob.example"))
    alice.path("/etc/aliases").write_text("nobody: :fail: no such person\n")
    alice.run("sh", "-c", "sendmail -f ben@bob.example nobody@alice.example </tmp/mail", may_fail=True)
    until(lambda: left(alice))
    assert [mime.is_sealed(crlf(each)) for each in left(alice)] == [True]
    assert alice.run("exim4", "-bP", "bounce_return_body") == "no_bounce_return_body\n"
