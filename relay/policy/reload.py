"""The policy set in force, and how edits come into it: a whole new set or none, after a moment of quiet.
A broken edit leaves the set before in force, and is logged and counted; a caller keeps the set it got.

A file that is not there may be on its way back, since many programs replace a file by deleting it first. Mail that
falls to another file meanwhile may leave in clear. So a set that lacks a file waits for a longer quiet.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from contextlib import suppress
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
"""Time until quiet, or for reading the files, from which the log reports it, in seconds."""
HANG_LOOK_S = 1.0
"""How often it is looked whether the thread that reads files still waits for one (seconds)."""
RESCAN_S = 60.0
"""How often all files are looked at, for what the kernel does not report (seconds)."""
UNWATCHED_S = 2.0
"""How often, where the kernel cannot report changes at all."""
RELEASE_S = 60.0
"""Time without changes after which replaced files are released, in seconds: no mail takes longer."""
UNWATCHED_SHARE = 0.05
"""Maximum share of time spent polling without a watch: many files are polled less often."""


class PoliciesInForce:
    """The policy set that decides now; calling it gives that set, which never changes."""

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
        """Reads the directory, and tries its tests.

        Where something is wrong, or files have changed just now, the set that was in force last comes into force again.
        Without one in `last_good` this waits for some seconds, and then raises ConfigError. `clock` gives seconds since
        any moment. What becomes of edits is counted on the `board`.
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
        """Whether another worker waits: it may know of a program that had a file open before this one watched."""
        return max(self.board.elsewhere(metrics.POLICY_WAITS).values(), default=0.0) > 0

    def _others_serve(self) -> Collection[str]:
        """The versions that other workers go by."""
        return {version for (version,), counts in self.board.elsewhere(metrics.POLICY).items() if counts}

    def _take(self, now: SetFiles, failing: Iterable[str] = ()) -> None:
        """This set is in force from here on; these of its tests fail today."""
        self._now, self._current = now, now.policies
        self._failing = tuple(failing)

    def _keep_copy(self) -> None:
        if self._last_good is not None:
            self._last_good.keep(self._now, self._folder.directory)

    def __call__(self) -> PolicySet:
        return self._current

    @property
    def problems(self) -> tuple[str, ...]:
        """What is wrong with the files as they were read last; empty where they are in force."""
        return self._problems

    @property
    def failing(self) -> tuple[str, ...]:
        """The tests of the set in force that fail today, a line for each."""
        return self._failing

    @property
    def waits_for(self) -> str:
        """Why an edit does not come into force, "" where none waits for long."""
        return self._waits_for

    def set_peers(self, peers: Mapping[str, Sequence[str]]) -> None:
        """These are the peers, with their domains, from the next set on; to be called by what `watch` calls.

        Where files are wrong beside them, the set before stays in force.
        """
        if peers != self._peers:
            self._peers = peers
            self._folder.set_peers(peers)
            self._anew, self._rescan_at = True, float("-inf")

    def reload(self) -> None:
        """Looks at everything, and takes it whole or not at all: at once, or as soon as `watch` can where that runs."""
        if self._thread is not None:
            self._asked = True
            self._thread.wake()
        else:
            self.note(EVERYTHING)
            self.settle(quiet_s=0.0)

    async def watch(self, first: Callable[[], None] = lambda: None) -> None:
        """Takes edits up as they come, until it is cancelled; all of it is done in a thread of its own.

        `first` is called there before each look, every LOOK_S seconds or more often; it raises nothing.
        """
        ended = asyncio.Event()
        loop = asyncio.get_running_loop()
        self._thread = WatchThread(partial(self._follow_edits, first), lambda: loop.call_soon_threadsafe(ended.set))
        told: float | None = None
        try:
            while not ended.is_set():
                with suppress(TimeoutError):
                    await asyncio.wait_for(ended.wait(), HANG_LOOK_S)
                told = self._say_if_it_hangs(told)
            raise RuntimeError("the thread that follows edits of policies has ended")
        finally:
            thread, self._thread = self._thread, None
            await asyncio.to_thread(thread.end)

    def note(self, changes: Changes) -> None:
        """Takes down what changed; with every file or directory that is not as it was, the quiet begins anew."""
        faults = self._folder.listing_faults
        if changes.everything:
            found = self._folder.outdated()
            self._unsettle()
        else:
            found = self._folder.look_at(changes.names)
            if changes.directories:
                found |= self._folder.outdated(changes.directories)
                self._unsettle()
        if self._folder.listing_faults != faults:  # of a new directory the mode may be set last
            self._changed_at = self._clock()
        self._take_down(found)

    def settle(self, watch: DirectoryWatch | None = None, *, quiet_s: float | None = None) -> None:
        """Takes over what was noted, if there has been quiet for this time, in seconds, and nobody is still writing."""
        if self._unsettled and not self._still_busy(watch, QUIET_S if quiet_s is None else quiet_s):
            self._take_over(self._pending, watch)
        elif not self._unsettled and self._missing and self._quiet(GONE_QUIET_S):
            self._take_over(self._missing, watch)

    def _unsettle(self) -> None:
        if not self._unsettled:
            if not self._missing:  # else it is still the same edit
                self._loud, self._began_at = False, self._clock()
            self._unsettled = True

    def _take_down(self, found: Mapping[str, Seen]) -> None:
        for name, stamp in found.items():
            if stamp != (self._pending[name] if name in self._pending else self._folder.stamp(name)):
                self._changed_at = self._clock()
            self._pending[name] = stamp
            self._unsettle()

    def _quiet(self, seconds: float) -> bool:
        return self._clock() - self._changed_at >= seconds

    def _still_busy(self, watch: DirectoryWatch | None, quiet_s: float) -> bool:
        """Whether files still change or are open for writing; where that goes on and on, the log says so."""
        writers = dict.fromkeys(watch.written, "") if watch is not None else {}
        if not writers and self._quiet(quiet_s) and (writers := being_written(self._folder.directory, self._pending)):
            self._changed_at = self._clock()  # so that programs are looked at no more often than this
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
        """The new set, unless something is wrong with it; nothing is said where nothing changed."""
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
        while self._pending:  # one by one: to let 100,000 go at once would hold every thread
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
        """Whether files have changed since the quiet began: what was read may be half old and half new."""
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
        """Whether a set that lacks files is not to be believed yet."""
        if not self._missing:
            log.info("policy_file_missing", files=gone[:MAX_LOGGED], number=len(gone), gone_in_s=GONE_QUIET_S)
        self._missing = gone
        return not self._quiet(GONE_QUIET_S)

    def _tell_if_it_waits(self) -> None:
        waits = self._unsettled or bool(self._missing)
        self._waits_for = self._waits_for if waits else ""
        self.board.set(metrics.POLICY_WAITS, to=self._clock() - self._began_at if waits else 0.0)

    def _try_tests_again(self) -> None:
        """On a new day: files and rules have begun or ended."""
        if (day := today()) == self._day:
            return
        self._day = day
        failing = tuple(failures(self._now.tests, self._current))
        if failing and failing != self._failing:
            log.error("policy_tests_fail", tests=list(failing[:MAX_LOGGED]), number=len(failing), day=day.isoformat())
        self._failing = failing
        self._show()

    def _follow_edits(self, first: Callable[[], None], thread: WatchThread) -> None:
        """Runs until the thread has to end. Nothing that goes wrong ends it before."""
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

    def _say_if_it_hangs(self, told: float | None) -> float | None:
        """Says once of each step that it takes long, for no edit counts meanwhile; gives when the last began."""
        began = self._step_began
        if began is None or began == told or self._clock() - began < LOUD_S:
            return told
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
        """One look at what has changed, and what follows from it."""
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
        self._tell_if_it_waits()
        self._try_tests_again()
        if not self._unsettled and self._quiet(RELEASE_S):
            while self._folder.release():
                time.sleep(0.001)


def _some(names: Iterable[str]) -> list[str]:
    """Returns as many names as are logged; sorting all of 100,000 would block every thread."""
    return sorted(islice(names, MAX_LOGGED))


def _why_waiting(writers: Mapping[str, str]) -> str:
    """As a cause whose second part names files."""
    return f"since a file is open for writing: {said_writers(writers)}" if writers else "since files go on changing"


def _timed(work: Callable[[], object]) -> float:
    """How many seconds of this thread's time it took."""
    began = time.thread_time()
    work()
    return time.thread_time() - began
