"""relay.toml as one immutable, checked value; every setting is documented in deploy/relay.toml.
Standard: TOML 1.0; a file with any unknown, missing or doubtful setting is not used at all.
"""

from __future__ import annotations

import re
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple

from pydantic import AfterValidator, BeforeValidator, Field, ValidationInfo, model_validator

from relay import toml
from relay.errors import ConfigError


class Address(NamedTuple):
    """A TCP address: host name or IP address, and port (0 to listen: any free one)."""

    host: str
    port: int

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


def parse_address(text: object) -> Address:
    """`"127.0.0.1:10025"` or `"[::1]:10025"` as an Address; raises ValueError."""
    match = re.fullmatch(r"(?:\[([0-9A-Fa-f:.]+)\]|([^:\[\]/\s]+)):(\d{1,5})", str(text))
    if not isinstance(text, str) or not match or int(match[3]) > 65535:
        raise ValueError('write it as "host:port", for instance "127.0.0.1:10025" or "[::1]:10025"')
    return Address(match[1] or match[2], int(match[3]))


_UNITS = {"": 1, "B": 1, "KIB": 2**10, "MIB": 2**20, "GIB": 2**30, "KB": 10**3, "MB": 10**6, "GB": 10**9}


def parse_size(text: object) -> int:
    """`"50 MiB"`, `"256KiB"` or a number of octets, as octets; raises ValueError."""
    if isinstance(text, int) and not isinstance(text, bool) and text > 0:
        return text
    match = re.fullmatch(r"(\d{1,12})\s*([A-Za-z]*)", text.strip()) if isinstance(text, str) else None
    if not match or match[2].upper() not in _UNITS or int(match[1]) == 0:
        raise ValueError('write a size such as "50 MiB", or a number of octets above 0')
    return int(match[1]) * _UNITS[match[2].upper()]


def _path(value: object, info: ValidationInfo) -> Path:
    if not isinstance(value, str | Path) or not str(value) or "\0" in str(value):
        raise ValueError("write a path in quotes")
    base = (info.context or {}).get("base", Path())
    return Path(base) / Path(value).expanduser()


def _database(value: object, info: ValidationInfo) -> Path | str:
    if isinstance(value, str) and value.startswith("postgresql://"):
        return value
    return _path(value, info)


def _list_as_tuple(value: object) -> object:
    return tuple(value) if isinstance(value, list) else value


def _domain(value: str) -> str:
    if not re.fullmatch(r"(?=.{1,253}\Z)[\w-]+(\.[\w-]+)*", value):
        raise ValueError(f'{value!r} is not a mail domain; write for instance "example.org"')
    return value.lower()


SizeSetting = Annotated[int, BeforeValidator(parse_size)]
AddressSetting = Annotated[Address, BeforeValidator(parse_address)]
PathSetting = Annotated[Path, BeforeValidator(_path)]
DatabaseSetting = Annotated[Path | str, BeforeValidator(_database)]
Domains = Annotated[
    tuple[Annotated[str, AfterValidator(_domain)], ...], BeforeValidator(_list_as_tuple), Field(min_length=1)
]
Names = Annotated[tuple[str, ...], BeforeValidator(_list_as_tuple), Field(min_length=1)]
Seconds = Annotated[float, Field(gt=0, le=86400, strict=False)]
SAEID = Annotated[str, Field(min_length=1, max_length=128)]


class Site(toml.Table):
    """Who we are: our mail domains, our SAE ID, the name that we say in SMTP."""

    name: str = Field(min_length=1, max_length=64)
    domains: Domains
    sae_id: SAEID
    hostname: str = Field(default_factory=socket.gethostname, min_length=1, max_length=253)


class Direction(toml.Table):
    """One way through the relay: where it listens and which next hop gets what came through."""

    listen: AddressSetting
    next_hop: AddressSetting
    max_message_size: SizeSetting = 50 * 2**20
    timeout: Seconds = 300.0
    max_hops: int = Field(default=50, ge=5, le=1000)


class IncomingDirection(Direction):
    """The way in, where messages come sealed and so up to 1.4 times as large as the peer took them."""

    max_message_size: SizeSetting = 75 * 2**20


class Policies(toml.Table):
    """Where the policy files lie, and whether they are only tried out.

    With `shadow` every mail leaves as it came, and what would have become of it is logged, and written into
    `shadow_record` where that is set.
    """

    directory: PathSetting
    shadow: bool = False
    shadow_record: PathSetting | None = None


