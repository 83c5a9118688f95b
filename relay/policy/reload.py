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
from dataclasses import replace
from functools import partial
from itertools import islice
from pathlib import Path

import structlog

from relay.counting import metrics
from relay.counting.board import Board
from relay.errors import ConfigError
from relay.files.quiet import GONE_QUIET_S, LOOK_S, QUIET_S, Quiet
from relay.policy.decide import PolicySet
from relay.policy.expected import failures
from relay.policy.last_good import LastGood
from relay.policy.load import PolicyFolder
from relay.policy.settings import today
from relay.policy.site import ANY_SITE, SiteFacts
from relay.policy.starting import begin, said_writers
from relay.policy.step import SetFiles
from relay.policy.thread import WatchThread
from relay.policy.walk import NEVER_READ, Listing
from relay.policy.watch import DirectoryWatch
from relay.policy.writers import being_written

log = structlog.get_logger(__name__)

MAX_LOGGED = 20
"""Maximum number of faults, and of names, in one log line."""
LOUD_S = 10.0
"""Time of waiting for quiet after which it is logged, in seconds."""
GATHER_S = 0.05
"""Time from a change to the next look at all files, in seconds; longer if a look takes longer, up to LOOK_S."""
SHARE, UNWATCHED_SHARE = 0.003, 0.05
"""Maximum share of time spent polling: for what the kernel does not report, and if it reports nothing at all."""
DOUBTFUL_S = 2.0
"""Age up to which a stamp is not trusted, in seconds: file times are coarse, so such a file is read twice."""
RELEASE_S = 60.0
"""Time without changes after which replaced files are released, in seconds: no mail takes longer."""


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
        self._quiet = Quiet(clock)
        self._read = Listing(directory)
        self._again: set[str] = set()
        self._again_at = math.inf
        self._look_at = float("-inf")
        self._cost = 0.0
        self._waits_since: float | None = None
        self._asked = False
        self._anew = False
        self._thread: WatchThread | None = None
        self._begin(site)
        self._show()

    def _begin(self, site: SiteFacts) -> None:
        """Raises ConfigError."""
        others_wait, others_serve = self._others_wait, self._others_serve
        start = begin(
            self._folder, self._last_good, self._peers, site, others_wait=others_wait, others_serve=others_serve
        )
        self._as_others = start.is_edited and self._others_wait()
        self._take(start.now, start.failing)
        self._note_read(start.read, start.read.files)
        if start.is_edited:
            self._mark_unread(start.read.files)
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

    def set_peers(self, peers: Mapping[str, Sequence[str]], site: SiteFacts | None = None) -> None:
        """Sets the peers, their domains, and whose mail they take; to be called from the callback of `watch`.

        That counts at once, also if the files are invalid. All else counts with the next set.
        """
        site = site or self._current.site
        if peers != self._peers or site != self._current.site:
            self._peers = peers
            self._folder.set_peers(peers, site)
            current = replace(self._current, owners=self._folder.owners, site=site)
            self._take(self._now._replace(policies=current), self._failing)
            self._anew, self._look_at = True, float("-inf")
            self._mark_unread(self._read.files)

    def reload(self) -> None:
        """Reads everything again, and applies it completely or not at all: at once, or by `watch` if that runs."""
        self._asked = True
        if self._thread is not None:
            self._thread.wake()
        else:
            self.look(quiet_s=0.0)

    async def watch(self, first: Callable[[], None] = lambda: None) -> None:
        """Follows edits until cancelled, in a thread of its own.

        `first` is called there before each check, every LOOK_S seconds or more often; it must not raise.
        """
        ended = asyncio.Event()
        loop = asyncio.get_running_loop()
        self._thread = WatchThread(partial(self._follow_edits, first), lambda: loop.call_soon_threadsafe(ended.set))
        try:
            await ended.wait()
            raise RuntimeError("the thread that follows edits of policies has ended")
        finally:
            thread, self._thread = self._thread, None
            await asyncio.to_thread(thread.end)

    def look(self, watch: DirectoryWatch | None = None, *, quiet_s: float | None = None) -> None:
        """Looks at all files once, and applies what has changed once that is quiet for this time, in seconds."""
        began, work_began = self._clock(), time.thread_time()
        self._mark_what_is_asked(began)
        seen = Listing.of(self._folder.directory, self._read.files)
        is_first = watch is not None and watch.follow(seen.directories)
        self._cost = time.thread_time() - work_began
        quiet, needed, waits = self._quiet.seconds(seen, began), 0.0, seen != self._read
        if waits:
            self._waits_since = began if self._waits_since is None else self._waits_since
            gone = any(seen.files.get(name) is None for name in self._now.names())
            needed = GONE_QUIET_S if gone else QUIET_S if quiet_s is None else quiet_s
            names = seen.differing(self._read.files)
            if not self._is_busy(watch, names, is_quiet=quiet >= needed):
                self._take_over(seen, names)
                waits = seen != self._read
        if not waits:
            self._waits_since, self._waits_for = None, ""
        self._show_waiting()
        if is_first:
            self._look_at = began
        elif waits and quiet < needed:
            self._look_at = self._quiet.began_at + needed
        elif waits:
            self._look_at = self._clock() + LOOK_S
        else:
            share = SHARE if watch is not None and watch.fd is not None else UNWATCHED_SHARE
            self._look_at = min(began + max(LOOK_S, self._cost / share), self._again_at)

    def _mark_what_is_asked(self, now: float) -> None:
        """Files of which another content may have the same stamp, or all if that is asked for."""
        if self._asked:
            self._asked = False
            self._mark_unread(self._read.files)
        if now >= self._again_at:
            self._mark_unread(self._again)
            self._again, self._again_at = set(), math.inf

    def _mark_unread(self, names: Iterable[str]) -> None:
        self._read = replace(self._read, files={**self._read.files, **dict.fromkeys(names, NEVER_READ)})

    def _note_read(self, seen: Listing, names: Iterable[str]) -> None:
        """Records which state was read; what cannot be read, or has a coarse time, is read again a little later."""
        self._read = seen
        now = time.time_ns()
        stamps = ((name, seen.files.get(name)) for name in names)
        young = {name for name, stamp in stamps if isinstance(stamp, tuple) and abs(now - stamp[1]) < DOUBTFUL_S * 1e9}
        self._again |= young | self._folder.not_read
        if self._again:
            self._again_at = min(self._again_at, self._clock() + DOUBTFUL_S)

    def _is_busy(self, watch: DirectoryWatch | None, names: Collection[str], *, is_quiet: bool) -> bool:
        """Whether files still change or are open for writing; logs if that takes long."""
        writers = dict.fromkeys(watch.written, "") if watch is not None else {}
        if not writers and is_quiet and (writers := being_written(self._folder.directory, names)):
            self._quiet.restart()  # limits how often programs are checked
        self._as_others = self._as_others and not (watch is not None and watch.has_seen_closing) and self._others_wait()
        is_busy = bool(writers) or self._as_others or not is_quiet
        if is_busy and self._waits_since is not None and self._clock() - self._waits_since >= LOUD_S:
            writers |= being_written(self._folder.directory, names)
            if not self._waits_for:
                log.warning(
                    "policies_not_quiet",
                    files=_some(names),
                    number=len(names),
                    open_for_writing=[said_writers({name: writers[name]}) for name in _some(writers)],
                    version=self._current.version,
                )
            self._waits_for = _why_waiting(writers)
        return is_busy

    def _take_over(self, seen: Listing, names: Collection[str]) -> None:
        """Reads these files, and puts the new set into force unless it is faulty; logs nothing if nothing changed."""
        began = time.perf_counter()
        before = self._current
        problems: list[str] = []
        policies = before
        self._mark_unread(names)
        try:
            policies = self._folder.read_again(names, seen.faults)
            if policies.version != before.version or self._problems or self._anew:
                problems = failures(self._folder.tests, policies)
        except ConfigError as error:
            problems = error.problems
        now = Listing.of(self._folder.directory, seen.files)
        self._quiet.seconds(now, self._clock())
        if now != seen:  # the texts may be half old and half new
            return
        self._note_read(seen, names)
        if problems:
            self._keep(before, problems)
            return
        if policies.version == before.version and not self._problems and not self._anew:
            return
        gone = [name for name in before.files if name not in policies.files]
        gone += sorted(self._now.beside.keys() - self._folder.beside.keys())
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
            read=_some(names),
            seconds=round(time.perf_counter() - began, 4),
        )

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

    def _show_waiting(self) -> None:
        self.board.set(metrics.POLICY_WAITS, to=0.0 if self._waits_since is None else self._clock() - self._waits_since)

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
        while thread.wait(watch.fd, self._pause_s(), min(max(GATHER_S, self._cost), LOOK_S)):
            first()
            try:
                self._step(watch)
                trouble = ""
            except Exception as error:
                if trouble != (trouble := f"{type(error).__name__}: {error}"):
                    log.error("policies_not_followed", cause=trouble, instead="tried again", exc_info=error)
                watch.close()
                self._look_at = self._clock() + LOOK_S
        watch.close()

    def _pause_s(self) -> float:
        return max(0.0, min(LOOK_S, self._look_at - self._clock()))

    def _step(self, watch: DirectoryWatch) -> None:
        """Looks at the files if they may have changed, and does what else is due."""
        if watch.has_changes() or self._asked or self._clock() >= self._look_at:
            self.look(watch)
        self._try_tests_again()
        if self._last_good is not None:
            self._last_good.go_by(self._current.version, self._others_serve)
        if self._clock() - self._quiet.began_at >= RELEASE_S:
            while self._folder.release():
                time.sleep(0.001)


def _some(names: Iterable[str]) -> list[str]:
    """Returns the names to log; sorting all of 100,000 would block every thread."""
    return sorted(islice(names, MAX_LOGGED))


def _why_waiting(writers: Mapping[str, str]) -> str:
    """The cause for the log; its second part names files."""
    return f"since a file is open for writing: {said_writers(writers)}" if writers else "since files go on changing"
