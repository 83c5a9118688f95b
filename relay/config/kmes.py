"""The tables of relay.toml for keys: our KMEs, and the peers that share their keys.
Standard: the defaults follow ETSI GS QKD 014 V1.1.1; the text under a setting is its documentation.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from typing import Annotated, ClassVar, Literal, Self

from pydantic import AfterValidator, BeforeValidator, Field, model_validator

from relay.config.values import (
    SAEID,
    Domains,
    PathSetting,
    Seconds,
    SizeSetting,
    as_tuple,
    parse_domain,
)
from relay.files import toml
from relay.levels import AES, FURTHER_KEMS, OTP, SEALING, KMEUse, SealingLevel


def _domain_or_any(value: str) -> str:
    return value if value == "*" else parse_domain(value)


_KEMS = tuple(kem.name for kem in FURTHER_KEMS)


def _further_kem(name: str) -> str:
    if name in _KEMS:
        return name
    close = difflib.get_close_matches(name, _KEMS, n=1)
    hint = f"did you mean {close[0]!r}?" if close else f"known: {', '.join(_KEMS)}"
    raise ValueError(f"{name!r} is no further KEM; {hint}")


def _each_once(names: tuple[str, ...]) -> tuple[str, ...]:
    if len(set(names)) != len(names):
        raise ValueError("a KEM is listed twice; leave one out")
    return names


FurtherKEMs = Annotated[
    tuple[Annotated[str, AfterValidator(_further_kem)], ...], BeforeValidator(as_tuple), AfterValidator(_each_once)
]
"""The names of KEMs, from the innermost layer out."""

ForwardedDomain = Annotated[str, AfterValidator(_domain_or_any)]
"""A domain, or "*" for any."""


class KMEErrorSettings(toml.Table):
    """Overrides the usual meaning of a KME's replies: the first rule that matches decides.

    `code` is the HTTP status; `text` is searched in the message, ignoring case.
    """

    examples: ClassVar[Mapping[str, object]] = {
        "code": 409,
        "text": "no more keys",
        "means": "exhausted",
    }

    call: Literal["any", "status", "enc_keys", "dec_keys"] = "any"
    """The call to which the rule applies."""
    code: int = Field(ge=300, le=599)
    """The HTTP status."""
    text: str = ""
    """Text in the message, ignoring case; empty: any message."""
    means: Literal["unreachable", "busy", "exhausted", "bad_request", "misconfigured", "not_found"]
    """The meaning: unreachable, busy, exhausted, bad_request, misconfigured or not_found."""


def _seconds_or_true(value: object) -> object:
    """Converts `true` to the default, a minute, and `false` to 0."""
    return 60.0 * value if isinstance(value, bool) else value


GOOD_SHARE = 0.8
"""Share of `key_lifetime` in which a key may be used: the peer has to fetch it in the rest."""


class KMESettings(toml.Table):
    """One table for each key-management entity (KME) of this site, with ETSI GS QKD 014 or Cisco SKIP."""

    examples: ClassVar[Mapping[str, object]] = {
        "url": "https://kme.alice.example:8443",
        "one_batch_at_a_time": 60.0,
        "ca": "/etc/qumail-relay/kme/ca.pem",
        "certificate": "/etc/qumail-relay/kme/sae-alice.pem",
        "key": "/etc/qumail-relay/kme/sae-alice.key",
    }
    alternatives: ClassVar[Mapping[str, object]] = {
        "psk_identity": "alice-relay",
        "psk_file": "/etc/qumail-relay/kme/skip.psk",
    }

    removed: ClassVar[dict[str, str]] = {
        "name_check": "with kme_id that name is looked for, without it the host name of the URL; remove this line",
        "tls_minimum": "TLS 1.2 is the least that is spoken, and 1.3 wherever the KME speaks it; remove this line",
        "connect_timeout": "a connection may take half of timeout, and 2 seconds at least; remove this line",
        "min_timeout": "each call may take timeout; remove this line",
        "breaker_failures": "it is 5; remove this line",
        "breaker_delay": "it is 5 times retry_delay; remove this line",
        "breaker_longest": "it is 15 times retry_delay; remove this line",
        "burn_budget": "it is 1000 keys an hour; remove this line",
        "cache_low": "a 32nd of cache_high is kept ready, and more with use; remove this line",
        "cache_most": "no more than cache_high keys are kept ready; remove this line",
        "outage": "how many keys are kept ready follows their use; set cache_high to have more of them",
        "key_margin": "keys are destroyed when a fifth of key_lifetime is left; remove this line",
        "gather": "keys of several mails share a request wherever the KME takes several; remove this line",
        "gather_window": "it is 5 ms; remove this line",
        "lag_waiting": "it is 10 mails; remove this line",
        "keep_alive": "a connection that the KME has closed is not used again; remove this line",
        "requests_at_once": "it is 1: mail that waits at the same time shares a request; remove this line",
        "max_key_per_request": "a limit that the status does not tell is learnt from refusals; remove this line",
        "max_key_size": 'write size_unit = "ignored" for a KME that gives keys of one size only, else remove this line',
    }

    interface: Literal["etsi014", "skip"] = "etsi014"
    """The protocol: etsi014 (ETSI GS QKD 014), or skip (Cisco SKIP)."""
    url: str = Field(pattern=r"^https://[^\s/@]+(/\S*)?\Z")
    """Its address, without user and password; a path before /api/v1/keys is kept."""
    group: str = Field(default="default", min_length=1, max_length=64)
    """KMEs that hand out the same keys form a group, with one name at both sites."""
    use: KMEUse = "both"
    """Use of its keys: "otp", "aes" (with quantum layers around other levels), or "both"; the same for all KMEs of a
    group, at both sites. Mail that uses a key otherwise is put in quarantine. Two groups, one a level, keep forged mail
    of level aes from naming half of a known otp key of 256 bits.
    """

    ca: PathSetting | None = None
    """The CA of the KME's certificate. These PEM files may be renewed while the relay serves, and count once all three
    match. `check` and an alarm report an end within 30 days.
    """
    certificate: PathSetting | None = None
    """The client certificate of the relay."""
    key: PathSetting | None = None
    """The private key of the certificate."""
    psk_identity: str = Field(default="", max_length=128)
    """The name of the pre-shared key at a SKIP key provider (interface = "skip", Python 3.13), with psk_file in place
    of ca, certificate and key.
    """
    psk_file: PathSetting | None = None
    """The pre-shared key, in hexadecimal: 16 to 64 bytes, best 32 (openssl rand -hex 32), readable by the relay only. A
    new key counts at once.
    """
    kme_id: str = Field(default="", max_length=256)
    """The name in its certificate, in place of the URL's host."""
    name_from: Literal["san", "cn", "either"] = "san"
    """Where that name is searched: san (subject alternative names), cn (the common name), either. For
    next-door-key-simulator: kme_id = "1", name_from = "cn".
    """
    calls_us: str = Field(default="", max_length=256)
    """The relay's name in the KME's status (master_SAE_ID), if only spelt otherwise than site.sae_id. Any other name is
    reported. If the status names the peer as here, sae_id or certificate is another SAE's, and no key is drawn.
    """
    tls_ciphers: str = ""
    """OpenSSL's cipher list for outdated KMEs (TLS 1.2 at most, old suites); "" is OpenSSL's default."""

    retry_attempts: int = Field(default=3, ge=0, le=20)
    """Retries after the first attempt."""
    retry_delay: Seconds = 1.0
    """First pause between attempts, in seconds, doubled up to 30. After 5 failures in a row calls stop for 5 times
    this, growing to 15 times. Answers about keys are no failures while the KME answers status calls.
    """
    adaptive: bool = False
    """Whether the pauses follow the KME's success, with jitter, so that several relays do not ask at once."""
    timeout: Seconds = 10.0
    """Timeout of a complete answer, in seconds; then another KME is asked. Fresh keys that come later are burnt. A
    connection has half of this, and 2 seconds at least.
    """
    pool_connections: int = Field(default=5, ge=1, le=1000)
    """Connections opened ahead, once the KME has answered; closed after 55 idle seconds."""
    pool_maxsize: int = Field(default=10, ge=1, le=1000)
    """Maximum number of connections; up to three times as many more wait for late answers."""

    prefetch: bool = True
    """Whether keys are kept ready for each peer; false for a KME whose undelivered keys are few or short-lived."""
    cache_high: int = Field(default=256, ge=0, le=100_000)
    """Maximum number of keys kept ready for a peer. A 32nd is kept at first, more with use: enough for 10 seconds
    without the KME, and no more than the link makes. Idling costs 2,880 keys a day for each KME and peer, on a slow
    link few or none. A stop burns them all.
    """
    key_lifetime: Seconds = 300.0
    """How long the KME keeps a key for the peer, in seconds, at both sites (in a cloud: 600). No key is used in the
    last fifth. A sealed mail that waits longer than this fifth is sealed anew.
    """
    reserve: int = Field(default=0, ge=0, le=10_000_000)
    """Keys reserved from mail of low priority."""
    alarm: Seconds = 3600.0
    """An alarm begins when the keys will be gone within this time, in seconds, at the present rates."""

    one_batch_at_a_time: (
        Annotated[float, BeforeValidator(_seconds_or_true), Field(ge=0, le=86400, strict=False)] | None
    ) = None
    """For KMEs, such as next-door-key-simulator, that drop undelivered keys when more are drawn: mail under these never
    opens. A number: the next batch is drawn so many seconds (true: 60) after the last use of a key. Mail without a key
    waits or is held. false: the maker says that keys are kept.

    Left out, the relay tries the KME with two to ten keys before its first draw, and after 30 days (also: `keys trial`,
    `check --trial-keys`). If keys were dropped, the pause is 60 seconds, less if the status shows that the peer has
    fetched all. If the KME could not be tried, the pause is 5 seconds. A KME that drops keys should be alone in its
    group, for one relay with one worker.
    """
    lag_patience: Annotated[float, Field(ge=0, le=3600, strict=False)] = 5.0
    """Seconds for which keys still unknown to the KME are asked for before their mail is held; in a group the largest
    counts. At most ten mails wait at once: others are held at once. Mail of more than 2 MiB does not wait.
    """

    method: Literal["POST", "GET"] = "POST"
    """POST, or GET for KMEs without POST."""
    size_unit: Literal["bits", "bytes", "ignored"] = "bits"
    """The unit of key sizes at the KME: bits, bytes, or ignored if all its keys have one size."""
    integer_key_ids: bool = False
    """key_IDs as numbers, for KMEs that refuse strings. Without it fresh keys with numbers are refused."""
    errors: Annotated[tuple[KMEErrorSettings, ...], BeforeValidator(as_tuple)] = ()
    """The meaning of unusual error replies: the first rule that matches decides. A KME with its own words for an
    unknown key needs a rule for dec_keys that means not_found. Else such mail is held as if the KME had failed.
    """

    @property
    def usable_for(self) -> float:
        """Time from drawing in which a key may be used, in seconds."""
        return self.key_lifetime * GOOD_SHARE

    @property
    def left_for_peer(self) -> float:
        """Minimum time for the peer to fetch a key after its use, in seconds."""
        return self.key_lifetime - self.usable_for

    @model_validator(mode="after")
    def _authenticates_both_sides(self) -> Self:
        """Requires credentials of both sides (GS QKD 014, 5.1, and SKIP)."""
        files = {"ca": self.ca, "certificate": self.certificate, "key": self.key}
        missing = [name for name, path in files.items() if path is None]
        if self.psk_file is None:
            if self.psk_identity:
                raise ValueError("psk_identity is set without psk_file")
            if missing:
                raise ValueError(f"{', '.join(missing)}: needed, since KME and relay show each other certificates")
            return self
        if self.interface != "skip":
            raise ValueError('psk_file belongs to interface = "skip": ETSI GS QKD 014 wants certificates')
        if not self.psk_identity:
            raise ValueError("psk_identity: needed beside psk_file")
        if len(missing) < len(files) or self.kme_id:
            raise ValueError("psk_file counts alone: leave out ca, certificate, key and kme_id")
        return self


