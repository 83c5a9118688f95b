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
    """Text that the message must contain, ignoring case; empty: any message."""
    means: Literal["unreachable", "busy", "exhausted", "bad_request", "misconfigured", "not_found"]
    """The meaning: unreachable, busy, exhausted, bad_request, misconfigured or not_found."""


def _seconds_or_true(value: object) -> object:
    """Converts `true` to the default, a minute, and `false` to 0."""
    return 60.0 * value if isinstance(value, bool) else value


GOOD_SHARE = 0.8
"""Share of `key_lifetime` in which a key may be used: the peer has to fetch it in the rest."""


class KMESettings(toml.Table):
    """One table for each key-management entity (KME) that this relay uses. The protocol is ETSI GS QKD 014 or
    Cisco SKIP; the defaults follow the standard.
    """

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
    """Its address, without user and password; a path in front of /api/v1/keys is kept."""
    group: str = Field(default="default", min_length=1, max_length=64)
    """KMEs that hand out the same keys form a group; the group's name must be the same at the peer."""
    use: KMEUse = "both"
    """The use of its keys: "otp", "aes" (quantum layers around other levels too), or "both". All KMEs of a group
    must have the same value, also at the peer. Mail that uses a key for something else is put in quarantine. With
    "both" and keys of 256 bits, somebody who knows a mail may know half of a key of level otp. They could name it in a
    forged mail of level aes. The other 128 bits protect against that. Two groups, one for each level, avoid it.
    """

    ca: PathSetting | None = None
    """The CA of the KME's certificate. PEM files, which may be renewed while the relay serves: they are used once
    all three match. What ends within 30 days is an alarm, and reported by check.
    """
    certificate: PathSetting | None = None
    """The client certificate of the relay."""
    key: PathSetting | None = None
    """The private key of the certificate."""
    psk_identity: str = Field(default="", max_length=128)
    """The name of the pre-shared key in psk_file at a SKIP key provider. The two replace ca, certificate and key, with
    interface = "skip" and Python 3.13. Routers use SKIP in this way.
    """
    psk_file: PathSetting | None = None
    """The pre-shared key, in hexadecimal: 16 to 64 bytes, best 32 (openssl rand -hex 32). Only the relay may read it. A
    new key is used at once.
    """
    kme_id: str = Field(default="", max_length=256)
    """The name that its certificate must have in place of the URL's host."""
    name_from: Literal["san", "cn", "either"] = "san"
    """Where names are searched: san (a subject alternative name), cn (the common name), either. The certificates
    of next-door-key-simulator have the KME ID as their common name and nothing else: kme_id = "1", name_from =
    "cn".
    """
    calls_us: str = Field(default="", max_length=256)
    """The name of this relay in its status (master_SAE_ID), if that is only another spelling of site.sae_id. A KME that
    names the peer as we do, but us differently, takes us for another SAE. No peer could open mail under its keys, so
    none is drawn. The cause is a typing error in sae_id, or certificate and key of another SAE.
    """
    tls_ciphers: str = ""
    """OpenSSL's cipher list for KMEs with TLS 1.2 at most and old suites, such as outdated appliances. "" is OpenSSL's
    default.
    """

    retry_attempts: int = Field(default=3, ge=0, le=20)
    """Retries after the first attempt."""
    retry_delay: Seconds = 1.0
    """The first pause between two attempts, in seconds; each further one is twice as long, up to 30. After 5
    failures in a row a call is not made for 5 times as long, doubling up to 15 times. Answers about keys are no
    failures, whatever their code, as long as the KME answers status calls.
    """
    adaptive: bool = False
    """Whether the pauses follow the KME: shorter while most attempts succeed, longer while few do. They then have
    jitter, so that several relays do not ask at once.
    """
    timeout: Seconds = 10.0
    """Timeout of one complete answer, in seconds, for each call. Fresh keys that come later are burnt, so set more for
    a slower KME. If there is another KME, it is asked then. A connection, with its TLS handshake, may take half of the
    timeout, and 2 seconds at least.
    """
    pool_connections: int = Field(default=5, ge=1, le=1000)
    """Connections that are opened ahead, once the KME has answered, and kept. After 55 idle seconds one is closed."""
    pool_maxsize: int = Field(default=10, ge=1, le=1000)
    """The maximum number of connections. Up to three times as many more wait for late answers."""

    prefetch: bool = True
    """Whether keys are kept ready for each peer: false for a KME whose undelivered keys are few or short-lived."""
    cache_high: int = Field(default=256, ge=0, le=100_000)
    """How many keys are kept ready for a peer at most. It begins with a 32nd of that. More are kept as use grows: what
    the measured use and 10 seconds without the KME need, and no more than the link makes. On a slow link an idle relay
    keeps a few keys ready, or none. On a fast one a day of idling costs 2,880 keys (92 KB) for each KME and peer as it
    stands here. A stop burns what is ready.
    """
    key_lifetime: Seconds = 300.0
    """How long the KME keeps a key for the peer, at both sites (a KME in the cloud: 600 seconds). A key is not used
    when a fifth of that is left. A sealed mail that waits here longer than that fifth is sealed anew.
    """
    reserve: int = Field(default=0, ge=0, le=10_000_000)
    """Keys reserved from mail of low priority."""
    alarm: Seconds = 3600.0
    """An alarm is raised when the keys will be gone within this time at the present rates."""

    one_batch_at_a_time: (
        Annotated[float, BeforeValidator(_seconds_or_true), Field(ge=0, le=86400, strict=False)] | None
    ) = None
    """Some KMEs, next-door-key-simulator for one, drop keys that the peer has not fetched yet when more are asked
    for. Mail under these can never be opened. A relay tries its KME with two to ten keys at its first start, and
    remembers for 30 days what came of it. `check --trial-keys` and `keys trial` try it too. From a KME that drops keys,
    one batch is drawn at a time. The next one is drawn 60 seconds after the last key of the previous one was used. It
    is drawn earlier if the KME's status shows that the peer has fetched them. Until then further mail is held. Where
    nothing can be found out, the next batch is drawn 5 seconds after the last use. Set the time that a mail may take
    to the peer, in seconds (true: 60). Set false where the maker says that the KME keeps undelivered keys. Then it is
    not tried. With a KME that drops keys, have one KME in the group and one relay with one worker.
    """
    lag_patience: Annotated[float, Field(ge=0, le=3600, strict=False)] = 5.0
    """How long keys that the KME does not know yet are asked for, from the first attempt on, before the mail is held.
    It is for KMEs that bring a key to the other site some seconds after they gave it out here. The mail server tries it
    again anyway. Ten mails wait for such keys at once. Beyond that, a new message takes the place of the one that has
    waited longest. Forged mail may name keys that never come, and must not take all connections that Postfix makes
    (20). A mail of more than 2 MiB does not wait.
    """

    method: Literal["POST", "GET"] = "POST"
    """POST, or GET for KMEs without POST."""
    size_unit: Literal["bits", "bytes", "ignored"] = "bits"
    """The unit of key sizes at the KME: bits, bytes, or ignored if all its keys have one size.
    """
    integer_key_ids: bool = False
    """key_IDs as numbers, for KMEs that refuse strings. Without it fresh keys with numbers are refused."""
    errors: Annotated[tuple[KMEErrorSettings, ...], BeforeValidator(as_tuple)] = ()
    """The meaning of its error replies, if it is unusual and its status does not show it: the first rule that matches
    decides. A KME that says of an unknown key something else than the standard needs a rule for dec_keys that means
    not_found. Without it, mail under such keys is held as if the KME had failed.
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
    """One table for each site that we seal for. A peer with an imported document needs none; its table has only
    differences from the document, for instance forwards. Edits take effect when the relay is reloaded.
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
    """The KME groups whose keys both sites share, most preferred first. By default those that the peer's document
    names and we have, and with one peer, one group and no document that group. An empty list: no quantum keys are
    used with this peer, and check accepts that.
    """
    accept: Annotated[tuple[SealingLevel, ...], Field(min_length=1), BeforeValidator(as_tuple)] = SEALING
    """The levels at which the peer may seal, by the innermost layer: mail at another one is put in quarantine. By
    default all levels; list those that you want to rely on.
    """
    further_kems: FurtherKEMs = ()
    """KEMs that each put one more layer around level pqc: "hqc-256", "frodokem-1344-shake" (BSI TR-02102 recommends
    FrodoKEM), "classic-mceliece-6688128". They need liboqs at both sites, and keys at the peer's (`identity new
    --kem`). Without these its mail cannot have level pqc.
    """
    forwards: Annotated[tuple[ForwardedDomain, ...], BeforeValidator(as_tuple)] = ()
    """The sealed SMTP sender must be of the peer's domains, or none (a bounce), or of one of these domains. They are
    those whose mail users or lists at the peer pass on to you; "*" is any. The peer writes the same in its
    `takes_from`.
    """
    takes_from: Annotated[tuple[ForwardedDomain, ...], BeforeValidator(as_tuple)] = ()
    """Domains beside your own from whose senders this peer takes what you seal: those that it has in `forwards` for
    you; "*": any. Mail from other senders, as of users who forward theirs, is not sealed for it: it would end in its
    quarantine. It is held or refused instead, as policy says.
    """
    key_max_messages: int = Field(default=1, ge=1, le=1000)
    """At level aes the number of messages that one quantum key wraps, 1000 at most. As many messages may one key of
    theirs open here, too: set the same number at both sites.
    """
    key_max_bytes: SizeSetting = 64 * 2**20
    """Maximum number of bytes that one quantum key wraps at level aes."""
    key_max_age: Seconds = 3600.0
    """Maximum time for which one quantum key is used at level aes, in seconds. It is no longer used once its KME need
    not keep it for the peer (key_lifetime). A mail that is sealed later could not be opened.
    """
