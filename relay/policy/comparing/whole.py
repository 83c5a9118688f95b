"""Compares two sets for each kind of recipient and each day: what samples show, and what cannot be proven.
Standard: policies/README.md; kinds whose files say the same are compared once.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from datetime import date

from relay.policy.comparing.demands import changed_demands
from relay.policy.comparing.differences import ARRIVING, Difference
from relay.policy.comparing.items import Item
from relay.policy.comparing.kinds import Files, Kind, Kinds
from relay.policy.comparing.listing import DifferenceSearch
from relay.policy.comparing.proof import Proof, ProofFailure
from relay.policy.comparing.sides import Side
from relay.policy.comparing.unproven import Unproven, placed, shown_by, unproven, witnesses
from relay.policy.comparing.views import View, covering, turns
from relay.policy.decide import PolicySet
from relay.policy.file import Policy, PolicyFile
from relay.policy.names import may_be_route
from relay.policy.settings import on_day, today

MAX_DAYS = 20
"""Maximum number of days on which samples are tried for one kind of recipient; proofs are for all days."""


@dataclass(frozen=True, slots=True)
class FoundForKinds:
    """The results for kinds of recipients that are equal in both sets; `coarse`: not all samples were tried."""

    differences: tuple[Difference, ...] = ()
    unproven: tuple[Unproven, ...] = ()
    coarse: bool = False


_NOTHING = FoundForKinds()


@dataclass(frozen=True, slots=True)
class _Span:
    """A span of days on which the same holds for one kind of recipient, from `day` (None: today)."""

    day: date | None
    sides: tuple[Side, Side]
    covered: tuple[PolicyFile | None, PolicyFile | None]


class Whole:
    """One comparison."""

    def __init__(self, old: PolicySet, new: PolicySet) -> None:
        self._sets = (old, new)
        self.kinds = Kinds(old, new)
        self._views = (View(old, self.kinds), View(new, self.kinds))
        self._listing = DifferenceSearch(old, new, self.kinds.separators)
        self._numbers: dict[object, int] = {}
        self._policies: dict[tuple[int, bool], int] = {}
        self._sides: dict[int, int] = {}
        self._found: dict[object, FoundForKinds] = {}
        self._proofs: dict[object, list[ProofFailure]] = {}

    def of_kind(self, kind: Kind) -> FoundForKinds:
        """The results for one kind of recipient, shared by equal ones."""
        if kind.part == "tagged" and self._as_without_tag(kind):
            return _NOTHING
        files = self.kinds.files(kind)
        chain = self.kinds.files(kind, arriving=True) if may_be_route(kind.address) else files
        key = (*self._beside(kind), *((step, self._number(old), self._number(new)) for step, old, new in chain))
        if key not in self._found:
            self._found[key] = self._look(kind, files)
        return self._found[key]

    def in_doubt(self) -> Iterator[Difference]:
        """Changed demands on arriving mail that may be from anybody."""
        old, new = self._sets
        if (changed := changed_demands(old.demands, new.demands)) is not None:
            yield Difference("authors in doubt", "", ARRIVING, None, None, *changed, "authors in doubt")

    # --- what is the same -------------------------------------------------------------------------------------------

    def _beside(self, kind: Kind) -> tuple[object, ...]:
        """Equal for kinds for which everything beside their files is the same."""
        floors = [view.floors(kind) for view in self._views]
        asked = any(_asks_for_recipients(each) for some in floors for each in some)
        owners = tuple(each.owners.get(kind.address.domain) for each in self._sets)
        return *(tuple(map(id, some)) for some in floors), owners, self.kinds.patterns(kind) if asked else None

    def _as_without_tag(self, kind: Kind) -> bool:
        """Whether no floor distinguishes addresses with and without a tag."""
        if not any(each.asks_for_recipients for each in self._views):
            return True
        return all(_the_same(view.floors(kind), view.floors(self.kinds.untagged(kind))) for view in self._views)

    def _number(self, file: PolicyFile | None, *, rules: bool = True) -> int:
        """Equal for files that say the same, or do so without their `rules`."""
        if file is None:
            return 0
        number = self._policies.get((id(file.policy), rules))
        if number is None:
            without = {"reason"} if rules else {"reason", "when"}
            key = tuple((name, getattr(file.policy, name)) for name in Policy.model_fields if name not in without)
            number = self._policies[id(file.policy), rules] = self._numbers.setdefault(key, len(self._numbers) + 1)
        return number

    def _side(self, side: Side) -> int:
        """Equal for sides that are equally strong."""
        number = self._sides.get(id(side))
        if number is None:
            number = self._sides[id(side)] = self._numbers.setdefault(side.key, len(self._numbers) + 1)
        return number

    # --- one kind of recipient --------------------------------------------------------------------------------------

    def _look(self, kind: Kind, files: list[Files]) -> FoundForKinds:
        spans = list(self._spans(kind, files))
        differences: dict[object, Difference] = {}
        coarse = len(spans) > MAX_DAYS
        for span in spans[:MAX_DAYS]:
            with on_day(span.day or today()):
                same = self._number(span.covered[0], rules=False) == self._number(span.covered[1], rules=False)
                shown, rough = self._listing.differences(
                    kind.text, kind.called, *span.sides, span.day, same_settings=same
                )
            coarse = coarse or rough
            for each in shown:
                differences.setdefault((each.direction, each.changed), each)
        for each in self._demanded(kind):
            differences.setdefault((each.direction, each.changed), each)
        open_: dict[object, Unproven] = {}
        for span in spans:
            for failure in self._failures(kind, span):
                result = self._said(kind, span, failure)
                if isinstance(result, Difference):
                    differences.setdefault((result.direction, result.changed), result)
                else:
                    open_.setdefault((result.rule, result.why), result)
        weaker = any(each.weaker for each in differences.values())
        return FoundForKinds(tuple(differences.values()), () if weaker else tuple(open_.values()), coarse)

    def _spans(self, kind: Kind, files: list[Files]) -> Iterator[_Span]:
        """The spans of days, from today, within which nothing changes."""
        now = today()
        floors = [view.floors(kind) for view in self._views]
        every = [file.policy for _, *both in files for file in both if file is not None]
        starts = sorted({now, *turns(every, now)})
        seen: set[object] = set()
        for start, end in zip(starts, [*starts[1:], date.max], strict=True):
            old = covering(((step, file) for step, file, _ in files), start)
            new = covering(((step, file) for step, _, file in files), start)
            rules = [rule for file in (old, new) if file is not None for rule in file.policy.when]
            for day in sorted({start, *(each for each in turns(rules, start) if each < end)}):
                before = self._views[0].side(kind, old, floors[0], day)
                after = self._views[1].side(kind, new, floors[1], day)
                same = self._number(old) == self._number(new) and _all_of(before) == _all_of(after)
                key = (id(before), id(after), self._number(old), self._number(new))
                if key not in seen and not same:
                    seen.add(key)
                    yield _Span(None if day == now else day, (before, after), (old, new))

    def _demanded(self, kind: Kind) -> Iterator[Difference]:
        """The changed demands on mail from this kind."""
        files = self.kinds.files(kind, arriving=True)
        every = [file.policy for _, *both in files for file in both if file is not None]
        if not any(each.require or each.drops_require for each in every):
            return
        now = today()
        for day in sorted({now, *turns(every, now)}):
            with on_day(day):
                asked = [{each.demand for each in policies.required_from(kind.address)} for policies in self._sets]
            if (changed := changed_demands(*asked)) is not None:
                when = ARRIVING if day == now else f"{ARRIVING}, from {day} on"
                yield Difference(kind.called, kind.text, when, None, None, *changed, kind.called)

    # --- what is not shown ------------------------------------------------------------------------------------------

    def _failures(self, kind: Kind, span: _Span) -> list[ProofFailure]:
        """What could not be proven for one kind on some days; shared by sides of equal strength."""
        asked = any(_asks_for_recipients(each) for side in span.sides for each in side.raising)
        recipients = self.kinds.patterns(kind) if asked else ()
        key = (*map(self._side, span.sides), recipients)
        if key not in self._proofs:
            max_bounce = self._sets[1].site.max_bounce
            self._proofs[key] = Proof(*span.sides, self.kinds.separators, max_bounce, recipients).failures()
        return self._proofs[key]

    def _said(self, kind: Kind, span: _Span, failure: ProofFailure) -> Difference | Unproven:
        """The difference that a mail shows, or else the unproven failure."""
        first = None
        with on_day(span.day or today()):
            for witness in witnesses(failure, span.sides[1], kind.text, self.kinds.separators):
                first = first or witness
                if (shown := shown_by(*self._sets, witness, kind.called, span.day)) is not None:
                    return shown
        assert first is not None  # noqa: S101 - there is always one
        return unproven(failure, first, self._where(span, failure), kind.called, span.day)

    def _where(self, span: _Span, failure: ProofFailure) -> str:
        """File and line of the rule that is not shown to be covered."""
        if floor := placed(failure.item):
            return floor
        old, new = span.covered
        if old is None:
            return "no file" if new is None else f"{new.source}:{new.line}"
        base = failure.bases[0]
        item = failure.item or (span.sides[0].replacing[base - 1] if base else None)
        return f"{old.source}:{old.line if item is None else old.rule_lines[item.rule.number - 1]}"


def _the_same(some: tuple[Item, ...], others: tuple[Item, ...]) -> bool:
    return list(map(id, some)) == list(map(id, others))


def _asks_for_recipients(item: Item) -> bool:
    return "recipient" in item.conditions.people or "not_recipient" in item.conditions.people


def _all_of(side: Side) -> object:
    """All that a side says, including what is not about strength."""
    rules = (each.rule.when for each in (*side.replacing, *side.raising))
    more = tuple((each.otherwise, each.impossible, each.hold_for, each.priority) for each in rules)
    return side.key, more


def renamed(difference: Difference, kind: Kind) -> Difference:
    """The same difference for another kind of recipient, unless it is about one recipient alone."""
    return difference if difference.alone else replace(difference, recipients=kind.called)
