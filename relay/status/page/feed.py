"""The current content of the page, rendered once for all viewers, and the changes since each one's last event.
Standard: WHATWG HTML, 9.2 (server-sent events); the number of viewers is limited, and slow ones are disconnected.
"""

from __future__ import annotations

import asyncio
import json
import socket
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import structlog
from aiohttp import web

from relay.keys.development import from_development_kme
from relay.status import Watched
from relay.status.page.html import Html
from relay.status.page.keys import show_keys
from relay.status.page.now import Now
from relay.status.page.sections import (
    show_clear,
    show_held,
    show_history,
    show_latency,
    show_mails,
    show_today,
    show_troubles,
    show_verdict,
)
from relay.status.page.site import (
    show_canary,
    show_certificates,
    show_kmes,
    show_policies,
    show_processes,
    show_quarantine,
)
from relay.status.page.verdict import verdict
from relay.status.page.waiting import show_waiting
from relay.status.record import Record
from relay.status.server import HEADERS

log = structlog.get_logger(__name__)

TICK_S = 2.0
SHARE = 0.02
"""Maximum share of time spent on the page."""
OCTETS_A_SECOND = 2 * 2**20
"""Maximum rate to all viewers together, in bytes a second."""
MOST_VIEWERS = 100
"""Maximum number of viewers; others get 503, so that connections are left for short requests."""
UNREAD_OCTETS = 65_536
"""Approximate send buffer for a viewer who does not read, in bytes."""
VIEWER_S = 10.0
"""Maximum time a viewer may take to read what was sent, in seconds."""

SECTIONS: Mapping[str, Callable[[Now], Html]] = {
    "verdict": show_verdict,
    "troubles": show_troubles,
    "waiting": show_waiting,
    "today": show_today,
    "latency": show_latency,
    "keys": show_keys,
    "history": show_history,
    "mails": show_mails,
    "held": show_held,
    "clear": show_clear,
    "canary": show_canary,
    "kmes": show_kmes,
    "certificates": show_certificates,
    "quarantine": show_quarantine,
    "policies": show_policies,
    "processes": show_processes,
}


@dataclass(slots=True)
class Shown:
    """The last rendering: the sections, each with the number of the rendering that changed it; `time` is Unix time."""

    time: float = 0.0
    title: str = ""
    look: int = 0
    sections: dict[str, tuple[int, Html]] = field(default_factory=dict)


class Feed:
    """The page's content, and the viewers."""

    def __init__(self, watched: Watched, record: Record) -> None:
        """Reads which KMEs are development key servers, once at the start."""
        self._watched = watched
        self._development = frozenset(name for name, kme in watched.config.kmes.items() if from_development_kme(kme.ca))
        self._record = record
        self._shown = Shown()
        self._events: dict[int, bytes] = {}
        self._making = asyncio.Lock()
        self._not_before = float("-inf")
        self._news = asyncio.Event()
        self._requested = asyncio.Event()
        self._epoch = 0
        self.viewers = 0

    async def shown(self) -> Shown:
        """The current content, or a recent one."""
        async with self._making:
            if (began := time.monotonic()) >= self._not_before:
                cost = await self._look()
                self._not_before = began + cost / SHARE
            return self._shown

    async def keep_up(self) -> None:
        """Renders and notifies viewers, until cancelled; renders nothing without viewers."""
        while True:
            await self._requested.wait()
            try:
                await self.shown()
            except Exception as error:
                log.error("page_not_made", cause=f"{type(error).__name__}: {error}", exc_info=error)
            self._wake()
            sent = self.viewers * max(map(len, self._events.values()), default=0)
            await asyncio.sleep(max(TICK_S, sent / OCTETS_A_SECOND, self._not_before - time.monotonic()))

    def send_off(self) -> None:
        """Ends all streams; browsers reconnect by themselves."""
        self._epoch += 1
        self._wake()

    def _wake(self) -> None:
        """Wakes all viewers, which send what is new."""
        news, self._news = self._news, asyncio.Event()
        news.set()

    async def events(self, request: web.Request) -> web.StreamResponse:
        """A stream of changes, until the viewer disconnects."""
        if self.viewers >= MOST_VIEWERS:
            raise web.HTTPServiceUnavailable(headers={"Retry-After": "30"}, text="too many viewers\n")
        response = web.StreamResponse(headers=HEADERS | {"Content-Type": "text/event-stream"})
        self.viewers += 1
        self._requested.set()
        try:
            if (transport := request.transport) is not None:
                transport.set_write_buffer_limits(high=1)  # flow control with a small buffer
                transport.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, UNREAD_OCTETS)
            await self._send(request, response)
        finally:
            self.viewers -= 1
            if not self.viewers:
                self._requested.clear()
        return response

    async def _send(self, request: web.Request, response: web.StreamResponse) -> None:
        epoch, seen = self._epoch, 0
        await response.prepare(request)
        await self.shown()
        while epoch == self._epoch:
            news = self._news
            try:
                async with asyncio.timeout(VIEWER_S):
                    look = self._shown.look
                    await response.write(self._since(seen))
                    await request.writer.drain()
            except TimeoutError:
                if request.transport is not None:
                    request.transport.abort()
                raise ConnectionResetError("the viewer does not read") from None
            seen = look
            await news.wait()

    def _since(self, look: int) -> bytes:
        """The event for viewers whose last one was at that rendering; shared by all of them."""
        if look not in self._events:
            changed = {name: text for name, (at, text) in self._shown.sections.items() if at > look}
            said = {"time": _iso(self._shown.time), "title": self._shown.title, "sections": changed}
            self._events[look] = b"data: %s\n\n" % json.dumps(said).encode()
        return self._events[look]

    async def _look(self) -> float:
        """Renders the content; returns the processor time, in seconds."""
        totals = await self._watched.board.totals()
        self._record.note(totals)
        config = self._watched.config
        addresses = config.status is not None and config.status.addresses
        now = Now(config.site.name, time.time(), totals, self._record.view(), addresses, self._development)
        # In a thread: with many KMEs and peers it would block the event loop too long.
        made, cost = await asyncio.to_thread(_made, now)
        shown, look = self._shown, self._shown.look + 1
        for name, text in made.items():
            if shown.sections.get(name, (0, None))[1] != text:
                shown.sections[name] = look, text
        shown.time, shown.look, shown.title = now.time, look, f"{verdict(now).line} · {now.site}"
        self._events.clear()
        return cost


def _made(now: Now) -> tuple[dict[str, Html], float]:
    began = time.thread_time()
    made = {name: show(now) for name, show in SECTIONS.items()}
    return made, time.thread_time() - began


def _iso(seconds: float) -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(seconds))
