"""Builds the parts of a running relay out of relay.toml: the only place that picks concrete classes.
Standard: whatever is started is stopped, in the opposite order, also when starting fails half-way.
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
import time
from collections.abc import AsyncIterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import structlog

from relay.cms import FURTHER_KEMS
from relay.config import Address, Config, Direction, Peer, load_config
from relay.deliveries import Deliveries
from relay.entry import Recipe
from relay.entry.smtp import SMTPEntry
from relay.errors import StoreUnavailable
from relay.forward import NextHop
from relay.incoming import Incoming
from relay.keys.build import key_ring
from relay.keys.identity import Identity, PeerCertificates, common_groups, load_identity, trusted_peers
from relay.keys.keyring import KeyRing
from relay.levels import Level
from relay.levels.aes import AES
from relay.levels.further_kem import FurtherKEM
from relay.levels.otp import OTP
from relay.levels.pqc import PQC
from relay.levels.rsa import RSA
from relay.opening import Opener
from relay.outgoing import Outgoing
from relay.policy import PolicySet
from relay.policy.findings import kems_not_here
from relay.policy.reload import PoliciesInForce
from relay.policy.shadow import ShadowRecord
from relay.sealing import Sealer
from relay.shadow import Shadow
from relay.store import SiteSecret, Store, open_store
from relay.store.ledger import AddressHash, Ledger

log = structlog.get_logger(__name__)

SWEEP_S = 60.0
"""How often expired received keys are destroyed."""
WRITE_DOWN_S = 10.0
"""How often `keys status` gets new figures."""


@dataclass(frozen=True, slots=True)
class Parts:
    """What seals and opens, without any entry: enough for `seal` and `open` on files."""

    config: Config
    policies: PoliciesInForce
    store: Store
    keys: KeyRing
    ledger: Ledger
    sealer: Sealer
    opener: Opener


@asynccontextmanager
async def parts(config: Config, *, prefetch: bool = True) -> AsyncIterator[Parts]:
    """The parts that seal and open, closed at the end. Raises ConfigError and StoreUnavailable.

    Without `prefetch` a key is drawn only when it is needed, so that a single message burns no others.
    """
    async with AsyncExitStack() as stack:
        config, certificates = with_documents(config)
        identity = own_identity(config)
        policies = PoliciesInForce(config.policies.directory, config.peer_domains)
        secret = SiteSecret.load_or_create(config.store.secret)
        ledger = Ledger(config.ledger_file, AddressHash(secret if config.ledger.addresses == "hashed" else None))
        store = await open_store(config.store.database, secret)
        stack.push_async_callback(store.close)
        keys = key_ring(config, store.received, prefetch=prefetch)
        stack.push_async_callback(keys.close)
        levels = all_levels(config)
        yield Parts(
            config,
            policies,
            store,
            keys,
            ledger,
            Sealer(config, policies, levels, keys, identity, certificates),
            Opener(config, levels, keys, store.received, identity, certificates),
        )


def all_levels(config: Config) -> dict[str, Level]:
    """The levels that this relay can do, by name."""
    otp = OTP(config.otp.padding, compression=config.otp.compression)
    levels: list[Level] = [otp, AES(), PQC(), RSA(), *map(FurtherKEM, FURTHER_KEMS)]
    return {level.name: level for level in levels}


def planner(config: Config, policies: PolicySet, keys: KeyRing, certificates: Mapping[str, PeerCertificates]) -> Sealer:
    """What tells how mail would be sealed, without store and ledger; `config` is one `with_documents`.

    Raises ConfigError where this site's own certificates cannot be used.
    """
    return Sealer(config, lambda: policies, all_levels(config), keys, own_identity(config), certificates)


def with_documents(config: Config) -> tuple[Config, dict[str, PeerCertificates]]:
    """The configuration with the peers whose documents were imported, and the certificates in these.

    What [peers.*] says of such a peer counts; what it leaves open comes from the document. Raises ConfigError.
    """
    certificates = trusted_peers(config)
    peers = dict(config.peers)
    for name, document in certificates.items():
        table = peers.get(name) or Peer(domains=document.domains, sae_id=document.sae_id)
        groups = table.kme_groups or common_groups(config, document)
        peers[name] = table.model_copy(update={"kme_groups": groups})
    return config.model_copy(update={"peers": peers}), certificates


def own_identity(config: Config) -> Identity | None:
    """This site's keys and certificates, or None where there are none yet. Raises ConfigError."""
    if config.identity is None or not config.identity.directory.exists():
        return None
    return load_identity(config.identity.directory, passphrase=config.identity.passphrase)


