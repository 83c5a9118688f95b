"""One [[when]] table: its conditions, and what it raises.
Standard: policies/README.md; all conditions of a rule must hold; one text of a list is enough.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Annotated, Any, ClassVar, NamedTuple

from pydantic import BeforeValidator, Field, PrivateAttr, ValidationInfo, field_validator, model_validator

from relay.levels import ONLY_PLAINTEXT
from relay.policy.conditions import ON_PEOPLE, ON_RECIPIENTS, MailFacts, PeopleConditions
from relay.policy.content import ATTACHMENTS, MessageFacts, text_of
from relay.policy.patterns import Glob, listed
from relay.policy.people import Fit
from relay.policy.settings import SealingSettings
from relay.policy.texts import plain
from relay.policy.units import Texts, list_as_tuple

_FIELD_NAME = re.compile(r"[!-)+-9;-~]+")
"""RFC 5322, 3.6.8, without the star, which stands for anything and would be no part of the name."""


def _field_pattern(text: str) -> tuple[str, Glob | None]:
    """The name and value pattern of `"X-Secret"` (the field exists) or `"X-Secret: yes*"` (with this value)."""
    name, colon, value = text.partition(":")
    if not _FIELD_NAME.fullmatch(name.strip()):
        raise ValueError(f'{text!r}: write a field name, or "Name: value" with * where anything may stand in the value')
    return name.strip().lower(), Glob.of(plain(value)) if colon else None


def _tag_pattern(text: str) -> Glob:
    """The pattern of a text that may stand anywhere."""
    if not plain(text).replace("*", "").strip():
        raise _unseen(text)
    return Glob.of(f"*{plain(text)}*")


def _name_pattern(text: str) -> Glob:
    if not plain(text):
        raise _unseen(text)
    return Glob.of(plain(text))


def _unseen(text: str) -> ValueError:
    return ValueError(f"{text!r} has no character that can be seen, so that all mail would fit")


class LookedFor(NamedTuple):
    """What a rule looks for in a message, in comparable form: one of each non-empty list must be present."""

    tags: tuple[Glob, ...] = ()
    fields: tuple[tuple[str, Glob | None], ...] = ()
    names: tuple[Glob, ...] = ()


_READ: Mapping[str, Callable[[str], Any]] = {
    "subject_tag": _tag_pattern,
    "header": _field_pattern,
    "attachment_name": _name_pattern,
}
"""How the texts of each condition are read, in the order of LookedFor."""


class When(PeopleConditions):
    """One rule. It only raises what holds without it."""

    elsewhere: ClassVar[Mapping[str, str]] = {
        "recipient": "a rule is for the recipients of its file; a [[floor]] in floors.toml has this condition",
        "not_recipient": "a rule is for the recipients of its file; a [[floor]] in floors.toml has this condition",
        "login": 'write sender = "login:NAME"',
    } | dict.fromkeys(
        ("peer", "max_size", "subdomains", "require", "unprotected", "reason"),
        "this is for the file, and stands above its first [[when]]",
    )

    subject_tag: Texts | None = None
    header: Texts | None = None
    attachment_name: Texts | None = None

    _looked_for: LookedFor = PrivateAttr(LookedFor())
    _patterns: int = PrivateAttr(0)

    @field_validator(*_READ)
    @classmethod
    def _texts_can_be_compared(cls, texts: tuple[str, ...], info: ValidationInfo) -> tuple[str, ...]:
        for text in texts:
            _READ[info.field_name or ""](text)
        return texts

    @model_validator(mode="after")
    def _says_something(self) -> When:
        if not self.conditions:
            raise ValueError(f"a rule needs a condition: {', '.join(CONDITIONS)}")
        if not self.model_fields_set - {*self.conditions, *NO_CHANGE}:
            raise ValueError("a rule needs a setting that it changes, for instance levels")
        if self.levels == ONLY_PLAINTEXT:
            raise ValueError('a rule only raises, and "plaintext" is the lowest level; decide in the recipient\'s file')
        if self.priority == "low":
            raise ValueError('a rule only raises, and priority = "low" is the lowest; leave it out')
        self._looked_for = LookedFor(*(tuple(map(read, getattr(self, name) or ())) for name, read in _READ.items()))
        self._patterns = sum(len(getattr(self, name)) for name in self.conditions if name not in ON_RECIPIENTS)
        return self

    @property
    def conditions(self) -> tuple[str, ...]:
        """The names of this rule's conditions."""
        return tuple(name for name in CONDITIONS if getattr(self, name) is not None)

    @property
    def looks_inside(self) -> bool:
        """Whether it looks into the message, beyond the envelope."""
        return self._patterns > 0

    @property
    def patterns(self) -> int:
        """The number of texts that are compared with the message."""
        return self._patterns

    @property
    def looked_for(self) -> LookedFor:
        """The texts that it looks for in the message."""
        return self._looked_for

    def fit(self, asked: MailFacts) -> tuple[Fit, str]:
        """How surely the rule applies to a mail, that is its weakest condition; why it does not, or what is in doubt.

        Without content people are those of the envelope, and no other condition on the message fits. Conditions on
        recipients are not checked.
        """
        if why := self.not_now:
            return Fit.NOT, why
        if asked.content is None and not set(ON_PEOPLE).issuperset(self.conditions):
            return Fit.NOT, "it looks into the message, and there is none"
        fit, doubt = self.people_fit(asked)
        for content_doubt, why in self._content_fits(asked.content) if fit and asked.content is not None else ():
            if content_doubt is None:
                return Fit.NOT, why
            if content_doubt:
                fit, doubt = Fit.MAYBE, doubt or content_doubt
        return fit, doubt

    def _content_fits(self, content: MessageFacts) -> Iterator[tuple[str | None, str]]:
        """For each condition on the message what is in doubt, "" if it surely holds, None if not; and why not."""
        looked_for = self._looked_for
        if looked_for.tags:
            tags = [("subject", tag) for tag in looked_for.tags]
            yield _has_field(content, tags), f"the subject does not have {listed(self.subject_tag or ())}"
        if looked_for.fields:
            yield _has_field(content, looked_for.fields), f"no header field is {listed(self.header or ())}"
        if looked_for.names:
            yield _has_file(content, looked_for.names), f"no attachment is {listed(self.attachment_name or ())}"


