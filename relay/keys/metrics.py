"""What a KM client tells Prometheus while it works: calls by outcome, and how long each took.
Standard: the Prometheus naming practices (base units, `_total`); labels carry names, never key_IDs.

Counts that exist anyway (keys, pools, breakers) are read when Prometheus asks: see collector.py.
"""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Histogram

_CALL_BUCKETS_S = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30)
_WAIT_BUCKETS_S = (0.0001, 0.001, 0.01, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60)


class KeyMetrics:
    """The metrics of all KM clients of a relay, in `registry`; without one, in a registry of their own."""

    def __init__(self, registry: CollectorRegistry | None = None) -> None:
        self.registry = CollectorRegistry() if registry is None else registry
        self.requests = Counter(
            "qumail_kme_requests",
            "Requests to a KME by outcome: ok, unreachable, busy, exhausted, bad_request, misconfigured, "
            "not_found, bad_reply, ambiguous",
            ["kme", "call", "outcome"],
            registry=self.registry,
        )
        self.seconds = Histogram(
            "qumail_kme_request_seconds",
            "Time from sending a request to its whole answer",
            ["kme", "call"],
            buckets=_CALL_BUCKETS_S,
            registry=self.registry,
        )
        self.retries = Counter(
            "qumail_kme_retries", "Second and further tries of a request", ["kme", "call"], registry=self.registry
        )
        self.wait = Histogram(
            "qumail_key_wait_seconds",
            "Time a message waited for its keys",
            ["kme_group", "use"],
            buckets=_WAIT_BUCKETS_S,
            registry=self.registry,
        )
        self.received = Counter(
            "qumail_keys_received",
            "Keys asked for by key_ID, by outcome: fetched, not_found, refused, not_stored, not_asked",
            ["kme_group", "outcome"],
            registry=self.registry,
        )
