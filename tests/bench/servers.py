"""The servers that mail passes in a benchmark: relays of two sites with development KMEs, pass-throughs, a Postfix.
Each is started when it is first asked for, and runs on until all end; all files lie in one directory that is gone then.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import re
import shlex
import tempfile
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Self

from relay.identity import Identity, create_identity, peer_document
from relay.levels import AES, SEALING, SMIME
from relay.smime import CertificateDirectory
from tests.bench.cases import CONNECTIONS
from tests.bench.processes import BenchServer, command, server
from tests.bench.result import BenchmarkFailed
from tests.bench.sink import BenchSink
from tests.bench.traffic import Handover, mails_of, send
from tests.testlib import postfix
from tests.testlib.ports import free_address, free_addresses
from tests.testlib.smime import certified, key_pem, pem, write_secret

STOCK_OF_KEYS = 100_000_000
"""Number of 256-bit keys at the KMEs at the start. None is made later, so that this takes no time from mail."""
_RELAY_TOML = """\
[site]
name = "{site}"
domains = ["{site}.example"]
sae_id = "{sae}"
hostname = "relay.{site}.example"

{direction}
[policies]
directory = "{files}/policies"

[store]
database = "relay.db"
secret = "site.secret"

[identity]
directory = "{files}/{site}-identity"
peers_directory = "{files}/{site}-peers"

[log]
format = "json"

[kmes.km]
url = "{kme}"
group = "alice-bob"
ca = "{files}/kme/ca.pem"
certificate = "{files}/kme/sae-{sae}.pem"
key = "{files}/kme/sae-{sae}.key"

[peers.{peer}]
domains = ["{peer}.example"]
sae_id = "{peer_sae}"
kme_groups = ["alice-bob"]

[[smime.keys]]
certificate = "{files}/{site}-smime.pem"
key = "{files}/{site}-smime.key"

