"""Reads the downgrade ledger: whether its chain is whole, and which of its lines are asked for.
Standard: a file of any size is read line by line; verifying needs no secret, so anybody can do it.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from relay.errors import ConfigError
from relay.store.ledger import GENESIS, MAX_LINE_OCTETS


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
        entry = _entry(line)
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
        if (entry := _entry(line)) is not None:
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


def _entry(line: bytes) -> dict[str, Any] | None:
    try:
        entry = json.loads(line)
    except (ValueError, RecursionError):
        return None
    return entry if isinstance(entry, dict) else None
