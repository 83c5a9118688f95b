"""relay.toml as one immutable, checked value; every setting is documented in deploy/relay.toml.
Standard: TOML 1.0; a file with any unknown, missing or doubtful setting is not used at all.
"""

from __future__ import annotations

import ipaddress
import re
import socket
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple, Self

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


def parse_socket(text: object) -> Address | Path:
    """`"127.0.0.1:8891"` as an Address, `"unix:/run/relay/milter.sock"` as a Path; raises ValueError."""
    if isinstance(text, str) and re.fullmatch(r"unix:/[^\0]+", text):
        return Path(text.removeprefix("unix:"))
    try:
        return parse_address(text)
    except ValueError:
        raise ValueError('write it as "host:port" or "unix:/path/to/socket"') from None


Network = ipaddress.IPv4Network | ipaddress.IPv6Network


def parse_networks(value: object) -> tuple[Network, ...]:
    """`["192.0.2.0/24", "::1"]` as networks; raises ValueError."""
    if not isinstance(value, list | tuple):
        raise ValueError('write a list of networks, for instance ["192.0.2.0/24", "::1"]')  # noqa: TRY004
    return tuple(each if isinstance(each, Network) else ipaddress.ip_network(str(each)) for each in value)


@dataclass(frozen=True, slots=True)
class Server:
    """One next hop: what is spoken there (RFC 5321, RFC 2033), and its TCP address or Unix socket.

    `name` is the host name to which the DNS has given the address, "" where the address stands for itself.
    """

    protocol: Literal["smtp", "lmtp"]
    address: Address | Path
    name: str = ""

    @property
    def host(self) -> str:
        """The name that its certificate must have; "" for a Unix socket."""
        return self.name or (self.address.host if isinstance(self.address, Address) else "")

    def __str__(self) -> str:
        if self.protocol == "lmtp":
            return f"lmtp:{self.address}" if isinstance(self.address, Path) else f"lmtp://{self.address}"
        return f"{self.name}[{self.address}]" if self.name else str(self.address)


@dataclass(frozen=True, slots=True)
class MailDomain:
    """The mail exchangers of a domain, as the DNS has them (RFC 5321, 5.1), at this port."""

    domain: str
    port: int = 25

    def __str__(self) -> str:
        return f"mx:{self.domain}" if self.port == 25 else f"mx:{self.domain}:{self.port}"


def parse_next_hop(text: object) -> Server | MailDomain:
    """`"host:port"`, `"smtp://host:port"`, `"lmtp://host:port"`, `"lmtp:/socket"`, `"mx:domain"`; raises ValueError."""
    text = text if isinstance(text, str) else ""
    match = re.fullmatch(r"(smtp://|lmtp://|lmtp:(?=/[^/])|mx:|(?!\w+:\D))(\S+)", text)
    try:
        match match and match.groups():
            case "lmtp:", str(path):
                return Server("lmtp", Path(path))
            case "mx:", str(domain):
                name, _, port = domain.partition(":")
                return MailDomain(_domain(name), _to_connect(f"{name}:{port or 25}").port)
            case str(scheme), str(address):
                return Server("lmtp" if scheme == "lmtp://" else "smtp", _to_connect(address))
    except ValueError:
        pass  # what is wrong with a part is no help for the whole
    raise ValueError(
        'write it as "host:port", "smtp://host:port", "lmtp://host:port", "lmtp:/path/to/socket" or "mx:example.org"'
    )


def _to_connect(text: str) -> Address:
    address = parse_address(text)
    if not address.port:
        raise ValueError("port 0 is none to connect to")
    return address


def _next_hops(value: object) -> tuple[Server | MailDomain, ...]:
    return tuple(map(parse_next_hop, value if isinstance(value, list | tuple) else [value]))


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


def _ca(value: object, info: ValidationInfo) -> Path | str:
    return "system" if value == "system" else _path(value, info)


def _list_as_tuple(value: object) -> object:
    return tuple(value) if isinstance(value, list) else value


def _domain(value: str) -> str:
    if not re.fullmatch(r"(?=.{1,253}\Z)[\w-]+(\.[\w-]+)*", value):
        raise ValueError(f'{value!r} is not a mail domain; write for instance "example.org"')
    return value.lower()


