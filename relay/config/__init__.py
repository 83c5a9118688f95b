"""relay.toml as one immutable, validated value; deploy/SETTINGS.md, generated from it, documents every setting.
Standard: TOML 1.0; a file with any unknown, missing or invalid setting is refused.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, ClassVar

from pydantic import Field

from relay.config.checks import faults
from relay.config.kmes import KMESettings, PeerSettings
from relay.config.ldap import LDAPSettings
from relay.config.listeners import (
    MAX_BOUNCE,
    DirectionSettings,
    IMAPSettings,
    IncomingSettings,
    ListenerSettings,
    OutgoingSettings,
    SubmissionSettings,
)
from relay.config.smime import ALL_PARTNERS, SMIMEKeySettings, SMIMESettings
from relay.config.tables import (
    DEFAULT_TAG_SEPARATORS,
    AlarmSettings,
    AuditSettings,
    CanarySettings,
    DKIMKeySettings,
    DKIMSettings,
    IdentitySettings,
    LimitSettings,
    LogSettings,
    MailServerSettings,
    OTPSettings,
    PolicySettings,
    QuarantineSettings,
    SiteSettings,
    StatusSettings,
    StoreSettings,
)
from relay.config.values import (
    Mailboxes,
    MailboxSetting,
    MailDomain,
    Network,
    Server,
    SizeSetting,
    TCPAddress,
    parse_address,
    parse_next_hop,
    parse_size,
)
from relay.errors import ConfigError
from relay.files import toml
from relay.files.credentials import credential_name

__all__ = [
    "ALL_PARTNERS",
    "DEFAULT_TAG_SEPARATORS",
    "MAX_BOUNCE",
    "UNFINISHED",
    "AlarmSettings",
    "CanarySettings",
    "Config",
    "DKIMKeySettings",
    "DKIMSettings",
    "DirectionSettings",
    "IMAPSettings",
    "IdentitySettings",
    "KMESettings",
    "LDAPSettings",
    "ListenerSettings",
    "LogSettings",
    "MailDomain",
    "Network",
    "OutgoingSettings",
    "PeerSettings",
    "SMIMEKeySettings",
    "SMIMESettings",
    "Server",
    "SiteSettings",
    "SizeSetting",
    "StatusSettings",
    "SubmissionSettings",
    "TCPAddress",
    "load_config",
    "parse_address",
    "parse_next_hop",
    "parse_size",
]

UNFINISHED = "backup.unfinished"
"""The file in a copy of a relay's state that `qumail-relay backup` has not finished."""


