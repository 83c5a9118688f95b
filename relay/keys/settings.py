"""The settings of a client of one KME, as one value; `ClientOptions` are the same as keyword arguments.
Standard: the defaults are those of ETSI GS QKD 014 V1.1.1; `Quirks` are deviations of a KME.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from types import UnionType
from typing import Literal, NamedTuple, TypedDict
from urllib.parse import urlsplit

from relay.errors import ConfigError
from relay.keys.counts import KeyCounts
from relay.keys.faults import ErrorRule
from relay.keys.health import BreakerRules
from relay.keys.psk import PSK, PSKTLS
from relay.keys.refill import Prefetch
from relay.keys.tls import ClientTLS, FileTLS, TLSRules
from relay.keys.types import REAL_TIME, Timing


def without_password(url: str) -> str:
    """The URL for texts and logs, without a user and a password; also one that is none."""
    scheme, mark, rest = url.rpartition("://")
    return f"{scheme}{mark}{rest.rpartition('@')[2]}"


def checked_url(url: str) -> str:
    """The URL of a KME, without a slash at its end. Raises ConfigError, with the reason and without its password."""
    shown = without_password(url)
    try:
        parts = urlsplit(url)
        parts.port  # noqa: B018 - raises ValueError
    except ValueError:
        raise ConfigError(f"{shown}: not a URL") from None
    if parts.scheme != "https" or not parts.hostname:
        raise ConfigError(f"{shown}: a KME is asked over https, with certificates of both sides (GS QKD 014, 5.1)")
    if parts.query or parts.fragment or f"{parts.path}/".find("/api/v1/") >= 0:
        text = "/api/v1/keys is added to it for each call, so write only what stands before that"
        raise ConfigError(f"{shown}: not the address of a KME: {text}")
    return url.rstrip("/")


@dataclass(frozen=True, slots=True)
class Quirks:
    """Deviations of a KME from the standard; the defaults are the standard's.

    `method`: GET for KMEs that have no POST; each request then has its own connection. `size_unit`: the unit of `size`;
    "ignored" omits it from the request. `integer_key_ids`: key_IDs are numbers in JSON, both ways. `errors`: overrides
    of the usual meaning of replies.
    """

    method: Literal["POST", "GET"] = "POST"
    size_unit: Literal["bits", "bytes", "ignored"] = "bits"
    integer_key_ids: bool = False
    errors: tuple[ErrorRule, ...] = ()


class _Takes(NamedTuple):
    kind: type | UnionType
    what: str
    least: float = -math.inf
    most: float = math.inf


_PATH = _Takes(str | Path | None, "a path")
_SECONDS = _Takes(float | int, "seconds from {0.least:g} to {0.most:g}", 0.001, 86400)
_WHOLE = _Takes(int, "a whole number from {0.least} to {0.most}", 0, 1000)
_TAKES = {
    **dict.fromkeys(("ca", "certificate", "key", "state_dir"), _PATH),
    "url": _Takes(str, "an address, https://host:port"),
    "name": _Takes(str | None, "a text"),
    "retry_attempts": _WHOLE,
    "retry_delay": _SECONDS._replace(least=0),
    "timeout": _SECONDS,
    "adaptive": _Takes(bool, "True or False"),
    "pool_connections": _WHOLE,
    "pool_maxsize": _WHOLE._replace(least=1),
    "burn_budget": _WHOLE._replace(most=10**9),
    "cache": _Takes(int | Prefetch, "a whole number from {0.least} to {0.most} or a Prefetch", 0, 100_000),
    **dict.fromkeys(("low", "high"), _WHOLE._replace(most=100_000)),
    "lifetime": _SECONDS,
    "failures": _WHOLE._replace(least=1),
    **dict.fromkeys(("delay", "longest", "misconfigured"), _SECONDS),
    "psk": _Takes(PSK | None, "a PSK"),
    "quirks": _Takes(Quirks, "Quirks"),
    "tls": _Takes(TLSRules, "TLSRules"),
    "breaker": _Takes(BreakerRules, "BreakerRules"),
    **dict.fromkeys(("km1", "km2"), _Takes(dict | None, 'a dictionary, such as {{"url": "https://localhost:13000"}}')),
}


def check(values: Mapping[str, object]) -> None:
    """Raises ConfigError with the name of the first of these parameters whose value it does not take."""
    for name, value in values.items():
        takes = _TAKES.get(name)
        if takes is None:
            continue
        wrong = not isinstance(value, takes.kind) or (isinstance(value, bool) and takes.kind is not bool)
        outside = isinstance(value, int | float) and not takes.least <= value <= takes.most
        lines = "\n" in str(value)
        if wrong or outside or lines:
            # A wrong value may be the key itself.
            harmless = isinstance(value, int | float | str | None) and not lines
            shown = repr(value) if harmless else f"what is a {type(value).__name__}"
            raise ConfigError(f"{name}: it takes {takes.what.format(takes)}, not {shown}")
        if isinstance(value, Prefetch | BreakerRules):
            check(asdict(value))


@dataclass(frozen=True, slots=True, kw_only=True)
class ClientSettings:
    """Settings for one KME. `ca`, `certificate` and `key` are PEM files, or there is a `psk` (SKIP); times are seconds.

    `retry_attempts` counts the attempts after the first; `retry_delay` is the pause before the second, doubled each
    time; each attempt may take `timeout`. With `adaptive` the pauses follow the KME: they have jitter, are
    shorter while most attempts succeed, and longer while few do.
    Once the KME has answered, `pool_connections` connections are opened ahead and kept, until they have been idle for
    55 seconds; at most `pool_maxsize` are open. `burn_budget` is the number of keys an hour that unanswered requests
    may cost.
    `name` is used in logs and metrics (default: the URL without a password). Metrics are on the `board`, by default one
    of the client's own.
    """

    ca: Path | str | None = None
    certificate: Path | str | None = None
    key: Path | str | None = None
    psk: PSK | None = None
    retry_attempts: int = 3
    retry_delay: float = 1
    timeout: float = 10
    adaptive: bool = False
    pool_connections: int = 5
    pool_maxsize: int = 10
    burn_budget: int = 1000
    name: str | None = None
    quirks: Quirks = Quirks()
    tls: TLSRules = TLSRules()  # noqa: RUF009 - frozen
    breaker: BreakerRules = BreakerRules()  # noqa: RUF009 - frozen
    timing: Timing = REAL_TIME
    board: KeyCounts | None = None

    def __post_init__(self) -> None:
        """Raises ConfigError for a value that a setting does not take."""
        check({each.name: getattr(self, each.name) for each in fields(self)})

    def read_tls(self) -> FileTLS:
        """The TLS settings from the files. Raises ConfigError if they are unusable or incomplete."""
        if self.psk is not None:
            if self.ca or self.certificate or self.key or self.tls.kme_id:
                raise ConfigError("a pre-shared key counts alone: leave out ca, certificate, key and kme_id")
            return PSKTLS(self.psk, self.tls.ciphers)
        if self.ca is None or self.certificate is None or self.key is None:
            raise ConfigError("ca, certificate and key are needed to talk to the KME")
        return ClientTLS(Path(self.ca), Path(self.certificate), Path(self.key), self.tls)


class ClientOptions(TypedDict, total=False):
    """The fields of ClientSettings, for signatures; missing ones have their defaults."""

    ca: Path | str | None
    certificate: Path | str | None
    key: Path | str | None
    psk: PSK | None
    retry_attempts: int
    retry_delay: float
    timeout: float
    adaptive: bool
    pool_connections: int
    pool_maxsize: int
    burn_budget: int
    name: str | None
    quirks: Quirks
    tls: TLSRules
    breaker: BreakerRules
    timing: Timing
    board: KeyCounts | None
