"""A KME that answers whatever a test wants, over the same mutual TLS as the development KMEs.
Standard: ETSI GS QKD 014 V1.1.1 for the paths; the certificates are those of the development KMEs.
"""

from __future__ import annotations

import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

from aiohttp import web


@dataclass
class KMEDouble:
    """`status`, `content_type` and `body` are every reply; `asked` remembers the paths."""

    body: str
    status: int = 200
    content_type: str = "application/json"
    asked: list[str] = field(default_factory=list)
    url: str = ""

    @asynccontextmanager
    async def listening(self, state: Path) -> AsyncIterator[KMEDouble]:
        """Listens on a free port with km-1's certificate out of `state`."""
        tls = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH, cafile=str(state / "ca.pem"))
        tls.load_cert_chain(str(state / "km-1.pem"), str(state / "km-1.key"))
        tls.verify_mode = ssl.CERT_REQUIRED
        application = web.Application()
        application.router.add_route("*", "/{path:.*}", self._answer)
        runner = web.AppRunner(application)
        await runner.setup()
        site = web.TCPSite(runner, "127.0.0.1", 0, ssl_context=tls)
        await site.start()
        self.url = f"https://127.0.0.1:{runner.addresses[0][1]}"
        try:
            yield self
        finally:
            await runner.cleanup()

    async def _answer(self, request: web.Request) -> web.Response:
        self.asked.append(request.path)
        return web.Response(text=self.body, status=self.status, content_type=self.content_type)
