"""A site for a benchmark in a temporary directory: development KMEs, a relay, a pass-through, a sink, a sender.
Standard: each is a process of its own on a free port of loopback; settings are the defaults of relay.toml.
"""

from __future__ import annotations

import json
import ssl
import tempfile
import urllib.request
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from relay.bench.children import BenchmarkFailed, Child, child, command

STOCK_OF_KEYS = 10_000_000
"""What the KMEs have at the start: more than is ever used, and none comes in, so that the use can be counted."""

_RELAY_TOML = """\
[site]
name = "alice"
domains = ["alice.example"]
sae_id = "2"
hostname = "relay.alice.example"

[outgoing]
{listening}
next_hop = "127.0.0.1:{next_hop}"

[policies]
directory = "policies"

[store]
database = "relay.db"
secret = "site.secret"

[log]
format = "json"

[kmes.km1]
url = "{kme}"
group = "alice-bob"
ca = "kme/ca.pem"
certificate = "kme/sae-2.pem"
key = "kme/sae-2.key"

[peers.bob]
domains = ["bob.example"]
sae_id = "1"
kme_groups = ["alice-bob"]
"""


@dataclass(frozen=True, slots=True)
class KeyStock:
    """What the site's KME says of itself; it lies in `state` (a directory) how to ask."""

    url: str
    state: Path

    @property
    def left(self) -> int:
        """How many keys the KME could still give out (ETSI GS QKD 014, 6.1: stored_key_count)."""
        context = ssl.create_default_context(cafile=self.state / "ca.pem")
        context.load_cert_chain(self.state / "sae-2.pem", self.state / "sae-2.key")
        address = f"{self.url}/api/v1/keys/1/status"
        try:
            with urllib.request.urlopen(address, timeout=10, context=context) as answer:  # noqa: S310 - https
                return int(json.load(answer)["stored_key_count"])
        except (OSError, ValueError, KeyError) as error:
            raise BenchmarkFailed(f"the development KME does not say what it has: {error}") from error


@dataclass(frozen=True, slots=True)
class BenchSite:
    """All that runs: the ports of `relay` and `pass_through`, whom to ask, and what the relay logs."""

    relay: int
    pass_through: int
    sender: Child
    sink: Child
    keys: KeyStock
    relay_log: Path


@dataclass(frozen=True, slots=True)
class SealingRelay:
    """A relay that runs: the port of each entry by its name, and what it logs; `keys` is what its KME has."""

    ports: dict[str, int]
    log: Path
    keys: KeyStock


@contextmanager
def sealing_relay(next_hop: int, listening: str = 'listen = "127.0.0.1:0"') -> Iterator[SealingRelay]:
    """Development KMEs, and a relay at level aes that hands on to a local port; stopped at the end, files removed.

    `listening` are the settings of [outgoing] that say where mail comes in. Raises BenchmarkFailed.
    """
    with ExitStack() as stack:
        directory = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="qumail-relay-bench-")))
        state = directory / "kme"
        state.mkdir(mode=0o700)
        addresses = stack.enter_context(
            command(
                "kme", "--host", "127.0.0.1", "--port", "0", "--port", "0", "--state", str(state),
                "--key-rate", "0", "--stored-keys", str(STOCK_OF_KEYS),
                ready_file=state / "endpoints.json", log_file=directory / "kme.log",
            )
        )  # fmt: skip
        keys = KeyStock(json.loads(addresses)["KM1"], state)
        config_file, ready_file = directory / "relay.toml", directory / "ready"
        config_file.write_text(_RELAY_TOML.format(listening=listening, next_hop=next_hop, kme=keys.url))
        (directory / "policies").mkdir()
        (directory / "policies" / "default.toml").write_text('levels = ["aes"]\n')
        relay_log = directory / "relay.log"
        entries = stack.enter_context(
            command(
                "serve", "--config", str(config_file), "--ready-file", str(ready_file),
                ready_file=ready_file, log_file=relay_log,
            )
        )  # fmt: skip
        words = (line.split() for line in entries.splitlines())
        yield SealingRelay({name: int(address.rpartition(":")[2]) for name, address in words}, relay_log, keys)


@contextmanager
def bench_site() -> Iterator[BenchSite]:
    """Starts everything, and at the end stops it and removes its files. Raises BenchmarkFailed."""
    with ExitStack() as stack:
        sink = stack.enter_context(child("relay.bench.sink"))
        relay = stack.enter_context(sealing_relay(sink.greeting))
        yield BenchSite(
            relay=relay.ports["outgoing"],
            pass_through=stack.enter_context(child("relay.bench.pass_through", str(sink.greeting))).greeting,
            sender=stack.enter_context(child("relay.bench.sender")),
            sink=sink,
            keys=relay.keys,
            relay_log=relay.log,
        )
