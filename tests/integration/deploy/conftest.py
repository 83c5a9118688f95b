"""The Debian package, built once for all tests that install it, and machines where it never was.
Standard: each is a copy of this one, of which nothing is left; root, overlayfs and namespaces, or tests are left out.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.testlib.booted import BootedMachine, booted_machine
from tests.testlib.identities import Identities
from tests.testlib.throwaway import Machine, MachineNotMade, throwaway_machine, why_not

DEBIAN = Path(__file__).parents[3] / "deploy" / "debian"
LEVELS = ("otp", "aes", "pqc", "rsa")


SYSTEMCTL = """\
#!/bin/sh
# The relay, or Exim, by hand: for a reader who types what is for systemd.
set -e
stop() {
    [ -s /run/relay.pid ] || return 0
    kill -TERM "$(cat /run/relay.pid)" || true
    while [ -e "/proc/$(cat /run/relay.pid)" ]; do sleep 0.05; done
    rm /run/relay.pid
}
start() {
    rm -f /tmp/ready
    setpriv --reuid qumail-relay --regid qumail-relay --init-groups \\
        qumail-relay serve --ready-file /tmp/ready </dev/null >>/run/relay.log 2>&1 &
    echo $! >/run/relay.pid
    while [ ! -e /tmp/ready ] && [ -e "/proc/$(cat /run/relay.pid)" ]; do sleep 0.05; done
    [ -e /tmp/ready ] || { cat /run/relay.log; exit 1; }
}
case "$*" in *exim4) exec exim4 -bd -q1m ;; esac
case "$1" in
daemon-reload) ;;
stop | disable) stop ;;
start | enable) start ;;
restart) stop; start ;;
*) echo "systemctl $*: not here" >&2; exit 1 ;;
esac
"""


@pytest.fixture(scope="session")
def package(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The file; whichever test process is first builds it, and the others wait for it."""
    if os.geteuid() != 0 or shutil.which("dpkg-deb") is None:
        pytest.skip("packages are built and installed by root, on Debian")
    if reason := why_not(tmp_path_factory.mktemp("machine")):
        pytest.skip(reason)
    shared = tmp_path_factory.getbasetemp()
    shared = shared.parent if "PYTEST_XDIST_WORKER" in os.environ else shared
    directory = shared / "package"
    with (shared / "package.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not directory.exists():
            _build(directory)
    [file] = directory.iterdir()
    return file


def _build(directory: Path) -> None:
    """Into a new directory that is there only when all went well."""
    making = directory.with_name("package.making")
    shutil.rmtree(making, ignore_errors=True)
    making.mkdir()
    # The environment of the tests is not for the package: it is Debian's Python that it runs with.
    environment = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "VIRTUAL_ENV")}
    built = subprocess.run([DEBIAN / "build", making], env=environment, capture_output=True, text=True)
    assert built.returncode == 0, built.stderr
    assert [Path(built.stdout.splitlines()[-1])] == list(making.iterdir())
    making.rename(directory)


@pytest.fixture
def machine(package: Path, tmp_path: Path) -> Iterator[Machine]:
    """A machine where the relay never was."""
    with _bare_machine(tmp_path) as made:
        yield made


@pytest.fixture(scope="module")
def after_installation(package: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Machine]:
    """A machine with the package, for others to be like it; nothing may change there."""
    with _bare_machine(tmp_path_factory.mktemp("installed")) as made:
        install(made, package)
        yield made


@pytest.fixture
def installed(after_installation: Machine, tmp_path: Path) -> Iterator[Machine]:
    """A machine where the package has just been installed."""
    with throwaway_machine(tmp_path, after_installation) as made:
        yield made


@contextmanager
def _bare_machine(directory: Path) -> Iterator[Machine]:
    with throwaway_machine(directory) as made:
        if made.run("dpkg-query", "--show", "qumail-relay", may_fail=True).startswith("qumail-relay"):
            pytest.skip("the package is installed on this machine already")
        for name in ("/etc/qumail-relay", "/var/lib/qumail-relay"):
            shutil.rmtree(made.path(name), ignore_errors=True)
        yield made


def install(machine: Machine, package: Path) -> str:
    shutil.copy(package, machine.path("/tmp/relay.deb"))
    return machine.run("dpkg", "--install", "/tmp/relay.deb")


def stand_in_for_systemd(machine: Machine) -> None:
    """A systemctl that starts, ends and restarts what the documents have it do."""
    program = machine.path("/usr/local/bin/systemctl")
    program.write_text(SYSTEMCTL)
    program.chmod(0o755)


def mail_server(machine: BootedMachine, name: str, peer: str, address: str) -> None:
    """A Postfix as an administrator has it before: it delivers here, and knows the way to the peer."""
    settings = (
        f"myhostname=mail.{name}.example", f"mydestination={name}.example, localhost", "inet_interfaces=all",
        "inet_protocols=ipv4", "mynetworks=127.0.0.0/8", "smtpd_relay_restrictions=permit_mynetworks,reject_unauth_destination",
        f"transport_maps=inline:{{ {peer}.example=smtp:[{address}] }}", "alias_maps=", "alias_database=", "mailbox_command=",
        "home_mailbox=", "compatibility_level=3.6",
    )  # fmt: skip
    machine.run("postconf", "-e", *settings)
    machine.run("systemctl", "restart", "postfix")
    for user in (*LEVELS, "ann"):
        machine.run("useradd", user)


@contextmanager
def site_under_systemd(directory: Path, package: Path, identities: Identities, *flags: str) -> Iterator[BootedMachine]:
    """Alice's site: Postfix hands mail to a relay that has been set up, with these flags, and does not run yet.

    Its keys were made before, since RSA takes seconds. The test is skipped where no machine can be booted.
    """
    try:
        with booted_machine(directory, "alice") as machine:
            mail_server(machine, "alice", "bob", "192.0.2.2")
            shutil.copy(package, machine.path(f"/root/{package.name}"))
            machine.run("dpkg", "--install", f"/root/{package.name}")
            # As the unit has it, but that nobody has to wait.
            soon = machine.path("/etc/systemd/system/qumail-relay.service.d/soon.conf")
            soon.parent.mkdir()
            soon.write_text("[Service]\nRestartSec=1\n")
            shutil.copytree(identities.alice.directory, machine.path("/var/lib/qumail-relay/identity"))
            machine.run("chown", "-R", "qumail-relay:qumail-relay", "/var/lib/qumail-relay")
            words = ("--yes", "--apply", "--domain", "alice.example", "--kme", "none", *flags)
            said = machine.run("qumail-relay", "setup", *words)
            assert "NOW START THE RELAY" in said
            assert said.endswith("\n  systemctl start qumail-relay\n")
            yield machine
    except MachineNotMade as error:
        pytest.skip(f"no machine with systemd can be booted: {error}")
