"""`qumail-relay policy list`: the policy files, or those of them that are looked for.
Exit status: 0 fine, 1 something is wrong; codes in JSON are stable.
"""

from __future__ import annotations

import json
from pathlib import Path

import click

from relay.cli.options import config_option
from relay.cli.policy_config import exit_with, go_on_as_relay, load_configuration, say_all_in_clear
from relay.errors import ConfigError
from relay.levels import NAMES, LevelName
from relay.policy.index import ListedFile, listed
from relay.policy.names import printable

INDEX = "policy-list.json"


@click.command(name="list")
@config_option
@click.option("--clear", is_flag=True, help="Only what lets mail out in clear.")
@click.option("--level", type=click.Choice(NAMES), help="Only what lists this level, itself or in a rule.")
@click.option("--peer", help="Only what seals for this peer.")
@click.option("--expired", is_flag=True, help="Only what has ended, itself or a rule.")
@click.option("--json", "as_json", is_flag=True, help="For programs: a list with one object for each file.")
def list_files(
    config_file: Path, clear: bool, level: LevelName | None, peer: str | None, expired: bool, as_json: bool
) -> None:
    """List the policy files, or those of which all that is asked for is true."""
    go_on_as_relay(config_file)
    config, _ = load_configuration(config_file)
    say_all_in_clear(config)
    directory, index = config.policies.directory, config.state_directory / INDEX
    try:
        rows, number = listed(
            directory, config.peer_domains, index, clear=clear, level=level, peer=peer, expired=expired
        )
    except ConfigError as error:
        exit_with(error)
    if as_json:
        # One line for each file: 100,000 of them are written at once.
        click.echo("[" + ",\n".join(json.dumps(row._asdict()) for row in rows) + "]")
        return
    table = [_cells(row) for row in rows]
    widths = [max((len(cells[place]) for cells in table), default=0) for place in range(3)]
    form = "".join(f"{{:{width}}}  " for width in widths) + "{}"
    # One write for all of them, here too.
    click.echo("".join(form.format(*cells).rstrip() + "\n" for cells in table), nl=False)
    click.echo(f"{len(rows)} of {number} files.")


def _cells(row: ListedFile) -> list[str]:
    rules = f" + {row.rules} rules" if row.rules else ""
    return [printable(row.file), ", ".join(row.levels) + rules, row.peer or "", ", ".join(row.codes)]
