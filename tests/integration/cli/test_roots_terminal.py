"""What goes on as the relay's user cannot type into root's terminal, nor read what root types there.
Standard: tty_ioctl(4) TIOCSTI, which types into the controlling terminal; ptrace(2), by which a process of the same user
does in another one's name whatever that one may do.
"""

from __future__ import annotations

import ctypes
import fcntl
import json
import os
import pty
import signal
import sys
import tempfile
import termios
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from relay.cli import setup
from relay.files import rights
from relay.setup.files import Owner
from tests.testlib.nobody import NOBODY, by_root

LEGACY = Path("/proc/sys/dev/tty/legacy_tiocsti")
PTRACE_SEIZE = 0x4206
PIDFD_GETFD = 438
PROBE = '''#!/usr/bin/python3 -I
"""Does what somebody could have this process do: types into each terminal that it can reach, and reads there."""
import fcntl, json, os, select, sys, termios
found = {"user": os.geteuid(), "words": sys.argv[2:], "typed": [], "read": []}
def try_at(name, file):
    try:
        fcntl.ioctl(file, termios.TIOCSTI, b"x")
        found["typed"].append(name)
    except OSError:
        pass
    if os.isatty(file):
        found["read"].append(name)
for number in (0, 1, 2):
    try_at(number, number)
try:
    try_at("/dev/tty", os.open("/dev/tty", os.O_RDWR))
except OSError:
    pass
print(json.dumps(found), "\\x1b]0;title\\x07")
'''
pytestmark = [
    by_root,
    pytest.mark.skipif(
        LEGACY.exists() and LEGACY.read_text().strip() == "0", reason="this kernel lets nobody type into a terminal"
    ),
]


def at_a_terminal(work: Callable[[], None]) -> str:
    """Runs it as a shell runs a command: in a session that somebody else leads, with a terminal; what that shows."""
    leader, master = pty.fork()
    if not leader:
        child = os.fork()
        if not child:
            os.setpgid(0, 0)
            sys.stdout = sys.stderr = open(1, "w", closefd=False)  # noqa: SIM115 - pytest has another one
            try:
                work()
            except BaseException:  # noqa: BLE001 - it is shown
                traceback.print_exc()
            finally:
                sys.stdout.flush()
                os._exit(0)
        os.waitpid(child, 0)
        os._exit(0)
    shown = b""
    with suppress(OSError):  # how Linux says that the other end is closed
        while piece := os.read(master, 65_536):
            shown += piece
    os.close(master)
    os.waitpid(leader, 0)
    return shown.decode()


@pytest.fixture
def probe() -> Iterator[Path]:
    with tempfile.TemporaryDirectory() as name:
        Path(name).chmod(0o755)
        program = Path(name, "probe")
        program.write_text(PROBE)
        program.chmod(0o755)
        yield program


def test_without_care_a_child_types_into_the_terminal(probe: Path) -> None:
    """That the probe can do what the tests below say that it cannot."""

    def careless() -> None:
        os.setgid(NOBODY.pw_gid)
        os.setuid(NOBODY.pw_uid)
        os.execv(probe, [str(probe)])

    assert '"typed": [0, 1, 2, "/dev/tty"]' in at_a_terminal(careless)


@pytest.mark.promise("Nothing of this account types into root's terminal, or reads it")
def test_a_child_of_setup_has_no_terminal_and_is_of_the_relays_user_once_nobody_can_trace_it(
    probe: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "executable", str(probe))

    def child_of_setup() -> None:
        assert setup._as_relay(Owner.named("nobody"), "setup", "--keys")

    shown = at_a_terminal(child_of_setup)
    words = ["-m", "relay", "--as-user", str(NOBODY.pw_uid), str(NOBODY.pw_gid), "setup", "--keys"]
    assert json.loads(shown.partition("}")[0] + "}") == {"user": 0, "words": words, "typed": [], "read": []}, shown
    assert "\x1b" not in shown


@pytest.mark.promise("This account forges no line of what a command prints for root")
def test_a_child_of_setup_is_traced_by_nobody_while_it_starts(probe: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nor is its standard output taken (pidfd_getfd(2)), by which a line could be forged in root's terminal."""
    looked = probe.with_name("looked")
    probe.write_text(f"#!/bin/sh\nuntil [ -e {looked} ]; do :; done\n")
    probe.parent.chmod(0o777)
    monkeypatch.setattr(sys, "executable", str(probe))
    me, adversary = os.getpid(), os.fork()
    if not adversary:
        _take_output_of_child(me, looked)
    assert setup._as_relay(Owner.named("nobody"), "setup", "--keys")
    os.waitpid(adversary, 0)
    assert looked.read_text() == "traced -1 output -1"


@pytest.mark.promise("This account forges no line of what a command prints for root")
def test_a_child_of_setup_that_does_not_end_is_ended(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    program = tmp_path / "program"
    program.write_text("#!/bin/sh\nkill -STOP $$\n")
    program.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(program))
    monkeypatch.setattr(setup, "CHILD_LIMIT_S", 0.2)
    assert not setup._as_relay(Owner.myself(), "check")
    assert capsys.readouterr().out == "qumail-relay check: ended by signal 9\n"


@pytest.mark.promise("Nothing of this account types into root's terminal, or reads it")
def test_a_command_that_becomes_the_relays_user_is_traced_by_nobody_and_has_left_the_terminal() -> None:
    def command() -> None:
        with tempfile.TemporaryFile() as attached:
            me = os.getpid()
            adversary = os.fork()
            if not adversary:
                _trace_for_ever(me, attached.fileno())
            rights.become(rights.UnixUser(NOBODY.pw_uid, NOBODY.pw_gid, (), "nobody", "/"))
            until = time.monotonic() + 0.3
            while time.monotonic() < until:  # whatever the adversary can do, it does meanwhile
                pass
            with suppress(OSError):
                fcntl.ioctl(0, termios.TIOCSTI, b"x")
                sys.stdout.write("typed\n")
            with suppress(OSError):
                os.open("/dev/tty", os.O_RDWR)
                sys.stdout.write("has a terminal\n")
            os.kill(adversary, signal.SIGKILL)
            sys.stdout.write(f"attached {os.fstat(attached.fileno()).st_size} user {os.geteuid()}")

    assert at_a_terminal(command).split() == ["attached", "0", "user", str(NOBODY.pw_uid)]


def _take_output_of_child(parent: int, looked: Path) -> None:
    """Tries it as soon as the parent's other child is a program of its own, and says how it went."""
    os.setgid(NOBODY.pw_gid)
    os.setuid(NOBODY.pw_uid)
    libc = ctypes.CDLL(None, use_errno=True)
    children = Path(f"/proc/{parent}/task/{parent}/children")
    while True:
        for child in map(int, children.read_text().split()):
            with suppress(OSError):
                if b"--keys" in Path(f"/proc/{child}/cmdline").read_bytes():
                    traced = libc.ptrace(PTRACE_SEIZE, child, 0, 0)
                    output = libc.syscall(PIDFD_GETFD, os.pidfd_open(child), 1, 0)
                    written = looked.with_suffix(".new")
                    written.write_text(f"traced {traced} output {min(output, 0)}")
                    written.rename(looked)
                    os._exit(0)


def _trace_for_ever(pid: int, attached: int) -> None:
    os.setgid(NOBODY.pw_gid)
    os.setuid(NOBODY.pw_uid)
    libc = ctypes.CDLL(None, use_errno=True)
    while True:
        if libc.ptrace(PTRACE_SEIZE, pid, 0, 0) == 0:
            os.write(attached, b"x")
            os._exit(0)
