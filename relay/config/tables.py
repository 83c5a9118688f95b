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
    """Mail domains that belong to this site."""
    sae_id: SAEID
    """The SAE ID of this relay at your KME (ETSI GS QKD 014)."""
    hostname: str = Field(default_factory=socket.gethostname, min_length=1, max_length=253)
    """The name of the relay in SMTP (EHLO, greeting, Received); by default the host name."""


DEFAULT_TAG_SEPARATORS = "+"


class PolicySettings(toml.Table):
    """The policy files: their directory, reading of addresses, and shadow mode."""

    examples: ClassVar[Mapping[str, object]] = {
        "directory": "/etc/qumail-relay/policies",
        "shadow_record": "/var/lib/qumail-relay/shadow.jsonl",
    }

    directory: PathSetting
    """The directory of policy files: who gets which level (policies/README.md)."""
    tag_separators: Annotated[str, Field(pattern=r"^[-#$&'+./=?^_`{|}~]{1,10}\Z")] = DEFAULT_TAG_SEPARATORS
    """The characters, one to ten, that separate a local part from its tag, as in `ben+invoices@bob.example`. Write what
    Postfix has in `recipient_delimiter`: a file or pattern for a person is then for the same addresses as the mailbox.
    """
    shadow: bool = False
    """Test the policies: every outgoing mail leaves AS IT CAME, UNSEALED, and the log reports the intended outcome.
    """
    shadow_record: PathSetting | None = None
    """A file for the results of shadow mode (addresses, sizes, levels; no content), for `policy simulate --shadow`.
    """


class AuditSettings(toml.Table):
    """The audit record: the outcome of each mail for each group of its recipients, its protection and policy,
    without content. See deploy/AUDIT.md and qumail-relay audit verify | export | checkpoint. A part of it is the
    downgrade ledger (qumail-relay ledger show): mail that left below the first level of its policy, or in clear. It
    also has mail that a person released from quarantine or dropped. A line is on the disk before its mail leaves;
    while lines cannot be written, this mail is held. The table may be left out.
    """

    examples: ClassVar[Mapping[str, object]] = {
        "directory": "/var/lib/qumail-relay/audit",
    }

    directory: PathSetting | None = None
    """The directory of its files, which are only ever added to; by default audit beside the site secret. Each relay has
    its own: a second one with the same does not start.
    """
    addresses: Literal["hashed", "clear"] = "hashed"
    """"hashed": addresses are hashed under the site secret, and of the next hops' replies only the codes are there.
    "clear": everything is there as it is.
    """
    every_mail: bool = True
    """Whether every mail has a record. Without, there are the ledger and the sets of policies alone."""
    when_unwritable: Literal["deliver", "hold"] = "deliver"
    """What happens, while records cannot be written (the disk is full), to mail that needs no line in the ledger. It
    goes on, up to 20000 of its records wait in memory, and the log has `audit_not_written`. Or it is held until they
    can be.
    """
    keep_days: int = Field(default=366, ge=1, le=36_500)
    """Files of which all records, and those of all before, are older are deleted, the ledger's with them. Export what
    has to be kept longer.
    """
    max_size: SizeSetting = 32 * 2**30
    """What all files may take, those of earlier days being compressed; beyond it the oldest are deleted early, and the
    log has `audit_full`. Ten mails a second take about 3 GiB a month.
    """

    @property
    def holds(self) -> bool:
        """Whether all mail is held while records cannot be written."""
        return self.every_mail and self.when_unwritable == "hold"


class StoreSettings(toml.Table):
    """Persistent storage: the database and the secret that seals keys in it."""

    examples: ClassVar[Mapping[str, object]] = {
        "database": "/var/lib/qumail-relay/relay.db",
        "secret": "/var/lib/qumail-relay/site.secret",
        "directory": "/var/lib/qumail-relay",
    }

    database: DatabaseSetting
    """The database: a SQLite file, or PostgreSQL for several relays of a site. On another host use
    "postgresql://relay@db.alice.example/relay?sslmode=verify-full&sslrootcert=/etc/qumail-relay/db-ca.pem". Otherwise
    an attacker on the way could read it or impersonate it. A certificate of ours is named by sslcert and sslkey. The
    password belongs into ~/.pgpass of the relay's user. Keys on their way into it lie, sealed, in `keys.spool` in the
    `directory` below. That directory must be on a disk that keeps what was written. One relay serves from a SQLite
    file's directory: a second one gives up.
    """
    secret: PathSetting
    """The secret that seals received keys in the database; made on the first start, readable by the relay only. Keep
    it out of the database's backups. /run/credentials/UNIT.service/NAME is a credential of systemd: `setup` makes one.
    """
    directory: PathSetting | None = None
    """The directory of the relay's own files: spools, alarms, held mail, former peers; by default also of the audit
    record, and of DKIM keys. Without it spools are where a SQLite file is, else in systemd's StateDirectory, else
    beside the secret. The others are beside the secret, or with the spools if that is a credential. To change it, stop
    the relay and move all of them.
    """


