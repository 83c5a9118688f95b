"""Builds the parts of a running relay out of relay.toml; it alone picks concrete classes, save levels (levels/all.py).
Standard: whatever is started is stopped, in the opposite order, also when starting fails half-way.
"""

from __future__ import annotations

import asyncio
import gc
import signal
import socket
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Mapping
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from dataclasses import dataclass
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, cast
from zlib import crc32

import structlog

from relay.aio import in_background
from relay.audit.chain import Chain
from relay.audit.entries import AddressHash
from relay.audit.pending import Pending
from relay.audit.sole import sole_recorder
from relay.audit.writing import Audit
from relay.budget import Budget
from relay.canary.asking import Asking
from relay.canary.box import CanaryBox
from relay.canary.post import Post
from relay.config import Config, TCPAddress
from relay.counting import Board
from relay.deliveries import Deliveries
from relay.entry import Door, DoorModule, Inside
from relay.entry.listening import Present, PresentHere, Sockets, Where, all_bound, close_all
from relay.errors import ConfigError
from relay.forward import NextHop
from relay.incoming import Incoming
from relay.key_receiver import Receiving
from relay.keys.build import key_ring
from relay.keys.development import from_development_kme
from relay.keys.refill import DrawCount
from relay.keys.ring import KeyRing
from relay.levels.all import all_levels
from relay.notify import READY, STOPPING, notify, stay_alive
from relay.opening import MailOpener
from relay.opening.original import Originals
from relay.outgoing import Outgoing
from relay.policy.findings import kems_not_here
from relay.policy.last_good import KEPT_POLICIES, LastGood
from relay.policy.reload import PoliciesInForce
from relay.quarantine.triage import Notices, Triage
from relay.reloading import Reloading, Settings, SitesInForce
from relay.sealing import Sealer
from relay.shadow import Shadow, ShadowRecord
from relay.status import StatusModule, Watched
from relay.status.alarms import Alarms
from relay.status.measures import keep_forecasts, keep_lag, keep_own, keep_site
from relay.status.ready import Readiness
from relay.status.sight import Looking
from relay.status.telling import AlarmTelling
from relay.stopping import Stop, Stopped, end_at_last, told_to_stop
from relay.store.neighbours import COUNTERS, CountedTogether, Neighbours, PresentTogether
from relay.store.secret import SiteSecret
from relay.store.sent import SentRecords
from relay.store.sqlite import sole_relay
from relay.store.store import Store, open_store
from relay.tally import Tally
from relay.trail import Trail
from relay.upkeep import (
    ALONE,
    ANNOUNCED,
    SENT,
    KeysFile,
    end_what_the_dead_had,
    give_memory_back,
    held_mail_kept,
    sweep,
    take_over_what_was_sent,
    tell_of_endings,
    write_what_is_late,
)
from relay.worker import Worker

if TYPE_CHECKING:
    from relay.dkim.in_force import DKIMInForce

log = structlog.get_logger(__name__)

RETIRE_S = 10.0
"""So long the clients of a worker whose place was taken have to finish."""
DOORS = {
    "smtp": ("outgoing.listen", "outgoing.lmtp", "incoming.listen", "incoming.lmtp", "submission"),
    "milter": ("outgoing.milter", "incoming.milter"),
    "imap": ("imap",),
}
"""Where mail can come in: each folder of relay/entry, and the settings that need it."""


