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
from relay.files.quiet import GONE_QUIET_S, QUIET_S, Quiet
from relay.policy.expected import failures
from relay.policy.last_good import LastGood
from relay.policy.load import PolicyFolder
from relay.policy.site import SiteFacts
from relay.policy.step import SetFiles
from relay.policy.walk import Listing
from relay.policy.writers import being_written

log = structlog.get_logger(__name__)

LOOK_S = 0.05
WAIT_S = 10.0
"""Maximum wait without a previous set, in seconds; then the relay ends and is restarted."""


class Start(NamedTuple):
    """The set that a process starts with, and the state of the files when they were `read`.

    `failing` are its tests that fail today, `problems` the faults of the files if another set serves. Files that
    `is_edited` are not used yet.
    """

    now: SetFiles
    read: Listing
    failing: tuple[str, ...] = ()
    problems: tuple[str, ...] = ()
    is_edited: bool = False

    @property
    def is_from_before(self) -> bool:
        """Whether the set is a previous one, not that of the files."""
        return bool(self.problems) or self.is_edited


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
    quiet = Quiet(monotonic)
    until = monotonic() + WAIT_S
    while True:
        seen = Listing.of(folder.directory)
        found, problems = _files(folder, seen)
        others = others_serve()
        is_last = found is not None and found.policies.version == before and (not others or before in others)
        if found is not None and is_last:  # whether or not its tests fail today
            return Start(found, seen, failing=tuple(problems))
        gone = last_good.gone(found) if last_good is not None and found is not None else ()
        doubt = _doubt(seen, quiet, gone) or ("other workers wait until files are quiet" if others_wait() else "")
        if not doubt and not problems and found is not None:
            return Start(found, seen)
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
                return Start(kept, seen, failing, () if doubt else tuple(problems), is_edited=bool(doubt))
        if not doubt or monotonic() >= until:
            raise ConfigError(problems)
        time.sleep(LOOK_S)


def _kept(kept: SetFiles, others: Collection[str]) -> SetFiles:
    """The kept set. Raises ConfigError unless other workers use the same one, which may be stricter."""
    if others and kept.policies.version not in others:
        raise ConfigError(f"other workers go by version {', '.join(sorted(others))}, which is not kept")
    return kept


def _files(folder: PolicyFolder, seen: Listing) -> tuple[SetFiles | None, list[str]]:
    """The set of the files, and their faults or failing tests."""
    try:
        policies = folder.read(seen)
    except ConfigError as error:
        return None, error.problems
    return SetFiles.read(policies, folder), failures(folder.tests, policies)


def _doubt(read: Listing, quiet: Quiet, gone: Collection[str]) -> str:
    """Why the files cannot be used yet, or ""."""
    began = monotonic()
    seen = Listing.of(read.directory, read.files)
    # By file times or by observation: clocks of file servers may be wrong.
    seconds = max(quiet.seconds(seen, began), (time_ns() - seen.changed_ns) / 1e9)
    if seen != read:
        return "files changed while they were read"
    if seconds < QUIET_S:
        return "files have just changed"
    if gone and seconds < GONE_QUIET_S:
        return f"files have just vanished: {', '.join(sorted(gone)[:5])}"
    if writers := being_written(read.directory):
        return f"files are open for writing: {said_writers(writers)}"
    return ""


def said_writers(writers: Mapping[str, str]) -> str:
    """Some files with their programs, for messages."""
    return "; ".join(f"{name} by {program}" if program else name for name, program in sorted(writers.items())[:5])