class Ledger(toml.Table):
    """Where each mail is recorded that leaves with less than the first level listed, and how addresses stand there."""

    file: PathSetting | None = None
    addresses: Literal["hashed", "clear"] = "hashed"


class Store(toml.Table):
    """What must survive a crash: the database and the secret that seals keys in it.

    `database` is the path of a SQLite file or a `postgresql://` URL.
    """

    database: DatabaseSetting
    secret: PathSetting


class KMEErrorRule(toml.Table):
    """What a reply of a KME means, against the usual reading: the first rule that fits decides.

    `code` is the HTTP status; `text` is looked for in the message, in any case.
    """

    call: Literal["any", "status", "enc_keys", "dec_keys"] = "any"
    code: int = Field(ge=300, le=599)
    text: str = ""
    means: Literal["unreachable", "busy", "exhausted", "bad_request", "misconfigured", "not_found"]


class KME(toml.Table):
    """One key-management entity of ours and how the KM client talks to it (ETSI GS QKD 014, or Cisco SKIP).

    Times are seconds, keys are counted in keys, `max_key_size` is in bits. What the defaults do is the standard.
    """

    interface: Literal["etsi014", "skip"] = "etsi014"
    url: str = Field(pattern=r"^https://[^\s/]+(/\S*)?$")
    group: str = Field(default="default", min_length=1, max_length=64)

    ca: PathSetting
    certificate: PathSetting
    key: PathSetting
    kme_id: str = Field(default="", max_length=256)
    name_check: Literal["host", "kme_id", "both"] = "host"
    name_from: Literal["san", "cn", "either"] = "san"
    tls_minimum: Literal["1.2", "1.3"] = "1.2"
    tls_ciphers: str = ""

    retry_attempts: int = Field(default=3, ge=0, le=20)
    retry_delay: Seconds = 1.0
    timeout: Seconds = 10.0
    min_timeout: Seconds = 2.0
    connect_timeout: Seconds = 2.0
    pool_connections: int = Field(default=5, ge=1, le=1000)
    pool_maxsize: int = Field(default=10, ge=1, le=1000)
    breaker_failures: int = Field(default=5, ge=1, le=1000)
    breaker_delay: Seconds = 5.0
    breaker_longest: Seconds = 120.0
    burn_budget: int = Field(default=1000, ge=0, le=10_000_000)

    prefetch: bool = True
    cache_low: int = Field(default=8, ge=0, le=100_000)
    cache_high: int = Field(default=32, ge=0, le=100_000)
    cache_most: int = Field(default=1000, ge=0, le=100_000)
    outage: Seconds = 10.0
    key_lifetime: Seconds = 300.0
    key_margin: Annotated[float, Field(ge=0, le=86400, strict=False)] = 60.0
    reserve: int = Field(default=0, ge=0, le=10_000_000)
    alarm: Seconds = 3600.0

    gather: bool = True
    gather_window: Annotated[float, Field(ge=0, le=1, strict=False)] = 0.005
    lag_patience: Annotated[float, Field(ge=0, le=3600, strict=False)] = 30.0

    method: Literal["POST", "GET"] = "POST"
    keep_alive: bool = True
    size_unit: Literal["bits", "bytes", "ignored"] = "bits"
    integer_key_ids: bool = False
    max_key_per_request: int = Field(default=0, ge=0, le=100_000)
    max_key_size: int = Field(default=0, ge=0, le=100_000_000, multiple_of=8)
    errors: Annotated[tuple[KMEErrorRule, ...], BeforeValidator(_list_as_tuple)] = ()

    @model_validator(mode="after")
    def _agrees_with_itself(self) -> KME:
        if self.cache_low > self.cache_high:
            raise ValueError("cache_low is above cache_high; the low mark starts a refill up to the high one")
        if self.key_margin >= self.key_lifetime:
            raise ValueError("key_margin leaves nothing of key_lifetime; keys would expire as they come")
        if self.name_check != "host" and not self.kme_id:
            raise ValueError(f"name_check is {self.name_check!r}, so kme_id must say which ID the KME has")
        return self


class Peer(toml.Table):
    """Another site that we can seal for: its domains, its SAE ID, the KME groups whose keys we share.

    `kme_groups` stand in order of preference; none at all leaves the levels without quantum keys.
    At level aes one key wraps at most `key_max_messages` messages of together `key_max_bytes` octets, within
    `key_max_age` seconds.
    """

    domains: Domains
    sae_id: SAEID
    kme_groups: Annotated[tuple[str, ...], BeforeValidator(_list_as_tuple)] = ()
    key_max_messages: int = Field(default=1, ge=1, le=1_000_000)
    key_max_bytes: SizeSetting = 64 * 2**20
    key_max_age: Seconds = 3600.0


