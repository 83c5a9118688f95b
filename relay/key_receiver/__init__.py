"""Received keys on their way into the store: the process that fetches them from KMEs, and the import of its replies.
If the relay is killed, calls in flight are completed, and their replies are in the spool.

Processes that open mail start it, except for `quarantine release`, and use it over a socket (receiver.py).
"""

from __future__ import annotations

import asyncio
import os
import signal
import socket
from collections import defaultdict
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

import structlog
import uvloop

from relay.config import Config, KMESettings
from relay.errors import KMEBadReply, StoreUnavailable
from relay.key_receiver.asked import is_note, unanswered
from relay.key_receiver.receiver import (
    LATE_SHARE,
    CallsUnderWay,
    Delivered,
    Interface,
    ReceiverHere,
    ReceiverProcess,
    frame,
    read_frame,
    replies_in,
)
from relay.keys.build import km_client
from relay.keys.client import KMEClient
from relay.keys.faults import KMEFault
from relay.keys.http import HTTPRequest, NoAnswer, Receiver
from relay.runtime import heap
from relay.runtime.prctl import name_process
from relay.store.received import ReceivedKeys
from relay.store.received_table import KeyName
from relay.store.record_files import take_over
from relay.store.secret import SiteSecret
from relay.store.spool import SUFFIX, Spool

log = structlog.get_logger(__name__)

SPOOL = "keys.spool"
"""Name of the spool directory."""
TAKE_OVER_S = 1.0
"""Interval of importing replies into the store, in seconds."""


class Receiving:
    """Fetches received keys for one relay or command, and imports them into the store."""

    def __init__(
        self, config: Config, secret: SiteSecret, received: ReceivedKeys, process: socket.socket | None = None
    ) -> None:
        """`process` is the socket of a receiver process, from `start`; without one this process asks itself."""
        self._directory = config.state_directory / SPOOL
        self._secret = secret
        self._received = received
        self._origins = _origins(config)
        here = ReceiverHere(Spool(self._directory, secret), self._origins)
        self._process = ReceiverProcess(process, here, self._kept) if process is not None else None
        self.receiver: Receiver = self._process or here

    @property
    def process_has_ended(self) -> bool:
        """Whether the receiver process has ended unexpectedly: this process then asks, and a kill may lose keys."""
        return self._process is not None and self._process.ended.is_set()

    @property
    def process_silent_s(self) -> float:
        """Time for which the receiver process has not answered, in seconds; 0 if it answers."""
        return self._process.silent_s if self._process is not None else 0.0

    async def process_ended(self) -> None:
        """Waits until it has ended; forever without one."""
        await (self._process.ended if self._process is not None else asyncio.Event()).wait()

    async def take_over(self) -> None:
        """Imports the replies left by killed relays and commands. Raises StoreUnavailable."""
        have_rows = self._received.taken_over_from_now_on()
        await self.receiver.hand_over()
        if number := await take_over_keys(self._directory, self._secret, self._received, have_rows):
            log.debug("received_keys_taken_over", number=number)
        with suppress(StoreUnavailable):  # all is stored; the rest of the cleanup can wait
            await self._received.forget_taken_over()

    def _kept(self, kme: str, request: HTTPRequest) -> None:
        group, _ = self._origins[kme]
        self._received.spooled(group, request.sae, request.key_IDs)

    async def go_on(self) -> None:
        """Imports replies forever; while the store is unavailable they wait in the spool, and no KME is asked."""
        while True:
            try:
                await self.take_over()
            except (StoreUnavailable, OSError) as error:
                log.error("received_keys_not_stored", cause=str(error))
            await asyncio.sleep(TAKE_OVER_S)

    async def close(self) -> None:
        """Waits for calls in flight, and imports their replies; if need be the next relay does."""
        await self.receiver.close()
        try:
            await self.take_over()
        except (StoreUnavailable, OSError) as error:
            log.error("received_keys_wait_in_spool", directory=str(self._directory), cause=str(error))


async def take_over_keys(
    directory: Path, secret: SiteSecret, received: ReceivedKeys, have_rows: frozenset[KeyName] = frozenset()
) -> int:
    """Imports the keys of all replies in closed files into the store; returns the number of keys.

    Keys that already `have_rows` are skipped. A key that the store has, or had, is unchanged. Raises StoreUnavailable:
    the rest is imported later.
    """

    async def put(records: Sequence[bytes]) -> int:
        found, lost = await asyncio.to_thread(_keys_and_lost, records, have_rows)
        if lost:
            await received.note_unanswered(lost)
            log.error(
                "keys_lost_on_the_way",
                number=len(lost),
                meaning="who asked for them was killed before reading the reply",
            )
        for (group, master), keys in found.items():
            try:
                await received.store(group, master, keys)
            except KMEBadReply as error:  # an invalid reply; the others are stored
                log.warning("received_key_not_taken_over", cause=str(error))
        return sum(map(len, found.values()))

    return await take_over(directory, SUFFIX, put, "keys that a KME has given are lost", secret)


