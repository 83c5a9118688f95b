"""Two sites as an administrator would set them up: a relay.toml, policies and certificates in a directory.
Standard: what a test does not say is what deploy/relay.toml recommends.
"""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
from asyncio.subprocess import Process
from collections.abc import AsyncIterator, Mapping
from contextlib import ExitStack, asynccontextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from select import select

from relay.config import Config, TCPAddress, load_config
from relay.process import app
from tests.testlib import relay_command
from tests.testlib.identities import Identities
from tests.testlib.relay_command import RelayCommand, workers_of

POLICIES: Mapping[str, str] = {"default.toml": 'levels = ["aes"]\n'}

_RELAY_TOML = """\
[site]
name = "{name}"
domains = ["{name}.example"]
sae_id = "{sae}"
hostname = "relay.{name}.example"
{directions}
[policies]
directory = "policies"

[store]
database = "relay.db"
secret = "site.secret"

[log]
format = "json"

[kmes.kme]
url = "{kme_url}"
group = "alice-bob"
ca = "{state}/ca.pem"
certificate = "{state}/sae-{sae}.pem"
key = "{state}/sae-{sae}.key"
retry_attempts = 1
retry_delay = 0.05
{kme_settings}
[peers.{peer}]
domains = ["{peer}.example"]
sae_id = "{peer_sae}"
kme_groups = ["alice-bob"]
{peer_settings}"""


ANY_SENDER = 'takes_from = ["*"]'
"""In the table of a peer: mail from anybody is sealed for it."""
WORKERS = 1
"""Of so many workers is each relay whose test does not look into its process: `pytest --workers 2`."""
SOON_LOCKED_OUT = "from relay.store import store; store.BUSY_TIMEOUT_S = 0.5"
"""Run before a relay, this has it wait no longer for another who writes to its store."""


@dataclass(frozen=True)
class Site:
    """A directory with all that one relay needs."""

    directory: Path

    @property
    def config_file(self) -> Path:
        return self.directory / "relay.toml"

    @property
    def config(self) -> Config:
        return load_config(self.config_file)

    def set_workers(self, number: int) -> None:
        """Sets the number of worker processes, unless relay.toml has set it."""
        text = self.config_file.read_text()
        if number > 1 and "\nworkers =" not in text:
            text = text if "\n[limits]\n" in text else f"{text}\n[limits]\n"
            self.config_file.write_text(text.replace("\n[limits]\n", f"\n[limits]\nworkers = {number}\n"))

    def write_policies(self, policies: Mapping[str, str]) -> None:
        for name, text in policies.items():
            path = self.directory / "policies" / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)


def make_site(
    directory: Path,
    name: str,
    *,
    state: Path,
    kme_url: str,
    outgoing: TCPAddress | None = None,
    incoming: TCPAddress | None = None,
    policies: Mapping[str, str] = POLICIES,
    settings: str = "",
    kme_settings: str = "",
    peer_settings: str = "",
    identities: Identities | None = None,
) -> Site:
    """Alice (SAE 2, KM1) or Bob (SAE 1, KM2); `outgoing` and `incoming` are the next hops of each direction.

    `settings` go into both direction tables, `kme_settings` into the KME's, `peer_settings` into that of the other one.
    """
    peer, sae, peer_sae = ("bob", "2", "1") if name == "alice" else ("alice", "1", "2")
    directions = "".join(
        f'\n[{direction}]\nlisten = "127.0.0.1:0"\nnext_hop = "{next_hop}"\n{settings}\n'
        for direction, next_hop in (("outgoing", outgoing), ("incoming", incoming))
        if next_hop is not None
    )
    directory.mkdir(parents=True, exist_ok=True)
    site = Site(directory)
    site.config_file.write_text(
        _RELAY_TOML.format(
            name=name,
            sae=sae,
            peer=peer,
            peer_sae=peer_sae,
            directions=directions,
            kme_url=kme_url,
            state=state,
            kme_settings=kme_settings,
            peer_settings=f"{peer_settings}\n" if peer_settings else "",
        )
    )
    site.write_policies(policies)
    if identities is not None:
        give_identity(site, identities, name, peer)
    return site


