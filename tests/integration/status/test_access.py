"""Who may ask: on loopback and by a Unix socket any client, elsewhere those alone who send the token over TLS.
Standard: RFC 6750, RFC 7617; a browser that was led here by a page from elsewhere gets nothing (DNS rebinding).
"""

from __future__ import annotations

import asyncio
import base64
import json
import os
import ssl
import stat
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import aiohttp
import pytest
import trustme
from structlog.testing import capture_logs

from relay.config import TCPAddress, load_config
from relay.errors import ConfigError
from relay.kme import DevelopmentKMEs
from relay.process import app
from relay.status import server
from tests.testlib.relay_command import run
from tests.testlib.sink import Sink
from tests.testlib.sites import Site, make_site
from tests.testlib.status_numbers import with_status

TOKEN = "0123456789abcdef" * 4
REMOTE = '[status]\nlisten = "0.0.0.0:0"\ncertificate = "status.pem"\nkey = "status.key"\ntoken = "status.token"\n'


@pytest.fixture(name="site")
def _site(tmp_path: Path, kmes: DevelopmentKMEs, sink: Sink) -> Site:
    return make_site(tmp_path / "alice", "alice", state=kmes.state_dir, kme_url=kmes.urls[0], outgoing=sink.address)


def with_files(site: Site) -> ssl.SSLContext:
    """Certificate, key and token; what a client trusts."""
    authority = trustme.CA()
    issued = authority.issue_cert("localhost")
    issued.cert_chain_pems[0].write_to_path(site.directory / "status.pem")
    issued.private_key_pem.write_to_path(site.directory / "status.key")
    (site.directory / "status.key").chmod(0o600)
    (site.directory / "status.token").write_text(f"{TOKEN}\n")
    (site.directory / "status.token").chmod(0o600)
    context = ssl.create_default_context()
    authority.configure_trust(context)
    return context


@asynccontextmanager
async def client(connector: aiohttp.BaseConnector | None = None) -> AsyncIterator[aiohttp.ClientSession]:
    async with aiohttp.ClientSession(connector=connector) as session:
        yield session


@pytest.mark.parametrize(
    "sent", [b"Bearer \xff\xfe", b"Bearer \xed\xb2\x80", b"Basic \xff", b"\xff \xff", b"Bearer \xc3\xa9"]
)
async def test_octets_that_are_no_text_are_no_token_and_say_nothing_in_the_log(site: Site, sent: bytes) -> None:
    context = with_files(site)
    with capture_logs() as logs:
        async with app.running(with_status(site, REMOTE).config) as addresses:
            reader, writer = await asyncio.open_connection("localhost", addresses["status"].port, ssl=context)
            writer.write(b"GET /healthz HTTP/1.1\r\nHost: localhost\r\nAuthorization: " + sent + b"\r\n\r\n")
            async with asyncio.timeout(20):
                assert await reader.readline() == b"HTTP/1.1 401 Unauthorized\r\n"
            writer.close()
    assert [each["event"] for each in logs if each["event"].startswith("status_")] == []


