"""The page in a real browser with real traffic behind it: live, on a phone and a wide screen, by keyboard, by screen reader.
Standard: WCAG 2.2 AA as axe-core checks it; nothing is asked for elsewhere, and the console stays empty.
"""

from __future__ import annotations

import asyncio
import json
import math
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Literal

import pytest

from relay.config import TCPAddress
from relay.kme import DevelopmentKMEs
from relay.process import app
from relay.status import alarms, exposition, record
from relay.status.page import feed
from relay.status.page.feed import Feed
from tests.integration.status.conftest import Two
from tests.integration.status.test_page import send
from tests.testlib import browser as browsers, mails
from tests.testlib.browser import ENTER, TAB, Browser
from tests.testlib.sink import Sink
from tests.testlib.sites import make_site
from tests.testlib.status_numbers import SEALED_TYPE, numbers, with_status
from tests.testlib.status_page import page
from tests.testlib.submit import submit

AXE = Path(__file__).parents[2] / "node/node_modules/axe-core/axe.min.js"
TABLE = """
const rows = [...document.querySelectorAll("#table-mails tbody tr")];
const head = [...document.querySelectorAll("#table-mails thead th")].map((each) => each.textContent);
return rows.flatMap((row) => [...row.children].slice(2).map((cell, at) =>
  [row.children[1].textContent, row.children[0].textContent.replace("in clear", "plaintext"), head[at + 2], Number(cell.textContent.replaceAll(",", ""))]
)).filter((each) => each[3]);
"""
CUT_OFF = """
return [...document.querySelectorAll("section *")].filter((each) => !each.closest("svg, thead"))
  .filter((each) => each.scrollWidth > each.clientWidth + 1 && getComputedStyle(each).display !== "inline")
  .map((each) => each.outerHTML.slice(0, 200))
"""
FOLD = """
return ["verdict", "troubles", "waiting", "today", "latency", "keys"]
  .map((each) => document.getElementById("slot-" + each).getBoundingClientRect().bottom)
"""
COLUMNS = """
return [...document.querySelectorAll(".columns")].map((each) => {
  const top = each.getBoundingClientRect().top, ends = {};
  for (const one of each.children) {
    const {left, bottom} = one.getBoundingClientRect();
    ends[left] = Math.max(ends[left] || 0, bottom - top);
  }
  return Object.values(ends);
})
"""
COLOURS = """
return [...document.querySelectorAll(".swatch.level-plaintext")].filter((each) => each.closest("#today, #history, #mails"))
  .map((each) => getComputedStyle(each).backgroundColor)
"""
BROKEN = 'levels = ["aes'


@pytest.fixture
async def browser(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Browser]:
    if missing := browsers.missing():
        pytest.skip(missing)
    monkeypatch.setattr(feed, "TICK_S", 0.1)
    monkeypatch.setattr(feed, "SHARE", math.inf)
    monkeypatch.setattr(exposition, "SHARE", math.inf)
    monkeypatch.setattr(alarms, "LOOK_S", 0.1)
    monkeypatch.setattr(record, "LOOK_S", 0.1)
    async with browsers.browser(tmp_path / "profile") as found:
        yield found


async def until(browser: Browser, script: str) -> None:
    """The script gives true."""
    async with asyncio.timeout(20):
        while not await browser.run(script):
            await asyncio.sleep(0.05)


