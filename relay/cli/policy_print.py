"""How the policy commands show policies, decisions and sums to a person.
Standard: addresses and file names are shown as they are, with everything that could disturb a terminal escaped.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import islice
from typing import TYPE_CHECKING

from rich.console import Console
from rich.text import Text

from relay.cli.output import Cell, Pair, print_pairs, print_table
from relay.cli.policy_list import CLEAR, INSIDE
from relay.policy.chosen import RuleLook
from relay.policy.comparing.differences import WEAKER, Direction
from relay.policy.decide import Decision, Explanation, Lookup
from relay.policy.names import printable
from relay.policy.settings import HOLD, REFUSE
from relay.policy.units import duration_text

if TYPE_CHECKING:
    from relay.cli.policy_site import OutcomeNow
    from relay.keys.report import PoolRow

MAX_CHANGES = 50
"""Maximum number of changes shown of each kind."""
LOUD_CLEAR = Text(CLEAR, style="bold white on red")

_OTHERWISE = {
    HOLD: "held: the sending server keeps the mail and tries again",
    REFUSE: "refused: the sender is notified that the mail did not go",
}


def print_changes(console: Console, headings: Sequence[str], changes: Sequence[tuple[Direction, list[str]]]) -> None:
    """The first of these changes, each with its direction, which stands out where mail is treated weaker."""
    if changes:
        rows: Iterator[list[Cell]] = (
            [Text(course, "bold red" if course in WEAKER else ""), *cells] for course, cells in changes
        )
        print_table(console, ("", *headings), islice(rows, MAX_CHANGES))
    if len(changes) > MAX_CHANGES:
        console.print(f"... and {len(changes) - MAX_CHANGES} more")


def print_explanation(console: Console, explanation: Explanation, now: OutcomeNow) -> None:
    """One decision for a person: what decides, what was looked for before, and what follows from it."""
    print_pairs(console, _explained(explanation, now))


def _explained(explanation: Explanation, now: OutcomeNow) -> Iterator[Pair]:
    yield "From", explanation.sender or "<> (the null sender)"
    yield "To", explanation.recipient
    if (decision := explanation.decision) is not None:
        yield "Decided by", f"{decision.source}, line {decision.line}"
        if decision.looks_inside and now.described:
            yield "Message", "none given: a small one from SENDER, without subject, attachments or further fields"
    yield "Looked for", [f"{each.file} ({each.step}): {_found(each)}" for each in explanation.lookups]
    yield "Rules", list(map(_rule, explanation.rules))
    yield "Floors", list(map(_rule, explanation.floors))
    if decision is not None and decision.doubt is not None:
        yield "In doubt", Text(printable(str(decision.doubt)), style="bold red")
    if decision is None:
        yield "Result", Text(f"held: {printable(explanation.held)}", style="bold red")
    else:
        yield from _decided(decision, explanation, now)
    yield from _now(now, covered=decision is not None)
    yield "Version", explanation.version


def _decided(decision: Decision, explanation: Explanation, now: OutcomeNow) -> Iterator[Pair]:
    if decision.in_clear:
        yield "Level", INSIDE if explanation.inside else LOUD_CLEAR
        if decision.reason:
            yield "Reason", decision.reason
        return
    yield "Peer", decision.peer or Text("none", style="bold red")
    yield "Levels", ", then ".join(map(str, decision.levels))
    limits = {level: size for level, size in decision.max_size if level in decision.levels}
    if limits:
        yield "Max size", ", ".join(f"{level}: {size} bytes" for level, size in limits.items())
    if decision.priority == "low":
        yield "Priority", "low: leaves alone what is kept in reserve at the KME"
    refused = now.outcome is not None and now.outcome.result == "refused"
    if decision.otherwise != REFUSE and (decision.hopeless(now.size) or (refused and decision.otherwise == HOLD)):
        return  # it is never held
    yield "Otherwise", _OTHERWISE[REFUSE if decision.otherwise == REFUSE else HOLD]
    if decision.otherwise not in _OTHERWISE:
        yield "", f"for {duration_text(decision.hold_for)} at most, then refused"


def _now(now: OutcomeNow, *, covered: bool) -> Iterator[Pair]:
    if (outcome := now.outcome) is not None:
        size = "a small message" if now.described else f"a message of {now.size} bytes"
        what = f"{outcome.result} {outcome.protection}".rstrip()
        spent = f", {outcome.quantum_bits} bits of quantum key" if outcome.quantum_bits else ""
        bad = outcome.result != "sealed"
        result = Text(f"{size} would be {what}{spent}", style="bold red" if bad else "bold green")
        if covered:
            yield "With keys" if now.offline else "Now", (result, *outcome.causes)
        yield "SMTP reply", outcome.reply
    yield "Keys", list(map(_keys, now.keys))
    if now.unknown:
        yield "Unknown", now.unknown


def _keys(row: PoolRow) -> str:
    if row.trouble:
        return f"{row.kme} (group {row.group}): {row.trouble}"
    stored = "an unknown number of keys" if row.stored_keys is None else f"{row.stored_keys} keys"
    lasts = "" if row.empty_in_s is None else f", gone in {row.empty_in_s / 3600:.1f} h at the present rate"
    return f"{row.kme} (group {row.group}): {stored} of {row.key_size} bits, {row.reserve_keys} in reserve{lasts}"


def _rule(look: RuleLook) -> str:
    return f"{look.rule} (line {look.line}): {'applies: ' if look.applies else ''}{look.because}"


def _found(lookup: Lookup) -> str:
    if lookup.decides:
        return "decides"
    if lookup.not_now:
        return f"is there, but {lookup.not_now}"
    return "is there, but without `subdomains = true`" if lookup.exists else "not there"
