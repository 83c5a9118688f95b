"""The input of alarm rules: metrics of all processes, their growth, and other observations.
An observation takes some milliseconds, yields to other tasks, and waits for no disk or database.
"""

from __future__ import annotations

import asyncio
import os
from collections import deque
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass, field, replace

from relay.counting import metrics
from relay.counting.held import CAUSES, DIRECTIONS, Waiting
from relay.counting.metric import Labels, Metric, Totals
from relay.forward import NextHop
from relay.identity import KnownSites
from relay.policy.decide import PolicySet
from relay.policy.findings import in_vain
from relay.runtime.aio import boot_time, clock_offset
from relay.status import Watched
from relay.status.ready import Readiness

WINDOW_S = 600.0
"""Window for the growth of numbers, in seconds."""
SAMPLE_S = 10.0
GROWING = (
    metrics.MAILS, metrics.HELD_FIRST, metrics.FAILURES, metrics.KEYS_MISSED, metrics.KME_REQUESTS,
    metrics.RECEIVED_KEYS_REFUSED, metrics.QUARANTINE_PUT,
    metrics.QUARANTINE_FULL, metrics.TRIPWIRE, metrics.LOOP_LAG,
    metrics.UNSEALED_FROM_PEER, metrics.UNSEALED_AT_PEER,
)  # fmt: skip
"""Metrics whose growth is tracked."""
PATIENCE_S = 5.0
TRY_S = 30.0
"""Time without a delivery, or a test connection that succeeded, after which a next hop is tried, in seconds."""
RESTARTS_S = 15.0
"""Time for which it may then be away, in seconds: a mail server that is restarted."""
FINDINGS_S = 0.2
"""Maximum wait of an observation for findings in policy files, in seconds."""
_GONE = ("Gone", "Silent")
ADOPTED_S = 3600.0
"""Time after which a clock that was set is accepted, in seconds."""

Numbers = Mapping[Metric, Mapping[Labels, list[float]]]
Which = Callable[[Labels], bool]


def any_labels(_: Labels) -> bool:
    """Matches all labels."""
    return True


@dataclass(frozen=True, slots=True)
class Observation:
    """One observation; `clock_off` is the size of a clock jump, in seconds, `disk_free` in bytes, None if unknown.

    `not_ready` has the faults found by relay/status/ready.py, by alarm, `in_vain` the number of findings in policy
    files, None if not yet known. `next_hops` has the fault of each next hop that was tried, or ""; with `more_wait`,
    `waiting` is incomplete. `looked_for` is the time since the first observation, in seconds; with `clock_was_set`, the
    clock was set since then.
    """

    watched: Watched
    totals: Numbers
    samples: tuple[tuple[float, Numbers], ...]
    waiting: list[Waiting]
    not_ready: Mapping[str, str]
    disk_free: int | None
    clock_off: float
    next_hops: Mapping[str, str]
    more_wait: bool = False
    in_vain: int | None = 0
    looked_for: float = 0.0
    clock_was_set: bool = False
    now: float = field(default_factory=boot_time)

    def gauges(self, metric: Metric) -> dict[Labels, float]:
        """The values by labels."""
        return {labels: numbers[0] for labels, numbers in self.totals.get(metric, {}).items()}

    def grown(
        self,
        metric: Metric,
        seconds: float,
        matches: Which = any_labels,
        *,
        part: Callable[[list[float]], float] = sum,
    ) -> float:
        """Growth of the counters with these labels within these `seconds`; `part` selects values of a histogram."""
        before = self._before(seconds).get(metric, {})
        none: list[float] = []
        return sum(
            part(numbers) - part(before.get(labels, none))
            for labels, numbers in self.totals.get(metric, {}).items()
            if matches(labels)
        )

    def _before(self, seconds: float) -> Numbers:
        """The latest sample of at least this age, else the oldest."""
        old = [numbers for at, numbers in self.samples if self.now - at >= seconds]
        return old[-1] if old else self.samples[0][1]


