"""Fetches received keys from KMEs so that a kill loses none: replies are spooled first.
Standard: ETSI GS QKD 014 V1.1.1, 5.4: a key is delivered once, so the reply is stored before anything else.

A serving relay, `imap once` and `open` use a separate process for this. It completes calls in flight when they are
killed: otherwise a key could be lost between a KME's answer and its reading. The reply of an abandoned call is still
read while there is room: a KME that answers late has delivered keys.
"""

from __future__ import annotations

import asyncio
import json
import socket
import struct
import time
from collections.abc import Callable, Coroutine, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from itertools import count
from typing import TYPE_CHECKING, Any, Literal, Protocol

import structlog

from relay.errors import KMEBadReply, StoreUnavailable
from relay.key_receiver.asked import GONE_ON, KeyCall, is_note
from relay.keys.faults import KMEFault
from relay.keys.http import HTTPReply, HTTPRequest, NoAnswer
from relay.keys.replies import json_body, keys_asked_for
from relay.keys.skip import key_asked_for

if TYPE_CHECKING:
    from relay.keys.transport import Transport

log = structlog.get_logger(__name__)

CLOSING_S = 5.0
"""Shutdown grace period for calls under way, in seconds. They continue, and the next relay imports their keys."""
HAND_OVER_S = 5.0
"""Timeout of handing over the spool, in seconds; the rest is handed over later."""
SILENT_S = 10.0
"""Silence of the process, in seconds, after which no KME is asked through it."""
READS_ON_S = 30.0
"""Time the process waits for a KME after its caller has given up, in seconds: late keys are usable."""
Interface = Literal["etsi014", "skip"]
_FRAME = struct.Struct("!II")


class ReplySpool(Protocol):
    """The spool for replies; see relay.store.spool."""

    @property
    def written(self) -> bool:
        """Whether the file has any records."""

    def ready(self) -> None:
        """Reserves disk space for the next replies. Raises StoreUnavailable."""

    def append(self, record: bytes) -> None:
        """Writes a record that survives this process. Raises StoreUnavailable."""

    def note(self, record: bytes) -> None:
        """Writes a note that matters only if this process is killed. Raises StoreUnavailable."""

    def flush(self) -> None:
        """Waits until all records are on the disk. Raises StoreUnavailable; blocks."""

    def hand_over(self, carried: Sequence[bytes] = (), last: bytes = b"") -> None:
        """Closes the file with a `last` note, and begins a new one with the `carried` notes."""

    def close(self) -> None:
        """Closes the file."""


