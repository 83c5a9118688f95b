"""What tests.toml expects, compared between two sets: no test may be taken out or expect less.
Standard: policies/README.md, "Tests". A test is about a mail; another one about the same mail may take its place.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from datetime import date

from relay.policy.comparing.differences import Difference
from relay.policy.expected import Expectation, Expected, Test, shown
from relay.policy.people import NULL_SENDER
from relay.policy.settings import today
from relay.policy.strength import never_weaker

_EXPECTED = frozenset({"expect", "peer", "file", "otherwise", "priority", "until"})
_MAIL = tuple(name for name in Test.model_fields if name not in _EXPECTED)
"""What a test says of the mail that it is about."""
_STATED = ("peer", "file", "otherwise", "priority")
"""Further expectations; none of their values is weaker than another."""


def weakened_tests(old: Sequence[Expected], new: Sequence[Expected]) -> Iterator[Difference]:
    """The tests in effect in the old set that are gone or expect less in the new one."""
    after: dict[object, list[Test]] = {}
    for each in new:
        after.setdefault(_mail(each.test), []).append(each.test)
    for each in old:
        test = each.test
        if test.until is not None and test.until < today():
            continue
        others = after.get(_mail(test), [])
        if all(_less(test, other) for other in others):
            loss = _less(test, others[0]) if others else "it is gone"
            sender = test.sender or NULL_SENDER
            changed = (f"the test in {each.where.rpartition('/')[2]}: {loss}",)
            yield Difference(test.recipient, sender, "tests", changed, "down")


def _mail(test: Test) -> object:
    return tuple(getattr(test, name) for name in _MAIL)


def _less(old: Test, new: Test) -> str:
    """What the new test no longer expects of the same mail, or ""."""
    if (new.until or date.max) < (old.until or date.max):
        return f"until: {new.until} instead of {old.until or 'none'}"
    if isinstance(new.expect, str):  # nothing leaves: more cannot be expected
        return ""
    if not _as_much(old.expect, new.expect):
        return f"expect: {shown(new.expect)} instead of {shown(old.expect)}"
    for name in _STATED:
        if getattr(old, name) is not None and getattr(new, name) is None:
            return f"{name}: any instead of {getattr(old, name)}"
    return ""


def _as_much(old: Expectation, new: Expectation) -> bool:
    return not isinstance(old, str) and not isinstance(new, str) and never_weaker(new, old)
