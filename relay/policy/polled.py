"""The policy files and directories that no watch covers reliably: these are polled.
They are those behind links, those that cannot be read now, and directories on servers that may stop responding.
Files with several names (hard links) are among them: changes by another name are not reported.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Iterable
from pathlib import Path

from relay.files.stamps import Seen, Unknown, stamp_of, stamp_of_directory
from relay.policy.names import SUFFIX
from relay.policy.walk import ALL, TOP, Listing

LOOK_S = 0.3
"""Minimum poll interval, in seconds."""
SHARE = 0.002
"""Maximum share of time spent polling, for each kind: many files are polled less often."""


class Polled:
    """The last known state of each; not thread-safe."""

    def __init__(self, directory: Path) -> None:
        """For this directory of policies; empty at first."""
        self._top = directory
        self._links: dict[str, Seen] = {}
        self._ways, self._directories = _NamesByDirectory(), _NamesByDirectory()
        self._kinds = [_PollKind(self._moved), _PollKind(self._ways.turned), _PollKind(self._directories.turned)]

    @property
    def due(self) -> float:
        """Time of the next poll."""
        return min(kind.due for kind in self._kinds)

    def look(self, now: float) -> set[str]:
        """The names of files and directories that may have changed; polls what is due `now` (seconds)."""
        return {name for kind in self._kinds if kind.due <= now for name in kind.look(now)}

    def note_file(self, name: str, seen: Seen, *, shared: bool = False) -> None:
        """Records the state of a file; a `shared` one has other names as well."""
        self._note(name, seen, is_link=self._note_link_target(name) or shared)

    def note_listing(self, directories: Collection[str], listing: Listing) -> None:
        """Records a listing of these domains' directories, or all."""
        if directories == ALL:
            self._links, links = {}, listing.links
            self._ways.clear()
            self._directories.clear()
        else:
            links = listing.links | {name for name in directories if self._note_link_target(name)}
            for name in directories:
                self._links.pop(name, None)
        for name in links | listing.shared:
            self._note_link_target(name)
            if name in listing.files:
                self._links[name] = listing.files[name]
        for name, seen in listing.directories.items():
            if name != TOP:
                self._directories.add(self._top / name, name)
                self._note(name, seen, is_link=name in links or seen is None)

    def _note(self, name: str, seen: Seen, *, is_link: bool) -> None:
        if is_link or isinstance(seen, Unknown):
            self._links[name] = seen
        else:
            self._links.pop(name, None)

    def _note_link_target(self, name: str) -> bool:
        """Records the directory through which a link leads; False if it is no link."""
        path = self._top / name
        try:
            way = (path.parent / path.readlink()).parent
        except OSError:
            return False
        self._ways.add(way, name)
        return True

    def _moved(self) -> Iterable[str]:
        """The names behind links, or unreadable before, that have changed."""
        return [name for name, seen in self._links.items() if self._has_moved(name, seen)]

    def _has_moved(self, name: str, seen: Seen) -> bool:
        path = f"{self._top}/{name}"
        now = stamp_of(path) if name.endswith(SUFFIX) else stamp_of_directory(path)
        return now != seen or (now is None and stamp_of(path, follow=False) is None)


class _NamesByDirectory:
    """Directories, each with the names reached through it; usually few for many names."""

    def __init__(self) -> None:
        self._names: dict[Path, set[str]] = {}
        self._closed: set[Path] = set()

    def add(self, place: Path, name: str) -> None:
        self._names.setdefault(place, set()).add(name)

    def clear(self) -> None:
        self._names.clear()

    def turned(self) -> Iterable[str]:
        """The names in directories that became searchable or unsearchable."""
        before = self._closed
        self._closed = {place for place in self._names if isinstance(stamp_of_directory(place), Unknown)}
        return [name for place in before ^ self._closed for name in self._names.get(place, ())]


class _PollKind:
    """One kind of poll, and its next due time."""

    def __init__(self, look: Callable[[], Iterable[str]]) -> None:
        self._look = look
        self.due = float("-inf")

    def look(self, now: float) -> Iterable[str]:
        began = time.thread_time()
        found = self._look()
        self.due = now + max(LOOK_S, (time.thread_time() - began) / SHARE)
        return found
