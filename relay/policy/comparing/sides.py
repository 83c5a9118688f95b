"""What one set decides for one kind of recipient on one day: file settings, rules by sender, and all that raises.
Standard: policies/README.md; two sides that say the same are equal, so that one proof serves many files.
"""

from __future__ import annotations

from collections.abc import Iterator

from relay.policy.comparing.items import Conditions, Item, bare
from relay.policy.comparing.outcomes import ComparedMail
from relay.policy.comparing.search import RuleScope
from relay.policy.settings import Chosen


class Side:
    """What holds before anything is raised, rules by sender that may take its place, and all that raises.

    `bases` are what the file says without rules, None where no file covers the recipients, and then with each rule by
    sender in its place. `maybe` are these rules as they apply to a sender in doubt, `senders` are whom they
    are for. `raising` are the floors and all other rules of the file. `peer` has the keys; `guarded` says that the file
    may not let this mail out in clear. `key` is the same for sides of the same meaning.
    """

    def __init__(
        self,
        own: Chosen | None = None,
        replacing: tuple[Item, ...] = (),
        raising: tuple[Item, ...] = (),
        peer: str | None = None,
        *,
        guarded: bool = False,
    ) -> None:
        self.own, self.replacing, self.raising, self.peer, self.guarded = own, replacing, raising, peer, guarded
        self.bases: tuple[Chosen | None, ...] = (None,)
        self.maybe: tuple[Item, ...] = ()
        if own is not None:
            self.bases = (bare(own), *(bare(own.instead(each.rule.when, 0)) for each in replacing))
            self.maybe = tuple(each.that_may(own) for each in replacing)
        self.senders = tuple(sender_scope(each.conditions) for each in replacing)
        rules = (tuple(each.key for each in some) for some in (replacing, raising))
        self.key = (self.bases[0], *rules, peer, guarded)

    def mail(self, size: int, max_bounce: int | None) -> ComparedMail:
        """A mail of this size, in bytes, to these recipients."""
        return ComparedMail(size, max_bounce, self.peer, self.guarded)

    def limits(self) -> Iterator[int]:
        """The sizes in bytes from which a limit of any level applies."""
        for base in self.bases:
            yield from (octets + 1 for _, octets in (base.max_size if base is not None else ()))
        for each in self.raising:
            yield from (octets + 1 for _, octets in each.effect.raising.limits or ())

    def conditions_on_size(self) -> Iterator[int]:
        """The sizes in bytes from which a different condition holds."""
        for each in self.raising:
            if (larger := each.conditions.larger_than) is not None:
                yield larger + 1
            if (smaller := each.conditions.smaller_than) is not None:
                yield smaller


def sender_scope(conditions: Conditions) -> RuleScope:
    """The scope of the conditions on the sender."""
    return RuleScope(conditions.people.get("sender"), conditions.people.get("not_sender", ()))
