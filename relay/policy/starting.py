"""Which set of policies a relay or a worker starts with: what the files say, or the set that was in force before.
Standard: policies/README.md; files that may be half written, or on their way back, do not count yet.

What can be asked is when a file or directory changed last (ctime), and which programs have files open (writers.py).
Where another set was in force, that one serves until the files are quiet; where none was, the relay starts no sooner.
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
"""Time without changes after which files are believed, in seconds."""
GONE_QUIET_S = 2.0
"""Time without changes after which files that the set before had count as gone, in seconds."""
LOOK_S = 0.05
WAIT_S = 10.0
"""Maximum wait of a relay that has no set from before, in seconds: then it ends, and is started anew."""


class Start(NamedTuple):
    """The set that a process starts with.

    `failing` are tests of it that fail today, `problems` what is wrong with the files where another set serves.
    `changed_s` is how many seconds ago the files changed, where they are not believed yet; else None.
    """

    now: SetFiles
    failing: tuple[str, ...] = ()
    problems: tuple[str, ...] = ()
    changed_s: float | None = None

    @property
    def is_from_before(self) -> bool:
        """Whether the files say something else, or something wrong."""
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
    """Reads the files, and the set that was in force last where they cannot be believed.

    They cannot either where `others_wait`, other workers of this relay, for an edit to end. A set that is kept and that
    none of them goes by (`others_serve`) is not the last one. Raises ConfigError where the files are wrong, or go on
    changing, and there is no set from before.
    """
    before = last_good.newest(folder.directory) if last_good is not None else None
    quiet = _Quiet(folder, last_good)
    until = monotonic() + WAIT_S
    while True:
        found, problems = _files(folder)
        others = others_serve()
        is_last = found is not None and found.policies.version == before and (not others or before in others)
        if found is not None and is_last:  # whatever its tests say on this day
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
    """Raises ConfigError where it is not the one that other workers go by: that may be stricter."""
    if others and kept.policies.version not in others:
        raise ConfigError(f"other workers go by version {', '.join(sorted(others))}, which is not kept")
    return kept


def _files(folder: PolicyFolder) -> tuple[SetFiles | None, list[str]]:
    """What the files are, and what is wrong with them or which test fails."""
    try:
        policies = folder.read()
    except ConfigError as error:
        return None, error.problems
    return SetFiles.read(policies, folder), failures(folder.tests, policies)


class _Quiet:
    """For how long nothing has changed, as the file system says, or as it was seen: clocks of servers may be wrong."""

    def __init__(self, folder: PolicyFolder, last_good: LastGood | None) -> None:
        self._folder, self._last_good = folder, last_good
        self._changed, self._seen_at = 0, monotonic()

    @property
    def seconds(self) -> float:
        """Since the last change."""
        changed = self._folder.changed_ns
        if changed != self._changed:
            self._changed, self._seen_at = changed, monotonic()
        return max(monotonic() - self._seen_at, (time_ns() - changed) / 1e9)

    def doubt(self, found: SetFiles | None) -> str:
        """Why the files as they were read are not to be believed yet, or ""."""
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
    """Some files with their programs, for a person."""
    return "; ".join(f"{name} by {program}" if program else name for name, program in sorted(writers.items())[:5])
