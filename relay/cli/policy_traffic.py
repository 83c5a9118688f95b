"""`qumail-relay policy simulate`: what policies would do with real mail.
Nothing is sent, stored or taken; messages are read one by one.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import click
from rich.console import Console
from rich.text import Text

from relay.cli.options import ThereIs, config_option
from relay.cli.output import json_option, plain_console, print_json, print_table
from relay.cli.policy_config import exit_with, go_on_as_relay
from relay.cli.policy_print import LOUD_CLEAR
from relay.cli.policy_site import PolicySite, load_site
from relay.counting.amounts import many
from relay.errors import ConfigError
from relay.files.rights import as_owner_of
from relay.journey.plan import Outcome, Result
from relay.journey.shadow import read_shadow
from relay.mail import domain_of
from relay.policy.names import printable
from relay.policy.traffic import TrafficSample, samples

MAX_EXAMPLES = 3
"""Maximum number of messages shown of each result and protection."""
UNREADABLE = "nobody: its header cannot be read"
"""Stands for the recipient of a message that is refused for its header."""


@dataclass
class TrafficSums:
    """The sums; `add` each recipient once. Messages without a recipient outside are `left_out`."""

    messages: int = 0
    left_out: int = 0
    recipients: Counter[tuple[Result, str]] = field(default_factory=Counter)
    octets: Counter[tuple[Result, str]] = field(default_factory=Counter)
    quantum_bits: Counter[str] = field(default_factory=Counter)
    examples: dict[tuple[Result, str], list[tuple[str, Outcome]]] = field(default_factory=dict)

    def add(self, name: str, outcome: Outcome) -> None:
        """One more recipient of the message called `name`."""
        row = (outcome.result, outcome.protection)
        self.recipients[row] += 1
        self.octets[row] += outcome.octets
        if outcome.quantum_bits and outcome.peer is not None:
            self.quantum_bits[outcome.peer] += outcome.quantum_bits
        examples = self.examples.setdefault(row, [])
        if len(examples) < MAX_EXAMPLES:
            examples.append((name, outcome))

    def shown(self) -> Iterator[tuple[str, Outcome]]:
        """The examples of each row, in the order of the rows."""
        return (each for row in sorted(self.examples) for each in self.examples[row])

    def as_dict(self) -> dict[str, Any]:
        """JSON's types, with stable names."""
        return {
            "messages": self.messages,
            "left_out": self.left_out,
            "results": [
                {"result": row[0], "protection": row[1], "recipients": number, "octets": self.octets[row]}
                for row, number in sorted(self.recipients.items())
            ],
            "quantum_bits": dict(sorted(self.quantum_bits.items())),
            "examples": [{"message": name} | asdict(outcome) for name, outcome in self.shown()],
        }


@click.command()
@config_option
@click.option("--shadow", is_flag=True, help="Take what shadow mode has recorded instead of messages.")
@click.option("--since", type=click.FloatRange(0), default=24.0, show_default=True, help="Hours of that record.")
@json_option()
@click.argument("messages", nargs=-1, type=ThereIs())
def simulate(config_file: Path, shadow: bool, since: float, as_json: bool, messages: tuple[Path, ...]) -> None:
    """Say what the policies would do with files of mail.

    Sender and recipients are those of the header; recipients of this site's own domains are left out. Keys are
    taken to be there: the bits that they would need are counted.
    """
    if shadow == bool(messages):
        raise click.UsageError("give messages, or --shadow, and not both")
    if shadow:
        go_on_as_relay(config_file)
    site = load_site(config_file)
    tally = TrafficSums()
    try:
        if shadow:
            _add_recorded(tally, site, since)
        else:
            asyncio.run(_add_simulated(tally, site, list(messages)))
    except ConfigError as error:
        exit_with(error)
    if as_json:
        print_json(tally.as_dict())
    else:
        _print_tally(plain_console(), tally)


async def _add_simulated(tally: TrafficSums, site: PolicySite, paths: list[Path]) -> None:
    """What would become of these messages. Raises ConfigError."""
    planner = site.planner()
    for sample in _read(paths):
        outside = [each for each in sample.recipients if domain_of(each) not in site.config.site.domains]
        if not sample.recipients and site.refused_at_once(sample) is not None:
            outside = [UNREADABLE]
        tally.messages += 1
        tally.left_out += not outside
        for outcome in await site.foresee(planner, sample, outside):
            tally.add(sample.name, outcome)


def _add_recorded(tally: TrafficSums, site: PolicySite, since: float) -> None:
    """What shadow mode found, as it was foreseen with the keys of that moment. Raises ConfigError."""
    record = site.config.policies.shadow_record
    if record is None:
        raise ConfigError("policies.shadow_record is not set in relay.toml, so nothing is recorded")
    earliest = (datetime.now(UTC) - timedelta(hours=since)).isoformat(timespec="seconds").replace("+00:00", "Z")
    for time, outcome in read_shadow(record):
        if time >= earliest:
            is_inside = domain_of(outcome.recipient) in site.config.site.domains
            tally.messages += 1
            tally.left_out += is_inside
            if not is_inside:
                tally.add(time, outcome)


def _read(paths: list[Path]) -> Iterator[TrafficSample]:
    """The messages, each as root sees it who is the owner of its file for that."""
    for path in paths:
        with as_owner_of(path):
            yield from samples([path])


def _print_tally(console: Console, tally: TrafficSums) -> None:
    """The sums as a table, and examples of each row."""
    rows = (
        (
            Text(row[0], style="" if row[0] == "sealed" else "bold red"),
            LOUD_CLEAR if row[0] == "clear" else row[1],
            f"{number:,}",
            f"{tally.octets[row]:,}",
        )
        for row, number in sorted(tally.recipients.items())
    )
    print_table(console, ("Result", "Protection", "Recipients", "Octets"), rows, numbers=2)
    for peer, bits in sorted(tally.quantum_bits.items()):
        console.print(f"Quantum key for peer {peer}: {bits:,} bits")
    said = f"{tally.left_out:,} without a recipient outside this site, not counted above."
    console.print(f"{many(tally.messages, 'message')}; {said}")
    for name, outcome in tally.shown():
        result = f"{outcome.result} {outcome.protection}".rstrip()
        console.print(printable(f"  {result}: {name}: to {outcome.recipient} ({outcome.policy})"))
        for cause in outcome.causes:
            console.print(printable(f"      {cause}"))
