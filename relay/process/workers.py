"""Starts the workers of a relay, which serve as one at the same sockets, and restarts each that ends.
SIGTERM and SIGINT stop all after the mails in flight, SIGHUP goes to each, SIGUSR1 restarts each in turn.

This process holds the listening sockets and the lock of the embedded database, and does nothing else. A fault with a
mail or a key only affects a worker. Connections made while a worker starts are served by another one.
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
import socket
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from contextlib import AsyncExitStack, suppress
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import structlog

from relay.audit.sole import sole_recorder
from relay.config import Config, TCPAddress, load_config
from relay.config.reloaded import taken_over
from relay.counting.board import BoardPlaces, held_on, shared_board
from relay.entry.listening import Sockets, close_all
from relay.files import resolved, toml, write_whole
from relay.keys.report import together
from relay.process import app
from relay.process.child import WorkerProcess
from relay.process.reloading import Settings
from relay.process.upkeep import held_mail_kept
from relay.process.worker import Texts, Worker
from relay.runtime import signals
from relay.runtime.aio import InDaemon, in_background
from relay.runtime.notify import READY, STOPPING, notify, stay_alive
from relay.runtime.stopping import Stop, Stopped, stop_on_signals
from relay.store.migrations import migrate
from relay.store.neighbours import WORKER_IDS, Neighbours, shared_memory
from relay.store.secret_file import make_directory
from relay.store.sqlite import sole_relay
from relay.store.store import BUSY_TIMEOUT_S

log = structlog.get_logger(__name__)

START_S = 60.0
"""Maximum time until a restarted worker serves, in seconds; many policy files take long."""
PAUSES_S = (0.1, 1.0, 5.0, 30.0)
"""Pauses before a worker is restarted, in seconds: longer each time it ends soon after its start."""
SOON_S = 60.0
TRIES = 4
"""Number of consecutive early ends after which the relay ends, if no other worker serves."""
READ_S = 10.0
"""Timeout of reloading relay.toml, in seconds; then the workers reload the rest."""
STOP_S = 70.0
"""Shutdown grace period of a worker, in seconds; shorter than the service manager's."""
LOOK_S, MOST_SILENT, MOST_STARTING = 10.0, 6, 12
"""Poll interval, in seconds, and maximum number of polls without a heartbeat: of a worker, and of a starting one.

The latter may have many received keys to take over."""


@dataclass(slots=True, eq=False)
class _Running:
    """One worker's process and its reports: the addresses (None: it has ended earlier) and the keys.

    `reloads` is the number of reloads when it was started. `silent` is the number of polls since its last heartbeat.
    """

    number: int
    worker_id: int
    place: int
    process: WorkerProcess
    began: float
    reloads: int
    addresses: asyncio.Future[Mapping[str, TCPAddress] | None]
    silent: int = 0
    keys: dict[str, Any] | None = None


