"""Whose keys we use and with whom we share them: [kmes.*] and [peers.*].
Standard: ETSI GS QKD 014 V1.1.1; what the defaults do is the standard, and each setting is for a KME that differs.
"""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal, get_args

from pydantic import AfterValidator, BeforeValidator, Field

from relay import toml
from relay.config.values import SAEID, Domains, PathSetting, Seconds, SizeSetting, as_tuple, parse_domain

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
