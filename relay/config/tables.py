"""The tables of relay.toml for the site itself: identity, paths, storage, signatures and logging.
Standard: the text under a setting is its documentation (reference.py), with its default.
"""

from __future__ import annotations

import ipaddress
import math
import socket
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, ClassVar, Literal, Self

from pydantic import AfterValidator, BeforeValidator, Field, model_validator

from relay.config.values import (
    SAEID,
    AddressSetting,
    DatabaseSetting,
    Domains,
    Mailboxes,
    Names,
    PathSetting,
    SizeSetting,
    SocketSetting,
    as_tuple,
    parse_domain,
)
from relay.files import toml


class SiteSettings(toml.Table):
    """The site: its mail domains, its SAE ID, its name in SMTP."""

    examples: ClassVar[Mapping[str, object]] = {
        "name": "alice",
        "domains": ["alice.example"],
        "sae_id": "sae-alice",
        "hostname": "relay.alice.example",
    }

    name: str = Field(min_length=1, max_length=64)
    """Your name for this site, in logs and documents."""
    domains: Domains
    """The mail domains of this site."""
    sae_id: SAEID
    """The SAE ID of this relay at your KME (ETSI GS QKD 014)."""
    hostname: str = Field(default_factory=socket.gethostname, min_length=1, max_length=253)
    """The relay's name in SMTP (EHLO, greeting, Received); by default the host name."""


DEFAULT_TAG_SEPARATORS = "+"


class PolicySettings(toml.Table):
    """The policy files, and shadow mode."""

    examples: ClassVar[Mapping[str, object]] = {
        "directory": "/etc/qumail-relay/policies",
        "shadow_record": "/var/lib/qumail-relay/shadow.jsonl",
    }

    directory: PathSetting
    """The directory of policy files: who gets which level (policies/README.md)."""
    tag_separators: Annotated[str, Field(pattern=r"^[-#$&'+./=?^_`{|}~]{1,10}\Z")] = DEFAULT_TAG_SEPARATORS
    """Characters, one to ten, between local part and tag (`ben+invoices@bob.example`), as in Postfix's
    `recipient_delimiter`: a person's policy file covers tagged addresses too.
    """
    shadow: bool = False
    """Test the policies: every outgoing mail leaves AS IT CAME, UNSEALED, and the log reports the intended outcome."""
    shadow_record: PathSetting | None = None
    """A file for the results of shadow mode, without content, for `policy simulate --shadow`."""


class AuditSettings(toml.Table):
    """The audit record: the outcome, protection and policy of each mail, without content (deploy/AUDIT.md). A part is
    the downgrade ledger, of mail below the first level of its policy and of decisions about quarantine. While no line
    of the ledger can be written, its mail is held.
    """

    examples: ClassVar[Mapping[str, object]] = {
        "directory": "/var/lib/qumail-relay/audit",
    }

    directory: PathSetting | None = None
    """The directory of the record, for one relay alone; by default `audit` where the relay's other own files are
    (store.directory).
    """
    addresses: Literal["hashed", "clear"] = "hashed"
    """"hashed": addresses are hashed under the site secret, and replies of next hops are reduced to their codes.
    "clear": everything as it is.
    """
    every_mail: bool = True
    """Whether every mail has a record. false: only the ledger and the sets of policies."""
    when_unwritable: Literal["deliver", "hold"] = "deliver"
    """With every_mail, the handling of mail outside the ledger while records cannot be written. "deliver": up to 20000
    records wait in memory, and the log has `audit_not_written`. "hold": all mail is held.
    """
    keep_days: int = Field(default=366, ge=1, le=36_500)
    """Older files are deleted, the ledger's too. Export records that have to be kept longer."""
    max_size: SizeSetting = 32 * 2**30
    """Room for all files, compressed after their day. Beyond, the oldest are deleted early (`audit_full`). Ten mails a
    second take about 3 GiB a month.
    """

    @property
    def holds(self) -> bool:
        """Whether all mail is held while records cannot be written."""
        return self.every_mail and self.when_unwritable == "hold"


