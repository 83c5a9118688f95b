"""Both development KMEs in one process, the link between them, and the file with their addresses.
They share one event loop and one clock; the caller may make each misbehave (faults.py).
"""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Callable, Mapping
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Self

from relay.errors import ConfigError
from relay.files import resolved
from relay.keys.development import DEFAULT_PORTS, ENDPOINTS_FILE, KME_IDS, STATE_VARIABLE, default_state_dir
from relay.keys.events import Events
from relay.kme import certificates
from relay.kme.certificates import SAES
from relay.kme.link import NOT_QUANTUM, LinkSettings, SimulatedLink
from relay.kme.listening import loopback_addresses
from relay.kme.server import DevelopmentKME

log = Events(__name__)


class DevelopmentKMEs:
    """KM1 and KM2 with a simulated link between them. Not quantum: keys come from the system's generator.

    `state_dir` holds certificates and addresses (default: `default_state_dir()`), `host` is a loopback address or name.
    `ports` are KM1's and KM2's (0: any free one), `clock` counts seconds, `saes` maps SAEs to KMEs. An async context
    manager: serving inside the block, stopped after it.
    """

    def __init__(
        self,
        *,
        state_dir: Path | None = None,
        host: str = "localhost",
        ports: tuple[int, int] = DEFAULT_PORTS,
        link: LinkSettings | None = None,
        clock: Callable[[], float] = time.monotonic,
        saes: Mapping[str, str] = SAES,
    ) -> None:
        self.state_dir = state_dir or default_state_dir()
        self.link = SimulatedLink(link or LinkSettings(), clock)
        first, second = KME_IDS
        self.km1 = DevelopmentKME(first, self.link, other=second, saes=saes, host=host, port=ports[0])
        self.km2 = DevelopmentKME(second, self.link, other=first, saes=saes, host=host, port=ports[1])
        self._host = host
        self._saes = saes
        self._running: AsyncExitStack | None = None

    @property
    def urls(self) -> tuple[str, str]:
        """The base URLs of KM1 and KM2, with their real ports; raises RuntimeError while they do not run."""
        if self._running is None:
            raise RuntimeError("the development KMEs are not running")
        return self.km1.url, self.km2.url

    async def start(self) -> None:
        """Creates missing certificates, listens, and writes the addresses to ENDPOINTS_FILE.

        Raises ConfigError if the host is not loopback, a port is taken or the directory cannot be used.
        """
        if self._running is not None:
            raise RuntimeError("the development KMEs are running already")
        await loopback_addresses(self._host)
        await asyncio.to_thread(certificates.prepare, self.state_dir, self._host, saes=self._saes)
        async with AsyncExitStack() as starting:
            for kme in (self.km1, self.km2):
                kme.tls = certificates.server_context(self.state_dir, kme.name)
                await starting.enter_async_context(kme)
            self._write_endpoints()
            self._running = starting.pop_all()
        for kme in (self.km1, self.km2):
            log.info("kme_started", kme=kme.name, url=kme.url, quantum=False, note=NOT_QUANTUM)

    async def stop(self) -> None:
        """Stops listening, closes connections, and removes ENDPOINTS_FILE; does nothing when not running."""
        if self._running is None:
            return
        self._remove_endpoints()
        running, self._running = self._running, None
        await running.aclose()
        log.info("kme_stopped")

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.stop()

    def _endpoints(self) -> bytes:
        urls = {kme.name: kme.url for kme in (self.km1, self.km2)}
        return (json.dumps(urls, indent=2) + "\n").encode("ascii")

    def _write_endpoints(self) -> None:
        path = self.state_dir / ENDPOINTS_FILE
        try:
            certificates.write_private(path, self._endpoints())
        except OSError as error:
            raise ConfigError(f"{path}: cannot be written: {error.strerror}") from error

    def _remove_endpoints(self) -> None:
        """Removes our own file, not that of servers started later on the same directory."""
        path = self.state_dir / ENDPOINTS_FILE
        try:
            if path.read_bytes() == self._endpoints():
                path.unlink()
        except OSError as error:
            log.warning("kme_endpoints_not_removed", path=str(path), error=error.strerror)


def announced(servers: DevelopmentKMEs) -> str:
    """What a person has to know of running servers."""
    first, second = servers.urls
    text = f"KM1 (Alice, SAE 2) {first}\nKM2 (Bob, SAE 1)   {second}\ncertificates in {servers.state_dir}\n"
    if (state := resolved(servers.state_dir)) != resolved(default_state_dir()):
        text += f"programs find them with {STATE_VARIABLE}={state}\n"
    return text + "These are development servers: NOT quantum keys.\n"
