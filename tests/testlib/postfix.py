"""Real Postfix instances beside the host's own, made from the files in deploy/postfix as they stand.
Standard: free ports, all files in one directory of its own, stopped and gone after the test whatever happened.
"""

from __future__ import annotations

import asyncio
import fcntl
import json
import os
import re
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import AsyncIterator, Callable, Iterable, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TypeVar

import pytest

from relay.config import TCPAddress
from tests.testlib.ports import free_addresses
from tests.testlib.submit import SMTPReply, submit

FRAGMENTS = Path(__file__).parents[2] / "deploy" / "postfix"
DEADLINE_S = 20.0
POLL_S = 0.05

_Found = TypeVar("_Found")

_QUEUE = (
    *((name, 0o700, False) for name in ("active", "bounce", "corrupt", "defer", "deferred", "flush", "hold")),
    *((name, 0o700, False) for name in ("incoming", "private", "saved", "trace")),
    ("maildrop", 0o730, True),
    ("public", 0o710, True),
    ("pid", 0o755, False),
)
"""What is in the queue's directory (postfix-files): name, mode, and whether a group of its own may go there."""
_MAIN_CF = """\
compatibility_level = {level}
queue_directory = {directory}/queue
data_directory = {directory}/data
maillog_file = {directory}/log
maillog_file_prefixes = {directory}
inet_interfaces = 127.0.0.1
proxy_interfaces = 192.0.2.25
inet_protocols = ipv4
mydestination =
alias_maps =
alias_database =
local_recipient_maps =
mynetworks = 127.0.0.0/8
notify_classes =
smtpd_peername_lookup = no
"""

_MASTER_CF = """\
{smtp} inet n - n - - smtpd
{submission} inet n - n - - smtpd -o syslog_name=postfix/submission
pickup unix n - n 60 1 pickup
cleanup unix n - n - 0 cleanup
qmgr unix n - n 300 1 qmgr
tlsmgr unix - - n 1000? 1 tlsmgr
rewrite unix - - n - - trivial-rewrite
bounce unix - - n - 0 bounce
defer unix - - n - 0 bounce
trace unix - - n - 0 bounce
verify unix - - n - 1 verify
flush unix n - n 1000? 0 flush
proxymap unix - - n - - proxymap
proxywrite unix - - n - 1 proxymap
smtp unix - - n - - smtp
relay unix - - n - - smtp
showq unix n - n - - showq
error unix - - n - - error
retry unix - - n - - error
discard unix - - n - - discard
local unix - n n - - local
virtual unix - n n - - virtual
lmtp unix - - n - - lmtp
anvil unix - - n - 1 anvil
scache unix - - n - 1 scache
postlog unix-dgram n - n - 1 postlogd
mailboxes unix - - n - - smtp -o smtp_line_length_limit=0
"""


def _why_not() -> str:
    if missing := [name for name in ("postfix", "postconf", "postqueue") if shutil.which(name) is None]:
        return f"Postfix is not installed (no {missing[0]})"
    return "" if os.geteuid() == 0 else "starting Postfix needs root"


requires_postfix = pytest.mark.skipif(bool(_why_not()), reason=_why_not() or "Postfix can be started")
"""For tests that start Postfix: they are skipped, with the reason, where that is not possible."""
requires_postconf = pytest.mark.skipif(shutil.which("postconf") is None, reason="Postfix is not installed")
"""For tests that only read and write its configuration, which needs no rights."""


@dataclass(frozen=True)
class Queued:
    """One recipient of a mail in the queue; `reason` is why it was deferred, or "" where it was not."""

    queue: str
    sender: str
    recipient: str
    reason: str


