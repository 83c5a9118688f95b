"""Shadow mode's record: what would have become of each recipient's mail, one JSON line each, for `policy simulate`.
Standard: addresses, sizes and results, never content; readable by the relay only, and of bounded size.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import structlog

from relay.errors import ConfigError
from relay.policy.decision import Decision
from relay.policy.foresee import Outcome

log = structlog.get_logger(__name__)

_NEEDED = frozenset(("time", "sender", "recipient", "octets", "peer", "policy", "result", "protection", "quantum_bits"))
MAX_OCTETS = 256 * 1024 * 1024
"""A record that has come to this size is put aside as `NAME.1`, in place of the one before."""


@dataclass(frozen=True, slots=True)
class Foreseen:
    """One recipient's mail of `octets`, with its decision and what would have become of it."""

    decision: Decision
    octets: int
    outcome: Outcome

    def as_dict(self) -> dict[str, Any]:
        """JSON's types, with stable names."""
        return {
            "sender": self.decision.sender,
            "recipient": self.decision.recipient,
            "octets": self.octets,
            "peer": self.decision.peer,
            "listed": list(self.decision.levels),
            "result": self.outcome.result,
            "protection": self.outcome.protection,
            "quantum_bits": self.outcome.quantum_bits,
            "causes": list(self.outcome.causes),
            "policy": self.decision.where,
            "policy_version": self.decision.version,
        }


class ShadowRecord:
    """The file; it is no proof of anything, so that trouble with it holds no mail."""

    def __init__(self, path: Path) -> None:
        """Nothing is opened before the first line."""
        self.path = path

    def add(self, foreseen: Iterable[Foreseen]) -> None:
        """Adds lines; where that fails, says so in the log."""
        time = datetime.now(UTC).isoformat(timespec="seconds").replace("+00:00", "Z")
        lines = "".join(json.dumps({"time": time, **each.as_dict()}) + "\n" for each in foreseen)
        try:
            descriptor = os.open(self.path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o600)
            with os.fdopen(descriptor, "a", encoding="ascii") as file:
                file.write(lines)
                full = file.tell() > MAX_OCTETS
            if full:
                self.path.replace(self.path.with_name(f"{self.path.name}.1"))
        except OSError as error:
            log.error("shadow_record_not_written", file=str(self.path), cause=error.strerror)


def read_shadow(path: Path) -> Iterator[dict[str, Any]]:
    """The lines of a record, the oldest first; one that is not whole is left out. Raises ConfigError."""
    try:
        with path.open(encoding="ascii", errors="replace") as file:
            for line in file:
                try:
                    entry = json.loads(line)
                except ValueError:
                    continue
                if isinstance(entry, dict) and entry.keys() >= _NEEDED:
                    yield entry
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read: {error.strerror}") from error
