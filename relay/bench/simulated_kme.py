"""A KME that is slow, runs dry, and misbehaves in every way that real ones do; for benchmarks, soak and tests.
Standard: ETSI GS QKD 014 V1.1.1 where it behaves; what it does otherwise was seen at real KMEs.

It speaks HTTP by hand, over real TLS, because no HTTP server breaks off where this one must. It remembers
every request, every key it issued and every key it delivered, so that a client's accounts can be checked.
"""

from __future__ import annotations

import asyncio
import base64
import json
import secrets
import ssl
import uuid
from collections import Counter, deque
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any, Self
from urllib.parse import parse_qsl, unquote, urlsplit

MISBEHAVIOURS = (
    "hang",  # accept the request, answer never
    "hang_in_body",  # half of the answer, then nothing
    "drop",  # close the connection instead of answering, before anything is spent
    "lose_reply",  # spend the keys, then close the connection
    "http",  # answer with `code`, `body`, `headers`
    "short",  # fewer keys than asked for (`number`, else half)
    "none",  # 200 with an empty list
    "too_many",  # one key more than asked for
    "wrong_length",  # keys of half the size
    "repeat_ids",  # all keys of the reply under one ID
    "same_again",  # the keys of the reply before
    "same_octets",  # the octets of the reply before under new IDs
    "other_keys",  # keys under IDs that were not asked for
    "lower_case",  # all field names in lower case
    "object_keys",  # `keys` as an object
    "capital_keys",  # `Keys` for `keys`
    "integer_ids",  # key_IDs as numbers
    "bad_base64",  # a key that is not base64
    "not_json",  # 200 with something else
    "close_unsaid",  # answer, then close the connection without having said so
    "late",  # the right answer, and no sooner than after `seconds`
)

_NOT_FOUND = "one or more keys specified are not found on KME"


@dataclass(frozen=True, slots=True)
class Misbehaviour:
    """One of MISBEHAVIOURS, with what it needs.

    `spends` False: the KME has keys by their key_IDs still that an answer did not bring.
    """

    kind: str
    code: int = 500
    body: str = ""
    headers: tuple[tuple[str, str], ...] = ()
    number: int | None = None
    seconds: float = 0.0
    spends: bool = True


@dataclass(frozen=True, slots=True)
class Received:
    """One request as the KME got it."""

    method: str
    path: str
    query: Mapping[str, str]
    content: Any
    connection: int

    @property
    def call(self) -> str:
        """`status`, `enc_keys` or `dec_keys`."""
        return self.path.rsplit("/", 1)[-1]


