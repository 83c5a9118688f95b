"""The development KME as these tests have it: certificates of their own, and more keys than anybody needs.
What it does wrong is said by each test, in the words of relay/kme/faults.py.
"""

from __future__ import annotations

import asyncio
import ssl
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import trustme

from relay.keys import OptimizedKMClient
from relay.keys.types import Timing
from relay.kme import DevelopmentKME, LinkSettings, SimulatedLink


class FakeTime:
    """A clock that moves only when somebody sleeps or a test says so."""

    def __init__(self) -> None:
        self.now = 1000.0
        self.slept: list[float] = []

    def clock(self) -> float:
        return self.now

    async def sleep(self, seconds: float) -> None:
        self.slept.append(seconds)
        self.now += seconds
        await asyncio.sleep(0)

    @property
    def timing(self) -> Timing:
        return Timing(self.clock, self.sleep, lambda: 1.0)


@dataclass
class Certificates:
    """An authority with a KME's and an SAE's certificate, as files and as the server's TLS settings."""

    directory: Path
    authority: trustme.CA = field(default_factory=trustme.CA)

    def __post_init__(self) -> None:
        self.authority.cert_pem.write_to_path(self.directory / "ca.pem")
        self._write(self.authority.issue_cert(common_name="sae-alice"), "sae")

    def _write(self, certificate: trustme.LeafCert, name: str) -> None:
        certificate.private_key_pem.write_to_path(self.directory / f"{name}.key")
        with (self.directory / f"{name}.pem").open("wb") as file:
            file.writelines(blob.bytes() for blob in certificate.cert_chain_pems)

    def server_tls(self, *names: str, common_name: str = "KME-A") -> ssl.SSLContext:
        """TLS of a KME whose certificate carries these names, for clients with our certificate only."""
        tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self.authority.issue_cert(*names, common_name=common_name).configure_cert(tls)
        self.authority.configure_trust(tls)
        tls.verify_mode = ssl.CERT_REQUIRED
        return tls

    @property
    def files(self) -> dict[str, Any]:
        """The client's arguments `ca`, `certificate` and `key`."""
        return {
            "ca": self.directory / "ca.pem",
            "certificate": self.directory / "sae.pem",
            "key": self.directory / "sae.key",
        }


def a_link() -> SimulatedLink:
    """It has all the keys that a test could want at the start, and no more come."""
    return SimulatedLink(LinkSettings(key_rate=0, stored_key_limit=100_000_000, max_sae_id_count=0), time.monotonic)


class FakeKME(DevelopmentKME):
    """A KME with certificates of its own making, of which anybody may ask anything, and clients for it."""

    def __init__(self, certificates: Certificates, link: SimulatedLink | None = None, **told: Any) -> None:
        """Each of `told` is an attribute of the KME."""
        self.certificates = certificates
        tls = told.pop("tls", None) or certificates.server_tls("localhost")
        super().__init__("KME-A", link or a_link(), tls, other="KME-B", saes=None)
        self.gives_what_is_left = True
        self.limits = {"max_key_count": 100_000} | told.pop("limits", {})
        for name, value in told.items():
            assert hasattr(self, name), name
            setattr(self, name, value)

    def drawn(self, number: int) -> list[tuple[str, bytes]]:
        """Key_ID and octets of fresh keys of 256 bits that another site has taken."""
        keys = self.link.issue(kme="KME-B", master="alice", slaves={"bob"}, number=number, size=256)
        return [(key.key_ID, key.key) for key in keys]

    def client(self, **options: Any) -> OptimizedKMClient:
        """A client that waits as long as a busy machine may take; tests of a KME that hangs say less."""
        usual: dict[str, Any] = {"name": "kme-a", "adaptive": True, "timeout": 10.0}
        usual["pool_connections"] = 1  # none is opened ahead: tests count
        return OptimizedKMClient(self.url, **(self.certificates.files | usual | options))


MakeKME = Callable[..., FakeKME]


def is_the_servers(task: asyncio.Task[Any]) -> bool:
    """Whether it is one of the fake KME's own, which may end later than its client's connection."""
    return any(name in repr(task) for name in ("_serve", "RequestHandler"))
