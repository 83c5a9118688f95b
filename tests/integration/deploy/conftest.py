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

from tests.testlib.throwaway import Machine, throwaway_machine, why_not

DEBIAN = Path(__file__).parents[3] / "deploy" / "debian"


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
