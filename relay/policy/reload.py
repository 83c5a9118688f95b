"""The policy set in force, and how edits come into it: a whole new set or none.
Standard: a broken edit leaves the set before in force, and is logged and counted; whoever asked keeps what they got.

A file that is not there may be on its way back: many programs replace a file by deleting it first, and mail that falls
to another file meanwhile may leave in clear. So a set that lacks a file comes into force after a moment of quiet only.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import structlog

from relay.config import MAX_BOUNCE
from relay.errors import ConfigError
from relay.policy.decide import PolicySet
from relay.policy.load import PolicyFolder
from relay.policy.metrics import PolicyMetrics
from relay.policy.watch import LOOK_AGAIN, NOTHING, Changes, watch

log = structlog.get_logger(__name__)

MAX_LOGGED = 20
"""No more faults, and no more names, than this are in one log line."""
GONE_QUIET_S = 2.0
"""Files that vanish are gone when nothing in the directory has changed for so long (seconds)."""


class PoliciesInForce:
    """The policy set that decides now; calling it gives that set, which never changes."""

    def __init__(
        self,
        directory: Path,
        peers: Mapping[str, Sequence[str]],
        metrics: PolicyMetrics | None = None,
        clock: Callable[[], float] = time.monotonic,
        *,
        max_bounce: int = MAX_BOUNCE,
    ) -> None:
        """Reads the directory. Raises ConfigError: a relay does not start on policies that it cannot read.

        `clock` gives seconds since any moment.
        """
        self.metrics = metrics or PolicyMetrics()
        self._clock = clock
        self._changed_at = clock()
        self._incomplete = ""
        self._folder = PolicyFolder(directory, peers, max_bounce=max_bounce)
        self._current = self._folder.read()
        self._problems: tuple[str, ...] = ()
        self._asked = asyncio.Event()
        self._watching = False
        self.metrics.files.set(len(self._current.files))

    def __call__(self) -> PolicySet:
        return self._current

    @property
    def problems(self) -> tuple[str, ...]:
        """What is wrong with the files as they were read last; empty where they are in force."""
        return self._problems

    def reload(self) -> None:
        """Reads what has changed, whole or not at all: at once, or as soon as `watch` can where that runs."""
        if self._watching:
            self._asked.set()
        else:
            self.follow(LOOK_AGAIN)

    async def watch(self) -> None:
        """Takes edits up as they come, until it is cancelled; reading is done in a thread."""
        self._watching = True
        try:
            async for changes in watch(self._folder.directory, self._asked, lambda: self._current.files):
                if changes != NOTHING or self._incomplete:
                    await asyncio.to_thread(self.follow, changes)
        finally:
            self._watching = False

    def follow(self, changes: Changes) -> None:
        """Takes these changes up; NOTHING ends the wait for files that have vanished when its time has come."""
        if changes.happened:
            self._changed_at = self._clock()
        if changes == NOTHING:
            if not self._incomplete or not self._quiet():
                return
            changes = LOOK_AGAIN
        names = changes.names
        read = self._folder.read if names is None else lambda: self._folder.read_again(names)
        self._take_over(read, names)

    def _take_over(self, read: Callable[[], PolicySet], names: frozenset[str] | None) -> None:
        """The new set, unless something is wrong with it; nothing is said where nothing changed."""
        began = time.perf_counter()
        before = self._current
        try:
            policies = read()
        except ConfigError as error:
            self._incomplete = ""
            if tuple(error.problems) != self._problems:
                self._problems = tuple(error.problems)
                self.metrics.reloads.labels(outcome="broken").inc()
                self.metrics.problems.set(len(error.problems))
                log.error("policies_not_reloaded", problems=error.problems[:MAX_LOGGED], version=before.version)
            return
        gone = sorted(before.files.keys() - policies.files.keys())
        if gone and self._waits(policies, gone):
            return
        self._incomplete = ""
        if policies.version == before.version and not self._problems:
            return
        if gone:
            log.warning("policy_file_gone", files=gone[:MAX_LOGGED], number=len(gone), version=policies.version)
        self._problems = ()
        self._current = policies
        self.metrics.reloads.labels(outcome="loaded").inc()
        self.metrics.problems.set(0)
        self.metrics.files.set(len(policies.files))
        log.info(
            "policies_loaded",
            version=policies.version,
            before=before.version,
            files=len(policies.files),
            read=sorted(names)[:MAX_LOGGED] if names is not None else "all that changed",
            seconds=round(time.perf_counter() - began, 4),
        )

    def _waits(self, policies: PolicySet, gone: list[str]) -> bool:
        """Whether a set that lacks files is not to be believed yet; one that differs from the last has just changed."""
        if policies.version != self._incomplete:
            self._changed_at = self._clock()
            if not self._incomplete:
                log.info("policy_file_missing", files=gone[:MAX_LOGGED], number=len(gone), gone_in_s=GONE_QUIET_S)
            self._incomplete = policies.version
        return not self._quiet()

    def _quiet(self) -> bool:
        return self._clock() - self._changed_at >= GONE_QUIET_S
