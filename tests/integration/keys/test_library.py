"""`relay.keys` as others use it: a client of GS QKD 014 that knows nothing of mail and whose defaults say what they do.
Standard: ETSI GS QKD 014 V1.1.1 (5.1: https); PEP 561 (types), PEP 282 (logging).
"""

from __future__ import annotations

import asyncio
import base64
import dataclasses
import gc
import logging
import re
import subprocess
import sys
import tomllib
import traceback
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import pytest

import relay
from relay.errors import ConfigError
from relay.keys import (
    BreakerRules,
    CachedKMClient,
    ClientSettings,
    KeyNotFound,
    KeysMissing,
    KeyStatus,
    KMEGroup,
    KMEUnreachable,
    OptimizedKMClient,
    Prefetch,
    Quirks,
    Rotation,
    StoreUnavailable,
    TLSRules,
    get_optimized_km_clients,
)
from relay.keys.development import KMOptions
from relay.keys.settings import ClientOptions
from relay.keys.skip import SKIPClient
from relay.kme import DevelopmentKMEs, LinkSettings
from tests.testlib.fake_kme import Certificates, FakeKME, FakeTime

ROOT = Path(relay.__file__).parents[1]
PYPROJECT = ROOT / "pyproject.toml"


def _plain(kme: FakeKME, **options: Any) -> OptimizedKMClient:
    return OptimizedKMClient(kme.url, **kme.certificates.files, **options)