class QuarantineSettings(toml.Table):
    """Arriving mail that cannot be opened: its key is gone, the mail was changed, or its sealer or signer is not
    known here. Also mail that came with less protection than a policy requires (unprotected = "quarantine"). The
    table may be left out.
    """

    action: Literal["keep", "refuse"] = "keep"
    """"keep": it is kept, sealed, until somebody decides (qumail-relay quarantine list | show | release | drop).
    "refuse": nothing is kept, and the sender is notified; if a key does not come, by the queue that gives up on it.
    Mail whose keys were looked at is kept nevertheless: a refusal would show a forger what is right about it.
    """
    hold_for: Annotated[float, Field(ge=0, le=5 * 86400, strict=False)] = 4 * 3600.0
    """A mail whose key no KME has yet is held at first, because the key may only be late. After this time it is put in
    quarantine. Seconds; the sender's own queue should have more patience than this (Postfix: 5 days).
    """
    max_size: SizeSetting = 2**30
    """What may be kept in all. The mails of one peer, and those of everybody who is no peer, get at most half of it
    each. Where nothing fits any more such mail is held, and the log has quarantine_full; other mail is not
    touched by it.
    """
    notice: bool = False
    """Tell the recipients of a mail in a peer's name that it was put aside: sender, time and reason, nothing of its
    content.
    """


DOCUMENT_SUFFIX = ".json"


class IdentitySettings(toml.Table):
    """The site's identity to its peers, for levels pqc and rsa, made by `qumail-relay identity new`. Leave the
    table out if only quantum keys are used.
    """

    examples: ClassVar[Mapping[str, object]] = {
        "directory": "/var/lib/qumail-relay/identity",
        "peers_directory": "/var/lib/qumail-relay/peers",
        "passphrase": "/etc/qumail-relay/identity.passphrase",
    }

    directory: PathSetting
    """The directory of this site's private keys and certificates; readable by the relay only."""
    peers_directory: PathSetting
    """The directory of peers' documents, which `qumail-relay identity import` writes."""
    passphrase: PathSetting | None = None
    """A file with a random passphrase, under which the private keys are encrypted; made by `identity new` if
    missing. It helps where backups or disks may be read by others: keep it away from them, for instance as a
    systemd credential. Without the setting, only the files' modes protect the keys.
    """
    ca_key_elsewhere: bool = False
    """Whether the private key of the site's own CA, ca.key, is kept elsewhere on purpose. It is needed to renew
    certificates only. Without the setting, a key that is gone is an alarm.
    """

    def document(self, peer: str) -> Path:
        """Returns the path of a peer's pinned document."""
        return self.peers_directory / f"{peer}{DOCUMENT_SUFFIX}"


class OTPSettings(toml.Table):
    """How level otp hides sizes, and whether it saves key by compressing first."""

    padding: Literal["padme", "none"] = "padme"
    """Level otp pads each message so that its size reveals little (at most 12 % more key): padme, or none."""
    compression: bool = False
    """Compressing before sealing saves key, but lets the size reveal something of the content."""


class LimitSettings(toml.Table):
    """How much memory the messages in flight may take in all, and how many processes serve."""

    removed: ClassVar[dict[str, str]] = {"wait_for_room": "a message waits 30 seconds for room; remove this line"}

    messages_in_flight: SizeSetting = 2**30
    """Memory for the messages in flight, of all entries together. Each takes 4 times its size, as much as it needs
    while it is sealed or opened, and at least 256 KiB. A new one waits 30 seconds for room, and is then answered 452,
    try again later. One that is larger than the whole is taken when it is alone.
    """
    workers: int = Field(default=1, ge=1, le=64)
    """Processes that serve as one relay at the same addresses, for machines with several cores; each costs some 50 MB.
    They share the room above and the keys that are kept ready.
    """