class IdentityFiles(toml.Table):
    """Where this site's keys and certificates lie, and the documents of its peers (levels pqc and rsa).

    `passphrase` is a file with which the private keys are encrypted; without one they are not.
    """

    directory: PathSetting
    peers_directory: PathSetting
    passphrase: PathSetting | None = None


class OTP(toml.Table):
    """How level otp hides the size of what it seals, and whether it saves key by compressing first."""

    padding: Literal["padme", "none"] = "padme"
    compression: bool = False


class Log(toml.Table):
    """How much is logged and in which form; message content and keys never are."""

    level: Literal["debug", "info", "warning", "error"] = "info"
    format: Literal["auto", "console", "json"] = "auto"


class Config(toml.Table):
    """All of relay.toml."""

    site: Site
    outgoing: Direction | None = None
    incoming: IncomingDirection | None = None
    policies: Policies
    store: Store
    identity: IdentityFiles | None = None
    kmes: dict[str, KME] = Field(default_factory=dict)
    peers: dict[str, Peer] = Field(default_factory=dict)
    otp: OTP = OTP()
    ledger: Ledger = Ledger()
    log: Log = Log()

    @property
    def ledger_file(self) -> Path:
        """Where the ledger is: beside the site secret unless it is set."""
        return self.ledger.file or self.store.secret.with_name("ledger.jsonl")

    def peer_by_sae(self, sae_id: str) -> tuple[str, Peer] | None:
        """Name and settings of the peer with this SAE ID, or None."""
        return next(((name, peer) for name, peer in self.peers.items() if peer.sae_id == sae_id), None)

    def peer_by_domain(self, domain: str) -> tuple[str, Peer] | None:
        """Name and settings of the peer that owns a mail domain (lower case), or None."""
        return next(((name, peer) for name, peer in self.peers.items() if domain in peer.domains), None)

    @property
    def peer_domains(self) -> dict[str, tuple[str, ...]]:
        """Each peer's name with its mail domains."""
        return {name: peer.domains for name, peer in self.peers.items()}


def load_config(path: Path) -> Config:
    """Read relay.toml; paths in it are relative to its own directory. Raises ConfigError."""
    text = toml.read(path)
    context: dict[str, Any] = {"base": path.absolute().parent}
    config = toml.parse(text, Config, source=str(path), context=context)
    faults = [*_nothing_to_serve(config), *_peers_that_cannot_be(config)]
    if faults:
        raise ConfigError([f"{path}:{toml.line_of(text, where) or 1}: {what}" for where, what in faults])
    return config


_Fault = tuple[tuple[str, ...], str]


def _nothing_to_serve(config: Config) -> Iterator[_Fault]:
    outgoing, incoming = config.outgoing, config.incoming
    if outgoing is None and incoming is None:
        yield (), "neither [outgoing] nor [incoming] is set, so there is nothing to serve"
    if outgoing and incoming and outgoing.listen == incoming.listen and outgoing.listen.port:
        yield ("incoming", "listen"), "incoming.listen: [outgoing] already listens there; choose another port"


def _peers_that_cannot_be(config: Config) -> Iterator[_Fault]:
    """A peer must have keys to share, an SAE ID of its own, and domains that nobody else has."""
    groups = {kme.group for kme in config.kmes.values()}
    domains = dict.fromkeys(config.site.domains, "site.domains")
    sae_ids = {config.site.sae_id: "site.sae_id"}
    for name, peer in config.peers.items():
        here = ("peers", name)
        for group in peer.kme_groups:
            if group not in groups:
                known = ", ".join(sorted(groups)) or "none"
                yield (*here, "kme_groups"), f"peers.{name}: no KME has group {group!r}; known: {known}"
        if owner := sae_ids.get(peer.sae_id):
            yield (*here, "sae_id"), f"{'.'.join(here)}: sae_id {peer.sae_id!r} already belongs to {owner}"
        sae_ids.setdefault(peer.sae_id, ".".join(here))
        for domain in peer.domains:
            if owner := domains.get(domain):
                yield (*here, "domains"), f"{'.'.join(here)}: domain {domain!r} already belongs to {owner}"
            domains.setdefault(domain, ".".join(here))
