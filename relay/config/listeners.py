"""The tables of relay.toml for mail paths: directions, submission, mailboxes.
Standard: the text under a setting is its documentation (reference.py), with its default.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, ClassVar, Literal, Self

from pydantic import BeforeValidator, Field, model_validator

from relay.config.ports import INCOMING, OUTGOING, local
from relay.config.values import (
    AddressSetting,
    CASetting,
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
    parse_mailbox,
    parse_networks,
)
from relay.files import toml

LISTENERS = {
    "smtp": ("outgoing.listen", "outgoing.lmtp", "incoming.listen", "incoming.lmtp", "submission"),
    "milter": ("outgoing.milter", "incoming.milter"),
    "imap": ("imap",),
}
"""The listeners: each folder, or single file, of relay/entry, and the settings that enable it."""
MAX_BOUNCE = 32 * 2**10
"""Default size limit of a bounce that gets a one-time pad, in bytes: enough for a notice and a long header."""


def listening_settings(direction: str) -> tuple[str, ...]:
    """The settings of [outgoing] or [incoming] that enable listeners: `listen`, `lmtp` and so on."""
    named = (setting.partition(".") for settings in LISTENERS.values() for setting in settings)
    return tuple(name for table, _, name in named if table == direction and name)


class ListenerSettings(toml.Table):
    """Limits of a listener for its clients."""

    max_message_size: SizeSetting = 50 * 2**20
    """The largest accepted message, before sealing, which adds about a third."""
    max_recipients: int = Field(default=1000, ge=1, le=10_000)
    """Recipients in one transaction, 10000 at most; further ones are answered 452, try again later."""
    timeout: Seconds = 300.0
    """Seconds after which an idle connection is closed; also the timeout of the next hop's replies. The reply to the
    content has twice as long, a connection a tenth.
    """
    connections: int = Field(default=1000, ge=1, le=100_000)
    """Concurrent connections to one address, in total."""
    connections_per_client: int = Field(default=50, ge=1, le=100_000)
    """Concurrent connections to one address from one client (IPv6: from one /64)."""
    trusted: Networks = parse_networks(["127.0.0.0/8", "::1/128"])
    """Networks of mail servers that may report their own client (XFORWARD) and are exempt from
    connections_per_client.
    """


class DirectionSettings(ListenerSettings):
    """One direction through the relay: its listeners and its next hop."""

    listen: AddressSetting | None = None
    """Listening address for SMTP. At least one of the three is needed. Keep all on loopback or behind a firewall: any
    client that reaches them can send as anybody.
    """
    lmtp: AddressSetting | None = None
    """Listening address for LMTP, which answers for each recipient: for Postfix (deploy/postfix)."""
    milter: SocketSetting | None = None
    """Listening address for the milter protocol, also a Unix socket: "unix:/run/qumail-relay/milter.sock"."""
    next_hop: NextHops
    """The server that gets the processed mail: with Postfix the re-injection port (deploy/postfix).

      "host:port" or "smtp://host:port"              an SMTP server
      "lmtp://host:port" or "lmtp:/path/to/socket"   an LMTP server, which answers for each recipient
      "mx:example.org" or "mx:example.org:port"      the mail exchangers of a domain, from the DNS

    Or a list of these: the next is tried if one is unreachable, does not greet, or answers 4xx before the end of the
    content. Later failures hold the mail. One that failed is tried last for a minute.

    The relay sends no DSN of its own, and passes NOTIFY, ORCPT, RET and ENVID on if the next hop has DSN. It refuses
    mail that the next hop cannot take: 8BITMIME (5.6.3), SIZE (5.3.4), SMTPUTF8 (5.6.7).
    """
    next_hop_tls: Literal["auto", "none", "opportunistic", "required"] = "auto"
    """TLS 1.2 or later on the way to the next hop. opportunistic: STARTTLS if offered, certificate unchecked. required:
    only with a certificate by next_hop_ca for the server's name. auto: none on loopback and Unix sockets, else
    opportunistic.
    """
    next_hop_ca: CASetting = "system"
    """The CAs for required: a PEM file, or those of the system."""
    next_hop_tls_name: str = Field(default="", max_length=253)
    """The name in the certificate for required; by default the server's. Set it with "mx:", whose names come from the
    DNS.
    """
    next_hop_connections: int = Field(default=20, ge=0, le=10_000)
    """Idle connections kept to each server, for 10 seconds; 0: a connection for each mail."""
    max_hops: int = Field(default=50, ge=5, le=1000)
    """Mail with more Received fields is in a loop, and refused."""

    @model_validator(mode="after")
    def _next_hop_can_be_trusted_as_wanted(self) -> Self:
        required = self.next_hop_tls == "required"
        if required and any(isinstance(hop, Server) and isinstance(hop.address, Path) for hop in self.next_hop):
            raise ValueError("next_hop_tls is required, which a Unix socket does not have")
        if not required and (self.next_hop_ca != "system" or self.next_hop_tls_name):
            raise ValueError('next_hop_ca and next_hop_tls_name check nothing without next_hop_tls = "required"')
        return self


class OutgoingSettings(DirectionSettings):
    """Mail that leaves the site: taken from your mail server or from programs, sealed, handed to the next hop."""

    examples: ClassVar[Mapping[str, object]] = {
        "lmtp": str(local(OUTGOING.lmtp)),
        "listen": str(local(OUTGOING.listen)),
        "milter": str(local(OUTGOING.milter)),
        "next_hop": str(local(OUTGOING.back)),
    }

    milter_split: bool = True
    """A milter has one message for all recipients. true: recipients who need other protection get theirs through the
    next hop. false: such a mail is held.
    """
    max_bounce: SizeSetting = MAX_BOUNCE
    """The largest mail from the null sender that may spend a one-time pad, since outsiders can cause such mail. A
    larger one goes by the next level of its policy, else is refused.
    """


class IncomingSettings(DirectionSettings):
    """Mail that arrives from peers: opened if sealed for us, else passed on unchanged. All other settings are as in
    [outgoing].
    """

    examples: ClassVar[Mapping[str, object]] = {
        "lmtp": str(local(INCOMING.lmtp)),
        "listen": str(local(INCOMING.listen)),
        "milter": str(local(INCOMING.milter)),
        "next_hop": str(local(INCOMING.back)),
    }

    max_message_size: SizeSetting = 75 * 2**20
    """A sealed message is up to 1.4 times as large as the peer took it."""
    max_hops: int = Field(default=60, ge=5, le=1000)
    """Ten more than in [outgoing], for hops since the peer took the message."""


class SubmissionSettings(ListenerSettings):
    """Submission by mail programs and applications, always with TLS, name and password. The mail goes the way of
    [outgoing], whose addresses may then be left out.
    """

    examples: ClassVar[Mapping[str, object]] = {
        "listen": "0.0.0.0:587",
        "listen_tls": "0.0.0.0:465",
        "certificate": "/etc/qumail-relay/tls/fullchain.pem",
        "key": "/etc/qumail-relay/tls/privkey.pem",
        "users": "/var/lib/qumail-relay/users",
        "dovecot_auth": "/run/dovecot/auth-client",
    }

    removed: ClassVar[dict[str, str]] = {
        "failed_login_delay": "a failed login is answered after 2 seconds; remove this line"
    }

    listen: AddressSetting | None = None
    """The port with STARTTLS (587). systemd opens ports below 1024 (`setup --hold-ports`)."""
    listen_tls: AddressSetting | None = None
    """The port with TLS from the start (465, preferred by RFC 8314); one of the two will do."""
    certificate: PathSetting
    """The certificate, with its chain, in PEM. A renewed one counts once it and the key fit together."""
    key: PathSetting
    """Its private key, in PEM."""
    users: PathSetting | None = None
    """The password file, readable by the relay only, in a directory of its own, written by `qumail-relay users add`.
    Each line is a user, name:argon2 hash:addresses, and counts at once. Addresses to send from: user@domain, @domain, *
    for any, <> for receipts.
    """
    dovecot_auth: PathSetting | None = None
    """Or the Unix socket of Dovecot's auth service, which then checks all passwords. A user may send from their own
    name (without a domain: at any of site.domains), or as the password file says.
    """
    check_from: bool = True
    """Whether From, Sender, Resent-From and Resent-Sender are limited to the user's addresses as well."""
    mails_per_user: int = Field(default=500, ge=1, le=10_000_000)
    """Mails of a user in an hour; more are answered 450, try again later. Relays that share a store count together,
    also over restarts.
    """
    recipients_per_user: int = Field(default=2000, ge=1, le=10_000_000)
    """The same for recipients."""
    mails_per_client: int = Field(default=2000, ge=1, le=10_000_000)
    """Mails from one client address (of IPv6: a /64) in an hour."""
    recipients_per_client: int = Field(default=10_000, ge=1, le=10_000_000)
    """The same for recipients."""
    failed_logins: int = Field(default=10, ge=1, le=1_000_000)
    """Failed logins in an hour, of a client address and of a user's name, before no more are checked. Addresses where a
    user has logged in before count apart. A failure is answered after 2 seconds.
    """


