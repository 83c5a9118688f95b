"""The conditions of a rule in comparable form: whether one rule fits every mail that another one fits.
Standard: policies/README.md; "no" may be wrong, "yes" never is, in doubt and with tags included.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import product
from math import prod

from relay.policy.patterns import Glob, Groups
from relay.policy.rules import When

MAX_ALTERNATIVES = 1000
"""Maximum number of parts into which the conditions of one rule are split."""

Globs = tuple[Glob, ...]


@dataclass(frozen=True, slots=True)
class Conditions:
    """All conditions of one rule; None where there is none of that name. A mail has to fit one text of each.

    `people` are the patterns of sender, not_sender, recipient and not_recipient; `users` and `not_users` the names of
    users in the first two. Groups are replaced by their patterns.
    """

    sender: Globs | None = None
    users: Globs = ()
    not_sender: Globs | None = None
    not_users: Globs = ()
    recipient: Globs | None = None
    not_recipient: Globs | None = None
    tags: Globs = ()
    fields: tuple[tuple[str, Glob | None], ...] = ()
    names: Globs = ()

    @classmethod
    def of(cls, rule: When, groups: Groups) -> Conditions:
        """The conditions of a rule or floor."""
        people = {name: tuple(patterns.all(groups)) for name, patterns in rule.people.items()}
        users = {name: rule.people[name].users for name in ("sender", "not_sender") if name in rule.people}
        tags, fields, names = rule.looked_for
        named = {"users": users.get("sender", ()), "not_users": users.get("not_sender", ())}
        return cls(**people, **named, tags=tags, fields=fields, names=names)

    def imply(self, other: Conditions) -> bool:
        """Whether the other rule fits every mail that this one fits."""
        return (
            self._imply_senders(other)
            and _within(self.recipient, other.recipient)
            and _without(self.not_recipient, other.not_recipient)
            and (not other.tags or _within(self.tags or None, other.tags))
            and (not other.fields or (bool(self.fields) and all(_field_in(each, other.fields) for each in self.fields)))
            and (not other.names or _within(self.names or None, other.names))
        )

    def _imply_senders(self, other: Conditions) -> bool:
        if other.sender is not None:
            every = (*other.sender, *other.users)
            if self.sender is None or not _within(self.sender, other.sender) or not _within(self.users, every):
                return False
            if self.users and not other.users:  # a login that is not known fits names of users alone
                return False
        if other.not_sender is None:
            return True
        users_counted_alike = not self.not_users or bool(other.not_users)
        excluded = _within(other.not_sender, self.not_sender) and self.not_sender is not None
        if excluded and users_counted_alike and _within(other.not_users, (*(self.not_sender or ()), *self.not_users)):
            return True
        # Somebody elsewhere is among the senders, whom the other rule cannot surely name.
        return (
            self.sender is not None
            and not self.users
            and not other.not_users
            and all(_elsewhere(one, each) for one in self.sender for each in other.not_sender)
        )

    def alternatives(self) -> Sequence[Conditions]:
        """Conditions with one text each; a mail fits these if it fits one of them. Themselves if too many."""
        senders: list[tuple[Globs | None, Globs]] = [(self.sender, self.users)]
        if self.sender is not None:
            senders = [((glob,), ()) for glob in self.sender] + [((), (user,)) for user in self.users]
        recipients: list[Globs | None] = [(each,) for each in self.recipient] if self.recipient else [self.recipient]
        fields: list[tuple[tuple[str, Glob | None], ...]] = [(each,) for each in self.fields] or [()]
        lists = (senders, recipients, _single(self.tags), fields, _single(self.names))
        if prod(len(each) for each in lists) > MAX_ALTERNATIVES:
            return [self]
        return [
            replace(self, sender=sender, users=users, recipient=recipient, tags=tags, fields=field, names=names)
            for (sender, users), recipient, tags, field, names in product(*lists)
        ]

    def __str__(self) -> str:
        """For a person, without those on senders."""
        return ", ".join(self._said()) or "any message"

    def _said(self) -> Iterator[str]:
        for name, globs in (("subject", self.tags), ("attachment", self.names)):
            if globs:
                yield f"{name} {_some(map(str, globs))}"
        if self.fields:
            yield f"field {_some(name if glob is None else f'{name}: {glob}' for name, glob in self.fields)}"
        if self.recipient is not None:
            yield f"to {_some(map(str, self.recipient))}"
        if self.not_recipient is not None:
            yield f"not to {_some(map(str, self.not_recipient))}"

    @property
    def senders(self) -> str:
        """Who sends, for a person."""
        said = []
        if self.sender is not None:
            said.append(_some(map(str, (*self.sender, *self.users))))
        if self.not_sender is not None:
            said.append(f"all but {_some(map(str, (*self.not_sender, *self.not_users)))}")
        return " and ".join(said) or "anybody"


def _single(globs: Globs) -> list[Globs]:
    """Each alone in a tuple; nothing if there is nothing to choose from."""
    return [(each,) for each in globs] or [()]


def _within(some: Globs | None, wide: Globs | None) -> bool:
    """Whether what fits one of the first patterns fits one of the others: those match its text, stars included."""
    if wide is None:
        return True
    return some is not None and all(any(each.matches(str(one)) for each in wide) for one in some)


def _without(some: Globs | None, other: Globs | None) -> bool:
    """Whether who is outside the first patterns is outside the others."""
    return other is None or (some is not None and _within(other, some))


def _field_in(field: tuple[str, Glob | None], fields: Sequence[tuple[str, Glob | None]]) -> bool:
    name, glob = field
    return any(
        name == other and (wide is None or (glob is not None and wide.matches(str(glob)))) for other, wide in fields
    )


def _elsewhere(one: Glob, other: Glob) -> bool:
    """Whether no address fits both, with its tag or without: their domains differ, and have no star."""
    return "*" not in one.domain + other.domain and one.domain != other.domain


def _some(texts: Iterator[str]) -> str:
    every = list(texts)
    return " or ".join(every[:3]) + (f" or {len(every) - 3} more" if len(every) > 3 else "")
