"""Whose keys we use and with whom we share them: [kmes.*] and [peers.*].
Standard: ETSI GS QKD 014 V1.1.1; what the defaults do is the standard, and each setting is for a KME that differs.
"""

from __future__ import annotations

from typing import Annotated, Literal, get_args

from pydantic import AfterValidator, BeforeValidator, Field, model_validator

from relay import toml
from relay.config.addresses import parse_domain
from relay.config.settings import SAEID, Domains, PathSetting, Seconds, SizeSetting, as_tuple

SealingLevel = Literal["otp", "aes", "pqc", "rsa"]


def _domain_or_any(value: str) -> str:
    return value if value == "*" else parse_domain(value)


ForwardedDomain = Annotated[str, AfterValidator(_domain_or_any)]
"""A domain, or "*" for any."""


class KMEErrorRule(toml.Table):
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


class KME(toml.Table):
    """One key-management entity of ours and how the KM client talks to it (ETSI GS QKD 014, or Cisco SKIP).

    Times are seconds, keys are counted in keys, `max_key_size` is in bits. What the defaults do is the standard.
    """

    interface: Literal["etsi014", "skip"] = "etsi014"
    url: str = Field(pattern=r"^https://[^\s/]+(/\S*)?$")
    group: str = Field(default="default", min_length=1, max_length=64)
    use: Literal["otp", "aes", "both"] = "both"

    ca: PathSetting
    certificate: PathSetting
    key: PathSetting
    kme_id: str = Field(default="", max_length=256)
    name_check: Literal["host", "kme_id", "both"] = "host"
    name_from: Literal["san", "cn", "either"] = "san"
    tls_minimum: Literal["1.2", "1.3"] = "1.2"
    tls_ciphers: str = ""

    retry_attempts: int = Field(default=3, ge=0, le=20)
    retry_delay: Seconds = 1.0
    timeout: Seconds = 10.0
    min_timeout: Seconds = 2.0
    connect_timeout: Seconds = 2.0
    pool_connections: int = Field(default=5, ge=1, le=1000)
    pool_maxsize: int = Field(default=10, ge=1, le=1000)
    breaker_failures: int = Field(default=5, ge=1, le=1000)
    breaker_delay: Seconds = 5.0
    breaker_longest: Seconds = 15.0
    burn_budget: int = Field(default=1000, ge=0, le=10_000_000)

    prefetch: bool = True
    cache_low: int = Field(default=8, ge=0, le=100_000)
    cache_high: int = Field(default=32, ge=0, le=100_000)
    cache_most: int = Field(default=1000, ge=0, le=100_000)
    outage: Seconds = 10.0
    key_lifetime: Seconds = 300.0
    key_margin: Annotated[float, Field(ge=0, le=86400, strict=False)] = 60.0
    reserve: int = Field(default=0, ge=0, le=10_000_000)
    alarm: Seconds = 3600.0

    one_batch_at_a_time: Annotated[float, BeforeValidator(_seconds_or_true), Field(ge=0, le=86400, strict=False)] = 0.0
    gather: bool = True
    gather_window: Annotated[float, Field(ge=0, le=1, strict=False)] = 0.005
    lag_patience: Annotated[float, Field(ge=0, le=3600, strict=False)] = 5.0
    lag_waiting: int = Field(default=10, ge=0, le=100_000)

    method: Literal["POST", "GET"] = "POST"
    keep_alive: bool = True
    size_unit: Literal["bits", "bytes", "ignored"] = "bits"
    integer_key_ids: bool = False
    max_key_per_request: int = Field(default=0, ge=0, le=100_000)
    max_key_size: int = Field(default=0, ge=0, le=100_000_000, multiple_of=8)
    errors: Annotated[tuple[KMEErrorRule, ...], BeforeValidator(as_tuple)] = ()

    @model_validator(mode="after")
    def _agrees_with_itself(self) -> KME:
        if self.cache_low > self.cache_high:
            raise ValueError("cache_low is above cache_high; the low mark starts a refill up to the high one")
        if self.key_margin >= self.key_lifetime:
            raise ValueError("key_margin leaves nothing of key_lifetime; keys would expire as they come")
        if self.name_check != "host" and not self.kme_id:
            raise ValueError(f"name_check is {self.name_check!r}, so kme_id must say which ID the KME has")
        return self


class Peer(toml.Table):
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
