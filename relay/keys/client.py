"""What every client of one KME has, whatever it speaks: connections, breaker, accounts, health.
Standard: ETSI GS QKD 014 V1.1.1, 5.1 (HTTPS, both sides authenticated), which Cisco SKIP shares.
"""

from __future__ import annotations

import asyncio
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Literal, Self
from urllib.parse import urlsplit

from relay.errors import ConfigError
from relay.keys.accounts import Accounts, KeyMetrics
from relay.keys.calls import Calls, Patience
from relay.keys.events import Events
from relay.keys.faults import Call, ErrorRule
from relay.keys.health import BreakerRules, BurnBudget, State
from relay.keys.http import Receiver, Transport
from relay.keys.replies import KeyStatus
from relay.keys.tls import ClientTLS, TLSRules
from relay.keys.types import REAL_TIME, Key, Timing

log = Events(__name__)


@dataclass(frozen=True, slots=True)
class Quirks:
    """Where a KME differs from the standard; the defaults are the standard's.

    `method`: GET for KMEs that have no POST; each request then has its own connection. `keep_alive`: False
    for KMEs that close a connection at once without saying so. `size_unit`: what the KME takes `size` for;
    "ignored" keeps it out of the request. `integer_key_ids`: key_IDs are numbers in JSON.
    `errors`: what replies mean, against the usual reading.
    """

    method: Literal["POST", "GET"] = "POST"
    keep_alive: bool = True
    size_unit: Literal["bits", "bytes", "ignored"] = "bits"
    integer_key_ids: bool = False
    errors: tuple[ErrorRule, ...] = ()


