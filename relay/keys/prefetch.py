"""How many keys to hold ready for one peer: enough for the rate and the outages seen, not more than they last.
Standard: the rule `peak rate x (refill latency + outage to survive)`, capped by what the KME can do; pure.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from relay.keys.replies import KeyStatus

_LIFETIME_SHARE = 0.5
"""Of the keys that the peak rate uses within a lifetime, the share held at most: the rest would expire."""


@dataclass(frozen=True, slots=True)
class Prefetch:
    """How many keys are kept ready for each peer, and how long (seconds) one may wait there.

    Below `low` the background refill starts and goes up to `high`; both 0 means no prefetch. Both marks rise
    with the rate at which keys are used, up to `most`, so that `outage` seconds without the KME can be borne; where
    they do not follow the use, they stay.
    """

    low: int = 8
    high: int = 32
    lifetime: float = 300.0
    most: int = 1000
    outage: float = 10.0
    follows_use: bool = True

    @property
    def on(self) -> bool:
        """Whether keys are drawn before they are needed."""
        return self.high > 0


@dataclass(frozen=True, slots=True)
class Marks:
    """The low and the high water mark in force, in keys."""

    low: int
    high: int


def marks(
    prefetch: Prefetch,
    *,
    peak_rate: float,
    latency: float,
    refill_rate: float | None = None,
    status: KeyStatus | None = None,
) -> Marks:
    """The marks for keys used at `peak_rate` (keys/s) and drawn within `latency` (s).

    `refill_rate` (keys/s) is the link's own, where it is known: no more is drawn than it makes in a lifetime.
    """
    if not prefetch.on:
        return Marks(0, 0)
    if not prefetch.follows_use:
        return Marks(prefetch.low, prefetch.high)
    wanted = math.ceil(peak_rate * (latency + prefetch.outage))
    lasting = math.ceil(peak_rate * prefetch.lifetime * _LIFETIME_SHARE)
    caps = [max(prefetch.most, prefetch.high), max(lasting, prefetch.high)]
    if refill_rate:
        caps.append(max(1, math.ceil(refill_rate * prefetch.lifetime)))
    if status is not None and status.max_key_count:
        caps.append(status.max_key_count)
    high = min(max(prefetch.high, wanted), *caps)
    low = max(prefetch.low, math.ceil(peak_rate * latency * 2), high // 4 if wanted > prefetch.high else 0)
    return Marks(min(low, high), high)