def _keys_and_lost(
    records: Sequence[bytes], have_rows: frozenset[KeyName]
) -> tuple[dict[tuple[str, str], dict[str, bytes]], set[KeyName]]:
    """Keys without rows, as bytes by key_ID, by KME group and master SAE; and keys whose reply is lost.

    Raises ValueError for records of a newer relay.
    """
    replies = replies_in(records)
    calls = unanswered(filter(is_note, records), (reply.call for reply in replies))
    lost = {KeyName(call.group, call.master_sae, key_ID) for call in calls for key_ID in call.key_IDs}
    return _keys(replies, have_rows), lost


def _keys(replies: Sequence[Delivered], have_rows: frozenset[KeyName]) -> dict[tuple[str, str], dict[str, bytes]]:
    found: defaultdict[tuple[str, str], dict[str, bytes]] = defaultdict(dict)
    for delivered in replies:
        group, master = delivered.group, delivered.master_sae
        if all(KeyName(group, master, key_ID) in have_rows for key_ID in delivered.key_IDs):
            continue
        keys = delivered.keys().items()
        found[group, master].update((name, key) for name, key in keys if KeyName(group, master, name) not in have_rows)
    return found


def start(config: Config, not_for_it: Sequence[int] = ()) -> socket.socket:
    """Starts the receiver process and returns its socket; it ends when that is closed.

    Call it before any event loop or thread exists, since a fork would copy part of them. It closes the descriptors
    `not_for_it`: it outlives this process, and would keep locks and sockets.
    """
    own_end, child_end = socket.socketpair()
    # A page is shared until either process writes to it, and a garbage collection writes to all it visits.
    heap.set_aside()
    if os.fork():
        child_end.close()
        return own_end
    status = 1
    try:
        own_end.close()
        for each in not_for_it:
            os.close(each)
        os.setsid()
        name_process("relay keys")
        # systemd signals all processes of a service at once (SIGABRT: its watchdog): this one has to finish its calls
        # first.
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGABRT, signal.SIGUSR1, signal.SIGUSR2):
            signal.signal(number, signal.SIG_IGN)
        uvloop.run(_serve(child_end, config))
        status = 0
    except BaseException as error:  # noqa: BLE001 - the relay's own code must not continue here
        log.error("key_receiver_failed", cause=f"{type(error).__name__}: {error}")
    finally:
        os._exit(status)


async def _serve(connection: socket.socket, config: Config) -> None:
    reader, writer = await asyncio.open_unix_connection(sock=connection)
    clients = {name: km_client(name, _with_room_for_late_calls(kme)) for name, kme in config.kmes.items()}
    under_way = {name: CallsUnderWay(kme.pool_maxsize) for name, kme in config.kmes.items()}
    message = await read_frame(reader)
    if message is None:
        return
    # Only after the first request: the relay creates the secret, and only if it can start.
    receiver = ReceiverHere(
        Spool(config.state_directory / SPOOL, SiteSecret.load(config.store.secret)), _origins(config), flush=True
    )
    handing_over: set[asyncio.Task[None]] = set()
    while message is not None:
        asked, _ = message
        if "hand_over" in asked:  # a stalling disk must not delay calls for keys
            task = asyncio.create_task(_hand_over(writer, receiver, asked["number"]))
            handing_over.add(task)
            task.add_done_callback(handing_over.discard)
        else:
            answer = partial(_answer, writer, receiver, clients[asked["kme"]], asked)
            under_way[asked["kme"]].begin(answer, asked["patience"])
        message = await read_frame(reader)
    await asyncio.gather(*handing_over, *(calls.ended() for calls in under_way.values()))
    await receiver.close()
    await asyncio.gather(*(client.close() for client in clients.values()))
    writer.close()


async def _hand_over(writer: asyncio.StreamWriter, receiver: ReceiverHere, number: int) -> None:
    await receiver.hand_over()
    writer.write(frame({"number": number}))


def _with_room_for_late_calls(kme: KMESettings) -> KMESettings:
    return kme.model_copy(update={"pool_maxsize": (1 + LATE_SHARE) * kme.pool_maxsize})


async def _answer(
    writer: asyncio.StreamWriter,
    receiver: ReceiverHere,
    client: KMEClient,
    asked: dict[str, Any],
    on_sent: Callable[[], None],
) -> None:
    answer: dict[str, Any]
    body: bytes | bytearray = b""
    try:
        request = HTTPRequest.from_json(asked["request"])
        await client.renewal.before_a_call(request.sae)
        reply = await receiver.send(asked["kme"], client.transport, request, asked["within"], on_sent)
        answer = {"code": reply.code, "retry_after": reply.retry_after, "kept": reply.kept, "whole": reply.whole}
        body = reply.body
    except NoAnswer as error:
        answer = {"cause": str(error), "sent": error.sent, "fault": str(error.fault)}
    except StoreUnavailable as error:
        answer = {"not_stored": str(error)}
    except Exception as error:  # noqa: BLE001 - reported to the caller; the process goes on
        log.error("key_receiver_failed", cause=f"{type(error).__name__}: {error}")
        answer = {"cause": type(error).__name__, "sent": True, "fault": str(KMEFault.UNREACHABLE)}
    with suppress(OSError):  # the caller has gone
        writer.write(frame({"number": asked["number"], **answer}, body))
        await writer.drain()


def _origins(config: Config) -> dict[str, tuple[str, Interface]]:
    """The group and interface of each KME, by name."""
    return {name: (kme.group, kme.interface) for name, kme in config.kmes.items()}
