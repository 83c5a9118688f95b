"""One process's writer of the audit record: ledger entries at once and flushed, all others a moment later.
Standard: deploy/AUDIT.md, which lists what a kill and a power failure can cost.

A record that must exist before mail leaves is awaited, and shares one flush with all concurrent ones. Ordinary records
are queued, and a thread writes them together within FLUSH_S; mail never waits for them. Mail is announced before it
leaves, in a mapped file that survives a kill (recovery.py). Such a file contains only present or future contents of the
audit record, and recipients' names in the store.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from time import monotonic

import structlog

from relay.audit.chain import FRAME_OCTETS, MAX_LINE_OCTETS, Chain, End, why_not_writable
from relay.audit.entries import AddressHash, LedgerEntry, event_members
from relay.counting import metrics
from relay.counting.board import Board
from relay.errors import StoreUnavailable
from relay.store.group_commit import GroupCommit
from relay.store.mapped_file import MappedFile
from relay.store.record_files import OVERHEAD_OCTETS

log = structlog.get_logger(__name__)

FLUSH_S = 0.25
"""Time that ordinary records wait for others, in seconds."""
DISK_S = 1.0
"""Maximum time until records are flushed, in seconds; a power failure costs the others."""
RETRY_S = 1.0
MAX_WAITING = 20_000
"""Maximum number of records in memory while writing fails; then the oldest are dropped and counted."""
ANNOUNCED_OCTETS = 4 * 2**20
"""Size of a file of announcements, in bytes; a longer announcement gets a file of its own."""
TURN_OCTETS = 64 * 1024
"""Size after which announcements go to another file, in bytes."""
ANNOUNCED, ANNOUNCED_SUFFIX = "audit.pending", ".announced"
"""Directory of announcements of mail about to leave, and the suffix of its files."""


class Announced(MappedFile):
    """A file of announcements, and the number of those without a record."""

    __slots__ = ("open",)

    def __init__(self, directory: Path, size: int) -> None:
        super().__init__(directory, ANNOUNCED_SUFFIX, size)
        self.open = 0


class Pending:
    """The announcements of this process, in a few files; a file without open announcements is reused."""

    def __init__(self, directory: Path) -> None:
        """Creates nothing until the first announcement."""
        self._directory = directory
        self._now: Announced | None = None
        self._others: list[Announced] = []

    def add(self, record: bytes) -> Announced:
        """Announces a mail before it leaves, without an await. Raises StoreUnavailable if writing fails."""
        where = self._now
        if where is None or not where.add(record):
            where = self._another(len(record))
            where.add(record)
        where.open += 1
        return where

    def turn(self) -> None:
        """Switches to another file for new announcements. To be called before earlier ones are recorded.

        So a file soon has no open announcements, and the same memory is reused. The first byte of a new page costs as
        much as all else here.
        """
        if self._now is None or self._now.end < TURN_OCTETS:
            return
        if not self._others:
            with suppress(StoreUnavailable):  # otherwise the current file is filled first
                self._others.append(Announced(self._directory, ANNOUNCED_OCTETS))
        if (empty := self._empty()) is not None:
            self._others.append(self._now)
            self._now = empty

    def recorded(self, where: Announced, number: int) -> None:
        """Notes that `number` of the announcements in this file are recorded."""
        where.open -= number
        if where.open:
            return
        where.empty()
        if where is not self._now and any(not each.open for each in self._others if each is not where):
            self._others.remove(where)
            where.discard()

    def close(self) -> None:
        """Closes all files, and leaves those with open announcements for the next relay."""
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

    def _another(self, size: int) -> Announced:
        """Switches to a file with room for this many bytes. Raises StoreUnavailable."""
        where = self._empty()
        if where is None or not where.fits(size):
            self._others += [where] if where is not None else []
            where = Announced(self._directory, max(ANNOUNCED_OCTETS, size + 2 * OVERHEAD_OCTETS))
        self._others += [self._now] if self._now is not None else []
        self._now = where
        return where


_Noted = tuple[Callable[[], bytes], Announced | None]
"""The function that makes an ordinary record, as JSON members, and the file of its announcement, if any."""


class Audit:
    """The audit record as this process writes it."""

    def __init__(
        self,
        chain: Chain,
        addresses: AddressHash,
        pending: Pending | None = None,
        board: Board | None = None,
        *,
        every_mail: bool = True,
        hold: bool = False,
    ) -> None:
        """Ledger entries are counted on the `board`.

        Without `every_mail` only the ledger is written. With `hold` no mail leaves without its record.

        Without `pending`, mail that is leaving during a kill gets no record.
        """
        self.directory = chain.directory
        self.addresses = addresses
        self.every_mail = every_mail
        self.chain = chain
        """Its `place` is current: all later lines come after it."""
        self._pending = pending
        self._board = board or Board()
        self._hold = hold
        self._commit: GroupCommit[bytes] = GroupCommit(self._write)
        self._noted: list[_Noted] = []
        self._given_up = 0
        self._trouble = ""
        self._unannounced = False
        self._unflushed = False
        self._flushed_at = monotonic()
        self._going_on: asyncio.Task[None] | None = None
        self._writing: asyncio.Future[None] | None = None

    # Records that must exist before a mail leaves

    async def record(self, *entries: LedgerEntry) -> None:
        """Returns once the entries are on the disk; raises StoreUnavailable, and then nothing may leave."""
        try:
            lines = [line for entry in entries for line in entry.members(self.addresses)]
            await asyncio.gather(*map(self._commit, lines))
        except StoreUnavailable:
            self._board.add(metrics.LEDGER_FAILURES)
            raise
        for entry in entries:
            self._board.add(metrics.LEDGER, entry.event)

    def why_not_writable(self) -> str:
        """Why the last record could not be written, or the next cannot; "" if no reason is known. Blocks."""
        return self._trouble or why_not_writable(self.directory)  # a test may succeed where a record fails

    async def write_now(self, members: bytes) -> None:
        """Writes any other record, as JSON members, like `record`."""
        await self._commit(members)

    # Records written a moment later

    def announce(self, record: bytes) -> Announced | None:
        """Announces a mail: `record` is the record that the next relay should write if this one is killed.

        Raises StoreUnavailable if records cannot be written and mail must not leave without.
        """
        if self._hold and self._trouble:
            raise StoreUnavailable(f"the audit record cannot be written: {self._trouble}")
        if self._pending is None:
            return None
        try:
            where = self._pending.add(record)
        except StoreUnavailable as error:
            if self._hold:
                raise
            if not self._unannounced:
                log.error("audit_not_announced", cause=str(error), meaning="a kill may cost records of what leaves")
            self._unannounced = True
            return None
        self._unannounced = False
        return where

    def note(self, make: Callable[[], bytes], announced: Announced | None = None) -> None:
        """Queues an ordinary record, made (as JSON members) when it is written, in a thread; never raises."""
        self._noted.append((make, announced))
        if len(self._noted) > MAX_WAITING:
            self._given_up += 1
            self._settle(self._noted[:1])
            del self._noted[0]
        if self._going_on is None or self._going_on.done():
            self._going_on = asyncio.get_running_loop().create_task(self._go_on())

    async def flush(self) -> None:
        """Returns once all queued records are on the disk. Raises StoreUnavailable."""
        await self._commit(b"")
        try:
            await asyncio.to_thread(self.chain.flush)
        except OSError as error:
            raise self._failed(error) from error
        self._unflushed, self._flushed_at = False, monotonic()

    async def close(self) -> None:
        """Writes queued records, and closes the files."""
        if self._going_on is not None:
            self._going_on.cancel()
            await asyncio.gather(self._going_on, return_exceptions=True)
        if self._writing is not None:
            await asyncio.gather(self._writing, return_exceptions=True)
        with suppress(StoreUnavailable):
            await self.flush()
        if self._noted:
            log.error("audit_incomplete", missing=len(self._noted) + self._given_up, cause=self._trouble)
        await asyncio.to_thread(self.chain.close)
        if self._pending is not None:
            self._pending.close()

    async def _go_on(self) -> None:
        """Writes queued records while there are any, and flushes from time to time."""
        while self._noted or self._unflushed:
            await asyncio.sleep(RETRY_S if self._trouble else FLUSH_S)
            try:
                if not self._noted or monotonic() - self._flushed_at > DISK_S:
                    await self.flush()
                else:
                    await self._commit(b"")
            except StoreUnavailable:
                continue  # already logged; next attempt follows

    async def _write(self, must: Sequence[bytes]) -> None:
        """Writes these records after all queued ones; b"" stands for none."""
        # If the caller is cancelled, the write continues: each queued record is either written or still queued.
        self._writing = asyncio.ensure_future(self._written([each for each in must if each]))
        await asyncio.shield(self._writing)

    async def _written(self, must: Sequence[bytes]) -> None:
        noted, self._noted, missing = self._noted, [], self._given_up
        gap = [event_members("gap", {"missing": missing})] if missing else []
        others = [*gap, *must]
        if not noted and not others:
            return
        if self._pending is not None:
            self._pending.turn()
        try:
            end = await asyncio.to_thread(self._append, noted, others, flush=bool(must))
        except OSError as error:
            self._noted[:0] = noted
            raise self._failed(error) from error
        self._given_up -= missing
        self._settle(noted)
        self._unflushed = not must
        if self._trouble:
            log.warning("audit_written_again", missing=missing)
            self._trouble = ""
            self._board.set(metrics.AUDIT_WRITABLE, to=1)
        if must:
            self._report(len(must), end)

    def _append(self, noted: Sequence[_Noted], others: Sequence[bytes], *, flush: bool) -> End:
        """Makes all records together, which is several times faster than one by one while mail passes. Raises
        OSError.
        """
        return self.chain.append([*(_made(make) for make, _ in noted), *others], flush=flush)

    def _settle(self, noted: Sequence[_Noted]) -> None:
        if self._pending is None:
            return
        for announced, number in Counter(each for _, each in noted if each is not None).items():
            self._pending.recorded(announced, number)

    def _report(self, entries: int, end: End) -> None:
        """An attacker who can write to the files cannot change the head in the log."""
        log.info("ledger_written", entries=entries, number=end.number, head=end.head)

    def _failed(self, error: OSError) -> StoreUnavailable:
        """Reports a failure once, and shows it on the board until a write succeeds."""
        cause = error.strerror or type(error).__name__
        if error.filename and Path(error.filename) != self.directory:
            cause = f"{Path(error.filename).name}: {cause}"
        if not self._trouble:
            meaning = "no mail leaves until it can" if self._hold else "mail goes on; its records wait in memory"
            log.error("audit_not_written", directory=str(self.directory), cause=cause, meaning=meaning)
        self._trouble = cause
        self._board.set(metrics.AUDIT_WRITABLE, to=0)
        return StoreUnavailable(f"{self.directory}: the audit record cannot be written: {self._trouble}")


def _made(make: Callable[[], bytes]) -> bytes:
    """Makes a record. A failure blocks no other record, and a record of the gap takes its place."""
    try:
        members = make()
    except Exception as failure:  # noqa: BLE001 - all others are to be written
        log.error("mail_not_counted", kind=type(failure).__name__, cause=str(failure))
    else:
        if len(members) <= MAX_LINE_OCTETS - FRAME_OCTETS:  # no command could read a longer line
            return members
        log.error("mail_not_counted", kind="too long", cause=f"a record of {len(members)} bytes fits no line")
    return event_members("gap", {"missing": 1})