class Config(toml.Table):
    """The whole of relay.toml."""

    removed: ClassVar[dict[str, str]] = {"ledger": "it is a part of the audit record: write [audit], with a directory"}
    examples: ClassVar[Mapping[str, object]] = {
        "aliases": {"info@alice.example": ["ann@alice.example", "anton@alice.example"]}
    }

    site: SiteSettings
    outgoing: OutgoingSettings | None = None
    submission: SubmissionSettings | None = None
    incoming: IncomingSettings | None = None
    policies: PolicySettings
    store: StoreSettings
    identity: IdentitySettings | None = None
    smime: SMIMESettings | None = None
    kmes: dict[str, KMESettings] = Field(default_factory=dict)
    peers: dict[str, PeerSettings] = Field(default_factory=dict)
    aliases: dict[MailboxSetting, Mailboxes] = Field(default_factory=dict)
    """Addresses that a mail server rewrites before the relay sees the mail (virtual aliases, a catch-all, a former
    address), with the new recipients. Without a line here, such sealed mail is put in quarantine as "redirected". No
    patterns, no alias of an alias.
    """
    otp: OTPSettings = OTPSettings()
    audit: AuditSettings = AuditSettings()
    quarantine: QuarantineSettings = QuarantineSettings()
    limits: LimitSettings = LimitSettings()
    imap: dict[Annotated[str, Field(pattern=r"^[\w-]{1,64}\Z")], IMAPSettings] = Field(default_factory=dict)
    dkim: DKIMSettings | None = None
    ldap: LDAPSettings | None = None
    postfix: MailServerSettings | None = None
    log: LogSettings = LogSettings()
    status: StatusSettings | None = None
    alarms: AlarmSettings = AlarmSettings()
    canary: CanarySettings = CanarySettings()

    @property
    def audit_directory(self) -> Path:
        """The directory of the audit record; by default that of the relay's own files."""
        return self.audit.directory or self.own_directory / "audit"

    @property
    def certificates_directory(self) -> Path:
        """The directory of other people's and gateways' S/MIME certificates."""
        configured = self.smime.certificates if self.smime is not None else None
        return configured or self.policies.directory.parent / "certificates"

    @property
    def restore_check_file(self) -> Path:
        """The file that tells a restored store (relay/store/restore_check.py), in the directory of own files.

        Where nothing can be written there, it is in the state directory.
        """
        beside = self.own_directory / "restore.check"
        kept = beside.exists() or os.access(beside.parent, os.W_OK)
        return beside if kept else self.state_directory / beside.name

    @property
    def has_served(self) -> bool:
        """Whether there are files that a serving relay writes (state, audit record), or the one of a cut-off copy."""
        files = (self.alarms_file, self.keys_file, self.state_directory / UNFINISHED)
        state = any(each.is_file() for each in files)
        return state or any(self.audit_directory.glob("*.jsonl*"))

    @property
    def keys_file(self) -> Path:
        """The file for the state of the serving relay's keys; it contains no key."""
        return self.own_directory / "keys.json"

    @property
    def held_file(self) -> Path:
        """The file that lists waiting mail, for the next start."""
        return self.own_directory / "held.json"

    @property
    def former_peers_file(self) -> Path:
        """The file with the former owners of peers' domains."""
        return self.own_directory / "former_peers.json"

    @property
    def groups_fetched_file(self) -> Path:
        """The file that `groups fetch` writes anew when it has succeeded."""
        return self.own_directory / "groups.fetched"

    @property
    def offered_certificates_directory(self) -> Path:
        """The directory of certificates that came with signed mail, until the administrator accepts them."""
        return self.own_directory / "offered-certificates"

    @property
    def alarms_file(self) -> Path:
        """The file with the current alarms of the serving relay."""
        return self.own_directory / "alarms.json"

    @property
    def state_directory(self) -> Path:
        """The directory of spools: `store.directory`, else that of a SQLite store, else systemd's StateDirectory, else
        that of the site secret.
        """
        if self.store.directory is not None:
            return self.store.directory
        if isinstance(self.store.database, Path):
            return self.store.database.parent
        of_systemd = os.environ.get("STATE_DIRECTORY", "").split(":")[0]
        return Path(of_systemd) if of_systemd else self.store.secret.parent

    @property
    def own_directory(self) -> Path:
        """The directory of what the relay notes for itself: `store.directory`, else that of the site secret.

        Nothing can be written beside a credential; then it is that of the spools.
        """
        if self.store.directory is not None or credential_name(self.store.secret):
            return self.state_directory
        return self.store.secret.parent

    @property
    def own_paths(self) -> tuple[Path, ...]:
        """The paths that the relay writes; their owner is the relay's user."""
        paths = [self.own_directory, self.state_directory, self.audit_directory]
        if not credential_name(self.store.secret):
            paths.append(self.store.secret)
        if isinstance(self.store.database, Path):
            paths.append(self.store.database)
        if self.identity is not None:
            paths += [self.identity.directory, self.identity.peers_directory]
        if self.policies.shadow_record is not None:
            paths.append(self.policies.shadow_record)
        return tuple(paths)

    @property
    def all_in_clear(self) -> str:
        """Why all outgoing mail leaves unsealed, whatever the policy files say; "" if it does not."""
        if self.outgoing is None or not self.policies.shadow:
            return ""
        return "shadow mode is on (policies.shadow in relay.toml): all outgoing mail leaves unsealed"

    @property
    def opens_mail(self) -> bool:
        """Whether sealed mail for this site is opened here: what arrives, or what lies in mailboxes."""
        return self.incoming is not None or bool(self.imap)

    @property
    def max_bounce(self) -> int:
        """The largest message from the null sender, in bytes, that gets a one-time pad."""
        return self.outgoing.max_bounce if self.outgoing is not None else MAX_BOUNCE

    def peer_by_sae(self, sae_id: str) -> tuple[str, PeerSettings] | None:
        """Name and settings of the peer with this SAE ID, or None."""
        return next(((name, peer) for name, peer in self.peers.items() if peer.sae_id == sae_id), None)

    def peer_by_domain(self, domain: str) -> tuple[str, PeerSettings] | None:
        """Name and settings of the peer that owns a mail domain (lower case), or None."""
        return next(((name, peer) for name, peer in self.peers.items() if domain in peer.domains), None)

    def serves(self, group: str, use: str) -> bool:
        """Whether keys of this KME group may be used for pads ("otp") or as single keys ("aes")."""
        return any(kme.use in (use, "both") for kme in self.kmes.values() if kme.group == group)

    @property
    def sole_kme_group(self) -> str | None:
        """The group of all our KMEs, if there is only one, with one peer: then it need not be named."""
        groups = {kme.group for kme in self.kmes.values()}
        return groups.pop() if len(groups) == 1 and len(self.peers) == 1 else None

    @property
    def peers_without_keys(self) -> dict[str, str]:
        """The peers without quantum keys although we have KMEs and it is not explicit, each with the remedy.

        For a configuration with its peers' documents and the sole group applied.
        """
        groups = ", ".join(sorted({kme.group for kme in self.kmes.values()}))
        return {
            name: f"no KME group is shared with it, so that NO QUANTUM KEYS are used; our groups: {groups}; write "
            f"kme_groups in [peers.{name}], or kme_groups = [] if that is meant"
            for name, peer in self.peers.items()
            if self.kmes and not peer.kme_groups and "kme_groups" not in peer.model_fields_set
        }

    @property
    def peer_domains(self) -> dict[str, tuple[str, ...]]:
        """Each peer's name with its mail domains."""
        return {name: peer.domains for name, peer in self.peers.items()}


def load_config(path: Path, text: str | None = None) -> Config:
    """Reads relay.toml; paths in it are relative to its directory. Raises ConfigError.

    A given `text` is parsed instead of the file.
    """
    text = toml.read(path) if text is None else text
    context: dict[str, Any] = {"base": path.absolute().parent}
    config = toml.parse(text, Config, source=str(path), context=context)
    if fault_lines := [f"{path}:{toml.line_of(text, place) or 1}: {fault}" for place, fault in faults(config)]:
        raise ConfigError(fault_lines)
    return config