async def test_where_as_many_are_connected_as_may_be_a_probe_is_answered_all_the_same(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(server, "MOST_CONNECTIONS", 20)
    context = with_files(site)
    async with app.running(with_status(site, REMOTE).config) as addresses, client() as session:
        where = ("127.0.0.1", addresses["status"].port)
        strangers = [await asyncio.open_connection(*where) for _ in range(30)]  # in the handshake, for ever
        strangers += [
            await asyncio.open_connection(*where, ssl=context, server_hostname="localhost") for _ in range(30)
        ]
        url = f"https://localhost:{where[1]}/healthz"
        async with session.get(url, ssl=context, headers={"Authorization": f"Bearer {TOKEN}"}) as response:
            assert response.status == 200
        for _, writer in strangers:
            writer.close()


async def test_elsewhere_only_those_are_answered_who_send_the_token_over_tls(site: Site) -> None:
    context = with_files(site)
    async with app.running(with_status(site, REMOTE).config) as addresses, client() as session:
        port = addresses["status"].port
        url = f"https://localhost:{port}/metrics"

        async def answer(authorization: str | None) -> int:
            headers = {} if authorization is None else {"Authorization": authorization}
            async with session.get(url, ssl=context, headers=headers) as response:
                if response.status == 401:
                    assert "Basic" in response.headers["WWW-Authenticate"]
                    assert "qumail" not in await response.text()
                return response.status

        basic = base64.b64encode(f"anybody:{TOKEN}".encode()).decode()
        assert [await answer(f"Bearer {TOKEN}"), await answer(f"Basic {basic}")] == [200, 200]
        for wrong in (
            None, "", "Bearer", f"Bearer {TOKEN[:-1]}", f"Bearer {TOKEN}x", f"Bearer {TOKEN.upper()}", TOKEN,
            f"Basic {TOKEN}", "Basic !", "Bearer \u00e9", "Basic " + base64.b64encode(TOKEN.encode()).decode(),
        ):  # fmt: skip
            assert await answer(wrong) == 401, wrong
        for path in ("/healthz", "/readyz", "/nowhere"):
            async with session.get(f"https://localhost:{port}{path}", ssl=context) as response:
                assert response.status == 401, "without the token it is not even told what there is"
        with pytest.raises(aiohttp.ClientError):
            await session.get(f"http://localhost:{port}/metrics")


async def test_certificate_and_token_are_read_again(site: Site) -> None:
    with_files(site)
    async with app.running(with_status(site, REMOTE).config) as addresses, client() as session:
        context = with_files(site)
        (site.directory / "status.token").write_text("x" * 40)
        os.kill(os.getpid(), 1)
        async with asyncio.timeout(20):
            while True:
                try:
                    async with session.get(
                        f"https://localhost:{addresses['status'].port}/healthz",
                        ssl=context, headers={"Authorization": f"Bearer {'x' * 40}"},
                    ) as response:  # fmt: skip
                        assert response.status == 200
                        break
                except aiohttp.ClientError:
                    await asyncio.sleep(0.02)


@pytest.mark.parametrize(
    ("text", "what"),
    [
        ('listen = "0.0.0.0:9469"', "can be reached from elsewhere: set certificate, key and token"),
        ('listen = "relay.alice.example:9469"\ntoken = "t"', "can be reached from elsewhere"),
        ('listen = "[::]:9469"\ncertificate = "c"\nkey = "k"', "can be reached from elsewhere"),
        ('listen = "127.0.0.1:9469"\ncertificate = "c"', "set both certificate and key"),
        ('listen = "unix:/run/x/status.sock"\ncertificate = "c"\nkey = "k"', "a Unix socket has no TLS"),
        ('listen = "127.0.0.1:9469"\n[incoming]\nlisten="127.0.0.1:9469"\nnext_hop = "127.0.0.1:1"', "already listens"),
    ],
)
async def test_check_and_serve_refuse_what_anybody_could_reach(site: Site, text: str, what: str) -> None:
    with_status(site, f"[status]\n{text}\n")
    with pytest.raises(ConfigError, match=what):
        load_config(site.config_file)
    status, _, said = await run("check", "--config", site.config_file, "--json")
    assert status == 1
    [found] = json.loads(said)
    assert what in found["problems"][0]


@pytest.mark.parametrize("listen", ["127.0.0.1:0", "[::1]:0", "localhost:0", "127.8.9.1:0"])
def test_loopback_needs_neither_tls_nor_token(site: Site, listen: str) -> None:
    assert with_status(site, f'[status]\nlisten = "{listen}"\n').config.status is not None


async def test_a_unix_socket_is_for_those_who_may_enter_its_directory(site: Site) -> None:
    directory = site.directory / "run"
    with_status(site, f'[status]\nlisten = "unix:{directory}/status.sock"\n')

    async def found() -> dict[str, list[str]]:
        _, _, said = await run("check", "--config", site.config_file, "--json")
        return {each["what"]: each["problems"] for each in json.loads(said)}

    assert "No such file" in (await found())["status socket"][0]
    directory.mkdir(mode=0o777)
    directory.chmod(0o777)
    assert "lets everybody put another socket there" in (await found())["status socket"][0]
    directory.chmod(0o750)
    assert (await found())["status socket"] == []
    async with app.running(site.config):
        assert stat.S_IMODE((directory / "status.sock").stat().st_mode) == 0o660
        connector = aiohttp.UnixConnector(str(directory / "status.sock"))
        async with client(connector) as session, session.get("http://relay/metrics") as response:
            assert response.status == 200
            assert "qumail_tripwire_total 0.0" in await response.text()


async def test_check_says_what_is_wrong_with_the_files(site: Site) -> None:
    with_files(site)
    with_status(site, REMOTE)
    (site.directory / "status.token").write_text("short")
    (site.directory / "status.key").write_text("none")
    status, _, said = await run("check", "--config", site.config_file, "--json")
    found = {each["what"]: each["problems"] for each in json.loads(said)}
    assert status == 1
    assert "at least 32 characters" in found["status token"][0]
    assert "cannot be used for TLS" in found["status certificate"][0]
    (site.directory / "status.token").write_text(TOKEN)
    (site.directory / "status.token").chmod(0o644)
    with_files(site)
    (site.directory / "status.token").chmod(0o644)
    _, _, said = await run("check", "--config", site.config_file, "--json")
    found = {each["what"]: each["problems"] for each in json.loads(said)}
    assert "lets others read or write it" in found["status token"][0]
    assert found["status certificate"] == []
    with pytest.raises(ConfigError, match="lets others read"):
        async with app.running(site.config):
            pass


async def test_a_page_from_elsewhere_that_leads_a_browser_here_is_shown_nothing(site: Site) -> None:
    async with app.running(with_status(site).config) as addresses, client() as session:
        url = f"http://{addresses['status']}/metrics"
        for host, status in (
            ("evil.example", 421), ("evil.example:9469", 421), ("", 421), ("127.0.0.1.evil.example", 421),
            ("localhost", 200), ("localhost:1", 200), ("127.0.0.1:9469", 200), ("[::1]:9469", 200), ("[::1]", 200),
        ):  # fmt: skip
            async with session.get(url, headers={"Host": host}) as response:
                assert response.status == status, host


async def test_nothing_can_be_changed_and_nothing_is_kept(site: Site) -> None:
    async with app.running(with_status(site).config) as addresses, client() as session:
        address: TCPAddress = addresses["status"]
        for method in ("POST", "PUT", "DELETE", "PATCH", "OPTIONS"):
            async with session.request(method, f"http://{address}/metrics", data=b"x" * 100_000) as response:
                assert response.status == 405
        async with session.head(f"http://{address}/metrics") as response:
            assert (response.status, await response.read()) == (200, b"")
            assert response.headers["Cache-Control"] == "no-store"
            assert response.headers["Server"] == "QuMail Relay"
        async with session.get(f"http://{address}/nowhere") as response:
            assert (response.status, response.headers["Server"]) == (404, "QuMail Relay")
