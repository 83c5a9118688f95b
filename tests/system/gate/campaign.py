"""Compares what the gate says of generated pairs with what an independent reference finds by brute force.
Standard: no pair passes for which the reference finds a weaker decision; few are refused for which it finds none.
"""

from __future__ import annotations

import random
import re
import tempfile
import time
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from datetime import date
from pathlib import Path

from relay.errors import ConfigError, RelayError
from relay.policy.compare import Comparison, compare
from relay.policy.comparing.differences import outcome_of
from relay.policy.decide import PolicySet
from relay.policy.expected import DescribedMessage
from relay.policy.load import PolicyFolder
from relay.policy.settings import on_day
from relay.policy.site import SiteFacts
from tests.system.gate.mails import Pools
from tests.system.gate.pairs import Maker, Pair
from tests.testlib.gate_reference import GateMail, GateOutcome, GatePolicies, GateSite, asks_less, tests_weaker, weaker

PEERS = {"bob": ["bob.example", "lab.bob.example"], "carol": ["carol.example"]}
SHARES = {"patterns": 0.25, "days": 0.1, "tags": 0.1, "peers": 0.05, "tests": 0.05, "others": 0.45}
"""How much of all pairs is of each kind."""


@dataclass
class Figures:
    """What came of all pairs. `missed` and `false_alarms` have the seeds of pairs."""

    pairs: Counter[str] = field(default_factory=Counter)
    weaker: Counter[str] = field(default_factory=Counter)
    missed: list[str] = field(default_factory=list)
    false_alarms: Counter[str] = field(default_factory=Counter)
    alarms: list[str] = field(default_factory=list)
    disagreed: list[str] = field(default_factory=list)
    slowest: float = 0.0
    gate_s: float = 0.0

    def __str__(self) -> str:
        harmless = self.pairs.total() - self.weaker.total()
        alarms = self.false_alarms.total()
        lines = [
            f"{self.pairs.total()} pairs, {self.weaker.total()} weaker by the reference; missed: {len(self.missed)}",
            f"false alarms: {alarms}, {100 * alarms / max(1, self.pairs.total()):.1f} % of all pairs, {100 * alarms / max(1, harmless):.1f} % of harmless ones",
            f"the gate took {self.gate_s:.0f} s, {self.slowest:.2f} s at most; decisions that differ from the reference: {len(self.disagreed)}",
        ]
        for kind, number in sorted(self.pairs.items()):
            lines.append(
                f"  {kind}: {number} pairs, {self.weaker[kind]} weaker, {self.false_alarms[kind]} false alarms"
            )
        return "\n".join(lines)


def run(numbers: Iterable[int], figures: Figures, *, mails: int, today: date, check: int = 5) -> None:
    """Tries the pair of each number, which follows from its number and the day alone."""
    with tempfile.TemporaryDirectory() as name:
        for number in numbers:
            if (pair := pair_of(number, today)) is None:
                continue
            one(pair, number, figures, Path(name) / str(number), today, mails=mails, check=check)


def pair_of(number: int, today: date) -> Pair | None:
    """The pair of a number, None where it makes no good one."""
    chance = random.Random(number)
    [kind] = chance.choices(list(SHARES), list(SHARES.values()))
    for _ in range(20):
        pair = Maker(chance, today).pair(kind)
        if pair is not None and loads(pair):
            return pair
    return None


def loads(pair: Pair) -> bool:
    """Whether both sets are without errors."""
    with tempfile.TemporaryDirectory() as name:
        try:
            for number, files in enumerate((pair.old, pair.new)):
                read(Path(name) / str(number), files, pair.site)
        except ConfigError:
            return False
    return True


def read(directory: Path, files: dict[str, str] | object, site: GateSite) -> tuple[PolicySet, PolicyFolder]:
    """A set as the relay reads it."""
    assert isinstance(files, dict)
    for name, text in files.items():
        (directory / name).parent.mkdir(parents=True, exist_ok=True)
        (directory / name).write_text(text)
    folder = PolicyFolder(directory, PEERS, site=SiteFacts(site.own, site.separators))
    return folder.read(), folder