class Workers:
    """All workers of a serving relay."""

    def __init__(self, config: Config, relay_toml: Path, common: Worker, settings: Settings, stop: Stop) -> None:
        """`common` has the fields of a worker except number, worker ID and connection; `relay_toml` is its file.

        `settings` are reloaded before the workers reload. `stop` is requested when no worker serves, and none can be
        started.
        """
        self._stop = stop
        self._config = config
        self._settings = settings
        self._relay_toml = relay_toml
        self._common = common
        self._running: dict[int, _Running] = {}
        self._neighbours = Neighbours(common.neighbours)
        self._places = BoardPlaces(common.board, _most_at_once(common.of))
        self._running_now: set[_Running] = set()
        self._watching: set[asyncio.Task[None]] = set()
        self._last_worker_id = self._reloads = 0
        self._ended_soon: Counter[int] = Counter()
        self._stopping = asyncio.Event()
        self._anew = asyncio.Event()
        self._again = asyncio.Event()

    async def start(self) -> Mapping[str, TCPAddress]:
        """Starts all at once; returns the addresses of the first one. Raises Stopped if one of them cannot serve."""
        numbers = range(1, self._common.of + 1)
        self._running = dict(zip(numbers, await asyncio.gather(*map(self._started, numbers)), strict=True))
        addresses = await asyncio.gather(*(each.addresses for each in self._running.values()))
        sockets = [each for each in addresses if each is not None]
        if len(sockets) < len(addresses):
            raise Stopped("a worker could not start; what it said stands above")
        return sockets[0]

    async def restart_hanging(self) -> None:
        """Restarts workers without a heartbeat, until cancelled: those whose event loop hangs, or that do not start.

        Counts polls, not seconds: steal time of this process does not count.
        """
        while True:
            await asyncio.sleep(LOOK_S)
            for each in self._running_now:
                each.silent += 1
                serves = each.addresses.done()
                if each.silent > (MOST_SILENT if serves else MOST_STARTING):
                    log.error("worker_hangs", worker=each.number, process=each.process.pid, serves=serves)
                    each.process.send_signal(signal.SIGKILL)

    async def keep_up(self) -> None:
        """Restarts all workers at SIGUSR1, one after the other; runs until cancelled."""
        while True:
            await self._anew.wait()
            self._anew.clear()
            await self._all_anew()

    async def stop(self) -> None:
        """Stops all workers after their mails in flight; kills those that do not end. Nothing is lost."""
        self._stopping.set()
        for each in self._running_now:
            each.process.send_signal(signal.SIGTERM)
        if self._watching:
            await asyncio.wait(self._watching, timeout=STOP_S)
        for each in self._running_now:
            log.error("worker_does_not_end", worker=each.number, process=each.process.pid)
            each.process.send_signal(signal.SIGKILL)
        while self._watching:
            await asyncio.wait(self._watching)

    def reload(self) -> None:
        """Requests a reload of relay.toml and of all workers."""
        self._again.set()

    async def keep_settings(self) -> None:
        """Reloads relay.toml at each `reload`, then the workers; runs until cancelled.

        A starting worker reloads once it serves: SIGHUP would kill it now.
        """
        reading = InDaemon(self._settings.reload)
        while True:
            await self._again.wait()
            self._again.clear()
            try:
                async with asyncio.timeout(READ_S):
                    await reading.run()
            except (TimeoutError, RuntimeError) as error:  # it hangs, or there is no thread: the rest is reloaded
                log.error("not_reloaded", what="Settings", cause=str(error) or f"not read within {READ_S:g} s")
            self._reloads += 1
            for each in self._running_now:
                if _serves(each):
                    each.process.send_signal(signal.SIGHUP)

    def start_anew(self) -> None:
        """Requests a restart of all workers, for instance after an upgrade, without downtime."""
        self._anew.set()

    def _first_alone(self, kmes: Sequence[str]) -> None:
        """Lets only the first worker draw from KMEs that drop undelivered keys, since others would hold all mail."""
        others = [each for number, each in self._running.items() if number > 1]
        if others:
            log.error("workers_end", kmes=kmes, cause="they drop undelivered keys: one process serves; set workers = 1")
        self._running = {number: each for number, each in self._running.items() if number == 1}
        for each in others:
            each.process.send_signal(signal.SIGTERM)

    async def _all_anew(self) -> None:
        """Restarts all workers in turn; each old one only ends once the new one serves."""
        for number in sorted(self._running):
            if number not in self._running:
                continue
            try:
                new = await self._started(number)
            except OSError as error:
                log.error("workers_not_started_anew", worker=number, cause=f"{error}: the old ones stay")
                return
            await asyncio.wait([new.addresses], timeout=START_S)
            if not _serves(new):
                log.error(
                    "workers_not_started_anew", worker=number, cause="the new one cannot serve: the old ones stay"
                )
                new.process.send_signal(signal.SIGKILL)
                return
            if number not in self._running:  # only the first one serves now
                new.process.send_signal(signal.SIGTERM)
                continue
            old, self._running[number] = self._running[number], new
            # Not SIGTERM, which would disconnect new clients. A worker that does not serve yet, since it replaced one
            # that has ended meanwhile, would miss the signal, and stay.
            old.process.send_signal(signal.SIGUSR2 if _serves(old) else signal.SIGKILL)
            await old.process.wait()
        log.info("workers_started_anew", workers=self._common.of)

    async def _watch(self, running: _Running) -> None:
        """Restarts a worker that has ended unexpectedly."""
        status = await running.process.wait()
        # Only now: while a process is ending, its files may still be locked.
        self._neighbours.has_ended(running.worker_id)
        self._places.has_ended(running.place)
        self._running_now.discard(running)
        if self._is_over(running):
            return
        log.error("worker_ended", worker=running.number, status=status)
        soon = asyncio.get_running_loop().time() - running.began < SOON_S
        self._ended_soon[running.number] = self._ended_soon[running.number] + 1 if soon else 0
        self._end_where_none_serves(running.number)
        await self._pause(running.number)
        while not self._is_over(running):
            try:
                new = await self._started(running.number)
            except OSError as error:  # no process or descriptor available; retried later
                log.error("worker_not_started", worker=running.number, cause=str(error))
                self._ended_soon[running.number] += 1
                self._end_where_none_serves(running.number)
                await self._pause(running.number)
            else:
                if self._is_over(running):  # replaced meanwhile
                    new.process.send_signal(signal.SIGTERM)
                else:
                    self._running[running.number] = new

    def _is_over(self, running: _Running) -> bool:
        """Whether it must not be restarted."""
        return self._stopping.is_set() or self._running.get(running.number) is not running

    def _end_where_none_serves(self, number: int) -> None:
        """Ends the relay if no worker serves, so that the service manager restarts it or reports the failure."""
        serving = any(map(_serves, self._running_now))
        if self._ended_soon[number] >= TRIES and not serving:
            self._stop.request("no worker serves, and none can be started; what they said stands above")

    async def _pause(self, number: int) -> None:
        with suppress(TimeoutError):
            pause = PAUSES_S[min(self._ended_soon[number], len(PAUSES_S) - 1)]
            await asyncio.wait_for(self._stopping.wait(), pause)

    async def _started(self, number: int) -> _Running:
        """Starts a worker. Raises OSError if there can be no further process."""
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        ours.setblocking(False)
        reloads, worker_id, place = self._reloads, self._new_worker_id(), self._places.take()
        with theirs:
            worker = replace(self._common, number=number, supervisor=theirs.fileno(), worker_id=worker_id, place=place)
            try:
                process = WorkerProcess(worker, self._relay_toml)
            except BaseException:
                ours.close()
                self._places.has_ended(place)
                raise
        log.info("worker_started", worker=number, process=process.pid)
        loop = asyncio.get_running_loop()
        running = _Running(number, worker_id, place, process, loop.time(), reloads, loop.create_future())
        self._running_now.add(running)
        for work in (self._listen(running, ours), self._watch(running)):
            task = asyncio.create_task(work)
            self._watching.add(task)
            task.add_done_callback(self._watching.discard)
        if self._stopping.is_set():
            process.send_signal(signal.SIGTERM)
        return running

    def _new_worker_id(self) -> int:
        self._last_worker_id = self._last_worker_id % (WORKER_IDS - 1) + 1
        self._neighbours.lives(self._last_worker_id)
        return self._last_worker_id

    async def _listen(self, running: _Running, channel: socket.socket) -> None:
        """Receives a worker's messages until it has ended."""
        with channel:
            while message := await Worker.receive(channel):
                kind, value = message
                running.silent = 0
                if kind == "serves" and not running.addresses.done():
                    running.addresses.set_result({name: TCPAddress(*where) for name, where in value.items()})
                    if running.reloads < self._reloads:
                        running.process.send_signal(signal.SIGHUP)
                elif kind == "keys":
                    running.keys = value
                    self._write_keys()
                elif kind == "alone":
                    self._first_alone(value)
            if not running.addresses.done():
                running.addresses.set_result(None)

    def _write_keys(self) -> None:
        reports = [each.keys for each in self._running.values() if each.keys is not None]
        try:
            write_whole(self._config.keys_file, json.dumps(together(reports)))
        except OSError as error:  # the next one may succeed
            log.warning("key_report_not_written", cause=error.strerror)


