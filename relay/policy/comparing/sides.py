"""What one set says of one kind of recipient on one day: the file's settings, rules by sender, and all that raises.
Standard: policies/README.md; two sides that say the same are equal, so that one proof serves many files.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

from relay.policy.comparing.items import Conditions, Item, bare
from relay.policy.comparing.languages import Who
from relay.policy.comparing.outcomes import Mail
from relay.policy.settings import Chosen


@dataclass(frozen=True)
class Side:
    """`own` is what the file says without rules, None where no file covers the recipients.

    `replacing` are the rules by sender that may take its place, in their order; `raising` the floors and all other
    rules of the file. `peer` has the keys; `guarded` says that the file may not let this mail out in clear.
    """

    own: Chosen | None = None
    replacing: tuple[Item, ...] = ()
    raising: tuple[Item, ...] = ()
    peer: str | None = None
    guarded: bool = False

    @cached_property
    def key(self) -> object:
        """The same for sides of the same meaning."""
        own = None if self.own is None else bare(self.own)
        return (
            own,
            tuple(each.key for each in self.replacing),
            tuple(each.key for each in self.raising),
            self.peer,
            self.guarded,
        )

    @cached_property
    def bases(self) -> tuple[Chosen | None, ...]:
        """What holds before anything is raised: for those whom no rule by sender is for, then for each rule."""
        if self.own is None:
            return (None,)
        own = self.own
        replaced = (own.instead(each.rule.when, 0) for each in self.replacing)
        return (bare(own), *map(bare, replaced))

    @cached_property
    def maybe(self) -> tuple[Item, ...]:
        """The rules by sender as they count where the sender is not sure."""
        return () if self.own is None else tuple(each.that_may(self.own) for each in self.replacing)

    @cached_property
    def senders(self) -> tuple[Who, ...]:
        """Whom each rule by sender is for."""
        return tuple(who(each.conditions) for each in self.replacing)

    def mail(self, octets: int, max_bounce: int | None) -> Mail:
        """A mail of so many bytes to these recipients."""
        return Mail(octets, max_bounce, self.peer, self.guarded)

    def limits(self) -> Iterator[int]:
        """The sizes in bytes at which a limit of any of its levels begins to count."""
        for base in self.bases:
            yield from (octets + 1 for _, octets in (base.max_size if base is not None else ()))
        for each in self.raising:
            yield from (octets + 1 for _, octets in each.effect.raising.limits or ())

    def conditions_on_size(self) -> Iterator[int]:
        """The sizes in bytes from which on another condition holds."""
        for each in self.raising:
            if (larger := each.conditions.larger_than) is not None:
                yield larger + 1
            if (smaller := each.conditions.smaller_than) is not None:
                yield smaller


def who(conditions: Conditions) -> Who:
    """Whom the conditions on the sender are for."""
    return Who(conditions.people.get("sender"), conditions.people.get("not_sender", ()))
