"""Key report for administrators, as rows and on the board: number of keys and rates of use.
Amounts in keys of the KME's usual size, rates in bits a second, times in seconds.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Self

from relay.counting import key_metrics as metrics
from relay.counting.metric import Totals
from relay.keys.counts import KeyCounts
from relay.keys.pool import KeyPool
from relay.keys.refill import empty_in
from relay.keys.replies import USUAL_KEY_BITS

if TYPE_CHECKING:
    from relay.keys.ring import KeyRing


CLOCKS_DIFFER_S = 300.0
"""Maximum difference of two clocks that counts as the same time, in seconds; a peer opens no mail from 600 s ahead."""
STATUS_MAX_AGE_S = 60.0
"""Maximum age of a KME's status, in seconds; it is requested every 30. Older values count as unknown."""


@dataclass(frozen=True, slots=True)
class PoolRow:
    """One KME and peer. `trouble` is empty when all is well; `empty_in_s` None: never.

    `stored_keys` None: unknown; `status_age_s` is the age of the last status, None without one.
    """

    kme: str
    group: str
    peer: str
    trouble: str
    pool_keys: int
    stored_keys: int | None
    status_age_s: float | None
    key_size: int
    refill_bits_per_s: float | None
    use_bits_per_s: float
    empty_in_s: float | None
    reserve_keys: int
    alarm: bool


@dataclass(frozen=True, slots=True)
class LevelRow:
    """One peer and level: its share of the use, and the time that keys would last for it alone."""

    peer: str
    level: str
    keys_used: int
    use_bits_per_s: float
    share: float
    empty_in_s: float | None

    @classmethod
    def of(cls, peer: str, level: str, rate: float, keys: int, pools: Sequence[PoolRow]) -> Self:
        """The row of a level that uses `rate` bits a second of the keys in `pools`."""
        stored = sum(((row.stored_keys or 0) + row.pool_keys) * row.key_size for row in pools)
        refill = sum(row.refill_bits_per_s or 0.0 for row in pools)
        together = sum(row.use_bits_per_s for row in pools)
        share = min(1.0, rate / together) if together else 0.0
        return cls(peer, level, keys, rate, share, empty_in(stored, rate, refill))


@dataclass(frozen=True, slots=True)
class KeyReport:
    """The whole report: by KME and peer, and by peer and level."""

    pools: list[PoolRow]
    levels: list[LevelRow]

    def as_json(self) -> dict[str, Any]:
        """The report as JSON types."""
        return asdict(self)


