"""Clients of the development KMEs: both SAEs over HTTPS with real certificates, free ports and a fake clock.
Standard: ETSI GS QKD 014 V1.1.1.
"""

from __future__ import annotations

import errno
import json
import os
import ssl
from base64 import b64decode
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any

import aiohttp

from relay.kme import DevelopmentKMEs, LinkSettings

KM1, KM2 = 0, 1
ALICE, BOB = ("sae-2", KM1), ("sae-1", KM2)
NOT_FOUND = "one or more keys specified are not found on KME"
NOT_MULTIPLE = "size shall be a multiple of 8"
NOT_SUPPORTED = "not all extension_mandatory parameters are supported"
FILES = {f"{name}.{kind}" for name in ("ca", "km-1", "km-2", "sae-1", "sae-2") for kind in ("pem", "key")}


class Clock:
    """Seconds that pass only when told to."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now

    def advance(self, seconds: float) -> None:
        self.now += seconds


@dataclass(frozen=True)
class Answer:
    status: int
    raw: bytes
    headers: dict[str, str]

    @property
    def body(self) -> Any:
        assert self.headers["Content-Type"].startswith("application/json")
        return json.loads(self.raw)

    @property
    def message(self) -> str:
        """The message of an error body, which has no other members than the standard's."""
        assert set(self.body) <= {"message", "details"}
        assert all(isinstance(detail, dict) for detail in self.body.get("details", [{}]))
        return str(self.body["message"])

    @property
    def keys(self) -> dict[str, bytes]:
        """key_ID and key bytes of a key container, in its order."""
        assert self.status == 200, self.raw
        assert set(self.body) == {"keys"}
        assert all(set(key) == {"key_ID", "key"} for key in self.body["keys"])
        return {key["key_ID"]: b64decode(key["key"], validate=True) for key in self.body["keys"]}


@dataclass(frozen=True)
class Client:
    """One SAE with its certificate at one KME."""

    session: aiohttp.ClientSession
    base: str

    async def get(self, call: str, **query: Any) -> Answer:
        return await self.request("GET", call, params=query)

    async def post(self, call: str, body: Any) -> Answer:
        return await self.request("POST", call, json=body)

    async def post_raw(self, call: str, body: bytes, content_type: str = "application/json") -> Answer:
        return await self.request("POST", call, data=BytesIO(body), headers={"Content-Type": content_type})

    async def request(self, method: str, call: str, **options: Any) -> Answer:
        async with self.session.request(method, f"{self.base}/api/v1/keys/{call}", **options) as response:
            return Answer(response.status, await response.read(), dict(response.headers))


def tls(state_dir: Path, identity: str | None, authority: Path | None = None) -> ssl.SSLContext:
    """What the strictest Python client does: RFC 5280 to the letter, host name checked."""
    context = ssl.create_default_context(cafile=authority or state_dir / "ca.pem")
    context.verify_flags |= ssl.VERIFY_X509_STRICT
    if identity:
        context.load_cert_chain(state_dir / f"{identity}.pem", state_dir / f"{identity}.key")
    return context


@asynccontextmanager
async def client(kmes: DevelopmentKMEs, who: tuple[str, int]) -> AsyncIterator[Client]:
    identity, kme = who
    connector = aiohttp.TCPConnector(ssl=tls(kmes.state_dir, identity))
    async with aiohttp.ClientSession(connector=connector) as session:
        yield Client(session, kmes.urls[kme])


@dataclass(frozen=True)
class Site:
    """Running KMEs and both SAEs."""

    kmes: DevelopmentKMEs
    clock: Clock
    alice: Client
    bob: Client


@asynccontextmanager
async def running(tmp_path: Path, **settings: Any) -> AsyncIterator[Site]:
    clock = Clock()
    kmes = DevelopmentKMEs(state_dir=tmp_path / "kme", ports=(0, 0), link=LinkSettings(**settings), clock=clock)
    async with kmes, client(kmes, ALICE) as alice, client(kmes, BOB) as bob:
        yield Site(kmes, clock, alice, bob)


def repr_start(value: bytes | str) -> str:
    """A short name for a long test parameter."""
    return repr(value[:20])


def ids(*key_ids: str) -> dict[str, Any]:
    return {"key_IDs": [{"key_ID": key_id} for key_id in key_ids]}


def no_space(*_: object) -> None:
    """What a rename does on a full disk."""
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
