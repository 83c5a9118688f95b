"""Writes the missing records of mail that was leaving when a process was killed.
Standard: deploy/AUDIT.md; mail that was announced before it left (writing.py) and has no record gets one.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable, Collection, Iterator, Mapping, Sequence
from contextlib import suppress
from itertools import chain
from pathlib import Path
from typing import Any

import structlog

from relay.audit.chain import ChainPlace
from relay.audit.entries import as_time, in_lines
from relay.audit.reading import lines
from relay.audit.writing import ANNOUNCED_SUFFIX, Audit
from relay.store.record_files import contents, take_over

log = structlog.get_logger(__name__)


async def take_over_announced(
    directory: Path, audit: Audit, sent: Callable[[Collection[str]], Awaitable[Collection[str]]]
) -> None:
    """Writes the missing records. Raises ConfigError, OSError and StoreUnavailable.

    If a recipient has the mail, the last attempt delivered it; the next hop's replies to earlier attempts are unknown.

    `sent` returns those of these recipients' names whose mail the next hop is known to have accepted. The outcome of
    all others is "unknown".
    """
    last: dict[str, int] | None = None

    async def put(notes: Sequence[bytes]) -> int:
        nonlocal last
        announced = [_read(each) for each in notes]
        # Before the first file is deleted: a later one may contain an earlier attempt.
        if last is None:
            last = await asyncio.to_thread(_last_attempts, directory)
        taken = frozenset(await sent({name for each in announced for name in each["names"]}))
        missing = await asyncio.to_thread(_missing_records, announced, audit.directory, taken, last)
        # Written now, not noted for later: after a failure the next attempt would note them again.
        await asyncio.gather(*(audit.write_now(_members(each)) for each in missing))
        # Before the file is deleted, which is the only copy until then.
        await audit.flush()
        return len(missing)

    if number := await take_over(directory, ANNOUNCED_SUFFIX, put, "records of mail that was leaving are missing"):
        log.warning("audit_completed", records=number, cause="the relay was killed before it could write them")


def _read(announced: bytes) -> dict[str, Any]:
    """The announcement. Raises ValueError if invalid."""
    said = json.loads(announced)
    try:
        first, octets = said["behind"]
        hashes, names = said["recipients"], said["names"]
        texts = all(isinstance(each, str) for each in (said["mail"], *hashes, *names))
        if texts and len(hashes) == len(names) and all(isinstance(each, int) for each in (first, octets, said["when"])):
            return {"time": as_time(said["when"]), **said}
    except (TypeError, KeyError, OverflowError, OSError):
        pass
    raise ValueError("written by a newer relay")


def _last_attempts(directory: Path) -> dict[str, int]:
    """The time of the last attempt for each recipient, by their name in the store, in nanoseconds since 1970."""
    last: dict[str, int] = {}
    for note in chain.from_iterable(file.records for file in contents(directory, ANNOUNCED_SUFFIX)):
        with suppress(ValueError):
            said = _read(note)
            for name in said["names"]:
                last[name] = max(last.get(name, 0), said["when"])
    return last


def _members(record: dict[str, Any]) -> bytes:
    return json.dumps(record)[1:-1].encode("ascii")


_Recipients = dict[str, str]
"""The recipients of one announcement: their form in records, and their name in the store."""


def _missing(announced: Sequence[dict[str, Any]], directory: Path) -> Iterator[tuple[dict[str, Any], _Recipients]]:
    """Announcements without a record, with the recipients that lack one."""
    recorded: dict[str, set[str]] = {each["mail"]: set() for each in announced}
    if not recorded:
        return
    behind = min([ChainPlace(*each.pop("behind")) for each in announced])
    if directory.is_dir():
        for line in lines(directory, behind=behind):
            if (mail := line.value_of("mail")) in recorded and line.value_of("event") == "mail":
                recorded[mail].update((line.record() or {}).get("recipients", ()))
    for each in announced:
        names = dict(zip(each.pop("recipients"), each.pop("names"), strict=True))
        if rest := {who: name for who, name in names.items() if who not in recorded[each["mail"]]}:
            recorded[each["mail"]].update(rest)
            yield each, rest


def _missing_records(
    announced: Sequence[dict[str, Any]], directory: Path, sent: frozenset[str], last: Mapping[str, int]
) -> list[dict[str, Any]]:
    records = []
    for said, names in _missing(announced, directory):
        when = said.pop("when")
        taken = {name for name in names.values() if name in sent and when >= last.get(name, 0)}
        for outcome, has_it in (("delivered", True), ("unknown", False)):
            groups = in_lines([address for address, name in names.items() if (name in taken) == has_it])
            records += [said | {"outcome": outcome, "reason": "Killed", "recipients": each} for each in groups]
    return records
