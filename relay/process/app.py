"""Runs a relay: listeners, background work, alarms; assembly.py builds what seals and opens.
Everything started is stopped in reverse order, also if a start fails half-way.
"""

from __future__ import annotations

import asyncio
import gc
import signal
import socket
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Iterable, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast
from zlib import crc32

import structlog

from relay.audit.policies import PolicyRecords
from relay.audit.sole import sole_recorder
from relay.canary.asking import Asking
from relay.canary.post import Post
from relay.canary.telling import Telling
from relay.config import Config, MailDomain, TCPAddress
from relay.config.listeners import LISTENERS
from relay.counting.board import Board
from relay.entry import Inside, Listener, ListenerModule
from relay.entry.budget import Budget
from relay.entry.listening import Present, PresentHere, Sockets, Where, all_bound, close_all
from relay.entry.outgoing_router import OutgoingRouter
from relay.errors import ConfigError
from relay.files import resolved
from relay.formats import characters
from relay.identity import liboqs
from relay.keys.development import from_development_kme
from relay.keys.refill import DrawCount
from relay.outgoing import Outgoing
from relay.policy.kept import KeptSets, kept_file
from relay.policy.last_good import LastGood
from relay.policy.load import PolicyFolder
from relay.policy.site import SiteFacts
from relay.process.assembly import Parts, incoming_recipe, outgoing_recipe, parts, smime_ends, tally
from relay.process.reloading import Reloading, Settings
from relay.process.upkeep import (
    ALONE,
    KeysFile,
    end_what_the_dead_had,
    give_memory_back,
    held_mail_kept,
    sweep,
    take_over_what_was_sent,
    warn_of_endings,
    write_what_is_late,
)
from relay.process.worker import Worker
from relay.runtime import signals
from relay.runtime.aio import in_background
from relay.runtime.notify import READY, STOPPING, notify, stay_alive
from relay.runtime.release import installed
from relay.runtime.stopping import Stop, Stopped, end_at_last, stop_on_signals
from relay.schemes.all import all_schemes
from relay.status import StatusModule, Watched
from relay.status.alarms import Alarms
from relay.status.measures import keep_forecasts, keep_lag, keep_own, keep_site
from relay.status.next_start import NextStart
from relay.status.notifier import AlarmNotifier
from relay.status.observation import Observer
from relay.status.ready import Readiness
from relay.store.migrations import migrate
from relay.store.neighbours import COUNTERS, CountedTogether, Neighbours, PresentTogether
from relay.store.secret import SiteSecret
from relay.store.secret_file import make_directory
from relay.store.sqlite import sole_relay
from relay.store.store import BUSY_TIMEOUT_S

if TYPE_CHECKING:
    from relay.postfix.watch import PostfixWatch

log = structlog.get_logger(__name__)

RETIRE_S = 3600.0
"""Grace period for mails in flight in a retiring worker, in seconds.

The usual timeouts give a mail half an hour. An interrupted one would be retried by its client, and arrive twice.
"""


def listeners(config: Config) -> dict[str, ListenerModule]:
    """The listeners that relay.toml needs, by name. Raises ConfigError if the folder of one was removed."""
    modules: dict[str, ListenerModule] = {}
    for name, settings in LISTENERS.items():
        names = [setting for setting in settings if _is_set(config, *setting.split("."))]
        if not names:
            continue
        folder = f"relay.entry.{name}"
        try:
            lone_file = not hasattr(import_module(folder), "__path__")
            modules[name] = cast(ListenerModule, import_module(folder if lone_file else f"{folder}.listener"))
        except ModuleNotFoundError as error:
            if error.name != folder:
                raise
            raise ConfigError(f"{names[0]} is set, and this relay has no {folder}, which it needs") from error
    return modules


def status(config: Config) -> list[StatusModule]:
    """The modules that show the relay's state, if [status] is set: they load a web server."""
    return [cast(StatusModule, import_module("relay.status.listener"))] if config.status is not None else []