class SimulatedPair:
    """The keys that the two KMEs of a pair share: bits come at `rate` a second, up to `capacity`."""

    def __init__(
        self,
        *,
        capacity: float = float("inf"),
        rate: float = 0.0,
        clock: Callable[[], float] | None = None,
        remember: int | None = None,
    ) -> None:
        """Sizes are in bits; `clock` gives seconds and is needed with a `rate`.

        `remember` is how many keys are remembered at most, for long runs; None: all of them.
        """
        self._remember = remember
        self.number_issued = 0
        self.capacity = capacity
        self.rate = rate
        self.bits = capacity
        self.issued: dict[str, bytes] = {}
        self.times_issued: Counter[str] = Counter()
        self.times_delivered: Counter[str] = Counter()
        self.lost_on_the_way: set[str] = set()
        self.client_left: set[str] = set()
        """Of those on their way that were lost: the client had gone before the answer was there."""
        self.unknown_for: Counter[str] = Counter()
        """By key_ID: how many more times the other KME will say that it does not know it."""
        self.lag_asks = 0
        """How many times a new key is not known to the other KME."""
        self.drops_undelivered = False
        """Keys that were not delivered are gone when more are drawn, at either KME."""
        self.dropped: set[str] = set()
        self._undelivered: set[str] = set()
        self._clock = clock
        self._seen = clock() if clock else 0.0

    def draw(self, number: int, size: int) -> list[tuple[str, bytes]]:
        """Up to `number` new keys of `size` bits."""
        if self._clock:
            now = self._clock()
            self.bits = min(self.capacity, self.bits + (now - self._seen) * self.rate)
            self._seen = now
        if self.bits != float("inf"):
            number = min(number, int(self.bits // size))
            self.bits -= number * size
        if self.drops_undelivered:
            self.dropped |= self._undelivered
            self._undelivered.clear()
        keys = [(str(uuid.uuid4()), secrets.token_bytes(size // 8)) for _ in range(number)]
        self.issued |= dict(keys)
        self._undelivered.update(key_ID for key_ID, _ in keys)
        self.number_issued += len(keys)
        self.times_issued.update(key_ID for key_ID, _ in keys)
        while self._remember is not None and len(self.issued) > self._remember:
            oldest = next(iter(self.issued))
            del self.issued[oldest], self.times_issued[oldest]
            del self.times_delivered[oldest], self.unknown_for[oldest]
            for known in (self.lost_on_the_way, self.client_left, self.dropped, self._undelivered):
                known.discard(oldest)
        self.unknown_for.update({key_ID: self.lag_asks for key_ID, _ in keys if self.lag_asks})
        return keys

    def deliver(self, key_IDs: list[str]) -> tuple[list[tuple[str, bytes]], list[str]]:
        """The keys, each once, or nothing and the IDs that are not known (yet, or any more)."""
        missing = [key_ID for key_ID in key_IDs if not self._known(key_ID)]
        if missing:
            return [], missing
        self.times_delivered.update(key_IDs)
        self._undelivered.difference_update(key_IDs)
        return [(key_ID, self.issued[key_ID]) for key_ID in key_IDs], []

    def not_brought(self, key_IDs: Iterable[str], *, spent: bool) -> None:
        """An answer with these did not come whole: they are lost, or, where that has not `spent` them, still there."""
        if spent:
            self.lost_on_the_way.update(key_IDs)
            return
        for key_ID in key_IDs:
            if self.times_delivered[key_ID]:
                self.times_delivered[key_ID] -= 1
                self._undelivered.add(key_ID)

    def _known(self, key_ID: str) -> bool:
        if self.unknown_for[key_ID] > 0:
            self.unknown_for[key_ID] -= 1
            return False
        return key_ID in self.issued and not self.times_delivered[key_ID] and key_ID not in self.dropped


@dataclass(slots=True, eq=False)
class _Connection:
    number: int
    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter
    task: asyncio.Task[None] | None = field(default=None)


class SimulatedKME:
    """One KME of a pair, listening on localhost at a free port; an async context manager.

    `handshake` and `latency` are the seconds that a new connection and a request take. `limits` overrides
    fields of its status. `decide` is asked for each request and may name a misbehaviour. Without `remember`
    the requests are not kept.
    """

    def __init__(
        self,
        pair: SimulatedPair,
        tls: ssl.SSLContext,
        *,
        handshake: float = 0.0,
        latency: float = 0.0,
        limits: Mapping[str, Any] | None = None,
        decide: Callable[[Received], Misbehaviour | None] | None = None,
        remember: bool = True,
    ) -> None:
        self.pair = pair
        self.handshake = handshake
        self.latency = latency
        self.limits: dict[str, Any] = {
            "source_KME_ID": "KME-A",
            "target_KME_ID": "KME-B",
            "master_SAE_ID": "alice",
            "slave_SAE_ID": "bob",
            "key_size": 256,
            "max_key_count": 100_000,
            "max_key_per_request": 128,
            "max_key_size": 65_536,
            "min_key_size": 64,
            "max_SAE_ID_count": 0,
        } | dict(limits or {})
        self.requests: list[Received] = []
        self.connections = 0
        self.most_enc_keys_at_once = 0
        self.exhausted = Misbehaviour("http", 503, '{"message": "key pool exhausted"}')
        self.not_found: Misbehaviour | None = None
        """What is answered for unknown key_IDs instead of the standard's 400 with details."""
        self._tls = tls
        self._remember = remember
        self._decide = decide
        self._planned: dict[str, deque[Misbehaviour]] = {}
        self._always: dict[str, Misbehaviour] = {}
        self._enc_keys_now = 0
        self._last: list[tuple[str, bytes]] = []
        self._server: asyncio.Server | None = None
        self._port = 0
        self._open: set[_Connection] = set()
        self._request_seen = asyncio.Event()

    @property
    def url(self) -> str:
        """The base URL."""
        return f"https://localhost:{self._port}"

    @property
    def open_connections(self) -> int:
        """How many connections are open now."""
        return len(self._open)

    def got(self, call: str) -> list[Received]:
        """The requests of one call so far."""
        return [request for request in self.requests if request.call == call]

    def misbehave(self, call: str, kind: str, *, times: int | None = 1, **details: Any) -> None:
        """Do so at the next `times` requests of `call`; None: at each one until `behave`."""
        assert kind in MISBEHAVIOURS, kind  # noqa: S101 - a wrong word in a test is the test's fault
        how = Misbehaviour(kind, **details)
        if times is None:
            self._always[call] = how
        else:
            self._planned.setdefault(call, deque()).extend([how] * times)

    def behave(self) -> None:
        """Forget what was planned."""
        self._planned.clear()
        self._always.clear()

    async def next_request(self) -> None:
        """Waits until one more request has arrived."""
        self._request_seen.clear()
        await self._request_seen.wait()

    async def start(self) -> None:
        """Listens; after a `stop`, at the same port as before."""
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", self._port, ssl=self._tls, limit=2**22)
        self._port = self._server.sockets[0].getsockname()[1]

    async def stop(self) -> None:
        """Dies: closes the port and every connection."""
        server, self._server = self._server, None
        if server is None:
            return
        server.close()
        tasks = [connection.task for connection in self._open if connection.task]
        for connection in list(self._open):
            connection.writer.transport.abort()
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.stop()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        connection = _Connection(self.connections, reader, writer)
        connection.task = asyncio.current_task()
        self._open.add(connection)
        try:
            if self.handshake:
                await asyncio.sleep(self.handshake)
            while await self._one_request(connection):
                pass
        except (OSError, asyncio.IncompleteReadError, asyncio.CancelledError, ValueError):
            pass  # the client went away, or this KME dies
        finally:
            self._open.discard(connection)
            writer.transport.abort()

    async def _one_request(self, connection: _Connection) -> bool:
        """Reads and answers one request; False when the connection ends with it."""
        head = (await connection.reader.readuntil(b"\r\n\r\n")).decode("latin-1")
        first, *lines = head.split("\r\n")
        method, target, _ = first.split(" ", 2)
        headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines if line)}
        raw = await connection.reader.readexactly(int(headers.get("content-length", 0)))
        url = urlsplit(target)
        request = Received(
            method,
            url.path,
            dict(parse_qsl(url.query)),
            json.loads(raw) if raw else None,
            connection.number,
        )
        if self._remember:
            self.requests.append(request)
        self._request_seen.set()
        how = self._misbehaviour(request)
        if request.call != "enc_keys":
            return await self._answer(connection, request, how)
        self._enc_keys_now += 1
        self.most_enc_keys_at_once = max(self.most_enc_keys_at_once, self._enc_keys_now)
        try:
            return await self._answer(connection, request, how)
        finally:
            self._enc_keys_now -= 1

    def _misbehaviour(self, request: Received) -> Misbehaviour | None:
        if planned := self._planned.get(request.call):
            return planned.popleft()
        if how := self._always.get(request.call):
            return how
        return self._decide(request) if self._decide else None

    async def _answer(self, connection: _Connection, request: Received, how: Misbehaviour | None) -> bool:
        began = asyncio.get_running_loop().time()
        kind = how.kind if how else ""
        if kind == "drop" or connection.reader.at_eof():
            return False
        if kind == "hang":
            await connection.reader.read()  # until the client gives up
            return False
        if kind == "http" and how is not None:
            code, body, headers, spent = how.code, how.body, how.headers, set[str]()
        else:
            code, body, headers = self._reply(request, how)
            spent = {key_ID for key_ID, _ in self._last} if request.call != "status" else set()
        # Making the answer is part of the time that a request takes.
        least = self.latency + (how.seconds if how else 0.0)
        if (left := began + least - asyncio.get_running_loop().time()) > 0:
            await asyncio.sleep(left)
        if kind == "lose_reply":
            self.pair.not_brought(spent, spent=how is None or how.spends)
            return False
        octets = body.encode()
        lines = [f"HTTP/1.1 {code} -", f"Content-Length: {len(octets)}", "Content-Type: application/json"]
        lines += [f"{name}: {value}" for name, value in headers]
        connection.writer.write("\r\n".join([*lines, "", ""]).encode("latin-1"))
        if kind == "hang_in_body":
            self.pair.not_brought(spent, spent=how is None or how.spends)
            connection.writer.write(octets[: len(octets) // 2])
            await connection.writer.drain()
            await connection.reader.read()
            return False
        connection.writer.write(octets)
        await connection.writer.drain()
        if connection.reader.at_eof():
            self.pair.lost_on_the_way |= spent
            self.pair.client_left |= spent
        return kind != "close_unsaid"

    def _reply(self, request: Received, how: Misbehaviour | None) -> tuple[int, str, tuple[tuple[str, str], ...]]:
        if request.call == "status":
            return 200, json.dumps(self._status(how)), ()
        if request.call == "enc_keys":
            return self._enc_keys(request, how)
        if request.call == "dec_keys":
            return self._dec_keys(request, how)
        return 404, "<html>no such page</html>", ()

    def _status(self, how: Misbehaviour | None) -> dict[str, Any]:
        stored = 50_000 if self.pair.bits == float("inf") else int(self.pair.bits // self.limits["key_size"])
        status = {"stored_key_count": stored} | self.limits
        if how and how.kind == "lower_case":
            status = {name.lower(): value for name, value in status.items()}
        return status

    def _enc_keys(self, request: Received, how: Misbehaviour | None) -> tuple[int, str, tuple[tuple[str, str], ...]]:
        asked = request.content if request.method == "POST" else request.query
        number = int(asked.get("number", 1))
        size = int(asked.get("size", self.limits["key_size"]))
        if number > (self.limits["max_key_per_request"] or 128):
            return 400, '{"message": "number shall be at most max_key_per_request"}', ()
        if size % 8 or size > (self.limits["max_key_size"] or size):
            return 400, '{"message": "size shall be a multiple of 8"}', ()
        kind = how.kind if how else ""
        if kind == "short":
            number = max(1, how.number or number // 2) if how else number
        if kind == "none":
            number = 0
        if kind == "too_many":
            number += 1
        if kind == "wrong_length":
            size //= 2
        keys = self._old(kind) if kind in ("same_again", "same_octets") else self.pair.draw(number, size)
        if not keys and kind != "none":
            self._last = []
            return self.exhausted.code, self.exhausted.body, self.exhausted.headers
        self._last = keys
        return 200, json.dumps(_container(keys, kind)), ()

    def _old(self, kind: str) -> list[tuple[str, bytes]]:
        """The keys of the reply before, once more."""
        if kind == "same_again":
            return self._last
        return [(str(uuid.uuid4()), octets) for _, octets in self._last]

    def _dec_keys(self, request: Received, how: Misbehaviour | None) -> tuple[int, str, tuple[tuple[str, str], ...]]:
        if request.method == "POST":
            key_IDs = [str(entry["key_ID"]) for entry in request.content["key_IDs"]]
        else:
            key_IDs = [unquote(request.query["key_ID"])]
        if len(key_IDs) > (self.limits["max_key_per_request"] or len(key_IDs)):
            return 400, '{"message": "too many key_IDs"}', ()
        kind = how.kind if how else ""
        if kind == "short":
            key_IDs = key_IDs[: max(1, len(key_IDs) // 2)]
        keys, missing = ([], []) if kind == "none" else self.pair.deliver(key_IDs)
        self._last = keys
        if missing:
            if self.not_found:
                return self.not_found.code, self.not_found.body, self.not_found.headers
            details = [{"key_ID": key_ID} for key_ID in missing]
            return 400, json.dumps({"message": _NOT_FOUND, "details": details}), ()
        spoilt = {"other_keys": len(keys), "not_json": len(keys), "bad_base64": 1}.get(kind, 0)
        if kind == "repeat_ids" and len(keys) > 1:
            spoilt = len(keys)
        lost = [key_ID for key_ID, _ in keys[len(keys) - spoilt :]]
        self.pair.not_brought(lost, spent=how is None or how.spends)
        if kind == "other_keys":
            keys = [(str(uuid.uuid4()), octets) for _, octets in keys]
        return 200, json.dumps(_container(keys, kind)), ()


def _container(keys: list[tuple[str, bytes]], kind: str) -> dict[str, Any]:
    """A key container, spoilt in the way that `kind` says."""
    entries: list[dict[str, Any]] = [
        {"key_ID": key_ID, "key": base64.b64encode(octets).decode()} for key_ID, octets in keys
    ]
    if kind == "repeat_ids":
        entries = [entry | {"key_ID": entries[0]["key_ID"]} for entry in entries]
    if kind == "bad_base64":
        entries[-1]["key"] = "*" + entries[-1]["key"][1:]
    if kind == "integer_ids":
        entries = [entry | {"key_ID": uuid.UUID(entry["key_ID"]).int} for entry in entries]
    if kind == "lower_case":
        entries = [{"key_id": entry["key_ID"], "key": entry["key"]} for entry in entries]
    if kind == "object_keys":
        return {"keys": entries[0] if len(entries) == 1 else {str(i): e for i, e in enumerate(entries)}}
    if kind == "not_json":
        return {"what": "this is an object, and not a key container"}
    return {"Keys" if kind == "capital_keys" else "keys": entries}
