"""Keeps the sets of policies that come into force: a process may start while files are broken, and each is recorded.
Standard: a set counts only where it is whole: what is read of it has the version that was in force.

One process of a relay does this. Whatever stands in the way, the set is in force by then: the log says so, and what is
to be recorded waits in memory.
"""

from __future__ import annotations

import json
import sqlite3
import time
from collections import deque
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from itertools import chain
from pathlib import Path
from typing import NamedTuple

import structlog

from relay.errors import ConfigError
from relay.files.sqlite import is_damage
from relay.policy.installing import LinkId, link_of, owner_of_link, owners_of_files, read_note
from relay.policy.kept import Book, KeptSets, text_of_path
from relay.policy.load import PolicyFolder
from relay.policy.site import SiteFacts
from relay.policy.step import Edits, Names, SetFiles, SetStep, Way
from relay.policy.walk import read_file

log = structlog.get_logger(__name__)

MAX_COMPARED = 8
"""Maximum number of sets that wait to be compared; those beyond it are recorded without."""
_NOTE, _LINK = "note", "link"


class SetInForce(NamedTuple):
    """A set that came into force, with what is to be recorded; sets that are not in memory are None.

    `missing` says why they are not to be compared.
    """

    step: SetStep
    now: SetFiles | None = None
    before: SetFiles | None = None
    missing: str = ""


