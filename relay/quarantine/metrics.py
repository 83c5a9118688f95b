"""What the quarantine tells Prometheus: what was put there and why, what waits for a key, how full it is.
Standard: the Prometheus naming practices (base units, `_total`); labels carry reasons, never addresses.
"""

from __future__ import annotations

from collections.abc import Mapping

from prometheus_client import CollectorRegistry, Counter, Gauge

from relay.quarantine import REASONS
from relay.store import Total


class QuarantineMetrics:
    """The metrics of a relay's quarantine, in `registry`; without one, in a registry of their own."""

    def __init__(self, registry: CollectorRegistry | None = None) -> None:
        self.registry = CollectorRegistry() if registry is None else registry
        self.put = Counter(
            "qumail_quarantine_put",
            "Arrivals of messages that were put in quarantine, by reason, and whether the message was there already",
            ["reason", "again"],
            registry=self.registry,
        )
        self.lag = Counter(
            "qumail_quarantine_held_for_key",
            "Times that a mail was held because its key may still come",
            registry=self.registry,
        )
        self.full = Counter(
            "qumail_quarantine_full", "Times that a mail was held because it found no room", registry=self.registry
        )
        self.notices = Counter(
            "qumail_quarantine_notices", "Notices to recipients by outcome: sent, failed", ["outcome"],
            registry=self.registry,
        )  # fmt: skip
        self.messages = Gauge(
            "qumail_quarantine_messages", "Messages in quarantine", ["reason"], registry=self.registry
        )
        self.octets = Gauge("qumail_quarantine_octets", "What they take", registry=self.registry)
        self.limit = Gauge("qumail_quarantine_limit_octets", "What they may take", registry=self.registry)

    def show(self, totals: Mapping[str, Total]) -> None:
        """Sets the gauges to what is there."""
        for reason in REASONS:
            self.messages.labels(reason).set(totals.get(reason, Total()).number)
        self.octets.set(sum(total.octets for total in totals.values()))
