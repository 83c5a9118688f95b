"""The accounts, pools, breakers and forecasts of a KeyRing for Prometheus, read at the moment it asks.
Standard: the Prometheus naming practices; nothing is counted twice, so the figures agree with `keys status`.
"""

from __future__ import annotations

from collections.abc import Iterable

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector, CollectorRegistry

from relay.keys.fresh import FreshKeys
from relay.keys.keyring import KeyRing


class KeyCollector(Collector):
    """Register it once for each KeyRing: `KeyCollector(ring, registry)`."""

    def __init__(self, ring: KeyRing, registry: CollectorRegistry) -> None:
        self._ring = ring
        registry.register(self)

    def describe(self) -> Iterable[Metric]:
        """Nothing, so that registering reads nothing."""
        return ()

    def collect(self) -> Iterable[Metric]:
        """The metrics as they are now."""
        pools = [pool for group in self._ring.groups.values() for pool in group.pools]
        yield from _keys(pools)
        yield _breakers(pools)
        yield from _troubles(pools)
        yield from self._forecasts()

    def _forecasts(self) -> Iterable[Metric]:
        labels = ["kme", "peer"]
        stored = GaugeMetricFamily("qumail_kme_stored_keys", "Keys that the KME says it has", labels=labels)
        refill = GaugeMetricFamily("qumail_key_refill_bits", "Bits a second that the link makes", labels=labels)
        use = GaugeMetricFamily("qumail_key_use_bits", "Bits a second that are used", labels=labels)
        empty = GaugeMetricFamily("qumail_key_empty_in_seconds", "Time until keys are gone", labels=labels)
        alarm = GaugeMetricFamily("qumail_key_alarm", "1 when keys will soon be gone", labels=labels)
        for row in self._ring.pool_rows():
            place = [row.kme, row.peer]
            if row.stored_keys is not None:
                stored.add_metric(place, row.stored_keys)
            if row.refill_bits_per_s is not None:
                refill.add_metric(place, row.refill_bits_per_s)
            use.add_metric(place, row.use_bits_per_s)
            empty.add_metric(place, float("inf") if row.empty_in_s is None else row.empty_in_s)
            alarm.add_metric(place, row.alarm)
        return (stored, refill, use, empty, alarm)


def _keys(pools: Iterable[FreshKeys]) -> Iterable[Metric]:
    keys = CounterMetricFamily(
        "qumail_keys", "Fresh keys by fate: issued = used + burnt + expired + in the pool", labels=["kme", "fate"]
    )
    burnt = CounterMetricFamily("qumail_keys_burnt", "Keys lost, by cause", labels=["kme", "cause"])
    held = GaugeMetricFamily("qumail_key_pool_keys", "Keys that are ready", labels=["kme", "slave_sae", "size_bits"])
    discarded = CounterMetricFamily(
        "qumail_pad_octets_discarded", "Octets of keys that pads had no use for", labels=["kme"]
    )
    for pool in pools:
        name, accounts = pool.client.name, pool.client.accounts
        totals = accounts.totals()
        for fate in ("issued", "used", "burnt", "expired"):
            keys.add_metric([name, fate], totals[fate])
        for cause, number in accounts.burnt_by_cause().items():
            burnt.add_metric([name, cause], number)
        for (slave_sae, size), number in pool.held().items():
            held.add_metric([name, slave_sae, str(size)], number)
        discarded.add_metric([name], accounts.octets_discarded)
    return (keys, burnt, held, discarded)


def _breakers(pools: Iterable[FreshKeys]) -> Metric:
    states = GaugeMetricFamily("qumail_kme_breaker_state", "0 closed, 1 half-open, 2 open", labels=["kme", "call"])
    for pool in pools:
        for call, state in pool.client.breakers.items():
            states.add_metric([pool.client.name, call], state)
    return states


def _troubles(pools: Iterable[FreshKeys]) -> Iterable[Metric]:
    withheld = GaugeMetricFamily(
        "qumail_keys_withheld", "1 while no keys are drawn, as the store cannot remember them", labels=["kme"]
    )
    dropped = GaugeMetricFamily(
        "qumail_kme_drops_undelivered_keys",
        "1 when the KME was seen to drop undelivered keys",
        labels=["kme"],
    )
    for pool in pools:
        withheld.add_metric([pool.client.name], bool(pool.withheld))
        dropped.add_metric([pool.client.name], pool.undelivered.dropped)
    return (withheld, dropped)