def load(config: Config) -> None:
    """Loads all modules that these settings may need, before a fork, so that processes share them.

    Modules loaded later might belong to a newer release. Raises ConfigError, as `listeners` does.
    """
    installed()
    characters.load()
    listeners(config)
    status(config)
    all_schemes(config)
    if config.kmes:
        import_module("relay.keys.transport")
    if config.dkim is not None:
        import_module("relay.dkim.in_force")
    if config.postfix is not None:
        import_module("relay.postfix.watch")
    directions = [each for each in (config.outgoing, config.incoming) if each is not None]
    if any(isinstance(hop, MailDomain) for each in directions for hop in each.next_hop):
        import_module("relay.forward.mx")


def _is_set(config: Config, table: str, name: str = "") -> bool:
    value = getattr(config, table)
    return bool(getattr(value, name) if name and value is not None else value)


def listening_addresses(config: Config) -> dict[str, Where]:
    """All addresses at which the relay listens, by setting. Raises ConfigError."""
    return _addresses([*listeners(config).values(), *status(config)], config)


def _addresses(folders: Iterable[ListenerModule | StatusModule], config: Config) -> dict[str, Where]:
    return {setting: where for folder in folders for setting, where in folder.listens_on(config).items()}


async def bound(config: Config, passed: Sequence[int]) -> Sockets:
    """The listening sockets of all listeners that relay.toml needs; `passed` as in all_bound. Raises ConfigError."""
    return await all_bound(listening_addresses(config), passed)


@asynccontextmanager
async def running(
    settings: Config | Settings,
    *,
    key_receiver: socket.socket | None = None,
    stop: Stop | None = None,
    worker: Worker | None = None,
    passed: Sequence[int] = (),
) -> AsyncIterator[dict[str, TCPAddress]]:
    """A serving relay; yields the bound addresses of `outgoing`, `outgoing_lmtp`, `incoming` and so on.

    With `key_receiver` another process requests received keys; `stop` is requested when that has ended. A `worker` is
    one of several processes, `passed` as in all_bound. Raises ConfigError, StoreUnavailable and Stopped if it cannot
    start.
    """
    async with AsyncExitStack() as stack:
        settings = settings if isinstance(settings, Settings) else Settings(settings)
        config = settings()
        # Before a key is requested or a file changed: a relay that cannot listen costs nothing at each restart.
        folders, sockets = await _listening(config, worker, passed)
        stack.callback(close_all, sockets)
        first = worker is None or worker.first
        board = worker.shared_board if worker is not None else await stack.enter_async_context(_alone(config))
        last_good = LastGood(KeptSets(kept_file(config)), writes=first)
        building = parts(settings, key_receiver=key_receiver, board=board, last_good=last_good)
        built = await stack.enter_async_context(building)
        await built.store.restore_check.go_on()
        secret = SiteSecret.load(config.store.secret)
        present = _present(built, worker)
        await end_what_the_dead_had(config, built.store, built.audit)
        _log_missing(built)
        budget = Budget(config.limits.messages_in_flight)
        watched = _watched(built, budget, settings, first=first)
        readiness = Readiness(watched)
        if first:
            await built.triage.refresh()
            await readiness.look()
        work = _work_beside_mail(built, watched, secret, worker, stop)
        work |= _work_of_the_first(built, watched, secret, readiness, last_good) if first else {}
        for name, doing in work.items():
            await stack.enter_async_context(in_background(name, doing))
        inside, way_out = _journeys(built, secret, budget, sockets, present)
        post = Post(config, built.policies, way_out, config.policies.shadow) if way_out else None
        await stack.enter_async_context(in_background("canaries that come", partial(built.canaries.keep_up, post)))
        ready = [await stack.enter_async_context(folder.listener(inside)) for folder in folders.values()]
        if first:
            ready += await stack.enter_async_context(_status(built, watched, readiness, sockets, way_out))
        await stack.enter_async_context(_reloading(settings, built, ready))
        stack.push_async_callback(_stopped, ready)
        _start_drawing(built)
        if worker is not None and stop is not None:
            await stack.enter_async_context(_retirement(ready, stop))
        addresses = {name: address for each in ready for name, address in (await each.start()).items()}
        if post is not None and first:
            await stack.enter_async_context(_canaries(built, post))
        where = {name: str(address) for name, address in addresses.items()}
        log.info("relay_serves", site=config.site.name, policy_version=built.policies().version, **where)
        yield addresses
        log.info("relay_stops")
        built.keys.stop_waiting()


