"""The HTTP server of [status], with limits on connections, rate and time.
No load on this address deprives mail of descriptors, memory or the event loop.
"""

from __future__ import annotations

import asyncio
import logging
import socket
from collections.abc import Awaitable, Callable, Collection, Coroutine, Sequence
from contextlib import nullcontext
from typing import Any

import structlog
from aiohttp import web

from relay.entry.server_tls import ServerTLS
from relay.status.access import Access

log = structlog.get_logger(__name__)

MOST_CONNECTIONS = 200
"""Maximum number of connections. Beyond it the longest idle one is closed, else the one with the slowest response.

Mail needs descriptors, and a liveness probe must be answered.
"""
PROBES_A_SECOND = 1000
"""Maximum rate of accepted connections, and of answered probes, per second. Probes have priority."""
OF_ONE_A_SECOND, BURST_OF_ONE = 5, 50
"""Maximum rate of probes over one connection, per second, and its burst."""
A_SECOND, BURST = 50, 200
"""Maximum rate of other requests, per second, and burst; others wait."""
REQUEST_S = 10.0
"""Request timeout, in seconds, from the connection or the previous response."""
ANSWER_S = 10.0
"""Maximum time a client may take to read an answer, in seconds."""
ANSWERS_AT_ONCE = 8
"""Maximum number of concurrent responses; each needs the memory of its text until it is read."""
HANDSHAKE_S = 5.0
RETRY_S = 1.0
"""Retry interval after a failed accept (too many open files, for instance), in seconds."""
STOP_S = 1.0
MOST_OF_A_LINE, MOST_FIELDS = 4096, 50
"""Maximum length of a request line and of each field, in bytes, and maximum number of fields."""
HEADERS = {
    "Cache-Control": "no-store",
    "X-Content-Type-Options": "nosniff",
    "Server": "QuMail Relay",
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; "
    "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Referrer-Policy": "no-referrer",
}
"""Security headers: no external resources, no embedding by other sites."""

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]

_silent = logging.getLogger(f"{__name__}.http")
_silent.disabled = True
"""aiohttp's log of invalid requests, which anybody could flood."""


class Pace:
    """A rate limit with a burst; callers above the rate wait."""

    def __init__(self, a_second: float, burst: int) -> None:
        self._each = 1 / a_second
        self._ahead = burst / a_second
        self._next = float("-inf")

    async def keep(self) -> None:
        """Waits for a token; a cancelled caller returns its token."""
        now = asyncio.get_running_loop().time()
        self._next = max(self._next, now - self._ahead) + self._each
        if self._next > now:
            try:
                await asyncio.sleep(self._next - now)
            except asyncio.CancelledError:
                self._next -= self._each
                raise


