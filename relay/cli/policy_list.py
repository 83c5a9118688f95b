"""`qumail-relay policy list`: the policy files, or those of them that are looked for, and what each means.
Exit status: 0 fine, 1 something is wrong; codes in JSON are stable. Nothing here takes long for 100,000 files.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import click

from relay.cli.options import config_option
from relay.cli.output import json_option
from relay.cli.policy_config import exit_with, go_on_as_relay, load_configuration, say_all_in_clear
from relay.errors import ConfigError
from relay.levels import ONLY_PLAINTEXT
from relay.policy.decide import PolicySet
from relay.policy.file import PolicyFile
from relay.policy.load import PolicyFolder
from relay.policy.names import printable

CLEAR = "PLAINTEXT: not sealed, leaves in clear"
INSIDE = "plaintext: to a domain of our own, stays inside"


class ListedFile(NamedTuple):
    """One file of the list; `codes` are words that programs may rely on."""

    file: str
    levels: tuple[str, ...]
    rules: int
    peer: str | None
    codes: tuple[str, ...]
    covers: str
    otherwise: str
    require: str | None


@click.command(name="list")
@config_option
@click.option("--clear", is_flag=True, help="Only what lets mail out in clear.")
@json_option("a list with one object for each file")
def list_files(config_file: Path, clear: bool, as_json: bool) -> None:
    """List the policy files, or those that let mail out in clear."""
    go_on_as_relay(config_file)
    config, _ = load_configuration(config_file)
    say_all_in_clear(config)
    try:
        policies = PolicyFolder.of(config).read()
    except ConfigError as error:
        exit_with(error)
    every = (listed(file, policies) for file in policies.files.values())
    rows = sorted(row for row in every if not clear or "clear" in row.codes)
    if as_json:
        # One line for each file: 100,000 of them are written at once.
        click.echo("[" + ",\n".join(json.dumps(row._asdict()) for row in rows) + "]")
        return
    print_files(rows)
    click.echo(f"{len(rows)} of {len(policies.files)} files.")


def print_files(rows: Sequence[ListedFile]) -> None:
    """A line for each file, those that let mail out in clear standing out."""
    table = [("File", "Covers", "Levels", "Peer", "Otherwise", ""), *map(_cells, rows)]
    widths = [max(len(cells[place]) for cells in table) for place in range(5)]
    form = "".join(f"{{:{width}}}  " for width in widths) + "{}"
    lines = ((form.format(*cells).rstrip(), CLEAR in cells[2]) for cells in table)
    said = (click.style(line, fg="red", bold=True) if is_clear else line for line, is_clear in lines)
    click.echo("\n".join(said))  # one write for all of them


def listed(file: PolicyFile, policies: PolicySet) -> ListedFile:
    """What the file means."""
    policy, clear = file.policy, file.policy.in_clear
    peer = policy.peer or policies.owners.get(file.domain)
    says = {
        "clear": clear,
        # Of subdomains nobody knows whose they are.
        "inside": clear and not policy.subdomains and file.domain in policies.site.domains,
        "expired": policy.ended,
        "no_peer": peer is None and file.scope != "default" and policy.levels != ONLY_PLAINTEXT,
    }
    codes = tuple(code for code, is_so in says.items() if is_so)
    facts = file.name, policy.levels, len(policy.when), peer, codes
    return ListedFile(*facts, _covered(file), policy.otherwise, policy.require)


def _covered(file: PolicyFile) -> str:
    if file.policy.not_now:
        return f"nobody: {file.policy.not_now}"
    if file.scope == "default":
        return "everybody else"
    if file.scope == "person":
        return f"one person at {file.domain}"
    return f"{file.domain} and its subdomains" if file.policy.subdomains else file.domain


def _cells(row: ListedFile) -> tuple[str, ...]:
    only_clear = row.levels == ONLY_PLAINTEXT and not row.rules
    levels = "" if only_clear and "clear" in row.codes else ", ".join(row.levels)
    if row.rules:
        levels += f" + {row.rules} rule{'s' if row.rules > 1 else ''}"
    if row.require:
        levels += f"; requires {row.require}"
    if "clear" in row.codes:
        levels = f"{levels} {INSIDE if 'inside' in row.codes else CLEAR}".lstrip("; ")
    nobody = "" if only_clear else "none" if "no_peer" in row.codes else "by domain"
    otherwise = "" if only_clear else row.otherwise
    return printable(row.file), row.covers, levels, row.peer or nobody, otherwise, ", ".join(row.codes)