class StoreSettings(toml.Table):
    """The database, and the secret that seals keys there."""

    examples: ClassVar[Mapping[str, object]] = {
        "database": "/var/lib/qumail-relay/relay.db",
        "secret": "/var/lib/qumail-relay/site.secret",
        "directory": "/var/lib/qumail-relay",
    }

    database: DatabaseSetting
    """A SQLite file, for one relay. Or PostgreSQL, for several relays of a site. With TLS, if on another host:
    "postgresql://relay@db.alice.example/relay?sslmode=verify-full&sslrootcert=/etc/qumail-relay/db-ca.pem". sslcert and
    sslkey name a client certificate; a password belongs into ~/.pgpass of the relay's user.
    """
    secret: PathSetting
    """The file of the secret, made at the first start, readable by the relay only. Keep it out of the database's
    backups. /run/credentials/UNIT.service/NAME is a systemd credential (`setup` makes one).
    """
    directory: PathSetting | None = None
    """The directory of the relay's own files, on a disk, not in memory: spools, alarms, held mail; by default also
    audit record and DKIM keys. By default spools are beside a SQLite file, else in systemd's StateDirectory, else
    beside the secret. Other files are beside the secret, or with the spools if the secret is a credential. To change
    it, stop the relay and move all files.
    """


class QuarantineSettings(toml.Table):
    """Arriving mail that cannot be opened, or has less protection than a policy requires (unprotected =
    "quarantine").
    """

    action: Literal["keep", "refuse"] = "keep"
    """"keep": mail is kept, sealed, until somebody decides (`qumail-relay quarantine`). "refuse": the sender is
    notified instead. Mail whose keys were looked at is kept even then: a refusal would help a forger.
    """
    hold_for: Annotated[float, Field(ge=0, le=5 * 86400, strict=False)] = 4 * 3600.0
    """Seconds for which mail is held because its key may only be late, before quarantine. The sender's queue should
    wait longer (Postfix: 5 days).
    """
    max_size: SizeSetting = 2**30
    """Room for all mail in quarantine. The mails of one peer, and those of all strangers together, get at most half
    each. Mail without room is held (`quarantine_full`).
    """
    notice: bool = False
    """Whether recipients hear of mail put aside in a peer's name: sender, time and reason, no content."""


DOCUMENT_SUFFIX = ".json"


class IdentitySettings(toml.Table):
    """The site's identity to its peers, for levels pqc and rsa, made by `qumail-relay identity new`."""

    examples: ClassVar[Mapping[str, object]] = {
        "directory": "/var/lib/qumail-relay/identity",
        "peers_directory": "/var/lib/qumail-relay/peers",
        "passphrase": "/etc/qumail-relay/identity.passphrase",
    }

    directory: PathSetting
    """The directory of this site's private keys and certificates; readable by the relay only."""
    peers_directory: PathSetting
    """The directory of peers' documents, written by `qumail-relay identity import`."""
    passphrase: PathSetting | None = None
    """A file with a random passphrase that encrypts the private keys; made by `identity new` if missing. Keep it away
    from disks and backups, as a systemd credential. Without it only file modes protect the keys.
    """
    ca_key_elsewhere: bool = False
    """true: the private key of the site's CA, ca.key, is kept elsewhere until the next renewal. Otherwise a missing key
    is an alarm.
    """

    def document(self, peer: str) -> Path:
        """Returns the path of a peer's pinned document."""
        return self.peers_directory / f"{peer}{DOCUMENT_SUFFIX}"


class OTPSettings(toml.Table):
    """Padding and compression at level otp."""

    padding: Literal["padme", "none"] = "padme"
    """padme: each message is padded (at most 12 % more key), so that its size reveals little. none: no padding."""
    compression: bool = False
    """Compress before sealing: saves key, but lets the size reveal something of the content."""


class LimitSettings(toml.Table):
    """Memory for messages in flight, and number of processes."""

    removed: ClassVar[dict[str, str]] = {"wait_for_room": "a message waits 30 seconds for room; remove this line"}

    messages_in_flight: SizeSetting = 2**30
    """Memory for messages in flight, of all listeners together. Each takes 4 times its size, at least 256 KiB. A new
    one waits 30 seconds for room, then hears 452. A message larger than the whole is taken alone.
    """
    workers: int = Field(default=1, ge=1, le=64)
    """Processes that serve as one relay, on machines with several cores. They share the memory above and the keys kept
    ready; each costs some 50 MB.
    """