class ReceiverHere:
    """A receiver in this process. With `flush` replies are flushed to the disk at once; several share one flush.

    The flush is not awaited: opened mail is released only after its keys are in the store (admit).
    """

    def __init__(self, spool: ReplySpool, kmes: Mapping[str, tuple[str, Interface]], *, flush: bool = False) -> None:
        """`kmes` has the group and interface of each KME, by name."""
        self._spool = spool
        self._kmes = kmes
        self._flush = flush
        self._flushing = asyncio.Lock()
        self._flusher: asyncio.Task[None] | None = None
        self._appended = self._flushed = 0
        self._under_way: dict[int, KeyCall] = {}
        self._calls = count()

    async def send(
        self, kme: str, transport: Transport, request: HTTPRequest, within: float, on_sent: Callable[[], None]
    ) -> HTTPReply:
        """As Receiver.send."""
        group, interface = self._kmes[kme]
        reply = await self._asked(KeyCall(group, request.sae, request.key_IDs), transport, request, within, on_sent)
        if reply.code == 200 and reply.whole:
            delivered = Delivered(group, interface, request.sae, request.key_IDs, reply.body)
            try:
                self._spool.append(delivered.encoded())
            except StoreUnavailable as error:  # the keys are in memory, and the store may accept them
                log.error("received_keys_not_spooled", kme=kme, cause=str(error))
                return reply
            self._appended += 1
            if self._flush:
                self._flush_soon()
                return replace(reply, kept=True)
        return reply

    async def _asked(
        self, call: KeyCall, transport: Transport, request: HTTPRequest, within: float, on_sent: Callable[[], None]
    ) -> HTTPReply:
        """The reply to a call that is noted first: a start after a kill then knows which keys were spent.

        Raises NoAnswer, and StoreUnavailable if it could not be noted: not asked.
        """
        self._spool.ready()
        self._spool.note(call.asked())
        number = next(self._calls)
        self._under_way[number] = call
        try:
            reply = await transport.send(request, within, on_sent)
        except NoAnswer as error:
            if not error.sent:
                self._costs_no_key(call)
            raise
        finally:
            del self._under_way[number]
        if reply.code != 200:
            self._costs_no_key(call)
        return reply

    def _costs_no_key(self, call: KeyCall) -> None:
        with suppress(StoreUnavailable):  # matters only for a kill within the next second
            self._spool.note(call.over())

    def _flush_soon(self) -> None:
        """Starts a flush; one in progress continues until all is on the disk."""
        if self._flusher is None or self._flusher.done():
            self._flusher = asyncio.create_task(self._flush_all(), name="flush replies")

    async def _flush_all(self) -> None:
        try:
            async with self._flushing:
                while self._flushed < self._appended:
                    await self._flush_once()
        except StoreUnavailable as error:  # no kill loses them, and the store may accept them
            log.error("received_keys_not_spooled", cause=str(error))

    async def _flush_once(self) -> None:
        """Raises StoreUnavailable."""
        all_of_them = self._appended
        await asyncio.to_thread(self._spool.flush)
        self._flushed = all_of_them

    async def hand_over(self) -> None:
        """As Receiver.hand_over."""
        async with self._flushing:
            try:
                # After an await the next file would be flushed, not the one with the reply.
                while self._flush and self._flushed < self._appended:
                    await self._flush_once()
            except StoreUnavailable as error:  # the file is readable, and the store may accept it now
                log.error("received_keys_not_spooled", cause=str(error))
            self._flushed = self._appended
            self._spool.hand_over([call.asked() for call in self._under_way.values()], GONE_ON)

    async def close(self) -> None:
        """As Receiver.close."""
        if self._flusher is not None:
            await self._flusher
        if not self._under_way and self._spool.written:
            with suppress(StoreUnavailable):
                self._spool.note(GONE_ON)
        self._spool.close()


