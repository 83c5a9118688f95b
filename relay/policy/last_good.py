"""Keeps the policy sets that come into force, for starts while files are broken and for the audit record.
Standard: a kept set is valid only if what is read has the version that was in force.

One process of a relay does this. The set is already in force: failures are logged, and what is to be recorded waits
in memory.
"""

from __future__ import annotations

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
from relay.policy.installing import owners_of_files, read_note
from relay.policy.kept import KeptSets, KeptTransaction
from relay.policy.load import PolicyFolder
from relay.policy.site import SiteFacts
from relay.policy.step import Edits, Names, SetFiles, SetStep, Way
from relay.policy.walk import read_file

log = structlog.get_logger(__name__)

MAX_COMPARED = 8
"""Maximum number of sets that wait to be compared; further ones are recorded without comparison."""
_NOTE = "note"


class SetInForce(NamedTuple):
    """A set that came into force, with what is to be recorded; sets that are not in memory are None.

    `missing` says why they cannot be compared.
    """

    step: SetStep
    now: SetFiles | None = None
    before: SetFiles | None = None
    missing: str = ""


@dataclass(slots=True)
class LastGood:
    """The kept sets; of several processes one `writes`, and only that one needs `texts`."""

    sets: KeptSets
    writes: bool = True
    texts: dict[str, str] = field(default_factory=dict)
    """Texts read since a set was last kept, by name."""
    came: deque[SetInForce] = field(default_factory=deque)
    """Sets to be recorded, the oldest first."""
    notify: Callable[[], object] = lambda: None
    """Called after an append to `came`, in any thread."""
    mine: set[int] = field(default_factory=set)
    """Times of the steps of this process (ns since 1970); other kept ones were left by a previous process."""
    _now: SetFiles | None = None
    _last_step: SetStep | None = None
    _note: int = 0
    """Time of the last note that counted (ns since 1970)."""
    _said: str = ""
    """The version that `go_by` has written last."""

    def newest(self, of: Path) -> str | None:
        """The version of the sets in a directory that was in force last; None if it is not kept."""
        with suppress(OSError, sqlite3.Error, ConfigError), self.sets.reading() as transaction:
            return kept.version if (kept := self.sets.last(transaction, of)) is not None else None
        return None

    def gone(self, now: SetFiles) -> Collection[str]:
        """The files of the newest kept set that this one lacks."""
        with suppress(OSError, sqlite3.Error), self.sets.reading() as transaction:
            return transaction.edits(now).removed
        return ()

    def read(self, of: Path, peers: Mapping[str, Sequence[str]], site: SiteFacts) -> SetFiles:
        """The set that was in force last, whether or not its tests fail today. Raises ConfigError."""
        try:
            with self.sets.reading() as transaction:
                if (newest := self.sets.last(transaction, of)) is None:
                    raise ConfigError(f"{self.sets.file}: no set from before is kept")
                texts = transaction.texts(newest)
                self._recall(transaction)
        except (OSError, sqlite3.Error) as error:
            raise ConfigError(f"{self.sets.file}: no set from before is kept: {error}") from error
        folder = PolicyFolder(self.sets.file.with_name(newest.version), peers, site=site)
        policies = texts.read(folder)
        self._now = SetFiles.read(policies, folder)
        return self._now

    def keep(self, now: SetFiles, directory: Path) -> None:
        """Keeps the set that is in force now, of the files in `directory`; logs if it cannot be written."""
        if not self.writes:
            return
        before, self._now = self._now, now
        if before is None:
            entry = self._since_the_last_process(now, directory)
        elif any(edits := now.edits(dict(zip(before.names(), before.digests(), strict=True)))):
            entry = SetInForce(self._step(now, before.policies.version, edits, directory), now, before)
        else:
            entry = None
        self._last_step = entry.step if entry is not None else self._last_step
        try:
            self._put(now, directory)
            while self.texts:  # one by one: freeing 100,000 at once would block every thread
                self.texts.popitem()
        except Exception as error:  # noqa: BLE001 - the set is in force, whether or not it can be kept
            log.warning("policies_not_kept", directory=str(self.sets.file), cause=str(error))
            self._fall_behind()
        if entry is not None:
            many = len(self.came) >= MAX_COMPARED
            self.came.append(SetInForce(entry.step, missing="too many sets came at once") if many else entry)
            self.notify()

    def go_by(self, version: str, others: Callable[[], set[str]]) -> None:
        """Writes, for `policy install`, that all processes go by the set, once the others do; a failure is retried."""
        if self.writes and version != self._said and others() <= {version}:
            with suppress(OSError):
                self.sets.set_in_force(version)
                self._said = version

    def _fall_behind(self) -> None:
        """Marks the kept sets as outdated, so that no process starts with an older, maybe weaker set."""
        try:
            self.sets.mark(behind=True)
        except OSError as error:
            log.error("policies_not_marked", file=str(self.sets.file), cause=error.strerror)

    def _since_the_last_process(self, now: SetFiles, directory: Path) -> SetInForce | None:
        """What is to be recorded of the edits since the newest kept set."""
        edits, before = None, ""
        with suppress(Exception), self.sets.reading() as transaction:  # errors are logged when the set is kept
            self._recall(transaction)
            if (newest := transaction.newest) is not None:
                edits, before = transaction.edits(now), newest.version
        if edits is not None and not any(edits):
            return None
        return SetInForce(self._step(now, before, edits or Edits(), directory, origin="start"), now)

    def _put(self, now: SetFiles, directory: Path) -> None:
        """Keeps the set; recreates a damaged file.

        Raises OSError, sqlite3.Error, ConfigError, and anything else that a damaged file may cause.
        """
        try:
            self._write(now, directory)
        except sqlite3.DatabaseError as error:
            if not is_damage(error):
                raise
            self.sets.discard()
            self._write(now, directory)
        self.sets.mark(behind=False)

    def _write(self, now: SetFiles, directory: Path) -> None:
        with self.sets.writing() as transaction:
            newest, edits = transaction.newest, transaction.edits(now)
            if newest is None or any(edits):
                transaction.put(now, edits, directory, self._last_step, partial(self._text, directory, now))
            else:
                transaction.moved(newest.number, directory)
            transaction.set_state(_NOTE, str(self._note))

    def _step(self, now: SetFiles, before: str, edits: Edits, directory: Path, origin: Way | None = None) -> SetStep:
        note = read_note(directory, now.policies.version, self._note)
        if note is not None:
            self._note, installer = note.time, note.who
        else:
            installer = owners_of_files(directory, chain(edits.added, edits.changed))
        names = map(Names.of, edits)
        origin = origin or ("install" if note is not None else "edit")
        self.mine.add(when := time.time_ns())
        return SetStep(now.policies.version, before, when, len(now.policies.files), origin, installer, *names)

    def _recall(self, transaction: KeptTransaction) -> None:
        """Restores the state of the previous process."""
        with suppress(ValueError):
            self._note = int(transaction.state(_NOTE) or 0)

    def _text(self, directory: Path, now: SetFiles, name: str) -> str:
        """The text of a file of the set in force; read again if the file of sets was lost. Raises ConfigError."""
        if (text := self.texts.get(name)) is not None:
            return text
        read = read_file(str(directory), name)
        if read.digest != now.digest(name):
            raise ConfigError(f"{directory / name}: has changed, so that the set is not kept whole")
        return read.text