async def test_what_is_sent_stands_on_the_page_a_moment_later_and_nothing_comes_from_elsewhere(
    two: Two, sink: Sink, browser: Browser, monkeypatch: pytest.MonkeyPatch
) -> None:
    feeds: set[Feed] = set()
    look = Feed._look

    async def seen(self: Feed) -> float:
        feeds.add(self)
        return await look(self)

    monkeypatch.setattr(Feed, "_look", seen)
    status, outgoing = two.alice["status"], two.alice["outgoing"]
    await browser.open(f"http://{status}/")
    await until(browser, "return document.getElementById('live').textContent === 'Live, '")
    assert await browser.get("title") == "Ready, and no mail comes, NOT QUANTUM · alice"
    for number in range(5):
        assert await send(outgoing, number) == 250
    assert await send(outgoing, 5, recipients=["x@bob.example", "z@elsewhere.example"]) == 250
    sink.on_data = ["451 later"]
    assert await send(outgoing, 6) == 451
    said = await numbers(status)
    wanted = {
        (direction, level, outcome): found
        for direction in ("outgoing", "incoming")
        for level in ("aes", "plaintext", "none")
        for outcome in ("delivered", "held")
        if (found := said.sum("qumail_mails_total", direction=direction, level=level, outcome=outcome))
    }
    assert wanted == {
        ("outgoing", "aes", "delivered"): 6, ("outgoing", "aes", "held"): 1, ("outgoing", "plaintext", "delivered"): 1,
    }  # fmt: skip
    async with asyncio.timeout(20):
        while {tuple(each[:3]): each[3] for each in await browser.run(TABLE)} != wanted:
            await asyncio.sleep(0.05)
    assert await browser.get("title") == "Mail flows, NOT QUANTUM · alice"
    assert await browser.run("return document.getElementById('news').textContent") == await browser.get("title")
    monkeypatch.setattr(feed, "TICK_S", 3600)
    later = "const now = Date.now; Date.now = () => now() + 20000; "
    await until(browser, later + "return document.getElementById('live').textContent.startsWith('No news')")
    for each in feeds:
        each.send_off()  # the browser asks for another stream
    await until(browser, "return document.getElementById('live').textContent === 'Live, '")
    asked = [json.loads(each["message"])["message"] for each in await browser.said("performance")]
    urls = {each["params"]["request"]["url"] for each in asked if each["method"] == "Network.requestWillBeSent"}
    urls = {each for each in urls if not each.startswith(("chrome:", "data:"))}  # its own first tab
    assert urls == {f"http://{status}/{each}" for each in ("", "page.css", "page.js", "icon.svg", "events")}
    assert await browser.said("browser") == []


async def test_axe_finds_nothing_at_any_width_in_any_scheme_with_everything_open(
    tmp_path: Path, kmes: DevelopmentKMEs, sink: Sink, browser: Browser
) -> None:
    if not AXE.exists():
        pytest.skip("axe-core is not installed (deploy/test does it: npm ci in tests/node)")
    name = "<img src=x onerror=alert(1)>" + "long" * 30
    site = make_site(tmp_path / "alice", "alice", state=kmes.state_dir, kme_url=kmes.urls[0], outgoing=sink.address)
    text = site.config_file.read_text().replace("[kmes.kme]", f'[kmes."{name}"]')
    site.config_file.write_text(text)
    async with app.running(with_status(site).config) as addresses:
        sink.on_data = ["451 later"]
        assert [await send(addresses["outgoing"], number) for number in (1, 2, 3)] == [451, 250, 250]
        site.write_policies({"default.toml": BROKEN})
        await browser.open(f"http://{addresses['status']}/")
        await until(browser, "return document.getElementById('troubles').textContent.includes('policy_broken')")
        await browser.devtools("Runtime.evaluate", expression=AXE.read_text())
        await browser.run("for (const each of document.querySelectorAll('details')) each.open = true")
        schemes: tuple[Literal["light", "dark"], ...] = ("light", "dark")
        for width in (390, 1280):
            for scheme in schemes:
                await browser.look(width, scheme)
                found = await browser.run(
                    "return (await axe.run()).violations.map((each) => [each.id, each.nodes[0].html])"
                )
                assert found == [], (width, scheme)
            assert await browser.run("return document.scrollingElement.scrollWidth") <= width, (
                "no need to scroll sideways"
            )
        assert await browser.run("return [document.images.length, document.scripts.length]") == [0, 1]
        assert name in await browser.run("return document.getElementById('keys').textContent")


