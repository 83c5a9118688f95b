"""A real Dovecot on free ports: IMAP over TLS and with STARTTLS, LMTP to deliver, users out of a file.
Standard: all files in one directory of its own, certificates by trustme, stopped and gone after the test.
"""

from __future__ import annotations

import asyncio
import imaplib
import os
import shutil
import smtplib
import ssl
import tempfile
import time
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest
import trustme

from relay.config import TCPAddress
from tests.testlib.ports import free_addresses
from tests.testlib.postfix import DEADLINE_S, run

PASSWORD = 'tr"ick\\y pass wörd'
SETTINGS = """\
dovecot_config_version = {version}
dovecot_storage_version = {version}
base_dir = {directory}/run
state_dir = {directory}/state
log_path = {directory}/log
protocols = imap lmtp
listen = 127.0.0.1
ssl = required
ssl_server_cert_file = {directory}/certificate.pem
ssl_server_key_file = {directory}/key.pem
auth_mechanisms = plain login
mail_driver = maildir
mail_path = ~/Maildir
mail_max_userip_connections = 100
imap_idle_notify_interval = 1 min
service imap-login {{
  inet_listener imap {{
    port = {starttls}
  }}
  inet_listener imaps {{
    port = {tls}
    ssl = yes
  }}
}}
service lmtp {{
  inet_listener lmtp {{
    port = {lmtp}
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
protocol imap {{
  mail_plugins {{
    quota = yes
    imap_quota = yes
  }}
}}
namespace inbox {{
  inbox = yes
}}
{more}
"""


def _why_not() -> str:
    if shutil.which("dovecot") is None or not Path("/usr/lib/dovecot/imap").exists():
        return "Dovecot is not installed (apt-get install dovecot-imapd dovecot-lmtpd)"
    return "" if os.geteuid() == 0 else "starting Dovecot needs root"


requires_dovecot = pytest.mark.skipif(bool(_why_not()), reason=_why_not() or "Dovecot can be started")
"""For tests that start Dovecot: they are skipped, with the reason, where that is not possible."""


@dataclass(frozen=True)
class Dovecot:
    """One instance; `tls` is its IMAP over TLS, `starttls` its IMAP port, `ca` whose certificate it has."""

    directory: Path
    tls: TCPAddress
    starttls: TCPAddress
    lmtp: TCPAddress
    ca: Path

    @property
    def log(self) -> str:
        """All that it has logged."""
        return (self.directory / "log").read_text()

    def deliver(self, *messages: bytes, user: str = "ben") -> None:
        """Delivers over LMTP, as a mail server does."""
        with smtplib.LMTP(*self.lmtp) as client:
            for message in messages:
                client.sendmail("ann@alice.example", [user], message)

    def put(self, messages: Sequence[bytes], user: str = "ben") -> None:
        """Puts messages into the INBOX's directory, which is quick; as yet nobody has logged in."""
        maildir = self.directory / "homes" / user / "Maildir"
        for name in ("cur", "new", "tmp"):
            (maildir / name).mkdir(parents=True)
        for number, message in enumerate(messages):
            (maildir / "new" / f"{1_700_000_000 + number}.{number}.test").write_bytes(message.replace(b"\r\n", b"\n"))
        for path in [self.directory / "homes" / user, *(self.directory / "homes" / user).rglob("*")]:
            shutil.chown(path, "dovecot", "dovecot")

    @contextmanager
    def client(self, user: str = "ben", folder: str = "INBOX") -> Iterator[imaplib.IMAP4_SSL]:
        """Another IMAP client of the user, of other make."""
        tls = ssl.create_default_context(cafile=str(self.ca))
        with imaplib.IMAP4_SSL("localhost", self.tls.port, ssl_context=tls) as client:
            client.authenticate("PLAIN", lambda _: f"\0{user}\0{PASSWORD}".encode())
            if client.select(folder)[0] != "OK":
                client.create(folder)
                client.select(folder)
            yield client

    def messages(self, folder: str = "INBOX", user: str = "ben") -> list[bytes]:
        """All messages in a folder, as they are stored."""
        with self.client(user, folder) as client:
            return _all(client)

    async def until(self, number: int, folder: str = "INBOX", user: str = "ben") -> list[bytes]:
        """Waits until a folder has just so many messages."""
        return await asyncio.to_thread(self._wait, number, lambda found: len(found) == number, folder, user)

    async def until_so(
        self, true: Callable[[list[bytes]], bool], folder: str = "INBOX", user: str = "ben"
    ) -> list[bytes]:
        """Waits until something is true of the messages in a folder."""
        return await asyncio.to_thread(self._wait, None, true, folder, user)

    def _wait(self, number: int | None, true: Callable[[list[bytes]], bool], folder: str, user: str) -> list[bytes]:
        """All over one connection; the messages are fetched when there are others, and `number` of them if it is given."""
        deadline, before = time.monotonic() + DEADLINE_S, None
        with self.client(user, folder) as client:
            while time.monotonic() < deadline:
                there = int(client.select(folder)[1][0] or b"0")
                state = (there, client.response("UIDNEXT")[1])
                if state != before and number in (None, there) and true(found := _all(client)):
                    return found
                before = state
                time.sleep(0.02)
        raise TimeoutError(f"{folder} is not as it should be after {DEADLINE_S} s")

    async def flagged(self, flag: str, user: str = "ben") -> None:
        """Waits until a message in the INBOX has a flag."""

        def search() -> list[bytes]:
            with self.client(user) as client:
                found: list[bytes] = client.search(None, "KEYWORD", flag)[1]
                return found[0].split()

        async with asyncio.timeout(DEADLINE_S):
            while not await asyncio.to_thread(search):
                await asyncio.sleep(0.02)


