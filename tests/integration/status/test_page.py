"""The page tells what was sent, to the number, under many viewers, restarts and strange names.
Standard: each number is that of /metrics; mail goes first.
"""

from __future__ import annotations

import asyncio
import json
import math
import os
import re
import signal
import socket
import sqlite3
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, closing
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from relay import levels
from relay.config import TCPAddress
from relay.counting import metrics
from relay.kme import DevelopmentKMEs
from relay.process import app
from relay.status import alarms, exposition, record, server
from relay.status.page import feed
from relay.status.page.feed import Feed
from tests.integration.status.conftest import Two
from tests.integration.status.test_access import REMOTE, TOKEN, with_files
from tests.testlib import mails
from tests.testlib.sink import Sink
from tests.testlib.sites import Site, make_site, relay_process
from tests.testlib.status_numbers import numbers, with_status
from tests.testlib.status_page import ReadPage, page
from tests.testlib.submit import submit
from tests.testlib.workers import numbered, pids, until, workers


@pytest.fixture(name="site")
def _site(tmp_path: Path, kmes: DevelopmentKMEs, sink: Sink) -> Site:
    return with_status(
        make_site(tmp_path / "alice", "alice", state=kmes.state_dir, kme_url=kmes.urls[0], outgoing=sink.address)
    )


@pytest.fixture(autouse=True)
def _at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is told is never a moment old."""
    monkeypatch.setattr(feed, "SHARE", math.inf)
    monkeypatch.setattr(exposition, "SHARE", math.inf)
    monkeypatch.setattr(alarms, "LOOK_S", 0.1)


async def send(address: TCPAddress, number: int, **how: Any) -> int:
    return (await submit(address, mails.plain().replace(b"<1@", b"<%d@" % number), **how)).code


@asynccontextmanager
async def observer(address: TCPAddress) -> AsyncIterator[aiohttp.StreamReader]:
    """A viewer's stream."""
    timeout = aiohttp.ClientTimeout(total=None, sock_read=60)
    async with aiohttp.ClientSession(timeout=timeout) as session, session.get(f"http://{address}/events") as response:
        assert (response.status, response.content_type) == (200, "text/event-stream")
        yield response.content


async def news(stream: aiohttp.StreamReader) -> dict[str, Any]:
    """The next event."""
    line = await stream.readuntil(b"\n\n")
    said: dict[str, Any] = json.loads(line.removeprefix(b"data: "))
    return said


async def test_numbers_are_those_of_metrics_and_of_what_was_sent(two: Two, sink: Sink) -> None:
    outgoing = two.alice["outgoing"]
    for number in range(7):
        assert await send(outgoing, number) == 250
    everywhere = ["x@bob.example", "y@bob.example", "z@elsewhere.example"]
    assert await send(outgoing, 7, recipients=everywhere) == 250
    assert await send(outgoing, 8, recipients=["x@alice.example"]) == 250
    assert await send(outgoing, 8, recipients=["x@refused.example"]) == 550
    sink.on_data = ["451 later", "550 never"]
    assert [await send(outgoing, number) for number in (9, 10)] == [451, 554]
    for of in (two.alice, two.bob):
        shown, told = await page(of["status"]), await numbers(of["status"])
        assert shown.mails() == {
            (direction, level, outcome): found
            for direction in ("outgoing", "incoming")
            for level in ("aes", "plaintext", "none")
            for outcome in ("delivered", "inside", "held", "refused")
            if (found := told.sum("qumail_mails_total", direction=direction, level=level, outcome=outcome))
        }
        assert sum(shown.mails().values()) == told.sum("qumail_mails_total")
    shown = await page(two.alice["status"])
    assert shown.mails()["outgoing", "aes", "delivered"] == 8
    assert shown.mails()["outgoing", "aes", "held"] == 1
    assert shown.facts("clear") == {"since the start": "1", "in 24 hours": "1", "in 7 days": "1", "in 6 weeks": "1"}
    for span in ("24-hours", "six-weeks"):
        assert [row for _, row in shown.table(f"outgoing-the-last-{span}")] == [{"aes": 8, "in clear": 1}]
    held = shown.text("held")
    assert "The next hop cannot be reached or answered 4xx. NextHopUnavailable outgoing 1 in 10" in held
    assert "PolicyRefuses outgoing 1 in 10" in held
    async with asyncio.timeout(20):  # how many wait is looked at now and then
        while not (said := (await page(two.alice["status"])).text("slot-verdict")).endswith(
            "mail to 1 recipient is held; DEVELOPMENT KEYS, NOT QUANTUM"
        ):
            await asyncio.sleep(0.05)
    flows = "! Mail flows, NOT QUANTUM"
    assert (
        said
        == f"{flows} 10 delivered, 2 refused in the last 10 minutes; mail to 1 recipient is held; DEVELOPMENT KEYS, NOT QUANTUM"
    )
    waits = (
        "Put aside and held now Held: it waits in the queue of the mail server, where postqueue -p shows each SENDER "
        "and RECIPIENT. Attempts held in the last 10 minutes, by peer: "
    )
    waits += "outgoing: bob 1 mail why recipients longest wait what says more outgoing next hop 1 "
    assert (await page(two.alice["status"])).text("waiting").startswith(waits)
    assert "None so far: quarantined, consumed, repeated" in shown.text("mails")
    assert "DEVELOPMENT KEYS, NOT QUANTUM" in shown.text("keys")
    async with asyncio.timeout(20):  # keys are fetched meanwhile
        while True:
            keys = (await numbers(two.alice["status"])).sum("qumail_key_pool_keys", peer="bob")
            text = (await page(two.alice["status"])).text("keys")
            if keys and re.search(rf"kme for bob .* ready here ?{keys:.0f} ", text):
                break
            await asyncio.sleep(0.05)


