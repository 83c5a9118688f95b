"""How long sealed messages in a mailbox take to be opened, beside copying them with a FETCH and an APPEND each.
Standard: a Dovecot of our own (Maildir, IMAP over TLS); `qumail-relay imap once` against Python's imaplib.
"""

from __future__ import annotations

import asyncio
import json
import sys
import time
from asyncio.subprocess import PIPE
from collections.abc import Callable
from pathlib import Path

from tests.bench.figures import BenchFigures
from tests.bench.processes import process
from tests.bench.result import BenchmarkFailed
from tests.bench.servers import Servers
from tests.testlib.dovecot import PASSWORD, Dovecot, dovecot

OCTETS = 20_000

_ACCOUNT = """\
[imap.{name}]
host = "localhost"
port = {port}
ca = "{ca}"
user = "{name}@bob.example"
password_file = "password"
"""
_EMPTY = "empty"


async def measure_imap(
    servers: Servers, figures: BenchFigures, say: Callable[[str, float], None], *, rounds: int, messages: int
) -> None:
    """Each round has a mailbox to open and one to copy, of the same messages. Raises BenchmarkFailed.

    What the command takes for a mailbox with nothing in it is taken off: copying has no such start.
    """
    names = [_EMPTY, *(f"ben{number}" for number in range(rounds))]
    addresses = [f"{user}@bob.example" for user in (*names, *(f"copied-{name}" for name in names))]
    async with dovecot(users=addresses) as server:
        accounts = "".join(_ACCOUNT.format(name=name, port=server.tls.port, ca=server.ca) for name in names)
        config_file = await servers.config_file("bob-imap", accounts)
        config_file.with_name("password").touch(mode=0o600)
        config_file.with_name("password").write_text(f"{PASSWORD}\n")
        await _opened(config_file, _EMPTY)
        for number, name in enumerate(names[1:], 1):
            say(f"imap: {messages} messages, round {number} of {rounds}", 6 + messages / 70)
            sealed = await servers.sealed(OCTETS, messages, f"{name}@bob.example")
            for user in (name, f"copied-{name}"):
                server.put(sealed, f"{user}@bob.example")
            copied = await asyncio.to_thread(_copied, server, f"copied-{name}@bob.example")
            start, _ = await _opened(config_file, _EMPTY)
            seconds, opened = await _opened(config_file, name)
            if opened != messages:
                raise BenchmarkFailed(f"imap: of {messages} messages {opened} were opened")
            figures.add("IMAP, copied", "s", copied)
            figures.add("IMAP, opened", "s", seconds - start)


async def _opened(config_file: Path, account: str) -> tuple[float, int]:
    """Seconds that `imap once` takes for an account, and how many messages it opened."""
    began = time.perf_counter()
    arguments = ("imap", "once", "--config", str(config_file), "--account", account, "--json")
    async with process(sys.executable, "-m", "relay", *arguments, stdout=PIPE, stderr=PIPE) as started:
        said, complaint = await started.communicate()
    seconds = time.perf_counter() - began
    if started.returncode:
        raise BenchmarkFailed(f"`imap once` failed: {said.decode()} {complaint.decode()[-2000:]}")
    return seconds, sum(each["opened"] for each in json.loads(said))


def _copied(server: Dovecot, user: str) -> float:
    """Seconds for a FETCH and an APPEND of each message in the INBOX."""
    began = time.perf_counter()
    with server.client(user) as client:
        for uid in range(1, int(client.select("INBOX")[1][0] or 0) + 1):
            _, [fetched, *_] = client.uid("FETCH", str(uid), "(FLAGS INTERNALDATE BODY.PEEK[])")
            assert isinstance(fetched, tuple)
            client.append("INBOX", "", "", fetched[1])
    return time.perf_counter() - began
