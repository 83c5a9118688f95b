"""The misbehaving KME of these tests: over real TLS, it remembers what it got and does what it is told to.
Standard: ETSI GS QKD 014 V1.1.1 where it behaves; relay/bench/simulated_kme.py is the KME itself.
"""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import trustme

from relay.bench.simulated_kme import SimulatedKME, SimulatedPair
from relay.keys import OptimizedKMClient
from relay.keys.types import Timing


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


class FakeKME(SimulatedKME):
    """A SimulatedKME with certificates of its own making, and clients for it."""

    def __init__(self, certificates: Certificates, pair: SimulatedPair | None = None, **options: Any) -> None:
        self.certificates = certificates
        tls = options.pop("tls", None) or certificates.server_tls("localhost")
        super().__init__(pair or SimulatedPair(), tls, **options)

    def client(self, **options: Any) -> OptimizedKMClient:
        """A client that does not wait long, unless told otherwise."""
        usual: dict[str, Any] = {"name": "kme-a", "adaptive": True, "timeout": 0.3, "min_timeout": 0.3}
        return OptimizedKMClient(self.url, **self.certificates.files, **(usual | options))


MakeKME = Callable[..., FakeKME]
