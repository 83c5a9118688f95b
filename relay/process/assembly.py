"""Builds the parts that seal and open from relay.toml: the only place that picks concrete classes, except schemes.
Everything opened is closed in reverse order, also if opening fails half-way.
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING

import structlog

from relay.audit.chain import Chain
from relay.audit.entries import AddressHash
from relay.audit.writing import ANNOUNCED, Audit, Pending
from relay.canary.box import CanaryBox
from relay.config import Config
from relay.counting.board import Board
from relay.forward import NextHop
from relay.incoming import Incoming
from relay.journey.deliveries import Deliveries
from relay.journey.marks import SiteMarks
from relay.journey.opening import MailOpener
from relay.journey.opening.original import Originals
from relay.journey.sealing import Sealer
from relay.journey.shadow import Shadow, ShadowRecord
from relay.key_receiver import Receiving
from relay.keys.build import key_ring
from relay.keys.ring import KeyRing
from relay.levels import SMIME, SMIME_ALGORITHMS
from relay.outcome.tally import Tally
from relay.outcome.trail import Trail
from relay.outgoing import Outgoing
from relay.policy.last_good import LastGood
from relay.policy.reload import PoliciesInForce
from relay.policy.site import SiteFacts
from relay.process.reloading import FormerPeers, Settings, SitesInForce
from relay.quarantine.triage import Notices, Triage
from relay.schemes.all import all_schemes
from relay.store.secret import SiteSecret
from relay.store.sent import SENT, SentRecords
from relay.store.store import Store, open_store

if TYPE_CHECKING:
    from relay.dkim.in_force import DKIMInForce
    from relay.smime.opening import SMIMEOpener

log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Parts:
    """The parts that seal and open, without listeners; enough for `seal` and `open` on files."""

    config: Config
    settings: Settings
    sites: SitesInForce
    policies: PoliciesInForce
    store: Store
    keys: KeyRing
    audit: Audit
    algorithms: Mapping[str, str]
    sealer: Sealer
    originals: Originals
    triage: Triage
    canaries: CanaryBox
    next_hops: dict[str, NextHop]
    dkim: DKIMInForce | None
    receiving: Receiving
    sent: SentRecords
    board: Board


@asynccontextmanager
async def parts(
    settings: Config | Settings,
    *,
    prefetch: bool = True,
    key_receiver: socket.socket | None = None,
    board: Board | None = None,
    last_good: LastGood | None = None,
) -> AsyncIterator[Parts]:
    """The parts that seal and open, closed at the end. Raises ConfigError and StoreUnavailable.

    Without `prefetch` keys are only drawn when needed, so that a single message uses no others. With `key_receiver`
    (relay/key_receiver) another process, which outlives this one, requests received keys. Metrics are on the `board` of
    a serving process. If policy files are faulty, those of `last_good` are in force.
    """
    settings = settings if isinstance(settings, Settings) else Settings(settings)
    former = FormerPeers(settings().former_peers_file) if board is not None else None
    board = board or Board()
    async with AsyncExitStack() as stack:
        sites, dkim = SitesInForce(settings, former), _dkim(settings)
        config = sites.config()
        folder, site = config.policies.directory, SiteFacts.of(config)
        policies = await asyncio.to_thread(  # may wait until files are quiet
            PoliciesInForce, folder, sites.domains, site=site, board=board, last_good=last_good
        )
        secret = SiteSecret.load_or_create(config.store.secret)
        audit = _audit(config, secret, board)
        stack.push_async_callback(audit.close)
        store, sent = await _store(stack, config, secret, board)
        receiving = Receiving(config, secret, store.received, key_receiver)
        stack.push_async_callback(receiving.close)
        await receiving.take_over()
        stores = (store.received, store.issued_keys, store.trials)
        keys = key_ring(config, *stores, receiver=receiving.receiver, prefetch=prefetch, board=board)
        stack.push_async_callback(keys.close)
        levels = all_schemes(config)
        sites.use(levels, keys)
        check = store.restore_check
        opener = MailOpener(sites.layers, store.received, store.deliveries, restore_check=check, board=board)
        next_hops, marks = _next_hops(stack, config), SiteMarks(secret)
        smime = _smime(config, sites)
        yield Parts(
            config,
            settings,
            sites,
            policies,
            store,
            keys,
            audit,
            {name: level.algorithms for name, level in levels.items()} | {SMIME: SMIME_ALGORITHMS},
            Sealer(sites.planner, policies, keys, board, marks=marks),
            Originals(opener, policies, dkim.arrivals if dkim is not None else None, board, marks=marks, smime=smime),
            _triage(config, sites, store, next_hops, board),
            CanaryBox(sites.config, store.canaries, board),
            next_hops,
            dkim,
            receiving,
            sent,
            board,
        )


async def _store(stack: AsyncExitStack, config: Config, secret: SiteSecret, board: Board) -> tuple[Store, SentRecords]:
    """The store, and beside it the record of what next hops accepted; both are closed with `stack`."""
    file, known = config.restore_check_file, config.has_served
    store = await open_store(config.store.database, secret, restore_check_file=file, known_here=known, board=board)
    sent = SentRecords(config.state_directory / SENT, lambda: store.deliveries.settled)
    stack.callback(sent.close)  # after the store, whose last writes may fail
    stack.push_async_callback(store.close)
    return store, sent


def outgoing_recipe(built: Parts) -> Outgoing:
    """The journey out; [outgoing] must be set."""
    config = built.config
    assert config.outgoing is not None  # noqa: S101 - the caller has checked
    return Outgoing(
        config.outgoing,
        built.sealer,
        built.next_hops["outgoing"],
        built.audit,
        Deliveries("outgoing", built.store.deliveries, built.sent),
        _shadow(config, built),
        built.dkim.signer if built.dkim is not None else None,
        tally(built, "outgoing"),
        built.canaries.takes,
    )


def incoming_recipe(built: Parts) -> Incoming:
    """The journey in; [incoming] must be set."""
    config = built.config
    assert config.incoming is not None  # noqa: S101 - the caller has checked
    return Incoming(
        config.incoming,
        built.originals,
        built.next_hops["incoming"],
        Deliveries("incoming", built.store.deliveries, built.sent),
        built.triage,
        built.canaries,
        tally(built, "incoming"),
    )


def tally(built: Parts, direction: str) -> Tally:
    """The tally of this direction, with its audit trail."""
    trail = Trail(direction, built.audit, built.algorithms)
    return Tally(direction, built.sites.config, built.board, trail)


def _dkim(settings: Settings) -> DKIMInForce | None:
    """Signing and verifying as set in [dkim]. Raises ConfigError."""
    if settings().dkim is None:
        return None
    # Imported here: it takes 10 MB, which most relays do not need.
    from relay.dkim.in_force import DKIMInForce

    return DKIMInForce(settings)


def _smime(config: Config, sites: SitesInForce) -> SMIMEOpener | None:
    """The reader of S/MIME mail as set in [smime]. Raises ConfigError."""
    if config.smime is None:
        return None
    from relay.smime.opening import SMIMEOpener  # here: most relays do not need it

    return SMIMEOpener.of(config, lambda: sites.smime.keys if sites.smime is not None else ())


def smime_ends(built: Parts) -> dict[str, datetime]:
    """When the certificates and CRLs that S/MIME needs end, by name; blocks."""
    opener, sealer = built.originals.smime, built.sites.smime
    if opener is None or sealer is None:
        return {}
    from relay.smime.findings import ends_in_use  # here: most relays do not need it

    return ends_in_use(opener, sealer.directory, datetime.now(UTC))


def _audit(config: Config, secret: SiteSecret, board: Board) -> Audit:
    """This process's writer of the audit record."""
    settings = config.audit
    addresses = AddressHash(secret if settings.addresses == "hashed" else None)
    pending = Pending(config.state_directory / ANNOUNCED) if settings.every_mail else None
    chain = Chain(config.audit_directory)
    chain.look()
    return Audit(chain, addresses, pending, board, every_mail=settings.every_mail, hold=settings.holds)


def _shadow(config: Config, built: Parts) -> Shadow | None:
    """The shadow mode's recorder, None if policies are enforced."""
    if not config.policies.shadow:
        return None
    log.warning("shadow_mode", meaning="every outgoing mail leaves as it came, unsealed")
    record = config.policies.shadow_record
    return Shadow(built.sealer, ShadowRecord(record) if record is not None else None)


def _next_hops(stack: AsyncExitStack, config: Config) -> dict[str, NextHop]:
    """The next hop of each direction; all its users share its connections."""
    directions = {"outgoing": config.outgoing, "incoming": config.incoming}
    hops = {name: NextHop(each, config.site.hostname) for name, each in directions.items() if each is not None}
    for hop in hops.values():
        stack.push_async_callback(hop.close)
    return hops


def _triage(config: Config, sites: SitesInForce, store: Store, next_hops: dict[str, NextHop], board: Board) -> Triage:
    """The triage of incoming mail that cannot be opened."""
    notices = None
    if config.incoming is not None and config.quarantine.notice:
        notices = Notices(config.site, next_hops["incoming"], board)
    return Triage(config, sites.config, store, board, notices)
