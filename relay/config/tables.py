"""The tables of relay.toml: who we are, where mail comes in and goes on, where things lie, whose keys we use.
The defaults are those that deploy/relay.toml documents; those of a KME are what ETSI GS QKD 014 V1.1.1 says.
"""

from __future__ import annotations

import socket
from pathlib import Path
from typing import Annotated, ClassVar, Literal, Self, get_args

from pydantic import AfterValidator, BeforeValidator, Field, model_validator

from relay import toml
from relay.config.values import (
    SAEID,
    AddressSetting,
    CASetting,
    DatabaseSetting,
    Domains,
    MailboxSetting,
    Networks,
    NextHops,
    PathSetting,
    Printable,
    Seconds,
    Server,
    SizeSetting,
    SocketSetting,
    as_tuple,
    parse_domain,
    parse_mailbox,
    parse_networks,
)

MAX_BOUNCE = 32 * 2**10
"""Octets: room for a notice and a long header, and no more key than that for what an outsider may have caused."""


class SiteSettings(toml.Table):
    """Who we are: our mail domains, our SAE ID, the name that we say in SMTP."""

    name: str = Field(min_length=1, max_length=64)
    domains: Domains
    sae_id: SAEID
    hostname: str = Field(default_factory=socket.gethostname, min_length=1, max_length=253)


class ListenerSettings(toml.Table):
    """How an entry treats those who connect to it. `timeout` is in seconds, `trusted` are their networks."""

    max_message_size: SizeSetting = 50 * 2**20
    max_recipients: int = Field(default=1000, ge=1, le=10_000)
    timeout: Seconds = 300.0
    connections: int = Field(default=1000, ge=1, le=100_000)
    connections_per_client: int = Field(default=50, ge=1, le=100_000)
    trusted: Networks = parse_networks(["127.0.0.0/8", "::1/128"])


class DirectionSettings(ListenerSettings):
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


class OutgoingSettings(DirectionSettings):
    """The way out.

    `milter_split` lets the milter send copies to recipients who need other protection than the rest; `max_bounce` is
    the largest message from the null sender, in octets, for which a one-time pad is spent.
    """

    milter_split: bool = True
    max_bounce: SizeSetting = MAX_BOUNCE


class IncomingSettings(DirectionSettings):
    """The way in, where messages come sealed and so up to 1.4 times as large as the peer took them."""

    max_message_size: SizeSetting = 75 * 2**20


class SubmissionSettings(ListenerSettings):
    """Where users hand in mail for the way out: STARTTLS, implicit TLS, and whom the relay takes mail from.

    `users` is the password file, `dovecot_auth` the Unix socket of Dovecot's auth service. Rates are for an hour.
    """

    removed: ClassVar[dict[str, str]] = {
        "failed_login_delay": "a failed login is answered after 2 seconds; remove this line"
    }

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


class IMAPSettings(toml.Table):
    """One mailbox at a provider, watched over IMAP: sealed messages in its folders are opened there (RFC 9051).

    Just one of `password_file`, `password_credential` (a systemd credential) and `token_command` (XOAUTH2) says
    how to log in. `addresses` are those whose mail this mailbox gets, by default the user. `after` is what becomes of
    the sealed message once the original is there. Times are seconds.
    """

    removed: ClassVar[dict[str, str]] = {
        "retry": "a message that may be opened later is tried again after 30 s, then less often; remove this line",
        "retry_longest": "what may be opened later is tried at least once an hour; remove this line",
        "retry_refused": "a message that waiting will not help is tried once a day; remove this line",
    }

    host: str = Field(pattern=r"^[^\s/:]+$", max_length=253)
    port: int = Field(default=993, ge=1, le=65535)
    tls: Literal["implicit", "starttls"] = "implicit"
    ca: PathSetting | None = None
    user: Printable
    password_file: PathSetting | None = None
    password_credential: str = Field(default="", pattern=r"^[\w.@-]{0,128}$")
    token_command: Annotated[tuple[str, ...], BeforeValidator(as_tuple)] = ()
    addresses: Annotated[tuple[MailboxSetting, ...], BeforeValidator(as_tuple)] = ()
    folders: Annotated[tuple[Printable, ...], BeforeValidator(as_tuple), Field(min_length=1)] = ("INBOX",)
    after: Literal["move", "flag", "delete"] = "move"
    sealed_folder: Printable = "Sealed"
    idle: bool = True
    poll: Seconds = 60.0
    timeout: Seconds = 60.0
    max_message_size: SizeSetting = 75 * 2**20

    @model_validator(mode="after")
    def _agrees_with_itself(self) -> IMAPSettings:
        ways = (self.password_file is not None, bool(self.password_credential), bool(self.token_command))
        if sum(ways) != 1:
            raise ValueError("set just one of password_file, password_credential and token_command")
        if not self.addresses:
            try:
                parse_mailbox(self.user)
            except ValueError:
                raise ValueError("set addresses: those whose mail this mailbox gets, since user is none") from None
        if self.after == "move" and self.sealed_folder in self.folders:
            raise ValueError(
                f"sealed_folder {self.sealed_folder!r} is one of folders; sealed messages must leave those"
            )
        return self

    @property
    def mailboxes(self) -> tuple[str, ...]:
        """The addresses whose mail this mailbox gets, domains in lower case."""
        return self.addresses or (parse_mailbox(self.user),)