class IMAPSettings(toml.Table):
    """One table for each mailbox that this relay reaches only by IMAP, and whose sealed mail is opened there
    (deploy/imap/README.md). Log and alarms use the table's name.
    """

    examples: ClassVar[Mapping[str, object]] = {
        "host": "imap.provider.example",
        "ca": "/etc/ssl/certs/ca-certificates.crt",
        "user": "ben@bob.example",
        "password_file": "/etc/qumail-relay/imap-ben.password",
    }

    removed: ClassVar[dict[str, str]] = {
        "retry": "a message that may be opened later is tried again after 30 s, then less often; remove this line",
        "retry_longest": "what may be opened later is tried at least once an hour; remove this line",
        "retry_refused": "a message that waiting will not help is tried once a day; remove this line",
    }

    host: str = Field(pattern=r"^[^\s/:]+\Z", max_length=253)
    """The provider's server. TLS is always used and its certificate verified."""
    port: int = Field(default=993, ge=1, le=65535)
    """993, or 143 with STARTTLS."""
    tls: Literal["implicit", "starttls"] = "implicit"
    """TLS from the start ("implicit"), or after STARTTLS ("starttls")."""
    ca: PathSetting | None = None
    """The CA certificates to trust; by default those of the system."""
    user: Printable
    """The login name."""
    password_file: PathSetting | None = None
    """The file with the password, readable by the relay only. Set just one of password_file, password_credential and
    token_command.
    """
    password_credential: str = Field(default="", pattern=r"^[\w.@-]{0,128}\Z")
    """Or the name of a systemd credential with the password (LoadCredential=)."""
    token_command: Annotated[tuple[str, ...], BeforeValidator(as_tuple)] = ()
    """Or the command, as a list of words, that writes an XOAUTH2 access token."""
    addresses: Annotated[tuple[MailboxSetting, ...], BeforeValidator(as_tuple)] = ()
    """The addresses whose mail this mailbox gets, as ["ben@bob.example", "sales@bob.example"]; sealed mail for others
    stays sealed. By default the user, if that is an address.
    """
    folders: Annotated[tuple[Printable, ...], BeforeValidator(as_tuple), Field(min_length=1)] = ("INBOX",)
    """The folders to watch, each over its own connection."""
    after: Literal["move", "flag", "delete"] = "move"
    """The end of a sealed message once the server has confirmed the original: moved to sealed_folder (move), flagged
    $QuMailOpened (flag), or deleted (delete).
    """
    sealed_folder: Printable = "Sealed"
    """The folder for opened sealed messages, with or without the server's prefix for all folders (INBOX.)."""
    idle: bool = True
    """Wait for the server's notification of new mail (IDLE), if supported."""
    poll: Seconds = 60.0
    """Poll interval for new mail, in seconds, beside IDLE."""
    timeout: Seconds = 60.0
    """Timeout of one reply, in seconds."""
    max_message_size: SizeSetting = 75 * 2**20
    """A larger message is left sealed."""

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
