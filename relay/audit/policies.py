"""Records each set of policies that comes into force: what it changes, who has put it there, and what that weakens.
Standard: deploy/AUDIT.md; a set that a killed relay did not record is recorded by the one that starts next.

The set is in force by then, and nothing waits for its record. One process of a relay does this.
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
from relay.policy.step import Names, SetFiles, SetStep, digest_of_all

log = structlog.get_logger(__name__)

COMPARE_S = 10.0
"""Maximum time that a set is compared with the one before (seconds)."""
MAX_LOADED = 20_000
"""Maximum number of files of a set that is read once more to be compared."""
NOT_A_STEP = (ValueError, KeyError, TypeError)
"""Exceptions that mean an unreadable step."""


class _Sets(NamedTuple):
    """What is compared; `missing` says why nothing is. `digest` is over all files of the set in force, or ""."""

    before: SetFiles | None = None
    now: SetFiles | None = None
    missing: str = ""
    digest: str = ""


class PolicyRecords:
    """Puts into the audit record what `last_good` has of sets that came into force."""

    def __init__(self, audit: Audit, last_good: LastGood, folder: Callable[[Path], PolicyFolder]) -> None:
        """`folder` gives an empty one for that directory, as this site reads policies."""
        self._audit = audit
        self._last_good = last_good
        self._folder = folder
        self._places: PolicyRecordPlaces | None = None

    async def keep_up(self) -> None:
        """Records what is not recorded yet, and then each set that comes."""
        came = asyncio.Event()
        loop = asyncio.get_running_loop()

        def notify() -> None:
            with suppress(RuntimeError):  # the event loop may be closed by now
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
        except Exception as error:  # what is kept of it is recorded at the next start
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
                except StoreUnavailable:  # the log has it
                    await asyncio.sleep(RETRY_S)
        await asyncio.to_thread(self._mark, came.step)

    def _left(self) -> list[SetInForce]:
        """What a process before this one has kept and not recorded, the oldest first."""
        try:
            with self._last_good.sets.reading() as book:
                steps = [step for _, step in book.steps() if step.time not in self._last_good.mine]
        except (OSError, sqlite3.Error, ConfigError, *NOT_A_STEP):
            steps = []  # where nothing is kept, or can be
        written = self._written(steps)
        for step in steps:
            if (as_time(step.time), step.version) in written:  # killed before it was marked
                self._mark(step)
        return [SetInForce(step) for step in steps if (as_time(step.time), step.version) not in written]

    def _written(self, steps: Sequence[SetStep]) -> set[tuple[str, str]]:
        """Time and version of what is recorded already, from where one of these steps may be."""
        directory = self._audit.directory
        try:
            if (places := PolicyRecordPlaces.read(directory)) is not None:
                self._places = places.checked(directory)
            if steps and self._places is not None:
                records = records_behind(directory, self._places.behind)
                return {(str(each.get("time")), str(each.get("version"))) for each in records}
        except ConfigError as error:  # twice is better than not at all
            log.warning("policy_records_not_read", cause=str(error))
        return set()

    def _mark(self, step: SetStep) -> None:
        with suppress(OSError, sqlite3.Error), self._last_good.sets.writing() as book:
            book.recorded(step)

    # --- in a thread ------------------------------------------------------------------------------------------------

    def _members(self, came: SetInForce) -> bytes:
        """The record, as JSON members; nothing where it is there already."""
        sets = self._sets(came)
        step = came.step
        if step.way == "start" and (last := self._last()) is not None:
            if (last.get("version"), last.get("files_sha256")) == (step.version, sets.digest):
                return b""
            if last.get("version") != step.before:  # what is kept is older than what is recorded
                nothing = Names()
                before = str(last.get("version"))
                step = replace(step, before=before, added=nothing, changed=nothing, removed=nothing)
                sets = _Sets(missing="the set before is not kept", digest=sets.digest)
        fields = {"time": as_time(step.time), "event": POLICIES, **of_step(step, self._audit.addresses)}
        fields |= {"files_sha256": sets.digest} if sets.digest else {}
        fields |= of_comparison(*self._compared(sets), self._audit.addresses)
        fields |= {"earlier": list(self._places.behind)} if self._places is not None else {}
        return json.dumps(fields)[1:-1].encode("ascii")

    def _last(self) -> dict[str, Any] | None:
        """The newest record of policies."""
        with suppress(ConfigError):
            return next(newest_first(self._audit.directory), None)
        return None

    def _compared(self, sets: _Sets) -> tuple[Comparison | None, str]:
        """What was compared, or why nothing was."""
        if sets.before is None or sets.now is None:
            return None, sets.missing
        try:
            return compare(sets.before.policies, sets.now.policies, COMPARE_S), ""
        except Exception as error:  # that the set came into force is to be recorded, whatever stands in the way of this
            log.error("policies_not_compared", version=sets.now.policies.version, cause=repr(error), exc_info=error)
            return None, f"{type(error).__name__}"

    def _sets(self, came: SetInForce) -> _Sets:
        """Those in memory, or else as they are kept."""
        if came.now is not None and came.before is not None:
            return _Sets(came.before, came.now, "", digest_of_all(came.now.digests()))
        missing = came.missing or ("" if came.step.before else "no set from before is known")
        if came.step.files > MAX_LOADED:
            missing = missing or f"more than {MAX_LOADED} files to read again"
        try:
            return self._kept(came, missing)
        except (OSError, sqlite3.Error, ConfigError, *NOT_A_STEP) as error:
            digest = digest_of_all(came.now.digests()) if came.now is not None else ""
            return _Sets(missing=missing or f"the set before cannot be read again: {error}", digest=digest)

    def _kept(self, came: SetInForce, missing: str) -> _Sets:
        """Raises ConfigError, OSError and sqlite3.Error."""
        with self._last_good.sets.reading() as book:
            kept = next((kept for kept, step in book.steps() if step == came.step), None)
            if came.now is not None:
                digest = digest_of_all(came.now.digests())
            else:
                digest = digest_of_all(each for _, each in book.digests(kept.number)) if kept is not None else ""
            if missing or kept is None:
                return _Sets(missing=missing or "the set is not kept", digest=digest)
            before = next((each for each in book.sets() if each.number == kept.number - 1), None)
            if before is None or before.version != came.step.before:
                return _Sets(missing="the set before is not kept", digest=digest)
            texts = [book.texts(before), book.texts(kept)]
        # Not while the file is locked, for the next set may wait to be kept.
        now = came.now if came.now is not None else self._read(texts[1])
        return _Sets(self._read(texts[0]), now, "", digest)

    def _read(self, texts: KeptTexts) -> SetFiles:
        folder = self._folder(self._last_good.sets.file.with_name(texts.version))
        return SetFiles.read(texts.read(folder), folder)
