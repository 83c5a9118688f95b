"""Shows that the new side makes up for one old rule: as a whole, or else part by part.
Standard: proof.py; a rule of several texts is as many rules, each of which another new rule may make up for.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from relay.policy.comparing.cells import SenderCell
from relay.policy.comparing.context import NO_CONDITIONS, SHOWN, Context, Coverage, Judged
from relay.policy.comparing.implied import Known, in_single_texts
from relay.policy.comparing.items import Conditions, Item
from relay.policy.comparing.search import RuleScope
from relay.policy.comparing.sides import who

MAX_PARTS = 3000
"""Maximum number of parts of one rule that are looked at."""


class Showing:
    """One attempt; `part` is the part of the rule that was looked at last."""

    def __init__(self, context: Context, cell: SenderCell | None, item: Item | None) -> None:
        """The mails are those of the context; if there is a cell, the rule is for senders in it alone."""
        self._context, self._cell, self._item = context, cell, item
        self._left = MAX_PARTS
        self.part = NO_CONDITIONS

    def of(self, conditions: Conditions, known: Known | None = None) -> Judged:
        """Of mails that fit these conditions, which are those of the rule or of a part of it."""
        context = self._context if known is None else self._context.knowing(known)
        judged = context.judged(self._item, conditions)
        self._left -= 1
        self.part = conditions
        if judged.verdict is Coverage.SHOWN or self._nobody(conditions, context.known):
            return SHOWN
        parts = [(each, context.known) for each in in_single_texts(conditions)]
        parts = parts or [(conditions, each) for each in _single_senders(context.known)]
        if not parts or self._left < len(parts):
            return judged
        for part, about in parts:
            if (found := self.of(part, about)).verdict is not Coverage.SHOWN:
                return found
        return SHOWN

    def _nobody(self, conditions: Conditions, known: Known) -> bool:
        if self._cell is None or self._cell.of_all:
            return False
        return self._cell.nobody(known.separators, who(conditions), *map(RuleScope, known.senders))


def _single_senders(known: Known) -> Iterator[Known]:
    """What is known, once for each pattern of the first set that has several."""
    for number, globs in enumerate(known.senders):
        if len(globs) > 1:
            for glob in globs:
                yield replace(known, senders=(*known.senders[:number], (glob,), *known.senders[number + 1 :]))
            return
