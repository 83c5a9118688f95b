"""Development KMEs that hand keys out at once and take their time to say so, which is where keys are lost.
Standard: only dec_keys is late; the keys count as delivered from the moment they were asked for.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from aiohttp import web

from relay.kme import DevelopmentKMEs, LinkSettings
from relay.kme.api import KeyDelivery


@dataclass
class HesitantKMEs:
    """`handed_out` is set once keys are on their way, `answer` lets them come."""

    servers: DevelopmentKMEs
    handed_out: asyncio.Event = field(default_factory=asyncio.Event)
    answer: asyncio.Event = field(default_factory=asyncio.Event)


@asynccontextmanager
async def hesitant_kmes(directory: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[HesitantKMEs]:
    """KM1 and KM2 on free ports."""
    real = KeyDelivery._dec_keys
    link = LinkSettings(key_rate=1_000_000)
    kmes = HesitantKMEs(DevelopmentKMEs(state_dir=directory, host="127.0.0.1", ports=(0, 0), link=link))

    async def late(self: KeyDelivery, request: web.Request) -> web.Response:
        response = await real(self, request)
        kmes.handed_out.set()
        await kmes.answer.wait()
        return response

    monkeypatch.setattr(KeyDelivery, "_dec_keys", late)
    async with kmes.servers:
        try:
            yield kmes
        finally:
            kmes.answer.set()
