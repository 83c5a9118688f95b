"""Cisco SKIP behind the same contracts: a fake provider, and the promises that every KME group keeps.
Standard: draft-cisco-skip; the contract is that of relay/keys/types.py.
"""

from __future__ import annotations

import asyncio
import secrets
import ssl
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from typing import Any

import pytest
from aiohttp import web

from relay.errors import KeyNotFound, KeyUnavailable, KMEBadReply, KMEUnreachable
from relay.keys.group import KMEGroup, Prefetch
from relay.keys.skip import SKIPClient
from tests.testlib.fake_kme import Certificates, FakeKME, FakeTime


class FakeProvider:
    """A SKIP key provider of one site; `keys` is shared with the provider of the other site."""

    def __init__(self, local: str, keys: dict[str, bytes]) -> None:
        self.local = local
        self.keys = keys
        self.answers: list[web.Response] = []
        self.asked: list[str] = []
        self.connections: Counter[Any] = Counter()
        self.url = ""

    async def start(self, tls: ssl.SSLContext, stack: AsyncExitStack) -> None:
        app = web.Application()
        app.add_routes(
            [
                web.get("/capabilities", self._capabilities),
                web.get("/key", self._new_key),
                web.get("/key/{keyId}", self._key),
            ]
        )
        runner = web.AppRunner(app)
        stack.push_async_callback(runner.cleanup)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", 0, ssl_context=tls).start()
        self.url = f"https://localhost:{runner.addresses[0][1]}"

    def _note(self, request: web.Request) -> None:
        self.asked.append(request.path_qs)
        self.connections[request.transport] += 1

    async def _capabilities(self, request: web.Request) -> web.Response:
        self._note(request)
        return web.json_response(
            {
                "entropy": False,
                "key": True,
                "algorithm": "QKD",
                "localSystemID": self.local,
                "remoteSystemID": ["bob", "alice", "branch-*", "r?uter", "hub-[ab]", "hub-[!a-x]"],
            }
        )

    async def _new_key(self, request: web.Request) -> web.Response:
        self._note(request)
        if self.answers:
            return self.answers.pop(0)
        key_ID, octets = secrets.token_hex(16), secrets.token_bytes(int(request.query["size"]) // 8)
        self.keys[key_ID] = octets
        return web.json_response({"keyId": key_ID, "key": octets.hex()})

    async def _key(self, request: web.Request) -> web.Response:
        self._note(request)
        if self.answers:
            return self.answers.pop(0)
        octets = self.keys.pop(request.match_info["keyId"], None)
        if octets is None:
            return web.json_response({"error": "no such thing"}, status=400)
        return web.json_response({"keyId": request.match_info["keyId"].upper(), "key": octets.hex().upper()})


@pytest.fixture
async def providers(certificates: Certificates) -> AsyncIterator[tuple[FakeProvider, FakeProvider]]:
    """Alice's and Bob's."""
    keys: dict[str, bytes] = {}
    alice, bob = FakeProvider("alice", keys), FakeProvider("bob", keys)
    async with AsyncExitStack() as stack:
        for provider in (alice, bob):
            await provider.start(certificates.server_tls("localhost"), stack)
        yield alice, bob


def _client(provider: FakeProvider, certificates: Certificates, **options: Any) -> SKIPClient:
    return SKIPClient(provider.url, **certificates.files, name=f"skip-{provider.local}", **options)


async def test_a_key_is_drawn_here_and_fetched_there(
    providers: tuple[FakeProvider, FakeProvider], certificates: Certificates
) -> None:
    alice, bob = providers
    async with _client(alice, certificates) as here, _client(bob, certificates) as there:
        status = await here.check_key_status("branch-7")
        assert (status.source_KME_ID, status.max_key_per_request) == ("alice", 1)
        keys = await here.request_enc_keys("bob", number=2)
        assert await there.request_dec_keys("alice", [key.key_ID for key in keys]) == keys
    assert alice.asked == ["/capabilities", *["/key?remoteSystemID=bob&size=256"] * 2]
    assert set(bob.asked) == {f"/key/{key.key_ID}?remoteSystemID=alice" for key in keys}


@pytest.mark.parametrize(
    ("remote", "served"),
    [("branch-7", True), ("router", True), ("ruter", False), ("hub-a", True), ("hub-z", True), ("hub-c", False)],
)
async def test_a_provider_names_those_it_serves_by_patterns(
    providers: tuple[FakeProvider, FakeProvider], certificates: Certificates, remote: str, served: bool
) -> None:
    async with _client(providers[0], certificates) as client:
        if served:
            assert (await client.check_key_status(remote)).slave_SAE_ID == remote
        else:
            with pytest.raises(KMEBadReply, match="no keys for remote system"):
                await client.check_key_status(remote)


async def test_each_request_has_its_own_connection(
    providers: tuple[FakeProvider, FakeProvider], certificates: Certificates
) -> None:
    alice, _ = providers
    async with _client(alice, certificates) as client:
        for _ in range(4):
            await client.request_enc_keys("bob")
    assert list(alice.connections.values()) == [1, 1, 1, 1]


@pytest.mark.parametrize(
    ("answer", "error", "burnt"),
    [
        (web.Response(status=404), KMEUnreachable, 0),
        (web.Response(status=503), KMEUnreachable, 0),
        (web.Response(text='{"keyId": "00", "key": "abc"}'), KMEBadReply, 1),
        (web.Response(text='{"keyId": "00", "key": "abcd"}'), KMEBadReply, 1),
        (web.Response(text='{"keyId": "", "key": "abcd"}'), KMEBadReply, 1),
        (web.Response(text="[]"), KMEBadReply, 1),
        (web.Response(text="<html>"), KMEBadReply, 1),
    ],
)
async def test_a_refusal_or_a_doubtful_reply_is_a_typed_error(
    providers: tuple[FakeProvider, FakeProvider],
    certificates: Certificates,
    time: FakeTime,
    answer: web.Response,
    error: type[KeyUnavailable],
    burnt: int,
) -> None:
    alice, _ = providers
    alice.answers.append(answer)
    async with _client(alice, certificates, timing=time.timing, retry_attempts=0) as client:
        with pytest.raises(error):
            await client.request_enc_keys("bob")
        assert client.accounts.totals()["burnt"] == burnt


async def test_a_remote_system_that_the_provider_does_not_serve_is_said(
    providers: tuple[FakeProvider, FakeProvider], certificates: Certificates
) -> None:
    async with _client(providers[0], certificates) as client:
        with pytest.raises(KMEBadReply, match="mallory"):
            await client.check_key_status("mallory")


@pytest.mark.parametrize("key_ID", ["..", "../capabilities", "a/b", "x?y=1", ""])
async def test_a_key_id_that_would_lead_elsewhere_is_not_asked_for(
    providers: tuple[FakeProvider, FakeProvider], certificates: Certificates, key_ID: str
) -> None:
    async with _client(providers[0], certificates) as client:
        with pytest.raises(KeyNotFound):
            await client.request_dec_keys("bob", [key_ID])
    assert providers[0].asked == []


@pytest.fixture(params=["etsi", "skip"])
async def sources(
    request: pytest.FixtureRequest,
    two_kmes: tuple[FakeKME, FakeKME],
    providers: tuple[FakeProvider, FakeProvider],
    certificates: Certificates,
    time: FakeTime,
) -> AsyncIterator[tuple[KMEGroup, KMEGroup]]:
    """Alice's and Bob's source of keys, over each protocol."""
    clients = (
        [kme.client(timing=time.timing) for kme in two_kmes]
        if request.param == "etsi"
        else [_client(provider, certificates, timing=time.timing) for provider in providers]
    )
    groups = [KMEGroup("g", [client], Prefetch(0, 0), timing=time.timing) for client in clients]
    yield groups[0], groups[1]
    for group in groups:
        await group.close()


async def test_a_key_taken_at_one_site_is_fetched_once_at_the_other(
    sources: tuple[KMEGroup, KMEGroup],
) -> None:
    alice, bob = sources
    assert alice.group == "g"
    keys = [await alice.take("bob") for _ in range(3)]
    assert all(len(key.key) == 32 for key in keys)
    fetched = await bob.fetch("alice", [key.key_ID for key in keys])
    assert fetched == {key.key_ID: key for key in keys}
    assert await bob.fetch("alice", [keys[0].key_ID]) == {}


async def test_an_unknown_key_is_missing_and_does_not_cost_the_others(
    sources: tuple[KMEGroup, KMEGroup],
) -> None:
    alice, bob = sources
    key = await alice.take("bob")
    found = await asyncio.gather(bob.fetch("alice", ["0123456789abcdef"]), bob.fetch("alice", [key.key_ID]))
    assert list(found) == [{}, {key.key_ID: key}]


async def test_a_pad_can_be_made_of_it(sources: tuple[KMEGroup, KMEGroup]) -> None:
    alice, bob = sources
    assert isinstance(alice, KMEGroup)
    pad = await alice.take_pad("bob", 100)
    fetched = await bob.fetch("alice", [key.reference.key_ID for key in pad.keys])
    assert [bytes(key.octets) for key in pad.keys] == [fetched[key.reference.key_ID].key for key in pad.keys]
    assert pad.hides == pad.cost - 16 * len(pad.keys) >= 100


async def test_a_closed_source_gives_no_keys(sources: tuple[KMEGroup, KMEGroup]) -> None:
    alice, _ = sources
    await alice.close()
    with pytest.raises(KeyUnavailable):
        await alice.take("bob")