SizeSetting = Annotated[int, BeforeValidator(parse_size)]
AddressSetting = Annotated[Address, BeforeValidator(parse_address)]
SocketSetting = Annotated[Address | Path, BeforeValidator(parse_socket)]
NextHops = Annotated[tuple[Server | MailDomain, ...], BeforeValidator(_next_hops), Field(min_length=1)]
PathSetting = Annotated[Path, BeforeValidator(_path)]
Networks = Annotated[tuple[Network, ...], BeforeValidator(parse_networks)]
CASetting = Annotated[Path | Literal["system"], BeforeValidator(_ca)]
DatabaseSetting = Annotated[Path | str, BeforeValidator(_database)]
Domains = Annotated[
    tuple[Annotated[str, AfterValidator(_domain)], ...], BeforeValidator(_list_as_tuple), Field(min_length=1)
]
Names = Annotated[tuple[str, ...], BeforeValidator(_list_as_tuple), Field(min_length=1)]
Seconds = Annotated[float, Field(gt=0, le=86400, strict=False)]
Printable = Annotated[str, Field(min_length=1, max_length=255, pattern=r"^[^\x00-\x1f\x7f]+$")]
SAEID = Annotated[str, Field(min_length=1, max_length=128)]


class Site(toml.Table):
    """Who we are: our mail domains, our SAE ID, the name that we say in SMTP."""

    name: str = Field(min_length=1, max_length=64)
    domains: Domains
    sae_id: SAEID
    hostname: str = Field(default_factory=socket.gethostname, min_length=1, max_length=253)


class Listening(toml.Table):
    """How an entry treats those who connect to it. `timeout` is in seconds, `trusted` are their networks."""

    max_message_size: SizeSetting = 50 * 2**20
    max_recipients: int = Field(default=1000, ge=1, le=100_000)
    timeout: Seconds = 300.0
    connections: int = Field(default=1000, ge=1, le=100_000)
    connections_per_client: int = Field(default=50, ge=1, le=100_000)
    trusted: Networks = parse_networks(["127.0.0.0/8", "::1/128"])


class Direction(Listening):
    """One way through the relay: where it listens (SMTP, LMTP) and which next hop gets what came through.

    Of several next hops the first that takes a mail gets it. At most `next_hop_connections` idle connections are
    kept to each server.
    """

    listen: AddressSetting | None = None
    lmtp: AddressSetting | None = None
    milter: SocketSetting | None = None
    next_hop: NextHops
    next_hop_tls: Literal["auto", "none", "opportunistic", "required"] = "auto"
    next_hop_ca: CASetting = "system"
    next_hop_tls_name: str = Field(default="", max_length=253)
    next_hop_connections: int = Field(default=20, ge=0, le=10_000)
    max_hops: int = Field(default=50, ge=5, le=1000)

    @model_validator(mode="after")
    def _next_hop_can_be_trusted_as_wanted(self) -> Self:
        required = self.next_hop_tls == "required"
        if required and any(isinstance(hop, Server) and isinstance(hop.address, Path) for hop in self.next_hop):
            raise ValueError("next_hop_tls is required, which a Unix socket does not have")
        if not required and (self.next_hop_ca != "system" or self.next_hop_tls_name):
            raise ValueError('next_hop_ca and next_hop_tls_name check nothing without next_hop_tls = "required"')
        return self


class OutgoingDirection(Direction):
    """The way out. `milter_split` lets the milter send copies to recipients who need other protection than the rest."""

    milter_split: bool = True


class IncomingDirection(Direction):
    """The way in, where messages come sealed and so up to 1.4 times as large as the peer took them."""

    max_message_size: SizeSetting = 75 * 2**20


class Submission(Listening):
    """Where users hand in mail for the way out: STARTTLS, implicit TLS, and whom the relay takes mail from.

    `users` is the password file, `dovecot_auth` the Unix socket of Dovecot's auth service. Rates are for an hour,
    `failed_login_delay` is in seconds.
    """

    listen: AddressSetting | None = None
    listen_tls: AddressSetting | None = None
    certificate: PathSetting
    key: PathSetting
    users: PathSetting | None = None
    dovecot_auth: PathSetting | None = None
    check_from: bool = True
    mails_per_user: int = Field(default=500, ge=1, le=10_000_000)
    recipients_per_user: int = Field(default=2000, ge=1, le=10_000_000)
    mails_per_client: int = Field(default=2000, ge=1, le=10_000_000)
    recipients_per_client: int = Field(default=10_000, ge=1, le=10_000_000)
    failed_logins: int = Field(default=10, ge=1, le=1_000_000)
    failed_login_delay: Annotated[float, Field(ge=0, le=60, strict=False)] = 2.0


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


