"""What could not be proven safe: the rule, and an example mail.
Standard: if the mail shows that the new set is weaker, it is a difference; else it is unproven.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from datetime import date
from typing import Any

from relay.policy.comparing.differences import Difference, look
from relay.policy.comparing.items import Conditions, Item
from relay.policy.comparing.languages import filled
from relay.policy.comparing.proof import ProofFailure
from relay.policy.comparing.samples import (
    ANY_MESSAGE,
    DOUBTFUL,
    SOMEBODY,
    SampleMessage,
    described,
    joined,
    messages,
    with_size,
)
from relay.policy.comparing.search import RuleScope
from relay.policy.comparing.sides import Side
from relay.policy.decide import PolicySet
from relay.policy.names import parse_address
from relay.policy.patterns import Glob
from relay.policy.people import NULL_SENDER

MAX_CANDIDATES = 4
"""Maximum number of authors, and of logins, tried to show one failure."""


@dataclass(frozen=True, slots=True)
class Unproven:
    """Mail that the new set may treat weaker; neither that nor the opposite could be shown.

    `rule` is the file and line of the old set that no new rule is shown to cover, `why` says what may be weaker.
    `sender`, `recipient` and `message` are an example mail, `day` is the first day on which it may happen.
    """

    rule: str
    recipients: str
    why: str
    sender: str
    recipient: str
    message: str
    day: date | None = None
    kinds: int = 1
    """Number of kinds of recipients with the same result."""

    def as_dict(self) -> dict[str, Any]:
        """JSON's types, with stable names."""
        return {
            "rule": self.rule,
            "recipients": self.recipients,
            "kinds": self.kinds,
            "why": self.why,
            "sender": self.sender,
            "recipient": self.recipient,
            "message": self.message,
            "day": self.day.isoformat() if self.day else None,
        }


@dataclass(frozen=True, slots=True)
class FailedMail:
    """A mail affected by a failure."""

    sender: str
    recipient: str
    message: SampleMessage
    alone: bool = False
    """The recipient is not the representative of a kind."""


def witnesses(failure: ProofFailure, new: Side, recipient: str, separators: str) -> Iterator[FailedMail]:
    """Mails to which the old rule applies, and as few of the new rules as possible."""
    avoided = [text for each in new.raising for text in _texts(each.conditions)]
    some = list(messages(failure.conditions, avoided))[:1] or [ANY_MESSAGE]
    for each in failure.together:
        some += list(messages(each.conditions, avoided))[:1]
    message = joined(some) or some[0]
    if failure.sizes.whole > message.least:
        message = with_size(message, failure.sizes.whole)
    for address in _recipients(failure, new, recipient, separators):
        for sender in _senders(failure):
            for author in _candidates("author", message.author, failure, new, separators):
                for login in _candidates("login", message.login, failure, new, separators):
                    changed = replace(message, author=author, login=login)
                    yield FailedMail(sender, address, changed, address != recipient)


def _recipients(failure: ProofFailure, new: Side, recipient: str, separators: str) -> Iterator[str]:
    """Recipients of the old rule that new ones may not cover: those that rules name, and the kind's representative."""
    people = failure.conditions.people
    asked = RuleScope(people.get("recipient"), people.get("not_recipient", ()))
    named = [people.get("recipient", ())]
    named += [each.conditions.people.get("not_recipient", ()) for each in new.raising]
    candidates: dict[str, None] = {}
    for text in (filled(glob) for globs in named for glob in globs):
        for address in (text, f"{text.rpartition('@')[0]}@{recipient.rpartition('@')[2]}"):
            if len(candidates) < MAX_CANDIDATES and _is_address(address) and asked.is_one(address, separators):
                candidates[address] = None
    yield from candidates
    yield recipient


def _candidates(role: str, first: str, failure: ProofFailure, new: Side, separators: str) -> Iterator[str]:
    """People the old rule may apply to, and new ones may not: those that new rules name."""
    people = failure.conditions.people
    asked = RuleScope(people.get(role), people.get(f"not_{role}", ()))
    named = (
        glob for each in new.raising for name in (role, f"not_{role}") for glob in each.conditions.people.get(name, ())
    )
    candidates = dict.fromkeys([first])
    for glob in named:
        text = filled(glob)
        fits = asked.is_one(text, separators) if role == "author" else _is_login(text, asked)
        if fits and len(candidates) < MAX_CANDIDATES and (role == "login" or _is_address(text)):
            candidates[text] = None
    yield from candidates


def _is_login(text: str, scope: RuleScope) -> bool:
    fits = scope.fits is None or any(glob.matches(text) for glob in scope.fits)
    return fits and not any(glob.matches(text) for glob in scope.misses) and text != NULL_SENDER


def _senders(failure: ProofFailure) -> Iterator[str]:
    if failure.case == "null sender":
        yield ""
    elif failure.case == "sender in doubt":
        yield DOUBTFUL
    elif failure.case == "rewritten sender":
        for glob in failure.conditions.people.get("sender", (Glob.of(SOMEBODY),))[:1]:
            local, _, domain = filled(glob).rpartition("@")
            outer = (failure.sender or "relay.invalid").rpartition("@")[2]
            yield f"SRS0=abcd=ef={domain}={local}@{outer}"
    else:
        if failure.sender is not None:
            yield failure.sender
        yield from (filled(glob) for glob in failure.conditions.people.get("sender", ())[:1])
        yield SOMEBODY


def _texts(conditions: Conditions) -> Iterator[str]:
    tags, fields, types, names = conditions.looked_for
    for globs in (tags, types, names, [glob for _, glob in fields if glob is not None]):
        yield from map(str, globs)


def _is_address(text: str) -> bool:
    try:
        parse_address(text)
    except ValueError:
        return False
    return True


def shown_by(old: PolicySet, new: PolicySet, witness: FailedMail, called: str, day: date | None) -> Difference | None:
    """The difference that a mail shows, if the new set treats it weaker."""
    mail = described(witness.message, witness.message.least)
    for each in look(old, new, witness.sender, witness.recipient, [mail]):
        sender = witness.sender or NULL_SENDER
        message = witness.message.called if day is None else f"{witness.message.called}, from {day} on"
        recipients = witness.recipient if witness.alone else called
        shown = (each.before, each.after, each.changed, each.direction)
        difference = Difference(recipients, sender, message, *shown, sender, witness.alone, each.sample)
        if difference.weaker:
            return difference
    return None


def unproven(failure: ProofFailure, witness: FailedMail, where: str, called: str, day: date | None) -> Unproven:
    """The report of a failure that no mail shows."""
    sender = witness.sender or NULL_SENDER
    return Unproven(where, called, failure.why, sender, witness.recipient, witness.message.called, day)


def placed(item: Item | None) -> str:
    """Returns the place of a floor, "" for what stands in a file."""
    return f"{item.rule.source}:{item.rule.line}" if item is not None and item.rule.source else ""
