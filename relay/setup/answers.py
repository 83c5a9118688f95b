"""The answers of `qumail-relay setup` as one immutable value, and the paths of a site's files.
Ports are those of deploy/postfix, shifted together if two sites share a machine.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from relay.config.ports import PORT_BASE, local

Integration = Literal["content-filter", "milter", "smarthost"]
"""How mail reaches the relay: from Postfix's queue by LMTP, through Postfix as milter client, or directly by SMTP."""
SecretPlace = Literal["credential", "file"]
"""Place of the site secret: a credential, with a passphrase for the private keys; or a file beside the store."""
Everybody = Literal["hold", "refuse", "clear"]
"""What happens to mail for everybody who is neither a peer nor inside."""


@dataclass(frozen=True, slots=True)
class KMEAccess:
    """The KME's address and our credentials there; `ca`, `certificate` and `key` are PEM files, which are copied."""

    url: str
    ca: Path
    certificate: Path
    key: Path
    group: str = "default"


@dataclass(frozen=True, slots=True)
class Answers:
    """All answers except the peer. Without `kme` only levels pqc and rsa exist; an empty `postmaster` means nobody.

    `postfix` is the directory of the Postfix beside the relay, or None. `credentials` is the unit's directory of
    systemd credentials; if None, the secret is a file, and there is no passphrase.
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
        """The loopback address for this port of deploy/postfix."""
        return str(local(usual_port, self.port_base))


@dataclass(frozen=True, slots=True)
class SitePaths:
    """The absolute path of relay.toml, and the directory of the relay's own files."""

    config_file: Path
    state: Path

    @classmethod
    def beside(cls, config_file: Path) -> SitePaths:
        """/var/lib/NAME for /etc/NAME/relay.toml, as in the unit; otherwise the directory `state` beside relay.toml."""
        config_file = config_file.absolute()
        directory = config_file.parent
        in_etc = directory.parent == Path("/etc")
        return cls(config_file, Path("/var/lib") / directory.name if in_etc else directory / "state")

    @property
    def directory(self) -> Path:
        """The directory of relay.toml, policies and the KME's files."""
        return self.config_file.parent