async def _python(script: str, *arguments: str, **environment: str) -> tuple[int, str, str]:
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-c",
        script,
        *arguments,
        env={"PYTHONPATH": str(ROOT), **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    out, err = await process.communicate()
    return process.returncode or 0, out.decode(), err.decode()


async def test_it_imports_nothing_of_mail_alarms_store_or_configuration() -> None:
    script = (
        "import sys, relay.keys, relay.keys.transport\n"
        "ours = {name for name in sys.modules if name.split('.')[0] == 'relay'}\n"
        "print(sorted(name for name in ours if not name.startswith('relay.keys')))\n"
        "print(sorted({name.split('.')[0] for name in sys.modules} & set(sys.argv[1:])))\n"
    )
    small = [
        *("relay", "relay.counting", "relay.counting.key_metrics", "relay.counting.metric", "relay.errors"),
        *("relay.files", "relay.files.accounts", "relay.files.acl", "relay.files.commands", "relay.files.pem"),
        *("relay.files.permissions", "relay.files.rights", "relay.files.stamps"),
        *("relay.formats", "relay.formats.characters"),
        *("relay.runtime", "relay.runtime.aio"),
    ]
    requirements = tomllib.loads(PYPROJECT.read_text())["project"]["dependencies"]
    named = {re.split(r"[^\w-]", each)[0].replace("-", "_") for each in requirements}
    of_others = named - {"aiohttp", "cryptography", "structlog", "yarl"} | {"smtplib", "dkim", "dns"}
    of_others -= {"rich"}  # structlog loads it where it is installed
    assert {"sqlalchemy", "pydantic", "aiosmtpd"} <= of_others
    assert await _python(script, *of_others) == (0, f"{small}\n[]\n", "")


def test_it_says_that_it_has_types() -> None:
    assert (Path(relay.__file__).parent / "py.typed").exists()


@pytest.mark.parametrize("url", ["http://localhost:13000", "localhost:13000", "https://", "HTTP://x"])
@pytest.mark.parametrize("kind", [OptimizedKMClient, SKIPClient])
def test_a_kme_is_asked_over_https_alone(certificates: Certificates, url: str, kind: type[OptimizedKMClient]) -> None:
    with pytest.raises(ConfigError, match="https"):
        kind(url, **certificates.files)


@pytest.mark.parametrize("key_IDs", ["0b9e5c1e", b"0b9e5c1e", [1, 2], None, (each for each in ["0b9e5c1e"])])
async def test_what_is_no_list_of_key_ids_is_an_error(kme: FakeKME, key_IDs: Any) -> None:
    async with kme.client() as client, SKIPClient(kme.url, **kme.certificates.files) as skip:
        for each in (client, skip):
            with pytest.raises(TypeError, match=r"\[key_ID\]"):
                await each.request_dec_keys(2, key_IDs)
        assert await client.request_dec_keys(2, ()) == []
    assert kme.requests == []


async def test_arguments_of_another_kind_are_an_error_and_no_request(kme: FakeKME) -> None:
    sae: Any
    async with kme.client() as client, SKIPClient(kme.url, **kme.certificates.files) as skip:
        for each in (client, skip, KMEGroup("alice-bob", [client])):
            for sae in (None, "", True, [1]):
                with pytest.raises(TypeError, match="an SAE ID is a text or a number"):
                    await each.request_dec_keys(sae, ["0b9e5c1e"])
                if isinstance(each, KMEGroup):
                    continue
                for call in (each.check_key_status, each.request_enc_keys):
                    with pytest.raises(TypeError, match="an SAE ID is a text or a number"):
                        await call(sae)
        wrong: list[dict[str, Any]] = [
            {"number": "2"},
            {"number": 1.5},
            {"size": 256.0},
            {"number": True},
            {"size": None},
        ]
        for options in wrong:
            with pytest.raises(TypeError, match="number and size are whole numbers"):
                await client.request_enc_keys(1, **options)
    assert kme.requests == []


def test_a_client_takes_each_setting_by_its_name_and_no_other(certificates: Certificates) -> None:
    fields = {field.name: field for field in dataclasses.fields(ClientSettings)}
    assert ClientOptions.__optional_keys__ == fields.keys()
    with pytest.raises(ConfigError, match="certificate: ca, certificate and key are needed"):
        OptimizedKMClient("https://localhost", ca=certificates.files["ca"])
    options: dict[str, Any] = {"time_out": 3, **certificates.files}
    for kind in (OptimizedKMClient, SKIPClient, CachedKMClient):
        with pytest.raises(TypeError, match="time_out: there is no such parameter"):
            kind("https://localhost", **options)
    wrong: list[dict[str, Any]] = [{"km3": {}}, {"retry": 3}, {"km1": {"retry": 3}}, {"km2": {"km1": {}}}]
    for each in wrong:
        with pytest.raises(TypeError, match="there is no such parameter"):
            get_optimized_km_clients(certificates.files["ca"].parent / "none", **each)


def test_the_page_for_those_who_come_from_the_qumail_document_has_the_defaults_and_no_parameter_that_is_none() -> None:
    page = (ROOT / "relay/keys/FROM-QUMAIL.md").read_text()
    rows = re.findall(
        r"^\| (`\w+`(?:, `\w+`)*) \| (\d+) \|", page.split("## Parameters")[1].split("## ")[0], re.MULTILINE
    )
    fields = {field.name: field.default for field in dataclasses.fields(ClientSettings)}
    stated = {name: default for names, default in rows for name in re.findall(r"\w+", names)}
    assert {name: str(fields[name]) for name in stated} == stated
    assert len(stated) == 5
    named = set(re.findall(r"^\| (`\w+`.*?) \|", page.split("## Parameters")[1].split("## ")[0], re.MULTILINE))
    of_the_pair = KMOptions.__optional_keys__ | {"km1", "km2"}
    assert {name for names in named for name in re.findall(r"\w+", names)} <= of_the_pair


async def test_the_defaults_do_what_their_names_say(kme: FakeKME, time: FakeTime) -> None:
    kme.misbehave("status", "http", times=3, code=500)
    async with _plain(kme, timing=time.timing) as client:
        for _ in range(4):
            await client.check_key_status(1)
        assert time.slept == [1, 2, 4]
        assert client.timeout == 10
        with pytest.raises(TypeError):
            await client.request_dec_keys(1, "key")


async def test_its_log_is_read_through_logging(
    kme: FakeKME, time: FakeTime, caplog: pytest.LogCaptureFixture, capsys: pytest.CaptureFixture[str]
) -> None:
    kme.misbehave("enc_keys", "lose_reply")
    async with kme.client(timing=time.timing, retry_attempts=0) as client:
        with caplog.at_level(logging.INFO, logger="relay.keys"), pytest.raises(KMEUnreachable):
            await client.request_enc_keys(1, number=3)

    async def full(master_sae: str, keys: object) -> None:
        raise StoreUnavailable("disk full")

    [(key_ID, _)] = kme.drawn(1)
    group = KMEGroup("g", [kme.client()], Prefetch(0, 0), lag_patience=0, keep=full)
    with pytest.raises(StoreUnavailable):
        await group.fetch("alice", [key_ID])
    await group.close()
    assert any("received_keys_not_stored" in record.getMessage() for record in caplog.records)
    [record] = [record for record in caplog.records if "keys_burnt" in record.getMessage()]
    assert (record.name, record.levelno) == ("relay.keys.asking", logging.WARNING)
    assert "number=3" in record.getMessage()
    assert capsys.readouterr().out == ""


async def test_each_call_pause_refill_and_change_of_the_breaker_is_logged_and_failures_as_warnings(
    kme: FakeKME, time: FakeTime, caplog: pytest.LogCaptureFixture
) -> None:
    options = {**kme.certificates.files, "timing": time.timing, "name": "kme", "pool_connections": 1}
    with caplog.at_level(logging.DEBUG, logger="relay.keys"):
        async with CachedKMClient(kme.url, cache=4, **options) as client:
            kme.misbehave("enc_keys", "http", times=1, code=504)
            keys = await client.request_enc_keys(1)
            while drawing := [task for task in asyncio.all_tasks() if task.get_name() == "draw keys"]:
                await asyncio.wait(drawing)
            kme.misbehave("status", "drop", times=8)
            for _ in range(2):
                with pytest.raises(KMEUnreachable):
                    await client.check_key_status(1)
            time.now += 60
            await client.check_key_status(1)
    said = [(record.levelname, record.getMessage()) for record in caplog.records]
    for level, text in (
        ("DEBUG", "kme_call kme='kme' call='enc_keys' outcome='unreachable'"),
        ("WARNING", "kme_retry kme='kme' call='enc_keys' cause='kme: enc_keys: HTTP 504"),
        ("DEBUG", "kme_call kme='kme' call='enc_keys' outcome='ok'"),
        ("DEBUG", "keys_drawn kme='kme' slave_sae='1' bits=256 number="),
        ("WARNING", "kme_call_failed kme='kme' call='status' cause='kme: status: "),
        ("DEBUG", "kme_breaker of='kme' state='open' seconds=5"),
        ("DEBUG", "kme_breaker of='kme' state='closed'"),
    ):
        assert any(each == level and message.startswith(text) for each, message in said), (text, said)
    assert any("pause_s=1" in message for _, message in said)
    shown = str(said)
    for key in keys:
        assert not any(each in shown for each in (key.key.hex(), base64.b64encode(key.key).decode(), str(key.key)))


async def test_a_group_is_asked_as_a_client_is_and_says_of_a_key_that_is_not_there_the_same(kme: FakeKME) -> None:
    (key_ID, octets), (other, _) = kme.drawn(2)
    async with kme.client() as client, KMEGroup("g", [kme.client()], Prefetch(0, 0), lag_patience=0) as group:
        [key] = await group.request_dec_keys(2, [key_ID])
        assert key.key == octets
        for source in (client, group):
            with pytest.raises(KeyNotFound) as missing:
                await source.request_dec_keys("2", ["unknown"])
            assert isinstance(missing.value, KeysMissing)
            assert missing.value.missing == ["unknown"]
            with pytest.raises(TypeError, match=r"\[key_ID\]"):
                await source.request_dec_keys(2, other)
        assert (await group.take(7)).key_ID != (await group.take("7")).key_ID
    assert group.pools[0].held() == {}


@pytest.fixture
async def servers(tmp_path: Path) -> AsyncIterator[DevelopmentKMEs]:
    link = LinkSettings(key_rate=0, stored_key_limit=2000)
    async with DevelopmentKMEs(state_dir=tmp_path / "kme", ports=(0, 0), link=link) as kmes:
        yield kmes


@pytest.mark.filterwarnings("ignore::ResourceWarning")  # a loop that ends at once leaves the end of TLS undone
async def test_a_group_is_checked_when_it_is_made_and_asked(kme: FakeKME) -> None:
    wrong: Any = 64
    async with kme.client() as client:
        with pytest.raises(ConfigError, match="prefetch: it takes a Prefetch"):
            KMEGroup("alice-bob", [client], wrong)
        for clients in ([], [client, client]):
            with pytest.raises(ConfigError, match="clients: it takes each client once"):
                KMEGroup("alice-bob", clients)
        async with KMEGroup("alice-bob", [client]) as group:
            with pytest.raises(ValueError, match="multiple of 8"):
                await group.take(1, 7)
    assert kme.requests == []


async def test_the_pair_is_the_same_everywhere_and_belongs_to_the_loop_that_uses_it(servers: DevelopmentKMEs) -> None:
    [outside] = await asyncio.gather(asyncio.to_thread(get_optimized_km_clients, servers.state_dir))
    alice, bob = get_optimized_km_clients(servers.state_dir)
    assert (alice, bob) == outside
    assert alice is not bob

    async def use() -> Sequence[object]:
        used = [alice.request_enc_keys(1), bob.check_key_status(2), alice.request_dec_keys(1, ["x"])]
        return await asyncio.gather(*used, asyncio.to_thread(alice.warm, 1), return_exceptions=True)

    async with outside:
        await alice.request_enc_keys(1)
        await bob.check_key_status(2)
        started = asyncio.get_running_loop().time()
        refused = await asyncio.to_thread(asyncio.run, use())
        assert all("another event loop or thread" in str(each) for each in refused[:3]), refused
        assert [type(each) for each in refused] == [RuntimeError] * 4
        assert asyncio.get_running_loop().time() - started < 5

    async def use_and_close() -> Sequence[object]:
        async with outside:
            return await use()

    keys, status, _, _ = await asyncio.to_thread(asyncio.run, use_and_close())
    assert isinstance(keys, list), "closed here, it may be used there"
    assert isinstance(status, KeyStatus)
    gc.collect()


@pytest.mark.filterwarnings("ignore::ResourceWarning")  # as above
async def test_a_group_in_use_in_one_loop_says_so_in_another(kme: FakeKME) -> None:
    async with KMEGroup("g", [kme.client()], Prefetch(0, 0), lag_patience=0) as group:
        taken = await group.take("bob")

        async def use() -> Sequence[object]:
            used = [group.take("bob", 512), group.take_pad("bob", 100), group.request_dec_keys("bob", [taken.key_ID])]
            return await asyncio.gather(*used, return_exceptions=True)

        assert [type(each) for each in await asyncio.to_thread(asyncio.run, use())] == [RuntimeError] * 3
    gc.collect()


async def test_the_pair_takes_what_the_class_takes_and_a_call_without_options_gives_it(
    servers: DevelopmentKMEs, monkeypatch: pytest.MonkeyPatch
) -> None:
    state = servers.state_dir
    monkeypatch.setenv("XDG_STATE_HOME", str(state / "nothing"))
    monkeypatch.setattr("relay.keys.development._pairs", {})
    with pytest.raises(ConfigError, match="qumail-relay kme"):
        get_optimized_km_clients(retry_attempts=1)
    first, second = servers.urls
    pair = get_optimized_km_clients(
        retry_attempts=1,
        retry_delay=0.5,
        timeout=4,
        pool_connections=2,
        pool_maxsize=3,
        cache=16,
        ca=str(state / "ca.pem"),
        km1={"url": first, "certificate": state / "sae-2.pem", "key": str(state / "sae-2.key"), "name": "alice"},
        km2={"url": second, "certificate": state / "sae-1.pem", "key": state / "sae-1.key", "timeout": 3},
    )
    async with pair as (km1_client, km2_client):
        assert get_optimized_km_clients() == pair
        settings = [each.settings for each in pair]
        assert [each.timeout for each in settings] == [4, 3]
        assert {(each.retry_attempts, each.retry_delay) for each in settings} == {(1, 0.5)}
        assert {(each.pool_connections, each.pool_maxsize) for each in settings} == {(2, 3)}
        assert km1_client.name == "alice"
        [key] = await km1_client.request_enc_keys(1)
        assert await km2_client.request_dec_keys(2, [key["key_ID"]]) == [key]
        while drawing := [task for task in asyncio.all_tasks() if task.get_name() == "draw keys"]:
            await asyncio.wait(drawing)
        assert km1_client.accounts.totals()["in_pool"] <= 16
        assert km2_client.accounts.totals()["issued"] == 0, "nobody asked for its keys"
    with pytest.raises(TypeError, match="retries"):
        get_optimized_km_clients(state, retries=1)  # type: ignore[call-arg]


async def test_results_answer_by_attribute_and_by_the_names_of_the_standard(kme: FakeKME) -> None:
    async with kme.client() as client:
        [key] = await client.request_enc_keys(1)
        status = await client.check_key_status(1)
    assert key["key_ID"] == key.key_ID
    assert base64.b64decode(key["key"]) == key.key
    assert status["stored_key_count"] == status.stored_key_count
    assert dict(key) == {"key_ID": key.key_ID, "key": key["key"]}
    assert dict(status) == dataclasses.asdict(status)
    for result in (key, status):
        assert "other" not in result
        assert result.get("other") is None
        with pytest.raises(KeyError):
            result["other"]


@pytest.mark.parametrize(
    ("url", "why"),
    [
        ("http://user:geheim@localhost:13000", "https"),
        ("user:geheim@localhost", "https"),
        ("https://user:ge/heim@localhost", "not a URL"),
        ("https://user:geheim@[localhost", "not a URL"),
        ("https://user:geheim@localhost:port", "not a URL"),
        ("https://user:geheim@localhost:13000", "leave out user and password"),
        ("https://localhost:13000/api/v1/keys/1/status", "/api/v1/keys is added"),
        ("https://localhost:13000/?number=1", "/api/v1/keys is added"),
        ("https://localhost:13000/kme/a b", "not a URL"),
        ("https://lo calhost:13000", "not a URL"),
        ("https://localhost:0", "not a URL"),
    ],
)
def test_a_url_that_is_no_address_of_a_kme_is_refused_with_the_reason_and_without_its_password(
    certificates: Certificates, url: str, why: str
) -> None:
    with pytest.raises(ConfigError, match=why) as refused:
        OptimizedKMClient(url, **certificates.files)
    assert "heim" not in "".join(traceback.format_exception(refused.value)).partition("ConfigError")[2]


async def test_fresh_keys_come_out_of_a_cache_each_once(servers: DevelopmentKMEs) -> None:
    alice, bob = get_optimized_km_clients(servers.state_dir)
    async with alice, bob:
        keys = [key for _ in range(5) for key in await alice.request_enc_keys(1, number=3)]
        assert len({key.key_ID for key in keys}) == 15
        assert await bob.request_dec_keys(2, [key.key_ID for key in keys]) == keys
        assert len(await alice.request_enc_keys(1, number=140)) == 140
    totals = alice.accounts.totals()
    assert (totals["in_pool"], totals["issued"], totals["used"]) == (0, servers.link.issued["KM1"], 155)
    assert await alice.request_enc_keys(1, number=2), "it may be used again after it was closed"
    await alice.close()


async def test_a_cache_draws_what_sizes_that_vary_need_holds_its_maximum_and_says_at_its_end_what_is_lost(
    kme: FakeKME, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "relay.keys")
    async with CachedKMClient(kme.url, cache=Prefetch(high=32), **kme.certificates.files) as client:
        most = 0
        for size in [*range(64, 1024, 8), *[256] * 200]:
            await client.request_enc_keys("bob", size=size)
            while drawing := [task for task in asyncio.all_tasks() if task.get_name() == "draw keys"]:
                await asyncio.wait(drawing)
            most = max(most, sum(client._fresh.held().values()))
            if size == 1016:
                assert client.accounts.totals()["issued"] <= 120 + 8, "eight of the first size are kept ready"
        left = client.accounts.totals()["in_pool"]
    assert 0 < left <= most <= 32
    assert f"number={left}" in next(text for text in caplog.messages if "keys_burnt" in text)


async def test_the_first_requests_after_a_moment_of_idling_do_not_wait_and_few_keys_are_drawn_for_them(
    servers: DevelopmentKMEs,
) -> None:
    alice, bob = get_optimized_km_clients(servers.state_dir)
    async with alice, bob:
        for _ in range(2):
            await alice.request_enc_keys(1)
        for kme in (servers.km1, servers.km2):
            kme.requests.clear()
        alice.warm(1)
        bob.warm(2)
        while drawing := [task for task in asyncio.all_tasks() if task.get_name() == "draw keys"]:
            await asyncio.wait(drawing)
        assert [kme.got("enc_keys")[0].content["number"] for kme in (servers.km1, servers.km2)] == [8, 8]
        assert (len(servers.km1.got("enc_keys")), len(servers.km2.got("enc_keys"))) == (1, 1)
        for client, slave in ((alice, 1), (bob, 2)):
            for _ in range(8):
                with pytest.raises(StopIteration):  # it comes to its end without having waited for anything
                    client.request_enc_keys(slave).send(None)


@pytest.mark.parametrize("by", ["client", "group"])
async def test_as_many_keys_as_low_says_are_kept_ready_and_expired_ones_are_replaced_without_use(
    kme: FakeKME, by: str
) -> None:
    prefetch = Prefetch(low=4, high=8, lifetime=0.4)
    async with AsyncExitStack() as stack:
        client = kme.client() if by == "group" else CachedKMClient(kme.url, cache=prefetch, **kme.certificates.files)
        if isinstance(client, CachedKMClient):
            await stack.enter_async_context(client)
            await client.request_enc_keys(1)
        else:
            group = await stack.enter_async_context(KMEGroup("g", [client], prefetch))
            group.warm(1)
        async with asyncio.timeout(20):
            for expired in (0, 1, 5):
                while not (client.accounts.totals()["in_pool"] == 4 and client.accounts.totals()["expired"] >= expired):
                    await asyncio.sleep(0.01)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"retry_attempts": "3"}, "retry_attempts: it takes a whole number from 0 to 1000, not '3'"),
        ({"retry_attempts": -1}, "retry_attempts: it takes a whole number from 0 to 1000, not -1"),
        ({"retry_attempts": 1.5}, "retry_attempts: it takes a whole number"),
        ({"retry_attempts": True}, "retry_attempts: it takes a whole number"),
        ({"retry_delay": float("nan")}, "retry_delay: it takes seconds from 0 to 86400, not nan"),
        ({"timeout": None}, "timeout: it takes seconds from 0.001 to 86400, not None"),
        ({"timeout": 0}, "timeout: it takes seconds"),
        ({"pool_connections": -1}, "pool_connections: it takes a whole number"),
        ({"pool_maxsize": 0}, "pool_maxsize: it takes a whole number from 1 to 1000, not 0"),
        ({"burn_budget": "many"}, "burn_budget: it takes a whole number"),
        ({"adaptive": "yes"}, "adaptive: it takes True or False, not 'yes'"),
        ({"cache": "64"}, "cache: it takes a whole number from 0 to 100000 or a Prefetch, not '64'"),
        ({"cache": -1}, "cache: it takes a whole number"),
        ({"breaker": 5}, "breaker: it takes BreakerRules, not 5"),
        ({"tls": "ALL"}, "tls: it takes TLSRules, not 'ALL'"),
        ({"name": 3}, "name: it takes a text, not 3"),
        ({"name": ""}, "name: it takes a text, not ''"),
        ({"ca": ""}, "ca: it takes a path, not ''"),
        ({"key": b"-----BEGIN PRIVATE KEY-----"}, "key: it takes a path, not what is a bytes"),
        ({"key": "-----BEGIN PRIVATE KEY-----\nMC4C"}, "key: it takes a path, not what is a str"),
        (
            {"km1": "https://localhost"},
            'km1: it takes a dictionary, such as {"url": "https://localhost:13000"}, not \'h',
        ),
        ({"km2": {"timeout": "1"}}, "timeout: it takes seconds"),
        ({"km1": {"url": None}}, "url: it takes an address, https://host:port, not None"),
        ({"state_dir": 3}, "state_dir: it takes a path, not 3"),
    ],
)
def test_a_value_that_a_parameter_does_not_take_is_refused_with_its_name_and_what_it_takes(
    certificates: Certificates, options: dict[str, Any], says: str
) -> None:
    pair: dict[str, Any] = {"km1": {"url": "https://localhost"}, "km2": {"url": "https://localhost:14000"}}
    with pytest.raises(ConfigError) as refused:
        get_optimized_km_clients(**{**certificates.files, **pair, **options})
    assert str(refused.value).startswith(says)
    assert "MC4C" not in "".join(traceback.format_exception(refused.value)).partition("ConfigError")[2]
    if not options.keys() & {"km1", "km2", "state_dir", "cache"}:
        with pytest.raises(ConfigError) as refused:
            OptimizedKMClient("https://localhost", **{**certificates.files, **options})
        assert str(refused.value).startswith(says)