@dataclass(slots=True)
class LastGood:
    """What is kept; of several processes one `writes`, and it alone has to be told of `texts`."""

    sets: KeptSets
    writes: bool = True
    texts: dict[str, str] = field(default_factory=dict)
    """What was read, by name, since a set was kept last."""
    came: deque[SetInForce] = field(default_factory=deque)
    """What is to be recorded, the oldest first."""
    tell: Callable[[], object] = lambda: None
    """Called once there is something in `came`, in any thread."""
    mine: set[int] = field(default_factory=set)
    """The times of the steps of this process (ns since 1970); others that are kept were left by one before it."""
    _now: SetFiles | None = None
    _number: int = 0
    """That of the set in force, among those that are kept; 0 where it is not."""
    _unkept: SetStep | None = None
    """The last step that could not be kept."""
    _link: LinkId | None = None
    _note: int = 0
    """Time of the last note that counted (ns since 1970)."""

    def newest(self, of: Path) -> str | None:
        """The version that was in force last of the sets in a directory; None where it is not kept."""
        with suppress(OSError, sqlite3.Error), self.sets.reading() as book:
            newest = None if self.sets.is_behind else book.newest
            return newest.version if newest is not None and newest.directory == text_of_path(of) else None
        return None

    def gone(self, now: SetFiles) -> Collection[str]:
        """The files that the newest set has and this one has not; none where nothing is kept."""
        with suppress(OSError, sqlite3.Error), self.sets.reading() as book:
            return book.edits(now).removed
        return ()

    def read(self, of: Path, peers: Mapping[str, Sequence[str]], site: SiteFacts) -> SetFiles:
        """The set that was in force last, whether its tests fail today or not. Raises ConfigError."""
        try:
            with self.sets.reading() as book:
                if self.sets.is_behind:
                    raise ConfigError(f"{self.sets.file}: the set in force last could not be kept there")
                newest = book.newest
                if newest is None or newest.directory != text_of_path(of):
                    raise ConfigError(f"{self.sets.file}: no set from before is kept")
                texts = book.texts(newest)
                self._recall(book)
        except (OSError, sqlite3.Error) as error:
            raise ConfigError(f"{self.sets.file}: no set from before is kept: {error}") from error
        folder = PolicyFolder(self.sets.file.with_name(newest.version), peers, site=site)
        policies = texts.read(folder)
        self._now, self._number = SetFiles.read(policies, folder), newest.number
        return self._now

    def keep(self, now: SetFiles, directory: Path) -> None:
        """This set, of the files in `directory`, is in force now; where it cannot be written, the log says so."""
        if not self.writes:
            return
        before, self._now = self._now, now
        if before is None:
            edits, came = self._since_the_last_process(now, directory)
        else:
            edits = now.edits(before)
            step = self._step(now, before.policies.version, edits, directory) if any(edits) else None
            came = SetInForce(step, now, before) if step is not None else None
        try:
            self._put(now, directory, edits, came.step if came is not None else self._unkept)
            while self.texts:  # one by one: to let 100,000 go at once would hold every thread
                self.texts.popitem()
        except Exception as error:  # noqa: BLE001 - the set is in force, whatever stands in the way of keeping it
            log.warning("policies_not_kept", directory=str(self.sets.file), cause=str(error))
            self._number, self._unkept = 0, came.step if came is not None else self._unkept
            self._fall_behind()
        if came is not None:
            many = len(self.came) >= MAX_COMPARED
            self.came.append(SetInForce(came.step, missing="too many sets came at once") if many else came)
            self.tell()

    def _fall_behind(self) -> None:
        """Else a process that starts on broken files would go back to an older set, which may be weaker."""
        try:
            self.sets.mark(behind=True)
        except OSError as error:
            log.error("policies_not_marked", file=str(self.sets.file), cause=error.strerror)

    def _since_the_last_process(self, now: SetFiles, directory: Path) -> tuple[Edits | None, SetInForce | None]:
        """What differs from the newest set that is kept, if there is one, and what is to be recorded of that."""
        edits, before = None, ""
        with suppress(Exception), self.sets.reading() as book:  # keeping the set says what is wrong
            self._recall(book)
            if (newest := book.newest) is not None:
                edits, before, self._number = book.edits(now), newest.version, newest.number
        if edits is not None and not any(edits):
            return edits, None
        return edits, SetInForce(self._step(now, before, edits or Edits(), directory, way="start"), now)

    def _put(self, now: SetFiles, directory: Path, edits: Edits | None, step: SetStep | None) -> None:
        """Keeps the set, anew where the file is damaged.

        Raises OSError, sqlite3.Error, ConfigError, and what else a damaged file may bring about.
        """
        try:
            number = self._written(now, directory, edits, step)
        except sqlite3.DatabaseError as error:
            if not is_damage(error):
                raise
            self.sets.discard()
            number = self._written(now, directory, edits, step)
        self.sets.mark(behind=False)
        self._number, self._unkept = number, None

    def _written(self, now: SetFiles, directory: Path, edits: Edits | None, step: SetStep | None) -> int:
        """The number of the set, among those that are kept; `edits` are those since the set with the number before."""
        with self.sets.writing() as book:
            newest = book.newest
            if edits is None or newest is None or newest.number != self._number:
                edits = book.edits(now)
            if newest is None or any(edits):
                number = book.put(now, edits, directory, step, partial(self._text, directory, now))
            else:
                number = newest.number
                book.moved(number, directory)
            book.set_state(_NOTE, str(self._note))
            book.set_state(_LINK, json.dumps(self._link) if self._link is not None else "")
        return number

    def _step(self, now: SetFiles, before: str, edits: Edits, directory: Path, way: Way | None = None) -> SetStep:
        link, link_before = link_of(directory), self._link
        note = read_note(directory, now.policies.version, self._note)
        self._link = link
        if note is not None:
            self._note, who = note.time, note.who
        elif link is not None and link_before not in (None, link):
            who = owner_of_link(directory, link, chain(edits.added, edits.changed))
        else:
            who = owners_of_files(directory, chain(edits.added, edits.changed))
        names = map(Names.of, edits)
        way = way or ("install" if note is not None else "edit")
        self.mine.add(when := time.time_ns())
        return SetStep(now.policies.version, before, when, len(now.policies.files), way, who, *names)

    def _recall(self, book: Book) -> None:
        """What the process before this one knew."""
        with suppress(ValueError, TypeError):
            self._note = int(book.state(_NOTE) or 0)
            link = book.state(_LINK)
            self._link = LinkId(*json.loads(link)) if link else None

    def _text(self, directory: Path, now: SetFiles, name: str) -> str:
        """That of a file of the set in force; read again where the file of sets was lost. Raises ConfigError."""
        if (text := self.texts.get(name)) is not None:
            return text
        read = read_file(str(directory), name)
        if read.digest != now.digest(name):
            raise ConfigError(f"{directory / name}: has changed, so that the set is not kept whole")
        return read.text