def _start_drawing(built: Parts) -> None:
    """Starts drawing keys, unless the second process has ended: such a relay only restarts. Raises Stopped."""
    if built.receiving.process_has_ended:
        raise Stopped(ALONE)
    built.keys.start()


async def _listening(
    config: Config, worker: Worker | None, passed: Sequence[int]
) -> tuple[dict[str, ListenerModule], Sockets]:
    """The listeners of this process, and their listening sockets."""
    folders = listeners(config)
    if worker is None:
        return folders, await bound(config, passed)
    if not worker.first:
        folders.pop("imap", None)  # mailboxes are watched by one worker; listening sockets are shared by all
    return folders, worker.listening()


def _present(built: Parts, worker: Worker | None) -> Present:
    """Counts connections, in all workers together."""
    if worker is None:
        return PresentHere()
    neighbours = Neighbours(worker.neighbours, worker.worker_id)
    take_over = partial(take_over_what_was_sent, built.config, built.store, built.audit)
    _share(built, worker, neighbours, take_over)
    return PresentTogether(neighbours)


def _journeys(
    built: Parts, secret: SiteSecret, budget: Budget, sockets: Sockets, present: Present
) -> tuple[Inside, Outgoing | None]:
    """The parts for listeners, and the outgoing recipe."""
    config = built.config
    way_out = outgoing_recipe(built) if config.outgoing else None
    way_in = incoming_recipe(built) if config.incoming else None
    router = OutgoingRouter(way_out, way_in, built.originals.opener, built.store.deliveries) if way_out else None
    inside = Inside(
        config, router, way_in, built.originals, built.store.rate_limits, secret, budget, sockets,
        tally(built, "incoming"), built.board, present,
    )  # fmt: skip
    return inside, way_out


@asynccontextmanager
async def _reloading(settings: Settings, built: Parts, ready: Iterable[Listener]) -> AsyncIterator[None]:
    """Reloads what needs no restart: files when they have changed, and everything at SIGHUP."""
    files = [each for listener in ready for each in listener.reloadable]
    files += [built.dkim] if built.dkim is not None else []
    reloading = Reloading(settings, built.sites, built.policies, files)
    async with in_background("watch", partial(built.policies.watch, reloading.look)):
        signals.on_signal(signal.SIGHUP, partial(_reload, built, reloading))
        yield


@asynccontextmanager
async def _retirement(ready: Sequence[Listener], stop: Stop) -> AsyncIterator[None]:
    """Retires this worker at SIGUSR2, when another one has replaced it: it ends after its clients."""
    retiring = asyncio.Event()
    signals.on_signal(signal.SIGUSR2, retiring.set)
    async with in_background("retirement", partial(_retire, retiring, ready, stop)):
        yield


@asynccontextmanager
async def _canaries(built: Parts, post: Post) -> AsyncIterator[None]:
    """Sends canaries to each peer, if [canary] is set, and tells peers of mail in their name that comes unsealed."""
    every, limit = built.config.canary.every, built.config.canary.limit
    telling = Telling(built.sites.receiving, post, built.board)
    async with AsyncExitStack() as stack:
        await stack.enter_async_context(in_background("unsealed mail", telling.keep_up))
        if every is not None:
            asking = Asking(built.sites.receiving, built.store.canaries, post, built.board, every, limit)
            await stack.enter_async_context(in_background("canaries", asking.keep_up))
        yield


