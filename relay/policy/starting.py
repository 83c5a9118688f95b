"""Chooses the policy set for the start of a relay or worker: that of the files, or the one in force before.
Standard: policies/README.md; files that may be half written, or about to come back, are not used yet.

It checks when a file or directory changed last (ctime), and which programs have files open (writers.py).
If another set was in force, that one serves until the files are quiet; if none was, the start waits for that.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Mapping, Sequence
from time import monotonic, time_ns
from typing import NamedTuple

import structlog

from relay.errors import ConfigError
from relay.policy.expected import failures
from relay.policy.last_good import LastGood
from relay.policy.load import PolicyFolder
from relay.policy.site import SiteFacts
from relay.policy.step import SetFiles
from relay.policy.writers import being_written

log = structlog.get_logger(__name__)

QUIET_S = 0.4
"""Time without changes after which files are used, in seconds."""
GONE_QUIET_S = 2.0
"""Time without changes after which files of the previous set count as gone, in seconds."""
LOOK_S = 0.05
WAIT_S = 10.0
"""Maximum wait without a previous set, in seconds; then the relay ends and is restarted."""


class Start(NamedTuple):
    """The set that a process starts with.

    `failing` are its tests that fail today, `problems` the faults of the files if another set serves.
    `changed_s` is the number of seconds since the files changed if they are not used yet; else None.
    """

    now: SetFiles
    failing: tuple[str, ...] = ()
    problems: tuple[str, ...] = ()
    changed_s: float | None = None

    @property
    def is_from_before(self) -> bool:
        """Whether the set is a previous one, not that of the files."""
        return bool(self.problems) or self.changed_s is not None


def begin(
    folder: PolicyFolder,
    last_good: LastGood | None,
    peers: Mapping[str, Sequence[str]],
    site: SiteFacts,
    *,
    others_wait: Callable[[], bool] = lambda: False,
    others_serve: Callable[[], Collection[str]] = lambda: (),
) -> Start:
    """Reads the files, or the set that was in force last if they cannot be used yet.

    Nor can they be used while `others_wait`, other workers of this relay, for an edit to end. A kept set that none of
    them uses (`others_serve`) is not the last one. Raises ConfigError if the files are faulty or keep changing, and
    there is no previous set.
    """
    before = last_good.newest(folder.directory) if last_good is not None else None
    quiet = _Quiet(folder, last_good)
    until = monotonic() + WAIT_S
    while True:
        found, problems = _files(folder)
        others = others_serve()
        is_last = found is not None and found.policies.version == before and (not others or before in others)
        if found is not None and is_last:  # whether or not its tests fail today
            return Start(found, failing=tuple(problems))
        doubt = quiet.doubt(found) or ("other workers wait until files are quiet" if others_wait() else "")
        if not doubt and not problems and found is not None:
            return Start(found)
        if doubt:
            problems = [*problems, f"{folder.directory}: {doubt}"]
        if last_good is not None:
            try:
                kept = _kept(last_good.read(folder.directory, peers, site), others)
            except ConfigError as none:
                problems += none.problems
            else:
                if doubt:
                    log.warning("policies_not_quiet_at_start", cause=doubt, version=kept.policies.version)
                failing = tuple(failures(kept.tests, kept.policies))
                return Start(kept, failing, () if doubt else tuple(problems), quiet.seconds if doubt else None)
        if not doubt or monotonic() >= until:
            raise ConfigError(problems)
        time.sleep(LOOK_S)


def _kept(kept: SetFiles, others: Collection[str]) -> SetFiles:
    """The kept set. Raises ConfigError unless other workers use the same one, which may be stricter."""
    if others and kept.policies.version not in others:
        raise ConfigError(f"other workers go by version {', '.join(sorted(others))}, which is not kept")
    return kept


def _files(folder: PolicyFolder) -> tuple[SetFiles | None, list[str]]:
    """The set of the files, and their faults or failing tests."""
    try:
        policies = folder.read()
    except ConfigError as error:
        return None, error.problems
    return SetFiles.read(policies, folder), failures(folder.tests, policies)


class _Quiet:
    """The time without changes, by file times or by observation: clocks of file servers may be wrong."""

    def __init__(self, folder: PolicyFolder, last_good: LastGood | None) -> None:
        self._folder, self._last_good = folder, last_good
        self._changed, self._seen_at = 0, monotonic()

    @property
    def seconds(self) -> float:
        """Seconds since the last change."""
        changed = self._folder.changed_ns
        if changed != self._changed:
            self._changed, self._seen_at = changed, monotonic()
        return max(monotonic() - self._seen_at, (time_ns() - changed) / 1e9)

    def doubt(self, found: SetFiles | None) -> str:
        """Why the files cannot be used yet, or ""."""
        if any(seen != self._folder.stamp(name) for name, seen in self._folder.outdated().items()):
            return "files changed while they were read"
        if self.seconds < QUIET_S:
            return "files have just changed"
        gone = self._last_good.gone(found) if self._last_good is not None and found is not None else []
        if gone and self.seconds < GONE_QUIET_S:
            return f"files have just vanished: {', '.join(sorted(gone)[:5])}"
        if writers := being_written(self._folder.directory):
            return f"files are open for writing: {said_writers(writers)}"
        return ""


def said_writers(writers: Mapping[str, str]) -> str:
    """Some files with their programs, for messages."""
    return "; ".join(f"{name} by {program}" if program else name for name, program in sorted(writers.items())[:5])