def one(pair: Pair, number: int, figures: Figures, directory: Path, today: date, *, mails: int, check: int) -> None:
    """One pair."""
    (old, old_folder), (new, new_folder) = (
        read(directory / side, files, pair.site) for side, files in (("old", pair.old), ("new", pair.new))
    )
    began = time.perf_counter()
    comparison = compare(old, new, old_folder.tests, new_folder.tests)
    took = time.perf_counter() - began
    figures.gate_s += took
    figures.slowest = max(figures.slowest, took)
    references = GatePolicies(pair.old, pair.site), GatePolicies(pair.new, pair.site)
    pools = Pools(*references, today, random.Random(number))
    figures.pairs[pair.kind] += 1
    why = confirmed(*references, comparison)
    why = why or found_weaker(*references, pools, today, mails if comparison.proven else 20 * mails)
    if why:
        figures.weaker[pair.kind] += 1
        if comparison.proven:
            figures.missed.append(f"{number} {pair.kind}: {pair.what}: {why}")
    elif not comparison.proven:
        figures.false_alarms[pair.kind] += 1
        figures.alarms.append(f"{number} {pair.kind}: {pair.what}: {said(comparison)}")
    for mail in pools.mails(check):
        for policies, reference in ((old, references[0]), (new, references[1])):
            if disagreement := differs(policies, reference, mail):
                figures.disagreed.append(f"{number}: {disagreement}")


def said(comparison: Comparison) -> str:
    """Why the gate refused a pair."""
    first = [
        f"{each.direction} {each.recipients} {each.sender} {each.message} {each.changed}"
        for each in comparison.differences
        if each.weaker
    ]
    return "; ".join(first[:2]) or "; ".join(
        f"UNPROVEN {each.rule.rpartition('/')[2]} {each.recipients} {each.why} {each.day}"
        for each in comparison.unproven[:2]
    )


def found_weaker(old: GatePolicies, new: GatePolicies, pools: Pools, today: date, mails: int) -> str:
    """What the reference finds weaker, by brute force."""
    if tests_weaker(new, old, today):
        return "tests"
    for day in pools.days:
        for address in pools.recipients:
            if asks_less(new, old, address, day):
                return f"require of {address} on {day}"
    for mail in pools.mails(mails):
        if why := weaker(new.outcome(mail), old.outcome(mail)):
            return f"{why}: {mail}: {new.outcome(mail)} instead of {old.outcome(mail)}"
    return ""


def confirmed(old: GatePolicies, new: GatePolicies, comparison: Comparison) -> str:
    """Whether the reference finds weaker what the gate shows to be weaker; the mails are the gate's, the judgement is not."""
    for each in comparison.differences:
        if each.weaker and each.sample is not None and isinstance(each.sample.content, DescribedMessage):
            mail = described(each.sample.content, each.sample.sender, each.sample.recipient, each.sample.day)
            if why := weaker(new.outcome(mail), old.outcome(mail)):
                return f"{why}, as it is shown: {mail}"
    return ""


def described(content: DescribedMessage, sender: str, recipient: str, day: date) -> GateMail:
    """The mail of a message that was described."""
    header, _, body = content.message.decode().partition("\r\n\r\n")
    fields = [tuple(line.split(": ", 1)) for line in header.split("\r\n") if ": " in line]
    own = [(name, text) for name, text in fields if name not in ("Subject", "From", "MIME-Version", "Content-Type")]
    authors = tuple(text for name, text in fields if name == "From")
    kinds = re.findall(r"Content-Type: (.*)\r\n.*filename=\"(.*)\"", body)
    subject = next(text for name, text in fields if name == "Subject")
    attachments = tuple((name, kind) for kind, name in kinds)
    return GateMail(sender, recipient, day, authors, content.login, subject, tuple(own), attachments, content.size)


def differs(policies: PolicySet, reference: GatePolicies, mail: GateMail) -> str:
    """Where the relay decides otherwise than the reference, for a mail that can be made into one."""
    if mail.hidden or not mail.authors:
        return ""
    fields = (f"From: {', '.join(mail.authors)}", *(f"{name}: {content}" for name, content in mail.fields))
    attachments = tuple(f"{name}: {kind}" for name, kind in mail.attachments)
    content = DescribedMessage(mail.subject, fields, attachments, mail.octets, mail.login)
    with on_day(mail.day):
        try:
            found = outcome_of(policies.decide(mail.sender, mail.recipient, content), mail.octets)
        except RelayError:
            found = outcome_of(None, 0)
    expected = reference.outcome(mail)
    sealed = (found.levels, found.quantum, frozenset(found.kem), found.peer, found.priority)
    got = GateOutcome(*sealed) if found.levels else GateOutcome()
    return "" if got == expected else f"{mail}: {got} and not {expected}"