class Quarantine(toml.Table):
    """What happens to arriving mail that cannot be opened: kept, or refused.

    `hold_for` is how many seconds a mail is held whose key no KME knows (yet) before it counts as one of these;
    `max_size` bounds what is kept, in octets; with `notice` the recipients are told, without any content.
    """

    action: Literal["keep", "refuse"] = "keep"
    hold_for: Annotated[float, Field(ge=0, le=5 * 86400, strict=False)] = 4 * 3600.0
    max_size: SizeSetting = 2**30
    notice: bool = False


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
    lag_waiting: int = Field(default=10, ge=0, le=100_000)

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


class Limits(toml.Table):
    """How much memory the messages in flight may take in all, and how long (seconds) a new one waits for room."""

    messages_in_flight: SizeSetting = 2**30
    wait_for_room: Seconds = 30.0


class IMAPAccount(toml.Table):
    """One mailbox at a provider, watched over IMAP: sealed messages in its folders are opened there (RFC 9051).

    Just one of `password_file`, `password_credential` (a systemd credential's name) and `token_command` (XOAUTH2) says
    how to log in. `after` is what becomes of the sealed message once the original is there. Times are seconds.
    """

    host: str = Field(pattern=r"^[^\s/:]+$", max_length=253)
    port: int = Field(default=993, ge=1, le=65535)
    tls: Literal["implicit", "starttls"] = "implicit"
    ca: PathSetting | None = None
    user: Printable
    password_file: PathSetting | None = None
    password_credential: str = Field(default="", pattern=r"^[\w.@-]{0,128}$")
    token_command: Annotated[tuple[str, ...], BeforeValidator(_list_as_tuple)] = ()
    folders: Annotated[tuple[Printable, ...], BeforeValidator(_list_as_tuple), Field(min_length=1)] = ("INBOX",)
    after: Literal["move", "flag", "delete"] = "move"
    sealed_folder: Printable = "Sealed"
    idle: bool = True
    poll: Seconds = 60.0
    timeout: Seconds = 60.0
    max_message_size: SizeSetting = 75 * 2**20
    retry: Seconds = 30.0
    retry_longest: Seconds = 3600.0
    retry_refused: Seconds = 86400.0

    @model_validator(mode="after")
    def _agrees_with_itself(self) -> IMAPAccount:
        ways = (self.password_file is not None, bool(self.password_credential), bool(self.token_command))
        if sum(ways) != 1:
            raise ValueError("set just one of password_file, password_credential and token_command")
        if self.after == "move" and self.sealed_folder in self.folders:
            raise ValueError(
                f"sealed_folder {self.sealed_folder!r} is one of folders; sealed messages must leave those"
            )
        return self


class DKIMKey(toml.Table):
    """A private key that signs for one of the site's mail domains, and the selector of its DNS record (RFC 6376)."""

    domain: Annotated[str, AfterValidator(_domain)]
    selector: str = Field(max_length=63, pattern=r"^[A-Za-z0-9]([A-Za-z0-9_.-]*[A-Za-z0-9])?$")
    key: PathSetting


class DKIM(toml.Table):
    """Signing what leaves sealed, and verifying what arrives sealed (RFC 6376, RFC 8601, RFC 8617).

    `authserv_id` names us in Authentication-Results, by default `site.hostname`. `dns_timeout` is in seconds, for all
    keys of a message; `dns_servers` are asked instead of those of this host.
    """

    keys: Annotated[tuple[DKIMKey, ...], BeforeValidator(_list_as_tuple)] = ()
    verify: bool = True
    authserv_id: str = Field(default="", max_length=253, pattern=r"^[A-Za-z0-9_.-]*$")
    arc_seal: bool = False
    max_signatures: int = Field(default=10, ge=1, le=100)
    dns_timeout: Annotated[float, Field(gt=0, le=60, strict=False)] = 5.0
    dns_servers: Annotated[tuple[AddressSetting, ...], BeforeValidator(_list_as_tuple)] = ()


class Log(toml.Table):
    """How much is logged and in which form; message content and keys never are."""

    level: Literal["debug", "info", "warning", "error"] = "info"
    format: Literal["auto", "console", "json"] = "auto"


