"""How long sealed messages in a mailbox take to be opened, beside copying them with a FETCH and an APPEND each.
Standard: a Dovecot of our own (Maildir, IMAP over TLS); `qumail-relay imap once` against Python's imaplib.
"""

from __future__ import annotations

import asyncio
import imaplib
import json
import shutil
import ssl
import subprocess
import sys
import time
from asyncio.subprocess import DEVNULL, PIPE
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

from tests.bench.figures import BenchFigures
from tests.bench.postfix import free_ports
from tests.bench.processes import listens, process
from tests.bench.result import BenchmarkFailed
from tests.bench.servers import Servers

OCTETS = 20_000
PASSWORD = "of-the-benchmark"

_DOVECOT_CONF = """\
dovecot_config_version = {version}
dovecot_storage_version = {version}
base_dir = {directory}/run
state_dir = {directory}/state
log_path = {directory}/log
protocols = imap
listen = 127.0.0.1
ssl = required
ssl_server_cert_file = {kme}/km-1.pem
ssl_server_key_file = {kme}/km-1.key
mail_driver = maildir
mail_path = ~/Maildir
service imap-login {{
  inet_listener imap {{
    port = 0
  }}
  inet_listener imaps {{
    port = {port}
    ssl = yes
  }}
}}
passdb passwd-file {{
  passwd_file_path = {directory}/users
}}
userdb static {{
  fields {{
    uid = dovecot
    gid = dovecot
    home = {directory}/homes/%{{user}}
  }}
}}
first_valid_uid = 1
namespace inbox {{
  inbox = yes
}}
"""
_ACCOUNT = """\
[imap.{name}]
host = "localhost"
port = {port}
ca = "{kme}/ca.pem"
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
    [port] = free_ports(1)
    accounts = "".join(_ACCOUNT.format(name=name, port=port, kme=servers.directory / "kme") for name in names)
    config_file = await servers.config_file("bob-imap", accounts)
    config_file.with_name("password").touch(mode=0o600)
    config_file.with_name("password").write_text(f"{PASSWORD}\n")
    addresses = [f"{user}@bob.example" for user in (*names, *(f"copied-{name}" for name in names))]
    async with _dovecot(servers.directory / "dovecot", servers.directory / "kme", port, addresses):
        await _opened(config_file, _EMPTY)
        for number, name in enumerate(names[1:], 1):
            say(f"imap: {messages} messages, round {number} of {rounds}", 6 + messages / 70)
            sealed = await servers.sealed(OCTETS, messages, f"{name}@bob.example")
            for user in (name, f"copied-{name}"):
                _put(servers.directory / "dovecot" / "homes" / f"{user}@bob.example", sealed)
            copied = await asyncio.to_thread(_copied, port, servers.directory / "kme" / "ca.pem", f"copied-{name}")
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


def _copied(port: int, ca: Path, user: str) -> float:
    """Seconds for a FETCH and an APPEND of each message in the INBOX."""
    began = time.perf_counter()
    with imaplib.IMAP4_SSL("localhost", port, ssl_context=ssl.create_default_context(cafile=str(ca))) as client:
        client.login(f"{user}@bob.example", PASSWORD)
        _, [number] = client.select("INBOX")
        for uid in range(1, int(number or 0) + 1):
            _, [fetched, *_] = client.uid("FETCH", str(uid), "(FLAGS INTERNALDATE BODY.PEEK[])")
            assert isinstance(fetched, tuple)
            client.append("INBOX", "", "", fetched[1])
    return time.perf_counter() - began


def _put(home: Path, messages: Sequence[bytes]) -> None:
    """Into the INBOX's directory, which is quick; as yet nobody has logged in."""
    for name in ("cur", "new", "tmp"):
        (home / "Maildir" / name).mkdir(parents=True)
    for number, message in enumerate(messages):
        (home / "Maildir" / "new" / f"{number + 1}.bench").write_bytes(message.replace(b"\r\n", b"\n"))
    for path in (home, *home.rglob("*")):
        shutil.chown(path, "dovecot", "dovecot")


@asynccontextmanager
async def _dovecot(directory: Path, kme: Path, port: int, users: Sequence[str]) -> AsyncIterator[None]:
    """Runs while the context lasts. Raises BenchmarkFailed."""
    for each in (directory.parent, directory, directory / "homes"):
        each.mkdir(exist_ok=True)
        each.chmod(0o711)  # its own user must get through
    shutil.chown(directory / "homes", "dovecot", "dovecot")
    (directory / "users").write_text("".join(f"{user}:{{PLAIN}}{PASSWORD}::::::\n" for user in users))
    version = subprocess.run(["dovecot", "--version"], capture_output=True, text=True, check=False).stdout
    text = _DOVECOT_CONF.format(directory=directory, kme=kme, port=port, version=version.split("-")[0].split()[0])
    (directory / "dovecot.conf").write_text(text)
    async with process("dovecot", "-F", "-c", str(directory / "dovecot.conf"), stdout=DEVNULL, stderr=DEVNULL):
        await listens(port, "Dovecot (2.4 is needed)")
        yield
