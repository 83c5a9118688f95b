"""`qumail-relay policy simulate` and `diff`: what policies, or an edit of them, would do with real mail.
Standard: nothing is sent, stored or taken; messages are read one by one, with progress on standard error.
"""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import click
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

from relay.cli.options import config_option
from relay.cli.policy_print import plain_console, print_differences, print_tally
from relay.cli.policy_site import PolicySite, load_site
from relay.cli.policy_tally import Differences, Tally
from relay.errors import ConfigError
from relay.mail import domain_of
from relay.plan import Outcome
from relay.planner import Planner
from relay.policy.traffic import Sample, samples, total_octets
from relay.shadow import read_shadow

_shadow = click.option("--shadow", is_flag=True, help="Take what shadow mode has recorded instead of messages.")
_since = click.option(
    "--since", type=click.FloatRange(0), default=24.0, show_default=True, help="Hours of that record."
)
_json = click.option("--json", "as_json", is_flag=True, help="For programs: one JSON object.")
_messages = click.argument("messages", nargs=-1, type=click.Path(path_type=Path, exists=True))
_directory = click.Path(path_type=Path, exists=True, file_okay=False)


@click.command()
@config_option
@_shadow
@_since
@_json
@_messages
def simulate(config_file: Path, shadow: bool, since: float, as_json: bool, messages: tuple[Path, ...]) -> None:
    """Say what the policies would do with MESSAGES: files, directories, maildirs, mboxes.

    Sender and recipients are those of the header; recipients of this site's own domains are left out. Keys are
    taken to be there: the bits that they would need are counted.
    """
    _either(shadow, messages)
    site = load_site(config_file)
    if shadow:
        tally, number, left_out = _recorded(site, since)
    else:
        tally, number, left_out = asyncio.run(_simulated(site, list(messages)))
    if as_json:
        click.echo(json.dumps({"messages": number, "left_out": left_out} | tally.as_dict(), indent=2))
    else:
        print_tally(plain_console(), tally, number, left_out)


@click.command()
@config_option
@_shadow
@_since
@_json
@click.argument("old", type=_directory)
@click.argument("new", type=_directory)
@_messages
def diff(
    config_file: Path, shadow: bool, since: float, as_json: bool, old: Path, new: Path, messages: tuple[Path, ...]
) -> None:
    """Say whose mail the policies in NEW would treat otherwise than those in OLD, up or down, with MESSAGES.

    With --shadow, rules that look into messages do not apply: the record holds no content.
    """
    _either(shadow, messages)
    before, after = load_site(config_file, old), load_site(config_file, new)
    differences = asyncio.run(_compared(before, after, _shadowed(before, since) if shadow else _read(list(messages))))
    if as_json:
        changes = [
            {"recipient": each.recipient, "before": each.before, "after": each.after, "direction": each.direction}
            | {"mails": number}
            for each, number in differences.most_important()
        ]
        click.echo(json.dumps({"changes": changes, "unchanged": differences.same}, indent=2))
    else:
        print_differences(plain_console(), differences)


def _either(shadow: bool, messages: tuple[Path, ...]) -> None:
    if shadow == bool(messages):
        raise click.UsageError("give messages, or --shadow, and not both")


async def _simulated(site: PolicySite, paths: list[Path]) -> tuple[Tally, int, int]:
    planner = _planner(site)
    tally = Tally()
    number = left_out = 0
    for sample in _read(paths):
        number += 1
        outside = _outside(site, sample)
        left_out += not outside
        for outcome in await site.foresee(planner, sample, outside):
            tally.add(sample.name, outcome)
    return tally, number, left_out


async def _compared(before: PolicySite, after: PolicySite, found: Iterator[Sample]) -> Differences:
    old, new = _planner(before), _planner(after)
    differences = Differences()
    for sample in found:
        outside = _outside(before, sample)
        later = {each.recipient: each for each in await after.foresee(new, sample, outside)}
        for outcome in await before.foresee(old, sample, outside):
            differences.add(outcome, later[outcome.recipient])
    return differences


def _recorded(site: PolicySite, since: float) -> tuple[Tally, int, int]:
    """What shadow mode found, as it was foreseen with the keys of that moment."""
    tally = Tally()
    number = 0
    for time, outcome in _entries(site, since):
        number += 1
        tally.add(time, outcome)
    return tally, number, 0


def _shadowed(site: PolicySite, since: float) -> Iterator[Sample]:
    for time, outcome in _entries(site, since):
        yield Sample(time, outcome.sender, (outcome.recipient,), outcome.octets)


def _entries(site: PolicySite, since: float) -> Iterator[tuple[str, Outcome]]:
    record = site.config.policies.shadow_record
    if record is None:
        click.echo("policies.shadow_record is not set in relay.toml, so nothing is recorded", err=True)
        sys.exit(1)
    earliest = (datetime.now(UTC) - timedelta(hours=since)).isoformat(timespec="seconds").replace("+00:00", "Z")
    return (each for each in read_shadow(record) if each[0] >= earliest)


def _planner(site: PolicySite) -> Planner:
    try:
        return site.planner()
    except ConfigError as error:
        for problem in error.problems:
            click.echo(problem, err=True)
        sys.exit(1)


def _outside(site: PolicySite, sample: Sample) -> list[str]:
    return [each for each in sample.recipients if domain_of(each) not in site.config.site.domains]


def _read(paths: list[Path]) -> Iterator[Sample]:
    """The messages, with a progress bar on a terminal."""
    columns = (TextColumn("{task.completed:,} messages"), BarColumn(), TimeRemainingColumn())
    console = Console(stderr=True)
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as bar:
        octets = total_octets(paths)
        task = bar.add_task("", total=octets)
        read = 0
        for sample in samples(paths):
            yield sample
            read += sample.read
            bar.update(task, completed=read)
