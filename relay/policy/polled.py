"""The policy files and directories that no watch covers reliably: these are polled.
Such are those behind links, those that cannot be looked at now, and directories on servers that may stop answering.
Files with several names (hard links) are among them too: they are changed unseen by another name.
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
    """What was there when each was looked at; not to be used by two threads at once."""

    def __init__(self, directory: Path) -> None:
        """Of this directory of policies; knows nothing yet."""
        self._top = directory
        self._links: dict[str, Seen] = {}
        self._ways, self._directories = _NamesByDirectory(), _NamesByDirectory()
        self._kinds = [_PollKind(self._moved), _PollKind(self._ways.turned), _PollKind(self._directories.turned)]

    @property
    def due(self) -> float:
        """When the next look is due."""
        return min(kind.due for kind in self._kinds)

    def look(self, now: float) -> set[str]:
        """The files and directories, by name, that may not be as they were; looks at what is due `now` (seconds)."""
        return {name for kind in self._kinds if kind.due <= now for name in kind.look(now)}

    def note_file(self, name: str, seen: Seen, *, shared: bool = False) -> None:
        """A file was looked at; it may be `shared`, which is reached by other names as well."""
        self._note(name, seen, is_link=self._note_way(name) or shared)

    def note_listing(self, directories: Collection[str], listing: Listing) -> None:
        """These domains' directories were listed, or all."""
        if directories == ALL:
            self._links, links = {}, listing.links
            self._ways.clear()
            self._directories.clear()
        else:
            links = listing.links | {name for name in directories if self._note_way(name)}
            for name in directories:
                self._links.pop(name, None)
        for name in links | listing.shared:
            self._note_way(name)
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

    def _note_way(self, name: str) -> bool:
        """Takes down through which directory a link leads; False where it is no link."""
        path = self._top / name
        try:
            way = (path.parent / path.readlink()).parent
        except OSError:
            return False
        self._ways.add(way, name)
        return True

    def _moved(self) -> Iterable[str]:
        """Those behind links, and those that could not be looked at, that are not as they were."""
        return [name for name, seen in self._links.items() if self._has_moved(name, seen)]

    def _has_moved(self, name: str, seen: Seen) -> bool:
        path = f"{self._top}/{name}"
        now = stamp_of(path) if name.endswith(SUFFIX) else stamp_of_directory(path)
        return now != seen or (now is None and stamp_of(path, follow=False) is None)


class _NamesByDirectory:
    """Directories, each with the names that are reached through it: few of these, most often, for many names."""

    def __init__(self) -> None:
        self._names: dict[Path, set[str]] = {}
        self._closed: set[Path] = set()

    def add(self, place: Path, name: str) -> None:
        self._names.setdefault(place, set()).add(name)

    def clear(self) -> None:
        self._names.clear()

    def turned(self) -> Iterable[str]:
        """The names of those places that can no longer be searched, or can again."""
        before = self._closed
        self._closed = {place for place in self._names if isinstance(stamp_of_directory(place), Unknown)}
        return [name for place in before ^ self._closed for name in self._names.get(place, ())]


class _PollKind:
    """One kind of looking, and when it is due again."""

    def __init__(self, look: Callable[[], Iterable[str]]) -> None:
        self._look = look
        self.due = float("-inf")

    def look(self, now: float) -> Iterable[str]:
        began = time.thread_time()
        found = self._look()
        self.due = now + max(LOOK_S, (time.thread_time() - began) / SHARE)
        return found