class AlarmSettings(toml.Table):
    """When an alarm is raised, and who is notified beside log, metrics and `check` (deploy/METRICS.md has all of them).
    The table may be left out.
    """

    examples: ClassVar[Mapping[str, object]] = {
        "mail_to": ["postmaster@alice.example"],
        "command": ["/usr/local/bin/page-somebody", "--from", "qumail-relay"],
    }

    held_longer_than: Annotated[float, Field(ge=1, le=5 * 86400, strict=False)] = 1800.0
    """mail_held: mail waits for longer than this, in seconds."""
    disk_free: SizeSetting = 2**29
    """disk_full: less than this is free on the disk of the state directory."""
    unopened: int = Field(default=20, ge=1, le=1_000_000)
    """quarantine_grows: number of sealed mails that cannot be opened and arrive within ten minutes."""
    clear_text: bool = False
    """clear_text: raise an alarm whenever mail leaves in clear to elsewhere; for sites that mean to send none."""
    mail_to: Mailboxes | None = None
    """Addresses that get a mail about it. To one in our own domains it goes straight to the next hop of [incoming], so
    it arrives although outgoing mail has stopped. Give one such address at least, or a command. To all others, and
    where that way fails, it goes out as all mail does. Then policy says how it is sealed, and it is not sent where
    policy cannot be kept. It names alarms, peers and KMEs and says what to do, nothing of any mail. A critical alarm
    that begins is mailed within a minute. Of all else each address gets at most one mail in five minutes.
    """
    command: Names | None = None
    """A program that is run for each alarm that begins, stands for another day, or ends: its words, of which none goes
    through a shell. It gets one JSON object on standard input (alarm, severity, state, about, since, meaning,
    what_to_do, site), and 30 seconds. It runs as the relay's user, and under systemd within what the unit allows.
    """

    @model_validator(mode="after")
    def _can_be_run(self) -> Self:
        if self.command is not None and not Path(self.command[0]).is_absolute():
            raise ValueError("command: write the whole path of the program")
        return self


class CanarySettings(toml.Table):
    """The canary: now and then a small mail goes to the relay of each peer and comes back as a receipt. Both go the
    whole way of all mail. Both are from and to the address qumail-canary at the first mail domain of each site.
    When a receipt is late, the alarm `canary_late` begins. Both relays take such mail for themselves; no mailbox
    gets it. Your mail server must accept the address (deploy/MAIL-SERVERS.md). The table may be left out.
    """

    examples: ClassVar[Mapping[str, object]] = {"every": 900.0}

    every: Annotated[float, Field(ge=60, le=86_400, strict=False)] | None = None
    """How often each peer is asked, in seconds, 60 at least; by default nobody is. Policy says how a canary is sealed,
    as for any mail; a peer for whose canary it says plaintext gets none. Each costs the keys of a small mail at this
    site, and the receipt as many at the peer's. At level aes with 900 that is one key of each in a quarter of an hour,
    96 a day for each peer. At level otp it is about 40 keys of 256 bits in place of one (`qumail-relay keys plan` says
    how many). A canary that does not get through is not tried again.
    """
    late_after: Annotated[float, Field(ge=10, le=86_400, strict=False)] = 600.0
    """The alarm `canary_late` begins when a canary is due or out for this time, in seconds. With little, it also begins
    when a mail server on the way holds a mail back for a moment.
    """
    answer: bool = True
    """Whether the canaries of peers are answered, each by a receipt of the same size, at most one in 50 seconds for
    each peer. Also whether a peer is told, once an hour at most, that mail in its name comes here unsealed.
    """

    @property
    def limit(self) -> float:
        """Time without a receipt after which a canary is late, in seconds; infinite without canaries."""
        return math.inf if self.every is None else self.every + self.late_after


