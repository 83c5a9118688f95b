"""What an administrator wants to know about keys: how many there are, how fast they go, when they will be gone.
Standard: amounts in keys of the KME's usual size, rates in bits a second, times in seconds; JSON as it stands.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, Self

from relay.keys.fresh import FreshKeys
from relay.keys.rates import Forecast
from relay.keys.replies import USUAL_KEY_BITS


@dataclass(frozen=True, slots=True)
class PoolRow:
    """One KME and peer. `trouble` is empty when all is well; `empty_in_s` None: they do not end."""

    kme: str
    group: str
    peer: str
    trouble: str
    health: float
    pool_keys: int
    stored_keys: int | None
    key_size: int
    refill_bits_per_s: float | None
    use_bits_per_s: float
    empty_in_s: float | None
    reserve_keys: int
    alarm: bool
    issued: int
    used: int
    burnt: int
    expired: int
    burnt_by_cause: dict[str, int]


@dataclass(frozen=True, slots=True)
class LevelRow:
    """One peer and level: its share of the use, and how long the keys would last if only it used them."""

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
        return cls(peer, level, keys, rate, share, Forecast(stored, rate, refill).empty_in)


@dataclass(frozen=True, slots=True)
class KeyReport:
    """All of it: by KME and peer, and by peer and level."""

    pools: list[PoolRow]
    levels: list[LevelRow]

    def as_json(self) -> dict[str, Any]:
        """Plain dicts, lists, numbers and texts."""
        return asdict(self)


def pool_row(group: str, peer: str, slave_sae: str, pool: FreshKeys, *, reserve: int, alarm: float) -> PoolRow:
    """The row of one KME's keys for one peer, from what is known now."""
    client = pool.client
    status = pool.known_status(slave_sae)
    usual = (status.key_size if status else None) or USUAL_KEY_BITS
    forecast = Forecast(pool.bits_at_hand(slave_sae), pool.use_rate(slave_sae), pool.refill_rate(slave_sae))
    known = status is not None and status.stored_key_count is not None
    empty_in = forecast.empty_in if known else None
    totals = client.accounts.totals(slave_sae)
    return PoolRow(
        kme=client.name,
        group=group,
        peer=peer,
        trouble=pool.trouble,
        health=round(client.health, 3),
        pool_keys=sum(pool.held(slave_sae).values()),
        stored_keys=status.stored_key_count if status else None,
        key_size=usual,
        refill_bits_per_s=forecast.refill_rate,
        use_bits_per_s=forecast.use_rate,
        empty_in_s=empty_in,
        reserve_keys=reserve,
        alarm=empty_in is not None and empty_in < alarm,
        issued=totals["issued"],
        used=totals["used"],
        burnt=totals["burnt"],
        expired=totals["expired"],
        burnt_by_cause=client.accounts.burnt_by_cause(slave_sae),
    )
