"""Recipients whose mail was held and not delivered since, over all processes of a relay: since when, and why.
Lock-free; a row ends only by the same mail for the same mailbox; SURE rows of each process always fit.

The relay has no queue, so it only knows waiting mail from the attempts it saw. Mail that is no longer retried, because
its sender has given up or it was deleted, expires. Mail tried only once may never return, so reports of waiting times
are based on retried mail.

Each process adds rows to its own section, and ends those of all. A row is in the bucket chosen by a keyed hash, so
outsiders cannot cause collisions. Its name is written last, and cleared to end it: a killed process leaves a whole row
or none.
"""

from __future__ import annotations

import base64
import hashlib
import json
import mmap
import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from relay.runtime.aio import Turns, boot_time, clock_offset

SURE = 16_384
_BUCKETS, _PLACES = 512, 64
"""Twice as many places as SURE, so that with SURE rows a full bucket is unlikely (one in thousands)."""
_HEAD, _NUMBER, _COLUMN = 64, 8, 8 * _PLACES
_BUCKET = 5 * _COLUMN
"""Size of a bucket, in bytes: the names of its rows, then their other columns."""
SECTION_OCTETS = _HEAD + _BUCKETS * _BUCKET
"""Size of one process's section, in bytes. It begins with the time until which a row can be in it, and the time until
which a row without a place is reported. Then come a key (that of all in the first section) and the buckets."""
KEY_OCTETS = 16
_ROW = struct.Struct("=8s4d")
_MAX_S = 1e10
"""Maximum distance of a time in the file, in seconds: three hundred years."""
FORGET_S = 7200.0
"""Time without a retry after which a row expires, in seconds: nearly twice Postfix's maximal_backoff_time."""
DIRECTIONS = ("outgoing", "incoming")
CAUSES = ("policy", "keys", "next hop", "store", "other")
"""Causes. "policy": hold, regardless of keys. "keys": a key is missing or late. "next hop": unreachable, or it replied
4xx. "store": it cannot be written.
"""
_HOWS = range(1, 1 + len(DIRECTIONS) * len(CAUSES))


@dataclass(slots=True)
class Waiting:
    """Waiting recipients of one direction and cause; times in seconds.

    `longest` is the age of the oldest, and `again` that of the oldest that was retried.
    """

    direction: str
    cause: str
    recipients: int = 0
    longest: float = 0.0
    again: float = 0.0


@dataclass(slots=True)
class _HeldRow:
    """`first` and `last` attempt in boot_time, the longest `pause` between two (0: only one), `how` is a cause code."""

    name: bytes
    first: float
    last: float
    pause: float
    how: float

    @property
    def until(self) -> float:
        return _until(self.last, self.pause)


