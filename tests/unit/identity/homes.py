"""A site with an identity, in a directory: relay.toml, keys, certificates, and the documents of its peers.
Standard: what a test does not say is what deploy/relay.toml recommends; times are aware and in UTC.
"""

from __future__ import annotations

import base64
import json
import shutil
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from relay import identity as identities
from relay.config import Config, load_config
from relay.errors import ConfigError
from relay.identity import Identity, Import, create_identity, load_identity, peer_document, read_document
from relay.identity.composite import CompositeSigningPrivateKey

NOW = datetime.now(UTC).replace(microsecond=0)

_RELAY_TOML = """\
[site]
name = "{name}"
domains = ["{name}.example"]
sae_id = "sae-{name}"
[outgoing]
listen = "127.0.0.1:0"
next_hop = "127.0.0.1:25"
[incoming]
listen = "127.0.0.1:0"
next_hop = "127.0.0.1:25"
[policies]
directory = "policies"
[store]
database = "relay.db"
secret = "secret"
[identity]
directory = "identity"
peers_directory = "peers"
{identity}
[kmes.k]
url = "https://kme.{name}.example"
group = "shared"
ca = "ca.pem"
certificate = "sae.pem"
key = "sae.key"
{more}
"""


@dataclass(frozen=True)
class Home:
    """One site's directory."""

    directory: Path
    name: str

    @property
    def config_file(self) -> Path:
        return self.directory / "relay.toml"

    @property
    def config(self) -> Config:
        return load_config(self.config_file)

    @property
    def identity_directory(self) -> Path:
        return self.directory / "identity"

    @property
    def peers(self) -> Path:
        return self.directory / "peers"

    @property
    def identity(self) -> Identity:
        return load_identity(self.identity_directory, now=NOW)

    def document(self, *, now: datetime = NOW, **changes: Any) -> bytes:
        """This site's peer document, with other content where a test wants it."""
        content: dict[str, Any] = {
            "name": self.name,
            "domains": [f"{self.name}.example"],
            "sae_id": f"sae-{self.name}",
            "kme_groups": ["shared"],
            "levels": ["otp", "aes", "pqc", "rsa"],
        }
        return peer_document(self.identity_directory, self.identity, now=now, **(content | changes))

    def path(self, pattern: str) -> Path:
        """The one file of the identity that matches."""
        [path] = self.identity_directory.glob(pattern)
        return path


def write_config(directory: Path, name: str, *, identity: str = "", more: str = "") -> Home:
    """relay.toml alone; `identity` goes into its table, `more` to the end."""
    directory.mkdir(parents=True, exist_ok=True)
    home = Home(directory, name)
    home.config_file.write_text(_RELAY_TOML.format(name=name, identity=identity, more=more))
    return home


def make_home(directory: Path, name: str, rsa: Path, *, more: str = "", now: datetime = NOW, days: int = 730) -> Home:
    """A site with an identity whose RSA keys are those in `rsa`; all other keys are its own."""
    home = write_config(directory, name, more=more)
    copy_rsa_keys(rsa, home.identity_directory)
    create_identity(home.identity_directory, name=name, domains=[f"{name}.example"], now=now, valid_days=days)
    return home


def copy_rsa_keys(source: Path, target: Path) -> None:
    """Two RSA keys without certificates, as an interrupted run would leave them."""
    target.mkdir(mode=0o700, parents=True)
    for path in source.glob("rsa_*.key"):
        shutil.copy2(path, target / path.name)


def pin(config: Config, raw: bytes, **options: Any) -> Import:
    """Pins a document; somebody has confirmed all of its domains."""
    try:
        confirmed = read_document(raw).domains
    except ConfigError:
        confirmed = ()
    return identities.pin(config, raw, confirmed=confirmed, **options)


def inner(document: bytes) -> dict[str, Any]:
    """The signed content of a peer document."""
    content = json.loads(base64.b64decode(json.loads(document)["document"]))
    assert isinstance(content, dict)
    return content


def signed(content: object, key: CompositeSigningPrivateKey) -> bytes:
    """A peer document with this content (JSON, or octets as they are), signed as it should be."""
    octets = content if isinstance(content, bytes) else json.dumps(content).encode()
    signature = key.sign(octets, b"qumail-relay peer document 2")
    return json.dumps(
        {"format": 2, "document": base64.b64encode(octets).decode(), "signature": base64.b64encode(signature).decode()}
    ).encode()
