"""Commands that root types while the relay's user exchanges what they work with, again and again, as fast as it can.
Standard: each command is a process of its own, forked from one that has loaded everything; the adversary is another one.

`python -m tests.testlib.as_root` reads what to do from standard input, a line of JSON each, and writes what happened.
"""

from __future__ import annotations

import argparse
import atexit
import ctypes
import dataclasses
import hashlib
import json
import os
import signal
import subprocess
import sys
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
LOADED = (
    "aiosqlite", "sqlalchemy.dialects.sqlite.aiosqlite", "rich.progress_bar", "asyncio.unix_events",
    "importlib.readers", "encodings.ascii", "encodings.idna", "encodings.latin_1", "encodings.punycode",
    "relay.process.app", "relay.process.assembly", "relay.audit.checkpoint", "relay.quarantine.release", "relay.keys.build",
)  # fmt: skip
"""Before root is left: this Python may be one that only root can read."""
_AT_FDCWD, _RENAME_EXCHANGE = -100, 2
_NAMED_BY = {"open", "sqlite3.connect"}
"""Audit events (PEP 578) beside os.*, shutil.* and pathlib.* whose first argument is a path."""


@dataclasses.dataclass(frozen=True)
class EndedCommand:
    """A command that has ended: the user that it was then, and what root did by name below the directory watched."""

    words: list[str]
    user: int
    status: int | str
    as_root: list[str]
    said: str


@dataclasses.dataclass(frozen=True)
class Happened:
    """What came of the attempts; `touched` has what changed at a victim, which ends them."""

    exchanges: int
    touched: list[str]
    ended: list[EndedCommand]

    @property
    def as_root(self) -> list[str]:
        """What root did by name below the directory watched."""
        return [f"{' '.join(each.words)}: {what}" for each in self.ended for what in each.as_root]

    @property
    def statuses(self) -> Counter[int | str]:
        """How many commands ended with each exit status."""
        return Counter(each.status for each in self.ended)

    @property
    def said(self) -> str:
        """What the last command said."""
        return self.ended[-1].said


def attempts(
    *words: str,
    commands: Sequence[Sequence[str | Path]] = (),
    number: int = 1,
    victims: Sequence[Path] = (),
    adversary: Sequence[Sequence[str | Path]] = (),
    below: Path | None = None,
    undo: Sequence[tuple[Path, str]] = (),
    typed: str = "",
    cwd: Path | None = None,
    environment: Mapping[str, str] | None = None,
    uid: int = 65534,
) -> Happened:
    """Runs the command, or several, so often as root, with the adversary (a list of steps) beside it, who is `uid`.

    After each attempt the names `undo` are removed from the directories that these paths were at the beginning.
    """
    asked = {
        "commands": commands or [words], "number": number, "victims": victims, "adversary": adversary, "below": below,
        "undo": undo, "typed": typed, "uid": uid, "cwd": cwd or "/", "environment": environment or {},
    }  # fmt: skip
    server = _server()
    assert server.stdin is not None
    assert server.stdout is not None
    server.stdin.write(json.dumps(asked, default=str) + "\n")
    server.stdin.flush()
    answer = json.loads(server.stdout.readline() or '{"failed": "ended"}')
    assert "failed" not in answer, answer["failed"]
    return Happened(answer["exchanges"], answer["touched"], [EndedCommand(**each) for each in answer["ended"]])


@cache
def _server() -> subprocess.Popen[str]:
    """The process that has loaded everything; it ends with this one."""
    server = subprocess.Popen(
        [sys.executable, "-P", "-m", "tests.testlib.as_root"],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd="/", env={**os.environ, "PYTHONPATH": str(ROOT)},
    )  # fmt: skip

    def end() -> None:
        for pipe in (server.stdin, server.stdout):
            assert pipe is not None
            pipe.close()
        server.wait()

    atexit.register(end)
    return server


def state_of(victim: Path) -> dict[str, str]:
    """All that a victim is: owner, mode and content of it and everything below."""
    found: dict[str, str] = {}
    for path in (victim, *sorted(victim.rglob("*"))) if victim.is_dir() else (victim,):
        looked = path.lstat()
        content = hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else ""
        found[str(path)] = f"{looked.st_uid}:{looked.st_gid} {looked.st_mode:o} {content}"
    return found


def main() -> None:
    """Does what each line of its input asks for, each in a process of its own."""
    _load()
    for line in sys.stdin:
        child = os.fork()
        if not child:
            _answer(json.loads(line))
            os._exit(0)
        os.waitpid(child, 0)


def _answer(asked: dict[str, Any]) -> None:
    try:
        os.chdir(asked["cwd"])
        os.environ.update(asked["environment"])
        answer: dict[str, Any] = dataclasses.asdict(_happened(asked))
    except BaseException:  # noqa: BLE001 - it is shown
        answer = {"failed": traceback.format_exc()}
    sys.stdout.write(json.dumps(answer) + "\n")
    sys.stdout.flush()