def together(reports: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Merges reports (from `as_json`) of several processes that share KMEs and peers.

    A trouble or alarm of one process is kept.
    """
    report = dict(reports[0])
    report["pools"] = [_pools_together(rows) for rows in _alike(reports, "pools", ("kme", "peer"))]
    report["levels"] = [_levels_together(rows) for rows in _alike(reports, "levels", ("peer", "level"))]
    report["key_receiver_ended"] = any(each.get("key_receiver_ended") for each in reports)
    return report


def _alike(reports: Sequence[dict[str, Any]], table: str, by: Sequence[str]) -> list[list[dict[str, Any]]]:
    groups: dict[tuple[Any, ...], list[dict[str, Any]]] = {}
    for report in reports:
        for row in report[table]:
            groups.setdefault(tuple(row[name] for name in by), []).append(row)
    return list(groups.values())


def _pools_together(rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
    row = dict(rows[0])
    for name in ("pool_keys", "use_bits_per_s"):
        row[name] = sum(each[name] for each in rows)
    row["trouble"] = "; ".join(dict.fromkeys(each["trouble"] for each in rows if each["trouble"]))
    row["alarm"] = any(each["alarm"] for each in rows)
    row["status_age_s"] = min((each["status_age_s"] for each in rows if each["status_age_s"] is not None), default=None)
    row["stored_keys"] = min((each["stored_keys"] for each in rows if each["stored_keys"] is not None), default=None)
    rates = [each["refill_bits_per_s"] for each in rows if each["refill_bits_per_s"] is not None]
    row["refill_bits_per_s"] = max(rates, default=None)
    if row["stored_keys"] is not None:
        stored, ready, size = row["stored_keys"], row["pool_keys"], row["key_size"]
        row["empty_in_s"] = _ends_in(stored, ready, size, row["use_bits_per_s"], row["refill_bits_per_s"])
    return row


def _levels_together(rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
    rate = sum(each["use_bits_per_s"] for each in rows)
    share = sum(each["share"] * each["use_bits_per_s"] for each in rows) / rate if rate else 0.0
    ends = [each["empty_in_s"] for each in rows if each["empty_in_s"] is not None]
    keys = sum(each["keys_used"] for each in rows)
    return rows[0] | {"keys_used": keys, "use_bits_per_s": rate, "share": share, "empty_in_s": min(ends, default=None)}


def pool_row(group: str, peer: str, slave_sae: str, pool: KeyPool, *, reserve: int, alarm: float) -> PoolRow:
    """The row of one KME's keys for one peer, from the current state."""
    client = pool.client
    kme_store = pool.store(slave_sae)
    status = kme_store.status
    usual = (status.key_size if status else None) or USUAL_KEY_BITS
    age = kme_store.status_age
    stale = bool(kme_store.unanswered) or (age is not None and age > STATUS_MAX_AGE_S)
    stored = status.stored_key_count if status and not stale else None
    use, refill = kme_store.use.lasting, None if stale else kme_store.link.per_second
    known = stored is not None
    ends_in = empty_in(pool.bits_at_hand(slave_sae), use, refill) if known else None
    return PoolRow(
        kme=client.name,
        group=group,
        peer=peer,
        trouble=pool.trouble or kme_store.trouble or pool.refusal(slave_sae),
        pool_keys=sum(pool.held(slave_sae).values()),
        stored_keys=stored,
        status_age_s=None if age is None else round(age, 1),
        key_size=usual,
        refill_bits_per_s=refill,
        use_bits_per_s=use,
        empty_in_s=ends_in,
        reserve_keys=reserve,
        alarm=ends_in is not None and ends_in < alarm,
    )


def clocks_differ(kme: str, ahead_s: float | None) -> str:
    """What is wrong between our clock and that of the KME, which is `ahead_s` seconds ahead; "" if they agree."""
    if ahead_s is None or abs(ahead_s) <= CLOCKS_DIFFER_S:
        return ""
    how = "behind" if ahead_s > 0 else "ahead of"
    return f"this host's clock is {abs(ahead_s) / 3600:.1f} h {how} that of KME {kme}"


def show(ring: KeyRing, board: KeyCounts) -> None:
    """Shows the state of this process's keys on the board."""
    for pool in (pool for group in ring.groups.values() for pool in group.pools):
        name = pool.client.name
        board.set(metrics.KME_BREAKER, name, to=pool.client.breaker)
        board.set(metrics.KEYS_WITHHELD, name, to=bool(pool.issued.withheld))
        board.set(metrics.KME_CERTIFICATES_REFUSED, name, to=bool(pool.client.renewal.refused))
        board.set(metrics.KME_DROPS, name, to=pool.undelivered.dropped)
        board.set(metrics.KME_CLOCK, name, to=_number(pool.client.transport.clock_ahead_s))
    for row in ring.pool_rows():
        place = row.kme, row.peer
        board.set(metrics.KEYS_READY, *place, to=row.pool_keys)
        board.set(metrics.KEYS_STORED, *place, to=_number(row.stored_keys))
        board.set(metrics.STATUS_AGE, *place, to=_number(row.status_age_s))
        board.set(metrics.KEY_BITS, *place, to=row.key_size)
        board.set(metrics.KEY_REFILL, *place, to=_number(row.refill_bits_per_s))
        board.set(metrics.KEY_USE, *place, to=row.use_bits_per_s)


def show_forecasts(ring: KeyRing, board: KeyCounts, totals: Totals) -> None:
    """Shows the forecast for all processes together, from their `totals`; called by one of them."""
    for row in ring.pool_rows():
        place = row.kme, row.peer
        stored, ready, bits, refill, use = (
            totals.get(each, {}).get(place, [math.nan])[0]
            for each in (metrics.KEYS_STORED, metrics.KEYS_READY, metrics.KEY_BITS, metrics.KEY_REFILL, metrics.KEY_USE)
        )
        known = not math.isnan(stored + ready + bits + use)
        ends_in = _ends_in(stored, ready, bits, use, None if math.isnan(refill) else refill) if known else None
        board.set(metrics.KEYS_EMPTY, *place, to=ends_in if ends_in is not None else math.inf if known else math.nan)
        board.set(metrics.KEY_ALARM, *place, to=ends_in is not None and ends_in < ring.alarm(row.kme))


def _ends_in(stored: float, ready: float, key_size: float, use: float, refill: float | None) -> float | None:
    """Seconds until these keys of several processes are used up, None for never; rates in bits a second."""
    return empty_in((stored + ready) * key_size, use, refill)


def _number(value: float | None) -> float:
    return math.nan if value is None else value
