"""Opens [status]: its routes, and its interface to process/app.py and `check`.
Only GET and HEAD; every response is built from memory.
"""

from __future__ import annotations

import asyncio
import os
import socket
import stat
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from pathlib import Path

from aiohttp import web

from relay.config import Config, StatusSettings, TCPAddress
from relay.entry import Reloadable
from relay.entry.listening import Sockets, Where, address_of
from relay.entry.server_tls import ServerTLS, certificate_state, server_context
from relay.errors import ConfigError
from relay.files.rights import typed_by_root
from relay.status import Watched
from relay.status.access import Access, read_token
from relay.status.alarms import Alarms
from relay.status.exposition import CONTENT_TYPE, Exposition
from relay.status.page.routes import EVENTS, Page, page
from relay.status.ready import Readiness
from relay.status.server import Handler, StatusServer

LISTEN = "status.listen"


def listens_on(config: Config) -> dict[str, Where]:
    """The address, by its setting."""
    return {LISTEN: config.status.listen} if config.status is not None else {}


@asynccontextmanager
async def listener(
    watched: Watched, ready: Readiness, alarms: Alarms, sockets: Sockets
) -> AsyncIterator[StatusListener]:
    """The server, ready. Raises ConfigError if a file cannot be used."""
    table = watched.config.status
    assert table is not None  # noqa: S101 - the caller has checked
    async with page(watched, alarms) as shown:
        yield StatusListener(table, ready, Exposition(watched.board), shown, sockets[LISTEN])


class StatusListener:
    """The server, which process/app.py starts and stops with the listeners of mail."""

    def __init__(
        self,
        table: StatusSettings,
        ready: Readiness,
        exposition: Exposition,
        page: Page,
        sockets: Sequence[socket.socket],
    ) -> None:
        self._ready = ready
        self._exposition = exposition
        self._page = page
        self._sockets = sockets
        application = web.Application()
        answers: dict[str, Handler] = {"/metrics": self._metrics, "/healthz": self._healthz, "/readyz": self._readyz}
        answers |= page.routes()
        for path, answer in answers.items():
            application.router.add_get(path, answer, allow_head=path != EVENTS)
        access = Access(table.token, local_names=isinstance(table.listen, TCPAddress), changed=page.feed.send_off)
        tls = ServerTLS(table.certificate, table.key) if table.certificate and table.key else None
        self._server = StatusServer(application, access, tls, lasting=[EVENTS], probes=["/healthz", "/readyz"])

    async def start(self) -> dict[str, TCPAddress]:
        """Starts to accept requests; returns the bound TCP address, if any."""
        await self._server.start(self._sockets)
        is_local = self._sockets[0].family == socket.AF_UNIX
        return {} if is_local else {"status": address_of(self._sockets)}

    async def retire(self) -> None:
        """Stops accepting; another process serves the address."""
        await self.stop()

    async def stop(self) -> None:
        """Closes all connections at once."""
        self._page.feed.send_off()
        await self._server.stop()

    @property
    def reloadable(self) -> Sequence[Reloadable]:
        """The certificate and the token."""
        return [self._server.access, *([self._server.tls] if self._server.tls is not None else [])]

    async def _metrics(self, request: web.Request) -> web.Response:
        return web.Response(body=await self._exposition.text(), headers={"Content-Type": CONTENT_TYPE})

    async def _healthz(self, request: web.Request) -> web.Response:
        """Always OK: any response shows that the event loop runs."""
        return web.Response(text="ok\n")

    async def _readyz(self, request: web.Request) -> web.Response:
        causes = self._ready.holding
        lines = [f"not ready: {cause} ({name})" for name, cause in causes.items()] or ["ready"]
        return web.Response(text="".join(f"{line}\n" for line in lines), status=503 if causes else 200)


def read_files(config: Config) -> None:
    """Reads certificate and token. Raises ConfigError."""
    if (table := config.status) is not None:
        if table.certificate is not None and table.key is not None:
            server_context(table.certificate, table.key)
        if table.token is not None:
            read_token(table.token)


async def states(config: Config) -> AsyncIterator[tuple[str, str, tuple[str, ...]]]:
    """For `check`: who can connect, and the faults of its files."""
    table = config.status
    if table is None:
        return
    if isinstance(table.listen, Path):
        yield "status socket", *await asyncio.to_thread(_socket_state, table.listen)
    if table.certificate is not None and table.key is not None:
        now = datetime.now(UTC)
        detail, problems = await asyncio.to_thread(certificate_state, table.certificate, table.key, now)
        yield "status certificate", detail, tuple(problems)
    if table.token is not None:
        try:
            await asyncio.to_thread(read_token, table.token)
        except ConfigError as error:
            yield "status token", str(table.token), tuple(error.problems)
        else:
            yield "status token", str(table.token), ()


def _socket_state(path: Path) -> tuple[str, tuple[str, ...]]:
    """Who may connect: users who can enter the directory and write to the socket (mode 0660)."""
    directory = path.parent
    try:
        info = directory.stat()
    except OSError as error:
        return str(path), (f"{directory}: {error.strerror}: make it, or name it in RuntimeDirectory= of the unit",)
    mode = stat.S_IMODE(info.st_mode)
    if mode & 0o002 and not mode & stat.S_ISVTX:
        remedy = typed_by_root(directory, "chmod", "750")
        return str(path), (f"{directory}: mode {mode:04o} lets everybody put another socket there: {remedy}",)
    if info.st_uid not in (0, os.geteuid()):
        return str(path), (f"{directory}: belongs to user {info.st_uid}, who can put another socket there",)
    return f"{path}: for the relay's user and those of group {info.st_gid}", ()
