"""The conditions of a rule on people: who sends a mail, by envelope, From or login, and to whom.
Standard: policies/README.md; a person in doubt may be anybody, so every such condition may hold.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

from pydantic import PrivateAttr, ValidationInfo, field_validator, model_validator

from relay.policy.content import MessageFacts
from relay.policy.patterns import AddressPatterns, Groups
from relay.policy.people import NULL_SENDER, Fit, Reading, read_authors, read_login
from relay.policy.settings import SealingSettings
from relay.policy.units import Texts

NOT = "not_"
"""Prefix of the name of an opposite condition."""
ON_RECIPIENTS = ("recipient", "not_recipient")
ON_PEOPLE = ("sender", "not_sender", *ON_RECIPIENTS)


class MailFacts(NamedTuple):
    """The facts of one mail for rules; `content` is None before the message is received."""

    sender: Reading
    content: MessageFacts | None
    groups: Groups
    tag_separators: str

    @property
    def senders(self) -> tuple[Reading, ...]:
        """Everybody who sends the mail: the envelope's sender, the authors in From, and the login, if there is one."""
        if self.content is None:
            return (self.sender,)
        content = self.content
        authors = content.once(
            ("authors", self.tag_separators), lambda: read_authors(content.authors, self.tag_separators)
        )
        return self.sender, *authors, *([read_login(content.login)] if content.login != "" else ())

    @property
    def why_in_doubt(self) -> str:
        """Why somebody may be meant by a pattern that does not surely fit."""
        if self.sender.doubt:
            return "the sender is in doubt"
        if self.content is not None and self.content.authors is None:
            return self.content.doubt("From")
        if any(each.doubt for each in self.senders if not each.login):
            return "From is in doubt (it names nobody, or somebody who may be anybody)"
        return "the sender may stand for another" if self.sender.within else "the login is not known"


class _PersonCondition(NamedTuple):
    """One condition on people; `why_not` is the reason given if it does not hold."""

    role: str
    patterns: AddressPatterns
    opposite: bool
    why_not: str

    @classmethod
    def of(cls, name: str, patterns: AddressPatterns) -> _PersonCondition:
        role, opposite = name.removeprefix(NOT), name.startswith(NOT)
        return cls(role, patterns, opposite, f"the {role} is {'' if opposite else 'not '}{patterns.said}")

    def fit(self, people: tuple[Reading, ...], groups: Groups) -> Fit:
        """How surely it holds; of several people one is enough, also for the opposite.

        A login that is not known counts only where users are named.
        """
        known = (each for each in people if self.patterns.users or not (each.login and each.doubt))
        fit = self.patterns.lack if self.opposite else self.patterns.fit
        return max((fit(each, groups) for each in known), default=Fit.NOT)


class PeopleConditions(SealingSettings):
    """The conditions on people that a rule may have; a floor has more of them."""

    sender: Texts | None = None
    not_sender: Texts | None = None

    _people: Mapping[str, AddressPatterns] = PrivateAttr({})
    _of_mail: tuple[_PersonCondition, ...] = PrivateAttr(())
    _of_recipient: tuple[_PersonCondition, ...] = PrivateAttr(())

    @field_validator(*ON_PEOPLE, check_fields=False)
    @classmethod
    def _can_be_compared(cls, texts: tuple[str, ...], info: ValidationInfo) -> tuple[str, ...]:
        patterns = AddressPatterns.of(texts, logins=info.field_name not in ON_RECIPIENTS)
        if info.field_name == "not_sender" and not (patterns.globs or patterns.groups):
            raise ValueError("names of users alone leave nobody out; name the addresses from which they send as well")
        if info.field_name in ON_RECIPIENTS and NULL_SENDER in texts:
            raise ValueError(f"{NULL_SENDER!r} is the null sender, and no recipient; leave it out")
        return texts

    @model_validator(mode="after")
    def _read_patterns(self) -> PeopleConditions:
        lists = ((name, getattr(self, name, None)) for name in ON_PEOPLE)
        self._people = {
            name: AddressPatterns.of(texts, logins=name not in ON_RECIPIENTS) for name, texts in lists if texts
        }
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
        """How surely all conditions hold but those on recipients; which one does not, or is in doubt."""
        fit, doubt = Fit.SURELY, ""
        for each in self._of_mail:
            one = each.fit(asked.senders, asked.groups)
            if one is Fit.NOT:
                return one, each.why_not
            if one is Fit.MAYBE:
                fit, doubt = one, doubt or asked.why_in_doubt
        return fit, doubt

    def recipient_fit(self, recipient: Reading, groups: Groups) -> tuple[Fit, str]:
        """The same for conditions on recipients, which only floors have."""
        worst = Fit.SURELY
        for each in self._of_recipient:
            if (one := each.fit((recipient,), groups)) is Fit.NOT:
                return Fit.NOT, each.why_not
            worst = min(worst, one)
        return worst, "the recipient may be a route" if worst is Fit.MAYBE else ""
