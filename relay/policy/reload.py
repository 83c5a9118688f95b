"""The policy set in force, and reloading after edits: a complete new set or none, after a quiet period.
A broken edit leaves the previous set in force, and is logged and counted; a caller keeps the set it got.

A missing file may come back, since many programs replace a file by deleting it first. Mail that another file covers
meanwhile may leave in clear. So a set that lacks a file waits for a longer quiet period.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from functools import partial
from itertools import islice
from pathlib import Path

import structlog

from relay.counting import metrics
from relay.counting.board import Board
from relay.errors import ConfigError
from relay.files.stamps import Seen
from relay.policy.decide import PolicySet
from relay.policy.expected import failures
from relay.policy.last_good import LastGood
from relay.policy.load import PolicyFolder
from relay.policy.names import SUFFIX
from relay.policy.polled import LOOK_S, SHARE
from relay.policy.settings import today
from relay.policy.site import ANY_SITE, SiteFacts
from relay.policy.starting import begin, said_writers
from relay.policy.step import SetFiles
from relay.policy.thread import GATHER_S, WatchThread
from relay.policy.watch import EVERYTHING, Changes, DirectoryWatch
from relay.policy.writers import being_written

log = structlog.get_logger(__name__)

MAX_LOGGED = 20
"""Maximum number of faults, and of names, in one log line."""
QUIET_S = 0.4
"""Time without changes after which a set comes into force, in seconds."""
GONE_QUIET_S = 2.0
"""Time without changes after which vanished files count as gone, in seconds."""
LOUD_S = 10.0
"""Time of waiting for quiet, or of reading files, after which it is logged, in seconds."""
HANG_LOOK_S = 1.0
"""Interval of checks whether the thread that reads files hangs, in seconds."""
RESCAN_S = 60.0
"""Interval of full scans, for changes that the kernel does not report, in seconds."""
UNWATCHED_S = 2.0
"""The same, in seconds, if the kernel cannot report changes at all."""
RELEASE_S = 60.0
"""Time without changes after which replaced files are released, in seconds: no mail takes longer."""
UNWATCHED_SHARE = 0.05
"""Maximum share of time spent polling without a watch: many files are polled less often."""


class PoliciesInForce:
    """The policy set in force; calling it returns that set, which is immutable."""

    def __init__(
        self,
        directory: Path,
        peers: Mapping[str, Sequence[str]],
        clock: Callable[[], float] = time.monotonic,
        *,
        board: Board | None = None,
        site: SiteFacts = ANY_SITE,
        last_good: LastGood | None = None,
    ) -> None:
        """Reads the directory, and runs its tests.

        If something is wrong, or files have just changed, the set that was in force last is used. Without one in
        `last_good` this waits for some seconds, and then raises ConfigError. `clock` gives seconds since any moment.
        Results of edits are counted on the `board`.
        """
        self.board = board or Board()
        for outcome in ("loaded", "broken"):
            self.board.cell(metrics.POLICY_RELOADS, outcome)
        self._clock = clock
        self._peers = peers
        self._last_good = last_good
        texts = last_good.texts if last_good is not None and last_good.writes else None
        self._folder = PolicyFolder(directory, peers, site=site, texts=texts)
        self._problems: tuple[str, ...] = ()
        self._failing: tuple[str, ...] = ()
        self._day = today()
        self._waits_for = ""
        self._as_others = False
        self._pending: dict[str, Seen] = {}
        self._missing: list[str] = []
        self._unsettled = False
        self._changed_at = self._began_at = clock()
        self._loud = False
        self._told_at = float("-inf")
        self._asked = False
        self._anew = False
        self._step_began: float | None = None
        self._rescan_at = float("-inf")
        self._thread: WatchThread | None = None
        self._begin(site)
        self._show()

    def _begin(self, site: SiteFacts) -> None:
        """Raises ConfigError."""
        others_wait, others_serve = self._others_wait, self._others_serve
        start = begin(
            self._folder, self._last_good, self._peers, site, others_wait=others_wait, others_serve=others_serve
        )
        self._as_others = start.changed_s is not None and self._others_wait()
        self._take(start.now, start.failing)
        if start.changed_s is not None:
            self._unsettle()
            self._changed_at -= start.changed_s
        if start.problems:
            self._keep(self._current, list(start.problems))
        if not start.is_from_before:
            self._keep_copy()

    def _others_wait(self) -> bool:
        """Whether another worker waits: it may have seen a program open a file before this one watched."""
        return max(self.board.elsewhere(metrics.POLICY_WAITS).values(), default=0.0) > 0

    def _others_serve(self) -> set[str]:
        """The versions in use by other workers."""
        return {version for (version,), counts in self.board.elsewhere(metrics.POLICY).items() if counts}

    def _take(self, now: SetFiles, failing: Iterable[str] = ()) -> None:
        """Puts this set into force; `failing` are its tests that fail today."""
        self._now, self._current = now, now.policies
        self._failing = tuple(failing)

    def _keep_copy(self) -> None:
        if self._last_good is not None:
            self._last_good.keep(self._now, self._folder.directory)

    def __call__(self) -> PolicySet:
        return self._current

    @property
    def problems(self) -> tuple[str, ...]:
        """Faults of the files when last read; empty if they are in force."""
        return self._problems

    @property
    def failing(self) -> tuple[str, ...]:
        """The tests of the set in force that fail today, a line for each."""
        return self._failing

    @property
    def waits_for(self) -> str:
        """Why an edit is not in force yet, "" if none has waited for long."""
        return self._waits_for

    def set_peers(self, peers: Mapping[str, Sequence[str]]) -> None:
        """Sets the peers and their domains; to be called from the callback of `watch`.

        Whose a domain is counts at once, also if the files are invalid. All else counts with the next set.
        """
        if peers != self._peers:
            self._peers = peers
            self._folder.set_peers(peers)
            self._take(self._now._replace(policies=replace(self._current, owners=self._folder.owners)), self._failing)
            self._anew, self._rescan_at = True, float("-inf")

    def reload(self) -> None:
        """Rescans everything, and applies it completely or not at all: at once, or by `watch` if that runs."""
        if self._thread is not None:
            self._asked = True
            self._thread.wake()
        else:
            self.note(EVERYTHING)
            self.settle(quiet_s=0.0)

    async def watch(self, first: Callable[[], None] = lambda: None) -> None:
        """Follows edits until cancelled, in a thread of its own.

        `first` is called there before each check, every LOOK_S seconds or more often; it must not raise.
        """
        ended = asyncio.Event()
        loop = asyncio.get_running_loop()
        self._thread = WatchThread(partial(self._follow_edits, first), lambda: loop.call_soon_threadsafe(ended.set))
        reported: float | None = None
        try:
            while not ended.is_set():
                with suppress(TimeoutError):
                    await asyncio.wait_for(ended.wait(), HANG_LOOK_S)
                reported = self._log_hang(reported)
            raise RuntimeError("the thread that follows edits of policies has ended")
        finally:
            thread, self._thread = self._thread, None
            await asyncio.to_thread(thread.end)

    def note(self, changes: Changes) -> None:
        """Records changes; each changed file or directory restarts the quiet period."""
        faults = self._folder.listing_faults
        if changes.everything:
            found = self._folder.outdated()
            self._unsettle()
        else:
            found = self._folder.look_at(changes.names)
            if changes.directories:
                found |= self._folder.outdated(changes.directories)
                self._unsettle()
        if self._folder.listing_faults != faults:  # the mode of a new directory may be set last
            self._changed_at = self._clock()
        self._record_stamps(found)

    def settle(self, watch: DirectoryWatch | None = None, *, quiet_s: float | None = None) -> None:
        """Applies the recorded changes after this quiet period, in seconds, unless a file is still being written."""
        if self._unsettled and not self._still_busy(watch, QUIET_S if quiet_s is None else quiet_s):
            self._take_over(self._pending, watch)
        elif not self._unsettled and self._missing and self._quiet(GONE_QUIET_S):
            self._take_over(self._missing, watch)

    def _unsettle(self) -> None:
        if not self._unsettled:
            if not self._missing:  # else it is part of the same edit
                self._loud, self._began_at = False, self._clock()
            self._unsettled = True

    def _record_stamps(self, found: Mapping[str, Seen]) -> None:
        for name, stamp in found.items():
            if stamp != (self._pending[name] if name in self._pending else self._folder.stamp(name)):
                self._changed_at = self._clock()
            self._pending[name] = stamp
            self._unsettle()

    def _quiet(self, seconds: float) -> bool:
        return self._clock() - self._changed_at >= seconds

    def _still_busy(self, watch: DirectoryWatch | None, quiet_s: float) -> bool:
        """Whether files still change or are open for writing; logs if that takes long."""
        writers = dict.fromkeys(watch.written, "") if watch is not None else {}
        if not writers and self._quiet(quiet_s) and (writers := being_written(self._folder.directory, self._pending)):
            self._changed_at = self._clock()  # limits how often programs are checked
        self._as_others = self._as_others and not (watch is not None and watch.closings) and self._others_wait()
        busy = bool(writers) or self._as_others or not self._quiet(quiet_s)
        if busy and self._clock() - max(self._began_at, self._told_at) >= LOUD_S:
            self._told_at = self._clock()
            writers |= being_written(self._folder.directory, self._pending)
            self._waits_for = _why_waiting(writers)
            if not self._loud:
                self._loud = True
                log.warning(
                    "policies_not_quiet",
                    files=_some(self._pending),
                    number=len(self._pending),
                    open_for_writing=[said_writers({name: writers[name]}) for name in _some(writers)],
                    version=self._current.version,
                )
        return busy

    def _take_over(self, names: Collection[str], watch: DirectoryWatch | None) -> None:
        """Puts the new set into force unless it is faulty; logs nothing if nothing changed."""
        began = time.perf_counter()
        before = self._current
        problems: list[str] = []
        policies = before
        try:
            policies = self._folder.read_again(names)
            if policies.version != before.version or self._problems or self._anew:
                problems = failures(self._folder.tests, policies)
        except ConfigError as error:
            problems = error.problems
        if self._has_changed_meanwhile(watch):
            return
        read, self._unsettled = _some(names), False
        while self._pending:  # one by one: freeing 100,000 at once would block every thread
            self._pending.popitem()
        if problems:
            self._missing = []
            self._keep(before, problems)
            return
        gone = [name for name in before.files if name not in policies.files]
        gone += sorted(self._now.beside.keys() - self._folder.beside)
        if gone and self._waits(gone):
            return
        self._missing = []
        if policies.version == before.version and not self._problems and not self._anew:
            return
        if gone:
            log.warning("policy_file_gone", files=gone[:MAX_LOGGED], number=len(gone), version=policies.version)
        self._take(SetFiles.read(policies, self._folder))
        self._problems, self._anew = (), False  # not before the set counts: all would seem well while the old one does
        self._keep_copy()
        self.board.add(metrics.POLICY_RELOADS, "loaded")
        self.board.set(metrics.POLICY, before.version, to=math.nan)
        self._show()
        log.info(
            "policies_loaded",
            version=policies.version,
            before=before.version,
            files=len(policies.files),
            read=read,
            seconds=round(time.perf_counter() - began, 4),
        )

    def _has_changed_meanwhile(self, watch: DirectoryWatch | None) -> bool:
        """Whether files have changed since the quiet period began: the texts may be half old and half new."""
        changed = False
        for name, stamp in self._pending.items():
            if stamp != (now := self._folder.stamp(name)):
                self._pending[name], changed = now, True
        if changed:
            self._changed_at = self._clock()
        if watch is not None:
            changed_at = self._changed_at
            self.note(watch.look())
            changed |= self._changed_at != changed_at
        return changed

    def _keep(self, before: PolicySet, problems: list[str]) -> None:
        if tuple(problems) != self._problems:
            self._problems = tuple(problems)
            self.board.add(metrics.POLICY_RELOADS, "broken")
            self._show()
            log.error("policies_not_reloaded", problems=problems[:MAX_LOGGED], version=before.version)

    def _show(self) -> None:
        self.board.set(metrics.POLICY, self._current.version, to=1)
        self.board.set(metrics.POLICY_FILES, to=len(self._current.files))
        self.board.set(metrics.POLICY_PROBLEMS, to=len(self._problems))
        self.board.set(metrics.POLICY_TESTS_FAILING, to=len(self._failing))

    def _waits(self, gone: list[str]) -> bool:
        """Whether a set that lacks files has to wait."""
        if not self._missing:
            log.info("policy_file_missing", files=gone[:MAX_LOGGED], number=len(gone), gone_in_s=GONE_QUIET_S)
        self._missing = gone
        return not self._quiet(GONE_QUIET_S)

    def _log_waiting(self) -> None:
        waits = self._unsettled or bool(self._missing)
        self._waits_for = self._waits_for if waits else ""
        self.board.set(metrics.POLICY_WAITS, to=self._clock() - self._began_at if waits else 0.0)

    def _try_tests_again(self) -> None:
        """Runs the tests again on a new day: files and rules may have begun or ended."""
        if (day := today()) == self._day:
            return
        self._day = day
        failing = tuple(failures(self._now.tests, self._current))
        if failing and failing != self._failing:
            log.error("policy_tests_fail", tests=list(failing[:MAX_LOGGED]), number=len(failing), day=day.isoformat())
        self._failing = failing
        self._show()

    def _follow_edits(self, first: Callable[[], None], thread: WatchThread) -> None:
        """Runs until the thread has to end; errors do not end it."""
        watch = DirectoryWatch(self._folder.directory)
        trouble = ""
        while thread.wait(watch.fd, UNWATCHED_S if trouble else self._pause_s()):
            self._step_began = self._clock()
            first()
            try:
                self._step(watch)
                trouble = ""
            except Exception as error:
                if trouble != (trouble := f"{type(error).__name__}: {error}"):
                    log.error("policies_not_followed", cause=trouble, instead="tried again", exc_info=error)
                watch.close()
            self._step_began = None
        watch.close()

    def _log_hang(self, reported: float | None) -> float | None:
        """Logs once for each step that takes long, since no edit is applied meanwhile; returns the last start."""
        began = self._step_began
        if began is None or began == reported or self._clock() - began < LOUD_S:
            return reported
        cause = "reading takes long, as where a file system does not answer"
        log.error(
            "policies_take_long", directory=str(self._folder.directory), cause=cause, version=self._current.version
        )
        return began

    def _pause_s(self) -> float:
        if self._unsettled and not self._loud:
            return GATHER_S
        return max(0.0, min(LOOK_S, self._folder.polled.due - self._clock()))

    def _step(self, watch: DirectoryWatch) -> None:
        """Checks once for changes, and applies them."""
        now = self._clock()
        moved = self._folder.polled.look(now)
        look_at_all = now >= self._rescan_at
        if self._asked:
            self._asked, look_at_all = False, True
        directories = {name for name in moved if not name.endswith(SUFFIX)}
        changes = watch.look(directories, anew=look_at_all)
        self.note(Changes(changes.names | (moved - directories), changes.directories))
        if look_at_all or changes.everything:
            cost = _timed(lambda: self.note(EVERYTHING))
            every, share = (RESCAN_S, SHARE) if watch.fd is not None else (UNWATCHED_S, UNWATCHED_SHARE)
            self._rescan_at = now + max(every, cost / share)
        self.settle(watch)
        self._log_waiting()
        self._try_tests_again()
        if self._last_good is not None:
            self._last_good.go_by(self._current.version, self._others_serve)
        if not self._unsettled and self._quiet(RELEASE_S):
            while self._folder.release():
                time.sleep(0.001)


def _some(names: Iterable[str]) -> list[str]:
    """Returns the names to log; sorting all of 100,000 would block every thread."""
    return sorted(islice(names, MAX_LOGGED))


def _why_waiting(writers: Mapping[str, str]) -> str:
    """The cause for the log; its second part names files."""
    return f"since a file is open for writing: {said_writers(writers)}" if writers else "since files go on changing"


def _timed(work: Callable[[], object]) -> float:
    """The time it took in this thread, in seconds."""
    began = time.thread_time()
    work()
    return time.thread_time() - began
