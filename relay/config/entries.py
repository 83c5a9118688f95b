"""Where mail comes in and goes on: [outgoing], [incoming], [submission] and [imap.*].
The defaults are those that deploy/relay.toml documents.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, ClassVar, Literal, Self

from pydantic import BeforeValidator, Field, model_validator

from relay import toml
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

MAX_BOUNCE = 32 * 2**10
"""Octets: room for a notice and a long header, and no more key than that for what an outsider may have caused."""


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
