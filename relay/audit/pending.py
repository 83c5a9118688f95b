"""What this process has yet to write into the audit record of mail that is about to leave: a killed one leaves it.
Standard: store/record_files.py; an announcement is a JSON object.

There is nothing in it but what stands in the audit record, or will, and names of recipients as the store has them.
"""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path

from relay.errors import StoreUnavailable
from relay.store.mapped_file import MappedFile
from relay.store.record_files import OVERHEAD_OCTETS

FILE_OCTETS = 4 * 2**20
TURN_OCTETS = 64 * 1024
SUFFIX = ".announced"


class Announced(MappedFile):
    """A file in which mails were announced, and how many of them are not recorded yet."""

    __slots__ = ("open",)

    def __init__(self, directory: Path, octets: int) -> None:
        super().__init__(directory, SUFFIX, octets)
        self.open = 0


class Pending:
    """The announcements of this process, in a few files: one that has nothing to tell any more is written anew."""

    def __init__(self, directory: Path) -> None:
        """Creates nothing before the first announcement."""
        self._directory = directory
        self._now: Announced | None = None
        self._others: list[Announced] = []

    def add(self, record: bytes) -> Announced:
        """Announces a mail before it leaves, without an await. Raises StoreUnavailable where it cannot be written."""
        where = self._now
        if where is None or not where.add(record):
            where = self._another(len(record))
            where.add(record)
        where.open += 1
        return where

    def turn(self) -> None:
        """To be called before what was announced is recorded: what is announced from here on goes elsewhere.

        So a file soon has nothing left to report, and the same memory is written again and again. The first byte of a
        new page costs as much as all else here.
        """
        if self._now is None or self._now.end < TURN_OCTETS:
            return
        if not self._others:
            with suppress(StoreUnavailable):  # then it is filled first
                self._others.append(Announced(self._directory, FILE_OCTETS))
        if (empty := self._empty()) is not None:
            self._others.append(self._now)
            self._now = empty

    def recorded(self, where: Announced, number: int) -> None:
        """Notes that `number` of those announced there stand in the audit record."""
        where.open -= number
        if where.open:
            return
        where.empty()
        if where is not self._now and any(not each.open for each in self._others if each is not where):
            self._others.remove(where)
            where.discard()

    def close(self) -> None:
        """What is not recorded is left for the next relay."""
        for where in (*self._others, *([self._now] if self._now is not None else [])):
            if where.open:
                where.close()
            else:
                where.discard()
        self._now, self._others = None, []

    def _empty(self) -> Announced | None:
        """Returns another file without open announcements, None if there is none."""
        for where in self._others:
            if not where.open:
                self._others.remove(where)
                return where
        return None

    def _another(self, octets: int) -> Announced:
        """One with room for this number. Raises StoreUnavailable."""
        where = self._empty()
        if where is None or not where.fits(octets):
            self._others += [where] if where is not None else []
            where = Announced(self._directory, max(FILE_OCTETS, octets + 2 * OVERHEAD_OCTETS))
        self._others += [self._now] if self._now is not None else []
        self._now = where
        return where
