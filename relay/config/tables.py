"""The other tables of relay.toml: who we are, where things lie, and what is done with them.
The defaults are those that deploy/relay.toml documents.
"""

from __future__ import annotations

import socket
from typing import Annotated, ClassVar, Literal

from pydantic import AfterValidator, BeforeValidator, Field

from relay import toml
from relay.config.values import (
    SAEID,
    AddressSetting,
    DatabaseSetting,
    Domains,
    PathSetting,
    SizeSetting,
    as_tuple,
    parse_domain,
)


class SiteSettings(toml.Table):
    """Who we are: our mail domains, our SAE ID, the name that we say in SMTP."""

    name: str = Field(min_length=1, max_length=64)
    domains: Domains
    sae_id: SAEID
    hostname: str = Field(default_factory=socket.gethostname, min_length=1, max_length=253)


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
    """How much memory the messages in flight may take in all."""

    removed: ClassVar[dict[str, str]] = {"wait_for_room": "a message waits 30 seconds for room; remove this line"}

    messages_in_flight: SizeSetting = 2**30


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
