"""Where the development KMEs listen: on loopback alone, on all its addresses, until they are stopped.
Standard: RFC 6761 6.3 (localhost).
"""

from __future__ import annotations

import asyncio
import errno
import os
import socket
import ssl
from contextlib import suppress
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import aiohttp
import pytest

from relay.errors import ConfigError
from relay.keys.development import ENDPOINTS_FILE
from relay.kme import DevelopmentKMEs, certificates
from tests.integration.kme.clients import ALICE, FILES, KM1, client, no_space


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.0.2.1", "2001:db8::1", "", "bücher.example"])
async def test_a_host_that_is_not_loopback_is_refused_with_the_remedy(tmp_path: Path, host: str) -> None:
    with pytest.raises(ConfigError, match=r"use localhost, 127\.0\.0\.1 or ::1"):
        await DevelopmentKMEs(state_dir=tmp_path / "kme", host=host, ports=(0, 0)).start()
    assert not (tmp_path / "kme").exists()


async def test_a_name_that_resolves_to_loopback_and_elsewhere_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    resolve_to(monkeypatch, "127.0.0.1", "192.0.2.1")
    with pytest.raises(ConfigError, match=r"192\.0\.2\.1 can be reached by others"):
        await DevelopmentKMEs(state_dir=tmp_path / "kme", host="kme.test", ports=(0, 0)).start()


async def test_a_name_that_cannot_be_resolved_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*_: object, **__: object) -> None:
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", fails)
    with pytest.raises(ConfigError, match="cannot be resolved"):
        await DevelopmentKMEs(state_dir=tmp_path / "kme", host="kme.test", ports=(0, 0)).start()


@pytest.mark.parametrize(
    ("host", "url"),
    [
        ("localhost", "https://localhost:"),
        ("127.0.0.1", "https://127.0.0.1:"),
        ("127.0.0.2", "https://127.0.0.2:"),
        ("::1", "https://[::1]:"),
    ],
)
async def test_each_loopback_host_is_served_under_its_own_name(tmp_path: Path, host: str, url: str) -> None:
    if host not in ("localhost", "127.0.0.1") and not can_listen(host):
        pytest.skip(f"this machine has no {host}")
    async with DevelopmentKMEs(state_dir=tmp_path / "kme", host=host, ports=(0, 0)) as kmes:
        assert all(served.startswith(url) for served in kmes.urls)
        async with client(kmes, ALICE) as alice:
            assert (await alice.get("1/status")).status == 200


