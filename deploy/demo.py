"""The demonstration: development KMEs, Alice's and Bob's relays, one real message, and what the wire saw.
Standard: exit status 0 and `DEMO OK` only when both SHA-256 are equal and the wire held none of the text.
"""

from __future__ import annotations

import argparse
import asyncio
import base64
import contextlib
import hashlib
import json
import secrets
import signal
import smtplib
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from email.message import EmailMessage
from email.policy import SMTP as SMTP_POLICY
from functools import partial
from pathlib import Path
from typing import Any

from aiosmtpd.smtp import SMTP, Envelope, Session
from rich.columns import Columns
from rich.console import Console, Group
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from relay.config import TCPAddress
from relay.identity import create_identity, peer_document
from relay.levels import ON_TOP, QUANTUM

LEVELS = {
    "otp": "one-time pad of quantum key; no computation breaks it",
    "aes": "AES-256-GCM under a quantum key",
    "pqc": "ML-KEM-1024, ML-DSA-87, each with P-384, and AES-256-GCM under a quantum key",
    "rsa": "RSA-4096, RSASSA-PSS, and AES-256-GCM under a quantum key",
}
SECRET = "The vault opens at 06:30, code 7-3-9."
SHOWN_LINES, SHOWN_COLUMNS = 26, 62
"""Maximum number of lines shown of a message, and of characters of a line."""
OK = "DEMO OK: at all four levels Bob received byte for byte what Alice sent; the wire saw ciphertext"
RELAY_TOML = """\
[site]
name = "{name}"
domains = ["{name}.example"]
sae_id = "{sae}"
hostname = "relay.{name}.example"

[{direction}]
listen = "127.0.0.1:0"
next_hop = "{next_hop}"

[policies]
directory = "policies"

[store]
database = "relay.db"
secret = "site.secret"

[log]
format = "json"

[identity]
directory = "identity"
peers_directory = "peers"

[kmes.km]
url = "{url}"
group = "alice-bob"
ca = "{state}/ca.pem"
certificate = "{state}/sae-{sae}.pem"
key = "{state}/sae-{sae}.key"

[peers.{peer}]
domains = ["{peer}.example"]
sae_id = "{peer_sae}"
kme_groups = ["alice-bob"]
"""


class DemoError(Exception):
    """Something did not happen as it should; the text says what."""


@dataclass
class Wire:
    """An SMTP server that keeps each message and, where `onward` is set, hands it on unchanged."""

    onward: TCPAddress | None = None
    seen: list[bytes] = field(default_factory=list)
    address: TCPAddress = TCPAddress("127.0.0.1", 0)

    @asynccontextmanager
    async def listening(self) -> AsyncIterator[Wire]:
        server = await asyncio.get_running_loop().create_server(
            lambda: SMTP(self, hostname="wire.example", data_size_limit=None), "127.0.0.1", 0
        )
        self.address = TCPAddress(*server.sockets[0].getsockname()[:2])
        try:
            yield self
        finally:
            server.close()

    async def handle_DATA(self, server: Any, session: Session, envelope: Envelope) -> str:
        assert isinstance(envelope.content, bytes)
        if self.onward is not None:
            reply = await send(self.onward, envelope.mail_from or "", envelope.rcpt_tos, envelope.content)
            if not reply.startswith("250"):
                return reply
        self.seen.append(envelope.content)
        return "250 2.0.0 Ok"


async def send(address: TCPAddress, sender: str, recipients: list[str], message: bytes) -> str:
    """Submits a message and gives the reply to its content."""

    def sent() -> str:
        with smtplib.SMTP(address.host, address.port, "mail.alice.example", timeout=60) as client:
            client.ehlo()
            client.mail(sender)
            for recipient in recipients:
                client.rcpt(recipient)
            code, text = client.data(message)
            return f"{code} {text.decode()}"

    return await asyncio.to_thread(sent)


