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
    """Writes the records that are missing. Raises ConfigError, OSError and StoreUnavailable.

    Who has the mail has it by the last attempt; of those before it nobody knows what the next hop said.

    `sent` gives those of these names of recipients of whom it is known that the next hop has taken their mail. Of
    others it is not, and their outcome is "unknown".
    """
    last: dict[str, int] | None = None

    async def put(notes: Sequence[bytes]) -> int:
        nonlocal last
        announced = [_read(each) for each in notes]
        # Before the first file is deleted: a later one may report an earlier attempt.
        if last is None:
            last = await asyncio.to_thread(_last_attempts, directory)
        taken = frozenset(await sent({name for each in announced for name in each["names"]}))
        missing = await asyncio.to_thread(_missing_records, announced, audit.directory, taken, last)
        # Not noted for later: where they cannot be written now, the next attempt would note them once more.
        await asyncio.gather(*(audit.write_now(_members(each)) for each in missing))
        # Before the file is deleted: until then nothing else has them.
        await audit.flush()
        return len(missing)

    if number := await take_over(directory, ANNOUNCED_SUFFIX, put, "records of mail that was leaving are missing"):
        log.warning("audit_completed", records=number, cause="the relay was killed before it could write them")


def _read(announced: bytes) -> dict[str, Any]:
    """Raises ValueError for what is none."""
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
    """When a mail was last about to leave for a recipient, by what the store calls them, in nanoseconds since 1970."""
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
"""Those of one announcement, as they stand in records, and what the store calls each."""


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
