"""The command: a crash test as long as one likes, with its report.
Standard: exit status 0 only when every promise was kept.
"""

from __future__ import annotations

import asyncio
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path

import click

from tests.system.crash.outcome import tell_and_exit
from tests.system.crash.run import SITES, run
from tests.testlib.databases import PostgreSQLServer, find_programs
from tests.testlib.identities import make_identities


@contextmanager
def postgresql_server() -> Iterator[PostgreSQLServer]:
    """A PostgreSQL server with a database for each site, which is gone afterwards."""
    programs = find_programs()
    if programs is None:
        raise click.ClickException("PostgreSQL is not installed: apt-get install postgresql")
    with tempfile.TemporaryDirectory(prefix="qumail-pg-") as directory:
        server = PostgreSQLServer(programs, Path(directory))
        server.create()
        server.start()
        try:
            for name in SITES:
                subprocess.run(
                    ["psql", "-c", f"CREATE DATABASE {name}", server.url()], check=True, stdout=subprocess.DEVNULL
                )
            yield server
        finally:
            server.stop()


@click.command()
@click.option("--messages", default=2000, show_default=True, help="How many messages are sent under fire.")
@click.option("--seed", default=1, show_default=True, help="Chooses messages, faults and their order.")
@click.option("--largest", default=5_000_000, show_default=True, help="Octets of the largest message.")
@click.option("--pause", default=0.7, show_default=True, help="Average seconds between two faults.")
@click.option("--only", multiple=True, metavar="WORD", help="Only faults whose names have one of these words.")
@click.option("--postgresql", is_flag=True, help="Stores in PostgreSQL instead of SQLite.")
@click.option("--relays", default=1, show_default=True, help="Relays of each site; more than one need --postgresql.")
@click.option("--workers", default=1, show_default=True, help="Processes that serve as one relay.")
@click.option("--gap", default=0.25, show_default=True, help="Average seconds between two messages.")
@click.option("--keep", type=click.Path(path_type=Path), help="Leave all files in this new directory.")
def main(
    messages: int,
    seed: int,
    largest: int,
    pause: float,
    only: tuple[str, ...],
    postgresql: bool,
    relays: int,
    workers: int,
    gap: float,
    keep: Path | None,
) -> None:
    """Two sites with Postfix, relays and KMEs under random faults; every promise is checked afterwards. Needs root."""
    with (
        nullcontext(keep) if keep else tempfile.TemporaryDirectory() as directory,
        postgresql_server() if postgresql else nullcontext() as server,
    ):
        (Path(directory) / "identities").mkdir(parents=True)
        identities = make_identities(Path(directory) / "identities")
        report = asyncio.run(
            run(
                Path(directory), identities, messages=messages, seed=seed, largest=largest, pause=pause, only=only,
                gap=gap, postgresql=server, relays=relays, workers=workers,
                progress=lambda text: click.echo(text, err=True),
            )
        )  # fmt: skip
    tell_and_exit(report, ["twice_without_a_kill"])


main()
