"""Proves that one side treats no mail weaker than another, or reports the rules for which it could not.
Standard: what passes is proven for every sender, message and size; what is not shown may be weaker, or not.

By its sender a mail is one of four **cases**. It is the null sender, one that can be read, one that may also stand for
others (SRS, BATV), or one in doubt. Some of those others may be in doubt, and every condition on senders fits a sender
in doubt. In each case the old side has what holds for the mail, a **base**, and rules that raise it; so has the new
side. By the sizes at which a limit or a condition begins to count, all mails fall into finitely many contexts.

**One rule at a time.** Lists of levels in descending order, with "held" above all of them, are a lattice. Its join is
`strongest` (a test tries all lists). The outcome of several new rules is compared with that of several old ones.
It is no weaker if it is no weaker than the outcome of each old rule alone. So it is enough to compare the base and each
old rule with the outcome of those new rules that apply wherever it does.

**All together.** Two things are no join: a list that is not in descending order, and a mail that is held only while no
further rule counts. The latter is plaintext under `quantum = "required"`, say. There all combinations of rules are
tried, unless there are too many.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Literal, NamedTuple

from relay.policy.comparing.cells import SenderCell, cells
from relay.policy.comparing.combinations import combined
from relay.policy.comparing.context import NO_CONDITIONS, SHOWN, Context, Coverage, Judged, Sure
from relay.policy.comparing.implied import Assumptions, in_single_texts
from relay.policy.comparing.items import Conditions, Item
from relay.policy.comparing.languages import REWRITTEN
from relay.policy.comparing.search import RuleScope
from relay.policy.comparing.sides import Side, sender_scope
from relay.policy.floors import Floor
from relay.policy.patterns import Glob
from relay.policy.people import NULL_SENDER

Case = Literal["null sender", "sender", "rewritten sender", "sender in doubt"]

MAX_PARTS = 3000
"""Maximum number of parts of one rule that are checked."""
_NULL = Glob.of(NULL_SENDER)
_ON_SENDERS = frozenset({"sender", "not_sender"})


class Sizes(NamedTuple):
    """The size of a message in bytes, and without its Bcc field, to which limits apply."""

    whole: int
    size: int


@dataclass(frozen=True, slots=True)
class ProofFailure:
    """One old rule that no new rule is shown to cover; None: what holds without any rule that raises.

    `conditions` are those of the affected part of the rule. `bases` are the numbers of the rules by sender that hold, 0
    for none, before and after. `together` are old rules that apply at once. `sender` is an example.
    """

    item: Item | None
    conditions: Conditions
    case: Case
    sizes: Sizes
    bases: tuple[int, int]
    why: str
    together: tuple[Item, ...] = ()
    sender: str | None = None


class Proof:
    """One proof, for one kind of recipient on one day."""

    def __init__(
        self, old: Side, new: Side, separators: str, max_bounce: int, recipients: tuple[tuple[Glob, ...], ...] = ()
    ) -> None:
        """`recipients` are sets of patterns, of each of which one fits each recipient."""
        self._old, self._new = old, new
        self._separators, self._max_bounce, self._recipients = separators, max_bounce, recipients
        self._failed: set[object] = set()
        self._failures: list[ProofFailure] = []
        self._sure = Sure.of(old, new)
        self._sizes = {bounce: list(_sizes(old, new, bounce)) for bounce in (max_bounce, None)}

    def failures(self) -> list[ProofFailure]:
        """What could not be proven; each rule at most once."""
        if self._new.own is None:
            return []
        self._null_sender()
        if not self._nothing_left():
            self._readable("sender")
        if not self._nothing_left() and self._ask_for_senders():
            self._readable("rewritten sender")
            self._in_doubt()
        return self._failures

    def _nothing_left(self) -> bool:
        """Whether both sides differ only in old rules that are known not to be covered."""
        old, new, shared = self._old, self._new, self._sure.shared
        same = (old.bases, old.peer, old.guarded) == (new.bases, new.peer, new.guarded)
        same = same and [each.key for each in old.replacing] == [each.key for each in new.replacing]
        known = shared | self._failed
        return (
            same and all(each.key in shared for each in new.raising) and all(each.key in known for each in old.raising)
        )

    def _ask_for_senders(self) -> bool:
        sides = (self._old, self._new)
        return any(each.replacing or any(item.conditions.senders for item in each.raising) for each in sides)

    def _assumed(self, **more: object) -> Assumptions:
        return replace(Assumptions(self._separators, recipients=self._recipients), **more)  # type: ignore[arg-type]

    # --- the four cases ---------------------------------------------------------------------------------------------

    def _null_sender(self) -> None:
        cell = SenderCell((_of_null_sender(self._old), _of_null_sender(self._new)))
        old, new = (tuple(filter(_for_null_sender, each.raising)) for each in (self._old, self._new))
        self._in_cell("null sender", cell, (old, new), self._assumed(holds=_ON_SENDERS), self._max_bounce)

    def _in_doubt(self) -> None:
        old, new = (_in_order(each.raising, each.maybe) for each in (self._old, self._new))
        self._in_cell("sender in doubt", SenderCell((0, 0)), (old, new), self._assumed(holds=_ON_SENDERS))

    def _readable(self, case: Case) -> None:
        """Tries all senders together first, as if each rule by sender could meet each other one; else cell by cell."""
        rewritten = case == "rewritten sender"
        old, new = (_in_order(each.raising, each.maybe if rewritten else ()) for each in (self._old, self._new))
        alike: dict[object, list[SenderCell]] = {}
        for cell in cells(self._old, self._new, rewritten=rewritten):
            bases = (self._old.bases[cell.bases[0]], self._new.bases[cell.bases[1]])
            alike.setdefault(bases, []).append(cell)
        for some in alike.values():
            rough = SenderCell(some[0].bases)
            alone = some[0].bases == (0, 0) and not some[0].unwanted
            assumed = self._assumed(rewritten=rewritten)
            if not alone and not self._in_cell(case, rough, (old, new), assumed, only_look=True):
                continue
            for cell in some:
                in_cell = cell._replace(wanted=(*cell.wanted, RuleScope(REWRITTEN))) if rewritten else cell
                if in_cell.nobody(self._separators):
                    continue
                assumed = self._assumed(rewritten=rewritten, senders=cell.senders)
                rules = (old, new) if rewritten else (self._meant(in_cell, old), self._meant(in_cell, new))
                self._in_cell(case, in_cell, rules, assumed)

    def _meant(self, cell: SenderCell, rules: Iterable[Item]) -> tuple[Item, ...]:
        """The rules that may be for a sender in the cell."""
        return tuple(
            each
            for each in rules
            if cell.of_all
            or not each.conditions.senders
            or not cell.nobody(self._separators, sender_scope(each.conditions))
        )

    # --- one case ---------------------------------------------------------------------------------------------------

    def _in_cell(
        self,
        case: Case,
        cell: SenderCell,
        rules: tuple[Sequence[Item], Sequence[Item]],
        assumed: Assumptions,
        max_bounce: int | None = None,
        *,
        only_look: bool = False,
    ) -> bool:
        """Whether something cannot be proven; records it unless `only_look`."""
        bases = self._old.bases[cell.bases[0]], self._new.bases[cell.bases[1]]
        mails = self._old.mail(1, max_bounce), self._new.mail(1, max_bounce)
        shared = self._sure.shared
        known_failures = all(each.key in shared or each.key in self._failed for each in rules[0])
        if (
            known_failures
            and all(each.key in shared for each in rules[1])
            and (bases[0], mails[0]) == (bases[1], mails[1])
        ):
            return False
        # Before the first rule that is surely meant, and where none is, all may only be meant.
        before = self._new.maybe[: cell.bases[1] - 1] if cell.bases[1] else self._new.maybe
        unsure = frozenset() if only_look else frozenset(each.key for each in before)
        for sizes in self._sizes[max_bounce]:
            old, new = (tuple(each for each in side if each.conditions.for_size(sizes.whole)) for side in rules)
            old_mail, new_mail = (mail._replace(size=sizes.size) for mail in mails)
            context = Context(bases, (old, new), (old_mail, new_mail), assumed, self._sure, unsure)
            for failure in self._in_context(context, case, cell, sizes, only_look=only_look):
                if only_look:
                    return True
                self._failed.add(_key(failure.item))
                self._failures.append(failure)
        return False

    def _in_context(
        self, context: Context, case: Case, cell: SenderCell, sizes: Sizes, *, only_look: bool
    ) -> Iterator[ProofFailure]:
        left = [each for each in context.to_be_shown() if _key(each) not in self._failed]
        unsure = bool(left) and not self._sure.a_lattice
        for item in left if self._sure.a_lattice else ():
            show = _Showing(context, cell if case == "sender" else None, item)
            judged = show.of(NO_CONDITIONS if item is None else item.conditions)
            unsure = unsure or judged.verdict is Coverage.UNSURE
            if judged.verdict is Coverage.WEAKER:
                sender = self._sender(case, cell, show.part)
                yield ProofFailure(item, show.part, case, sizes, cell.bases, judged.why, (), sender)
        if unsure and only_look:
            yield ProofFailure(None, NO_CONDITIONS, case, sizes, cell.bases, "")
        elif unsure and (combination := combined(context)).why:
            item = next((each for each in combination.together if each.key not in self._sure.shared), None)
            item = item or next(iter(combination.together), None)
            if _key(item) not in self._failed:
                part = NO_CONDITIONS if item is None else item.conditions
                yield ProofFailure(
                    item,
                    part,
                    case,
                    sizes,
                    cell.bases,
                    combination.why,
                    combination.together,
                    self._sender(case, cell, part),
                )

    def _sender(self, case: Case, cell: SenderCell, part: Conditions) -> str | None:
        """An affected sender, if one is easily found."""
        if case in ("null sender", "sender in doubt"):
            return None
        return cell.address(self._separators, *([sender_scope(part)] if case == "sender" else []))


class _Showing:
    """One attempt to show that the new side covers one old rule: as a whole, or else part by part.

    A rule of several texts is as many rules, each of which another new rule may cover. `part` is the part that
    was checked last.
    """

    def __init__(self, context: Context, cell: SenderCell | None, item: Item | None) -> None:
        """The mails are those of the context; if there is a cell, the rule is for senders in it alone."""
        self._context, self._cell, self._item = context, cell, item
        self._left = MAX_PARTS
        self.part = NO_CONDITIONS

    def of(self, conditions: Conditions, assumed: Assumptions | None = None) -> Judged:
        """The verdict for mails that fit these conditions, those of the rule or of a part of it."""
        context = self._context if assumed is None else self._context.assuming(assumed)
        judged = context.judged(self._item, conditions)
        self._left -= 1
        self.part = conditions
        if judged.verdict is Coverage.SHOWN or self._nobody(conditions, context.assumed):
            return SHOWN
        parts = [(each, context.assumed) for each in in_single_texts(conditions)]
        parts = parts or [(conditions, each) for each in _single_senders(context.assumed)]
        if not parts or self._left < len(parts):
            return judged
        for part, about in parts:
            if (result := self.of(part, about)).verdict is not Coverage.SHOWN:
                return result
        return SHOWN

    def _nobody(self, conditions: Conditions, assumed: Assumptions) -> bool:
        if self._cell is None or self._cell.of_all:
            return False
        return self._cell.nobody(assumed.separators, sender_scope(conditions), *map(RuleScope, assumed.senders))


def _single_senders(assumed: Assumptions) -> Iterator[Assumptions]:
    """The assumptions, once for each pattern of the first set that has several."""
    for number, globs in enumerate(assumed.senders):
        if len(globs) > 1:
            for glob in globs:
                yield replace(assumed, senders=(*assumed.senders[:number], (glob,), *assumed.senders[number + 1 :]))
            return


def _sizes(old: Side, new: Side, max_bounce: int | None) -> Iterator[Sizes]:
    """One of each class of sizes that rules and limits distinguish; without a Bcc field if possible."""
    limits = {1, *old.limits(), *new.limits(), *(() if max_bounce is None else (max_bounce + 1,))}
    asked = sorted({1, *old.conditions_on_size(), *new.conditions_on_size()})
    ends = list(zip(asked, [*asked[1:], None], strict=True))
    below = sorted(limits)
    for octets, end in zip(below, [*below[1:], None], strict=True):
        for whole, whole_end in ends:
            larger = max(octets, whole)
            if whole_end is None or larger < whole_end:
                yield Sizes(larger, larger if end is None or larger < end else octets)


def _key(item: Item | None) -> object:
    return None if item is None else item.key


def _in_order(raising: Sequence[Item], maybe: Sequence[Item]) -> tuple[Item, ...]:
    """The floors, and then the rules of the file as they stand there."""
    if not maybe:
        return tuple(raising)
    floors = [each for each in raising if isinstance(each.rule.when, Floor)]
    rules = [each for each in raising if not isinstance(each.rule.when, Floor)]
    return (*floors, *sorted([*rules, *maybe], key=lambda each: each.rule.number))


def _of_null_sender(side: Side) -> int:
    """The number of the rule by sender that holds for the null sender, 0 for none."""
    return next((number for number, each in enumerate(side.replacing, 1) if _for_null_sender(each)), 0)


def _for_null_sender(item: Item) -> bool:
    people = item.conditions.people
    return _NULL in people.get("sender", (_NULL,)) and _NULL not in people.get("not_sender", ())
