"""`qumail-relay policy simulate`: what policies would do with real mail.
Nothing is sent, stored or taken; messages are read one by one, and memory grows with different results alone.
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
from relay.journey.planner import Planner
from relay.journey.shadow import read_shadow
from relay.mail import domain_of
from relay.policy.names import printable
from relay.policy.traffic import TrafficSample, samples

ODD = 10
"""Number of messages shown that were treated as few others."""
MAX_KINDS = 10_000
UNREADABLE = "nobody: its header cannot be read"
"""Stands for the recipient of a message that is refused for its header."""


Kind = tuple[Result, str, str]
"""Messages that were treated alike: what became of them, how they were protected, by which policy."""


@dataclass
class TrafficSums:
    """The sums; `add` each recipient once."""

    recipients: Counter[tuple[Result, str]] = field(default_factory=Counter)
    octets: Counter[tuple[Result, str]] = field(default_factory=Counter)
    quantum_bits: Counter[str] = field(default_factory=Counter)
    kinds: Counter[Kind] = field(default_factory=Counter)
    _examples: dict[Kind, list[tuple[str, Outcome]]] = field(default_factory=dict)

    def add(self, name: str, outcome: Outcome) -> None:
        """One more recipient of the message called `name`."""
        row = (outcome.result, outcome.protection)
        self.recipients[row] += 1
        self.octets[row] += outcome.octets
        if outcome.quantum_bits and outcome.peer is not None:
            self.quantum_bits[outcome.peer] += outcome.quantum_bits
        kind = (*row, outcome.policy)
        if kind in self.kinds or len(self.kinds) < MAX_KINDS:
            self.kinds[kind] += 1
            examples = self._examples.setdefault(kind, [])
            if len(examples) < ODD:
                examples.append((name, outcome))

    def odd(self) -> list[tuple[str, Outcome]]:
        """At most ten that were treated as the fewest others, the rarest first; none where all are alike."""
        if len(self.kinds) < 2:
            return []
        rarest = sorted(self.kinds.items(), key=lambda item: (item[1], item[0]))[:-1]
        return [example for kind, _ in rarest for example in self._examples[kind]][:ODD]

    def as_dict(self) -> dict[str, Any]:
        """JSON's types, with stable names."""
        return {
            "results": [
                {"result": row[0], "protection": row[1], "recipients": number, "octets": self.octets[row]}
                for row, number in sorted(self.recipients.items())
            ],
            "quantum_bits": dict(sorted(self.quantum_bits.items())),
            "odd": [{"message": name} | asdict(outcome) for name, outcome in self.odd()],
        }


@click.command()
@config_option
@click.option("--shadow", is_flag=True, help="Take what shadow mode has recorded instead of messages.")
@click.option("--since", type=click.FloatRange(0), default=24.0, show_default=True, help="Hours of that record.")
@json_option()
@click.argument("messages", nargs=-1, type=ThereIs())
def simulate(config_file: Path, shadow: bool, since: float, as_json: bool, messages: tuple[Path, ...]) -> None:
    """Say what the policies would do with MESSAGES: files, directories, maildirs, mboxes.

    Sender and recipients are those of the header; recipients of this site's own domains are left out. Keys are
    taken to be there: the bits that they would need are counted.
    """
    if shadow == bool(messages):
        raise click.UsageError("give messages, or --shadow, and not both")
    if shadow:
        go_on_as_relay(config_file)
    site = load_site(config_file)
    if shadow:
        tally, number, left_out = _recorded(site, since)
    else:
        tally, number, left_out = asyncio.run(_simulated(site, list(messages)))
    if as_json:
        print_json({"messages": number, "left_out": left_out} | tally.as_dict())
    else:
        _print_tally(plain_console(), tally, number, left_out)


async def _simulated(site: PolicySite, paths: list[Path]) -> tuple[TrafficSums, int, int]:
    planner = _planner(site)
    tally = TrafficSums()
    number = left_out = 0
    for sample in _read(paths):
        number += 1
        outside = _outside(site, sample)
        if not sample.recipients and site.refused_at_once(sample) is not None:
            outside = [UNREADABLE]
        left_out += not outside
        for outcome in await site.foresee(planner, sample, outside):
            tally.add(sample.name, outcome)
    return tally, number, left_out


def _recorded(site: PolicySite, since: float) -> tuple[TrafficSums, int, int]:
    """What shadow mode found, as it was foreseen with the keys of that moment."""
    tally = TrafficSums()
    number = left_out = 0
    for time, outcome in _entries(site, since):
        number += 1
        if domain_of(outcome.recipient) in site.config.site.domains:
            left_out += 1
        else:
            tally.add(time, outcome)
    return tally, number, left_out


def _entries(site: PolicySite, since: float) -> Iterator[tuple[str, Outcome]]:
    record = site.config.policies.shadow_record
    if record is None:
        exit_with(ConfigError("policies.shadow_record is not set in relay.toml, so nothing is recorded"))
    earliest = (datetime.now(UTC) - timedelta(hours=since)).isoformat(timespec="seconds").replace("+00:00", "Z")
    return (each for each in read_shadow(record) if each[0] >= earliest)


def _planner(site: PolicySite) -> Planner:
    try:
        return site.planner()
    except ConfigError as error:
        exit_with(error)


def _outside(site: PolicySite, sample: TrafficSample) -> list[str]:
    return [each for each in sample.recipients if domain_of(each) not in site.config.site.domains]


def _read(paths: list[Path]) -> Iterator[TrafficSample]:
    """The messages, each as root sees it who is the owner of its file for that."""
    for path in paths:
        with as_owner_of(path):
            yield from samples([path])


def _print_tally(console: Console, tally: TrafficSums, messages: int, left_out: int) -> None:
    """The sums as tables, and the odd ones out."""
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
    console.print(
        f"{many(messages, 'message')}; {left_out:,} without a recipient outside this site, not counted above."
    )
    if tally.odd():
        console.print("Treated as few others are, the rarest first:")
    for name, outcome in tally.odd():
        result = f"{outcome.result} {outcome.protection}".rstrip()
        console.print(printable(f"  {result}: {name}: to {outcome.recipient} ({outcome.policy})"))
        for cause in outcome.causes:
            console.print(printable(f"      {cause}"))