async def serve(
    config: Config,
    relay_toml: Path,
    text: str,
    ready: Callable[[Mapping[str, TCPAddress]], None],
    refuse: Callable[[Path], None],
    passed: Sequence[int] = (),
) -> None:
    """Runs all workers until SIGTERM or SIGINT. Raises ConfigError, and Stopped where one cannot start.

    `text` is that of `relay_toml`. `ready` is called once all serve, with their addresses. `refuse` raises ConfigError
    for a file from which no settings are taken. `passed` are descriptors of listening sockets (all_bound).
    """
    with stop_on_signals() as stop:
        async with AsyncExitStack() as stack:
            sockets = await app.bound(config, passed)
            stack.callback(close_all, sockets)
            neighbours = shared_memory()
            stack.callback(os.close, neighbours)
            board = shared_board(_most_at_once(config.limits.workers))
            stack.callback(os.close, board)
            lock = -1
            if isinstance(config.store.database, Path):
                database = await asyncio.to_thread(resolved, config.store.database)
                lock = await stack.enter_async_context(sole_relay(database))
            await migrate(config.store.database, busy_timeout=BUSY_TIMEOUT_S)
            await asyncio.to_thread(make_directory, config.own_directory)
            await stack.enter_async_context(sole_recorder(config.audit_directory))
            await stack.enter_async_context(held_mail_kept(held_on(board), config.held_file))
            relay_toml_here = os.memfd_create("relay.toml")  # not closed: a thread may still come to write there
            texts = Texts(relay_toml_here)
            texts.add(text)
            common = Worker(
                0, config.limits.workers, _descriptors(sockets), relay_toml_here, supervisor=-1,
                neighbours=neighbours, board=board, lock=lock,
            )  # fmt: skip
            read_again = partial(_read_again, config, texts, relay_toml, refuse)
            workers = Workers(config, relay_toml, common, Settings(config, read_again), stop)
            stack.push_async_callback(workers.stop)
            # First: clients that connect while the last mails end would never be served, nor refused.
            stack.callback(close_all, sockets)
            await _serve(workers, stop, ready)
        if stop.cause:
            raise Stopped(stop.cause)


