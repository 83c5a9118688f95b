"""How the commands here end: what a run has found, line by line, and an exit status.
Standard: exit status 0 only when every promise was kept.
"""

from __future__ import annotations

import sys
from collections.abc import Collection
from typing import NoReturn, Protocol

import click


class Report(Protocol):
    """What a run has found; `faults` are broken promises."""

    faults: list[str]


def tell_and_exit(report: Report, left_out: Collection[str] = ()) -> NoReturn:
    """Prints each figure but those `left_out`, then each broken promise, and ends the process."""
    for name, value in vars(report).items():
        if name not in ("faults", *left_out):
            click.echo(f"{name}: {dict(value) if isinstance(value, dict) else value}")
    for fault in report.faults:
        click.echo(f"PROMISE BROKEN: {fault}")
    sys.exit(1 if report.faults else 0)
