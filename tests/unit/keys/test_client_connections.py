"""The connections of the KM client: TLS, one for each request or one for many, and none that is left behind.
Standard: RFC 8446, RFC 9112.
"""

from __future__ import annotations

import asyncio
import gc
import logging
import threading
import warnings
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NoReturn

import pytest

from relay.errors import (
    ConfigError,
    KMEMisconfigured,
    KMEUnreachable,
)
from relay.keys import OptimizedKMClient
from relay.keys.faults import KeysMissing
from relay.keys.settings import Quirks
from relay.keys.transport import CONNECT_TIMEOUT_S
from tests.testlib.fake_kme import Certificates, FakeKME, FakeTime, is_the_servers


async def test_an_own_certificate_that_has_ended_is_named_and_burns_no_key(
    certificates: Certificates, kme: FakeKME, time: FakeTime, tmp_path: Path
) -> None:
    ended = certificates.authority.issue_cert(common_name="sae-alice", not_after=datetime(2024, 1, 2, tzinfo=UTC))
    ended.private_key_pem.write_to_path(tmp_path / "sae.key")
    ended.cert_chain_pems[0].write_to_path(tmp_path / "sae.pem")
    async with kme.client(timing=time.timing, certificate=tmp_path / "sae.pem", key=tmp_path / "sae.key") as client:
        with pytest.raises(KMEMisconfigured, match=r"our certificate .* ended on 2024-01-02"):
            await client.request_enc_keys("bob", number=7)
    assert client.accounts.totals()["issued"] == 0


@pytest.mark.filterwarnings("ignore::ResourceWarning")  # loops that end with open connections are the point
def test_a_client_is_used_in_one_event_loop_after_the_other(
    certificates: Certificates, capfd: pytest.CaptureFixture[str]
) -> None:
    kmes: list[FakeKME] = []
    started, ended = threading.Event(), threading.Event()

    async def serve() -> None:
        async with FakeKME(certificates) as kme:
            kme.misbehave("dec_keys", "http", times=None, code=400, body='{"message": "key not found"}')
            kmes.append(kme)
            started.set()
            await asyncio.to_thread(ended.wait)

    with ThreadPoolExecutor() as pool:
        serving = pool.submit(asyncio.run, serve())
        started.wait()
        client = kmes[0].client(timeout=5)

        async def use() -> None:
            drawn = [client.request_enc_keys("bob", 1, size) for size in (256, 512, 256)]
            fetched = [client.request_dec_keys("bob", [key_ID]) for key_ID in "abc"]
            results = await asyncio.gather(*drawn, *fetched, return_exceptions=True)
            assert [type(result) for result in results] == [*[list] * 3, *[KeysMissing] * 3]

        async def leave_one_waiting() -> None:
            asyncio.get_running_loop().call_soon(asyncio.ensure_future, client.request_enc_keys("bob"))
            await asyncio.sleep(0)

        for work in (use, use, leave_one_waiting, use, client.close):
            asyncio.run(work())
        ended.set()
        serving.result()
    gc.collect()
    assert "Unclosed" not in capfd.readouterr().err


async def test_a_slow_handshake_is_waited_for_as_timeout_says(certificates: Certificates) -> None:
    async with FakeKME(certificates) as kme:
        client = OptimizedKMClient(kme.url, **certificates.files, timeout=20)
        assert client.transport.connect_timeout == 10
        assert kme.client(timeout=0.3).transport.connect_timeout == CONNECT_TIMEOUT_S


async def test_get_uses_one_connection_for_each_request(kme: FakeKME) -> None:
    async with kme.client(quirks=Quirks(method="GET")) as client:
        keys = await client.request_enc_keys("bob", number=3, size=128)
        got = await client.request_dec_keys("alice", [key.key_ID for key in keys])
    assert got == keys
    assert [dict(request.query) for request in kme.got("enc_keys")] == [{"number": "3", "size": "128"}]
    assert [len(request.query) for request in kme.got("dec_keys")] == [1, 1, 1]
    assert len({request.connection for request in kme.requests}) == 4


async def test_post_keeps_its_connection(kme: FakeKME) -> None:
    async with kme.client() as client:
        for _ in range(5):
            await client.request_enc_keys("bob")
    assert kme.connections == 1


async def until(condition: Callable[[], bool]) -> None:
    """Returns once it holds."""
    while not condition():
        await asyncio.sleep(0)


async def test_connections_are_opened_ahead_once_the_kme_has_answered_and_kept(kme: FakeKME) -> None:
    async with kme.client(pool_connections=3, pool_maxsize=4, timeout=5) as client:
        await client.check_key_status("bob")
        await until(lambda: kme.open_connections == 3)
        for _ in range(20):
            await client.check_key_status("bob")
        assert kme.connections == 3
        kme.latency = 0.05
        await asyncio.gather(*(client.check_key_status("bob") for _ in range(12)))
        assert (kme.connections, kme.open_connections) == (4, 4)
        connector: Any = client.transport._open().connector
        for protocol in [each for idle in connector._conns.values() for each, _ in idle]:
            protocol.close()
        await until(lambda: kme.open_connections == 0)
        await client.check_key_status("bob")
        await until(lambda: kme.open_connections == 3)
    await until(lambda: kme.open_connections == 0)


