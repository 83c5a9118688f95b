"""`qumail-relay policy`: what is wrong with the policy files, and what they decide for one recipient.
Standard: every fault is one line, `file:line: what, how to mend it`; exit status 0 fine, 1 wrong, 2 usage.
"""

from __future__ import annotations

import json
from pathlib import Path

import click
from rich.console import Console
from rich.table import Table
from rich.text import Text

from relay.cli.options import config_option
from relay.config import load_config
from relay.errors import ConfigError
from relay.policy import Decision, Explanation, LevelName, Lookup, PolicyFile, PolicySet, load_policies
from relay.policy.names import printable

_CLEAR = Text("PLAINTEXT: not sealed, leaves in clear", style="bold white on red")

_OTHERWISE = {
    "hold": "held: the sending server keeps the mail and tries again",
    "refuse": "refused: the sender is told that the mail did not go",
}
_QUANTUM = {
    "off": "no quantum key on top of pqc and rsa",
    "preferred": "pqc and rsa get a quantum key on top where one can be had",
    "required": "pqc and rsa only with a quantum key on top",
}


@click.group()
def policy() -> None:
    """Check the policy files and explain what they decide."""


@policy.command()
@config_option
def check(config_file: Path) -> None:
    """Say what is wrong with the policy files, or list what they mean."""
    print_policies(_console(), _load(config_file))


@policy.command()
@config_option
@click.option("--json", "as_json", is_flag=True, help="For programs: one JSON object.")
@click.argument("sender")
@click.argument("recipient")
def explain(config_file: Path, as_json: bool, sender: str, recipient: str) -> None:
    """Say how mail from SENDER to RECIPIENT is sealed, and which file and line decide it.

    SENDER may be "<>", the null sender. The exit status is 1 where no policy covers the recipient.
    """
    explanation = _load(config_file).explain("" if sender == "<>" else sender, recipient)
    if as_json:
        click.echo(json.dumps(explanation.as_dict(), indent=2))
    else:
        print_explanation(_console(), explanation)
    if explanation.decision is None:
        raise SystemExit(1)


def print_policies(console: Console, policies: PolicySet) -> None:
    """All files of the set as a table, those that let mail out in clear standing out."""
    table = Table(title=Text(f"Policies in {printable(str(policies.directory))}"), title_justify="left")
    for column in ("File", "Covers", "Levels", "Peer", "Otherwise"):
        table.add_column(column, overflow="fold")
    for _, file in sorted(policies.files.items()):
        otherwise = "" if file.policy.in_clear else file.policy.otherwise
        table.add_row(file.name, _covered(file), _levels_of(file), _peer_of(file, policies), otherwise)
    console.print(table)
    in_clear = sum(file.policy.in_clear for file in policies.files.values())
    console.print(f"{len(policies.files)} policy files, version {policies.version}, nothing wrong.")
    if in_clear:
        console.print(Text(f"In clear: {in_clear} of them.", style="bold white on red"))


def print_explanation(console: Console, explanation: Explanation) -> None:
    """One decision for a person: what decides, what was looked for before, and what follows from it."""
    table = Table.grid(padding=(0, 2))
    table.add_column(style="bold", no_wrap=True)
    table.add_column(overflow="fold")
    table.add_row("From", printable(explanation.sender) or "<> (the null sender)")
    table.add_row("To", printable(explanation.recipient))
    if (decision := explanation.decision) is not None:
        table.add_row("Decided by", f"{decision.source}, line {decision.line}")
    for place, lookup in enumerate(explanation.lookups):
        table.add_row("" if place else "Looked for", f"{lookup.file} ({lookup.step}): {_found(lookup)}")
    if decision is None:
        table.add_row("Result", Text(f"held: {printable(explanation.held)}", style="bold red"))
    else:
        _add_decision(table, decision, explanation.peer_because)
    table.add_row("Version", explanation.version)
    console.print(table)


def _add_decision(table: Table, decision: Decision, peer_because: str) -> None:
    if decision.in_clear:
        table.add_row("Level", _CLEAR)
        return
    peer = decision.peer or Text("none", style="bold red")
    table.add_row("Peer", Text.assemble(peer, f": {peer_because}"))
    table.add_row("Levels", ", then ".join(decision.levels))
    if _takes_quantum_layer(decision.levels):
        table.add_row("Quantum", f"{decision.quantum}: {_QUANTUM[decision.quantum]}")
    table.add_row("Otherwise", _OTHERWISE[decision.otherwise])


def _found(lookup: Lookup) -> str:
    if lookup.decides:
        return "decides"
    return "is there, but without `subdomains = true`" if lookup.exists else "not there"


def _covered(file: PolicyFile) -> str:
    if file.scope == "default":
        return "everybody else"
    if file.scope == "person":
        return f"one person at {file.domain}"
    return f"{file.domain} and its subdomains" if file.policy.subdomains else file.domain


def _levels_of(file: PolicyFile) -> Text:
    if file.policy.in_clear:
        return _CLEAR
    quantum = f" (quantum {file.policy.quantum})" if _takes_quantum_layer(file.policy.levels) else ""
    return Text(", ".join(file.policy.levels) + quantum)


def _takes_quantum_layer(levels: tuple[LevelName, ...]) -> bool:
    return "pqc" in levels or "rsa" in levels


def _peer_of(file: PolicyFile, policies: PolicySet) -> Text:
    """The peer that the file names or its domain belongs to; where there is none, mail cannot be sealed."""
    if file.policy.in_clear:
        return Text()
    if (peer := file.policy.peer or policies.owners.get(file.domain)) is not None:
        return Text(peer)
    if file.scope == "default" or file.policy.subdomains:
        return Text("by domain")
    return Text("none", style="bold yellow")


def _load(config_file: Path) -> PolicySet:
    """The policies that a configuration names; prints every fault and exits with status 1 if it cannot."""
    try:
        config = load_config(config_file)
        return load_policies(config.policies.directory, config.peer_domains)
    except ConfigError as error:
        for problem in error.problems:
            click.echo(printable(problem), err=True)
        raise SystemExit(1) from error


def _console() -> Console:
    """Standard output, with what is printed taken as it is: addresses may hold brackets and colons."""
    return Console(markup=False, emoji=False, highlight=False)
