"""Whether one rule applies to every mail to which another one applies, condition by condition.
Standard: policies/README.md; "yes" is proven, whatever is in doubt about the mail; "no" may be "not shown".

What is in doubt fits all patterns of a kind (a sender, the authors, a header field, the parts). So a rule that needs
one kind implies nothing about another kind. Within a kind, containment is enough for those in doubt as well.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from dataclasses import dataclass, replace

from relay.policy.comparing.items import Conditions
from relay.policy.comparing.languages import address_within, apart, may_be_rewritten, within
from relay.policy.conditions import NOT
from relay.policy.patterns import Glob
from relay.policy.rules import LookedFor

_ANYTHING = Glob.of("*")


@dataclass(frozen=True, slots=True)
class Assumptions:
    """Assumptions about a mail beside the conditions of one rule.

    `holds` are conditions that hold for every rule. `senders` are sets of patterns, of each of which one fits the
    envelope sender; `recipients` the same of the recipient. `rewritten` says that the sender may stand for others, and
    for somebody in doubt. A rule may then apply to these; `senders` still describe the literal address.
    """

    separators: str
    holds: frozenset[str] = frozenset()
    senders: tuple[tuple[Glob, ...], ...] = ()
    recipients: tuple[tuple[Glob, ...], ...] = ()
    rewritten: bool = False


def implies(narrow: Conditions, wide: Conditions, assumed: Assumptions) -> bool:
    """Whether the rule of `wide` applies wherever that of `narrow` does; ignores their sizes."""
    return all(
        _holds(name, globs, narrow, assumed) for name, globs in wide.people.items() if name not in assumed.holds
    ) and _found(narrow.looked_for, wide.looked_for)


def _holds(name: str, globs: tuple[Glob, ...], narrow: Conditions, assumed: Assumptions) -> bool:
    """Whether one condition on people holds wherever the rule of `narrow` applies."""
    if name.startswith(NOT):
        left_out = narrow.people.get(name, ())
        return all(
            _within(name, (glob,), left_out, assumed) or _never(name.removeprefix(NOT), glob, narrow, assumed)
            for glob in globs
        )
    return any(_within(name, each, globs, assumed) for each in _assumed_globs(name, narrow, assumed))


def _assumed_globs(name: str, narrow: Conditions, assumed: Assumptions) -> Iterator[tuple[Glob, ...]]:
    """Sets of patterns, of each of which one fits."""
    if name in narrow.people:
        yield narrow.people[name]
    yield from {"sender": assumed.senders, "recipient": assumed.recipients}.get(name, ())


def _within(name: str, narrow: Collection[Glob], wide: Collection[Glob], assumed: Assumptions) -> bool:
    if name.endswith("login"):
        return all(within(each, wide) for each in narrow)
    return all(address_within(each, wide, assumed.separators) for each in narrow)


def _never(role: str, glob: Glob, narrow: Conditions, assumed: Assumptions) -> bool:
    """Whether nobody fits the pattern surely where the rule of `narrow` applies."""
    if role == "login":
        return any(not any(glob.meets(each) for each in globs) for globs in _assumed_globs(role, narrow, assumed))

    def all_apart(globs: tuple[Glob, ...]) -> bool:
        return all(apart(glob, each, assumed.separators) for each in globs)

    if role == "sender" and assumed.rewritten:
        return not may_be_rewritten(glob, assumed.separators) or any(map(all_apart, assumed.senders))
    if role == "author":  # of several authors one may fit a condition, and another its opposite
        return all_apart(narrow.people["author"]) if "author" in narrow.people else False
    return any(map(all_apart, _assumed_globs(role, narrow, assumed)))


def _found(narrow: LookedFor, wide: LookedFor) -> bool:
    """Whether a message that has what `narrow` looks for also has what `wide` does."""
    return (
        _covered(narrow.tags, wide.tags)
        and (not wide.fields or (bool(narrow.fields) and all(_has_field(each, wide.fields) for each in narrow.fields)))
        and _covered(narrow.types, wide.types)
        and _covered(narrow.names, wide.names)
    )


def _covered(narrow: Collection[Glob], wide: Collection[Glob]) -> bool:
    """Whether each pattern lies within one of the others; type and name are of the same part in either rule."""
    return not wide or (bool(narrow) and all(within(each, wide) for each in narrow))


def _has_field(field: tuple[str, Glob | None], wide: Collection[tuple[str, Glob | None]]) -> bool:
    name, glob = field
    return field in wide or within(
        glob or _ANYTHING, [other or _ANYTHING for other_name, other in wide if other_name == name]
    )


def never_together(one: Conditions, other: Conditions, assumed: Assumptions) -> bool:
    """Whether certainly no mail fits both."""
    return any(
        _exclude(role, one, other, assumed) or _exclude(role, other, one, assumed) for role in ("sender", "recipient")
    )


def _exclude(role: str, one: Conditions, other: Conditions, assumed: Assumptions) -> bool:
    mine = one.people.get(role)
    if mine is None or role in assumed.holds:
        return False
    if role == "sender" and assumed.rewritten:
        return False  # it may stand for several, and for somebody in doubt
    if NOT + role in other.people and _within(role, mine, other.people[NOT + role], assumed):
        return True
    return role in other.people and all(
        apart(glob, each, assumed.separators) for glob in mine for each in other.people[role]
    )


def in_single_texts(conditions: Conditions) -> Iterator[Conditions]:
    """The rule as several that apply where it does: one for each text of the first condition that has several."""
    for name, globs in conditions.people.items():
        if len(globs) > 1 and not name.startswith(NOT):
            yield from (conditions.with_people(**{name: (glob,)}) for glob in globs)
            return
    for name, texts in conditions.looked_for._asdict().items():
        if len(texts) > 1:
            looked_for = conditions.looked_for
            yield from (replace(conditions, looked_for=looked_for._replace(**{name: (text,)})) for text in texts)
            return
