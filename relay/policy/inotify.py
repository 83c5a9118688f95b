"""Changes in directories as the kernel reports them: inotify, without a layer that drops parts of it.
Standard: inotify(7). Lost events are reported, and files that are still open for writing.

The library watchfiles is not used. It drops the kernel's report that events were lost, and does not report when a
writer has closed a file. It copies its list of changes before it empties it, so changes in between are lost.
"""

from __future__ import annotations

import ctypes
import os
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

MODIFY = 0x2
ATTRIB = 0x4
CLOSE_WRITE = 0x8
MOVED_FROM = 0x40
MOVED_TO = 0x80
CREATE = 0x100
DELETE = 0x200
DELETE_SELF = 0x400
MOVE_SELF = 0x800
UNMOUNT = 0x2000
Q_OVERFLOW = 0x4000
"""Events were lost: the queue was full."""
IGNORED = 0x8000
"""The watch has ended."""
ONLYDIR = 0x1000000
ISDIR = 0x40000000
WANTED = (
    MODIFY | ATTRIB | CLOSE_WRITE | MOVED_FROM | MOVED_TO | CREATE | DELETE | DELETE_SELF | MOVE_SELF | ONLYDIR
)  # fmt: skip

_HEADER = struct.Struct("iIII")
_READ_OCTETS = 256 * 1024


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


def _checked(result: int) -> int:
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
    return result
