"""What is counted: the fate of every key of one KME, and the calls and waiting times of all of them for Prometheus.
Standard: double entry, `issued = used + burnt + expired + in pool` for each slave SAE and in all; the Prometheus naming
practices (base units, `_total`). Labels carry names, never key_IDs.
"""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from prometheus_client import CollectorRegistry


class Accounts:
    """Counts of keys (not octets), by slave SAE; the pool counts its own keys, so the two can be compared."""

    def __init__(self) -> None:
        self._issued: Counter[str] = Counter()
        self._used: Counter[str] = Counter()
        self._expired: Counter[str] = Counter()
        self._burnt: Counter[tuple[str, str]] = Counter()
        self.octets_discarded = 0
        """Octets at the end of one-time-pad keys that a pad had no use for."""

    def issued(self, slave_sae: str, number: int) -> None:
        """The KME gave keys, and they are in the pool now."""
        self._issued[slave_sae] += number

    def used(self, slave_sae: str, number: int) -> None:
        """Keys left the pool to seal a message."""
        self._used[slave_sae] += number

    def expired(self, slave_sae: str, number: int) -> None:
        """Keys in the pool became too old and were destroyed."""
        self._expired[slave_sae] += number

    def burnt(self, slave_sae: str, number: int, cause: str) -> None:
        """Keys in the pool were destroyed for another reason; `cause` is a short fixed text."""
        self._burnt[slave_sae, cause] += number

    def issued_and_burnt(self, slave_sae: str, number: int, cause: str) -> None:
        """The KME gave keys, or has to be assumed to have, that never came into the pool."""
        self.issued(slave_sae, number)
        self.burnt(slave_sae, number, cause)

    def totals(self, slave_sae: str | None = None) -> dict[str, int]:
        """`issued`, `used`, `burnt`, `expired`, and `in_pool` as it has to be; of one slave SAE or of all."""

        def total(counts: Counter[str]) -> int:
            return counts.total() if slave_sae is None else counts[slave_sae]

        burnt = sum(number for (slave, _), number in self._burnt.items() if slave_sae in (None, slave))
        counts = {
            "issued": total(self._issued),
            "used": total(self._used),
            "burnt": burnt,
            "expired": total(self._expired),
        }
        return counts | {"in_pool": counts["issued"] - counts["used"] - burnt - counts["expired"]}

    def burnt_by_cause(self, slave_sae: str | None = None) -> dict[str, int]:
        """Burnt keys by cause."""
        causes: Counter[str] = Counter()
        for (slave, cause), number in self._burnt.items():
            if slave_sae in (None, slave):
                causes[cause] += number
        return dict(causes)


_CALL_BUCKETS_S = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30)
_WAIT_BUCKETS_S = (0.0001, 0.001, 0.01, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60)


class KeyMetrics:
    """The metrics of all KM clients of a relay, in `registry`; without one, in a registry of their own."""

    def __init__(self, registry: CollectorRegistry | None = None) -> None:
        # Here, since it brings HTTP servers and clients along: who counts nothing does not wait for them.
        import prometheus_client as prometheus

        self.registry = prometheus.CollectorRegistry() if registry is None else registry
        self.requests = prometheus.Counter(
            "qumail_kme_requests",
            "Requests to a KME by outcome: ok, unreachable, busy, exhausted, bad_request, misconfigured, "
            "not_found, bad_reply, ambiguous",
            ["kme", "call", "outcome"],
            registry=self.registry,
        )
        self.seconds = prometheus.Histogram(
            "qumail_kme_request_seconds",
            "Time from sending a request to its whole answer",
            ["kme", "call"],
            buckets=_CALL_BUCKETS_S,
            registry=self.registry,
        )
        self.retries = prometheus.Counter(
            "qumail_kme_retries", "Second and further tries of a request", ["kme", "call"], registry=self.registry
        )
        self.wait = prometheus.Histogram(
            "qumail_key_wait_seconds",
            "Time a message waited for its keys",
            ["kme_group", "use"],
            buckets=_WAIT_BUCKETS_S,
            registry=self.registry,
        )
        self.received = prometheus.Counter(
            "qumail_keys_received",
            "Keys asked for by key_ID, by outcome: fetched, not_found, refused, not_stored, not_asked",
            ["kme_group", "outcome"],
            registry=self.registry,
        )
