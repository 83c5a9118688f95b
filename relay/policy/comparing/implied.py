"""Whether one rule applies to every mail to which another one applies, condition by condition.
Standard: policies/README.md; "yes" is proven, whatever is in doubt about the mail; "no" may be "not shown".

What is in doubt fits all patterns of a kind (a sender, the authors, a header field, the parts). So of a rule that needs
one kind, nothing follows for another kind. Within a kind, containment is enough for those in doubt as well.
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
class Known:
    """What is known of a mail beside the conditions of one rule.

    `holds` are conditions that hold for every rule. `senders` are sets of patterns, of each of which one fits the
    envelope sender; `recipients` the same of the recipient. `rewritten` says that the sender may stand for others, and
    for somebody in doubt. A rule may be meant for these then; `senders` are still about the address as it is.
    """

    separators: str
    holds: frozenset[str] = frozenset()
    senders: tuple[tuple[Glob, ...], ...] = ()
    recipients: tuple[tuple[Glob, ...], ...] = ()
    rewritten: bool = False


def implies(narrow: Conditions, wide: Conditions, known: Known) -> bool:
    """Whether the rule of `wide` applies wherever that of `narrow` does; their sizes are not looked at."""
    return all(
        _holds(name, globs, narrow, known) for name, globs in wide.people.items() if name not in known.holds
    ) and _found(narrow.looked_for, wide.looked_for)


def _holds(name: str, globs: tuple[Glob, ...], narrow: Conditions, known: Known) -> bool:
    """Whether one condition on people holds wherever the rule of `narrow` applies."""
    if name.startswith(NOT):
        left_out = narrow.people.get(name, ())
        return all(
            _within(name, (glob,), left_out, known) or _never(name.removeprefix(NOT), glob, narrow, known)
            for glob in globs
        )
    return any(_within(name, each, globs, known) for each in _known(name, narrow, known))


def _known(name: str, narrow: Conditions, known: Known) -> Iterator[tuple[Glob, ...]]:
    """Sets of patterns, of each of which one fits."""
    if name in narrow.people:
        yield narrow.people[name]
    yield from {"sender": known.senders, "recipient": known.recipients}.get(name, ())


def _within(name: str, narrow: Collection[Glob], wide: Collection[Glob], known: Known) -> bool:
    if name.endswith("login"):
        return all(within(each, wide) for each in narrow)
    return all(address_within(each, wide, known.separators) for each in narrow)


def _never(who: str, glob: Glob, narrow: Conditions, known: Known) -> bool:
    """Whether nobody fits the pattern surely where the rule of `narrow` applies."""
    if who == "login":
        return any(not any(glob.meets(each) for each in some) for some in _known(who, narrow, known))

    def all_apart(some: tuple[Glob, ...]) -> bool:
        return all(apart(glob, each, known.separators) for each in some)

    if who == "sender" and known.rewritten:
        return not may_be_rewritten(glob, known.separators) or any(map(all_apart, known.senders))
    if who == "author":  # of several authors one may fit a condition, and another its opposite
        return all_apart(narrow.people["author"]) if "author" in narrow.people else False
    return any(map(all_apart, _known(who, narrow, known)))


def _found(narrow: LookedFor, wide: LookedFor) -> bool:
    """Whether a message has what one rule looks for if it has what another one does."""
    return (
        (not wide.tags or (bool(narrow.tags) and all(any(tag in each for tag in wide.tags) for each in narrow.tags)))
        and (not wide.fields or (bool(narrow.fields) and all(_has_field(each, wide.fields) for each in narrow.fields)))
        and _covered(narrow.types, wide.types)
        and _covered(narrow.names, wide.names)
    )


def _covered(narrow: Collection[Glob], wide: Collection[Glob]) -> bool:
    """Of the parts of a message: the same part has type and name, in either rule."""
    return not wide or (bool(narrow) and all(within(each, wide) for each in narrow))


def _has_field(field: tuple[str, Glob | None], wide: Collection[tuple[str, Glob | None]]) -> bool:
    name, glob = field
    return field in wide or within(
        glob or _ANYTHING, [other or _ANYTHING for other_name, other in wide if other_name == name]
    )


def never_together(one: Conditions, other: Conditions, known: Known) -> bool:
    """Whether it is sure that no mail fits both."""
    return any(_exclude(who, one, other, known) or _exclude(who, other, one, known) for who in ("sender", "recipient"))


def _exclude(who: str, one: Conditions, other: Conditions, known: Known) -> bool:
    mine = one.people.get(who)
    if mine is None or who in known.holds:
        return False
    if who == "sender" and known.rewritten:
        return False  # it may stand for several, and for somebody in doubt
    if NOT + who in other.people and _within(who, mine, other.people[NOT + who], known):
        return True
    return who in other.people and all(
        apart(glob, each, known.separators) for glob in mine for each in other.people[who]
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
