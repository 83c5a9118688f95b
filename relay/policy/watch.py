"""Says when something in a directory of policies may have changed, and which files are open after a write.
Standard: inotify(7), without a layer that drops parts of it; what has changed is for others to find out.

The library watchfiles is not used. It drops the kernel's report that events were lost, and does not report when a
writer has closed a file. It copies its list of changes before it empties it, so changes in between are lost.
"""

from __future__ import annotations

import ctypes
import errno
import os
import struct
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

import structlog

from relay.files.stamps import Seen, stamp_of_directory
from relay.policy.names import SUFFIX

log = structlog.get_logger(__name__)

MODIFY = 0x2
ATTRIB = 0x4
CLOSE_WRITE = 0x8
MOVED_FROM = 0x40
MOVED_TO = 0x80
CREATE = 0x100
DELETE = 0x200
DELETE_SELF = 0x400
MOVE_SELF = 0x800
Q_OVERFLOW = 0x4000
"""Events were lost: the queue was full."""
ONLYDIR = 0x1000000
WANTED = (
    MODIFY | ATTRIB | CLOSE_WRITE | MOVED_FROM | MOVED_TO | CREATE | DELETE | DELETE_SELF | MOVE_SELF | ONLYDIR
)  # fmt: skip

_CLOSED = CLOSE_WRITE | DELETE | MOVED_FROM | MOVED_TO
_HEADER = struct.Struct("iIII")
_READ_OCTETS = 256 * 1024
_NO_MORE = {errno.ENOSPC, errno.EMFILE, errno.ENFILE, errno.ENOMEM, None}
_HINTS = {
    errno.ENOSPC: "raise fs.inotify.max_user_watches",
    errno.EMFILE: "raise fs.inotify.max_user_instances",
}


class Event(NamedTuple):
    """One change: the watched directory, the kind of change, and the file name ("" for the directory itself)."""

    watch: int
    mask: int
    name: str


class Inotify:
    """One queue of events. Raises OSError if the kernel cannot watch (any more)."""

    def __init__(self) -> None:
        """Watches nothing yet."""
        try:
            self._libc = ctypes.CDLL(None, use_errno=True)
            init = self._libc.inotify_init1
        except (AttributeError, TypeError) as error:
            raise OSError("this system has no inotify") from error
        self.fd = _checked(init(os.O_NONBLOCK | os.O_CLOEXEC))

    def add(self, directory: Path | str) -> int:
        """Watches a directory, following a link; returns its number, the same for the same directory."""
        return _checked(self._libc.inotify_add_watch(self.fd, os.fsencode(directory), ctypes.c_uint32(WANTED)))

    def remove(self, watch: int) -> None:
        """Ends a watch, if it still exists."""
        self._libc.inotify_rm_watch(self.fd, watch)

    def read(self) -> Iterator[Event]:
        """All pending events; never waits."""
        while True:
            try:
                raw = os.read(self.fd, _READ_OCTETS)
            except BlockingIOError:
                return
            place = 0
            while place < len(raw):
                watch, mask, _, size = _HEADER.unpack_from(raw, place)
                place += _HEADER.size
                yield Event(watch, mask, os.fsdecode(raw[place : place + size].rstrip(b"\0")))
                place += size

    def close(self) -> None:
        """Closes the queue and all watches."""
        os.close(self.fd)


class DirectoryWatch:
    """A watch on a directory of policies and on those in it; raises nothing. Not thread-safe."""

    def __init__(self, directory: Path) -> None:
        """Watches nothing before the first `follow`."""
        self._directory = directory
        self._top: Seen = None
        self._inotify: Inotify | None = None
        self._places: dict[int, str] = {}
        self._written: set[tuple[int, str]] = set()
        self._trouble = ""
        self.has_seen_closing = False
        """Whether a policy file was closed after writing, replaced or removed."""

    @property
    def fd(self) -> int | None:
        """A descriptor that becomes readable after a change; None if the kernel reports nothing."""
        return self._inotify.fd if self._inotify is not None else None

    @property
    def written(self) -> list[str]:
        """The policy files that are open after a write."""
        return [f"{place}/{name}" if (place := self._places[watch]) else name for watch, name in self._written]

    def has_changes(self) -> bool:
        """Whether something may have changed since the last call."""
        before, self._top = self._top, stamp_of_directory(self._directory)
        return (self._inotify is not None and self._read_events(self._inotify)) or self._top != before

    def follow(self, directories: Iterable[str]) -> bool:
        """Watches these directories, by name, and no others; whether one is new, in which changes may be missed."""
        try:
            self._inotify = self._inotify or Inotify()
            places = dict(self._added(self._inotify, directories))
        except OSError as error:
            self.close()
            self._log_lost(error)
            return False
        before, self._places = self._places, places
        for gone in before.keys() - places.keys():
            self._inotify.remove(gone)
        self._written = {each for each in self._written if each[0] in places}
        if self._trouble:
            self._trouble = ""
            log.info("policies_watched_again", directory=str(self._directory))
        return not places.keys() <= before.keys()

    def close(self) -> None:
        """Ends the watch."""
        if self._inotify is not None:
            self._inotify.close()
        self._inotify, self._places, self._written = None, {}, set()

    def _added(self, inotify: Inotify, directories: Iterable[str]) -> Iterator[tuple[int, str]]:
        """Raises OSError if the kernel can watch no more."""
        for name in directories:
            try:
                yield inotify.add(self._directory / name), name
            except OSError as error:  # gone, no directory, or not readable: the listing reports it
                if error.errno in _NO_MORE:
                    raise

    def _log_lost(self, error: OSError) -> None:
        """Logs a lost watch, once for each cause."""
        trouble = error.strerror or str(error)
        if trouble != self._trouble:
            self._trouble = trouble
            hint = {"hint": _HINTS[error.errno]} if error.errno in _HINTS else {}
            log.error(
                "policies_not_watched", directory=str(self._directory), cause=trouble, instead="looked at again", **hint
            )

    def _read_events(self, inotify: Inotify) -> bool:
        changed = False
        for event in inotify.read():
            if event.mask & Q_OVERFLOW:
                self._written.clear()  # it may have been closed
            changed = True
            if event.name.endswith(SUFFIX) and not event.name.startswith(".") and event.watch in self._places:
                if event.mask & _CLOSED:
                    self.has_seen_closing = True
                    self._written.discard((event.watch, event.name))
                elif event.mask & MODIFY:
                    self._written.add((event.watch, event.name))
        return changed


def _checked(result: int) -> int:
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
    return result
