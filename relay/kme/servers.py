"""Both development KMEs in one process: their sockets, their TLS, and the file that says where they are.
Standard: ETSI GS QKD 014 V1.1.1 (HTTPS over TLS 1.2 or later); loopback addresses of RFC 1122 and RFC 4291.
"""

from __future__ import annotations

import asyncio
import errno
import ipaddress
import json
import os
import socket
import ssl
import time
from collections.abc import Callable
from contextlib import AsyncExitStack
from pathlib import Path
from types import TracebackType
from typing import Self

import structlog
from aiohttp import web

from relay.errors import ConfigError
from relay.keys.development import DEFAULT_PORTS, ENDPOINTS_FILE, KME_IDS, default_state_dir
from relay.kme import certificates
from relay.kme.api import KeyDelivery
from relay.kme.files import write_private
from relay.kme.link import NOT_QUANTUM, LinkSettings, SimulatedLink

_BACKLOG = 128
_SHUTDOWN_TIMEOUT = 1.0

log = structlog.get_logger(__name__)


class DevelopmentKMEs:
    """KM1 and KM2 with a simulated link between them. Not quantum: keys come from the system's generator.

    `state_dir` holds certificates and addresses (default: `default_state_dir()`), `host` is a loopback
    address or a name for one, `ports` are KM1's and KM2's (0: any free one), `clock` counts seconds.
    An async context manager: serving inside the block, stopped after it.
    """

    def __init__(
        self,
        *,
        state_dir: Path | None = None,
        host: str = "localhost",
        ports: tuple[int, int] = DEFAULT_PORTS,
        link: LinkSettings | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.state_dir = state_dir or default_state_dir()
        self.link = SimulatedLink(link or LinkSettings(), clock)
        self._host = host
        self._ports = ports
        self._urls: tuple[str, str] | None = None
        self._running = AsyncExitStack()

    @property
    def urls(self) -> tuple[str, str]:
        """The base URLs of KM1 and KM2, with their real ports; raises RuntimeError while they do not run."""
        if self._urls is None:
            raise RuntimeError("the development KMEs are not running")
        return self._urls

    async def start(self) -> None:
        """Make what certificates are missing, listen, and write the addresses into ENDPOINTS_FILE.

        Raises ConfigError where the host is not loopback, a port is taken or the directory cannot be used.
        """
        if self._urls is not None:
            raise RuntimeError("the development KMEs are running already")
        addresses = await _loopback_addresses(self._host)
        async with AsyncExitStack() as starting:
            listening = [
                _listen(kme, self._host, addresses, port, starting)
                for kme, port in zip(KME_IDS, self._ports, strict=True)
            ]
            contexts = await asyncio.to_thread(self._tls)
            for kme, sockets, context in zip(KME_IDS, listening, contexts, strict=True):
                await self._serve(kme, sockets, context, starting)
            first, second = (_url(self._host, sockets) for sockets in listening)
            self._write_endpoints((first, second))
            self._urls = first, second
            self._running = starting.pop_all()
        for kme, url in zip(KME_IDS, self._urls, strict=True):
            log.info("kme_started", kme=kme, url=url, quantum=False, note=NOT_QUANTUM)

    async def stop(self) -> None:
        """Stop listening, close what is open, and remove ENDPOINTS_FILE; does nothing when not running."""
        if self._urls is None:
            return
        self._remove_endpoints(self._urls)
        self._urls = None
        await self._running.aclose()
        log.info("kme_stopped")

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self.stop()

    def _tls(self) -> list[ssl.SSLContext]:
        certificates.prepare(self.state_dir, self._host)
        return [certificates.server_context(self.state_dir, kme) for kme in KME_IDS]

    async def _serve(
        self, kme: str, sockets: list[socket.socket], context: ssl.SSLContext, stack: AsyncExitStack
    ) -> None:
        application = KeyDelivery(kme, self.link).application()
        runner = web.AppRunner(application, access_log=None, shutdown_timeout=_SHUTDOWN_TIMEOUT)
        stack.push_async_callback(runner.cleanup)
        await runner.setup()
        for listener in sockets:
            await web.SockSite(runner, listener, ssl_context=context, backlog=_BACKLOG).start()

    def _write_endpoints(self, urls: tuple[str, str]) -> None:
        path = self.state_dir / ENDPOINTS_FILE
        try:
            write_private(path, _endpoints(urls))
        except OSError as error:
            raise ConfigError(f"{path}: cannot be written: {error.strerror}") from error

    def _remove_endpoints(self, urls: tuple[str, str]) -> None:
        """Remove our own file, not that of servers which were started over the same directory after us."""
        path = self.state_dir / ENDPOINTS_FILE
        try:
            if path.read_bytes() == _endpoints(urls):
                path.unlink()
        except OSError as error:
            log.warning("kme_endpoints_not_removed", path=str(path), error=error.strerror)


def _endpoints(urls: tuple[str, str]) -> bytes:
    return (json.dumps(dict(zip(KME_IDS, urls, strict=True)), indent=2) + "\n").encode("ascii")


async def _loopback_addresses(host: str) -> list[str]:
    """The addresses of `host`, all of them loopback; raises ConfigError."""
    remedy = "the development KMEs listen on loopback only; use localhost, 127.0.0.1 or ::1"
    if not host or not host.isascii():
        raise ConfigError(f"host {host!r}: not a host name; {remedy}")
    try:
        found = await asyncio.get_running_loop().getaddrinfo(host, None, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError) as error:
        raise ConfigError(f"host {host!r}: cannot be resolved; {remedy}") from error
    addresses = list(dict.fromkeys(str(address[4][0]) for address in found))
    if elsewhere := [address for address in addresses if not ipaddress.ip_address(address).is_loopback]:
        raise ConfigError(f"host {host!r}: {', '.join(elsewhere)} can be reached by others; {remedy}")
    return addresses


def _listen(kme: str, host: str, addresses: list[str], port: int, stack: AsyncExitStack) -> list[socket.socket]:
    """Sockets that listen at one port of every address, closed with `stack`; raises ConfigError.

    An address that this machine lacks (::1 stands in /etc/hosts of machines without IPv6) is left out.
    """
    sockets: list[socket.socket] = []
    try:
        for address in addresses:
            if listener := _open(address, _port(sockets) if sockets else port):
                sockets.append(listener)
                stack.callback(listener.close)
    except OSError as error:
        if port == 0 and sockets and error.errno == errno.EADDRINUSE:
            # The port that was free at the first address is not free at the next: try another.
            return _listen(kme, host, addresses, port, stack)
        raise ConfigError(_cannot_listen(kme, host, port, error)) from error
    if not sockets:
        raise ConfigError(f"host {host!r}: this machine has none of {', '.join(addresses)}")
    return sockets


def _open(address: str, port: int) -> socket.socket | None:
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    try:
        return socket.create_server((address, port), family=family, backlog=_BACKLOG)
    except OSError as error:
        if error.errno in (errno.EADDRNOTAVAIL, errno.EAFNOSUPPORT):
            return None
        raise


def _cannot_listen(kme: str, host: str, port: int, error: OSError) -> str:
    if error.errno == errno.EADDRINUSE:
        return f"{kme}: port {port} on {host} is in use; stop what listens there or choose another port"
    return f"{kme}: cannot listen on {host} port {port}: {os.strerror(error.errno or 0)}"


def _port(sockets: list[socket.socket]) -> int:
    return int(sockets[0].getsockname()[1])


def _url(host: str, sockets: list[socket.socket]) -> str:
    return f"https://{f'[{host}]' if ':' in host else host}:{_port(sockets)}"