NO_CHANGE = ("until",)
"""Settings of a rule that change nothing by themselves."""
CONDITIONS = tuple(name for name in When.model_fields if name not in SealingSettings.model_fields)
"""The names of all conditions, in the order in which they are documented."""


def _has_field(content: MessageFacts, wanted: Iterable[tuple[str, Glob | None]]) -> str | None:
    """Whether the message has one of these fields: "" if so, None if not, else what is in doubt."""
    doubt = None
    for name, glob in wanted:
        values = content.values(name)
        if values is None:
            doubt = doubt or content.doubt(text_of(name))
        elif values and (glob is None or any(glob.matches(value) for value in values)):
            return ""
    return doubt


def _has_file(content: MessageFacts, wanted: Iterable[Glob]) -> str | None:
    """Whether an attachment has one of these names: "" if so, None if not, else what is in doubt.

    Avoids comparing thousands of patterns with hundreds of names, which a sender chooses.
    """
    if (names := content.names) is None:
        return content.doubt(ATTACHMENTS)
    possible = [glob for glob in wanted if glob.occurs_in(content.all_names)]
    return "" if any(glob.matches(name) for glob in possible for name in names) else None


class PlacedRule(NamedTuple):
    """A rule, its location, and its number there; 1 is the first."""

    when: When
    source: str
    line: int
    number: int


Rules = Annotated[tuple[When, ...], BeforeValidator(list_as_tuple), Field(max_length=1000)]