@pytest.mark.parametrize(
    ("kind", "values", "says"),
    [
        (Prefetch, {"low": -1}, "low: it takes a whole number"),
        (Prefetch, {"lifetime": 0}, "lifetime: it takes seconds"),
        (Prefetch, {"low": 32, "high": 8}, "low: it takes at most high, 8, not 32"),
        (BreakerRules, {"failures": 0}, "failures: it takes a whole number"),
        (TLSRules, {"name_from": "xx"}, "name_from: it takes 'san' or 'cn' or 'either', not 'xx'"),
        (TLSRules, {"kme_id": 1}, "kme_id: it takes a text, not 1"),
        (TLSRules, {"kme_id": ""}, "kme_id: it takes a text, not ''"),
        (TLSRules, {"ciphers": ""}, "ciphers: it takes a text, not ''"),
        (Rotation, {"max_messages": 1.5}, "max_messages: it takes a whole number"),
        (Rotation, {"max_messages": 0}, "max_messages: it takes a whole number"),
        (Rotation, {"max_age": -1}, "max_age: it takes seconds"),
        (Quirks, {"method": "get"}, "method: it takes 'POST' or 'GET', not 'get'"),
    ],
)
def test_rules_are_checked_when_they_are_made(kind: Any, values: dict[str, Any], says: str) -> None:
    with pytest.raises(ConfigError) as refused:
        kind(**values)
    assert str(refused.value).startswith(says)
