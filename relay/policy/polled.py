"""The policy files and directories that no watch tells of for sure, looked at again and again instead.
Such are those behind links, those that cannot be looked at now, and directories on servers that may stop answering.
"""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path

from relay.policy.names import SUFFIX
from relay.policy.walk import Listing
from relay.stamps import Seen, Unknown, stamp_of, stamp_of_directory


class Polled:
    """What was there when each was looked at; not to be used by two threads at once."""

    def __init__(self, directory: Path) -> None:
        """Of this directory of policies; knows nothing yet."""
        self._top = directory
        self._links: dict[str, Seen] = {}
        self._directories: dict[str, Seen] = {}

    def note_file(self, name: str, seen: Seen) -> None:
        """A file was looked at."""
        self._links.pop(name, None)
        if isinstance(seen, Unknown) or _is_link(self._top / name):
            self._links[name] = seen

    def note_listing(self, directory: str, listing: Listing) -> None:
        """One domain's directory was listed, or all ("")."""
        links = set(listing.links)
        if directory:
            self._links.pop(directory, None)
            self._directories.pop(directory, None)
            if _is_link(self._top / directory):
                links.add(directory)
        else:
            self._links, self._directories = {}, {}
        self._links |= {name: listing.files[name] for name in links if name in listing.files}
        for name, seen in listing.directories.items():
            if name:
                open_here = isinstance(seen, tuple) and name not in links
                (self._directories if open_here else self._links)[name] = seen

    def moved(self) -> set[str]:
        """The files and directories behind links, and those that could not be looked at, that are not as they were."""
        return {name for name, seen in self._links.items() if self._has_moved(name, seen)}

    def closed(self) -> set[str]:
        """The other domains' directories that cannot be searched any more."""
        now = ((name, stamp_of_directory(f"{self._top}/{name}")) for name in self._directories)
        return {name for name, seen in now if isinstance(seen, Unknown)}

    def _has_moved(self, name: str, seen: Seen) -> bool:
        path = f"{self._top}/{name}"
        now = stamp_of(path) if name.endswith(SUFFIX) else stamp_of_directory(path)
        return now != seen or (now is None and stamp_of(path, follow=False) is None)


def _is_link(path: Path) -> bool:
    with suppress(OSError):  # what cannot be looked at is looked at again whatever it is
        return path.is_symlink()
    return False