class AlarmSettings(toml.Table):
    """Thresholds of alarms, and who is notified beside log, metrics and `check` (deploy/METRICS.md lists all
    alarms).
    """

    examples: ClassVar[Mapping[str, object]] = {
        "mail_to": ["postmaster@alice.example"],
        "command": ["/usr/local/bin/page-somebody", "--from", "qumail-relay"],
    }

    held_longer_than: Annotated[float, Field(ge=1, le=5 * 86400, strict=False)] = 1800.0
    """mail_held: mail waits for longer, in seconds."""
    disk_free: SizeSetting = 2**29
    """disk_full: less is free on the disk of the state directory."""
    unopened: int = Field(default=20, ge=1, le=1_000_000)
    """quarantine_grows: number of unopened sealed mails within ten minutes."""
    clear_text: bool = False
    """clear_text: mail leaves in clear to elsewhere. For sites that mean to send none."""
    mail_to: Mailboxes | None = None
    """Addresses that get a mail about each alarm, without any mail's content or addresses. Give at least one in your
    own domains, or a command. The next hop of [incoming] gets mail for these, even if outgoing mail has stopped. Other
    notices leave as all mail does, under policy.
    """
    command: Names | None = None
    """A program, with its arguments (no shell), run as the relay's user when an alarm begins, has stood for another
    day, or ends. Its standard input is one JSON object (alarm, severity, state, about, since, meaning, what_to_do,
    site). Timeout: 30 seconds.
    """

    @model_validator(mode="after")
    def _can_be_run(self) -> Self:
        if self.command is not None and not Path(self.command[0]).is_absolute():
            raise ValueError("command: write the whole path of the program")
        return self


class CanarySettings(toml.Table):
    """The canary: a small mail that goes to each peer's relay as all mail does, and comes back as a receipt. If late,
    the alarm `canary_late` begins. Its address is qumail-canary at the first mail domain of each site; your mail server
    must accept mail for it (deploy/MAIL-SERVERS.md).
    """

    examples: ClassVar[Mapping[str, object]] = {"every": 900.0}

    every: Annotated[float, Field(ge=60, le=86_400, strict=False)] | None = None
    """How often each peer is asked, in seconds, 60 at least; by default never. A canary is sealed as policy says, and
    none is sent in clear. Each costs both sites one key at level aes, about 40 of 256 bits at level otp.
    """
    late_after: Annotated[float, Field(ge=10, le=86_400, strict=False)] = 600.0
    """Seconds after which a canary due or out is late. A small value also reports mail servers that delay a mail."""
    answer: bool = True
    """Whether canaries of peers are answered, one in 50 seconds for each peer at most. Also whether peers are told of
    unsealed mail in their name, once an hour at most.
    """

    @property
    def limit(self) -> float:
        """Time without a receipt after which a canary is late, in seconds; infinite without canaries."""
        return math.inf if self.every is None else self.every + self.late_after


class StatusSettings(toml.Table):
    """A page for people, /metrics for Prometheus (deploy/METRICS.md), /healthz and /readyz; read-only."""

    examples: ClassVar[Mapping[str, object]] = {
        "listen": "127.0.0.1:9469",
        "certificate": "/etc/qumail-relay/tls/fullchain.pem",
        "key": "/etc/qumail-relay/tls/privkey.pem",
        "token": "/etc/qumail-relay/status.token",
    }

    listen: SocketSetting
    """A port on loopback, or a Unix socket, "unix:/run/qumail-relay/status.sock", open to all who may enter its
    directory. Any other address needs certificate, key and token.
    """
    certificate: PathSetting | None = None
    """The certificate, with its chain, in PEM, for TLS. SIGHUP reads it again."""
    key: PathSetting | None = None
    """Its private key, in PEM."""
    token: PathSetting | None = None
    """A file with at least 32 random characters ("openssl rand -hex 32"), readable by the relay only. Requests carry
    them as "Authorization: Bearer ..." or as the password of any user. SIGHUP reads it again.
    """
    addresses: bool = False
    """Whether the page shows senders and recipients of mail put aside to all its readers."""

    @model_validator(mode="after")
    def _agrees_with_itself(self) -> Self:
        if (self.certificate is None) != (self.key is None):
            raise ValueError("set both certificate and key, or none of them")
        if isinstance(self.listen, Path):
            if self.certificate is not None:
                raise ValueError("certificate is set, and a Unix socket has no TLS")
        elif not _is_loopback(self.listen.host) and (self.certificate is None or self.token is None):
            raise ValueError(
                f"listen: {self.listen} can be reached from elsewhere: set certificate, key and token, or listen on "
                "loopback (127.0.0.1, ::1) or on a Unix socket"
            )
        return self


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