@dataclass(frozen=True)
class Postfix:
    """One instance; `smtp` is where its port 25 is."""

    directory: Path
    smtp: TCPAddress

    @property
    def config(self) -> Path:
        """The directory of its main.cf and master.cf."""
        return self.directory / "etc"

    @property
    def log(self) -> str:
        """All that it has logged."""
        path = self.directory / "log"
        return path.read_text() if path.exists() else ""

    async def submit(
        self,
        message: bytes,
        *,
        sender: str = "ann@alice.example",
        recipients: Sequence[str] = ("ben@bob.example",),
        options: Sequence[str] = (),
    ) -> SMTPReply:
        """The reply to a mail that is handed to its port 25."""
        return await submit(self.smtp, message, sender=sender, recipients=recipients, options=options)

    async def command(self, *words: str) -> str:
        """Runs one of Postfix's commands on this instance: all it wrote. Fails where the command does."""
        return await run(words[0], "-c", str(self.config), *words[1:])

    async def flush(self) -> None:
        """Everything that is deferred or put aside is tried again now.

        `postqueue -f` alone leaves mail behind by chance: where a delivery agent has not let go of a file yet, the
        queue manager puts it aside in `incoming` for a minute, and looks there at the next arrival only
        (qmgr_active.c). So this waits for the agents, and asks for both queues.
        """
        queue = self.directory / "queue"
        for waiting in (*queue.glob("deferred/**/*"), *queue.glob("incoming/*")):
            with suppress(FileNotFoundError, IsADirectoryError), waiting.open("rb") as held:
                await asyncio.to_thread(fcntl.flock, held, fcntl.LOCK_EX)
        _, writer = await asyncio.open_unix_connection(queue / "public" / "qmgr")
        writer.write(b"FAID")  # flush; all, whatever their time; in incoming; in deferred
        writer.close()
        await writer.wait_closed()

    async def queue(self) -> list[Queued]:
        """What is in the queue now."""
        lines = (await self.command("postqueue", "-j")).splitlines()
        return [
            Queued(mail["queue_name"], mail["sender"], recipient["address"], recipient.get("delay_reason", ""))
            for mail in map(json.loads, lines)
            for recipient in mail["recipients"]
        ]

    async def deferred(self, recipient: str) -> str:
        """Waits until the mail to this recipient is deferred; gives the reason."""

        def find(queue: list[Queued]) -> list[str]:
            return [each.reason for each in queue if each.recipient == recipient and each.queue == "deferred"]

        return (await self._until(find, f"no mail to {recipient} is deferred"))[0]

    async def queued_message(self, name: str) -> bytes:
        """The message of a queue file as it is there, with CRLF line ends; b"" where the file is gone meanwhile."""
        process = await asyncio.create_subprocess_exec(
            "postcat", "-c", str(self.config), "-hbq", name, stdout=asyncio.subprocess.PIPE
        )
        output, _ = await process.communicate()
        return output.replace(b"\n", b"\r\n")

    async def queued_names(self) -> dict[str, list[str]]:
        """The recipients of each queue file, by its name."""
        lines = (await self.command("postqueue", "-j")).splitlines()
        return {
            mail["queue_id"]: [recipient["address"] for recipient in mail["recipients"]]
            for mail in map(json.loads, lines)
        }

    async def abort(self) -> None:
        """All its processes end at once; it can be started again when this returns."""
        await _stop(self)

    async def empty(self) -> None:
        """Waits until nothing is in the queue."""
        await self._until(lambda queue: not queue, "the queue is not empty")

    async def _until(self, condition: Callable[[list[Queued]], _Found], complaint: str) -> _Found:
        deadline = asyncio.get_running_loop().time() + DEADLINE_S
        while not (found := condition(queue := await self.queue())):
            assert asyncio.get_running_loop().time() < deadline, f"{complaint}: {queue}\n{self.log}"
            await asyncio.sleep(POLL_S)
        return found


@asynccontextmanager
async def made(
    *,
    smtp: TCPAddress,
    fragments: Iterable[str],
    ports: Mapping[int, TCPAddress],
    settings: Mapping[str, str],
    submission: TCPAddress | None = None,
    changes: str = "",
) -> AsyncIterator[Postfix]:
    """An instance that is configured but does not run.

    `fragments` are directories in deploy/postfix, applied with the commands that stand in them; `ports` says
    what is there instead of each port that they name; `settings` are further lines of main.cf. `submission` is
    where its port 587 is; by default on a port of its own that nobody is told. `changes` are shell commands for
    what is done to the configuration after that.
    """
    directory = Path(tempfile.mkdtemp(prefix="postfix-"))
    try:
        directory.chmod(0o755)  # Postfix's own user must get in; pytest's directories are root's alone
        for name in ("queue", "data"):
            (directory / name).mkdir()
        shutil.chown(directory / "data", "postfix")
        there = {str(port): str(address.port) for port, address in ports.items()}
        [unknown] = free_addresses(1)
        await configure(
            directory, fragments, smtp=str(smtp), submission=str(submission or unknown), ports=there, settings=settings
        )
        await change(directory, changes)
        yield Postfix(directory, smtp)
    finally:
        shutil.rmtree(directory)


async def configure(
    directory: Path,
    fragments: Iterable[str],
    *,
    smtp: str = "smtp",
    submission: str = "submission",
    ports: Mapping[str, str] | None = None,
    settings: Mapping[str, str] | None = None,
) -> None:
    """Writes main.cf and master.cf into `directory`/etc and applies fragments of deploy/postfix to them.

    `smtp` and `submission` are the names of these services in master.cf; `ports` says what is written instead of
    each port of five digits that the fragments name.
    """
    (directory / "etc").mkdir()
    version, *_ = _installed()
    level = ".".join(version.split(".")[:2])
    given = dict(settings or {})
    usual = _MAIN_CF.format(level=level, directory=directory).splitlines()
    lines = [line for line in usual if line.partition(" =")[0] not in given]  # Postfix warns of a second one
    lines += [f"{name} = {value}" for name, value in given.items()]
    (directory / "etc" / "main.cf").write_text("".join(f"{line}\n" for line in lines))
    (directory / "etc" / "master.cf").write_text(_MASTER_CF.format(smtp=smtp, submission=submission))
    _age(directory / "etc")
    for name in fragments:
        await _apply(
            directory, name, ports or {}, {"smtp/inet": f"{smtp}/inet", "submission/inet": f"{submission}/inet"}
        )