@asynccontextmanager
async def _alone(config: Config) -> AsyncIterator[Board]:
    """A private board, with the locks on embedded database and audit record, and the store of today's schema.

    Raises ConfigError and StoreUnavailable.
    """
    async with AsyncExitStack() as stack:
        if isinstance(config.store.database, Path):
            database = await asyncio.to_thread(resolved, config.store.database)
            await stack.enter_async_context(sole_relay(database))
        await migrate(config.store.database, busy_timeout=BUSY_TIMEOUT_S)
        await asyncio.to_thread(make_directory, config.own_directory)
        await stack.enter_async_context(sole_recorder(config.audit_directory))
        board = Board()
        await stack.enter_async_context(held_mail_kept(board.held, config.held_file))
        yield board


def _log_missing(built: Parts) -> None:
    """Logs features that do less than an administrator may expect."""
    for peer, settings in built.config.peers.items():
        for cause in filter(None, map(liboqs.unavailable, settings.further_kems)):
            log.warning("kem_not_available", peer=peer, cause=cause)
    for kme in (name for name, each in built.config.kmes.items() if from_development_kme(each.ca)):
        log.warning("development_keys", kme=kme, quantum=False, cause=f"KME {kme} is one of `qumail-relay kme`")
    for peer, cause in built.config.peers_without_keys.items():
        log.warning("peer_without_quantum_keys", peer=peer, cause=cause)


def _work_beside_mail(
    built: Parts, watched: Watched, secret: SiteSecret, worker: Worker | None, stop: Stop | None
) -> dict[str, Callable[[], Coroutine[Any, Any, None]]]:
    """The background work of each process, by name."""
    report = KeysFile(built.config.keys_file, secret.ids[0], built.keys, built.receiving, worker)
    work: dict[str, Callable[[], Coroutine[Any, Any, None]]] = {
        "key intake": built.receiving.go_on,
        "memory": give_memory_back,
        "late words": partial(write_what_is_late, built.store, built.sent),
        "key report": report.keep_up,
        "measures": partial(keep_own, watched),
        "loop lag": partial(keep_lag, watched),
    }
    if worker is None:
        work["keys that there are"] = built.store.received.learn_places
    elif stop is not None:
        work["supervisor"] = partial(worker.stop_with_supervisor, stop)
    if stop is not None:
        work["second process"] = partial(report.stop_without_receiver, stop)
    return work


def _work_of_the_first(
    built: Parts, watched: Watched, secret: SiteSecret, readiness: Readiness, last_good: LastGood
) -> dict[str, Callable[[], Coroutine[Any, Any, None]]]:
    """The background work of one process for all."""

    def folder(directory: Path) -> PolicyFolder:
        return PolicyFolder(directory, built.sites.domains, site=SiteFacts.of(built.sites.config()))

    postfix = {"Postfix": watched.postfix.keep_up} if watched.postfix is not None else {}
    next_start = {"next start": watched.next_start.keep_up} if watched.next_start is not None else {}
    return (
        postfix
        | next_start
        | {
            "forecasts": partial(keep_forecasts, watched),
            "site": partial(keep_site, watched),
            "readiness": readiness.keep_up,
            "sweep": partial(sweep, built.config, built.store, built.triage, built.audit),
            "policy ends": partial(warn_of_endings, built.policies),
            "policy records": PolicyRecords(built.audit, last_good, folder).keep_up,
        }
    )


@asynccontextmanager
async def _status(
    built: Parts, watched: Watched, readiness: Readiness, sockets: Sockets, outgoing: Outgoing | None
) -> AsyncIterator[list[Listener]]:
    """The alarms, and the listener of [status] if set."""
    async with AsyncExitStack() as stack:
        alarms = await stack.enter_async_context(_alarms(built, watched, readiness, outgoing))
        opened = [each.listener(watched, readiness, alarms, sockets) for each in status(built.config)]
        yield [await stack.enter_async_context(each) for each in opened]


