"""Reports which policy files in a directory have changed, by kernel events: by name, or that a full scan is needed.
It detects writing in place, renaming over a file, and swapping a link to the directory or one in it.

What the kernel does not report (files behind links to elsewhere, edits by other machines) has to be polled.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import structlog

from relay.files.stamps import searched, stamp_of
from relay.policy import inotify
from relay.policy.inotify import Event, Inotify
from relay.policy.names import SUFFIX
from relay.policy.walk import TOP

log = structlog.get_logger(__name__)

_NO_MORE = {errno.ENOSPC, errno.EMFILE, errno.ENFILE, errno.ENOMEM}
_HINTS = {
    errno.ENOSPC: "raise fs.inotify.max_user_watches",
    errno.EMFILE: "raise fs.inotify.max_user_instances",
}
_ENDED = inotify.DELETE_SELF | inotify.MOVE_SELF | inotify.UNMOUNT | inotify.IGNORED
_CLOSED = inotify.CLOSE_WRITE | inotify.DELETE | inotify.MOVED_FROM | inotify.MOVED_TO
_APPEARED = inotify.CREATE | inotify.MOVED_TO


@dataclass(frozen=True, slots=True)
class Changes:
    """The changed policy files, and domains' directories that need a full scan, by name.

    With `everything`, all needs a scan.
    """

    names: frozenset[str] = frozenset()
    directories: frozenset[str] = frozenset()
    everything: bool = False


NOTHING = Changes()
EVERYTHING = Changes(everything=True)


class DirectoryWatch:
    """A watch on one directory of policies; `look` reports its changes. Not thread-safe."""

    def __init__(self, directory: Path) -> None:
        """Watches nothing before the first `look`."""
        self._directory = directory
        self._inotify: Inotify | None = None
        self._identity: tuple[int, int] | None = None
        self._places: dict[int, set[str]] = {}
        self._watches: dict[str, int] = {}
        self._written: set[str] = set()
        self.closings = 0
        """Number of times that a policy file was closed after writing, replaced or removed."""
        self._trouble = ""
        self._exhausted = False

    @property
    def fd(self) -> int | None:
        """A descriptor that becomes readable after a change; None if the kernel reports nothing."""
        return self._inotify.fd if self._inotify is not None else None

    @property
    def written(self) -> frozenset[str]:
        """The policy files that are open after a write."""
        return frozenset(self._written)

    def look(self, moved: Iterable[str] = (), *, anew: bool = False) -> Changes:
        """All changes since the last call; raises nothing.

        `moved` are domains' directories that are links and now lead elsewhere. With `anew` a watch that
        failed is tried again.
        """
        try:
            status = searched(self._directory)
        except OSError as error:  # missing at present, a link to itself, or not searchable
            return self._lost(error)
        try:
            if self._inotify is None and self._exhausted and not anew:
                return NOTHING
            if self._inotify is None or (status.st_dev, status.st_ino) != self._identity:
                return self._begin()
            return self._read_events(set(moved))
        except OSError as error:
            return self._lost(error)

    def close(self) -> None:
        """Ends the watch."""
        if self._inotify is not None:
            self._inotify.close()
        self._inotify, self._identity = None, None
        self._places, self._watches, self._written = {}, {}, set()

    def follow(self, directory: str) -> None:
        """Watches a domain's directory, in place of any previous one of this name. Raises OSError."""
        if self._inotify is None:
            return
        try:
            watch = self._inotify.add(self._directory / directory)
        except OSError as error:
            self._unfollow(directory)
            if error.errno in _NO_MORE:
                raise
            return  # gone, no directory, or not readable: the listing reports it
        if self._watches.get(directory) != watch:
            self._unfollow(directory)
            self._places.setdefault(watch, set()).add(directory)
            self._watches[directory] = watch

    def _begin(self) -> Changes:
        """Sets up the watch before the first scan, so that no change is missed. Raises OSError."""
        self.close()
        self._inotify = Inotify()
        top = self._inotify.add(self._directory)
        status = self._directory.stat()
        self._identity = (status.st_dev, status.st_ino)
        self._places[top], self._watches[TOP] = {TOP}, top
        with os.scandir(self._directory) as entries:
            for entry in entries:
                if not entry.name.startswith(".") and not entry.name.endswith(SUFFIX) and _may_be_directory(entry):
                    self.follow(entry.name)
        if self._trouble:
            self._trouble = ""
            log.info("policies_watched_again", directory=str(self._directory))
        self._exhausted = False
        return EVERYTHING

    def _lost(self, error: OSError) -> Changes:
        """Logs a lost watch, once for each cause; everything needs a scan."""
        self.close()
        self._exhausted = error.errno in _NO_MORE or error.errno is None
        trouble = f"{error.strerror or error}"
        if trouble == self._trouble:
            return NOTHING
        self._trouble = trouble
        hint = {"hint": _HINTS[error.errno]} if error.errno in _HINTS else {}
        log.error(
            "policies_not_watched", directory=str(self._directory), cause=trouble, instead="looked at again", **hint
        )
        return EVERYTHING

    def _read_events(self, directories: set[str]) -> Changes:
        """The changes that the kernel reports, and these directories. Raises OSError."""
        assert self._inotify is not None  # noqa: S101 - the caller has checked
        names: set[str] = set()
        everything = False
        for event in self._inotify.read():
            if event.mask & inotify.Q_OVERFLOW:
                log.warning("policy_changes_lost", directory=str(self._directory), instead="all files are looked at")
                return self._begin()
            for place in self._places.get(event.watch, ()):
                if place == TOP and event.mask & _ENDED:
                    return self._begin()
                everything |= self._add_event(event, place, names, directories)
        for directory in directories:
            self.follow(directory)
        return EVERYTHING if everything else Changes(frozenset(names), frozenset(directories))

    def _add_event(self, event: Event, place: str, names: set[str], directories: set[str]) -> bool:
        """Adds the changes of one event; True if everything needs a scan."""
        if not event.name:  # it is gone, or its mode has changed
            if place == TOP:
                return True
            directories.add(place)
            return False
        if event.name.startswith("."):
            # Mounted volumes are swapped by a hidden link.
            return event.name.startswith("..") and bool(event.mask & _APPEARED)
        is_directory = bool(event.mask & inotify.ISDIR)
        name = f"{place}/{event.name}" if place else event.name
        if event.name.endswith(SUFFIX) and not is_directory:
            names.add(name)
            if event.mask & _CLOSED:
                self.closings += 1
                self._written.discard(name)
            elif event.mask & inotify.MODIFY:
                self._written.add(name)
        elif event.name.lower().endswith(SUFFIX) or (place and is_directory):
            if not place:
                return True  # only a scan of the top shows whether that is wrong
            directories.add(place)
        elif not place and (is_directory or name in self._watches or self._may_lead_to_one(name)):
            directories.add(name)
        return False

    def _may_lead_to_one(self, name: str) -> bool:
        """Whether this is a link to a directory, or to something missing or unreadable that may be one."""
        path = self._directory / name
        try:
            return path.is_dir() or (path.is_symlink() and stamp_of(path) is None)
        except OSError:
            return True

    def _unfollow(self, directory: str) -> None:
        watch = self._watches.pop(directory, None)
        if watch is None:
            return
        self._written = {name for name in self._written if not name.startswith(f"{directory}/")}
        places = self._places[watch]
        places.discard(directory)
        if not places:
            del self._places[watch]
            if self._inotify is not None:
                self._inotify.remove(watch)


def _may_be_directory(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link to something unreadable
        return True