class PolicySettings(toml.Table):
    """Where the policy files lie, and whether they are only tried out.

    With `shadow` every mail leaves as it came, and what would have become of it is logged, and written into
    `shadow_record` where that is set.
    """

    directory: PathSetting
    shadow: bool = False
    shadow_record: PathSetting | None = None


class LedgerSettings(toml.Table):
    """Where each mail is recorded that leaves with less than the first level listed, and how addresses stand there."""

    file: PathSetting | None = None
    addresses: Literal["hashed", "clear"] = "hashed"


class StoreSettings(toml.Table):
    """What must survive a crash: the database and the secret that seals keys in it.

    `database` is the path of a SQLite file or a `postgresql://` URL.
    """

    database: DatabaseSetting
    secret: PathSetting


class QuarantineSettings(toml.Table):
    """What happens to arriving mail that cannot be opened: kept, or refused.

    `hold_for` is how many seconds a mail is held whose key no KME knows (yet) before it counts as one of these;
    `max_size` bounds what is kept, in octets; with `notice` the recipients are told, without any content.
    """

    action: Literal["keep", "refuse"] = "keep"
    hold_for: Annotated[float, Field(ge=0, le=5 * 86400, strict=False)] = 4 * 3600.0
    max_size: SizeSetting = 2**30
    notice: bool = False


class IdentitySettings(toml.Table):
    """Where this site's keys and certificates lie, and the documents of its peers (levels pqc and rsa).

    `passphrase` is a file with which the private keys are encrypted; without one they are not.
    """

    directory: PathSetting
    peers_directory: PathSetting
    passphrase: PathSetting | None = None


class OTPSettings(toml.Table):
    """How level otp hides the size of what it seals, and whether it saves key by compressing first."""

    padding: Literal["padme", "none"] = "padme"
    compression: bool = False


class LimitSettings(toml.Table):
    """How much memory the messages in flight may take in all, and how many processes serve.

    `workers` processes share the listening sockets; each costs the memory of a relay, and has its share of the room for
    messages and of the keys that are kept ready.
    """

    removed: ClassVar[dict[str, str]] = {"wait_for_room": "a message waits 30 seconds for room; remove this line"}

    messages_in_flight: SizeSetting = 2**30
    workers: int = Field(default=1, ge=1, le=64)


class DKIMKeySettings(toml.Table):
    """A private key that signs for one of the site's mail domains, and the selector of its DNS record (RFC 6376)."""

    domain: Annotated[str, AfterValidator(parse_domain)]
    selector: str = Field(max_length=63, pattern=r"^[A-Za-z0-9]([A-Za-z0-9_.-]*[A-Za-z0-9])?$")
    key: PathSetting


class DKIMSettings(toml.Table):
    """Signing what leaves sealed, and verifying what arrives sealed (RFC 6376, RFC 8601, RFC 8617).

    `authserv_id` names us in Authentication-Results, by default `site.hostname`; `dns_servers` are asked instead of
    those of this host.
    """

    removed: ClassVar[dict[str, str]] = {
        "max_signatures": "the 10 uppermost signatures are verified; remove this line",
        "dns_timeout": "the DNS has 5 seconds for all keys of a mail; remove this line",
    }

    keys: Annotated[tuple[DKIMKeySettings, ...], BeforeValidator(as_tuple)] = ()
    verify: bool = True
    authserv_id: str = Field(default="", max_length=253, pattern=r"^[A-Za-z0-9_.-]*$")
    arc_seal: bool = False
    dns_servers: Annotated[tuple[AddressSetting, ...], BeforeValidator(as_tuple)] = ()


class LogSettings(toml.Table):
    """How much is logged and in which form; message content and keys never are."""

    level: Literal["debug", "info", "warning", "error"] = "info"
    format: Literal["auto", "console", "json"] = "auto"


SealingLevel = Literal["otp", "aes", "pqc", "rsa"]


def _domain_or_any(value: str) -> str:
    return value if value == "*" else parse_domain(value)


ForwardedDomain = Annotated[str, AfterValidator(_domain_or_any)]
"""A domain, or "*" for any."""


