"""What the policies in force tell Prometheus: how often they were read, and whether the latest edit is broken.
Standard: the Prometheus naming practices (base units, `_total`).
"""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Gauge


class PolicyMetrics:
    """The metrics of one policy directory, in `registry`; without one, in a registry of their own."""

    def __init__(self, registry: CollectorRegistry | None = None) -> None:
        self.registry = CollectorRegistry() if registry is None else registry
        self.reloads = Counter(
            "qumail_policy_reloads",
            "Times that policy files were read after a change, by outcome: loaded, broken",
            ["outcome"],
            registry=self.registry,
        )
        self.problems = Gauge(
            "qumail_policy_problems",
            "Faults in the policy files as they are now; above 0 an older set is in force",
            registry=self.registry,
        )
        self.files = Gauge("qumail_policy_files", "Policy files in force", registry=self.registry)
        self.ends_soon = Gauge(
            "qumail_policy_ends_soon",
            "Policy files and rules that end within two weeks, or have ended, as was seen last",
            registry=self.registry,
        )
