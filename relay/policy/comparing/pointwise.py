"""Compares two sets for each kind of recipient, on each day, and for each rule: what differs, and what may be weaker.
Standard: policies/README.md; kinds for whom both sets say the same are compared once.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import replace
from datetime import date, timedelta

from relay.levels import ONLY_PLAINTEXT
from relay.policy.comparing.conditions import Conditions
from relay.policy.comparing.demands import changed_demands
from relay.policy.comparing.differences import ARRIVING, Difference, changes
from relay.policy.comparing.effects import Effect, Side
from relay.policy.comparing.kinds import Files, Kind, Kinds
from relay.policy.comparing.time_limit import check_time
from relay.policy.decide import PolicySet
from relay.policy.file import PolicyFile
from relay.policy.rules import PlacedRule
from relay.policy.settings import SealingSettings, on_day, today

MAX_DAYS = 100
"""Maximum number of days on which one kind of recipient is compared; later ones count as not proven."""


class Pointwise:
    """The comparison of two sets of one site."""

    def __init__(self, old: PolicySet, new: PolicySet) -> None:
        self._sets = (old, new)
        self.kinds = Kinds(old, new)
        self._floors = tuple(
            tuple(Effect(floor, Conditions.of(floor.when, each.groups)) for floor in each.floors) for each in self._sets
        )
        self._for_kind: dict[object, Effect] = {}
        self._rules: dict[object, Effect] = {}
        self._found: dict[object, tuple[Difference, ...]] = {}

    def of_kind(self, kind: Kind) -> tuple[Difference, ...]:
        """The differences for one kind of recipient, shared by those of whom both sets say the same."""
        files = self.kinds.files(kind)
        floors = [self._floors_for(kind, number) for number in (0, 1)]
        owners = tuple(each.owners.get(kind.address.domain) for each in self._sets)
        chain = tuple((step, *(id(each.policy) if each else 0 for each in both)) for step, *both in files)
        own = tuple(each is not None and each.domain == kind.address.domain for _, *both in files for each in both)
        key = (*(tuple(map(id, some)) for some in floors), owners, chain, own)
        if key not in self._found:
            self._found[key] = self._look(kind, files, floors)
        return self._found[key]

    def in_doubt(self) -> Iterator[Difference]:
        """Changed demands on arriving mail that may be from anybody."""
        old, new = self._sets
        if (changed := changed_demands(old.demands, new.demands)) is not None:
            yield Difference("authors in doubt", "authors in doubt", ARRIVING, *changed)

    def _floors_for(self, kind: Kind, number: int) -> tuple[Effect, ...]:
        """The floors that may count for a kind; equal ones are one object."""
        found: list[Effect] = []
        if kind.address.domain in self._sets[number].site.domains:
            return ()
        for effect in self._floors[number]:
            left = self.kinds.left_of(kind, effect.conditions)
            if left is effect.conditions:
                found.append(effect)
            elif left is not None:
                found.append(self._for_kind.setdefault((id(effect), left), Effect(effect.rule, left)))
        return tuple(found)

    def _look(self, kind: Kind, files: list[Files], floors: list[tuple[Effect, ...]]) -> tuple[Difference, ...]:
        differences: dict[object, Difference] = {}
        seen = set()
        days = self._days(files, floors)
        for day in days[:MAX_DAYS]:
            with on_day(day):
                old, new = (self._side(kind, files, floors, number) for number in (0, 1))
                key = (_meaning(old), _meaning(new))
                if key[0] == key[1] or key in seen:
                    continue
                seen.add(key)
                for found in self._compared(kind, old, new, None if day == days[0] else day):
                    differences.setdefault((found.direction, found.changed), found)
        if len(days) > MAX_DAYS:
            why, when = (f"it changes on more than {MAX_DAYS} days",), f"any message, from {days[MAX_DAYS]} on"
            differences[why] = Difference(kind.called, "anybody", when, why, "down")
        for each in self._demanded(kind, files):
            differences.setdefault((each.direction, each.changed), each)
        return tuple(differences.values())

    def _days(self, files: list[Files], floors: list[tuple[Effect, ...]]) -> list[date]:
        """Today, and the later days on which something has ended."""
        policies = [file.policy for _, *both in files for file in both if file is not None]
        rules = [effect.rule.when for some in floors for effect in some]
        every = (*policies, *(rule for policy in policies for rule in policy.when), *rules)
        now = today()
        return sorted({now, *_turns(every, now)})

    def _side(self, kind: Kind, files: list[Files], floors: list[tuple[Effect, ...]], number: int) -> Side:
        """What one set says of a kind on this day."""
        policies = self._sets[number]
        raising = [each for each in floors[number] if not each.rule.when.not_now]
        for step, *both in files:
            file = both[number]
            if file is None or file.policy.not_now or (step == "parent domain" and not file.policy.subdomains):
                continue
            owner = policies.owners.get(kind.address.domain)
            others = file.scope != "person" and file.domain != kind.address.domain
            if owner is not None and others and file.own.levels == ONLY_PLAINTEXT:
                break
            raising += [
                self._rule(file, place, number) for place, rule in enumerate(file.policy.when) if not rule.not_now
            ]
            return Side(replace(file.own, peer=file.policy.peer or owner), tuple(raising))
        return Side(None, ())

    def _rule(self, file: PolicyFile, place: int, number: int) -> Effect:
        key = (id(file), place, number)
        if key not in self._rules:
            rule = file.policy.when[place]
            placed = PlacedRule(rule, file.source, file.rule_lines[place], place + 1)
            self._rules[key] = Effect(placed, Conditions.of(rule, self._sets[number].groups))
        return self._rules[key]

    def _compared(self, kind: Kind, old: Side, new: Side, day: date | None) -> Iterator[Difference]:
        """What differs for the mails of each rule: what holds at least for them, in either set."""
        for conditions in _contexts(old, new):
            check_time()
            before, after = old.outcome(conditions), new.outcome(conditions)
            if changes(before, after):
                message = str(conditions) if day is None else f"{conditions}, from {day} on"
                yield Difference.of(kind.called, conditions.senders, message, before, after, old, new)

    def _demanded(self, kind: Kind, files: list[Files]) -> Iterator[Difference]:
        """The changed demands on mail from this kind."""
        every = [file.policy for _, *both in self.kinds.arriving(kind) for file in both if file is not None]
        if not any(each.require or each.drops_require for each in every):
            return
        now = today()
        for day in sorted({now, *_turns(every, now)}):
            with on_day(day):
                asked = [{each.demand for each in policies.required_from(kind.address)} for policies in self._sets]
            if (changed := changed_demands(*asked)) is not None:
                when = ARRIVING if day == now else f"{ARRIVING}, from {day} on"
                yield Difference(kind.called, kind.called, when, *changed)


def _contexts(old: Side, new: Side) -> Iterator[Conditions]:
    """The mails for which two sides are compared: any mail, and those of each rule that may raise otherwise now."""
    shared = {each.key for each in old.effects} & {each.key for each in new.effects}
    same_base = _meaning(replace(old, effects=())) == _meaning(replace(new, effects=()))
    yield Conditions()
    for effect in old.effects:
        if effect.key not in shared or not same_base:
            yield from effect.conditions.alternatives()
    yield from (effect.conditions for effect in new.effects if effect.key not in shared)


def _turns(settings: Iterable[SealingSettings], after: date) -> Iterator[date]:
    """The later days on which one of them has ended."""
    for each in settings:
        if each.until is not None and after <= each.until < date.max:
            yield each.until + timedelta(days=1)


def _meaning(side: Side) -> object:
    """The same for sides that say the same."""
    own = None if side.own is None else replace(side.own, source="", line=0, reason="")
    return own, tuple(each.key for each in side.effects)


def renamed(difference: Difference, kind: Kind) -> Difference:
    """The same difference for another kind of recipient."""
    return replace(difference, recipients=kind.called)