[limits]
workers = {workers}
"""
_OUTGOING = (
    '[outgoing]\nlisten = "127.0.0.1:0"\nlmtp = "127.0.0.1:0"\nmilter = "127.0.0.1:0"\nnext_hop = "127.0.0.1:{}"\n'
)
_INCOMING = '[incoming]\nlisten = "127.0.0.1:0"\nnext_hop = "127.0.0.1:{}"\n'
_WATCHED = '\n[status]\nlisten = "127.0.0.1:0"\n'
_NOT_WATCHED = "\n[audit]\nevery_mail = false\n"
_MAIN_CF = {
    "message_size_limit": "75000000",
    "mailbox_size_limit": "0",
    "virtual_mailbox_limit": "0",
    "milter_default_action": "tempfail",
    "qumail_destination_concurrency_negative_feedback": "0",
    "qumail_destination_concurrency_failed_cohort_limit": "0",
}
_QUMAIL = "qumail/unix=qumail unix - - n - - lmtp -o lmtp_line_length_limit=0 -o lmtp_send_xforward_command=yes"
_BACK = "-o content_filter= -o receive_override_options=no_header_body_checks,no_address_mappings,no_milters"
_NO_KEY = re.compile(r"\b4\.7\.[15]\b")
"""How a relay says that there is no quantum key, or that policy holds what cannot have the level that it wants. Which
of the two it is, and why, stands in its log."""
_TOLD_OF_LATE = 20_000
"""Maximum number of log characters shown for a mail that was not accepted."""
_TOO_LOW = "key pool too low"
"""Error text of the development KMEs for an empty pool."""


class KeysRunOut(BenchmarkFailed):
    """The KMEs have not enough keys for such mails."""


class Servers:
    """All of them, by name, as an async context manager; mail ends at the local port `sink`, or in `bag`."""

    def __init__(self) -> None:
        self.sink = free_address().port
        self.bag = BenchSink(whole=True)
        self._running: dict[str, BenchServer] = {}
        self._stack = AsyncExitStack()

    async def __aenter__(self) -> Self:
        """Raises BenchmarkFailed."""
        directory = self._stack.enter_context(tempfile.TemporaryDirectory(prefix="qumail-relay-bench-"))
        self.directory = Path(directory)
        await self._stack.enter_async_context(self.bag)
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._stack.aclose()

    async def port(self, listener: str) -> int:
        """Where a listener is: `server` or `server:listener`. Raises BenchmarkFailed."""
        name, _, listening = listener.partition(":")
        return (await self.server(name)).ports[listening]

    async def server(self, name: str) -> BenchServer:
        """The server of this name, which runs. Raises BenchmarkFailed."""
        if name not in self._running:
            self._running[name] = await self._started(name)
        return self._running[name]

    async def sealed(self, size: int, number: int, recipient: str) -> list[bytes]:
        """`number` mails of `size` bytes as Alice's relay sends them out. Raises BenchmarkFailed."""
        port, mails = await self.port("alice-to-bag"), itertools.islice(mails_of(size), number)
        connections = next(most for least, most in sorted(CONNECTIONS.items(), reverse=True) if size >= least)
        sent = await send(port, mails, connections=connections, recipient=recipient)
        sealed = self.bag.taken()
        self.accepted(sent, f"sealing {size} bytes for {recipient} beforehand")
        return sealed

    def accepted(self, sent: Handover, title: str) -> Handover:
        """What is given. Raises KeysRunOut or BenchmarkFailed where a mail was not accepted."""
        if not sent.fault:
            return sent
        logs = {name: one.log.read_text(errors="replace") for name, one in self._running.items() if one.log}
        too_low = any(_TOO_LOW in said[-_TOLD_OF_LATE:] for said in logs.values())
        kind = KeysRunOut if _NO_KEY.search(sent.fault) and too_low else BenchmarkFailed
        ends = "\n".join(f"{name}: {said[-600:]}" for name, said in logs.items())
        raise kind(f"{title}: a mail was not accepted: {sent.fault}\n{ends}")

    async def _started(self, name: str) -> BenchServer:
        enter = self._stack.enter_async_context
        match name:
            case "sink":
                return BenchServer({"": self.sink})
            case "pass-through":
                return await enter(server("tests.bench.baselines", "smtp", str(self.sink)))
            case "pass-through-lmtp":
                return await enter(server("tests.bench.baselines", "lmtp", str(self.sink)))
            case "two-pass-throughs":
                return await enter(server("tests.bench.baselines", "smtp", str(await self.port("pass-through"))))
            case "bare-milter":
                return await enter(server("tests.bench.baselines", "milter"))
            case "alice" | "alice-idle":
                return await self._relay(name, _OUTGOING.format(self.sink))
            case "alice-2-workers":
                return await self._relay(name, _OUTGOING.format(self.sink), workers=2)
            case "alice-watched":
                return await self._relay(name, _OUTGOING.format(self.sink), tables=_WATCHED)
            case "alice-not-watched":
                return await self._relay(name, _OUTGOING.format(self.sink), tables=_NOT_WATCHED)
            case "alice-then-bob":
                return await self._relay(name, _OUTGOING.format(await self.port("bob")))
            case "alice-to-bag":
                return await self._relay(name, _OUTGOING.format(self.bag.port))
            case "alice-behind-postfix":
                return await self._relay(name, _OUTGOING.format(await self.port("postfix-back")))
            case "bob":
                return await self._relay(name, _INCOMING.format(self.sink))
            case "bob-2-workers":
                return await self._relay(name, _INCOMING.format(self.sink), workers=2)
            case "kmes":
                return await self._kmes()
            case "postfix-back":
                return BenchServer({"": free_address().port})
            case "postfix":
                return await self._postfix()
        raise AssertionError(name)

    async def config_file(self, name: str, direction: str, *, workers: int = 1, tables: str = "") -> Path:
        """The configuration of a relay of Alice's site or Bob's, as its `name` begins, in a directory of its own.

        It ends with `tables`.
        """
        kmes = self.directory / "kme" / "endpoints.json"
        await self.server("kmes")
        site, sae, kme, peer, peer_sae = ("alice", "2", "KM1", "bob", "1")
        if name.startswith("bob"):
            site, sae, kme, peer, peer_sae = ("bob", "1", "KM2", "alice", "2")
        directory = self.directory / name
        directory.mkdir(mode=0o700)
        (directory / "relay.toml").write_text(
            _RELAY_TOML.format(
                workers=workers, site=site, sae=sae, peer=peer,
                peer_sae=peer_sae, kme=json.loads(kmes.read_text())[kme], files=self.directory, direction=direction,
            )
            + tables
        )  # fmt: skip
        return directory / "relay.toml"

    async def _relay(self, name: str, direction: str, *, workers: int = 1, tables: str = "") -> BenchServer:
        config_file = await self.config_file(name, direction, workers=workers, tables=tables)
        ready, log = config_file.with_name("ready"), config_file.with_name("relay.log")
        serve = command(
            "serve", "--config", str(config_file), "--ready-file", str(ready), ready_file=ready, log_file=log
        )
        text, pid = await self._stack.enter_async_context(serve)
        words = [line.split() for line in text.splitlines()]
        listeners = {
            entry.partition("_")[2]: int(address.rpartition(":")[2]) for entry, address in words if entry != "status"
        }
        return BenchServer(listeners, pid, log)

    async def _kmes(self) -> BenchServer:
        """The KMEs, and what the sites have in common: policies, and certificates for levels pqc and rsa."""
        (self.directory / "policies" / "bob.example").mkdir(parents=True)
        for file, level in [("default", AES.name), *((f"bob.example/{level}", level) for level in (*SEALING, SMIME))]:
            (self.directory / "policies" / f"{file}.toml").write_text(f'levels = ["{level}"]\n')
        alice, bob = await asyncio.gather(*(asyncio.to_thread(self._identity, site) for site in ("alice", "bob")))
        for site, sae, identity, peer in (("alice", "2", alice, "bob"), ("bob", "1", bob, "alice")):
            document = peer_document(
                self.directory / f"{site}-identity", identity, name=site, domains=[f"{site}.example"], sae_id=sae,
                kme_groups=["alice-bob"], levels=SEALING,
            )  # fmt: skip
            pinned = self.directory / f"{peer}-peers" / f"{site}.json"
            pinned.parent.mkdir(mode=0o700)
            pinned.touch(mode=0o600)
            pinned.write_bytes(document)
        for name in ("alice", "bob"):
            own = certified(f"securemail@{name}.example", kind="rsa-4096")
            (self.directory / f"{name}-smime.pem").write_bytes(pem(own.certificate))
            write_secret(self.directory / f"{name}-smime.key", key_pem(own))
            CertificateDirectory(self.directory / "certificates").put(f"{name}.example", [own.certificate])
        state = self.directory / "kme"
        state.mkdir(mode=0o700)
        kmes = command(
            "kme", "--host", "127.0.0.1", "--port", "0", "--port", "0", "--state", str(state), "--key-rate", "0",
            "--stored-keys", str(STOCK_OF_KEYS), "--lifetime", "86400",
            ready_file=state / "endpoints.json", log_file=self.directory / "kme.log",
        )  # fmt: skip
        _, pid = await self._stack.enter_async_context(kmes)
        return BenchServer({}, pid)

    def _identity(self, site: str) -> Identity:
        directory = self.directory / f"{site}-identity"
        directory.mkdir(mode=0o700)
        return create_identity(directory, name=site, domains=[f"{site}.example"])

    async def _postfix(self) -> BenchServer:
        back = await self.port("postfix-back")
        null = await self._stack.enter_async_context(server("tests.bench.baselines", "lmtp", str(back)))
        bare, relay = await self.port("bare-milter"), await self.server("alice-behind-postfix")
        options = {
            "alone": "",
            "null": f"-o content_filter=qumail:[127.0.0.1]:{null.ports['']}",
            "lmtp": f"-o content_filter=qumail:[127.0.0.1]:{relay.ports['lmtp']}",
            "bare": f"-o smtpd_milters=inet:127.0.0.1:{bare}",
            "milter": f"-o smtpd_milters=inet:127.0.0.1:{relay.ports['milter']}",
        }
        ports = dict(zip(options, (each.port for each in free_addresses(len(options))), strict=True))
        ways_in = {ports[listener]: option for listener, option in options.items()} | {back: _BACK}
        services = [
            f"127.0.0.1:{port}/inet=127.0.0.1:{port} inet n - n - - smtpd {how}" for port, how in ways_in.items()
        ]
        changes = shlex.join(["postconf", "-M", _QUMAIL, *services])
        settings = {**_MAIN_CF, "default_transport": f"smtp:[127.0.0.1]:{self.sink}"}
        running = postfix.running(smtp=free_address(), fragments=(), ports={}, settings=settings, changes=changes)
        await self._stack.enter_async_context(running)
        return BenchServer(ports)
