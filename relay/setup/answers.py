"""What `qumail-relay setup` needs to know, as one immutable value, and where it puts things.
Ports are those of deploy/postfix, moved together where two sites share a machine.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from relay.config.ports import PORT_BASE, local

Integration = Literal["content-filter", "milter", "smarthost"]
"""How mail comes to the relay: from Postfix's queue by LMTP, asked by Postfix as a milter, or sent straight by SMTP."""
SecretPlace = Literal["credential", "file"]
"""Where the site secret is: a credential, with a passphrase of the private keys; or a file beside the store."""
Everybody = Literal["hold", "refuse", "clear"]
"""What becomes of mail for those who are no peers and not inside."""


@dataclass(frozen=True, slots=True)
class KMEAccess:
    """Where the KME is and how it knows us; `ca`, `certificate` and `key` are PEM files, which are copied."""

    url: str
    ca: Path
    certificate: Path
    key: Path
    group: str = "default"


@dataclass(frozen=True, slots=True)
class Answers:
    """All of it but the peer. Without `kme` there are levels pqc and rsa alone; `postmaster` is empty for nobody.

    `postfix` is the directory of the Postfix beside the relay, None for none. `credentials` is where the unit has those
    of systemd that secret and passphrase are; None: the secret is a file, and there is no passphrase.
    """

    name: str
    domains: tuple[str, ...]
    sae_id: str
    kme: KMEAccess | None
    integration: Integration = "content-filter"
    everybody: Everybody = "hold"
    next_hop: str = ""
    postmaster: tuple[str, ...] = ()
    port_base: int = PORT_BASE
    postfix: Path | None = None
    credentials: Path | None = None

    def address(self, usual_port: int) -> str:
        """The loopback address that stands for this port of deploy/postfix here."""
        return str(local(usual_port, self.port_base))


@dataclass(frozen=True, slots=True)
class SitePaths:
    """Where relay.toml is (an absolute path), and the directory of what the relay itself writes."""

    config_file: Path
    state: Path

    @classmethod
    def beside(cls, config_file: Path) -> SitePaths:
        """/var/lib/NAME for /etc/NAME/relay.toml, as the unit has it; elsewhere the directory `state` beside it."""
        config_file = config_file.absolute()
        directory = config_file.parent
        in_etc = directory.parent == Path("/etc")
        return cls(config_file, Path("/var/lib") / directory.name if in_etc else directory / "state")

    @property
    def directory(self) -> Path:
        """The directory of relay.toml, policies and the KME's files."""
        return self.config_file.parent
