"""The downgrade ledger: one line for each mail that left with less than it could have, which nobody can quietly change.
JSON lines, each with the SHA-256 of the line before it; on the disk (fsync) before the mail leaves.

A line is never changed or taken back. What a crash broke off was never confirmed to anybody; it stays as it is, and
the next line continues the chain over it. Several processes may write one file: each locks it while it does.
"""

from __future__ import annotations

import asyncio
import errno
import fcntl
import hashlib
import hmac
import json
import os
import stat
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from tempfile import TemporaryFile
from typing import Any, Literal

import structlog

from relay.counting import Board, metrics
from relay.errors import ConfigError, StoreUnavailable
from relay.mail import Mail
from relay.store.group_commit import GroupCommit
from relay.store.secret import SiteSecret
from relay.store.secret_file import sync_directory

log = structlog.get_logger(__name__)

Event = Literal["downgrade", "plaintext", "shadow", "released", "dropped"]
"""Why a line was written: a weaker level, no sealing at all by policy, shadow mode, or a person's decision.

What a person decides about is a message in quarantine: it is handed on after all, or destroyed."""

GENESIS = "0" * 64
"""What stands for the line before the first."""
MAX_LINE_OCTETS = 1024 * 1024
MAX_REASON = 2000
_HASH_OCTETS = 16


@dataclass(frozen=True, slots=True)
class LedgerEntry:
    """One mail, or those of its recipients that one policy treats alike.

    `policy` is `file:line`, `listed` what it lists, `used` what protected the mail instead; `message` is the
    SHA-256 of the message. `sender` and `recipients` are addresses, which are hashed before they are written.
    """

    event: Event
    policy: str
    policy_version: str
    peer: str | None
    listed: tuple[str, ...]
    used: str
    reason: str
    message: str
    sender: str = field(repr=False)
    recipients: tuple[str, ...] = field(repr=False)
    by: str = ""

    @classmethod
    def of(cls, event: Event, mail: Mail, recipients: Sequence[str], **what: Any) -> LedgerEntry:
        """About this mail, to these of its recipients."""
        return cls(event=event, message=mail.digest, sender=mail.envelope.sender, recipients=tuple(recipients), **what)


class AddressHash:
    """Addresses as they stand in the ledger: under keys that follow from the site secret, so that only this site
    can tell whether an address is meant."""

    def __init__(self, secret: SiteSecret | None) -> None:
        """Without a secret addresses are written as they are."""
        self._keys = secret.derived(b"ledger addresses") if secret is not None else ()

    def write(self, address: str) -> str:
        """How a new line names the address."""
        return _hashed(self._keys[0], address) if self._keys else address

    def spellings(self, address: str) -> set[str]:
        """Everything that lines may have for the address, also under older secrets."""
        return {address, address.lower(), *(_hashed(key, address) for key in self._keys)}


def _hashed(key: bytes, address: str) -> str:
    return hmac.digest(key, address.lower().encode("utf-8", "surrogatepass"), "sha256")[:_HASH_OCTETS].hex()