def _read_again(started: Config, texts: Texts, relay_toml: Path, refuse: Callable[[Path], None]) -> Config:
    """Reloads relay.toml and adds it to `texts` for the workers. Raises ConfigError, without adding it."""
    refuse(relay_toml)
    text = toml.read(relay_toml)
    config = load_config(relay_toml, text)
    taken_over(started, config)
    if text != texts.last:
        texts.add(text)
    return config


async def _serve(workers: Workers, stop: Stop, ready: Callable[[Mapping[str, TCPAddress]], None]) -> None:
    signals.on_signal(signal.SIGHUP, workers.reload)
    signals.on_signal(signal.SIGUSR1, workers.start_anew)
    async with (
        in_background("silent workers", workers.restart_hanging),
        in_background("settings", workers.keep_settings),
    ):
        try:
            addresses = await stop.or_end(workers.start())
        except Stopped:
            if stop.requested:  # `serve` raises the cause where there is one
                return
            raise
        async with in_background("watchdog", stay_alive), in_background("workers", workers.keep_up):
            ready(addresses)
            notify(READY)
            await stop.wait()
            notify(STOPPING)


def _most_at_once(workers: int) -> int:
    """Maximum number of processes at once: an old worker may end while a new one serves, and a third starts."""
    return 3 * workers


def _serves(running: _Running) -> bool:
    """Whether it has reported that it serves."""
    return running.addresses.done() and running.addresses.result() is not None


def _descriptors(sockets: Sockets) -> dict[str, tuple[int, ...]]:
    return {name: tuple(each.fileno() for each in some) for name, some in sockets.items()}