class Observer:
    """Makes observations, and keeps samples to compare with."""

    def __init__(self, watched: Watched, readiness: Readiness, next_hops: Mapping[str, NextHop]) -> None:
        """Takes the first sample."""
        self._watched = watched
        self._readiness = readiness
        self._next_hops = next_hops
        self._began = boot_time()
        self._samples = deque([(self._began, _growing(watched.board.totals_now()))])
        self._policies: PolicySet | None = None
        self._known: KnownSites | None = None
        self._in_vain: int | None = None
        self._finding: asyncio.Future[int] | None = None
        self._well = dict.fromkeys(next_hops, self._began)
        self._clock = clock_offset()
        self._clock_seen, self._clock_since = self._clock, boot_time()
        self._clock_was_set = False

    async def look(self, to_try: Iterable[str] = ()) -> Observation:
        """Makes an observation, and writes its own metrics to the board.

        Tries the next hops of these directions, those recently unreachable, and those without mail for TRY_S.
        """
        board = self._watched.board
        totals = await board.totals()
        waiting = await board.held.waiting()
        self._show(waiting)
        free = await asyncio.to_thread(free_octets, self._watched)
        if free is not None:
            board.set(metrics.DISK_FREE, to=free)
        now = boot_time()
        self._sample(now, totals)
        not_ready, clock_off = self._readiness.found, self._clock_off(now)
        seen = Observation(
            self._watched,
            totals,
            tuple(self._samples),
            waiting,
            not_ready,
            free,
            clock_off,
            {},
            board.held.more,
            await self._policy_findings(),
            now - self._began,
            self._clock_was_set,
            now,
        )
        to_try = {*to_try, *(each for each in self._next_hops if _failed(seen, each))}
        tried = {each: await self._tried(each) for each in self._next_hops if each in to_try or self._idle(seen, each)}
        self._well |= {each: now for each, fault in tried.items() if not fault}
        sure = {each for each in tried if each in to_try or now - self._well[each] >= TRY_S + RESTARTS_S}
        return replace(seen, next_hops={each: fault for each, fault in tried.items() if each in sure or not fault})

    def _idle(self, seen: Observation, direction: str) -> bool:
        """Whether only a test connection can tell that this next hop is available."""
        if seen.grown(metrics.MAILS, TRY_S, lambda each: each[0] == direction and each[-1] in ("delivered", "inside")):
            self._well[direction] = max(self._well[direction], seen.now - TRY_S)
            return False
        return seen.now - self._well[direction] >= TRY_S

    async def _policy_findings(self) -> int | None:
        """Number of findings, determined once for each policy set and all peers; the old one while that takes long."""
        policies, known = self._watched.policies(), self._watched.known()
        if self._finding is None and (policies is not self._policies or known is not self._known):
            sends, peers = self._watched.config.outgoing is not None, known.config.peers
            self._policies, self._known = policies, known
            self._finding = asyncio.get_running_loop().run_in_executor(None, _findings_in, policies, sends, peers)
        if self._finding is not None:
            done, _ = await asyncio.wait([self._finding], timeout=FINDINGS_S)
            for finding in done:
                self._finding, self._in_vain = None, finding.result()
        return self._in_vain

    async def _tried(self, direction: str) -> str:
        """The fault of all servers of the next hop, "" if one is available."""
        try:
            async with asyncio.timeout(PATIENCE_S):
                problems = [problem for _, problem in await self._next_hops[direction].states()]
        except TimeoutError:
            return f"no answer within {PATIENCE_S:.0f} s"
        except Exception as error:  # noqa: BLE001 - in any case nothing can be delivered
            return f"{type(error).__name__}: {error}"
        return "" if "" in problems else "; ".join(problems)

    def _sample(self, now: float, totals: Totals) -> None:
        if now - self._samples[-1][0] >= SAMPLE_S:
            self._samples.append((now, _growing(totals)))
        while len(self._samples) > 1 and now - self._samples[1][0] > WINDOW_S:
            self._samples.popleft()

    def _show(self, waiting: list[Waiting]) -> None:
        board = self._watched.board
        for direction in DIRECTIONS:
            ours = [each for each in waiting if each.direction == direction]
            by_cause = {each.cause: (each.recipients, each.longest) for each in ours}
            for cause in CAUSES:
                recipients, longest = by_cause.get(cause, (0, 0.0))
                board.set(metrics.HELD_RECIPIENTS, direction, cause, to=recipients)
                board.set(metrics.HELD_SECONDS, direction, cause, to=longest)

    def _clock_off(self, now: float) -> float:
        offset = clock_offset()
        if abs(offset - self._clock_seen) > 1:
            self._clock_seen, self._clock_since = offset, now
            self._clock_was_set = True
        if now - self._clock_since > ADOPTED_S:
            self._clock = offset
        return offset - self._clock


def _findings_in(policies: PolicySet, sends: bool, peers: Collection[str]) -> int:
    return sum(1 for _ in in_vain(policies, sends=sends, peers=peers))


def _growing(totals: Totals) -> Numbers:
    return {metric: totals[metric] for metric in GROWING if metric in totals}


def _failed(seen: Observation, direction: str) -> bool:
    """Whether the next hop was unreachable for some mail within TRY_S."""
    return seen.grown(metrics.FAILURES, TRY_S, lambda each: each[0] == direction and each[1] in _GONE) > 0


def free_octets(watched: Watched) -> int | None:
    try:
        disk = os.statvfs(watched.config.state_directory)
    except OSError:
        return None
    return disk.f_bavail * disk.f_frsize