@asynccontextmanager
async def running(config: Config) -> AsyncIterator[dict[str, Address]]:
    """A relay that serves; gives the real listening address of `outgoing` and `incoming`.

    Raises ConfigError and StoreUnavailable when it cannot start.
    """
    async with AsyncExitStack() as stack:
        built = await stack.enter_async_context(parts(config))
        built.keys.start()
        for finding in kems_not_here(built.policies()):
            log.warning("kem_not_available", cause=str(finding))
        for work in (_sweep(built.store), _write_down_keys(built.keys, keys_file(config)), built.policies.watch()):
            stack.push_async_callback(_cancelled, asyncio.create_task(work))
        asyncio.get_running_loop().add_signal_handler(signal.SIGHUP, built.policies.reload)
        addresses: dict[str, Address] = {}
        if config.outgoing:
            outgoing = outgoing_recipe(built)
            addresses["outgoing"] = await _serve(stack, config, "outgoing", config.outgoing, outgoing)
        if config.incoming:
            incoming = incoming_recipe(built)
            addresses["incoming"] = await _serve(stack, config, "incoming", config.incoming, incoming)
        log.info(
            "relay_serves",
            site=config.site.name,
            policy_version=built.policies().version,
            **{name: str(address) for name, address in addresses.items()},
        )
        yield addresses
        log.info("relay_stops")


def outgoing_recipe(built: Parts) -> Outgoing:
    """The journey out; [outgoing] must be set."""
    config = built.config
    assert config.outgoing is not None  # noqa: S101 - whoever calls has looked
    return Outgoing(
        config.outgoing,
        built.sealer,
        _next_hop(config, config.outgoing),
        built.ledger,
        Deliveries("outgoing", built.store.journal),
        _shadow(config, built),
    )


def incoming_recipe(built: Parts) -> Incoming:
    """The journey in; [incoming] must be set."""
    config = built.config
    assert config.incoming is not None  # noqa: S101 - whoever calls has looked
    return Incoming(
        config.incoming,
        built.opener,
        _next_hop(config, config.incoming),
        Deliveries("incoming", built.store.journal),
        built.policies,
    )


async def serve(config_file: Path, ready_file: Path | None = None) -> None:
    """Runs the relay until SIGTERM or SIGINT.

    `ready_file` gets one line `name host:port` for each entry once all of them listen.
    """
    config = load_config(config_file)
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    async with running(config) as addresses:
        if ready_file is not None:
            _write_whole(ready_file, "".join(f"{name} {address}\n" for name, address in addresses.items()))
        await stop.wait()


async def _serve(stack: AsyncExitStack, config: Config, name: str, direction: Direction, recipe: Recipe) -> Address:
    entry = SMTPEntry(name, direction, config.site.hostname, recipe)
    address = await entry.start()
    stack.push_async_callback(entry.stop)
    return address


def _shadow(config: Config, built: Parts) -> Shadow | None:
    """Where policies are only tried out: what tells what would happen."""
    if not config.policies.shadow:
        return None
    log.warning("shadow_mode", meaning="every outgoing mail leaves as it came, unsealed")
    record = config.policies.shadow_record
    return Shadow(built.sealer, built.keys, ShadowRecord(record) if record is not None else None)


def _next_hop(config: Config, direction: Direction) -> NextHop:
    return NextHop(direction.next_hop, config.site.hostname, direction.timeout)


async def _sweep(store: Store) -> None:
    while True:
        await asyncio.sleep(SWEEP_S)
        try:
            if destroyed := await store.received.destroy_expired(time.time()):
                log.info("received_keys_destroyed", number=destroyed)
            if forgotten := await store.journal.expire():
                log.warning("deliveries_given_up", recipients=forgotten, cause="nobody tried them again")
        except StoreUnavailable as error:
            log.error("sweep_failed", cause=str(error))


async def _write_down_keys(keys: KeyRing, path: Path) -> None:
    """For `keys status`, which is another process: what is known here, every few seconds."""
    while True:
        try:
            _write_whole(path, json.dumps((await keys.report(look=False)).as_json()))
        except OSError as error:
            log.warning("key_report_not_written", file=str(path), cause=str(error))
        await asyncio.sleep(WRITE_DOWN_S)


def keys_file(config: Config) -> Path:
    """Where the serving relay writes down how its keys stand; it holds no key."""
    return config.store.secret.with_name("keys.json")


async def _cancelled(task: asyncio.Task[None]) -> None:
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)


def _write_whole(path: Path, text: str) -> None:
    """Writes the file so that a reader sees all of it or nothing."""
    beside = path.with_name(f".{path.name}.{os.getpid()}")
    beside.write_text(text)
    beside.replace(path)