class StatusSettings(toml.Table):
    """The relay's state: a page for people, /metrics for Prometheus (deploy/METRICS.md), /healthz and /readyz.
    Nothing can be changed there. Leave the table out if nobody asks.
    """

    examples: ClassVar[Mapping[str, object]] = {
        "listen": "127.0.0.1:9469",
        "certificate": "/etc/qumail-relay/tls/fullchain.pem",
        "key": "/etc/qumail-relay/tls/privkey.pem",
        "token": "/etc/qumail-relay/status.token",
    }

    listen: SocketSetting
    """A port on loopback, or a Unix socket, "unix:/run/qumail-relay/status.sock", for those who may enter its
    directory. Elsewhere than there it needs certificate, key and token.
    """
    certificate: PathSetting | None = None
    """The certificate, with its chain, in PEM: then it speaks TLS alone. SIGHUP reads it again."""
    key: PathSetting | None = None
    """The private key of it, in PEM."""
    token: PathSetting | None = None
    """A file with at least 32 characters that nobody can guess, readable by the relay only ("openssl rand -hex 32"
    writes such a line). Then only requests that carry it are answered: as "Authorization: Bearer ..." or a password of
    any user. SIGHUP reads it again.
    """
    addresses: bool = False
    """Whether the page names senders and recipients of mail that was put aside. Everybody who may see the page reads
    them then.
    """

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
    """The selector, under which the DNS has the public key."""
    key: PathSetting
    """The private key, RSA (2048 bits or more) or Ed25519, in PEM, readable by the relay only."""


class DKIMSettings(toml.Table):
    """Sealed mail is signed for the author's domain as it leaves. The signatures of arriving sealed mail are
    verified before opening (deploy/dkim/README.md). Leave the table out if another program signs.
    """

    removed: ClassVar[dict[str, str]] = {
        "arc_seal": "the relay adds no ARC set; a milter behind it can; remove this line",
        "max_signatures": "the 10 uppermost signatures are verified; remove this line",
        "dns_timeout": "the DNS has 5 seconds for all keys of a mail; remove this line",
    }

    keys: Annotated[tuple[DKIMKeySettings, ...], BeforeValidator(as_tuple)] = ()
    """One table for each key; a domain with several keys gets as many signatures. `qumail-relay identity dkim new`
    makes them, and `identity dkim show` prints what has to stand in the DNS.
    """
    verify: bool = True
    """Verify the DKIM signatures (the 10 uppermost) and the ARC chain of sealed mail that arrives. The results stand in
    Authentication-Results on top of what was opened. Keys that the DNS does not give within 5 seconds are a temperror.
    It changes nothing else: the sealing says whom a mail is from.
    """
    authserv_id: str = Field(default="", max_length=253, pattern=r"^[A-Za-z0-9_.-]*\Z")
    """The name under which results are given; fields from outside that use it are removed. By default site.hostname;
    it must not be that of another program on the way, such as opendkim, whose results would be removed.
    """
    dns_servers: Annotated[tuple[AddressSetting, ...], BeforeValidator(as_tuple)] = ()
    """Name servers to ask (["127.0.0.1:53"]), IP addresses and ports; by default those of /etc/resolv.conf. Best is
    a resolver on this host that validates DNSSEC.
    """


class MailServerSettings(toml.Table):
    """The Postfix beside this relay, as `setup` writes it. A serving relay watches it: if mail may leave past the
    relay or arrive unopened, the alarm `postfix_bypasses` begins. `check` looks at it too. Leave the table out if
    no Postfix hands mail to the relay, or one on another host does.
    """

    examples: ClassVar[Mapping[str, object]] = {"directory": "/etc/postfix"}

    directory: PathSetting
    """The directory of its main.cf and master.cf. The relay's user must be able to read both, and the tables that they
    name (`postfix_unwatched`). A change counts from a restart.
    """
    unlisted: Annotated[tuple[str, ...], BeforeValidator(as_tuple)] = ()
    """Access tables and header checks that nobody can list (LDAP, SQL, socketmap, tcp), as main.cf names them:
    ["mysql:/etc/postfix/clients.cf"]. By naming one you say that no answer of it is FILTER, REDIRECT or BCC, which
    would lead mail past the relay. Every other such table is reported (`postfix_unwatched`).
    """


class LogSettings(toml.Table):
    """Amount and form of the log; message content and keys are never logged."""

    level: Literal["debug", "info", "warning", "error"] = "info"
    """debug, info, warning or error. Content and keys are logged at no level."""
    format: Literal["auto", "console", "json"] = "auto"
    """console (for people), json (for programs), or auto: console on a terminal, else json."""