async def test_nothing_is_cut_off_on_a_telephone_or_a_wide_screen(two: Two, sink: Sink, browser: Browser) -> None:
    for number in range(2):
        message = SEALED_TYPE + b"AA%02d\r\n" % number
        assert (await submit(two.bob["incoming"], message, sender="x@alice.example")).code == 250
    sink.on_data = ["451 later"]
    assert (await submit(two.bob["incoming"], mails.plain(), sender="x@elsewhere.example")).code == 451
    for width in (400, 1400):
        await browser.look(width, "light")
        await browser.open(f"http://{two.bob['status']}/")
        listed = "document.getElementById('table-aside') && document.getElementById('table-held-now')"
        await until(browser, f"return Boolean({listed})")
        await browser.run("for (const each of document.querySelectorAll('details')) each.open = true")
        assert await browser.run(CUT_OFF) == []
        assert await browser.run("return document.scrollingElement.scrollWidth") <= width


async def test_what_matters_is_seen_without_scrolling_and_no_column_is_empty(two: Two, browser: Browser) -> None:
    for number in range(3):
        assert await send(two.alice["outgoing"], number) == 250
    await browser.look(1400, "light")
    await browser.open(f"http://{two.alice['status']}/")
    assert max(await browser.run(FOLD)) <= 900
    for first, second in await browser.run(COLUMNS):
        assert min(first, second) > 0.6 * max(first, second)


async def test_mail_in_clear_has_one_colour_for_each_direction_in_charts_and_tables(two: Two, browser: Browser) -> None:
    assert (await submit(two.bob["incoming"], mails.plain(), sender="x@elsewhere.example")).code == 250
    assert await send(two.alice["outgoing"], 0, recipients=["x@elsewhere.example"]) == 250
    await browser.look(1400, "light")
    found = {}
    for site, status in (("alice", two.alice["status"]), ("bob", two.bob["status"])):
        await browser.open(f"http://{status}/")
        await until(
            browser,
            "return Boolean(document.querySelector('#today .legend') && document.querySelector('#table-mails'))",
        )
        found[site] = await browser.run(COLOURS)
        assert len(found[site]) > 1
        assert len(set(found[site])) == 1
    assert found["alice"][0] != found["bob"][0]


async def test_the_keyboard_reaches_everything_and_news_do_not_move_it(two: Two, browser: Browser) -> None:
    status: TCPAddress = two.alice["status"]
    assert await send(two.alice["outgoing"], 0) == 250
    await browser.open(f"http://{status}/")
    await until(browser, "return document.getElementById('live').textContent === 'Live, '")

    async def focused() -> str:
        return str(
            await browser.run(
                "const at = document.activeElement; return at.id || at.getAttribute('href') || at.tagName"
            )
        )

    await browser.press(TAB)
    assert await focused() == "#troubles"
    assert await browser.run("return document.activeElement.getBoundingClientRect().left >= 0"), "now it is seen"
    summary = "summary-outgoing-the-last-24-hours"
    reached = []
    while (at := await focused()) != summary:
        reached.append(at)
        assert len(reached) < 50, reached
        await browser.press(TAB)
    await browser.press(ENTER)
    opened = f"return document.getElementById('{summary.replace('summary', 'details')}').open"
    assert await browser.run(opened)
    assert await send(two.alice["outgoing"], 1) == 250
    await until(browser, f"return document.getElementById('{summary}').parentElement.textContent.includes('2')")
    assert await browser.run(opened), "it stays open"
    assert await focused() == summary, "and they stay where they are"
    while (at := await focused()) != "readyz":
        reached.append(at)
        assert len(reached) < 50, reached
        await browser.press(TAB)
    shown = await page(status)
    can = [
        each.get("id") or each.get("href")
        for each in shown.root.iter()
        if each.tag in ("a", "summary") or each.get("tabindex")
    ]
    hidden = [each for each in can if each and each.startswith("table-") and "-the-last-" in each]
    assert set(can) - set(hidden) <= {*reached, "readyz"}