@pytest.mark.parametrize(
    ("options", "number"),
    [
        ({}, 5),
        ({"pool_connections": 9, "pool_maxsize": 2}, 2),
        ({"pool_connections": 1}, 1),
        ({"quirks": Quirks(method="GET")}, 0),
    ],
)
async def test_so_many_are_kept_as_the_settings_say_by_default_five(
    kme: FakeKME, options: dict[str, Any], number: int
) -> None:
    async with OptimizedKMClient(kme.url, **kme.certificates.files, **options) as client:
        await client.check_key_status("bob")
        while opening := [task for task in asyncio.all_tasks() if task.get_name() == "open connections"]:
            await asyncio.wait(opening)
        await until(lambda: kme.open_connections == number)
        assert kme.connections == (number or 1)


async def test_a_kme_that_takes_no_more_connections_is_not_asked_for_them_with_each_request(kme: FakeKME) -> None:
    tries = []
    async with kme.client(pool_connections=5, timeout=5) as client:
        await client.check_key_status("bob")
        await until(lambda: kme.open_connections == 5)
        connector: Any = client.transport._open().connector
        for protocol in [each for idle in connector._conns.values() for each, _ in idle][1:]:
            protocol.close()

        async def refused(*_: object) -> NoReturn:
            tries.append(1)
            raise OSError("refused")

        connector._create_connection = refused
        for _ in range(5):
            await client.check_key_status("bob")
            await asyncio.sleep(0)
    assert len(tries) == 4


async def test_an_sae_id_of_any_form_stays_one_part_of_the_path(kme: FakeKME) -> None:
    async with kme.client() as client:
        await client.check_key_status("a/b c?ü")
    assert kme.requests[0].path == "/api/v1/keys/a%2Fb%20c%3F%C3%BC/status"


async def test_a_path_prefix_in_the_url_is_kept(certificates: Certificates) -> None:
    async with FakeKME(certificates, prefix="/client/carol/etsi") as kme, kme.client() as client:
        await client.check_key_status("bob")
    assert kme.requests[0].path == "/client/carol/etsi/api/v1/keys/bob/status"


async def test_a_kme_that_dies_and_comes_back_is_used_again(kme: FakeKME, time: FakeTime) -> None:
    async with kme.client(timing=time.timing, retry_attempts=0) as client:
        await client.request_enc_keys("bob")
        await kme.stop()
        for _ in range(3):
            with pytest.raises(KMEUnreachable):
                await client.request_enc_keys("bob")
        await kme.start()
        time.now += 60
        await client.request_enc_keys("bob")


async def test_a_connection_that_never_gets_through_tls_ends_at_the_connect_timeout(
    certificates: Certificates, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("relay.keys.transport.CONNECT_TIMEOUT_S", 0.1)
    gone = asyncio.Event()

    async def say_nothing(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read()
        writer.close()
        await writer.wait_closed()
        gone.set()

    silent = await asyncio.start_server(say_nothing, "127.0.0.1", 0)
    port = silent.sockets[0].getsockname()[1]
    kme = FakeKME(certificates, port=port)
    async with kme.client(retry_attempts=0, timeout=5) as client:
        with pytest.raises(KMEUnreachable):
            await client.request_enc_keys("bob")
        assert client.accounts.totals()["issued"] == 0
    await gone.wait()
    silent.close()
    await silent.wait_closed()


async def test_a_timeout_ends_an_attempt_to_the_part_of_a_second(kme: FakeKME) -> None:
    kme.misbehave("status", "hang", times=None)
    loop = asyncio.get_running_loop()
    async with kme.client(timeout=5.1, retry_attempts=0) as client:
        await client.request_enc_keys("bob")  # the connection is there
        began, at, call_at = loop.time(), list[float](), loop.call_at

        def noted(when: float, *rest: Any, **more: Any) -> asyncio.TimerHandle:
            at.append(when - began)
            return call_at(when, *rest, **more)

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(loop, "call_at", noted)
            asking = asyncio.create_task(client.check_key_status("bob"))
            while not kme.got("status"):
                await asyncio.sleep(0)
        asking.cancel()
    assert min(abs(each - 5.1) for each in at) < 0.1, at


async def test_a_client_that_is_closed_leaves_no_connection_and_no_task(kme: FakeKME) -> None:
    before = asyncio.all_tasks()
    client = kme.client()
    await asyncio.gather(*(client.check_key_status("bob") for _ in range(5)))
    await client.close()
    mine = {task for task in asyncio.all_tasks() - before if not is_the_servers(task)}
    assert mine == set()
    while kme.open_connections:
        await asyncio.sleep(0)


async def test_nor_one_that_was_being_opened_when_its_loop_ends_at_once(kme: FakeKME) -> None:
    async def once(pause: float) -> None:
        async with kme.client(pool_connections=5) as client:
            await client.check_key_status("bob")
            await asyncio.sleep(pause)

    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        for step in range(40):
            await asyncio.to_thread(asyncio.run, once(step * 0.0002))
        gc.collect()
    assert [str(each.message) for each in said] == []


async def test_a_client_that_nobody_closed_makes_no_noise(kme: FakeKME, caplog: pytest.LogCaptureFixture) -> None:
    client = kme.client()
    await client.check_key_status("bob")
    with caplog.at_level(logging.DEBUG, logger="asyncio"):
        del client
        gc.collect()
        await asyncio.sleep(0)
    assert "Unclosed" not in caplog.text


def test_certificate_files_that_are_not_there_are_named(certificates: Certificates, kme: FakeKME) -> None:
    files = certificates.files | {"key": certificates.directory / "nowhere.key"}
    with pytest.raises(ConfigError, match=r"nowhere\.key"):
        type(kme.client())("https://localhost:1", **files)
