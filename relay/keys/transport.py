"""Requests to one KME over pooled TLS connections: each is sent at most once, and errors report whether it was.
Standard: HTTP/1.1 (RFC 9112); ETSI GS QKD 014 V1.1.1, clause 5.1; independent of keys.

aiohttp resends an idempotent request (GET) when the connection breaks, even on a fresh connection. A GET for keys that
is sent twice burns or loses keys, so `_once` prevents the resending.
"""

from __future__ import annotations

import asyncio
import math
import ssl
from collections import Counter
from collections.abc import Callable, Iterator
from contextvars import ContextVar
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime

import aiohttp
from aiohttp.client_reqrep import ConnectionKey
from aiohttp.connector import Connection
from aiohttp.tracing import Trace
from yarl import URL

from relay.keys.faults import KMEFault
from relay.keys.http import HTTPReply, HTTPRequest, NoAnswer
from relay.keys.tls import FileTLS
from relay.runtime.aio import boot_time, clock_offset

CONNECT_TIMEOUT_S = 2.0
"""Minimum time for a connection with its TLS handshake, in seconds: one to a cloud KME takes a quarter second."""

IDLE_S = 55.0
"""Time for which an idle connection is kept, in seconds: common proxies and firewalls drop one after 60 or more."""

LAST_HANDSHAKE_S = 0.5
"""How long a connection that is being opened ahead is waited for at the end, in seconds."""
AHEAD_AGAIN_S = 10.0
"""Time before connections are opened ahead again after that has failed, in seconds."""

MAX_RETRY_AFTER_S = 60.0
"""Maximum honoured Retry-After, in seconds: a KME that is well sooner than it said must not hold mail for long."""


_of_parents: list[object] = []
"""Sessions of parent processes: closing one here would end its connections there."""


class _Broken(aiohttp.ClientError):
    """A broken connection, as an error on which aiohttp does not resend."""


