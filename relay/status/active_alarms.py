"""An active alarm, and the file in which the serving relay lists all active alarms.
Commands read it without loading what serves mail. An old file means that no relay serves.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import structlog

from relay.config import Config
from relay.counting.alarms import ALARMS, Alarm
from relay.files.stamps import read_json

log = structlog.get_logger(__name__)

FRESH_S = 60.0
"""Maximum age of a serving relay's file, in seconds."""
_YEAR_10000 = 253_402_300_800.0
"""The first time beyond Python's dates, in seconds since 1970."""
MOST = 200
"""Maximum number of active alarms; warnings may take half of it."""

_NAME_FILES = ("policy_broken", "policy_edit_waits", "policy_test_fails")
"""Alarms with policy files in the cause, after a colon."""

State = Literal["begins", "stands", "changed", "ends"]


@dataclass(slots=True)
class ActiveAlarm:
    """An active alarm and its subject; `since` and `reported` are Unix times, `seen` a clock reading."""

    alarm: Alarm
    about: str
    cause: str
    since: float
    reported: float
    seen: float
    said: str = ""
    """The last reported cause."""

    @property
    def public_cause(self) -> str:
        """The cause as on the page, which every user of this machine may read."""
        return public_cause(self.alarm.name, self.cause)

    def as_json(self) -> dict[str, Any]:
        """Returns the row for the file."""
        return {
            "alarm": self.alarm.name, "about": self.about, "cause": self.cause, "since": self.since,
            "told": self.reported, "said": self.said,
        }  # fmt: skip


def public_cause(alarm: str, cause: str) -> str:
    """The cause without the names of policy files, which may be addresses."""
    return cause.partition(": ")[0] if alarm in _NAME_FILES else cause


def read(
    file: Path, now: float = 0.0, alarms: Mapping[str, Alarm] = ALARMS
) -> tuple[list[ActiveAlarm], Mapping[str, Any]]:
    """The alarms in the file and the pending notices; nothing if it cannot be read."""
    try:
        return read_json(file, lambda content: taken(content, now, alarms))
    except FileNotFoundError:
        return [], {}
    except (OSError, ValueError) as error:
        log.warning("alarms_not_read", file=str(file), cause=f"{type(error).__name__}: {error}")
        return [], {}


def taken(
    content: Mapping[str, Any], now: float = 0.0, alarms: Mapping[str, Alarm] = ALARMS
) -> tuple[list[ActiveAlarm], Mapping[str, Any]]:
    """As `read`, from the file's JSON. Raises ValueError and other exceptions for content that no relay writes."""
    active = [_active(row, now, alarms) for row in content["alarms"][:MOST] if row["alarm"] in alarms]
    return active, dict(content.get("untold", {}))


def _active(row: Mapping[str, Any], now: float, alarms: Mapping[str, Alarm]) -> ActiveAlarm:
    """Reads one row; raises ValueError, KeyError and TypeError."""
    about, cause = str(row["about"]), str(row["cause"])
    since, reported = float(row["since"]), float(row["told"])
    if not 0.0 <= since < _YEAR_10000:
        raise ValueError("a time that no clock shows")
    return ActiveAlarm(alarms[row["alarm"]], about, cause, since, reported, seen=now, said=str(row.get("said", cause)))


def of_the_serving_relay(config: Config) -> list[ActiveAlarm]:
    """The active alarms of the serving relay; none if no relay serves."""
    return read(config.alarms_file)[0] if serves(config) else []


def serves(config: Config) -> bool:
    """Whether a relay serves, by the age of its file."""
    try:
        return abs(time.time() - config.alarms_file.stat().st_mtime) < FRESH_S
    except OSError:
        return False
