"""What `bench --keys` and `bench --soak` print: figures of the KM client, and how it stands a KME that fails.
Standard: both run against a simulated KME on this machine; a soak that finds a fault ends with exit status 1.
"""

from __future__ import annotations

import asyncio
import json
import sys

import click
from rich.console import Console
from rich.table import Table

from relay.bench.keys import as_json as figures_as_json
from relay.bench.keys import bench_keys
from relay.bench.soak import soak
from relay.cli.logs import configure_logging
from relay.config import LogSettings


def run_keys(*, as_json: bool) -> None:
    """The four figures of the KM client, each with what it is to be compared with."""
    configure_logging(LogSettings(level="error"))
    figures = asyncio.run(bench_keys())
    if as_json:
        click.echo(json.dumps(figures_as_json(figures), indent=2))
        return
    table = Table("what", "measured", "aim", "details")
    for figure in figures:
        details = ", ".join(f"{name} {value:,.2f}" for name, value in figure.details.items())
        style = "" if figure.reached else "bold red"
        table.add_row(figure.name, f"{figure.value:,.2f} {figure.unit}", figure.target, details, style=style)
    Console().print(table)


def run_soak(seconds: float, *, as_json: bool) -> None:
    """Mail for so many seconds over KMEs that fail at 30 % of all calls; says what was found."""
    configure_logging(LogSettings(level="error"))
    progress = Console(stderr=True)
    result = asyncio.run(soak(seconds, progress=lambda line: progress.print(line, highlight=False)))
    if as_json:
        click.echo(json.dumps(result.as_json(), indent=2))
    else:
        for name, value in result.as_json().items():
            click.echo(f"{name.replace('_', ' ')}: {value}")
    if result.faults:
        sys.exit(1)
