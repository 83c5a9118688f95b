"""One development KME: authentication, answers, and faults on command.
Standard: ETSI GS QKD 014 V1.1.1, clauses 5 (the three methods) and 6 (status, requests, keys, errors), over TLS 1.2 or
later.

Every error has the body of clause 6.5, except 401, which has none. The server records its requests, the link the fate
of its keys.
"""

from __future__ import annotations

import asyncio
import ssl
import traceback
from collections.abc import Awaitable, Callable, Mapping
from contextlib import ExitStack
from dataclasses import replace
from functools import partial
from http import HTTPStatus
from typing import Any, NoReturn, Self

from aiohttp import web

from relay.keys.events import Events
from relay.keys.types import Key
from relay.kme import requests
from relay.kme.certificates import SAES, common_name_of_sae
from relay.kme.faults import Faults, KMERequest, Misbehaviour, key_container, renamed
from relay.kme.link import NOT_QUANTUM, KeysNotFound, LinkSettings, NotNamedAsSlave, PoolTooLow, SimulatedLink
from relay.kme.listening import BACKLOG, listen, port_of
from relay.kme.requests import BadRequest

REQUESTS_REMEMBERED = 2_000

_METHODS = {"status": ("GET",), "enc_keys": ("GET", "POST"), "dec_keys": ("GET", "POST")}

log = Events(__name__)


class _Unauthorized(Exception):
    """Answered with 401 and no body."""


