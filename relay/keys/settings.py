"""The settings of a client of one KME, as one value; `ClientOptions` are the same as keyword arguments.
Standard: the defaults are those of ETSI GS QKD 014 V1.1.1; `Quirks` are deviations of a KME.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Literal, TypedDict
from urllib.parse import urlsplit

from relay.errors import ConfigError
from relay.keys.counts import KeyCounts
from relay.keys.faults import ErrorRule
from relay.keys.health import BreakerRules
from relay.keys.psk import PSK, PSKTLS
from relay.keys.takes import PATH, SECONDS, TEXT, WHOLE, YES_OR_NO, Parameters, Takes, one_of
from relay.keys.tls import ClientTLS, FileTLS, TLSRules
from relay.keys.types import REAL_TIME, Timing


def checked_url(url: str) -> str:
    """The URL of a KME, without a slash at its end. Raises ConfigError, with the reason and without a password."""
    shown = f"{url.rpartition('://')[0]}://{url.rpartition('://')[2].rpartition('@')[2]}".removeprefix("://")
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError:
        raise ConfigError(f"{shown}: not a URL") from None
    if parts.scheme != "https" or not parts.hostname:
        raise ConfigError(f"{shown}: a KME is asked over https, with certificates of both sides (GS QKD 014, 5.1)")
    if port == 0 or not all("!" <= each <= "~" for each in url):
        raise ConfigError(f"{shown}: not a URL: it has a blank, another character that must be encoded, or port 0")
    if "@" in parts.netloc:
        raise ConfigError(f"{shown}: a KME knows us by our certificate: leave out user and password")
    if parts.query or parts.fragment or f"{parts.path}/".find("/api/v1/") >= 0:
        text = "/api/v1/keys is added to it for each call, so write only what stands before that"
        raise ConfigError(f"{shown}: not the address of a KME: {text}")
    return url.rstrip("/")


@dataclass(frozen=True, slots=True)
class Quirks(Parameters):
    """Deviations of a KME from the standard; the defaults are the standard's.

    `method`: GET for KMEs that have no POST; each request then has its own connection. `size_unit`: the unit of `size`;
    "ignored" omits it from the request. `integer_key_ids`: key_IDs are numbers in JSON, both ways. `errors`: overrides
    of the usual meaning of replies.
    """

    method: Literal["POST", "GET"] = "POST"
    size_unit: Literal["bits", "bytes", "ignored"] = "bits"
    integer_key_ids: bool = False
    errors: tuple[ErrorRule, ...] = ()

    TAKES: ClassVar = {
        "method": one_of("POST", "GET"),
        "size_unit": one_of("bits", "bytes", "ignored"),
        "integer_key_ids": YES_OR_NO,
        "errors": Takes(tuple, "a tuple of ErrorRule"),
    }


PARAMETERS: dict[str, Takes] = {
    **dict.fromkeys(("ca", "certificate", "key"), PATH),
    "psk": Takes(PSK | None, "a PSK"),
    "retry_attempts": WHOLE,
    "retry_delay": SECONDS._replace(least=0),
    "timeout": SECONDS,
    "adaptive": YES_OR_NO,
    "pool_connections": WHOLE,
    "pool_maxsize": WHOLE._replace(least=1),
    "burn_budget": WHOLE._replace(most=10**9),
    "name": TEXT,
    "quirks": Takes(Quirks, "Quirks"),
    "tls": Takes(TLSRules, "TLSRules"),
    "breaker": Takes(BreakerRules, "BreakerRules"),
    "timing": Takes(Timing, "a Timing"),
    "board": Takes(object, "a board"),
}  # fmt: skip
"""What each field of ClientSettings takes."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ClientSettings(Parameters):
    """Settings for one KME. `ca`, `certificate` and `key` are PEM files, or there is a `psk` (SKIP); times are seconds.

    `retry_attempts` counts the attempts after the first; `retry_delay` is the pause before the second, doubled each
    time; each attempt may take `timeout`. With `adaptive` the pauses follow the KME: they have jitter, are
    shorter while most attempts succeed, and longer while few do.
    Once the KME has answered, `pool_connections` connections are opened ahead and kept, until they have been idle for
    55 seconds; at most `pool_maxsize` are open. `burn_budget` is the number of keys an hour that unanswered requests
    may cost and are tried again; beyond it the first failure is the error.
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

    TAKES: ClassVar = PARAMETERS

    def read_tls(self) -> FileTLS:
        """The TLS settings from the files. Raises ConfigError if they are unusable or incomplete."""
        if self.psk is not None:
            if self.ca or self.certificate or self.key or self.tls.kme_id:
                raise ConfigError("a pre-shared key counts alone: leave out ca, certificate, key and kme_id")
            return PSKTLS(self.psk, self.tls.ciphers)
        if self.ca is None or self.certificate is None or self.key is None:
            missing = next(name for name in ("ca", "certificate", "key") if getattr(self, name) is None)
            raise ConfigError(f"{missing}: ca, certificate and key are needed to talk to the KME")
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