class Transport:
    """Connections to one KME, at most `most`. Once it has answered, `ahead` of them are opened and kept.

    Without `keep_alive` each request gets its own connection. `connect` is the timeout of a connection and its TLS
    handshake; at least CONNECT_TIMEOUT_S.
    """

    def __init__(
        self,
        url: str,
        tls: FileTLS,
        *,
        ahead: int,
        most: int,
        keep_alive: bool = True,
        connect: float = CONNECT_TIMEOUT_S,
    ) -> None:
        self.url = url.rstrip("/")
        self.tls = tls
        self._ahead, self._most = min(ahead, most) if keep_alive else 0, most
        self._keep_alive = keep_alive
        self.connect_timeout = max(connect, CONNECT_TIMEOUT_S)
        self._session: aiohttp.ClientSession | None = None
        self._opening: asyncio.Task[None] | None = None
        self._opens_at = float("-inf")
        self._under_way: Counter[aiohttp.ClientSession] = Counter()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._dated: tuple[str | None, float] = None, 0.0
        """The Date of the last reply, and the time since our boot when it came, in seconds."""
        self._heard = False
        """Whether there was a reply under these TLS settings."""

    async def send(self, request: HTTPRequest, within: float, on_sent: Callable[[], None]) -> HTTPReply:
        """Sends once and reads the whole reply `within` seconds. Raises NoAnswer.

        `on_sent` is called when the request is sent: from then on the KME may carry it out.
        """
        session = self._open()
        self._under_way[session] += 1
        try:
            reply = await self._exchange(session, request, within, on_sent)
            self._open_ahead(session)
            return reply
        finally:
            self._under_way[session] -= 1
            if not self._under_way[session]:
                del self._under_way[session]
                if session is not self._session:
                    await session.close()

    @property
    def clock_ahead_s(self) -> float | None:
        """How far the KME's clock is ahead of ours, in seconds, by the Date of its last reply; None if unknown."""
        date, came = self._dated
        try:
            return parsedate_to_datetime(date[:64]).timestamp() - came - clock_offset() if date else None
        except (ValueError, TypeError, OverflowError):
            return None

    async def send_with(self, context: ssl.SSLContext, request: HTTPRequest, within: float) -> HTTPReply:
        """As `send`, over a connection of its own with these TLS settings."""
        async with self._new_session(context) as session:
            return await self._exchange(session, request, within, lambda: None)

    async def _exchange(
        self, session: aiohttp.ClientSession, request: HTTPRequest, within: float, on_sent: Callable[[], None]
    ) -> HTTPReply:
        sent: list[bool] = []

        def note_sent() -> None:
            sent.append(True)
            on_sent()

        _on_sent.set(note_sent)
        query = URL.build(query=request.query).raw_query_string if request.query else ""
        target = URL(f"{self.url}{request.path}{'?' if query else ''}{query}", encoded=True)
        try:
            async with session.request(
                request.method,
                target,
                json=request.json,
                allow_redirects=False,
                timeout=aiohttp.ClientTimeout(total=within, sock_connect=self.connect_timeout, ceil_threshold=math.inf),
                middlewares=(_once,),
            ) as reply:
                self._heard = True
                self._dated = reply.headers.get("Date"), boot_time()
                body = await _read_bounded(reply, request.limit(reply.status))
                retry_after = _retry_after(reply.headers.get("Retry-After"))
                return HTTPReply(reply.status, body or bytearray(), retry_after, whole=body is not None)
        except (aiohttp.ClientError, OSError, TimeoutError, ValueError) as error:
            if not isinstance(error, TimeoutError) and (ended := self.tls.own_ended(datetime.now(UTC))):
                # With TLS 1.3 such a KME closes only after the request was written, without reading it.
                raise NoAnswer(f"{ended}: {error}", sent=False, fault=KMEFault.MISCONFIGURED) from error
            raise _no_answer(error, within, sent=bool(sent), heard=self._heard) from error

    def take(self, name: str, context: ssl.SSLContext) -> None:
        """Applies these TLS settings. `name` is that of the KME, for the log.

        Requests in flight keep their connections; later ones open new connections.
        """
        self.tls.take(name, context)
        self._heard = False
        session, self._session = self._session, None
        self._end_opening()
        # Its idle connections are closed after its last request, or here.
        if session is not None and not self._under_way[session]:
            del self._under_way[session]
            _drop(session)

    async def close(self) -> None:
        """Closes all connections; a later request opens new ones."""
        if self._opening is not None and self._opening.get_loop() is asyncio.get_running_loop():
            # A handshake that is broken off closes only after a while, when its loop may have ended.
            await asyncio.wait({self._opening}, timeout=LAST_HANDSHAKE_S)
        if (opening := self._end_opening()) is not None:
            await asyncio.gather(opening, return_exceptions=True)
        session, self._session = self._session, None
        for each in {*self._under_way, *([session] if session is not None else [])}:
            await each.close()

    def forked(self) -> None:
        """Leaves the connections to the parent process: two senders on one would break its encryption."""
        _of_parents.append(self._session)
        self._session = self._opening = None
        self._under_way.clear()

    def __del__(self) -> None:
        # No warnings for a script that forgot to close its client.
        if session := self.__dict__.get("_session"):
            _drop(session)

    def _open(self) -> aiohttp.ClientSession:
        loop = asyncio.get_running_loop()
        if self._session is None or self._loop is not loop:
            if self._session is not None and self._loop is not None and self._loop.is_closed():
                _drop(self._session)  # its connections ended with the loop
            self._loop = loop
            self._session = self._new_session(self.tls.context)
        return self._session

    def _open_ahead(self, session: aiohttp.ClientSession) -> None:
        """Opens what lacks of the connections to be kept, in the background."""
        connector, opening, loop = session.connector, self._opening, asyncio.get_running_loop()
        if not isinstance(connector, _Connector) or loop.time() < self._opens_at:
            return
        missing = self._ahead - connector.number
        if missing > 0 and (opening is None or opening.done() or opening.get_loop() is not loop):
            self._opening = loop.create_task(self._more(connector, missing), name="open connections")

    async def _more(self, connector: _Connector, number: int) -> None:
        if not await connector.open(number):
            self._opens_at = asyncio.get_running_loop().time() + AHEAD_AGAIN_S

    def _end_opening(self) -> asyncio.Task[None] | None:
        """Ends the opening of connections; returns its task if that belongs to this loop."""
        opening, self._opening = self._opening, None
        if opening is None or opening.done() or opening.get_loop().is_closed():
            return None
        opening.cancel()
        return opening

    def _new_session(self, context: ssl.SSLContext) -> aiohttp.ClientSession:
        return aiohttp.ClientSession(
            connector=_Connector(
                limit=self._most,
                ssl=context,
                keepalive_timeout=IDLE_S if self._keep_alive else None,
                force_close=not self._keep_alive,
            ),
            cookie_jar=aiohttp.DummyCookieJar(),
            auto_decompress=False,
            headers={"Accept": "application/json", "Accept-Encoding": "identity"},
        )


def _drop(session: aiohttp.ClientSession) -> None:
    """Closes the session's connections at once, even outside of a loop."""
    connector = session.connector
    session.detach()
    if connector is not None and not connector.closed:
        connector._close()


async def _once(request: aiohttp.ClientRequest, handler: aiohttp.ClientHandlerType) -> aiohttp.ClientResponse:
    """Client middleware: a broken connection ends its request."""
    try:
        return await handler(request)
    except (aiohttp.ClientConnectorError, aiohttp.ConnectionTimeoutError):
        raise  # nothing was sent, and aiohttp does not retry
    except (aiohttp.ClientOSError, aiohttp.ServerDisconnectedError) as error:
        raise _Broken(f"{type(error).__name__}: {error}") from error


