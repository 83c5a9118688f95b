"""The conditions of a rule on people: who sends a mail, who stands in From, who has logged in; and their opposites.
Standard: policies/README.md; who cannot be read beyond doubt may be anybody, so that every such condition may hold.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import NamedTuple

from pydantic import PrivateAttr, ValidationInfo, field_validator, model_validator

from relay.policy.content import MessageFacts
from relay.policy.patterns import AddressPatterns, Groups
from relay.policy.people import Fit, Reading, read_authors, read_login
from relay.policy.settings import SealingSettings
from relay.policy.units import Texts

NOT = "not_"
"""What the name of an opposite condition begins with."""
ON_RECIPIENTS = ("recipient", "not_recipient")
ON_PEOPLE = ("sender", "not_sender", "author", "not_author", "login", "not_login", *ON_RECIPIENTS)
BY_ENVELOPE = frozenset({"sender", "not_sender", *ON_RECIPIENTS})
"""Conditions that the envelope alone answers."""


class MailFacts(NamedTuple):
    """One mail as rules are asked about it; `content` is None while the message has not come."""

    sender: Reading
    content: MessageFacts | None
    groups: Groups
    tag_separators: str

    def people(self, who: str) -> tuple[Reading, ...]:
        """Whom conditions on the sender, author or login are about; nobody if only the message decides."""
        if who == "sender":
            return (self.sender,)
        if self.content is None:
            return ()
        if who == "login":
            return (read_login(self.content.login),)
        content = self.content
        return content.once(
            ("authors", self.tag_separators), lambda: read_authors(content.authors, self.tag_separators)
        )


class _PersonCondition(NamedTuple):
    """One condition on people, as it is asked again and again; `why_not` says so where it does not hold."""

    who: str
    patterns: AddressPatterns
    opposite: bool
    why_not: str

    @classmethod
    def of(cls, name: str, patterns: AddressPatterns) -> _PersonCondition:
        who, opposite = name.removeprefix(NOT), name.startswith(NOT)
        return cls(who, patterns, opposite, f"the {who} is {'' if opposite else 'not '}{patterns.said}")

    def fit(self, people: tuple[Reading, ...], groups: Groups) -> Fit:
        """How far it holds: of several people one is enough, for the opposite as well."""
        fits = [self.patterns.fit(each, groups) for each in people]
        return max([each.negated for each in fits] if self.opposite else fits, default=Fit.NOT)


class PeopleConditions(SealingSettings):
    """The conditions on people that a rule may have; a floor has more of them."""

    sender: Texts | None = None
    not_sender: Texts | None = None
    author: Texts | None = None
    not_author: Texts | None = None
    login: Texts | None = None
    not_login: Texts | None = None

    _people: Mapping[str, AddressPatterns] = PrivateAttr({})
    _of_mail: tuple[_PersonCondition, ...] = PrivateAttr(())
    _of_recipient: tuple[_PersonCondition, ...] = PrivateAttr(())

    @field_validator("sender", "not_sender", "author", "not_author", "login", "not_login")
    @classmethod
    def _can_be_compared(cls, texts: tuple[str, ...], info: ValidationInfo) -> tuple[str, ...]:
        _patterns(str(info.field_name), texts)
        return texts

    @model_validator(mode="after")
    def _read_patterns(self) -> PeopleConditions:
        said = ((name, getattr(self, name, None)) for name in ON_PEOPLE)
        self._people = {name: _patterns(name, texts) for name, texts in said if texts}
        each = {name: _PersonCondition.of(name, patterns) for name, patterns in self._people.items()}
        self._of_mail = tuple(condition for name, condition in each.items() if name not in ON_RECIPIENTS)
        self._of_recipient = tuple(condition for name, condition in each.items() if name in ON_RECIPIENTS)
        return self

    @property
    def people(self) -> Mapping[str, AddressPatterns]:
        """The patterns of each condition on people that this rule has."""
        return self._people

    @property
    def groups(self) -> tuple[str, ...]:
        """The groups that its patterns name."""
        return tuple(group for patterns in self._people.values() for group in patterns.groups)

    def people_fit(self, asked: MailFacts) -> tuple[Fit, str]:
        """How far all of these conditions hold but those on recipients; and which does not, if one does not."""
        fit = Fit.SURELY
        for each in self._of_mail:
            one = each.fit(asked.people(each.who), asked.groups)
            if one is Fit.NOT:
                return one, each.why_not
            fit = one if one is Fit.MAYBE else fit
        return fit, ""

    def recipient_fit(self, recipient: Reading, groups: Groups) -> tuple[Fit, str]:
        """The same of those on recipients, which only floors have: a file's rules are for whom the file covers."""
        for each in self._of_recipient:
            if each.fit((recipient,), groups) is Fit.NOT:
                return Fit.NOT, each.why_not
        return Fit.SURELY, ""


def _patterns(name: str, texts: Iterable[str]) -> AddressPatterns:
    """Raises ValueError saying how to write what is wrong."""
    return AddressPatterns.of_logins(texts) if name.endswith("login") else AddressPatterns.of(texts)
