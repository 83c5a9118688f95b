"""Records each set of policies that comes into force: the changes, who installed it, and what became weaker.
Standard: deploy/AUDIT.md; the next relay records a set that a killed one did not.

A set comes into force first, and nothing waits for its record. Only one process of a relay writes these records.
"""

from __future__ import annotations

import asyncio
import json
import sqlite3
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import structlog

from relay.audit.entries import as_time
from relay.audit.policy_fields import of_comparison, of_step
from relay.audit.policy_places import POLICIES, PolicyRecordPlaces, newest_first, records_behind
from relay.audit.writing import RETRY_S, Audit
from relay.errors import ConfigError, StoreUnavailable
from relay.policy.compare import Comparison, compare
from relay.policy.kept import KeptTexts
from relay.policy.last_good import LastGood, SetInForce
from relay.policy.load import PolicyFolder
from relay.policy.step import Names, SetFiles, SetStep

log = structlog.get_logger(__name__)

COMPARE_S = 10.0
"""Time limit of the comparison with the previous set, in seconds."""
MAX_LOADED = 20_000
"""Maximum number of files of a set that are read again for comparison."""
NOT_A_STEP = (ValueError, KeyError, TypeError)
"""Exceptions that mean an unreadable step."""


class _Sets(NamedTuple):
    """The sets to compare, or why they are `missing`."""

    before: SetFiles | None = None
    now: SetFiles | None = None
    missing: str = ""


class PolicyRecords:
    """Writes records of the sets in `last_good` that came into force."""

    def __init__(self, audit: Audit, last_good: LastGood, folder: Callable[[Path], PolicyFolder]) -> None:
        """`folder` returns an empty PolicyFolder of a directory, with this site's settings."""
        self._audit = audit
        self._last_good = last_good
        self._folder = folder
        self._places: PolicyRecordPlaces | None = None

    async def keep_up(self) -> None:
        """Records earlier sets without a record, then each new set."""
        came = asyncio.Event()
        loop = asyncio.get_running_loop()

        def notify() -> None:
            with suppress(RuntimeError):  # the event loop may be closed
                loop.call_soon_threadsafe(came.set)

        self._last_good.notify = notify
        for each in await asyncio.to_thread(self._left):
            await self._try(each)
        while True:
            while self._last_good.came:
                await self._try(self._last_good.came[0])
                self._last_good.came.popleft()
            await came.wait()
            came.clear()

    async def _try(self, came: SetInForce) -> None:
        try:
            await self._record(came)
        except Exception as error:  # a stored step is recorded at the next start
            log.error("policies_not_recorded", version=came.step.version, cause=str(error), exc_info=error)

    async def _record(self, came: SetInForce) -> None:
        members = await asyncio.to_thread(self._members, came)
        if members:
            earlier = self._places.behind if self._places is not None else None
            self._places = PolicyRecordPlaces(self._audit.chain.place, earlier)
            await asyncio.to_thread(self._places.write, self._audit.directory)
            while True:
                try:
                    await self._audit.write_now(members)
                    break
                except StoreUnavailable:  # already logged
                    await asyncio.sleep(RETRY_S)
        await asyncio.to_thread(self._mark, came.step)

    def _left(self) -> list[SetInForce]:
        """Steps that an earlier process stored without a record, oldest first."""
        try:
            with self._last_good.sets.reading() as book:
                steps = [step for _, step in book.steps() if step.time not in self._last_good.mine]
        except (OSError, sqlite3.Error, ConfigError, *NOT_A_STEP):
            steps = []  # nothing is stored
        written = self._written(steps)
        for step in steps:
            if (as_time(step.time), step.version) in written:  # the process was killed before it marked the step
                self._mark(step)
        return [SetInForce(step) for step in steps if (as_time(step.time), step.version) not in written]

    def _written(self, steps: Sequence[SetStep]) -> set[tuple[str, str]]:
        """Time and version of recorded sets, from the first place where one of these steps may be."""
        directory = self._audit.directory
        try:
            if (places := PolicyRecordPlaces.read(directory)) is not None:
                self._places = places.checked(directory)
            if steps and self._places is not None:
                records = records_behind(directory, self._places.behind)
                return {(str(each.get("time")), str(each.get("version"))) for each in records}
        except ConfigError as error:  # a duplicate is better than none
            log.warning("policy_records_not_read", cause=str(error))
        return set()

    def _mark(self, step: SetStep) -> None:
        with suppress(OSError, sqlite3.Error), self._last_good.sets.writing() as book:
            book.recorded(step)

    # --- in a thread ------------------------------------------------------------------------------------------------

    def _members(self, came: SetInForce) -> bytes:
        """The record, as JSON members; empty if it exists already."""
        sets = self._sets(came)
        step = came.step
        if step.way == "start" and (last := self._last()) is not None:
            if last.get("version") == step.version:
                return b""
            if last.get("version") != step.before:  # the stored step is older than the record
                nothing = Names()
                before = str(last.get("version"))
                step = replace(step, before=before, added=nothing, changed=nothing, removed=nothing)
                sets = _Sets(missing="the set before is not kept")
        fields = {"time": as_time(step.time), "event": POLICIES, **of_step(step, self._audit.addresses)}
        fields |= of_comparison(*self._compared(sets), self._audit.addresses)
        fields |= {"earlier": list(self._places.behind)} if self._places is not None else {}
        return json.dumps(fields)[1:-1].encode("ascii")

    def _last(self) -> dict[str, Any] | None:
        """The newest record of policies."""
        with suppress(ConfigError):
            return next(newest_first(self._audit.directory), None)
        return None

    def _compared(self, sets: _Sets) -> tuple[Comparison | None, str]:
        """The comparison, or why there is none."""
        if sets.before is None or sets.now is None:
            return None, sets.missing
        try:
            return compare(sets.before.policies, sets.now.policies, COMPARE_S), ""
        except Exception as error:  # the set is recorded even if the comparison fails
            log.error("policies_not_compared", version=sets.now.policies.version, cause=repr(error), exc_info=error)
            return None, f"{type(error).__name__}"

    def _sets(self, came: SetInForce) -> _Sets:
        """The sets in memory, or else the stored ones."""
        if came.now is not None and came.before is not None:
            return _Sets(came.before, came.now)
        missing = came.missing or ("" if came.step.before else "no set from before is known")
        if came.step.files > MAX_LOADED:
            missing = missing or f"more than {MAX_LOADED} files to read again"
        try:
            return self._kept(came, missing)
        except (OSError, sqlite3.Error, ConfigError, *NOT_A_STEP) as error:
            return _Sets(missing=missing or f"the set before cannot be read again: {error}")

    def _kept(self, came: SetInForce, missing: str) -> _Sets:
        """The stored sets. Raises ConfigError, OSError and sqlite3.Error."""
        with self._last_good.sets.reading() as book:
            kept = next((kept for kept, step in book.steps() if step == came.step), None)
            if missing or kept is None:
                return _Sets(missing=missing or "the set is not kept")
            before = next((each for each in book.sets() if each.number == kept.number - 1), None)
            if before is None or before.version != came.step.before:
                return _Sets(missing="the set before is not kept")
            texts = [book.texts(before), book.texts(kept)]
        # Outside the lock on the file: the next set may wait to be stored.
        now = came.now if came.now is not None else self._read(texts[1])
        return _Sets(self._read(texts[0]), now)

    def _read(self, texts: KeptTexts) -> SetFiles:
        folder = self._folder(self._last_good.sets.file.with_name(texts.version))
        return SetFiles.read(texts.read(folder), folder)
