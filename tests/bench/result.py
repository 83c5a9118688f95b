"""What came of a benchmark, how it is shown, and what it ran on, since figures without their machine say nothing.
Nothing here names the host or its user.
"""

from __future__ import annotations

import json
import os
import platform
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
from rich.console import Console
from rich.table import Table

from relay.errors import ConfigError, RelayError

Progress = Callable[[str, float], None]
"""Hears what is done now and the share of it that is over (0 to 1)."""


STDOUT = Path("-")
"""File name that means standard output."""


class BenchmarkFailed(RelayError):
    """What was measured did not work, so there are no figures."""


@dataclass(frozen=True, slots=True)
class BenchMachine:
    """Cores that may be used, processor, Python, operating system, and the load (1 minute) that was found."""

    cores: int
    cpu: str
    python: str
    system: str
    load: float

    def __str__(self) -> str:
        cores = f"{self.cores} core{'s' if self.cores != 1 else ''}"
        return f"{cores} of {self.cpu}, Python {self.python}, {self.system}, load {self.load}"


@dataclass(frozen=True, slots=True)
class BenchResult:
    """A table for persons, and `data` for programs.

    Of the columns the first `names` stand left, figures right. `missed` are the rows that are not what they have to
    be, `faults` the broken promises, for which the command ends with exit status 1.
    """

    columns: Sequence[str]
    rows: Sequence[Sequence[str]]
    data: Any
    notes: str = ""
    names: int = 1
    missed: Sequence[int] = ()
    faults: Sequence[str] = ()

    def show(self, json_file: Path | None) -> None:
        """On standard output; with a file only the data, there."""
        if json_file is not None:
            write_json(json_file, self.data)
            return
        table = Table(*self.columns)
        for column in table.columns[self.names :]:
            column.justify = "right"
        for number, row in enumerate(self.rows):
            table.add_row(*row, style="bold red" if number in self.missed else "")
        console = Console()
        console.print(table)
        console.print(self.notes, highlight=False, soft_wrap=True)


def write_json(file: Path, data: Any) -> None:
    """To a file or STDOUT. Raises ConfigError where it cannot be written."""
    text = json.dumps(data, indent=2)
    if file == STDOUT:
        click.echo(text)
        return
    try:
        file.write_text(f"{text}\n")
    except OSError as error:
        raise ConfigError(f"{file}: cannot be written ({error.strerror})") from error


def machine() -> BenchMachine:
    """This one, now."""
    return BenchMachine(
        cores=len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1,
        cpu=_cpu(),
        python=f"{platform.python_implementation()} {platform.python_version()}",
        system=f"{platform.system()} {platform.release()}",
        load=round(os.getloadavg()[0], 2),
    )


def _cpu() -> str:
    """The processor's model as Linux names it, elsewhere what Python knows."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    models = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return models[0] if models else platform.processor() or platform.machine()