class PeerSettings(toml.Table):
    """One table for each site that we seal for. A peer with an imported document needs only the differences, for
    instance forwards. A reload takes edits up.
    """

    examples: ClassVar[Mapping[str, object]] = {
        "domains": ["bob.example"],
        "sae_id": "sae-bob",
    }
    alternatives: ClassVar[Mapping[str, object]] = {"accept": [OTP.name, AES.name]}

    domains: Domains = ()
    """Its mail domains; by default those of its document."""
    sae_id: SAEID = ""
    """The SAE ID of its relay; by default that of its document."""
    kme_groups: Annotated[tuple[str, ...], BeforeValidator(as_tuple)] = ()
    """The KME groups shared with the peer, most preferred first. By default those of its document that we have; without
    documents, with one peer and one group, that group. []: no quantum keys.
    """
    accept: Annotated[tuple[SealingLevel, ...], Field(min_length=1), BeforeValidator(as_tuple)] = SEALING
    """The levels at which the peer may seal, by the innermost layer; other mail is put in quarantine. By
    default all.
    """
    further_kems: FurtherKEMs = ()
    """KEMs that each add a layer around level pqc: "hqc-256", "frodokem-1344-shake" (BSI TR-02102 recommends FrodoKEM),
    "classic-mceliece-6688128". They need liboqs at both sites and keys at the peer's (`identity new --kem`); else its
    mail cannot have level pqc.
    """
    forwards: Annotated[tuple[ForwardedDomain, ...], BeforeValidator(as_tuple)] = ()
    """Domains beside the peer's own whose mail its users or lists pass on to you, sealed, by SMTP sender; "*" is any.
    The null sender is always allowed. The peer writes the same in `takes_from`.
    """
    takes_from: Annotated[tuple[ForwardedDomain, ...], BeforeValidator(as_tuple)] = ()
    """Domains beside your own whose senders this peer takes from you, as in its `forwards` for you; "*" is any. Mail
    from other senders is held or refused by policy.
    """
    key_max_messages: int = Field(default=1, ge=1, le=1000)
    """Messages that one quantum key wraps at level aes, 1000 at most, and that one of theirs may open here: the same at
    both sites.
    """
    key_max_bytes: SizeSetting = 64 * 2**20
    """Maximum number of bytes that one quantum key wraps at level aes."""
    key_max_age: Seconds = 3600.0
    """Maximum time of use of one quantum key at level aes, in seconds; never longer than key_lifetime."""