@asynccontextmanager
async def _alarms(
    built: Parts, watched: Watched, readiness: Readiness, outgoing: Outgoing | None
) -> AsyncIterator[Alarms]:
    """The alarms, evaluated and notified meanwhile."""
    notifier = AlarmNotifier(built.config, built.board, outgoing, built.next_hops, lambda: readiness.causes)
    alarms = Alarms(built.board, built.config.alarms_file, notifier)
    async with AsyncExitStack() as stack:
        stack.push_async_callback(alarms.write)  # last: notices sent until then are not sent again
        await stack.enter_async_context(in_background("alarm notices", notifier.keep_up))
        observer = Observer(watched, readiness, built.next_hops)
        await stack.enter_async_context(in_background("alarms", partial(alarms.keep_up, observer)))
        yield alarms


def _watched(built: Parts, budget: Budget, settings: Settings, *, first: bool = True) -> Watched:
    modules: list[ListenerModule | StatusModule] = [*listeners(built.config).values(), *status(built.config)]
    return Watched(
        built.config, built.board, built.keys, built.policies, built.store, built.receiving, built.audit,
        budget, lambda: built.sites.known, _postfix_watch(built) if first else None,
        NextStart(settings.on_disk, modules) if first else None, partial(smime_ends, built),
    )  # fmt: skip


def _postfix_watch(built: Parts) -> PostfixWatch | None:
    """None where relay.toml names no Postfix: such a relay loads nothing of relay/postfix."""
    if built.config.postfix is None:
        return None
    from relay.postfix.watch import PostfixWatch

    return PostfixWatch(built.config.postfix.directory, built.sites.config)


def _share(built: Parts, worker: Worker, neighbours: Neighbours, take_over: Callable[[], Awaitable[None]]) -> None:
    """Shares mails under way and counts of keys with the other workers."""
    if isinstance(built.config.store.database, Path):
        built.store.deliveries.share(neighbours, take_over)

    def draws_of(kme: str, sae: str) -> DrawCount:
        # By name: a worker that starts later may have other peers. Two that share a counter only keep a larger reserve.
        return CountedTogether(neighbours, crc32(f"{kme} {sae}".encode()) % COUNTERS)

    built.keys.share(draws_of, first=worker.first)


async def serve(
    settings: Settings,
    key_receiver: socket.socket,
    ready: Callable[[Mapping[str, TCPAddress]], None],
    worker: Worker | None = None,
    passed: Sequence[int] = (),
) -> None:
    """Runs the relay, or one `worker` of it, until SIGTERM or SIGINT. Raises Stopped if it has to be restarted.

    `key_receiver` is the connection to the process that requests received keys. `ready` is called with the addresses
    once all listeners listen. `passed` as in `running`.
    """
    with stop_on_signals() as stop:
        async with (
            in_background("watchdog", stay_alive),
            running(settings, key_receiver=key_receiver, stop=stop, worker=worker, passed=passed) as addresses,
        ):
            # Everything built lives as long as the relay: collecting it again would block mail for 50 ms.
            gc.collect()
            gc.freeze()
            # Mail by SMTP leaves no reference cycles; a collection every 700 objects takes 3 % of the time.
            gc.set_threshold(10_000)
            ready(addresses)
            notify(READY)
            await stop.wait()
            end_at_last()
            notify(STOPPING)
        if stop.cause:
            raise Stopped(stop.cause)


def _reload(built: Parts, reloading: Reloading) -> None:
    """SIGHUP: reloads what may change while the relay serves; broken files leave the old values in force."""
    reloading.ask()
    built.keys.renew_certificates(anyway=True)


async def _retire(retiring: asyncio.Event, ready: Sequence[Listener], stop: Stop) -> None:
    """SIGUSR2, for a worker replaced by another one: connected clients can finish."""
    await retiring.wait()
    with suppress(TimeoutError):
        async with asyncio.timeout(RETIRE_S):
            await asyncio.gather(*(each.retire() for each in ready))
    stop.request()


async def _stopped(ready: list[Listener]) -> None:
    """Stops all listeners at once, with one grace period for mails in flight."""
    await asyncio.gather(*(each.stop() for each in ready))