class DKIMKeySettings(toml.Table):
    """A private key that signs for one of the site's mail domains, and the selector of its DNS record (RFC 6376)."""

    examples: ClassVar[Mapping[str, object]] = {
        "domain": "alice.example",
        "selector": "relay2026",
        "key": "/var/lib/qumail-relay/dkim/alice.example.relay2026.pem",
    }

    domain: Annotated[str, AfterValidator(parse_domain)]
    """One of site.domains."""
    selector: str = Field(max_length=63, pattern=r"^[A-Za-z0-9]([A-Za-z0-9_.-]*[A-Za-z0-9])?\Z")
    """The selector of the public key in the DNS."""
    key: PathSetting
    """The private key, RSA (2048 bits or more) or Ed25519, in PEM, readable by the relay only."""


class DKIMSettings(toml.Table):
    """Sealed mail is signed for the author's domain as it leaves. Signatures of arriving sealed mail are verified
    before opening (deploy/dkim/README.md).
    """

    removed: ClassVar[dict[str, str]] = {
        "arc_seal": "the relay adds no ARC set; a milter behind it can; remove this line",
        "max_signatures": "the 10 uppermost signatures are verified; remove this line",
        "dns_timeout": "the DNS has 5 seconds for all keys of a mail; remove this line",
    }

    keys: Annotated[tuple[DKIMKeySettings, ...], BeforeValidator(as_tuple)] = ()
    """One table for each key; a domain with several keys gets as many signatures. `qumail-relay identity dkim new`
    makes keys, `identity dkim show` prints their DNS records.
    """
    verify: bool = True
    """Whether the uppermost 10 DKIM signatures and the ARC chain of arriving sealed mail are verified. Results stand in
    Authentication-Results of opened mail, for information only; after 5 seconds without the DNS as temperror.
    """
    authserv_id: str = Field(default="", max_length=253, pattern=r"^[A-Za-z0-9_.-]*\Z")
    """The name of the verifier, by default site.hostname. Fields from outside with this name are removed; no other
    program, such as opendkim, may use it.
    """
    dns_servers: Annotated[tuple[AddressSetting, ...], BeforeValidator(as_tuple)] = ()
    """Name servers, as IP addresses and ports (["127.0.0.1:53"]); by default those of /etc/resolv.conf. Best is a local
    resolver that validates DNSSEC.
    """


class MailServerSettings(toml.Table):
    """The Postfix beside this relay, as written by `setup`. The relay watches its configuration: if mail may leave past
    the relay or arrive unopened, the alarm `postfix_bypasses` begins. Leave the table out if no Postfix on this host
    hands mail to the relay.
    """

    examples: ClassVar[Mapping[str, object]] = {"directory": "/etc/postfix"}

    directory: PathSetting
    """The directory of main.cf and master.cf. The relay's user must be able to read both, and the tables that they
    name. A change counts from a restart.
    """
    unlisted: Annotated[tuple[str, ...], BeforeValidator(as_tuple)] = ()
    """Tables that nobody can list (LDAP, SQL, socketmap, tcp), as in main.cf: ["mysql:/etc/postfix/clients.cf"].
    You vouch that no answer leads mail past the relay or loses mail. Unnamed ones are reported (`postfix_unwatched`).
    """
    known: Annotated[tuple[str, ...], BeforeValidator(as_tuple)] = ()
    """Settings of Postfix without a rule here, as `check` prints them: ["smtp_bind_address = 192.0.2.25"]. By naming
    one you say that by it no mail goes past the relay, waits or is lost. All others are reported
    (`postfix_unwatched`), and another value is.
    """


class LogSettings(toml.Table):
    """Amount and form of the log; message content and keys are never logged."""

    level: Literal["debug", "info", "warning", "error"] = "info"
    """debug, info, warning or error."""
    format: Literal["auto", "console", "json"] = "auto"
    """console (for people), json (for programs), or auto: console on a terminal, else json."""