class HeldMail:
    """All rows, in memory that may be shared."""

    def __init__(self, memory: mmap.mmap, begin: int, sections: int, own: int = 0) -> None:
        """`sections` start at `begin`, initially all 0; new rows go into our `own`."""
        self._memory = memory
        self._numbers: memoryview[float] = memoryview(memory).cast("d")
        self._sections = [begin + SECTION_OCTETS * each for each in range(sections)]
        self._own = self._sections[own]
        self._key_at = slice(begin + 16, begin + 16 + KEY_OCTETS)

    def held(self, direction: str, cause: str, name: bytes, mailbox: str) -> bool:
        """Notes a held recipient of the mail with this `name`; returns whether it is new."""
        now, ours = boot_time(), self._name(name, mailbox)
        code = 1.0 + DIRECTIONS.index(direction) * len(CAUSES) + CAUSES.index(cause)
        for section, at in self._found(ours, self._live(now)):
            row = self._row(at)
            if row.until >= now:
                self._set(section, at, _HeldRow(ours, row.first, now, max(row.pause, now - row.last), code))
                return False
        self._add(_HeldRow(ours, now, now, 0.0, code), now)
        return True

    def over(self, name: bytes, mailbox: str) -> None:
        """Ends the row: delivered, or failed."""
        if live := self._live(boot_time()):
            for _, at in self._found(self._name(name, mailbox), live):
                self._memory[at : at + _NUMBER] = bytes(_NUMBER)

    async def waiting(self) -> list[Waiting]:
        """The waiting recipients; yields to other tasks."""
        now, turns = boot_time(), Turns()
        kept: dict[float, Waiting] = {}
        for bucket in self._buckets(now):
            for row in bucket:
                code = int(row.how) - 1
                each = kept.setdefault(row.how, Waiting(DIRECTIONS[code // len(CAUSES)], CAUSES[code % len(CAUSES)]))
                each.recipients += 1
                each.longest = max(each.longest, now - row.first)
                if row.pause:
                    each.again = max(each.again, now - row.first)
            await turns.give()
        return [waiting for _, waiting in sorted(kept.items())]

    @property
    def more(self) -> bool:
        """Whether more recipients may wait: there was no place for them, or the file of them could not be read."""
        return any(self._numbers[each // 8 + 1] > boot_time() for each in self._sections)

    def may_lack_some(self) -> None:
        """Notes that recipients may wait who are not known here."""
        self._numbers[self._own // 8 + 1] = boot_time() + FORGET_S

    def _live(self, now: float) -> list[int]:
        """Sections with rows in them."""
        return [each for each in self._sections if self._numbers[each // 8] >= now]

    def _name(self, name: bytes, mailbox: str) -> bytes:
        digest = hashlib.blake2b(name, digest_size=_NUMBER, key=self._memory[self._key_at])
        digest.update(mailbox.encode("utf-8", "surrogatepass"))
        return digest.digest()

    def _found(self, name: bytes, sections: list[int]) -> Iterator[tuple[int, int]]:
        """Section and offset of each row with this name."""
        bucket = _bucket_of(name)
        for section in sections:
            start = section + bucket
            place = self._memory[start : start + _COLUMN].find(name)
            if place >= 0 and place % _NUMBER == 0:
                yield section, start + place

    def _add(self, row: _HeldRow, now: float) -> None:
        start = self._own + _bucket_of(row.name)
        at = next((at for at in range(start, start + _COLUMN, _NUMBER) if self._is_free(at, now)), None)
        if at is None:
            self.may_lack_some()
            return
        self._memory[at : at + _NUMBER] = bytes(_NUMBER)
        self._set(self._own, at, row)
        self._memory[at : at + _NUMBER] = row.name

    def _is_free(self, at: int, now: float) -> bool:
        number, numbers = at // 8, self._numbers
        return not numbers[number] or _until(numbers[number + 2 * _PLACES], numbers[number + 3 * _PLACES]) < now

    def _set(self, section: int, at: int, row: _HeldRow) -> None:
        for column, value in enumerate((row.first, row.last, row.pause, row.how), 1):
            self._numbers[(at + column * _COLUMN) // 8] = value
        self._numbers[section // 8] = max(self._numbers[section // 8], row.until)

    def _row(self, at: int) -> _HeldRow:
        columns = range(at // 8 + _PLACES, at // 8 + 5 * _PLACES, _PLACES)
        return _HeldRow(self._memory[at : at + _NUMBER], *(self._numbers[each] for each in columns))

    def _buckets(self, now: float) -> Iterator[list[_HeldRow]]:
        """All current rows, by bucket."""
        for section in self._live(now):
            for start in range(section + _HEAD, section + SECTION_OCTETS, _BUCKET):
                names = self._memory[start : start + _COLUMN]
                if any(names):
                    places = range(start, start + _COLUMN, _NUMBER)
                    rows = [self._row(at) for at in places if any(self._memory[at : at + _NUMBER])]
                    yield [row for row in rows if row.until >= now]

    async def as_text(self) -> str:
        """All rows as text, for the next start; it discloses no addresses."""
        turns, rows = Turns(), bytearray()
        for bucket in self._buckets(boot_time()):
            for row in bucket:
                rows += _ROW.pack(row.name, row.first, row.last, row.pause, row.how)
            await turns.give()
        key = self._memory[self._key_at].hex()
        return json.dumps({"key": key, "clock": round(clock_offset()), "rows": base64.b64encode(rows).decode()})

    def take(self, content: Mapping[str, Any]) -> None:
        """Loads the JSON of `as_text`, before anything is held. Raises ValueError, KeyError and TypeError."""
        key, rows = bytes.fromhex(content["key"]), base64.b64decode(content["rows"], validate=True)
        later = float(content["clock"]) - round(clock_offset())
        if len(rows) % _ROW.size:
            raise ValueError("the last row is not whole")
        self.begin(key)
        now = boot_time()
        for name, first, last, pause, code in _ROW.iter_unpack(rows):
            if not all(abs(each) < _MAX_S for each in (first, last, pause, later)):
                raise ValueError("a time that no clock shows")
            row = _HeldRow(name, min(now, first + later), min(now, last + later), pause, code)
            if row.until >= now and code in _HOWS:
                self._add(row, now)

    def begin(self, key: bytes) -> None:
        """Sets the key of names. Raises ValueError unless it has KEY_OCTETS."""
        if len(key) != KEY_OCTETS:
            raise ValueError(f"a key has {KEY_OCTETS} octets")
        self._memory[self._key_at] = key


def held_in(content: Mapping[str, Any]) -> HeldMail:
    """The JSON of `as_text`, in memory of its own. Raises ValueError, KeyError and TypeError."""
    held = HeldMail(mmap.mmap(-1, SECTION_OCTETS), 0, 1)
    held.take(content)
    return held


def _until(last: float, pause: float) -> float:
    """When a row expires: a mail server's backoff hardly more than doubles."""
    return last + max(FORGET_S, 2 * pause)


def _bucket_of(name: bytes) -> int:
    """Returns the offset of the name's bucket in a section."""
    return _HEAD + _BUCKET * (int.from_bytes(name[:2], "little") % _BUCKETS)
