"""Bob's relay with a quarantine, Alice who seals for Bob, and the command line beside it.
Standard: nothing is looked up behind the relay's back that a person could not see, but what lies on the disk.
"""

from __future__ import annotations

import asyncio
import importlib
import json
import sqlite3
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager, closing
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from structlog.testing import LogCapture

from relay.audit.entries import LEDGER
from relay.audit.reading import records
from relay.cli.quarantine import quarantine
from relay.config import TCPAddress
from relay.errors import RelayError
from relay.formats import mime
from relay.kme import DevelopmentKMEs
from relay.mail import Envelope, Mail, Recipient
from relay.process import assembly
from tests.testlib import mails
from tests.testlib.identities import Identities
from tests.testlib.sink import Sink
from tests.testlib.sites import ANY_SENDER, POLICIES, RelayProcess, Site, make_site, relay_process, serving

PATIENCE = "lag_patience = 0"


@pytest.fixture(autouse=True)
def _log_apart(log: LogCapture, monkeypatch: pytest.MonkeyPatch) -> None:
    """Commands run in this process: what the relay logs meanwhile must not get into what they print."""
    module = importlib.import_module("relay.cli.quarantine")  # by name it is the command
    monkeypatch.setattr(module, "configure_logging", lambda _: None)


class Bob:
    """Bob's site, whose opened mail ends in `sink`."""

    def __init__(self, site: Site, sink: Sink) -> None:
        self.site, self.sink = site, sink

    @asynccontextmanager
    async def running(self) -> AsyncIterator[TCPAddress]:
        """Bob's relay in this process: its incoming address."""
        async with serving(self.site) as addresses:
            yield addresses["incoming"]

    @asynccontextmanager
    async def process(self) -> AsyncIterator[RelayProcess]:
        """Bob's relay in a process of its own."""
        async with relay_process(self.site) as process:
            yield process

    def configure(self, change: Callable[[str], str]) -> None:
        """An edit of Bob's relay.toml."""
        text = self.site.config_file.read_text()
        changed = change(text)
        assert changed != text
        self.site.config_file.write_text(changed)

    async def command(self, *arguments: str) -> tuple[int, str, str]:
        """Exit status, standard error and standard output of `qumail-relay quarantine ...`."""
        status, err, out = await self.raw_command(*arguments)
        return status, err, out.decode()

    async def raw_command(self, *arguments: str) -> tuple[int, str, bytes]:
        """The same with octets as output. It runs in a thread, since a process takes a second to start."""
        words = [*arguments, "--config", str(self.site.config_file)]
        done = await asyncio.to_thread(CliRunner().invoke, quarantine, words)
        if isinstance(done.exception, RelayError):
            return 1, str(done.exception), done.stdout_bytes
        assert done.exception is None or isinstance(done.exception, SystemExit), done.exception
        return done.exit_code, done.stderr, done.stdout_bytes

    async def listed(self) -> list[dict[str, Any]]:
        """What `quarantine list` shows."""
        status, err, out = await self.command("list", "--json")
        assert (status, err) == (0, "")
        found: list[dict[str, Any]] = json.loads(out)
        return found

    def ledger(self) -> list[dict[str, Any]]:
        """The lines of the ledger."""
        directory = self.site.config.audit_directory
        return list(records(directory, events=LEDGER)) if directory.exists() else []

    def on_disk(self) -> bytes:
        """All that the store has written."""
        return b"".join(path.read_bytes() for path in sorted(self.site.directory.glob("relay.db*")))

    async def let_time_pass(self, seconds: float) -> None:
        """Mail that waits for its key has waited for so much longer."""
        await asyncio.to_thread(self._let_time_pass, seconds)  # the relay may be writing, by this event loop

    def _let_time_pass(self, seconds: float) -> None:
        with closing(sqlite3.connect(self.site.directory / "relay.db")) as database, database:
            database.execute("UPDATE waiting_for_keys SET waited = waited + ?", (seconds,))


@pytest.fixture
def bob(tmp_path: Path, kmes: DevelopmentKMEs, sink: Sink) -> Bob:
    """Bob, with the default settings of the quarantine; without a wait for keys that lag."""
    return Bob(
        make_site(
            tmp_path / "bob", "bob", state=kmes.state_dir, kme_url=kmes.urls[1], incoming=sink.address,
            kme_settings=PATIENCE,
        ),
        sink,
    )  # fmt: skip


Seal = Callable[..., Any]


@pytest.fixture
def seal(tmp_path: Path, kmes: DevelopmentKMEs, sink: Sink, identities: Identities) -> Seal:
    """Alice seals a message for Bob, as it arrives there; `how` is her policy."""

    async def sealed(
        message: bytes | None = None,
        how: str = POLICIES["default.toml"],
        *,
        sender: str = "ann@alice.example",
        recipients: Sequence[str] = ("ben@bob.example",),
    ) -> bytes:
        directory = tmp_path / "alice"
        if directory.exists():
            site = Site(directory)
            site.write_policies({"default.toml": how})
        else:
            site = make_site(
                directory, "alice", state=kmes.state_dir, kme_url=kmes.urls[0], outgoing=sink.address,
                policies={"default.toml": how}, peer_settings=ANY_SENDER, identities=identities,
            )  # fmt: skip
        mail = Mail(Envelope(sender, tuple(map(Recipient, recipients))), message or mails.plain())
        async with assembly.parts(site.config, prefetch=False) as parts:
            sealed = await parts.sealer.seal(mail)
        [form] = sealed.copies
        assert not form.in_clear
        return form.message

    return sealed


def changed(message: bytes, change: Callable[[bytes], bytes]) -> bytes:
    """The sealed message with its DER changed."""
    before = mime.sealed_content(message)
    after = change(before)
    assert after != before
    return mime.sealed_message(message, after)


def flipped(message: bytes) -> bytes:
    """With one bit of the ciphertext flipped."""
    return changed(message, lambda der: der[:-20] + bytes([der[-20] ^ 1]) + der[-19:])


def settings(text: str) -> Callable[[str], str]:
    """A change of relay.toml that sets [quarantine]."""
    return lambda before: f"{before}\n[quarantine]\n{text}\n"