async def test_every_address_of_the_name_that_this_machine_has_is_served_at_one_port(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    addresses = [address for address in ("127.0.0.1", "::1") if can_listen(address)]
    resolve_to(monkeypatch, "127.0.0.1", "::1")
    async with DevelopmentKMEs(state_dir=tmp_path / "kme", ports=(0, 0)) as kmes:
        monkeypatch.undo()
        port = int(kmes.urls[KM1].rpartition(":")[2])
        for address in addresses:
            with socket.create_connection((address, port)):
                pass


async def test_an_address_that_this_machine_lacks_is_left_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    create_server_fails(monkeypatch, "::1", errno.EADDRNOTAVAIL)
    resolve_to(monkeypatch, "::1", "127.0.0.1")
    async with DevelopmentKMEs(state_dir=tmp_path / "kme", ports=(0, 0)) as kmes:
        monkeypatch.undo()
        with socket.create_connection(("127.0.0.1", int(kmes.urls[KM1].rpartition(":")[2]))):
            pass


async def test_a_name_none_of_whose_addresses_this_machine_has_is_reported(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    create_server_fails(monkeypatch, "::1", errno.EAFNOSUPPORT)
    resolve_to(monkeypatch, "::1")
    with pytest.raises(ConfigError, match="this machine has none of ::1"):
        await DevelopmentKMEs(state_dir=tmp_path / "kme", ports=(0, 0)).start()


async def test_a_free_port_that_is_taken_at_the_second_address_is_given_up_for_another(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    create_server_fails(monkeypatch, "127.0.0.2", errno.EADDRINUSE, times=2)
    resolve_to(monkeypatch, "127.0.0.1", "127.0.0.2")
    async with DevelopmentKMEs(state_dir=tmp_path / "kme", ports=(0, 0)) as kmes:
        monkeypatch.undo()
        async with client(kmes, ALICE) as alice:
            assert (await alice.get("1/status")).status == 200


async def test_a_port_that_this_user_may_not_have_is_reported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    create_server_fails(monkeypatch, "127.0.0.1", errno.EACCES)
    with pytest.raises(ConfigError, match=r"KM1: cannot listen on 127\.0\.0\.1 port 443: Permission denied"):
        await DevelopmentKMEs(state_dir=tmp_path / "kme", host="127.0.0.1", ports=(443, 444)).start()


async def test_an_addresses_file_that_cannot_be_written_stops_the_start(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    certificates.prepare(tmp_path / "kme", "localhost")
    monkeypatch.setattr(Path, "replace", no_space)
    with pytest.raises(ConfigError, match="cannot be written: No space left"):
        await DevelopmentKMEs(state_dir=tmp_path / "kme", ports=(0, 0)).start()
    assert {path.name for path in (tmp_path / "kme").iterdir()} == FILES


async def test_a_port_in_use_is_reported_and_nothing_is_left_behind(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken, socket.create_server(("127.0.0.1", 0)) as other:
        free = other.getsockname()[1]
        other.close()
        ports = (free, taken.getsockname()[1])
        kmes = DevelopmentKMEs(state_dir=tmp_path / "kme", host="127.0.0.1", ports=ports)
        with pytest.raises(
            ConfigError, match=rf"KM2: port {ports[1]} on 127\.0\.0\.1 is in use.*--port 0.*--kme-port 0"
        ):
            await kmes.start()
    with pytest.raises(RuntimeError):
        _ = kmes.urls
    socket.create_server(("127.0.0.1", free)).close()
    assert not (tmp_path / "kme" / ENDPOINTS_FILE).exists()


async def test_stopped_servers_can_be_started_again_and_stopping_twice_does_no_harm(tmp_path: Path) -> None:
    kmes = DevelopmentKMEs(state_dir=tmp_path / "kme", ports=(0, 0))
    await kmes.stop()
    for _ in range(2):
        await kmes.start()
        with pytest.raises(RuntimeError):
            await kmes.start()
        async with client(kmes, ALICE) as alice:
            assert (await alice.get("1/status")).status == 200
        await kmes.stop()
        await kmes.stop()


async def test_the_servers_stop_although_a_client_keeps_its_connection(tmp_path: Path) -> None:
    kmes = DevelopmentKMEs(state_dir=tmp_path / "kme", ports=(0, 0))
    await kmes.start()
    async with client(kmes, ALICE) as alice:
        assert (await alice.get("1/status")).status == 200
        await asyncio.wait_for(kmes.stop(), 5)
        with pytest.raises(aiohttp.ClientError):
            await alice.get("1/status")


async def test_a_connection_that_was_being_opened_is_not_answered_once_they_have_stopped(tmp_path: Path) -> None:
    """A client that opens connections ahead would go on to get keys of a server that is away."""
    kmes = DevelopmentKMEs(state_dir=tmp_path / "kme", ports=(0, 0))
    await kmes.start()
    address = urlsplit(kmes.urls[KM1])
    reader, writer = await asyncio.open_connection(address.hostname, address.port)
    async with asyncio.timeout(10):
        while kmes.km1.connections == 0:
            await asyncio.sleep(0)
    await kmes.stop()
    tls = ssl.create_default_context(cafile=str(kmes.state_dir / "ca.pem"))
    tls.load_cert_chain(kmes.state_dir / "sae-2.pem", kmes.state_dir / "sae-2.key")
    got = b""
    with suppress(OSError):
        await writer.start_tls(tls, server_hostname="localhost")
        writer.write(b"GET /api/v1/keys/1/status HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
        got = await asyncio.wait_for(reader.read(), 10)
    writer.close()
    assert got == b""


def create_server_fails(monkeypatch: pytest.MonkeyPatch, address: str, number: int, times: int = 1000) -> None:
    """Listening on `address` fails with errno `number`, that many times."""
    real = socket.create_server
    left = iter(range(times))

    def create_server(where: tuple[str, int], **options: Any) -> socket.socket:
        if where[0] == address and next(left, None) is not None:
            raise OSError(number, os.strerror(number))
        return real(where, **options)

    monkeypatch.setattr(socket, "create_server", create_server)


def resolve_to(monkeypatch: pytest.MonkeyPatch, *addresses: str) -> None:
    def resolved(*_: object, **__: object) -> list[Any]:
        families = [socket.AF_INET6 if ":" in address else socket.AF_INET for address in addresses]
        return [
            (family, socket.SOCK_STREAM, 6, "", (address, 0))
            for family, address in zip(families, addresses, strict=True)
        ]

    monkeypatch.setattr(socket, "getaddrinfo", resolved)


def can_listen(address: str) -> bool:
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    try:
        socket.create_server((address, 0), family=family).close()
    except OSError:
        return False
    return True