def a_real_message() -> bytes:
    """Multipart, with an attachment and unencoded 8-bit text, as a mail program would send it."""
    mail = EmailMessage(policy=SMTP_POLICY.clone(cte_type="8bit"))
    mail["From"] = "Alice <alice@alice.example>"
    mail["To"] = "Bob <bob@bob.example>"
    mail["Subject"] = "Schlüsselübergabe: vault at 06:30"
    mail["Date"] = "Wed, 25 Nov 2026 10:00:00 +0000"
    mail["Message-ID"] = f"<{secrets.token_hex(8)}@alice.example>"
    mail.set_content(f"Dear Bob,\n\n{SECRET}\nViele Grüße aus Zürich ☕\n\nAlice\n", cte="8bit")
    mail.add_attachment(secrets.token_bytes(3000), "application", "octet-stream", filename="plan.bin")
    return mail.as_bytes()


@asynccontextmanager
async def process(log: Path, *arguments: str) -> AsyncIterator[asyncio.subprocess.Process]:
    """`qumail-relay ...` as its own process, stopped at the end."""
    with log.open("wb") as file:
        running = await asyncio.create_subprocess_exec(
            sys.executable, "-P", "-m", "relay", *arguments, stdout=file, stderr=asyncio.subprocess.STDOUT
        )
    try:
        yield running
    finally:
        if running.returncode is None:
            running.terminate()
        await running.wait()


async def ready(running: asyncio.subprocess.Process, path: Path, log: Path, what: str) -> str:
    """Waits for the file that says that a server listens, and gives its text."""
    for _ in range(600):
        if path.exists():
            return path.read_text()
        if running.returncode is not None:
            raise DemoError(f"{what} did not start: {log.read_text().strip().splitlines()[-1]}")
        await asyncio.sleep(0.05)
    raise DemoError(f"{what} did not start within 30 s; its log is {log}")


async def relay(
    stack: AsyncExitStack, console: Console, work: Path, name: str, next_hop: TCPAddress, url: str
) -> TCPAddress:
    """Starts one site's relay in its own directory, which is complete; gives where it listens."""
    sae, peer, peer_sae, direction = (
        ("2", "bob", "1", "outgoing") if name == "alice" else ("1", "alice", "2", "incoming")
    )
    directory = work / name
    (directory / "relay.toml").write_text(
        RELAY_TOML.format(
            name=name,
            sae=sae,
            peer=peer,
            peer_sae=peer_sae,
            direction=direction,
            next_hop=next_hop,
            url=url,
            state=work / "kme",
        )
    )
    begins(console, f"starting {name.title()}'s relay")
    listening, log = directory / "ready", directory / "relay.log"
    arguments = ("serve", "--config", str(directory / "relay.toml"), "--ready-file", str(listening))
    running = await stack.enter_async_context(process(log, *arguments))
    text = await ready(running, listening, log, f"{name.title()}'s relay")
    host, port = text.split()[1].rsplit(":", 1)
    console.print(f"  [green]✓[/] {name.title()}'s relay on {host}:{port}")
    return TCPAddress(host, int(port))


def begins(console: Console, what: str) -> None:
    """Announces what takes a moment."""
    console.print(f"    {what} ...", style="dim")


def prepare_sites(work: Path, begin: Callable[[str], None]) -> None:
    """Both sites' policies and certificates; each gets the other's peer document, as after `identity import`.

    `begin` is called before each key is made: RSA takes seconds.
    """
    for name in ("alice", "bob"):
        policies = work / name / "policies"
        (policies / "bob.example").mkdir(parents=True)
        (policies / "default.toml").write_text('levels = ["aes"]\n')
        for level in LEVELS:
            listed = level if level in QUANTUM else f"{level}+{ON_TOP}"
            (policies / "bob.example" / f"{level}.toml").write_text(f'levels = ["{listed}"]\n')
        (work / name / "peers").mkdir(mode=0o700)
    for name, peer, sae in (("alice", "bob", "2"), ("bob", "alice", "1")):
        domains = [f"{name}.example"]
        keys = work / name / "identity"
        progress = partial(_key_begun, begin, name.title())
        identity = create_identity(keys, name=name, domains=domains, progress=progress)
        document = peer_document(
            keys,
            identity,
            name=name,
            domains=domains,
            sae_id=sae,
            kme_groups=["alice-bob"],
            levels=tuple(LEVELS),
        )
        pinned = work / peer / "peers" / f"{name}.json"
        pinned.touch(mode=0o600)
        pinned.write_bytes(document)


