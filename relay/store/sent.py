"""What next hops have accepted recently, recorded in the step that reads their reply.
Standard: RFC 1047: a kill between a next hop's 250 and the record of it duplicates a mail. No await is in between.

The store has it too, but milliseconds later, and only if disk and database are available. It does not have mail whose
client is answered at once with success. Here a record costs no system call (mapped_file.py). It is only needed by a
relay that starts after a kill. A file is deleted when its last client must have got the reply.
"""

from __future__ import annotations

import asyncio
import struct
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from time import monotonic
from typing import NamedTuple

import structlog

from relay.errors import StoreUnavailable
from relay.store.database import batches
from relay.store.delivery_records import DeliveryRecords
from relay.store.mapped_file import MappedFile
from relay.store.record_files import contents, take_over

log = structlog.get_logger(__name__)

KEPT_S = 30.0
"""Time after which a client has got its reply, or the store has the attempt, in seconds."""
SENT = "sent.recent"
"""Directory of these records, beside the store."""
SUFFIX = ".sent"
FILE_OCTETS = 4 * 2**20
ROOM_OCTETS = 2**20
"""Number of bytes reserved in a file: the names of 32,000 recipients."""
_VERSION, _NAME_OCTETS = 1, 32
_HEAD = struct.Struct(f">BBd{_NAME_OCTETS}s")
"""Version, whether the mail was opened here, seconds of the clock, name of the mail; those of its recipients follow."""


class _Sent(NamedTuple):
    """A record: when (seconds), the names of the mail and of those who have it, and whether it was opened here."""

    at: float
    mail: bytes
    recipients: list[bytes]
    opened: bool

    @classmethod
    def read(cls, record: bytes) -> _Sent:
        """Raises ValueError where another version has written it."""
        rest = len(record) - _HEAD.size
        if rest < 0 or rest % _NAME_OCTETS or record[0] != _VERSION:
            raise ValueError("written by a newer relay")
        _, opened, at, mail = _HEAD.unpack_from(record)
        names = [record[begin : begin + _NAME_OCTETS] for begin in range(_HEAD.size, len(record), _NAME_OCTETS)]
        return cls(at, mail, names, bool(opened))


class SentRecords:
    """The records of this process."""

    def __init__(
        self,
        directory: Path,
        settled: Callable[[], bool] = lambda: True,
        clock: Callable[[], float] = monotonic,
    ) -> None:
        """`settled` returns whether the store has everything; until then nothing is deleted here.

        `clock` is monotonic, the same for all processes of this host.
        """
        self._directory = directory
        self._settled = settled
        self._clock = clock
        self._before: list[MappedFile] = []
        self._files: list[MappedFile] = []
        """Those that were begun since, of which the last one is written; mostly there is one."""
        self._began = clock()
        self._failed = False

    def ready(self) -> None:
        """Reserves room for the next records. Call it before a mail leaves. Raises StoreUnavailable."""
        self.tidy()
        if not self._files or not self._files[-1].fits(ROOM_OCTETS):
            self._files.append(MappedFile(self._directory, SUFFIX, FILE_OCTETS))

    def note(self, mail: bytes, recipients: Sequence[bytes], opened: bool = False) -> None:
        """Records recipients (names of relay/mail.py) who have the mail; `opened`: named by its sealed envelope.

        Never raises; contains no await.
        """
        if not recipients:
            return
        record = _HEAD.pack(_VERSION, opened, self._clock(), mail) + b"".join(recipients)
        try:
            if not self._files or not self._files[-1].add(record):
                self._files.append(MappedFile(self._directory, SUFFIX, max(FILE_OCTETS, 2 * len(record))))
                self._files[-1].add(record)
        except StoreUnavailable as error:  # the mail has left, whatever fails now
            if not self._failed:
                log.error("sent_not_noted", cause=str(error), meaning="a killed relay may send mail twice")
            self._failed = True
        else:
            self._failed = False

    def tidy(self) -> None:
        """Deletes old files. Call it regularly: an old record would suppress the same bytes sent again."""
        now = self._clock()
        if now - self._began <= KEPT_S or not self._settled():
            return
        before: list[MappedFile] = []
        if any(each.end for each in self._files):
            try:
                fresh = MappedFile(self._directory, SUFFIX, FILE_OCTETS)
            except StoreUnavailable:  # mail under way has room reserved in these files
                return
            before, self._files = self._files, [fresh]
        for each in self._before:
            each.discard()
        self._before, self._began = before, now

    def close(self) -> None:
        """Deletes the files after the store was closed, unless it could not be written."""
        for each in (*self._before, *self._files):
            if self._settled() or not each.end:
                each.discard()
            else:
                each.close()
        self._before, self._files = [], []


def sent_of_late(directory: Path) -> frozenset[str]:
    """The names, in hexadecimal, of all recorded recipients, as far as readable. Blocks."""
    names: set[str] = set()
    for file in contents(directory, SUFFIX):
        for record in file.records:
            with suppress(ValueError):  # logged by take_over_sent
                names.update(name.hex() for name in _Sent.read(record).recipients)
    return frozenset(names)


async def take_over_sent(directory: Path, deliveries: DeliveryRecords) -> int:
    """Stores what a killed process had sent; returns the number of mails. Raises StoreUnavailable and OSError."""

    async def put(records: Sequence[bytes]) -> int:
        entries = [_Sent.read(record) for record in records]
        last = max((each.at for each in entries), default=0.0)
        recent = [each for each in entries if each.at > last - KEPT_S]
        for together in batches(recent):
            remembered = (deliveries.remember(each.mail, each.recipients, opened=each.opened) for each in together)
            await asyncio.gather(*remembered)
        return len(recent)

    return await take_over(directory, SUFFIX, put, "such mail may be sent again")