class KMEErrorSettings(toml.Table):
    """What a reply of a KME means, against the usual reading: the first rule that fits decides.

    `code` is the HTTP status; `text` is looked for in the message, in any case.
    """

    call: Literal["any", "status", "enc_keys", "dec_keys"] = "any"
    code: int = Field(ge=300, le=599)
    text: str = ""
    means: Literal["unreachable", "busy", "exhausted", "bad_request", "misconfigured", "not_found"]


def _seconds_or_true(value: object) -> object:
    """`true` stands for the usual time, a minute; `false` for none."""
    return 60.0 * value if isinstance(value, bool) else value


class KMESettings(toml.Table):
    """One key-management entity of ours and how the KM client talks to it (ETSI GS QKD 014, or Cisco SKIP).

    Times are seconds, keys are counted in keys. What the defaults do is the standard; which KMEs need something else
    is said in deploy/relay.toml.
    """

    removed: ClassVar[dict[str, str]] = {
        "name_check": "with kme_id that name is looked for, without it the host name of the URL; remove this line",
        "tls_minimum": "TLS 1.2 is the least that is spoken, and 1.3 wherever the KME speaks it; remove this line",
        "connect_timeout": "a connection that takes 2 seconds is given up; remove this line",
        "min_timeout": "it is a fifth of timeout; remove this line",
        "breaker_failures": "it is 5; remove this line",
        "breaker_delay": "it is 5 times retry_delay; remove this line",
        "breaker_longest": "it is 15 times retry_delay; remove this line",
        "burn_budget": "it is 1000 keys an hour; remove this line",
        "cache_low": "a refill begins below a quarter of cache_high; remove this line",
        "cache_most": "no more than 1000 keys are kept ready, or cache_high where that is more; remove this line",
        "outage": "how many keys are kept ready follows their use; set cache_high to have more of them",
        "key_margin": "keys are destroyed when a fifth of key_lifetime is left; remove this line",
        "gather": "keys of several mails share a request wherever the KME takes several; remove this line",
        "gather_window": "it is 5 ms; remove this line",
        "lag_waiting": "it is 10 mails; remove this line",
        "max_key_per_request": "a limit that the status does not tell is learnt from refusals; remove this line",
        "max_key_size": 'write size_unit = "ignored" for a KME that gives keys of one size only, else remove this line',
    }

    interface: Literal["etsi014", "skip"] = "etsi014"
    url: str = Field(pattern=r"^https://[^\s/]+(/\S*)?$")
    group: str = Field(default="default", min_length=1, max_length=64)
    use: Literal["otp", "aes", "both"] = "both"

    ca: PathSetting
    certificate: PathSetting
    key: PathSetting
    kme_id: str = Field(default="", max_length=256)
    name_from: Literal["san", "cn", "either"] = "san"
    tls_ciphers: str = ""

    retry_attempts: int = Field(default=3, ge=0, le=20)
    retry_delay: Seconds = 1.0
    timeout: Seconds = 10.0
    pool_connections: int = Field(default=5, ge=1, le=1000)
    pool_maxsize: int = Field(default=10, ge=1, le=1000)

    prefetch: bool = True
    cache_high: int = Field(default=32, ge=0, le=100_000)
    key_lifetime: Seconds = 300.0
    reserve: int = Field(default=0, ge=0, le=10_000_000)
    alarm: Seconds = 3600.0

    one_batch_at_a_time: Annotated[float, BeforeValidator(_seconds_or_true), Field(ge=0, le=86400, strict=False)] = 0.0
    lag_patience: Annotated[float, Field(ge=0, le=3600, strict=False)] = 5.0

    method: Literal["POST", "GET"] = "POST"
    keep_alive: bool = True
    size_unit: Literal["bits", "bytes", "ignored"] = "bits"
    integer_key_ids: bool = False
    errors: Annotated[tuple[KMEErrorSettings, ...], BeforeValidator(as_tuple)] = ()


class PeerSettings(toml.Table):
    """Another site that we can seal for: its domains, its SAE ID, the KME groups whose keys we share.

    `kme_groups` stand in order of preference; none at all leaves the levels without quantum keys.
    At level aes one key wraps at most `key_max_messages` messages of together `key_max_bytes` octets, within
    `key_max_age` seconds; so many a key of theirs may open as well, and both sites set the same number. Mail of the
    peer must be sealed at one of the levels in `accept`, by a sender of its domains or of those in `forwards`
    ("*": any).
    """

    domains: Domains
    sae_id: SAEID
    kme_groups: Annotated[tuple[str, ...], BeforeValidator(as_tuple)] = ()
    accept: Annotated[tuple[SealingLevel, ...], Field(min_length=1), BeforeValidator(as_tuple)] = get_args(SealingLevel)
    forwards: Annotated[tuple[ForwardedDomain, ...], BeforeValidator(as_tuple)] = ()
    key_max_messages: int = Field(default=1, ge=1, le=1000)
    key_max_bytes: SizeSetting = 64 * 2**20
    key_max_age: Seconds = 3600.0
