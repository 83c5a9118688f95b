"""A machine that has booted with systemd: a copy of this one, or of a bare Debian that debootstrap has made.
Standard: Linux namespaces and overlayfs, as in throwaway.py; its root is that of its mount namespace, which systemd needs.
"""

from __future__ import annotations

import os
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.testlib.throwaway import PATH, MachineNotMade

BARE = "QUMAIL_TEST_BARE_ROOT"
"""Names a directory with a bare Debian; see tests/README.md."""
DEADLINE_S = 60.0
_BOOT = """
set -e
mount --make-rprivate /
mount -t tmpfs -o mode=755 tmpfs "$1"
mkdir "$1/upper" "$1/work" "$1/root"
mount -t overlay overlay -o "lowerdir=$2,upperdir=$1/upper,workdir=$1/work" "$1/root"
cd "$1/root"
mount -t proc proc proc
mount -t sysfs sysfs sys
mount -t tmpfs -o mode=755 tmpfs run
mount -t tmpfs -o mode=1777 tmpfs tmp
mount -t tmpfs -o mode=755 tmpfs dev
for each in null zero full random urandom tty; do
    touch "dev/$each"
    mount --bind "/dev/$each" "dev/$each"
done
mkdir dev/pts dev/shm
mount -t devpts -o newinstance,ptmxmode=0666 devpts dev/pts
mount -t tmpfs -o mode=1777 tmpfs dev/shm
ln -s pts/ptmx dev/ptmx
ln -s /proc/self/fd dev/fd
# What this machine starts is not for its copy, and in an image packages may be forbidden to start and stop anything.
rm -f etc/systemd/system/*.wants/* usr/sbin/policy-rc.d
# apt-get would read them anew each time; what the package depends on is installed here.
[ "$2" != / ] || find var/lib/apt/lists -type f -delete
echo "$3" >etc/hostname
hostname "$3"
ip link set lo up
# In a container systemd leaves it to its manager that mounts are shared, as credentials need them.
# A control group of its own, or systemd would take the services of all such machines for one.
mkdir groups
mount -t cgroup2 cgroup2 groups
mkdir -p "groups/$4"
echo 0 >"groups/$4/cgroup.procs"
umount groups
exec unshare --cgroup sh -ec 'mount -t cgroup2 cgroup2 sys/fs/cgroup
mkdir -p old
pivot_root . old
exec env -i container=other PATH="$PATH" sh -ec "umount -l /old; mount --make-rshared /; exec /sbin/init --log-target=journal"'
"""


_LET_GO = """
mount --make-rprivate /
mount -t cgroup2 cgroup2 "$1"
for each in $(seq 100); do
    find "$1/$2" -depth -type d -exec rmdir {} + 2>/dev/null || true
    [ -d "$1/$2" ] || break
    sleep 0.1
done
"""
"""Takes the control groups away, once the last process is gone."""


class BootedMachine:
    """One that runs; made by `booted_machine`. Nothing but loopback leads out of it until `connect` was called."""

    def __init__(self, init: int) -> None:
        """`init` is its first process, as this machine numbers it."""
        self.init = init

    def command(self, *arguments: str | Path) -> list[str]:
        """Has a program run there, as root."""
        namespaces = ["--mount", "--pid", "--net", "--uts", "--ipc", "--cgroup"]
        environment = ["env", "-i", f"PATH={PATH}", "LC_ALL=C.UTF-8", "HOME=/root", "TERM=dumb", "COLUMNS=200"]
        return ["nsenter", f"--target={self.init}", *namespaces, *environment, *map(str, arguments)]

    def run(self, *arguments: str | Path, may_fail: bool = False, said: str = "") -> str:
        """What a program that was `said` this says, on both its outputs; it must end well."""
        done = subprocess.run(
            self.command(*arguments), input=said, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        )
        assert may_fail or done.returncode == 0, f"{arguments}: {done.returncode}\n{done.stdout}"
        return done.stdout

    def path(self, path: str) -> Path:
        """A file there, for this process to read and write."""
        return Path(f"/proc/{self.init}/root{path}")

    def log(self) -> str:
        """What the relay has said."""
        return self.run("journalctl", "--unit=qumail-relay", "--output=cat", "--no-pager")

    def until(self, wanted: str, *arguments: str) -> str:
        """Runs a program again and again until it says this."""
        deadline = time.monotonic() + DEADLINE_S
        while wanted not in (said := self.run(*arguments, may_fail=True)):
            assert time.monotonic() < deadline, f"{arguments} has not said {wanted!r}:\n{said}\n{self.log()}"
            time.sleep(0.2)
        return said


@contextmanager
def booted_machine(directory: Path, name: str) -> Iterator[BootedMachine]:
    """Raises MachineNotMade. `directory` is empty, and is so again afterwards."""
    root, group = os.environ.get(BARE, "/"), f"{name}-{os.getpid()}"
    unshare = ["unshare", "--mount", "--pid", "--net", "--uts", "--ipc", "--fork", "--kill-child"]
    with subprocess.Popen(
        [*unshare, "sh", "-c", _BOOT, "sh", directory, root, name, group],
        stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True,
    ) as process:  # fmt: skip
        try:
            children = Path(f"/proc/{process.pid}/task/{process.pid}/children")
            began, state = time.monotonic(), ""
            while state not in ("running", "degraded"):
                took, made = time.monotonic() - began, children.read_text().split()
                # A slow machine is not one that cannot have such tests: there they fail and are not skipped.
                assert not state or took < 5 * DEADLINE_S, f"systemd is {state} after {took:.0f} s"
                if process.poll() is not None or (not state and took > DEADLINE_S):
                    process.kill()
                    assert process.stderr is not None
                    raise MachineNotMade(process.stderr.read().strip() or "systemd does not start")
                time.sleep(0.1)
                state = _state(int(made[0])) if made else ""
            yield BootedMachine(int(made[0]))
        finally:
            process.kill()
            process.wait()
            subprocess.run(["unshare", "--mount", "sh", "-c", _LET_GO, "sh", directory, group], check=False)


def _state(init: int) -> str:
    """What systemd says that it is, "" while it is not there: "running" or "degraded" once it has started everything."""
    try:
        if Path(f"/proc/{init}/comm").read_text() != "systemd\n":
            return ""
    except OSError:
        return ""
    said = BootedMachine(init).run("systemctl", "is-system-running", may_fail=True).strip()
    return said if said in ("initializing", "starting", "running", "degraded") else ""


def connect(one: BootedMachine, other: BootedMachine) -> tuple[str, str]:
    """Lays a cable between two machines; their addresses."""
    addresses = "192.0.2.1", "192.0.2.2"
    network = ["nsenter", f"--target={one.init}", "--net"]
    peer = ["peer", "name", "eth0", "netns", str(other.init)]
    subprocess.run([*network, "ip", "link", "add", "eth0", "type", "veth", *peer], check=True)
    for machine, address in zip((one, other), addresses, strict=True):
        machine.run("ip", "address", "add", f"{address}/24", "dev", "eth0")
        machine.run("ip", "link", "set", "eth0", "up")
    return addresses
