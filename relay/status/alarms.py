"""Alarms: each begins once, and ends once its cause is observed to be gone, for all processes of a relay.
relay/counting/alarms.py lists all alarms; evaluating them delays no mail.

A cause that cannot be observed is not over: after a restart an alarm stays active until its rule observes the end of
the cause. It is not reported again then. The state of all alarms and pending notices is in a file beside the site's
secret, replaced atomically (rename(2)). `check` reads it, and the relay at its next start.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, Protocol

import structlog

from relay.counting import metrics
from relay.counting.alarms import ALARMS, Alarm
from relay.counting.board import Board
from relay.files import write_whole
from relay.status.active_alarms import MOST, ActiveAlarm, State, read
from relay.status.observation import Observation, Observer
from relay.status.rules import RULES, Rule

log = structlog.get_logger(__name__)

LOOK_S = 5.0
WRITE_S = 10.0
"""Maximum age of the file, in seconds; an older one means that no relay serves."""
AGAIN_S = 86_400.0
"""Interval at which an active alarm is reported again, in seconds."""


class Notifier(Protocol):
    """Sends notices of alarms to others."""

    def notify(self, active: ActiveAlarm, state: State) -> None:
        """Returns at once; failures are logged."""

    def pending(self) -> dict[str, Any]:
        """The notices not sent yet, for a file."""

    def resume(self, pending: Mapping[str, Any]) -> None:
        """Resumes the notices of the previous run. Raises ValueError, KeyError and TypeError."""


class Alarms:
    """The alarms that are active, and how they change with each evaluation."""

    def __init__(
        self,
        board: Board,
        file: Path,
        notifier: Notifier | None = None,
        *,
        rules: Mapping[str, Rule] = RULES,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Restores the alarms that were active when the relay last ended."""
        self._board = board
        self._file = file
        self._notifier = notifier
        self._rules = rules
        self._clock = clock
        self._written_at = clock()
        self._first_seen: dict[tuple[str, str], float] = {}
        active, pending = read(file, self._written_at, ALARMS)
        self._active = {(each.alarm.name, each.about): each for each in active}
        self._could_write, self._written = True, ""
        if notifier is not None:
            _resume(notifier, pending)
        for name in ALARMS:
            board.cell(metrics.ALARMS_BEGUN, name)
        self._show()

    @property
    def active(self) -> list[ActiveAlarm]:
        """The active alarms, oldest first."""
        return sorted(self._active.values(), key=lambda each: each.since)

    def about(self, name: str) -> set[str]:
        """The subjects for which this alarm is active."""
        return {about for alarm, about in self._active if alarm == name}

    def note(self, observation: Observation) -> None:
        """Evaluates an observation: alarms begin, end and are repeated."""
        now = self._clock()
        found = [((name, about), cause) for name, about, cause in self._seen(observation)]
        seen = {key: cause for key, cause in found if cause is not None}
        unseen = {key for key, _ in found} - seen.keys()
        for key, cause in seen.items():
            first = self._first_seen.setdefault(key, now)
            if active := self._active.get(key):
                active.seen, active.cause = now, cause
            elif now - first >= ALARMS[key[0]].after_s and self._has_room(ALARMS[key[0]]):
                self._begin(*key, cause)
        self._first_seen = {key: first for key, first in self._first_seen.items() if key in seen}
        for key, each in list(self._active.items()):
            if key in unseen:
                each.seen = now
            if key in seen or key in unseen:
                self._repeat(each)
            elif now - each.seen >= each.alarm.clear_s:
                del self._active[key]
                self._report(each, "ends")
        self._show()

    def _seen(self, observation: Observation) -> Iterable[tuple[str, str, str | None]]:
        """Alarm, subject and cause; None if the end of the cause cannot be observed: then nothing ends."""
        for name, rule in self._rules.items():
            try:
                found = list(rule(observation, self.about(name)))
                yield from ((name, _encodable(about), _encodable(cause) if cause else cause) for about, cause in found)
            except Exception as error:  # noqa: BLE001 - a faulty rule must not affect the others
                log.error("alarm_not_looked_at", alarm=name, cause=f"{type(error).__name__}: {error}")
                yield from ((name, about, None) for about in self.about(name))

    def _has_room(self, alarm: Alarm) -> bool:
        """Whether one more may be active; half of the places are reserved for critical alarms."""
        return len(self._active) < (MOST if alarm.severity == "critical" else MOST // 2)

    def _begin(self, name: str, about: str, cause: str) -> None:
        wall = time.time()
        self._active[name, about] = begun = ActiveAlarm(ALARMS[name], about, cause, wall, wall, self._clock())
        self._board.add(metrics.ALARMS_BEGUN, name)
        self._report(begun, "begins")

    def _repeat(self, each: ActiveAlarm) -> None:
        """Reports an active alarm again once a day, and in a digest if its cause has changed."""
        ago = time.time() - each.reported
        if not 0 <= ago < AGAIN_S:
            self._report(each, "stands")
        elif each.alarm.digest_s and ago >= each.alarm.digest_s and each.cause != each.said:
            self._report(each, "changed")

    def _report(self, each: ActiveAlarm, state: State) -> None:
        each.reported, each.said = time.time(), each.cause
        facts = {"alarm": each.alarm.name, "severity": each.alarm.severity, "about": each.about, "cause": each.cause}
        duration = round(max(0.0, time.time() - each.since))
        if state == "begins":
            log.error("alarm_begins", **facts, what_to_do=each.alarm.what_to_do)
        elif state == "changed":
            log.error("alarm_changed", **facts, what_to_do=each.alarm.what_to_do, seconds=duration)
        elif state == "stands":
            log.error("alarm_stands", **facts, what_to_do=each.alarm.what_to_do, seconds=duration)
        else:
            log.warning("alarm_ends", **facts, seconds=duration)
        if self._notifier is not None:
            self._notifier.notify(each, state)

    def _show(self) -> None:
        for name, alarm in ALARMS.items():
            self._board.set(metrics.ALARM, name, alarm.severity, to=bool(self.about(name)))

    async def keep_up(self, observer: Observer) -> None:
        """Evaluates the alarms every LOOK_S seconds, until cancelled."""
        while True:
            try:
                self.note(await observer.look(self.about("next_hop_away")))
                if self._as_text() != self._written or self._clock() - self._written_at >= WRITE_S:
                    await self.write()
            except Exception as error:  # noqa: BLE001 - the next evaluation may succeed
                log.error("alarms_not_looked_at", cause=f"{type(error).__name__}: {error}")
            await asyncio.sleep(LOOK_S)

    async def write(self) -> None:
        """Writes the current state; a failure is logged."""
        text, self._written_at = self._as_text(), self._clock()
        try:
            await asyncio.to_thread(write_whole, self._file, text)
        except OSError as error:
            if self._could_write:
                log.warning("alarms_not_written", file=str(self._file), cause=str(error))
            self._could_write = False
        else:
            self._could_write, self._written = True, text

    def _as_text(self) -> str:
        pending = self._notifier.pending() if self._notifier is not None else {}
        return json.dumps({"alarms": [each.as_json() for each in self.active], "untold": pending})


def _resume(notifier: Notifier, pending: Mapping[str, Any]) -> None:
    try:
        notifier.resume(pending)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        log.warning("alarms_not_read", cause=f"what was still to be reported: {type(error).__name__}: {error}")


def _encodable(text: str) -> str:
    """`text` with what UTF-8 cannot have escaped: others name files as they like, and no face may fail by a name."""
    return text.encode("utf-8", "backslashreplace").decode()
