"""Responses for the page: the page itself, complete without scripts, and its three files.
The files are read at start, and no response waits for a disk.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

from aiohttp import web

from relay.runtime.aio import in_background
from relay.status import Watched
from relay.status.alarms import Alarms
from relay.status.page.feed import SECTIONS, Feed
from relay.status.page.html import Html, element
from relay.status.page.sections import LEVELS
from relay.status.page.words import clock
from relay.status.record import recording

EVENTS = "/events"
FILES: Mapping[str, str] = {"page.css": "text/css", "page.js": "text/javascript", "icon.svg": "image/svg+xml"}
HERE = Path(__file__).parent

_TOP = (("troubles", "waiting"), ("today", "latency", "keys"), ("clear", "canary"))
_WIDE = ("history", "mails", "held")
_BELOW = (("kmes", "processes"), ("certificates", "quarantine", "policies"))
"""Sections in columns, side by side if there is room (then the third below the first), and the others."""


class Page:
    """The page of one relay."""

    def __init__(self, site: str, feed: Feed, files: Mapping[str, bytes]) -> None:
        self._site = site
        self.feed = feed
        self._files = files

    def routes(self) -> Mapping[str, Callable[[web.Request], Awaitable[web.StreamResponse]]]:
        """The handlers, by path."""
        return {"/": self._page, EVENTS: self.feed.events} | {f"/{name}": self._file for name in FILES}

    async def _file(self, request: web.Request) -> web.Response:
        name = request.path.removeprefix("/")
        return web.Response(body=self._files[name], content_type=FILES[name], charset="utf-8")

    async def _page(self, request: web.Request) -> web.Response:
        shown = await self.feed.shown()
        slots = {name: element("div", shown.sections[name][1], id=f"slot-{name}") for name in SECTIONS}
        head = element(
            "head",
            element("meta", charset="utf-8"),
            element("meta", name="viewport", content="width=device-width, initial-scale=1"),
            element("meta", name="color-scheme", content="light dark"),
            element("title", shown.title),
            element("link", rel="icon", href="icon.svg", type="image/svg+xml"),
            element("link", rel="stylesheet", href="page.css"),
            element("script", src="page.js", defer=True),
        )
        body = element(
            "body",
            element("p", id="news", class_="unseen", role="status"),
            element("a", "Skip to what is wrong", href="#troubles", class_="skip"),
            element(
                "header",
                element("p", element("strong", "QuMail Relay"), " ", element("bdi", self._site), class_="name"),
                element("p", element("span", "As of ", id="live"), element("span", clock(shown.time, "%H:%M:%S UTC"),
                        id="time"), class_="live"),
            ),
            element(
                "main",
                slots["verdict"],
                _columns(slots, _TOP, "top"),
                [slots[name] for name in _WIDE],
                _columns(slots, _BELOW, "below"),
            ),
            element("footer", element("p", "All numbers: ", element("a", "metrics", href="metrics"), ". Ready: ",
                    element("a", "readyz", href="readyz"), ". Nothing can be changed here.")),
        )  # fmt: skip
        whole = Html(f"<!doctype html>\n{element('html', head, body, lang='en')}\n")
        return web.Response(text=whole, content_type="text/html", charset="utf-8")


def _columns(slots: Mapping[str, Html], names: Sequence[Sequence[str]], class_: str) -> Html:
    """Columns of sections; a section stays in its column, whatever the length of others."""
    columns = [element("div", [slots[name] for name in each], class_="column") for each in names]
    return element("div", columns, class_=f"columns {class_}")


def _rules_of_levels() -> str:
    """Style rules with the colour of each level, or that of `other` if the style sheet has none."""
    colours = {name: f"var(--{name}, var(--other))" for name in LEVELS}
    return "".join(f".level-{name} {{ fill: {each}; background: {each}; }}\n" for name, each in colours.items())


@asynccontextmanager
async def page(watched: Watched, alarms: Alarms) -> AsyncIterator[Page]:
    """The page, updated until the block ends."""
    files = {name: (HERE / name).read_bytes() for name in FILES}
    files["page.css"] += _rules_of_levels().encode()
    async with recording(watched, alarms) as record:
        feed = Feed(watched, record)
        async with in_background("page", feed.keep_up):
            yield Page(watched.config.site.name, feed, files)