class KMEClient(ABC):
    """A client of one KME, over whatever protocol: subclasses make the three calls.

    Each call ends in a result or a typed error within the configured time; `patient` False means one try only.
    """

    usual_errors: tuple[ErrorRule, ...] = ()
    """What replies mean in a protocol, where that differs from faults.py; the setting `errors` comes first."""

    def __init__(
        self,
        url: str,
        *,
        ca: Path,
        certificate: Path,
        key: Path,
        retry_attempts: int = 3,
        retry_delay: float = 1,
        timeout: float = 10,
        adaptive: bool = False,
        min_timeout: float | None = None,
        pool_connections: int = 5,
        pool_maxsize: int = 10,
        burn_budget: int = 1000,
        name: str | None = None,
        quirks: Quirks = Quirks(),
        tls: TLSRules = TLSRules(),  # noqa: B008 - frozen
        breaker: BreakerRules = BreakerRules(),  # noqa: B008 - frozen
        timing: Timing = REAL_TIME,
        metrics: KeyMetrics | None = None,
    ) -> None:
        """`url` is https and may carry a path prefix; the three files are PEM. Times are seconds.

        `retry_attempts` counts the tries after the first; `retry_delay` is the pause before the second, doubled each
        time; one try may take `timeout`. With `adaptive` both follow what the KME does: pauses are jittered and
        shorter while most tries succeed, and limits shrink for a KME that is quick, to no less than `min_timeout` (by
        default a fifth of `timeout`).
        At most `pool_maxsize` connections are open to one host (a name may stand for several), and `pool_connections`
        times that in all. `burn_budget` is the number of keys an hour that unanswered requests may cost.
        `name` (default: the URL) stands in logs and metrics. Raises ConfigError for another scheme than https, and
        when the files cannot be used.
        """
        if urlsplit(url).scheme != "https" or not urlsplit(url).hostname:
            raise ConfigError(f"{url}: a KME is asked over https, with certificates of both sides (GS QKD 014, 5.1)")
        self.url = url.rstrip("/")
        self.retry_attempts = retry_attempts
        self.retry_delay = retry_delay
        self.timeout = timeout
        self.pool_connections = pool_connections
        self.pool_maxsize = pool_maxsize
        self.quirks = quirks
        self._name = name or self.url
        self._accounts = Accounts()
        self._burn_budget = BurnBudget(burn_budget, timing)
        self._drawing: dict[str, asyncio.Lock] = {}
        self._transport = Transport(
            self.url,
            ClientTLS(ca, certificate, key, tls),
            connections=pool_connections * pool_maxsize,
            per_host=pool_maxsize,
            keep_alive=quirks.keep_alive and not self.one_connection_per_request,
        )
        self._calls = Calls(
            self._name,
            self._transport,
            patience=Patience(
                retry_attempts, retry_delay, timeout, timeout / 5 if min_timeout is None else min_timeout, adaptive
            ),
            breaker=breaker,
            errors=(*quirks.errors, *self.usual_errors),
            timing=timing,
            metrics=metrics or KeyMetrics(),
        )

    @abstractmethod
    async def check_key_status(self, slave_sae_id: int | str, *, patient: bool = True) -> KeyStatus:
        """What the KME has for this pair of SAEs, and its limits. Raises KeyUnavailable."""

    @abstractmethod
    async def request_enc_keys(
        self, slave_sae_id: int | str, number: int = 1, size: int = 256, *, patient: bool = True
    ) -> list[Key]:
        """From 1 to `number` fresh keys of `size` bits. Raises KeyUnavailable."""

    @abstractmethod
    async def request_dec_keys(
        self, master_sae_id: int | str, key_IDs: Sequence[str], *, patient: bool = True
    ) -> list[Key]:
        """The keys with these IDs, in their order; the KME gives each once.

        Raises KeysMissing, which carries those that did come, or another KeyUnavailable.
        """

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def close(self) -> None:
        """Closes all connections. The client may be used again afterwards."""
        await self._transport.close()

    def renew_certificates(self, *, anyway: bool = False) -> None:
        """Takes the certificate files if they have changed, or `anyway`. Each call looks at them as well."""
        self._calls.renew_certificates(anyway=anyway)

    def ending_certificates(self, now: datetime) -> list[str]:
        """Which certificates end within 30 days of `now` (aware), or have: ours, the CA's, the KME's. Reads files."""
        return self._transport.ending(now)

    async def keeps_undelivered(self, slave_sae_id: int | str, own_sae_id: int | str) -> bool | None:
        """Whether keys that were not delivered yet are still there when more were asked for; None: nobody can say.

        It costs two keys, and with a KME that drops keys whatever the slave has not fetched yet. Raises KeyUnavailable.
        """
        return None

    @property
    def transport(self) -> Transport:
        """Its connections."""
        return self._transport

    def receive_through(self, receiver: Receiver) -> None:
        """From now on `receiver` sends the requests for received keys."""
        self._calls.receive = partial(receiver.send, self._name, self._transport)

    @property
    def name(self) -> str:
        """The name in logs and metrics."""
        return self._name

    @property
    def accounts(self) -> Accounts:
        """What became of fresh keys; here only those that were lost on the way are entered."""
        return self._accounts

    @property
    def health(self) -> float:
        """From 0 (fresh keys are not even asked for) to 1 (all recent tries got an answer)."""
        worth = {State.CLOSED: 1.0, State.HALF_OPEN: 0.25, State.OPEN: 0.0}
        return worth[self._calls.breakers[Call.ENC_KEYS].state] * self._calls.success_rate

    @property
    def latency(self) -> float | None:
        """Seconds that enc_keys takes, smoothed; None before the first answer."""
        return self._calls.limits[Call.ENC_KEYS].latency

    def usual_time(self, call: Call) -> float:
        """Seconds within which an answer usually comes; who has waited longer asks another KME, if there is one."""
        return self._calls.limits[call].usual

    @property
    def one_connection_per_request(self) -> bool:
        """Whether keys are asked for with GET, which must never be sent twice behind our back."""
        return self.quirks.method == "GET"

    @property
    def one_by_one(self) -> bool:
        """Whether each key is fetched by a request of its own, however many are asked for."""
        return self.one_connection_per_request

    @property
    def any_size(self) -> bool:
        """Whether keys of other sizes than the usual one can be had."""
        return self.quirks.size_unit != "ignored"

    @property
    def breakers(self) -> dict[str, State]:
        """The state of the breaker of each call."""
        return {str(call): breaker.state for call, breaker in self._calls.breakers.items()}

    @property
    def troubles(self) -> dict[str, str]:
        """Why calls are not made at present, by call; empty when all is well."""
        return {str(call): breaker.cause for call, breaker in self._calls.breakers.items() if breaker.cause}

    @staticmethod
    def _several(key_IDs: Sequence[str]) -> list[str]:
        """The key_IDs, each once. A string, which is a sequence of strings as well, is a mistake: raises TypeError."""
        if isinstance(key_IDs, str | bytes) or not all(isinstance(key_ID, str) for key_ID in key_IDs):
            raise TypeError("key_IDs is a sequence of strings: write [key_ID] for a single one")
        return list(dict.fromkeys(key_IDs))

    def _burn(self, sae: str, number: int, cause: str) -> None:
        """Enters keys that were lost on the way, and charges the budget for that."""
        if number:
            self._accounts.issued_and_burnt(sae, number, cause)
            self._burn_budget.spend(number)
            log.warning("keys_burnt", kme=self.name, slave_sae=sae, number=number, cause=cause)