async def test_a_viewer_is_told_what_changes_and_nothing_else(two: Two, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(feed, "TICK_S", 0.05)
    async with observer(two.alice["status"]) as stream:
        first = await news(stream)
        assert set(first["sections"]) == set(feed.SECTIONS)
        assert first["title"] == "Ready, and no mail comes, NOT QUANTUM · alice"
        assert await send(two.alice["outgoing"], 1) == 250
        async with asyncio.timeout(20):
            while "mails" not in (said := await news(stream))["sections"]:
                assert "policies" not in said["sections"]
        assert ">aes<" in said["sections"]["mails"]
        assert said["title"] == "Mail flows, NOT QUANTUM · alice"


async def test_without_viewers_nothing_is_made_and_for_many_it_is_made_once(
    two: Two, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(feed, "TICK_S", 0.05)
    looks = Counter[Feed]()
    look = Feed._look

    async def counted(self: Feed) -> float:
        looks[self] += 1
        return await look(self)

    monkeypatch.setattr(Feed, "_look", counted)
    for number in range(3):
        assert await send(two.alice["outgoing"], number) == 250
    assert not looks
    viewers = [observer(two.alice["status"]) for _ in range(50)]
    streams = await asyncio.gather(*(each.__aenter__() for each in viewers))
    for _ in range(10):
        await asyncio.gather(*map(news, streams))
    [made] = looks.values()
    assert made < 50 + 25, "a look for each viewer who comes, and one for each tick"
    await asyncio.gather(*(each.__aexit__(None, None, None) for each in viewers))


async def test_more_viewers_than_there_is_room_for_are_told_to_come_back(
    two: Two, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(feed, "MOST_VIEWERS", 5)
    status = two.alice["status"]
    viewers = [observer(status) for _ in range(5)]
    for each in viewers:
        await news(await each.__aenter__())
    async with aiohttp.ClientSession() as session:
        async with session.get(f"http://{status}/events") as response:
            assert (response.status, response.headers["Retry-After"]) == (503, "30")
        assert (await page(status)).text("slot-verdict")
        await viewers.pop().__aexit__(None, None, None)
        async with asyncio.timeout(20):
            while True:
                async with session.get(f"http://{status}/events") as response:
                    if response.status == 200:
                        break
                await asyncio.sleep(0.02)
    for each in viewers:
        await each.__aexit__(None, None, None)


async def test_a_hundred_viewers_slow_ones_and_hostile_requests_leave_mail_its_way(
    two: Two, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A client that does not read is dropped; connections, slots and descriptors stay within their bounds all the while."""
    monkeypatch.setattr(feed, "VIEWER_S", 6.0)
    monkeypatch.setattr(feed, "TICK_S", 0.2)
    monkeypatch.setattr(feed, "OCTETS_A_SECOND", math.inf)
    feeds: set[Feed] = set()
    since, accept = Feed._since, server.StatusServer._begin

    def much(self: Feed, look: int) -> bytes:
        feeds.add(self)
        assert self.viewers <= feed.MOST_VIEWERS
        return since(self, look)[:-2] + b" " * 50_000 + b"\n\n"

    async def begun(self: server.StatusServer, accepted: socket.socket) -> None:
        await accept(self, accepted)
        assert self.connections <= server.MOST_CONNECTIONS

    monkeypatch.setattr(Feed, "_since", much)
    monkeypatch.setattr(server.StatusServer, "_begin", begun)
    status, outgoing = two.alice["status"], two.alice["outgoing"]
    slow = []
    for _ in range(60):
        connection = socket.socket()
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        connection.connect(status)
        connection.sendall(b"GET /events HTTP/1.1\r\nHost: localhost\r\n\r\n")
        slow.append(connection)
    told = Counter[int]()

    async def look(number: int) -> None:
        async with observer(status) as stream:
            while True:
                await news(stream)
                told[number] += 1

    viewers = [asyncio.create_task(look(number)) for number in range(feed.MOST_VIEWERS - 60)]
    hostile = [await asyncio.open_connection(*status) for _ in range(80)]
    for number, (_, writer) in enumerate(hostile):
        writer.write((b"GET /", b"GET /events HTTP/1.1\r\nX: ", os.urandom(1000), b"\r\n" * 1000)[number % 4])
    for number in range(20):
        assert await send(outgoing, number) == 250
    async with asyncio.timeout(60):
        while not feeds or next(iter(feeds)).viewers != len(viewers) or len(told) < len(viewers):
            await asyncio.sleep(0.05)
    before = told.copy()
    async with asyncio.timeout(60):
        while min((told - before).values(), default=0) < 3 or len(told - before) < len(viewers):
            await asyncio.sleep(0.05)  # those who do not read are left, the others are told on
        while (await numbers(status)).sum("qumail_mails_total", outcome="delivered") != 20:
            await asyncio.sleep(0.05)
    assert not [each.exception() for each in viewers if each.done()]
    for viewer in viewers:
        viewer.cancel()
    await asyncio.gather(*viewers, return_exceptions=True)
    for each in slow:
        each.close()
    for _, writer in hostile:
        writer.close()


async def test_names_are_shown_as_they_are_and_never_become_elements(
    tmp_path: Path, kmes: DevelopmentKMEs, sink: Sink
) -> None:
    name = "<img src=x onerror=alert(1)>&quot;'\\\"</script><script>alert(2)</script>"
    site = make_site(tmp_path / "alice", "alice", state=kmes.state_dir, kme_url=kmes.urls[0], outgoing=sink.address)
    text = site.config_file.read_text().replace("[kmes.kme]", f'[kmes."{name}"]')
    site.config_file.write_text(text.replace("[peers.bob]", f'[peers."{name}"]'))
    async with app.running(with_status(site).config) as addresses:
        assert await send(addresses["outgoing"], 1) == 250
        shown = await page(addresses["status"])
        assert [each.get("src") for each in shown.root.iter("script")] == ["page.js"]
        assert not list(shown.root.iter("img"))
        assert name.replace('\\"', '"') in shown.text("keys")
        async with observer(addresses["status"]) as stream:
            said = await news(stream)
        for section in said["sections"].values():
            assert "<img" not in section
            assert "<script" not in section


async def test_a_browser_takes_nothing_from_elsewhere_and_runs_nothing_that_stands_in_the_page(two: Two) -> None:
    status = two.alice["status"]
    async with aiohttp.ClientSession() as session:
        for path in ("/", "/page.js", "/page.css", "/icon.svg", "/events", "/metrics", "/nowhere"):
            async with session.get(f"http://{status}{path}") as response:
                policy = response.headers["Content-Security-Policy"]
                assert policy.startswith("default-src 'none'; script-src 'self'; style-src 'self'")
                assert "frame-ancestors 'none'" in policy
                assert "unsafe" not in policy
                assert response.headers["X-Content-Type-Options"] == "nosniff"
                assert response.headers["Cross-Origin-Resource-Policy"] == "same-origin"
    shown = await page(status)
    for each in shown.root.iter():
        assert each.tag != "style"
        assert not [name for name in each.attrib if name == "style" or name.startswith("on")]
        for link in (each.get("src"), each.get("href")):
            assert link is None or re.fullmatch(r"#?[a-z]+(\.[a-z]+)?", link), link
    async with aiohttp.ClientSession() as session, session.get(f"http://{status}/page.css") as response:
        style = await response.text()
    for level in levels.protections():
        assert f".level-{level.replace('+', '-')} {{" in style
    for file in ("page.js", "page.css", "icon.svg"):
        text = (Path(feed.__file__).parent / file).read_text()
        assert not re.search(r"https?://(?!www\.w3\.org/2000/svg)|url\(|@import", text)


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({}, 200),
        ({"Sec-Fetch-Site": "none", "Sec-Fetch-Mode": "navigate", "Sec-Fetch-Dest": "document"}, 200),
        ({"Sec-Fetch-Site": "same-origin", "Sec-Fetch-Mode": "cors", "Sec-Fetch-Dest": "empty"}, 200),
        ({"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "navigate", "Sec-Fetch-Dest": "document"}, 200),
        ({"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "no-cors", "Sec-Fetch-Dest": "image"}, 403),
        ({"Sec-Fetch-Site": "same-site", "Sec-Fetch-Mode": "cors", "Sec-Fetch-Dest": "empty"}, 403),
        ({"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "navigate", "Sec-Fetch-Dest": "iframe"}, 403),
    ],
)
async def test_pages_from_elsewhere_may_lead_here_and_nothing_else(
    two: Two, headers: dict[str, str], status: int
) -> None:
    async with aiohttp.ClientSession() as session:
        for path in ("/", "/metrics", "/events"):
            async with session.get(f"http://{two.alice['status']}{path}", headers=headers) as response:
                assert response.status == status


async def test_by_a_unix_socket_no_name_of_elsewhere_is_answered(site: Site) -> None:
    """ssh leads a browser from loopback to it."""
    text = site.config_file.read_text().replace('[status]\nlisten = "127.0.0.1:0"', "[status]")
    site.config_file.write_text(f'{text}listen = "unix:{site.directory}/status.sock"\n')
    async with app.running(site.config):
        connector = aiohttp.UnixConnector(str(site.directory / "status.sock"))
        async with aiohttp.ClientSession(connector=connector) as session:
            for host, status in (("localhost:9469", 200), ("127.0.0.1", 200), ("relay", 200), ("evil.example", 421)):
                async with session.get("http://relay/", headers={"Host": host}) as response:
                    assert response.status == status, host


async def test_elsewhere_the_page_and_its_stream_need_the_token_and_show_it_again_when_it_changes(
    tmp_path: Path, kmes: DevelopmentKMEs, sink: Sink
) -> None:
    site = make_site(tmp_path / "alice", "alice", state=kmes.state_dir, kme_url=kmes.urls[0], outgoing=sink.address)
    context = with_files(site)
    async with app.running(with_status(site, REMOTE).config) as addresses, aiohttp.ClientSession() as session:
        url = f"https://localhost:{addresses['status'].port}"
        login = {"Authorization": aiohttp.encode_basic_auth("anybody", TOKEN)}
        for path in ("/", "/events", "/page.js"):
            async with session.get(f"{url}{path}", ssl=context) as response:
                assert response.status == 401
                assert response.headers["WWW-Authenticate"].startswith("Basic")
            async with session.get(f"{url}{path}", ssl=context, headers=login) as response:
                assert response.status == 200
        async with session.get(f"{url}/events", ssl=context, headers=login) as response:
            await news(response.content)
            (site.directory / "status.token").write_text("x" * 40)
            os.kill(os.getpid(), signal.SIGHUP)
            async with asyncio.timeout(20):
                await response.content.read()
        async with session.get(f"{url}/events", ssl=context, headers=login) as response:
            assert response.status == 401


async def test_the_history_outlives_the_relay_and_begins_where_it_ended(site: Site) -> None:
    sent = 0
    for times in range(2):
        async with relay_process(site) as relay:
            for _ in range(4):
                assert await send(relay.addresses["outgoing"], sent) == 250
                sent += 1
            shown = await until_shown(relay.addresses["status"], sent)
            assert shown.mails() == {("outgoing", "aes", "delivered"): 4}
            assert times == 0 or sent == 8


async def test_the_history_is_the_sum_over_workers_whichever_is_killed(site: Site) -> None:
    async with workers(site, 2) as relay:
        sent = 0
        for killed in (2, 1):
            for _ in range(6):
                assert (await submit(relay.addresses["outgoing"], numbered(sent))).code == 250
                sent += 1
            started = len(await until(relay, "relay_serves"))
            os.kill(pids(relay)[killed], signal.SIGKILL)
            await until(relay, "relay_serves", started + 1)
        shown = await until_shown(relay.addresses["status"], sent)
        assert sum(shown.mails().values()) == sent == 12
    async with relay_process(site) as relay:
        await until_shown(relay.addresses["status"], sent)


async def until_shown(address: TCPAddress, delivered: int) -> ReadPage:
    """What is shown may be a moment old, and is never too much."""
    async with asyncio.timeout(30):
        while True:
            shown = await page(address)
            tables = [
                each.get("id", "") for each in shown.root.iter() if each.get("id", "").startswith("table-outgoing")
            ]
            found = [sum(sum(row.values()) for _, row in shown.table(name.removeprefix("table-"))) for name in tables]
            assert all(each <= delivered for each in found), found
            if found == [delivered, delivered]:
                return shown
            await asyncio.sleep(0.05)


async def test_where_the_history_cannot_be_written_the_page_says_so_and_catches_up(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(record, "LOOK_S", 0.05)
    monkeypatch.setattr(record, "WRITE_S", 0.05)

    async def until_it_is_so(address: TCPAddress, *, written: bool) -> ReadPage:
        async with asyncio.timeout(30):
            while ("The history is not written" in (shown := await page(address)).text("troubles")) == written:
                await asyncio.sleep(0.05)
        return shown

    async with app.running(site.config) as addresses:
        assert await send(addresses["outgoing"], 1) == 250
        await until_it_is_so(addresses["status"], written=True)
        with closing(sqlite3.connect(site.config.store.database)) as database:
            database.execute("ALTER TABLE history RENAME TO away")
            assert await send(addresses["outgoing"], 2) == 250
            shown = await until_it_is_so(addresses["status"], written=False)
            assert "The history is not written" in shown.text("troubles")
            assert "no such table" in shown.text("troubles")
            assert shown.mails() == {("outgoing", "aes", "delivered"): 2}
            database.execute("ALTER TABLE away RENAME TO history")
        await until_it_is_so(addresses["status"], written=True)
    async with app.running(site.config) as addresses:
        await until_shown(addresses["status"], 2)


def test_a_count_of_each_metric_that_is_remembered_is_a_counter() -> None:
    assert {each.kind for each in record._LOOKED_AT} == {"counter"}
    assert metrics.MAILS in record._LOOKED_AT


async def test_an_alarm_stands_there_with_what_to_do_and_is_remembered_when_it_is_over(site: Site) -> None:
    async with app.running(site.config) as addresses:
        shown = (await page(addresses["status"])).text("troubles")
        assert shown.startswith("Nothing to do The relay knows of nothing that is wrong, but its keys are those of"), (
            shown
        )
        site.write_policies({"default.toml": 'levels = ["aes'})

        async def until_it_says(words: str) -> str:
            async with asyncio.timeout(30):
                while words not in (said := (await page(addresses["status"])).text("troubles")):
                    await asyncio.sleep(0.05)
            return said

        said = await until_it_says("policy_broken")
        assert said.startswith("What is wrong, and what to do ! Warning")
        assert "qumail-relay policy check names file and line." in said
        site.write_policies({"default.toml": 'levels = ["aes"]\n'})
        said = await until_it_says("Lately over: 1")
        assert said.startswith("Nothing to do")
        assert "policy_broken" in said