@dataclass(frozen=True, slots=True)
class Parts:
    """What seals and opens, without any entry: enough for `seal` and `open` on files."""

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

    Without `prefetch` a key is drawn only when it is needed, so that a single message burns no others. With
    `key_receiver` (relay/key_receiver.py) another process asks for received keys, which outlives this one. What
    is counted is on the `board`. Where policy files are wrong, those of `last_good` are in force.
    """
    board = board or Board()
    async with AsyncExitStack() as stack:
        settings = settings if isinstance(settings, Settings) else Settings(settings)
        sites, dkim = SitesInForce(settings), _dkim(settings)
        config = sites.config()
        policies = PoliciesInForce(
            config.policies.directory, sites.domains, max_bounce=config.max_bounce, board=board, last_good=last_good
        )
        secret = SiteSecret.load_or_create(config.store.secret)
        audit = _audit(config, secret, board)
        stack.push_async_callback(audit.close)
        beat_file = config.store.secret.with_name("store.beat")
        store = await open_store(config.store.database, secret, beat_file=beat_file, board=board)
        sent = SentRecords(config.state_directory / SENT, secret, lambda: store.deliveries.settled)
        stack.callback(sent.close)  # after the store, whose last words may fail
        stack.push_async_callback(store.close)
        receiving = Receiving(config, secret, store.received, key_receiver)
        stack.push_async_callback(receiving.close)
        await receiving.take_over()
        stores = (store.received, store.issued_keys, store.trials)
        keys = key_ring(config, *stores, receiver=receiving.receiver, prefetch=prefetch, board=board)
        stack.push_async_callback(keys.close)
        levels = all_levels(config)
        sites.use(levels, keys)
        opener = MailOpener(sites.layers, store.received, store.deliveries, beat=store.beat, board=board)
        next_hops = _next_hops(stack, config)
        yield Parts(
            config,
            settings,
            sites,
            policies,
            store,
            keys,
            audit,
            {name: level.algorithms for name, level in levels.items()},
            Sealer(sites.planner, policies, keys, board),
            Originals(opener, policies, dkim.arrivals if dkim is not None else _nothing, board),
            _triage(config, sites, store, next_hops, board),
            CanaryBox(sites.config, store.canaries, board),
            next_hops,
            dkim,
            receiving,
            sent,
            board,
        )


def _dkim(settings: Settings) -> DKIMInForce | None:
    """What [dkim] wants done with mail that leaves and that arrives. Raises ConfigError."""
    if settings().dkim is None:
        return None
    # Loaded here, for it takes 10 MB that most relays have no use for.
    from relay.dkim.in_force import DKIMInForce

    return DKIMInForce(settings)


def _nothing() -> None:
    """Where there is no [dkim]."""


def doors(config: Config) -> dict[str, DoorModule]:
    """Those that relay.toml needs, by name. Raises ConfigError where the folder of one was taken away."""
    found: dict[str, DoorModule] = {}
    for name, settings in DOORS.items():
        wanted = [setting for setting in settings if _is_set(config, *setting.split("."))]
        if not wanted:
            continue
        folder = f"relay.entry.{name}"
        try:
            found[name] = cast(DoorModule, import_module(f"{folder}.door"))
        except ModuleNotFoundError as error:
            if error.name != folder:
                raise
            raise ConfigError(f"{wanted[0]} is set, and this relay has no {folder}, which it needs") from error
    return found


def status(config: Config) -> list[StatusModule]:
    """What tells how the relay is, where [status] is set: it brings a web server along."""
    return [cast(StatusModule, import_module("relay.status.door"))] if config.status is not None else []


def _is_set(config: Config, table: str, name: str = "") -> bool:
    value = getattr(config, table)
    return bool(getattr(value, name) if name and value is not None else value)


def _addresses(folders: Iterable[DoorModule | StatusModule], config: Config) -> dict[str, Where]:
    return {setting: where for folder in folders for setting, where in folder.listens_on(config).items()}


async def bound(config: Config) -> Sockets:
    """The listening sockets of all doors that relay.toml needs. Raises ConfigError."""
    return await all_bound(_addresses([*doors(config).values(), *status(config)], config))


@asynccontextmanager
async def running(
    settings: Config | Settings,
    *,
    key_receiver: socket.socket | None = None,
    stop: Stop | None = None,
    worker: Worker | None = None,
) -> AsyncIterator[dict[str, TCPAddress]]:
    """A relay that serves; gives the real listening address of `outgoing`, `outgoing_lmtp`, `incoming` and so on.

    With `key_receiver` another process asks for received keys; `stop` is told where that has ended. A `worker` is one
    of several processes. Raises ConfigError, StoreUnavailable and Stopped when it cannot start.
    """
    async with AsyncExitStack() as stack:
        settings = settings if isinstance(settings, Settings) else Settings(settings)
        config = settings()
        # Before a key is asked for or a file is changed: a relay that cannot listen costs nothing at each new start.
        folders = doors(config)
        if worker is not None and not worker.first:
            folders.pop("imap", None)  # mailboxes are looked at once; mail that comes to a listening socket, by each
        sockets = worker.listening() if worker is not None else await bound(config)
        stack.callback(close_all, sockets)
        if worker is None:
            if isinstance(config.store.database, Path):
                database = await asyncio.to_thread(config.store.database.resolve)
                await stack.enter_async_context(sole_relay(database))
            await stack.enter_async_context(sole_recorder(config.audit_directory))
        board = worker.shared_board if worker is not None else Board()
        if worker is None:
            await stack.enter_async_context(held_mail_kept(board.held, config.held_file))
        last_good = LastGood(config.state_directory / KEPT_POLICIES, writes=worker is None or worker.first)
        built = await stack.enter_async_context(
            parts(settings, key_receiver=key_receiver, board=board, last_good=last_good)
        )
        await built.store.beat.go_on()
        secret = SiteSecret.load(config.store.secret)
        present: Present = PresentHere()
        if worker is not None:
            neighbours = Neighbours(worker.neighbours, worker.life)
            present = PresentTogether(neighbours)
            take_over = partial(take_over_what_was_sent, config, built.store, secret, built.audit)
            _share(built, worker, neighbours, take_over)
        await end_what_the_dead_had(config, built.store, secret, built.audit)
        if worker is None or worker.first:
            await built.triage.refresh()
        for finding in kems_not_here(built.policies()):
            log.warning("kem_not_available", cause=str(finding))
        for kme in (name for name, each in built.config.kmes.items() if from_development_kme(each.ca)):
            log.warning("development_keys", kme=kme, quantum=False, cause=f"KME {kme} is one of `qumail-relay kme`")
        for peer, cause in built.config.peers_without_keys.items():
            log.warning("peer_without_quantum_keys", peer=peer, cause=cause)
        budget = Budget(config.limits.messages_in_flight)
        watched = _watched(built, budget)
        report = KeysFile(config.keys_file, secret.ids[0], built.keys, built.receiving, worker)
        work = {
            "key intake": built.receiving.go_on(),
            "memory": give_memory_back(),
            "late words": write_what_is_late(built.store, built.sent),
            "key report": report.keep_up(),
        }
        work |= {"measures": keep_own(watched), "loop lag": keep_lag(watched)}
        readiness = Readiness(watched)
        if worker is None or worker.first:
            await readiness.look()
            work |= {
                "forecasts": keep_forecasts(watched), "site": keep_site(watched), "readiness": readiness.keep_up(),
            }  # fmt: skip
            work["sweep"] = sweep(config, built.store, secret, built.triage, built.audit)
            work["policy ends"] = tell_of_endings(built.policies)
        if worker is not None and stop is not None:
            work["supervisor"] = worker.stop_with_supervisor(stop)
        if stop is not None:
            work["second process"] = report.stop_without_receiver(stop)
        for name, doing in work.items():
            await stack.enter_async_context(in_background(name, doing))
        inside = Inside(
            config,
            outgoing_recipe(built) if config.outgoing else None,
            incoming_recipe(built) if config.incoming else None,
            built.originals,
            built.store.spent,
            secret,
            budget,
            sockets,
            tally(built, "incoming"),
            board,
            present,
        )
        post = Post(config, built.policies, inside.outgoing, config.policies.shadow) if inside.outgoing else None
        await stack.enter_async_context(in_background("canaries that come", built.canaries.keep_up(post)))
        ready = [await stack.enter_async_context(folder.door(inside)) for folder in folders.values()]
        if worker is None or worker.first:
            telling = AlarmTelling(config, board, inside.outgoing, built.next_hops)
            alarms = Alarms(board, config.alarms_file, telling)
            stack.push_async_callback(alarms.write)  # last: what is told until then is not told again
            await stack.enter_async_context(in_background("telling of alarms", telling.keep_up()))
            looking = Looking(watched, readiness, built.next_hops)
            await stack.enter_async_context(in_background("alarms", alarms.keep_up(looking)))
            ready += [
                await stack.enter_async_context(each.door(watched, readiness, alarms, sockets))
                for each in status(config)
            ]
        files = [each for door in ready for each in door.reloadable]
        files += [built.dkim] if built.dkim is not None else []
        reloading = Reloading(settings, built.sites, built.policies, files)
        await stack.enter_async_context(in_background("watch", built.policies.watch(reloading.look)))
        asyncio.get_running_loop().add_signal_handler(signal.SIGHUP, _reload, built, reloading)
        stack.push_async_callback(_stopped, ready)
        # Before a key is drawn: a relay whose second process ends each time is started anew again and again.
        if built.receiving.process_has_ended:
            raise Stopped(ALONE)
        built.keys.start()
        if worker is not None and stop is not None:
            told = asyncio.Event()
            asyncio.get_running_loop().add_signal_handler(signal.SIGUSR2, told.set)
            await stack.enter_async_context(in_background("retirement", _retire(told, ready, stop)))
        addresses: dict[str, TCPAddress] = {}
        for each in ready:
            addresses |= await each.start()
        if post is not None and config.canary.every is not None and (worker is None or worker.first):
            asking = Asking(
                built.sites.config, built.store.canaries, post, board, config.canary.every, config.canary.limit
            )
            await stack.enter_async_context(in_background("canaries", asking.keep_up()))
        log.info(
            "relay_serves",
            site=config.site.name,
            policy_version=built.policies().version,
            **{name: str(address) for name, address in addresses.items()},
        )
        yield addresses
        log.info("relay_stops")
        built.keys.wait_no_more()


def _watched(built: Parts, budget: Budget) -> Watched:
    return Watched(
        built.config, built.board, built.keys, built.policies, built.store, built.receiving, built.audit,
        budget, lambda: built.sites.known,
    )  # fmt: skip


def _share(built: Parts, worker: Worker, neighbours: Neighbours, take_over: Callable[[], Awaitable[None]]) -> None:
    """One worker among several: of mails under way, and of keys drawn, each knows what all do."""
    if isinstance(built.config.store.database, Path):
        built.store.deliveries.share(neighbours, take_over)

    def draws_of(kme: str, sae: str) -> DrawCount:
        # By name: which peers there are is not the same for a worker that starts later. Two that share a counter only
        # keep more of their reserve.
        return CountedTogether(neighbours, crc32(f"{kme} {sae}".encode()) % COUNTERS)

    built.keys.share(draws_of, first=worker.first)


def outgoing_recipe(built: Parts) -> Outgoing:
    """The journey out; [outgoing] must be set."""
    config = built.config
    assert config.outgoing is not None  # noqa: S101 - whoever calls has looked
    return Outgoing(
        config.outgoing,
        built.sealer,
        built.next_hops["outgoing"],
        built.audit,
        Deliveries("outgoing", built.store.deliveries, built.sent),
        _shadow(config, built),
        built.dkim.signer if built.dkim is not None else _nothing,
        tally(built, "outgoing"),
    )


def incoming_recipe(built: Parts) -> Incoming:
    """The journey in; [incoming] must be set."""
    config = built.config
    assert config.incoming is not None  # noqa: S101 - whoever calls has looked
    return Incoming(
        config.incoming,
        built.originals,
        built.next_hops["incoming"],
        Deliveries("incoming", built.store.deliveries, built.sent),
        built.triage,
        built.canaries,
        tally(built, "incoming"),
    )


async def serve(
    settings: Settings,
    key_receiver: socket.socket,
    ready: Callable[[Mapping[str, TCPAddress]], None],
    worker: Worker | None = None,
) -> None:
    """Runs the relay, or one `worker` of it, until SIGTERM or SIGINT. Raises Stopped where it has to be started anew.

    `key_receiver` is the way to the process that asks for received keys. `ready` is called once all entries listen,
    with their addresses.
    """
    with told_to_stop() as stop:
        async with (
            in_background("watchdog", stay_alive()),
            running(settings, key_receiver=key_receiver, stop=stop, worker=worker) as addresses,
        ):
            # What was built lives as long as the relay: looking through all of it again would hold mail for 50 ms.
            gc.collect()
            gc.freeze()
            ready(addresses)
            notify(READY)
            await stop.wait()
            end_at_last()
            notify(STOPPING)
        if stop.cause:
            raise Stopped(stop.cause)


def _reload(built: Parts, reloading: Reloading) -> None:
    """SIGHUP: reads again what may change while the relay serves; whatever is broken stays as it was."""
    reloading.ask()
    built.keys.renew_certificates(anyway=True)


async def _retire(told: asyncio.Event, ready: list[Door], stop: Stop) -> None:
    """SIGUSR2, for a worker: another one has taken its place. Clients that are connected finish what they do."""
    await told.wait()
    with suppress(TimeoutError):
        async with asyncio.timeout(RETIRE_S):
            await asyncio.gather(*(each.retire() for each in ready))
    stop.tell()


async def _stopped(ready: list[Door]) -> None:
    """All at once, so that they share the time that mails in flight are given."""
    await asyncio.gather(*(each.stop() for each in ready))


def _audit(config: Config, secret: SiteSecret, board: Board) -> Audit:
    """The audit record, as this process writes it."""
    settings = config.audit
    addresses = AddressHash(secret if settings.addresses == "hashed" else None)
    pending = Pending(config.state_directory / ANNOUNCED) if settings.every_mail else None
    chain = Chain(config.audit_directory)
    chain.look()
    return Audit(chain, addresses, pending, board, every_mail=settings.every_mail, hold=settings.holds)


def tally(built: Parts, direction: str) -> Tally:
    """What counts each mail of this direction, and writes it into the audit record."""
    trail = Trail(direction, built.audit, built.algorithms)
    return Tally(direction, built.sites.config, built.board, trail)


def _shadow(config: Config, built: Parts) -> Shadow | None:
    """Where policies are only tried out: what tells what would happen."""
    if not config.policies.shadow:
        return None
    log.warning("shadow_mode", meaning="every outgoing mail leaves as it came, unsealed")
    record = config.policies.shadow_record
    return Shadow(built.sealer, ShadowRecord(record) if record is not None else None)


def _next_hops(stack: AsyncExitStack, config: Config) -> dict[str, NextHop]:
    """The next hop of each direction; whoever uses it shares its connections."""
    directions = {"outgoing": config.outgoing, "incoming": config.incoming}
    hops = {name: NextHop(each, config.site.hostname) for name, each in directions.items() if each is not None}
    for hop in hops.values():
        stack.push_async_callback(hop.close)
    return hops


def _triage(config: Config, sites: SitesInForce, store: Store, next_hops: dict[str, NextHop], board: Board) -> Triage:
    """What decides about arriving mail that cannot be opened."""
    notices = None
    if config.incoming is not None and config.quarantine.notice:
        notices = Notices(config.site, next_hops["incoming"], board)
    return Triage(config, sites.config, store, board, notices)
