"""One set as seen by comparisons: what each kind of recipient gets on each day, shared by equal files.
Standard: policies/README.md; a file or rule applies from its `since` to its `until`; days are in UTC.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from datetime import date, timedelta

from relay.policy.comparing.items import Item
from relay.policy.comparing.kinds import Kind, Kinds, left_of
from relay.policy.comparing.sides import Side
from relay.policy.conditions import ON_RECIPIENTS
from relay.policy.decide import PolicySet
from relay.policy.file import Policy, PolicyFile
from relay.policy.floors import Floor
from relay.policy.names import Step
from relay.policy.rules import PlacedRule, When
from relay.policy.settings import Chosen, SealingSettings

_ON_RECIPIENTS = frozenset(ON_RECIPIENTS)


def counts(settings: SealingSettings, day: date) -> bool:
    """Whether a file or rule applies on a day."""
    return (settings.since is None or settings.since <= day) and (settings.until is None or day <= settings.until)


def turns(settings: Iterable[SealingSettings], after: date) -> Iterator[date]:
    """The later days on which one of them begins or ends."""
    for each in settings:
        if each.since is not None and each.since > after:
            yield each.since
        if each.until is not None and after <= each.until < date.max:
            yield each.until + timedelta(days=1)


def covering(files: Iterable[tuple[Step, PolicyFile | None]], day: date) -> PolicyFile | None:
    """The first of these files that covers the recipients."""
    for step, file in files:
        if file is not None and counts(file.policy, day) and (step != "parent domain" or file.policy.subdomains):
            return file
    return None


_NOBODY = Side()
"""Without a file: all mail is held."""


class View:
    """One of two sets."""

    def __init__(self, policies: PolicySet, kinds: Kinds) -> None:
        self.policies = policies
        self._kinds = kinds
        self._floors = tuple(Item.of(floor, policies.groups) for floor in policies.floors)
        self._by_recipient = any(not _ON_RECIPIENTS.isdisjoint(each.conditions.people) for each in self._floors)
        self._items: dict[int, Item] = {}
        self._own: dict[int, Chosen] = {}
        self._sides: dict[object, Side] = {}
        self._for_kind: dict[object, Item] = {}
        self._asked: Kind | None = None
        self._found: tuple[Item, ...] = ()

    @property
    def asks_for_recipients(self) -> bool:
        """Whether some floors have conditions on recipients."""
        return self._by_recipient

    def floors(self, kind: Kind) -> tuple[Item, ...]:
        """The floors for a kind, each without conditions on recipients that hold for all of it."""
        inside = kind.address.domain in self.policies.site.domains
        if not inside and not self._by_recipient:
            return self._floors
        if kind != self._asked:
            found = (self._for(kind, item) for item in self._floors if not inside or _is_inside(item))
            self._asked, self._found = kind, tuple(each for each in found if each is not None)
        return self._found

    def _for(self, kind: Kind, item: Item) -> Item | None:
        """A floor for one kind; kinds with equal results share one object."""
        if _ON_RECIPIENTS.isdisjoint(item.conditions.people):
            return item
        if (left := left_of(self._kinds, kind, item.conditions)) is None:
            return None
        key = (id(item), left)
        if key not in self._for_kind:
            changed = dict(zip(ON_RECIPIENTS, left, strict=True))
            self._for_kind[key] = item.having(item.conditions.with_people(**changed))
        return self._for_kind[key]

    def side(self, kind: Kind, file: PolicyFile | None, floors: tuple[Item, ...], day: date) -> Side:
        """What holds for a kind on a day on which this file covers it; equal results share one object."""
        if file is None:
            return _NOBODY
        rules = tuple(number for number, rule in enumerate(file.policy.when, 1) if counts(rule, day))
        owner = self.policies.owners.get(kind.address.domain)
        peer = file.policy.peer or owner
        guarded = owner is not None and file.scope != "person" and file.domain != kind.address.domain
        key = (id(file.policy), rules, peer, guarded, tuple(map(id, floors)))
        if key not in self._sides:
            items = [self._item(file.policy.when[number - 1], number) for number in rules]
            self._sides[key] = Side(
                self._own_of(file.policy),
                tuple(each for each in items if not each.rule.when.only_raises),
                (*floors, *(each for each in items if each.rule.when.only_raises)),
                peer,
                guarded=guarded,
            )
        return self._sides[key]

    def _item(self, rule: When, number: int) -> Item:
        item = self._items.get(id(rule))
        if item is None:
            item = self._items[id(rule)] = Item.of(PlacedRule(rule, "", 0, number), self.policies.groups)
        return item

    def _own_of(self, policy: Policy) -> Chosen:
        own = self._own.get(id(policy))
        if own is None:
            own = self._own[id(policy)] = Chosen(policy.levels).instead(policy, 0)
        return own


def _is_inside(item: Item) -> bool:
    """Whether a floor is for mail inside as well."""
    floor = item.rule.when
    return isinstance(floor, Floor) and floor.inside