@asynccontextmanager
async def running(
    *,
    smtp: TCPAddress,
    fragments: Iterable[str],
    ports: Mapping[int, TCPAddress],
    settings: Mapping[str, str],
    submission: TCPAddress | None = None,
    changes: str = "",
) -> AsyncIterator[Postfix]:
    """The same as `made`, running."""
    async with made(
        smtp=smtp, fragments=fragments, ports=ports, settings=settings, submission=submission, changes=changes
    ) as postfix:
        try:
            await _start(postfix)
            yield postfix
        finally:
            await _stop(postfix)


async def run(*words: str, directory: Path | None = None, environment: Mapping[str, str] | None = None) -> str:
    """Runs a command: what it wrote, standard error included. Fails where the command does."""
    process = await asyncio.create_subprocess_exec(
        *words,
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
        cwd=directory,
        env={**os.environ, **(environment or {})},
    )
    output, _ = await process.communicate()
    assert process.returncode == 0, f"{' '.join(words)}: {process.returncode}\n{output.decode()}"
    return output.decode()


async def _apply(directory: Path, fragment: str, ports: Mapping[str, str], services: Mapping[str, str]) -> None:
    """Does what the comments of a fragment's main.cf say, with its ports and services replaced."""
    copy = directory / fragment
    copy.mkdir()
    for source in (FRAGMENTS / fragment).iterdir():
        text = source.read_text()
        for service, there in services.items():
            text = re.sub(rf"\b{service}\b", there, text)
        (copy / source.name).write_text(re.sub(r"\b\d{5}\b", lambda match: ports.get(match[0], match[0]), text))
    commands = "\n".join(re.findall(r"^#     (.*)$", (copy / "main.cf").read_text(), re.MULTILINE))
    said = await change(directory, commands, beside=copy)
    assert not said, said


async def change(directory: Path, commands: str, *, beside: Path | None = None) -> str:
    """Runs shell commands, postconf above all, on the configuration in `directory`/etc: what they wrote."""
    path = f"{Path(__file__).parent / 'bin'}:{os.environ['PATH']}"
    environment = {"MAIL_CONFIG": str(directory / "etc"), "PATH": path}
    wrote = await run("sh", "-ec", commands, directory=beside or directory, environment=environment)
    _age(directory)
    return wrote


def _age(directory: Path) -> None:
    """Has all files look a minute old: Postfix waits for up to two seconds where one may still be written."""
    before = time.time() - 60
    for path in directory.rglob("*"):
        if path.is_file():
            os.utime(path, (before, before))


@cache
def _installed() -> list[str]:
    """Postfix's version, where its daemons are, and the group of the directories into which users' programs write."""
    names = ["mail_version", "daemon_directory", "setgid_group"]
    return subprocess.run(["postconf", "-dh", *names], capture_output=True, text=True, check=True).stdout.split("\n")[
        :3
    ]


async def _start(postfix: Postfix) -> None:
    """As `postfix start` does, but for its look at all files, which takes longer than many a test."""
    _, daemons, group = _installed()
    for name, mode, shared in _QUEUE:
        directory = postfix.directory / "queue" / name
        directory.mkdir()
        if name != "pid":
            shutil.chown(directory, "postfix", group if shared else None)
        directory.chmod(mode)
    await run(f"{daemons}/master", "-w", environment={"MAIL_CONFIG": str(postfix.config)})


async def _stop(postfix: Postfix) -> None:
    """As `postfix abort` does: ends all its processes, and waits until its lock is free."""
    master = postfix.directory / "queue" / "pid" / "master.pid"
    if not master.exists() or not await _runs(postfix):
        return
    os.kill(int(master.read_text()), signal.SIGTERM)
    async with asyncio.timeout(DEADLINE_S):
        while await _runs(postfix):
            await asyncio.sleep(POLL_S)


async def _runs(postfix: Postfix) -> bool:
    """Whether somebody has its lock."""
    process = await asyncio.create_subprocess_exec(
        f"{_installed()[1]}/master", "-t",
        env={**os.environ, "MAIL_CONFIG": str(postfix.config)}, stderr=asyncio.subprocess.DEVNULL,
    )  # fmt: skip
    return await process.wait() != 0
