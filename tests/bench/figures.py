"""The figures of one run, which other runs can be compared with: medians, ratios, and the JSON file that keeps them.
Standard: `FORMAT` is the number of the file's form; a change of the form changes the number.
"""

from __future__ import annotations

import json
import statistics
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Self

from relay.errors import ConfigError
from tests.bench.cases import COMPARISONS, BenchComparison, Kind
from tests.bench.result import BenchMachine, BenchmarkFailed

FORMAT = 1
FAILED = "failed"
KEYS_RUN_OUT = "keys run out"
"""Note for a level and size for which the KMEs have too few keys."""


@dataclass(frozen=True, slots=True)
class Compared:
    """What came of a comparison: the medians' ratio (or difference, or the figure), and the rounds' least and most."""

    value: float
    lowest: float
    highest: float


@dataclass(slots=True)
class BenchFigures:
    """For each case and kind the rounds' values; `notes` say why a case has none, `faults` what went wrong."""

    rounds: dict[str, dict[Kind, list[float]]] = field(default_factory=dict)
    notes: dict[str, str] = field(default_factory=dict)
    faults: list[str] = field(default_factory=list)

    def add(self, case: str, kind: Kind, value: float) -> None:
        """One round's."""
        self.rounds.setdefault(case, {}).setdefault(kind, []).append(value)

    def note(self, case: str, why: str) -> None:
        """The case has no figures, which would tell only of the part that went well."""
        self.notes[case] = why
        self.rounds.pop(case, None)

    def failed(self, case: str, error: BenchmarkFailed) -> None:
        """The case has no figures; others may have."""
        self.note(case, FAILED)
        self.faults.append(str(error))

    def of(self, case: str, kind: Kind) -> Sequence[float]:
        """The values of all rounds; none where it was not measured."""
        return self.rounds.get(case, {}).get(kind, ())

    def median(self, case: str, kind: Kind) -> float | None:
        """Of the rounds; None where it was not measured."""
        values = self.of(case, kind)
        return statistics.median(values) if values else None

    def compared(self, one: BenchComparison) -> Compared | None:
        """None where a side of it was not measured."""
        own, others = self.of(one.this, one.kind), self.of(one.beside, one.kind)
        if not own or (one.beside and not others):
            return None

        def by(this: float, other: float) -> float:
            return this if not one.beside else this - other if one.added else this / other if other else 0.0

        each = [by(this, other) for this, other in zip(own, others if one.beside else own, strict=False)]
        value = by(statistics.median(own), statistics.median(others) if others else 0.0)
        return Compared(value, min(*each, value), max(*each, value))

    def data(self, machine: BenchMachine, **about: object) -> dict[str, Any]:
        """For the JSON file; `about` are further facts of the run."""
        ratios = [
            {**asdict(one), **asdict(compared), "met": met(one, compared)}
            for one in COMPARISONS
            if (compared := self.compared(one)) is not None
        ]
        return {
            "format": FORMAT, "machine": asdict(machine), **about, "figures": self.rounds, "notes": self.notes,
            "faults": self.faults, "ratios": ratios,
        }  # fmt: skip

    @classmethod
    def read(cls, file: Path) -> Self:
        """Those of an earlier run. Raises ConfigError where the file has none."""
        try:
            data = json.loads(file.read_bytes())
            if data["format"] != FORMAT:
                raise ConfigError(f"{file}: this is format {data['format']}, and {FORMAT} is read")
            rounds = {
                str(case): {kind: [float(value) for value in values] for kind, values in kinds.items()}
                for case, kinds in data["figures"].items()
            }
            return cls(rounds, {str(case): str(why) for case, why in data["notes"].items()})
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise ConfigError(f"{file}: this is no file that bench --json has written ({error})") from error


def met(one: BenchComparison, compared: Compared) -> bool:
    """Whether the aim is reached."""
    return compared.value <= one.aim if one.at_most else compared.value >= one.aim
