"""A copy of this machine that may be changed at will: its files, processes and network are gone when it ends.
Standard: Linux namespaces and overlayfs; what is written goes into memory, and lists as what is new against this machine.
"""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

_MADE = """
set -e
mount --make-rprivate /
mount -t tmpfs -o mode=755 tmpfs "$1"
mkdir "$1/upper" "$1/work" "$1/root"
mount -t overlay overlay -o "lowerdir=$2,upperdir=$1/upper,workdir=$1/work" "$1/root"
mount -t proc proc "$1/root/proc"
mount --rbind /dev "$1/root/dev"
mount -t tmpfs -o mode=755 tmpfs "$1/root/run"
mount -t tmpfs -o mode=1777 tmpfs "$1/root/tmp"
# apt-get would read them anew each time; what the package depends on is installed here.
[ "$2" != / ] || find "$1/root/var/lib/apt/lists" -type f -delete
ip link set lo up
echo made
# An orphan that ends is gone at once, as with a real init.
exec env --ignore-signal=CHLD cat
"""
"""What its first process does; the end of its input, also by a test that is killed, is the end of all."""


class Machine:
    """One that runs; made by `throwaway_machine`. It has no systemd, and no network but loopback."""

    def __init__(self, init: int, directory: Path, below: str) -> None:
        """`init` is its first process, as this machine numbers it; `below` names what its files lie over."""
        self._enter = ["nsenter", f"--target={init}", "--mount", "--pid", "--net"]
        self._init, self._directory = init, directory
        self.enter_files = ["nsenter", f"--target={init}", "--mount"]
        self.files = f"{directory}/upper:{below}"

    def command(self, *arguments: str | Path) -> list[str]:
        """Has a program run there."""
        root = str(self._directory / "root")
        return [*self._enter, "chroot", root, "env", "-i", f"PATH={PATH}", "LC_ALL=C.UTF-8", *map(str, arguments)]

    def run(self, *arguments: str | Path, may_fail: bool = False) -> str:
        """What a program says there, on both its outputs; it must end well."""
        done = subprocess.run(
            self.command(*arguments),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        assert may_fail or done.returncode == 0, f"{arguments}: {done.returncode}\n{done.stdout}"
        return done.stdout

    def path(self, path: str) -> Path:
        """A file there, for this process to read and write."""
        return Path(f"/proc/{self._init}/root{self._directory}/root{path}")

    def changed(self) -> set[str]:
        """All that is there and not on this machine, or other than here, or gone there; no directories above those.

        What another machine had before it was copied is not among it.
        """
        upper = Path(f"/proc/{self._init}/root{self._directory}/upper")
        return {str(place) for path in upper.rglob("*") if not _same(path, place := Path("/", path.relative_to(upper)))}


def _same(path: Path, place: Path) -> bool:
    if path.is_dir() or not (path.is_file() and place.is_file()):
        return path.is_dir() and place.is_dir()
    return path.stat().st_size == place.stat().st_size and path.read_bytes() == place.read_bytes()


PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"


def why_not(directory: Path) -> str:
    """Why there can be none here, or ""."""
    missing = [name for name in ("unshare", "nsenter", "ip") if shutil.which(name) is None]
    if missing:
        return f"{', '.join(missing)}: not installed"
    try:
        with throwaway_machine(directory):
            return ""
    except MachineNotMade as error:
        return f"no copy of this machine can be made: {error}"


class MachineNotMade(Exception):
    """No root, or a container that forbids it."""


@contextmanager
def throwaway_machine(directory: Path, like: Machine | None = None) -> Iterator[Machine]:
    """Raises MachineNotMade. `directory` is empty, and is so again afterwards.

    It has the files of the machine `like`, but for /run and /tmp; those may not change any more.
    """
    enter, below = (like.enter_files, like.files) if like else ([], "/")
    unshare = ["unshare", "--mount", "--pid", "--net", "--fork", "--kill-child"]
    with subprocess.Popen(
        [*enter, *unshare, "sh", "-c", _MADE, "sh", str(directory), below],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        assert process.stderr is not None
        try:
            if process.stdout.readline() != "made\n":
                raise MachineNotMade(process.stderr.read().strip())
            children = Path(f"/proc/{process.pid}/task/{process.pid}/children")
            yield Machine(int(children.read_text().split()[0]), directory, below)
        finally:
            process.stdin.close()
            process.wait()