def give_identity(site: Site, identities: Identities, name: str, peer: str) -> None:
    """The site's own keys and certificates, and the peer's document as if it had been imported."""
    own, other = (identities.alice, identities.bob) if name == "alice" else (identities.bob, identities.alice)
    shutil.copytree(own.directory, site.directory / "identity")
    (site.directory / "peers").mkdir(mode=0o700)
    pinned = site.directory / "peers" / f"{peer}.json"
    pinned.touch(mode=0o600)
    pinned.write_bytes(other.document)
    text = site.config_file.read_text()
    table = '[identity]\ndirectory = "identity"\npeers_directory = "peers"\n\n[store]'
    site.config_file.write_text(text.replace("[store]", table))


@dataclass
class RelayProcess:
    """`qumail-relay serve` as its own process, which can be killed."""

    process: RelayCommand | Process
    addresses: dict[str, TCPAddress]
    log_file: Path

    def kill(self) -> None:
        """SIGKILL to all of it but the processes that ask for keys: no goodbye. Workers have ended then."""
        with ExitStack() as stack:
            workers = []
            for pid in workers_of(self.process.pid):
                with suppress(ProcessLookupError):
                    workers.append(os.pidfd_open(pid))
                    stack.callback(os.close, workers[-1])
            self.process.kill()
            for worker in workers:
                with suppress(ProcessLookupError):
                    signal.pidfd_send_signal(worker, signal.SIGKILL)
            for worker in workers:
                select([worker], [], [], 30)  # until it is readable, the relay's ports are taken

    @property
    def log(self) -> str:
        return self.log_file.read_text()


class DidNotStart(AssertionError):
    """A relay has ended before it served."""


@asynccontextmanager
async def relay_process(
    site: Site,
    *,
    listen: Mapping[str, TCPAddress] | None = None,
    group: int | None = None,
    before: str = "",
) -> AsyncIterator[RelayProcess]:
    """A relay that serves; `listen` fixes the addresses, so that a restarted one is found again.

    `group` is the group it runs under, where root may choose; `before` is a program that it runs first.
    """
    site.set_workers(WORKERS)
    text = site.config_file.read_text()
    for name, address in (listen or {}).items():
        direction, _, lmtp = name.partition("_")
        above, table, below = text.partition(f"[{direction}]")
        setting = lmtp or "listen"
        below = below.replace(f'{setting} = "127.0.0.1:0"', f'{setting} = "{address}"', 1)
        text = above + table + below
    site.config_file.write_text(text)
    ready, log_file = site.directory / "ready", site.directory / "relay.log"
    ready.unlink(missing_ok=True)
    with log_file.open("ab") as log:
        process = await relay_command.start(
            "serve", "--config", site.config_file, "--ready-file", ready,
            stderr=log, group=group, before=before,
        )  # fmt: skip
    try:
        addresses = await read_when_ready(process, ready, log_file)
        yield RelayProcess(process, addresses, log_file)
    finally:
        if process.returncode is None:
            process.terminate()
        await process.wait()


@asynccontextmanager
async def serving(site: Site, workers: int = 0) -> AsyncIterator[dict[str, TCPAddress]]:
    """A relay that serves, in this process, which is quick; where it is to have several `workers`, in that many others.

    Without `workers` it has WORKERS.
    """
    site.set_workers(workers or WORKERS)
    config = site.config
    if config.limits.workers == 1:
        async with app.running(config) as addresses:
            yield addresses
    else:
        async with relay_process(site) as relay:
            yield relay.addresses


async def read_when_ready(process: RelayCommand | Process, ready: Path, log: Path) -> dict[str, TCPAddress]:
    """The addresses of a relay that starts, once it serves. Raises DidNotStart."""
    async with asyncio.timeout(30):
        while not ready.exists():
            if process.returncode is not None:
                raise DidNotStart(f"the relay did not start:\n{log.read_text()}")
            await asyncio.sleep(0.02)
    lines = (line.split() for line in ready.read_text().splitlines())
    return {name: TCPAddress(host, int(port)) for name, host_port in lines for host, port in [host_port.rsplit(":", 1)]}