def _happened(asked: dict[str, Any]) -> Happened:
    undo = [(os.open(directory, os.O_RDONLY | os.O_DIRECTORY), name) for directory, name in asked["undo"]]
    victims = [Path(each) for each in asked["victims"]]
    before = {key: value for victim in victims for key, value in state_of(victim).items()}
    spins, adversary = _adversary(asked["adversary"], asked["uid"]) if asked["adversary"] else (None, 0)
    touched: list[str] = []
    ended: list[EndedCommand] = []
    try:
        for words in [words for _ in range(asked["number"]) for words in asked["commands"]]:
            ended.append(_run_apart(words, asked["typed"], asked["below"]))
            now = {key: value for victim in victims for key, value in state_of(victim).items()}
            changed = [key for key in before | now if before.get(key) != now.get(key)]
            touched += [f"{' '.join(words)}: {key}: {before.get(key)} -> {now.get(key)}" for key in changed]
            if touched:
                break
            for directory, name in undo:
                with suppress(FileNotFoundError):
                    os.unlink(name, dir_fd=directory)
    finally:
        if adversary:
            os.kill(adversary, signal.SIGKILL)
            os.waitpid(adversary, 0)
    exchanges = int.from_bytes(os.pread(spins, 8, 0), "little") if spins is not None else 0
    return Happened(exchanges, touched, ended)


_OUTPUT = os.memfd_create("output")


def _said() -> str:
    return os.pread(_OUTPUT, 65_536, 0).decode("utf-8", "replace")


def _load() -> None:
    """All commands; RSA keys are made once, for that takes seconds."""
    from importlib import import_module

    import click
    from cryptography.hazmat.primitives.asymmetric import rsa

    from relay.cli import cli

    for name in LOADED:
        import_module(name)

    def load(group: click.Group) -> None:
        context = click.Context(group)
        for name in group.list_commands(context):
            command = group.get_command(context, name)
            if isinstance(command, click.Group):
                load(command)

    load(cli)
    key = rsa.generate_private_key(public_exponent=65537, key_size=4096)
    rsa.generate_private_key = lambda *_, **__: key
    import relay.cli.setup

    relay.cli.setup._as_relay = lambda *_: True  # it executes a Python that only root can read
    with suppress(Exception):  # what the first use of the store and of the console loads
        import asyncio
        import tempfile

        from relay.store.secret import SiteSecret
        from relay.store.store import open_store

        async def first_use() -> None:
            async with await open_store(Path(work) / "relay.db", SiteSecret(bytes(32))):
                pass

        with tempfile.TemporaryDirectory() as work:
            asyncio.run(first_use())
    from tests.testlib.forking import share_all

    share_all()


def _run_apart(words: list[str], typed: str, below: str | None) -> EndedCommand:
    """In a process of its own."""
    reading, writing = os.pipe()
    entered = os.memfd_create("typed")
    os.write(entered, typed.encode())
    os.lseek(entered, 0, os.SEEK_SET)
    child = os.fork()
    if not child:
        os.ftruncate(_OUTPUT, 0)
        os.lseek(_OUTPUT, 0, os.SEEK_SET)
        for number, descriptor in ((0, entered), (1, _OUTPUT), (2, _OUTPUT)):
            os.dup2(descriptor, number)
        seen = _watched(below)
        status = _run(words)
        os.write(writing, json.dumps([os.geteuid(), status, seen[:20]]).encode())
        os._exit(0)
    os.close(writing)
    os.close(entered)
    with os.fdopen(reading, "rb") as pipe:
        answer = pipe.read()
    os.waitpid(child, 0)
    user, status, seen = json.loads(answer) if answer else (-1, "killed", [])
    return EndedCommand(words, user, status, seen, _said())


def _run(words: Iterable[str]) -> object:
    from relay import cli

    sys.argv = ["qumail-relay", *words]
    try:
        cli.main()
    except SystemExit as ended:
        return 0 if ended.code is None else ended.code
    except BaseException:  # noqa: BLE001 - it is shown
        traceback.print_exc()
        return "traceback"
    finally:
        for stream in (sys.stdout, sys.stderr):
            with suppress(OSError):
                stream.flush()
    return 0


def _watched(below: str | None) -> list[str]:
    """What root does by name below this directory from now on, as Python's own audit hooks tell it (PEP 578)."""
    seen: list[str] = []
    if below is None:
        return seen

    def hook(event: str, arguments: tuple[Any, ...]) -> None:
        if event not in _NAMED_BY and not event.startswith(("os.", "shutil.", "pathlib.", "glob.")):
            return
        for each in arguments:
            if not isinstance(each, str | bytes | os.PathLike):
                continue
            name = str(Path(os.fsdecode(os.fspath(each)).removeprefix("file://").partition("?")[0]).absolute())
            if name.startswith(f"{below}/") and os.geteuid() == 0:
                seen.append(f"{event} {name}")

    sys.addaudithook(hook)
    return seen


def _adversary(steps: Sequence[Sequence[str]], uid: int) -> tuple[int, int]:
    """Takes its steps again and again; where it counts them, and its process."""
    libc = ctypes.CDLL(None, use_errno=True)

    def exchange(first: str, second: str) -> None:
        libc.renameat2(_AT_FDCWD, first.encode(), _AT_FDCWD, second.encode(), _RENAME_EXCHANGE)

    known: dict[str, Callable[..., Any]] = {
        "exchange": exchange, "rename": os.rename, "symlink": os.symlink, "unlink": os.unlink, "link": os.link,
        "rmdir": os.rmdir, "mkdir": os.mkdir, "pause": lambda: time.sleep(0),
    }  # fmt: skip
    taken = [(known[name], arguments) for name, *arguments in steps]
    counter = os.memfd_create("exchanges")
    child = os.fork()
    if child:
        return counter, child
    os.setgroups([])
    os.setgid(uid)
    os.setuid(uid)
    count = 0
    while True:
        for step, arguments in taken:
            with suppress(OSError):
                step(*arguments)
        count += 1
        os.pwrite(counter, count.to_bytes(8, "little"), 0)


if __name__ == "__main__":
    argparse.ArgumentParser(
        prog="python -m tests.testlib.as_root",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    ).parse_args()
    main()