_on_sent: ContextVar[Callable[[], None]] = ContextVar("on_sent")
"""Callback when the request of this context is sent."""


_new: ContextVar[bool] = ContextVar("new", default=False)
"""Whether this context wants a new connection, though an idle one is there."""


class _Connector(aiohttp.TCPConnector):
    """Calls `_on_sent` when a request has its connection, to which it is then written at once.

    Opens connections like that of the last request.
    """

    _like: tuple[aiohttp.ClientRequest, aiohttp.ClientTimeout] | None = None

    @property
    def number(self) -> int:
        """The number of open connections."""
        idle = sum(protocol.is_connected() for each in self._conns.values() for protocol, _ in each)
        return len(self._acquired) + idle

    async def open(self, number: int) -> bool:
        """Opens so many connections more and keeps them; whether all could be opened."""
        if self._like is None:
            return True
        _new.set(True)
        opened = await asyncio.gather(*(self._one_more(*self._like) for _ in range(number)), return_exceptions=True)
        return not any(isinstance(each, Exception) for each in opened)

    async def _one_more(self, like: aiohttp.ClientRequest, timeout: aiohttp.ClientTimeout) -> None:  # noqa: ASYNC109
        (await super().connect(like, [], timeout)).release()

    async def connect(
        self,
        req: aiohttp.ClientRequest,
        traces: list[Trace],
        timeout: aiohttp.ClientTimeout,  # noqa: ASYNC109 - its own
    ) -> Connection:
        connection = await super().connect(req, traces, timeout)
        self._like = req, timeout
        _on_sent.get()()
        return connection

    async def _get(self, key: ConnectionKey, traces: list[Trace]) -> Connection | None:
        return None if _new.get() else await super()._get(key, traces)


async def _read_bounded(reply: aiohttp.ClientResponse, most: int) -> bytearray | None:
    """The body; None if it has more than `most` bytes. The connection is then closed."""
    if (reply.content_length or 0) > most:
        return None
    body = bytearray()
    while chunk := await reply.content.readany():
        body += chunk
        if len(body) > most:
            return None
    return body


_CUT = (ConnectionResetError, ssl.SSLEOFError)


def _no_answer(error: Exception, within: float, *, sent: bool, heard: bool) -> NoAnswer:
    cause = str(error) if isinstance(error, _Broken) else f"{type(error).__name__}: {error}".rstrip(": ")
    if type(error) is TimeoutError:
        cause = f"{'it took the request and gave ' if sent else ''}no answer within {within:g} s"
    if isinstance(error, aiohttp.ClientResponseError):  # not quoted: it may hold a key
        cause = "what came is no HTTP answer"
    if isinstance(error, aiohttp.ConnectionTimeoutError | aiohttp.ClientConnectorError):
        sent = False
    if isinstance(error, aiohttp.ClientConnectorError) and any(isinstance(each, _CUT) for each in _causes(error)):
        cause = (
            "it takes the connection and cuts the TLS handshake: it wants other suites (ciphers; tls_ciphers in "
            "relay.toml), or a certificate that it knows"
        )
    if tls := _tls_fault(error):
        # An alert means that the handshake failed, even if TLS 1.3 let us write before it arrived.
        return NoAnswer(f"TLS failed: {tls}", sent=False, fault=KMEFault.MISCONFIGURED)
    return NoAnswer(cause, sent=sent, fault=KMEFault.UNREACHABLE, unheard=isinstance(error, _Broken) and not heard)


def _tls_fault(error: BaseException) -> str | None:
    """The TLS fault behind an error, if any; a lost connection is none."""
    for cause in _causes(error):
        if isinstance(cause, ssl.SSLCertVerificationError | aiohttp.ClientConnectorCertificateError):
            other = "certificate is not valid for" in str(cause)  # OpenSSL's words for another name
            return (
                f'{cause}; kme_id (TLSRules, or relay.toml) names it in place of the URL\'s host, and name_from = "cn" '
                "where that is its common name"
                if other
                else str(cause)
            )
        if isinstance(cause, ssl.SSLError) and not isinstance(cause, ssl.SSLEOFError | ssl.SSLZeroReturnError):
            return f"{cause}; is our certificate known there?"
    return None


def _causes(error: BaseException) -> Iterator[BaseException]:
    seen: list[BaseException] = []
    following: BaseException | None = error
    while following is not None and following not in seen:
        seen.append(following)
        yield following
        inner = getattr(following, "os_error", None) or getattr(following, "certificate_error", None)
        if isinstance(inner, BaseException):
            yield inner
        following = following.__cause__ or following.__context__


def _retry_after(value: str | None) -> float | None:
    """Seconds of a Retry-After header in its numeric form; a date counts as unspecified."""
    if value is None:
        return None
    try:
        seconds = float(value)
    except ValueError:
        return 1.0
    return min(MAX_RETRY_AFTER_S, seconds) if seconds >= 0 else None