class StatusServer:
    """One address; its routes are those of an `application` without middlewares."""

    def __init__(
        self,
        application: web.Application,
        access: Access,
        tls: ServerTLS | None,
        lasting: Collection[str] = (),
        probes: Collection[str] = (),
    ) -> None:
        """Responses to `lasting` paths are streams, bounded by their handlers; `probes` are short and have priority."""
        self._lasting = lasting
        self._probes = probes
        self.access = access
        self.tls = tls
        self._accepting, self._probe_pace = (Pace(PROBES_A_SECOND, PROBES_A_SECOND) for _ in range(2))
        self._pace = Pace(A_SECOND, BURST)
        self._paces: dict[web.RequestHandler, Pace] = {}
        self._answers = asyncio.Semaphore(ANSWERS_AT_ONCE)
        self._tasks: set[asyncio.Task[None]] = set()
        self._sockets: Sequence[socket.socket] = ()
        self._handshakes: dict[asyncio.Task[None], None] = {}
        # In order of requests; False for streams.
        self._answering: dict[web.RequestHandler, bool] = {}
        application.middlewares.append(self._answered)
        self._runner = web.AppRunner(
            application,
            access_log=None,
            logger=_silent,
            keepalive_timeout=REQUEST_S,
            shutdown_timeout=STOP_S,
            handler_cancellation=True,
            auto_decompress=False,
            max_line_size=MOST_OF_A_LINE,
            max_field_size=MOST_OF_A_LINE,
            max_headers=MOST_FIELDS,
            lingering_time=0.0,
        )

    async def start(self, sockets: Sequence[socket.socket]) -> None:
        """Accepts connections at these listening sockets."""
        await self._runner.setup()
        self._sockets = sockets
        for each in sockets:
            self._run(self._accept(each))

    async def stop(self) -> None:
        """Ends all connections."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        for each in self._sockets:
            each.close()
        await self._runner.cleanup()

    async def _accept(self, listening: socket.socket) -> None:
        loop = asyncio.get_running_loop()
        while True:
            await self._accepting.keep()
            try:
                accepted, _ = await loop.sock_accept(listening)
            except OSError as error:
                log.error("status_connection_not_accepted", cause=str(error))
                await asyncio.sleep(RETRY_S)
                continue
            if self.connections >= MOST_CONNECTIONS and not self._closed_one():
                accepted.close()
                continue
            handshake = self._run(self._begin(accepted))
            self._handshakes[handshake] = None  # at once: the next connection may be accepted before this task runs
            handshake.add_done_callback(self._handshakes.pop)

    @property
    def connections(self) -> int:
        """Number of connections, including those in their handshake."""
        server = self._runner.server
        return len(self._handshakes) + (len(server.connections) if server is not None else 0)

    def _closed_one(self) -> bool:
        """Closes the oldest connection without a request, also in the handshake; else the one with the slowest
        response.

        Returns whether there was one.
        """
        server = self._runner.server
        for each in server.connections if server is not None else ():
            if each not in self._answering:
                each.force_close()
                return True
        for handshake in self._handshakes:
            handshake.cancel()
            return True
        for each, is_to_end in self._answering.items():
            if is_to_end:
                each.force_close()
                del self._answering[each]
                return True
        return False

    async def _begin(self, accepted: socket.socket) -> None:
        server = self._runner.server
        assert server is not None  # noqa: S101 - it was set up
        try:
            context = self.tls.context if self.tls is not None else None
            within = HANDSHAKE_S if context is not None else None
            await asyncio.get_running_loop().connect_accepted_socket(
                server, accepted, ssl=context, ssl_handshake_timeout=within
            )
        except OSError:  # includes TLS errors and timeouts
            accepted.close()
        except BaseException:
            accepted.close()
            raise

    @web.middleware
    async def _answered(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        """Checks access, and limits the time to read the response."""
        protocol = request.protocol
        self._answering[protocol] = request.path not in self._lasting
        is_probe = request.path in self._probes
        try:
            if is_probe:
                await self._pace_of(protocol).keep()
            await (self._probe_pace if is_probe else self._pace).keep()
            self.access.check(request)
            if request.path in self._lasting:
                return await handler(request)
            async with nullcontext() if is_probe else self._answers:
                response = await handler(request)
                await _sent(request, response)
        except web.HTTPException as error:
            error.headers.update(HEADERS)
            raise
        except (ConnectionError, asyncio.CancelledError):
            raise
        except Exception as error:
            log.error(
                "status_failed", path=request.path[:100], cause=f"{type(error).__name__}: {error}", exc_info=error
            )
            raise web.HTTPInternalServerError(headers=HEADERS) from None
        finally:
            self._answering.pop(protocol, None)
        return response

    def _pace_of(self, protocol: web.RequestHandler) -> Pace:
        """The rate limit of one connection's probes; those of closed connections are dropped."""
        server = self._runner.server
        if len(self._paces) > 2 * MOST_CONNECTIONS and server is not None:
            self._paces = {each: self._paces[each] for each in server.connections if each in self._paces}
        return self._paces.setdefault(protocol, Pace(OF_ONE_A_SECOND, BURST_OF_ONE))

    def _run(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task


async def _sent(request: web.Request, response: web.StreamResponse) -> None:
    """Sends a response. Raises ConnectionError if the client does not read it."""
    response.headers.update(HEADERS)
    try:
        async with asyncio.timeout(ANSWER_S):
            await response.prepare(request)
            await response.write_eof()
    except TimeoutError:
        if request.transport is not None:
            request.transport.abort()
        raise ConnectionResetError("the client does not read") from None