def _key_begun(begin: Callable[[str], None], whose: str, what: str) -> None:
    begin(f"{whose}: making {what}")


def event(log: Path, name: str) -> dict[str, Any]:
    """The last event of this name in a relay's log."""
    for line in reversed(log.read_text().splitlines()):
        if line.startswith("{") and (found := json.loads(line)).get("event") == name:
            return dict(found)
    raise DemoError(f"{log} has no event {name}")


async def journey(console: Console, work: Path, stay: bool, kme_ports: list[str]) -> None:
    """Starts everything, sends a message at each level, shows what happened; raises DemoError if it went wrong."""
    async with AsyncExitStack() as stack:
        console.rule("[bold]QuMail Relay[/]: a message travels from Alice to Bob, at each of the four levels")
        begins(console, "starting two development key servers")
        state, log = work / "kme", work / "kme.log"
        kmes = await stack.enter_async_context(process(log, "kme", "--state", str(state), *kme_ports))
        urls = json.loads(await ready(kmes, state / "endpoints.json", log, "the development key servers"))
        console.print(f"  [green]✓[/] development KMEs, mutual TLS: {urls['KM1']} and {urls['KM2']} (not quantum)")
        await asyncio.to_thread(prepare_sites, work, lambda what: begins(console, what))
        console.print(
            "  [green]✓[/] certificates of both sites (ML-KEM-1024 and ML-DSA-87 with P-384, RSA-4096), exchanged"
        )
        mailbox = await stack.enter_async_context(Wire().listening())
        bob = await relay(stack, console, work, "bob", mailbox.address, urls["KM2"])
        wire = await stack.enter_async_context(Wire(onward=bob).listening())
        alice = await relay(stack, console, work, "alice", wire.address, urls["KM1"])

        table = Table(title="One message at each level", caption="the same message, byte for byte, came out each time")
        for heading in ("level", "what protects it", "quantum bits", "bytes", "on the wire", "time"):
            table.add_column(heading, justify="left" if heading.startswith(("level", "what")) else "right")
        for level in LEVELS:
            message = a_real_message()
            begins(console, f"sending a message at level {level}")
            began = time.monotonic()
            reply = await send(alice, "alice@alice.example", [f"{level}@bob.example"], message)
            taken = time.monotonic() - began
            if not reply.startswith("250"):
                raise DemoError(f"Alice's relay answered {reply} at level {level}; see {work}")
            sealed, arrived = wire.seen[-1], mailbox.seen[-1]
            sent = event(work / "alice/relay.log", "sealed_and_sent")
            received = event(work / "bob/relay.log", "opened_and_sent")
            opened = judge(message, sealed, arrived, sent, received)
            if level == "aes":
                show(console, message, sealed, arrived)
                compare(console, message, opened, sent, received)
            bits = f"{sent['quantum_bits']:,}"
            table.add_row(level, LEVELS[level], bits, str(len(message)), str(len(sealed)), f"{taken * 1000:.0f} ms")
        console.print(table)
        if stay:
            await until_stopped(console, alice, work)