def _all(client: imaplib.IMAP4_SSL) -> list[bytes]:
    _, found = client.uid("FETCH", "1:*", "(BODY.PEEK[])")
    return [part[1] for part in found if isinstance(part, tuple)]


@asynccontextmanager
async def dovecot(*, users: Sequence[str] = ("ben",), more: str = "") -> AsyncIterator[Dovecot]:
    """An instance that runs; `more` are further settings."""
    directory = Path(tempfile.mkdtemp(prefix="dovecot-"))
    try:
        directory.chmod(0o755)
        (directory / "homes").mkdir()
        shutil.chown(directory / "homes", "dovecot", "dovecot")
        authority = trustme.CA()
        authority.cert_pem.write_to_path(directory / "ca.pem")
        issued = authority.issue_cert("localhost", "127.0.0.1")
        issued.private_key_pem.write_to_path(directory / "key.pem")
        for number, blob in enumerate(issued.cert_chain_pems):
            blob.write_to_path(directory / "certificate.pem", append=number > 0)
        lines = [f"{user}:{{PLAIN}}{PASSWORD}::::::\n" for user in users]
        (directory / "users").write_text("".join(lines))
        tls, starttls, lmtp = free_addresses(3)
        version = (await run("dovecot", "--version")).split("-")[0].split()[0]
        config = directory / "dovecot.conf"
        config.write_text(
            SETTINGS.format(
                directory=directory, tls=tls.port, starttls=starttls.port, lmtp=lmtp.port, more=more, version=version
            )
        )
        process = await asyncio.create_subprocess_exec("dovecot", "-F", "-c", str(config))
        server = Dovecot(directory, tls, starttls, lmtp, directory / "ca.pem")
        try:
            await _answers(server, process)
            yield server
        finally:
            if process.returncode is None:
                process.terminate()
            await process.wait()
    finally:
        shutil.rmtree(directory)


async def _answers(server: Dovecot, process: asyncio.subprocess.Process) -> None:
    async with asyncio.timeout(DEADLINE_S):
        while True:
            assert process.returncode is None, server.log
            try:
                for address in (server.tls, server.lmtp):
                    _, writer = await asyncio.open_connection(*address)
                    writer.close()
            except OSError:
                await asyncio.sleep(0.02)
            else:
                return