class ReceiverProcess:
    """A receiver in the process at the other end of a socket; `instead` is used once that has ended."""

    def __init__(
        self,
        connection: socket.socket,
        instead: ReceiverHere,
        kept: Callable[[str, HTTPRequest], None] = lambda _kme, _request: None,
    ) -> None:
        """`kept` is called with the KME's name and each request whose reply is safe from kills."""
        self._connection = connection
        self._instead = instead
        self._kept = kept
        self._writer: asyncio.StreamWriter | None = None
        self._reading: asyncio.Task[None] | None = None
        self._opening = asyncio.Lock()
        self._waiting: dict[int, asyncio.Future[tuple[dict[str, Any], bytes]]] = {}
        self._numbers = count(1)
        self._closing = False
        self._heartbeat: asyncio.Task[Any] | None = None
        self._heartbeat_at = 0.0
        self.ended = asyncio.Event()
        """Set once the process has ended unexpectedly."""

    @property
    def silent_s(self) -> float:
        """Time since the first handing over that the process has not answered, in seconds; 0 if it answers."""
        if self._heartbeat is None or self._heartbeat.done():
            return 0.0
        return time.monotonic() - self._heartbeat_at

    async def send(
        self, kme: str, transport: Transport, request: HTTPRequest, within: float, on_sent: Callable[[], None]
    ) -> HTTPReply:
        """As Receiver.send."""
        if not await self._open():
            return await self._instead.send(kme, transport, request, within, on_sent)
        if self.silent_s >= SILENT_S:
            raise self._silent()
        times = {"patience": within, "within": max(within, READS_ON_S)}
        asked = {"kme": kme, **times, "request": request.as_json()}
        on_sent()
        try:
            async with asyncio.timeout(within):
                answer, body = await self._ask(asked)
        except TimeoutError as error:
            if self.silent_s > within / 2:
                raise self._silent() from error  # the KME may have answered
            cause = f"no answer within {within:.1f} s; should one come, its keys are kept"
            raise NoAnswer(cause, sent=True, fault=KMEFault.UNREACHABLE) from error
        if "not_stored" in answer:
            raise StoreUnavailable(answer["not_stored"])
        if "cause" in answer:
            fault = KMEFault(answer["fault"])
            raise NoAnswer(answer["cause"], sent=answer["sent"], fault=fault)
        if answer["kept"]:
            self._kept(kme, request)
        return HTTPReply(answer["code"], body, answer["retry_after"], answer["kept"], answer["whole"])

    async def hand_over(self) -> None:
        """As Receiver.hand_over."""
        await self._instead.hand_over()
        if not await self._open():
            return
        if self._heartbeat is None or self._heartbeat.done():
            self._heartbeat_at = time.monotonic()
            self._heartbeat = asyncio.create_task(self._hand_over(), name="key receiver's heartbeat")
        await asyncio.wait([self._heartbeat], timeout=HAND_OVER_S)

    async def _hand_over(self) -> None:
        with suppress(NoAnswer):
            await self._ask({"hand_over": True})

    def _silent(self) -> StoreUnavailable:
        return StoreUnavailable(f"the process `relay keys` has not answered for {self.silent_s:.0f} s")

    async def close(self) -> None:
        """As Receiver.close."""
        if await self._open() and self._writer is not None and self._reading is not None:
            self._closing = True
            self._writer.write_eof()
            await asyncio.wait([self._reading], timeout=CLOSING_S)
            self._reading.cancel()
            if self._heartbeat is not None:
                self._heartbeat.cancel()
            await asyncio.gather(self._reading, return_exceptions=True)
            self._writer.close()
        await self._instead.close()

    async def _open(self) -> bool:
        """Whether the process is running."""
        async with self._opening:
            if self._reading is None:
                reader, self._writer = await asyncio.open_unix_connection(sock=self._connection)
                self._reading = asyncio.create_task(self._read(reader), name="key receiver")
        return not self._reading.done()

    async def _ask(self, asked: dict[str, Any]) -> tuple[dict[str, Any], bytes]:
        """The answer to one frame. Raises NoAnswer if the process has ended."""
        assert self._writer is not None  # noqa: S101 - set by _open
        number = next(self._numbers)
        answer: asyncio.Future[tuple[dict[str, Any], bytes]] = asyncio.get_running_loop().create_future()
        self._waiting[number] = answer
        self._writer.write(frame({"number": number, **asked}))
        try:
            return await answer
        finally:
            self._waiting.pop(number, None)

    async def _read(self, reader: asyncio.StreamReader) -> None:
        """Dispatches answers to their callers, until the process has ended."""
        with suppress(OSError):
            while (message := await read_frame(reader)) is not None:
                answer, body = message
                future = self._waiting.get(answer["number"])
                if future is not None and not future.done():
                    future.set_result((answer, body))
        if not self._closing:
            log.error("key_receiver_ended", meaning="replies that were on their way to it are lost")
            self.ended.set()
        for future in self._waiting.values():
            if not future.done():
                future.set_exception(_ended())


def _ended() -> NoAnswer:
    return NoAnswer("the key receiver has ended", sent=True, fault=KMEFault.UNREACHABLE)


def frame(header: Mapping[str, Any], body: bytes | bytearray = b"") -> bytes:
    """A JSON object and bytes, both after their lengths (4 bytes each)."""
    encoded = json.dumps(header).encode()
    return _FRAME.pack(len(encoded), len(body)) + encoded + body


async def read_frame(reader: asyncio.StreamReader) -> tuple[dict[str, Any], bytes] | None:
    """The next frame; None at the end of the stream."""
    try:
        lengths = _FRAME.unpack(await reader.readexactly(_FRAME.size))
        header, body = [await reader.readexactly(length) for length in lengths]
    except (asyncio.IncompleteReadError, ConnectionError):
        return None
    decoded: dict[str, Any] = json.loads(header)
    return decoded, body