def show(console: Console, message: bytes, sealed: bytes, opened: bytes) -> None:
    """The three views of the message beside each other."""

    def panel(title: str, data: bytes, style: str) -> Panel:
        lines = [line.expandtabs()[:SHOWN_COLUMNS] for line in data.decode("utf-8", "replace").splitlines()]
        if len(lines) > SHOWN_LINES:
            lines = [*lines[: SHOWN_LINES - 1], f"... {len(data)} bytes in all"]
        return Panel(Text("\n".join(lines)), title=title, border_style=style, width=SHOWN_COLUMNS + 6)

    console.print()
    views = [
        panel("what Alice sent", message, "cyan"),
        panel("what the wire saw", sealed, "red"),
        panel("what Bob received", opened, "green"),
    ]
    if console.width >= 3 * (SHOWN_COLUMNS + 6) + 2:  # and a blank between them
        console.print(Columns(views))
    else:
        console.print(Group(*views))


def compare(console: Console, message: bytes, opened: bytes, sent: dict[str, Any], received: dict[str, Any]) -> None:
    """Digests and keys of both sides, in one table."""
    table = Table(title="Both sides", show_header=True)
    for heading in ("", "Alice", "Bob"):
        table.add_column(heading, overflow="fold")
    table.add_row("SHA-256", hashlib.sha256(message).hexdigest(), hashlib.sha256(opened).hexdigest())
    table.add_row("key_ID", sent["key_IDs"][0], received["key_IDs"][0])
    table.add_row("protection", sent["protection"], received["protection"])
    table.add_row("bytes", str(len(message)), str(len(opened)))
    table.add_row("policy", Path(sent["policy"]).name, "")
    console.print(table)


def judge(message: bytes, sealed: bytes, arrived: bytes, sent: dict[str, Any], received: dict[str, Any]) -> bytes:
    """What Bob's relay opened; raises DemoError unless it is the message and was hidden on the way."""
    trace, mark, rest = arrived.partition(b"X-QuMail-Protection: ")
    _, _, opened = rest.partition(b"\r\n")
    if not mark or not trace.startswith(b"Received: "):
        raise DemoError("Bob's relay did not say what protected the message")
    if hashlib.sha256(message).digest() != hashlib.sha256(opened).digest():
        raise DemoError("Bob's SHA-256 is not Alice's")
    if sent["key_IDs"] != received["key_IDs"] or not sent["key_IDs"]:
        raise DemoError("the two sides used different quantum keys")
    marks = (SECRET.encode(), b"vault", b"plan.bin", base64.b64encode(SECRET.encode())[:30])
    if any(mark in sealed for mark in marks):
        raise DemoError("the wire carried something of the message in clear")
    if b"smime-type=authEnveloped-data" not in sealed:
        raise DemoError("the wire did not carry a sealed message")
    return opened


async def until_stopped(console: Console, alice: TCPAddress, work: Path) -> None:
    """Leaves everything running, for mail by hand, until Ctrl-C."""
    console.print(
        f"\nIt stays up: send to {alice.host}:{alice.port} as you like, for instance "
        "from anybody@alice.example to otp@, aes@, pqc@ or rsa@bob.example.\n"
        f"Logs and policies: {work}\nCtrl-C ends it."
    )
    stop = asyncio.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    await stop.wait()


def main() -> int:
    """Runs the demonstration; gives the exit status."""
    parser = argparse.ArgumentParser(prog="deploy/demo", description=__doc__)
    parser.add_argument("--once", action="store_true", help="end after the message instead of staying up")
    parser.add_argument("--kme-port", action="append", default=[], help="twice: other ports than 13000 and 14000")
    options = parser.parse_args()
    kme_ports = [word for port in options.kme_port for word in ("--port", port)]
    console = Console(highlight=False, width=None if sys.stdout.isatty() else 140)
    try:
        with tempfile.TemporaryDirectory(prefix="qumail-relay-demo-") as work:
            asyncio.run(journey(console, Path(work), not options.once, kme_ports))
    except KeyboardInterrupt:
        return 0
    except Exception as error:  # noqa: BLE001 - whatever went wrong, the last line says so
        with contextlib.suppress(OSError):
            print(f"DEMO FAILED: {error or type(error).__name__}", flush=True)
        return 1
    print(OK)
    return 0


if __name__ == "__main__":
    sys.exit(main())