class Ledger:
    """The file, for writing; entries that are made at the same time share one write and one fsync."""

    def __init__(self, path: Path, addresses: AddressHash, board: Board | None = None) -> None:
        """Nothing is opened before the first entry. Entries are counted on the `board`."""
        self.path = path
        self._board = board or Board()
        self._addresses = addresses
        self._commit: GroupCommit[dict[str, Any]] = GroupCommit(self._write_all)

    async def record(self, *entries: LedgerEntry) -> None:
        """Returns when the entries are on the disk; raises StoreUnavailable, and then nothing may leave."""
        try:
            await asyncio.gather(*(self._commit(self._line(entry)) for entry in entries))
        except StoreUnavailable:
            self._board.add(metrics.LEDGER_FAILURES)
            raise
        for entry in entries:
            self._board.add(metrics.LEDGER, entry.event)

    def _line(self, entry: LedgerEntry) -> dict[str, Any]:
        fields = {
            "event": entry.event,
            "policy": entry.policy,
            "policy_version": entry.policy_version,
            "peer": entry.peer,
            "listed": list(entry.listed),
            "used": entry.used,
            "reason": entry.reason[:MAX_REASON],
            "message": entry.message,
            "sender": self._addresses.write(entry.sender) if entry.sender else "",
            "recipients": [self._addresses.write(address) for address in entry.recipients],
        }
        return fields | ({"by": entry.by} if entry.by else {})

    async def _write_all(self, entries: Sequence[dict[str, Any]]) -> None:
        try:
            number, head = await asyncio.to_thread(self._append, entries)
        except OSError as error:
            raise StoreUnavailable(f"{self.path}: the ledger cannot be written: {error.strerror}") from error
        # In the log, the head is out of reach of somebody who can write to the file.
        log.info("ledger_written", entries=len(entries), number=number, head=head)

    def _append(self, entries: Sequence[dict[str, Any]]) -> tuple[int, str]:
        """Number and hash of the last line written."""
        new = not self.path.exists()
        descriptor = os.open(self.path, os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            number, head, broken = _end(descriptor)
            lines = b"\n" if broken else b""
            for fields in entries:
                number += 1
                time = datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
                line = json.dumps({"number": number, "time": time, **fields, "previous": head}).encode("ascii")
                head = hashlib.sha256(line).hexdigest()
                lines += line + b"\n"
            _write(descriptor, lines)
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
        if new:
            sync_directory(self.path.parent)
        return number, head


def why_not_writable(path: Path) -> str:
    """What stands in the way of a line, "" where nothing does; looking leaves nothing behind. Blocks."""
    path = path.resolve()
    try:
        if path.exists():
            descriptor = os.open(path, os.O_RDWR | os.O_APPEND | os.O_CLOEXEC | os.O_NONBLOCK)
            try:
                if not stat.S_ISREG(os.fstat(descriptor).st_mode):
                    return "it is not a regular file"
            finally:
                os.close(descriptor)
        else:
            with TemporaryFile(dir=path.parent):
                pass
        disk = os.statvfs(path.parent)
        return "" if disk.f_bavail * disk.f_frsize >= MAX_LINE_OCTETS else os.strerror(errno.ENOSPC)
    except OSError as error:
        return error.strerror or type(error).__name__


def _write(descriptor: int, data: bytes) -> None:
    while data:
        data = data[os.write(descriptor, data) :]


def _end(descriptor: int) -> tuple[int, str, bool]:
    """Number of the last whole line, hash of the last line whatever it is, and whether that was broken off."""
    size = os.fstat(descriptor).st_size
    if not size:
        return 0, GENESIS, False
    for octets in (64 * 1024, 4 * MAX_LINE_OCTETS, size):
        start = max(0, size - octets)
        *lines, rest = os.pread(descriptor, size - start, start).split(b"\n")
        if start:
            del lines[:1]  # its beginning was not read
        lines += [rest] if rest else []
        if number := next((found for line in reversed(lines) if (found := _number(line))), 0):
            return number, hashlib.sha256(lines[-1]).hexdigest(), rest != b""
    return 0, hashlib.sha256(lines[-1]).hexdigest() if lines else GENESIS, rest != b""


def _number(line: bytes) -> int:
    try:
        number = json.loads(line)["number"]
    except (ValueError, KeyError, TypeError, RecursionError):
        return 0
    return number if isinstance(number, int) else 0


# Reading: verifying needs no secret, so anybody can do it


@dataclass(frozen=True, slots=True)
class Verified:
    """What verifying found: number of entries, hash of the last line, what is wrong, and what was broken off."""

    entries: int
    head: str
    problems: tuple[str, ...]
    broken_off: tuple[int, ...] = ()


def verify_ledger(path: Path, expected_head: str | None = None) -> Verified:
    """Follows the chain from the first line to the last. Raises ConfigError where the file cannot be read.

    The chain alone does not show that lines are missing at the end: `expected_head`, a head that was kept
    elsewhere, must be the hash of one of the lines.
    """
    head, number = GENESIS, 0
    problems: list[str] = []
    broken_off: list[int] = []
    seen = expected_head in (None, GENESIS)
    for place, line in _lines(path):
        entry = _read(line)
        if entry is None:
            broken_off.append(place)  # confirmed to nobody; the line after it continues the chain over it
        else:
            number += 1
            if entry.get("number") != number:
                problems.append(f"{path}:{place}: number {entry.get('number')!r}, and {number} is expected")
                number = entry["number"] if isinstance(entry.get("number"), int) else number
            if entry.get("previous") != head:
                problems.append(f"{path}:{place}: does not continue the line before it; one of them was changed")
        head = hashlib.sha256(line).hexdigest()
        seen = seen or head == expected_head
    if not seen:
        problems.append(f"{path}: no line has the hash {expected_head}; the file was cut off or replaced")
    return Verified(number, head, tuple(problems), tuple(broken_off))


def ledger_entries(path: Path) -> Iterator[dict[str, Any]]:
    """All entries, the oldest first; lines that were broken off are left out. Raises ConfigError."""
    for _, line in _lines(path):
        if (entry := _read(line)) is not None:
            yield entry


def _lines(path: Path) -> Iterator[tuple[int, bytes]]:
    """Each line without its end, and its number (1 is the first)."""
    try:
        with path.open("rb") as file:
            place = 0
            while line := file.readline(MAX_LINE_OCTETS + 1):
                place += 1
                if len(line) > MAX_LINE_OCTETS:
                    raise ConfigError(f"{path}:{place}: longer than {MAX_LINE_OCTETS} octets; this is no ledger")
                yield place, line.rstrip(b"\n")
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read: {error.strerror}") from error


def _read(line: bytes) -> dict[str, Any] | None:
    try:
        entry = json.loads(line)
    except (ValueError, RecursionError):
        return None
    return entry if isinstance(entry, dict) else None