class Config(toml.Table):
    """All of relay.toml."""

    site: Site
    outgoing: OutgoingDirection | None = None
    submission: Submission | None = None
    incoming: IncomingDirection | None = None
    policies: Policies
    store: Store
    identity: IdentityFiles | None = None
    kmes: dict[str, KME] = Field(default_factory=dict)
    peers: dict[str, Peer] = Field(default_factory=dict)
    otp: OTP = OTP()
    ledger: Ledger = Ledger()
    quarantine: Quarantine = Quarantine()
    limits: Limits = Limits()
    imap: dict[Annotated[str, Field(pattern=r"^[\w-]{1,64}$")], IMAPAccount] = Field(default_factory=dict)
    dkim: DKIM | None = None
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
    faults = [
        *_nothing_to_serve(config),
        *_submission_that_cannot_be(config),
        *_quarantine_too_small(config),
        *_dkim_that_cannot_be(config),
        *_peers_that_cannot_be(config),
    ]
    if faults:
        raise ConfigError([f"{path}:{toml.line_of(text, where) or 1}: {what}" for where, what in faults])
    return config


_Fault = tuple[tuple[str | int, ...], str]


def _nothing_to_serve(config: Config) -> Iterator[_Fault]:
    outgoing, incoming = config.outgoing, config.incoming
    if outgoing is None and incoming is None and not config.imap:
        yield (), "neither [outgoing], [incoming] nor [imap.*] is set, so there is nothing to serve"
    for name, direction in (("outgoing", outgoing), ("incoming", incoming)):
        if direction is None or direction.listen or direction.lmtp or direction.milter:
            continue
        if name == "outgoing" and config.submission:
            continue
        yield (name,), f"{name}: none of listen (SMTP), lmtp and milter is set, so no mail can come in"
    yield from _listening_twice(config)


def _listening_twice(config: Config) -> Iterator[_Fault]:
    taken: dict[Address, str] = {}
    for name in ("outgoing", "submission", "incoming"):
        for setting in ("listen", "lmtp", "milter", "listen_tls"):
            address: Address | Path | None = getattr(getattr(config, name), setting, None)
            if not isinstance(address, Address) or not address.port:
                continue
            if other := taken.get(address):
                yield (name, setting), f"{name}.{setting}: {other} already listens there; choose another port"
            taken[address] = f"{name}.{setting}"


def _submission_that_cannot_be(config: Config) -> Iterator[_Fault]:
    """Users need somewhere to connect to, something that knows them, and a way out for their mail."""
    submission, here = config.submission, ("submission",)
    if submission is None:
        return
    if config.outgoing is None:
        yield here, "submission: [outgoing] is not set, so there is no next hop for what users submit"
    if submission.listen is None and submission.listen_tls is None:
        yield here, "submission: neither listen (STARTTLS) nor listen_tls (TLS from the start) is set"
    if submission.users is None and submission.dovecot_auth is None:
        yield here, "submission: neither users (a password file) nor dovecot_auth (a socket of Dovecot's) is set"


def _quarantine_too_small(config: Config) -> Iterator[_Fault]:
    """One peer may take half of it, and the largest message that is taken must fit in there."""
    needed = 2 * config.incoming.max_message_size if config.incoming else 0
    if config.quarantine.action == "keep" and config.quarantine.max_size <= needed:
        what = f"write more than {needed} octets, twice incoming.max_message_size, or the largest messages never fit"
        yield ("quarantine", "max_size"), f"quarantine.max_size: {what}"


def _dkim_that_cannot_be(config: Config) -> Iterator[_Fault]:
    """We sign for our own domains only, and name servers are asked by their addresses."""
    table = config.dkim
    if table is None:
        return
    for number, key in enumerate(table.keys):
        if key.domain not in config.site.domains:
            yield ("dkim", "keys", number, "domain"), f"dkim.keys: {key.domain!r} is none of site.domains"
    if table.arc_seal and not (table.keys and table.verify):
        yield ("dkim", "arc_seal"), "dkim.arc_seal: needs verify, and one of [[dkim.keys]] to seal with"
    for server in table.dns_servers:
        try:
            ipaddress.ip_address(server.host)
        except ValueError:
            yield ("dkim", "dns_servers"), f"dkim.dns_servers: {server.host!r} is not an IP address"


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