@dataclass(frozen=True, slots=True)
class Delivered:
    """The body of a reply, with its KME group and interface, and the requested master SAE and key_IDs."""

    group: str
    interface: Interface
    master_sae: str
    key_IDs: tuple[str, ...]
    body: bytes | bytearray = field(repr=False)

    def encoded(self) -> bytes:
        """One record of a key spool, for `decoded`."""
        header = [self.group, self.interface, self.master_sae, self.key_IDs]
        return json.dumps(header).encode() + b"\0" + self.body

    @classmethod
    def decoded(cls, record: bytes) -> Delivered:
        """The reply in a record. Raises ValueError unless written by `encoded`."""
        header, _, body = record.partition(b"\0")
        group, interface, master_sae, key_IDs = json.loads(header)
        return cls(group, interface, master_sae, tuple(key_IDs), body)

    @property
    def call(self) -> KeyCall:
        """The call of this reply."""
        return KeyCall(self.group, self.master_sae, self.key_IDs)

    def keys(self) -> dict[str, bytes]:
        """The requested keys in the reply, as bytes by key_ID."""
        try:
            if self.interface == "skip":
                keys = [key_asked_for("", self.body, key_ID) for key_ID in self.key_IDs]
                return {key.key_ID: key.key for key in keys}
            found, _ = keys_asked_for(json_body("", self.body, len(self.key_IDs)), self.key_IDs)
        except KMEBadReply:
            return {}
        return {key_ID: key.key for key_ID, key in found.items()}


def replies_in(records: Iterable[bytes]) -> list[Delivered]:
    """The replies among the records of a spool, without the notes. Raises ValueError as `Delivered.decoded` does."""
    return [Delivered.decoded(record) for record in records if not is_note(record)]


LATE_SHARE = 3
"""Number of connections for late calls, for each connection for awaited calls."""


class CallsUnderWay:
    """Calls in flight. Late ones have extra connections, so that new ones need not wait for them or cancel them.

    Cancelling a call that the KME has begun to answer loses its keys, and mail with them.
    """

    def __init__(self, connections: int) -> None:
        """`connections` is the number for awaited calls."""
        self._late_at_most = LATE_SHARE * connections
        self._connections = connections + self._late_at_most
        self._all: set[asyncio.Task[None]] = set()
        self._counted: set[asyncio.Task[None]] = set()
        self._sent: set[asyncio.Task[None]] = set()
        self._late: list[asyncio.Task[None]] = []

    def begin(self, call: Callable[[Callable[[], None]], Coroutine[None, None, None]], patience: float) -> None:
        """Begins a call with `patience` seconds before it is late; `call` reports when its request is sent."""
        task = asyncio.create_task(call(lambda: self._sent.add(task)))
        self._all.add(task)
        self._counted.add(task)
        timer = asyncio.get_running_loop().call_later(patience, self._nobody_waits, task)
        task.add_done_callback(lambda _: timer.cancel())
        task.add_done_callback(self._ended)
        self._make_way()

    async def ended(self) -> None:
        """Waits for all calls."""
        await asyncio.gather(*self._all, return_exceptions=True)

    def _nobody_waits(self, task: asyncio.Task[None]) -> None:
        if task in self._sent:
            self._late.append(task)
            self._make_way()
        else:  # it has spent no key, and will be repeated
            self._give_up(task)

    def _make_way(self) -> None:
        """Cancels the newest late calls first: the oldest are likeliest to be answered."""
        while len(self._counted) > self._connections and len(self._late) > self._late_at_most:
            self._give_up(self._late[-1])

    def _give_up(self, task: asyncio.Task[None]) -> None:
        self._forget(task)
        task.cancel()

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._all.discard(task)
        self._forget(task)
        if not task.cancelled():
            task.exception()  # reported to its callers

    def _forget(self, task: asyncio.Task[None]) -> None:
        self._counted.discard(task)
        self._sent.discard(task)
        if task in self._late:
            self._late.remove(task)