class DevelopmentKME(Faults):
    """The KME `name` at its end of `link`, as an async context manager; `other` is the KME at the other end.

    It listens with `tls` at `host` (a loopback address or name) and `port` (0: any free one). After a `stop` it starts
    at the same port again. `saes` maps SAEs to KMEs; None: any holder of a certificate of the authority may call, in
    any name. `prefix` precedes the paths of the standard.
    """

    def __init__(
        self,
        name: str,
        link: SimulatedLink,
        tls: ssl.SSLContext | None = None,
        *,
        other: str,
        saes: Mapping[str, str] | None = SAES,
        host: str = "localhost",
        port: int = 0,
        prefix: str = "",
    ) -> None:
        super().__init__()
        self.name = name
        self.link = link
        self.tls = tls
        self.host = host
        self.port = port
        self.requests: list[KMERequest] = []
        """The last REQUESTS_REMEMBERED requests."""
        self.connections = 0
        """Number of connections accepted."""
        self.most_enc_keys_at_once = 0
        self.prefix = prefix
        self._other = other
        self._saes = saes
        self._enc_keys_now = 0
        self._last_keys: list[Key] = []
        self._numbers: dict[int, int] = {}
        self._new: dict[int, float] = {}
        """When each connection without a request was made, by the loop's clock."""
        self._sent: dict[int, list[str]] = {}
        self._runner: web.AppRunner | None = None
        self._stack = ExitStack()
        self._answering = asyncio.Event()

    @property
    def url(self) -> str:
        """The base URL."""
        return f"https://{f'[{self.host}]' if ':' in self.host else self.host}:{self.port}{self.prefix}"

    @property
    def open_connections(self) -> int:
        """Number of open connections."""
        return len(self._runner.server.connections) if self._runner and self._runner.server else 0

    def got(self, call: str) -> list[KMERequest]:
        """The requests of one call so far."""
        return [request for request in self.requests if request.call == call]

    async def next_request(self) -> None:
        """Waits until one more request has arrived and the keys of its answer are chosen."""
        self._answering.clear()
        await self._answering.wait()

    async def start(self) -> None:
        """Starts listening. Raises ConfigError if the host is not loopback or the port is taken."""
        if self._runner is not None:
            raise RuntimeError(f"{self.name} is running already")
        if self.tls is None:
            raise RuntimeError(f"{self.name} has no certificate: it speaks TLS and nothing else")
        runner = web.AppRunner(self._application(), access_log=None, handler_cancellation=True, shutdown_timeout=0.5)
        with ExitStack() as stack:
            sockets = await listen(self.name, self.host, self.port, stack)
            await runner.setup()
            for listener in sockets:
                server = await asyncio.get_running_loop().create_server(
                    partial(self._connected, runner), sock=listener, ssl=self.tls, backlog=BACKLOG
                )
                stack.callback(server.close)
            self.port = port_of(sockets[0])
            self._runner, self._stack = runner, stack.pop_all()

    async def stop(self) -> None:
        """Stops abruptly: closes the port and every connection; does nothing when not running."""
        runner, self._runner = self._runner, None
        if runner is None or runner.server is None:
            return
        self._stack.close()
        for protocol in runner.server.connections:
            transport: Any = protocol.transport  # an asyncio.Transport, or uvloop's equivalent
            if transport is not None:
                transport.abort()
        await runner.cleanup()

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.stop()

    def _connected(self, runner: web.AppRunner) -> asyncio.Protocol:
        """The protocol of a new connection; connections are numbered."""
        if runner.server is None:
            raise RuntimeError("a connection to a KME that does not run")
        protocol = runner.server()
        self.connections += 1
        self._numbers[id(protocol)] = self.connections
        self._new[self.connections] = asyncio.get_running_loop().time()
        return protocol

    # --- answering

    def _application(self) -> web.Application:
        """The routes, without HEAD, which would spend keys without showing any."""
        app = web.Application(middlewares=[self._errors_have_their_body], client_max_size=requests.MAX_BODY_BYTES)
        for call, methods in _METHODS.items():
            for method in methods:
                app.router.add_route(method, f"{self.prefix}/api/v1/keys/{{sae}}/{call}", self._handler(call))
        return app

    def _handler(self, call: str) -> Callable[[web.Request], Awaitable[web.StreamResponse]]:
        async def handle(request: web.Request) -> web.StreamResponse:
            asked = await self._received(call, request)
            try:
                self._enc_keys_now += call == "enc_keys"
                self.most_enc_keys_at_once = max(self.most_enc_keys_at_once, self._enc_keys_now)
                return await self._answer(request, asked)
            finally:
                self._enc_keys_now -= call == "enc_keys"

        return handle

    async def _received(self, call: str, request: web.Request) -> KMERequest:
        """Parses and records a request. Raises _Unauthorized or BadRequest."""
        caller, other = self._parties(call, request)
        number = self._numbers[id(request.protocol)]
        self._sent.pop(number, None)  # a further request shows that the previous answer was read
        if (made := self._new.pop(number, None)) is not None:
            request.task.add_done_callback(lambda _: self._ended(number))
            # From the connection on: what was opened ahead of its first request has its handshake behind it.
            await asyncio.sleep(made + self.handshake - asyncio.get_running_loop().time())
        content: Any = None
        try:
            if request.method == "POST":
                content = await requests.body(request)
        finally:
            path, query = request.rel_url.raw_path, dict(request.query)
            asked = KMERequest(call, caller, other, request.method, path, query, content, number)
            self.requests.append(asked)
            del self.requests[:-REQUESTS_REMEMBERED]
        return asked

    async def _answer(self, request: web.Request, asked: KMERequest) -> web.StreamResponse:
        """Answers, with any planned fault; records keys that did not reach the client."""
        began = asyncio.get_running_loop().time()
        fault = self.next_fault(asked)
        if fault.kind in ("drop", "hang"):
            self._answering.set()
            return await _hang(request) if fault.kind == "hang" else _close(request)
        self._last_keys, answer = self._reply(request, asked, fault)
        self._answering.set()
        key_ids = [key.key_ID for key in self._last_keys]
        try:
            # The latency includes the time to make the answer.
            left = began + self.latency + fault.seconds - asyncio.get_running_loop().time()
            await asyncio.sleep(max(0.0, left))
            if fault.until:
                await fault.until.wait()
        except asyncio.CancelledError:
            self.link.did_not_arrive(key_ids, "client left")
            raise
        if fault.kind in ("lose_reply", "hang_in_body"):
            self._note_lost(key_ids, fault)
            return _close(request) if fault.kind == "lose_reply" else await _half(request, answer)
        try:
            await answer.prepare(request)
            await answer.write_eof()
            left_before = request.transport is None or request.transport.is_closing()
        except ConnectionError:
            left_before = True
        if left_before:
            self.link.did_not_arrive(key_ids, "client left")
        elif fault.kind == "close_unsaid" and request.transport is not None:
            request.transport.close()
        else:
            self._sent[asked.connection] = key_ids
        return answer

    def _ended(self, connection: int) -> None:
        """Handles a closed connection: the client may have given up while the last answer was in flight."""
        self.link.did_not_arrive(self._sent.pop(connection, []), "client left")

    def _note_lost(self, key_ids: list[str], fault: Misbehaviour) -> None:
        if fault.spends:
            self.link.did_not_arrive(key_ids, "spent")
        else:
            self.link.take_back(key_ids)

    def _reply(self, request: web.Request, asked: KMERequest, fault: Misbehaviour) -> tuple[list[Key], web.Response]:
        """The keys to deliver, and the answer with them."""
        try:
            match asked.call:
                case _ if fault.kind == "http":
                    return [], _custom_reply(fault)
                case "status":
                    requests.query(request)
                    return [], _json(self._status(asked, fault))
                case "enc_keys":
                    keys = self._fresh(request, asked, fault)
                case _:
                    keys = self._fetched(request, asked, fault)
            # Fresh keys keep the names under which the other side asks for them, whatever the fault.
            others = fault.kind == "other_keys" and asked.call == "dec_keys"
            return keys, _json(key_container(list(map(renamed, keys)) if others else keys, fault))
        except Exception as error:  # noqa: BLE001 - the client gets the standard's error in any case
            return [], self._error(error, request)

    def _status(self, asked: KMERequest, fault: Misbehaviour) -> dict[str, Any]:
        """Get status; the answer is that of clause 6.1."""
        settings = self.link.settings
        status = {
            "source_KME_ID": self.name,
            "target_KME_ID": self._other,
            "master_SAE_ID": asked.caller,
            "slave_SAE_ID": asked.other,
            "key_size": settings.key_size,
            "stored_key_count": self.link.stored_key_count,
            "max_key_count": settings.stored_key_limit,
            "max_key_per_request": settings.max_key_per_request,
            "max_key_size": settings.max_key_size,
            "min_key_size": settings.min_key_size,
            "max_SAE_ID_count": settings.max_sae_id_count,
            "status_extension": {"quantum": False, "note": NOT_QUANTUM},
        } | self.limits
        return {name.lower(): value for name, value in status.items()} if fault.kind == "lower_case" else status

    def _fresh(self, request: web.Request, asked: KMERequest, fault: Misbehaviour) -> list[Key]:
        """Get key; the request is that of clause 6.2. Raises BadRequest or PoolTooLow."""
        values: Mapping[str, Any] = asked.content
        if asked.method == "GET":
            texts = requests.query(request, "number", "size")
            values = {name: requests.integer_from_text(name, text) for name, text in texts.items()}
        key_request = requests.key_request(values, self._settings, self._saes)
        if fault.kind == "same_again":
            return self._last_keys
        if fault.kind == "same_octets":
            return [renamed(key) for key in self._last_keys]
        number, size = fault.fresh(key_request.number, key_request.size)
        if self.gives_what_is_left:
            number = min(number, int(self.link.bits // size) or 1)
        slaves = {asked.other, *key_request.additional_slaves}
        return self.link.issue(kme=self.name, master=asked.caller, slaves=slaves, number=number, size=size)

    def _fetched(self, request: web.Request, asked: KMERequest, fault: Misbehaviour) -> list[Key]:
        """Get key with key IDs; the request is that of clause 6.4. Raises BadRequest, KeysNotFound or _Unauthorized."""
        values: Mapping[str, Any] = asked.content
        if asked.method == "GET":
            values = {"key_IDs": [requests.query(request, "key_ID")]}
        key_ids = fault.fetched(requests.key_ids(values, self._settings, numbers=fault.kind == "integer_ids"))
        try:
            keys = self.link.deliver(
                key_ids, master=asked.other, slave=asked.caller if self._saes is not None else None
            )
        except NotNamedAsSlave:
            self._unauthorized("not named as a slave of the key", sae=asked.caller)
        self._note_lost([key.key_ID for key in fault.unreadable(keys)], fault)
        return keys

    @property
    def _settings(self) -> LinkSettings:
        """The link's settings with the overrides of this KME."""
        names = {"max_SAE_ID_count": "max_sae_id_count", "max_key_count": "stored_key_limit"}
        supported = ("key_size", "min_key_size", "max_key_size", "max_key_per_request", *names)
        values = {name: value for name, value in self.limits.items() if name in supported}
        return replace(
            self.link.settings,
            **{names.get(name, name): value for name, value in values.items() if value or name == "max_SAE_ID_count"},
        )

    # --- authentication

    def _parties(self, call: str, request: web.Request) -> tuple[str, str]:
        """The SAE whose certificate the client presented, and the one in the path.

        Raises _Unauthorized if either is invalid. The master in dec_keys may be the caller itself, which can be an
        additional slave.
        """
        certificate: dict[str, Any] = request.get_extra_info("peercert") or {}
        subject = [pair for names in certificate.get("subject", ()) for pair in names]
        names = [value for name, value in subject if name == "commonName"]
        other = request.match_info["sae"]
        if self._saes is None:
            return "".join(names), other
        callers = [sae for sae in self._saes if names == [common_name_of_sae(sae)]]
        if not callers:
            self._unauthorized("certificate of no known SAE", common_names=names)
        [caller] = callers
        if self._saes[caller] != self.name:
            self._unauthorized(f"this SAE is attached to {self._saes[caller]}", sae=caller)
        if call == "dec_keys" and other not in self._saes:
            self._unauthorized("master in the path is no known SAE", master=other[:64])
        if call != "dec_keys" and self._saes.get(other) != self._other:
            self._unauthorized(f"slave in the path is not an SAE of {self._other}", slave=other[:64])
        return caller, other

    def _unauthorized(self, why: str, **context: Any) -> NoReturn:
        log.warning("kme_unauthorized", kme=self.name, why=why, **context)
        raise _Unauthorized

    # --- errors

    @web.middleware
    async def _errors_have_their_body(
        self, request: web.Request, handler: Callable[[web.Request], Awaitable[web.StreamResponse]]
    ) -> web.StreamResponse:
        if self._runner is None or request.app is not self._runner.app:
            return _close(request)  # of a connection that was being opened when the server stopped
        try:
            return await handler(request)
        except Exception as error:  # noqa: BLE001 - the client gets the standard's error in any case
            return self._error(error, request)

    def _error(self, error: Exception, request: web.Request) -> web.Response:
        """Status and body of the standard for this failure; a fault of ours is 503, without its text."""
        match error:
            case _Unauthorized():
                return web.Response(status=HTTPStatus.UNAUTHORIZED)
            case BadRequest():
                return _error_body(HTTPStatus.BAD_REQUEST, error.message, *error.details)
            case KeysNotFound():
                missing = ({"key_ID": key_id} for key_id in error.key_ids)
                text = "one or more keys specified are not found on KME"
                return _custom_reply(self.not_found) if self.not_found else _error_body(400, text, *missing)
            case PoolTooLow():
                stored = {"stored_key_count": error.stored}
                text = "key pool too low for this request"
                return _custom_reply(self.exhausted) if self.exhausted else _error_body(503, text, stored)
            case web.HTTPException():  # no such path, no such method
                answer = _error_body(error.status, error.reason, {"method": request.method, "path": request.path})
                if "Allow" in error.headers:
                    answer.headers["Allow"] = error.headers["Allow"]
                return answer
        # Not log.exception: structlog may show local variables, which include keys.
        log.error("kme_fault", trace="".join(traceback.format_exception(error)))
        return _error_body(HTTPStatus.SERVICE_UNAVAILABLE, "error on the server side")


def _json(content: dict[str, Any], status: int = HTTPStatus.OK) -> web.Response:
    return web.json_response(content, status=status, headers={"Cache-Control": "no-store"})


def _error_body(status: int, message: str, *details: dict[str, Any]) -> web.Response:
    """Clause 6.5 Error; without `details` the member is omitted."""
    return _json({"message": message} | ({"details": list(details)} if details else {}), status)


def _custom_reply(fault: Misbehaviour) -> web.Response:
    return web.Response(
        status=fault.code, body=fault.body.encode(), headers={"Content-Type": "application/json"} | dict(fault.headers)
    )


def _close(request: web.Request) -> web.Response:
    """Closes the connection; the returned response is never sent."""
    if request.transport is not None:
        request.transport.abort()
    return web.Response()


async def _hang(request: web.Request) -> web.Response:
    """Waits until the client gives up, which cancels this."""
    await asyncio.Event().wait()
    return _close(request)


async def _half(request: web.Request, answer: web.Response) -> web.Response:
    """Sends half of the answer, then nothing."""
    octets = bytes(answer.body) if isinstance(answer.body, bytes | bytearray) else b""
    half = web.StreamResponse(status=answer.status, headers={"Content-Type": "application/json"})
    half.content_length = len(octets)
    await half.prepare(request)
    await half.write(octets[: len(octets) // 2])
    return await _hang(request)
