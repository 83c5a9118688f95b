"""KMEs that fail in episodes: for a while every call at one site or both goes wrong in one way, then all is well.
Standard: what a KME does then was seen at real ones; whatever it does to keys, the link between the KMEs knows which.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial

from relay.kme import DevelopmentKME, KMERequest, Misbehaviour, SimulatedLink

KINDS = (
    "hangs",
    "resets",
    "resets and spends",
    "garbles",
    "garbles and spends",
    "delays",
    "drops undelivered keys",
    "answers 500 for unknown keys",
)
"""An episode that `spends` destroys the keys whose answers do not arrive whole; in the others they can be asked for."""
_UNKNOWN = Misbehaviour("http", 500, '{"message": "internal error"}')
_LAG_ASKS = 1000
_GARBLED = ("not_json", "bad_base64", "other_keys", "repeat_ids", "short", "none", "object_keys", "hang_in_body")
_ONE_BY_ONE = (
    *(Misbehaviour(kind, spends=False) for kind in ("drop", "lose_reply", "hang_in_body", "hang", "close_unsaid")),
    *(Misbehaviour(kind, spends=False) for kind in ("short", "lower_case", "object_keys", "bad_base64", "other_keys")),
    *(Misbehaviour("http", code, "<html>") for code in (500, 502, 503, 504)),
    Misbehaviour("http", 429, headers=(("Retry-After", "0.2"),)),
)


@dataclass
class Episode:
    """What went wrong, where, and from when to when (time.monotonic)."""

    kind: str
    sites: tuple[str, ...]
    start: float
    end: float = float("inf")
    calls: Counter[str] = field(default_factory=Counter)

    def __str__(self) -> str:
        return f"{self.kind} ({' and '.join(self.sites)}, {self.end - self.start:.0f} s, calls {dict(self.calls)})"


@dataclass
class Episodes:
    """Decides what each KME does with each request; `past` has all episodes so far, the present one too.

    `lasting` and `well` are the least and the most seconds of an episode and of the time after it. Besides,
    one request in 1/`failing` goes wrong by itself at any time; that spends no received key.
    """

    link: SimulatedLink
    chance: random.Random
    lasting: tuple[float, float]
    well: tuple[float, float]
    failing: float
    kinds: Sequence[str] = KINDS
    always_drops: bool = False
    kmes: dict[str, DevelopmentKME] = field(default_factory=dict)
    past: list[Episode] = field(default_factory=list)
    one_by_one: Counter[str] = field(default_factory=Counter)
    _now: Episode | None = None
    _delay: float = 0.0

    def __post_init__(self) -> None:
        self.link.drops_undelivered = self.always_drops

    def decide_for(self, site: str, kme: DevelopmentKME) -> None:
        """From now on, what this site's KME does is decided here."""
        self.kmes[site] = kme
        kme.latency, kme.decide = 0.005, partial(self._decide, site)

    async def run(self, until: float, rounds: int) -> None:
        """One after the other, each kind once before any comes again; at least so many rounds."""
        turn: list[str] = []
        while time.monotonic() < until or len(self.past) < rounds * len(self.kinds):
            await asyncio.sleep(self.chance.uniform(*self.well))
            if self.kinds:
                turn = turn or self.chance.sample(self.kinds, len(self.kinds))
                await self._one(turn.pop())

    async def _one(self, kind: str) -> None:
        sites = self.chance.choice((("alice",), ("bob",), ("alice", "bob")))
        # Only the master's KME drops keys, and only the slave's is asked for unknown ones.
        sites = {"drops undelivered keys": ("alice",), "answers 500 for unknown keys": ("bob",)}.get(kind, sites)
        self._delay = self.chance.uniform(self.lasting[0] / 5, self.lasting[1] / 4)
        episode = self._now = Episode(kind, sites, time.monotonic())
        self.past.append(episode)
        self.link.drops_undelivered = self.always_drops or kind == "drops undelivered keys"
        if kind == "answers 500 for unknown keys":
            self.link.lag_asks, self.kmes["bob"].not_found = _LAG_ASKS, _UNKNOWN
        try:
            await asyncio.sleep(self.chance.uniform(*self.lasting))
        finally:
            self._now, self.link.lag_asks, self.kmes["bob"].not_found = None, 0, None
            self.link.drops_undelivered = self.always_drops
            self.link.not_found_for.clear()
            episode.end = time.monotonic()

    def _decide(self, site: str, request: KMERequest) -> Misbehaviour | None:
        episode = self._now
        if episode is not None and site in episode.sites:
            episode.calls[f"{site} {request.call}"] += 1
            if (how := self._in_episode(episode.kind)) is not None:
                return how
        if self.chance.random() >= self.failing:
            return None
        how = self.chance.choice(_ONE_BY_ONE)
        self.one_by_one[how.kind] += 1
        return how

    def _in_episode(self, kind: str) -> Misbehaviour | None:
        spends = kind.endswith("spends")
        if kind == "hangs":
            return Misbehaviour("hang")
        if kind.startswith("resets"):
            return Misbehaviour(self.chance.choice(("drop", "lose_reply")), spends=spends)
        if kind.startswith("garbles"):
            return Misbehaviour(self.chance.choice(_GARBLED), spends=spends)
        if kind == "delays":
            return Misbehaviour("late", seconds=self._delay * self.chance.uniform(0.5, 1))
        return None
