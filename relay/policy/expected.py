"""tests.toml: tests of the policies, run before a set comes into force.
Standard: policies/README.md; a test checks the policies alone, and assumes that all keys are available.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

from pydantic import BeforeValidator, Field, field_validator

from relay.config import SizeSetting
from relay.errors import RelayError, TryLater
from relay.files import toml
from relay.levels import LevelName
from relay.policy.content import MessageFacts
from relay.policy.decide import Decision, PolicySet
from relay.policy.names import parse_address, printable
from relay.policy.people import NULL_SENDER
from relay.policy.settings import Otherwise, Priority, parse_otherwise, today
from relay.policy.site import SiteFacts
from relay.policy.strength import parse_levels
from relay.policy.units import Day, Texts, list_as_tuple

MAX_TESTS = 10_000
NOBODY = "mailer-daemon@localhost.invalid"
"""The From address of a bounce that a test describes."""

Expectation = tuple[LevelName, ...] | Literal["held", "refused"]
"""The levels that are tried, in order, or the outcome for mail that gets none."""


def _expectation(value: object) -> Expectation:
    if value == "held":
        return "held"
    if value == "refused":
        return "refused"
    if value in ("hold", "refuse"):
        raise ValueError('write "held" or "refused"')
    return parse_levels(value if isinstance(value, list) else [value])


def _address(text: str) -> str:
    parse_address(text)
    return text


class Test(toml.Table):
    """One mail and the expected decision. Facts left out are absent, or do not matter."""

    elsewhere: ClassVar[Mapping[str, str]] = {
        "from": "the envelope's is called sender, the field's author", "to": "it is called recipient",
        "levels": "it is called expect",
    }  # fmt: skip

    sender: str
    recipient: Annotated[str, BeforeValidator(_address)]
    author: str | None = None
    login: str | None = None
    subject: str = ""
    header: Texts = ()
    attachments: Texts = ()
    size: SizeSetting | None = None
    expect: Annotated[Expectation, BeforeValidator(_expectation)]
    peer: str | None = None
    file: str | None = None
    otherwise: Annotated[Otherwise | None, BeforeValidator(parse_otherwise)] = None
    priority: Priority | None = None
    until: Day | None = None

    @field_validator("sender")
    @classmethod
    def _sender_is_an_address(cls, text: str) -> str:
        return "" if text == NULL_SENDER else _address(text)

    @field_validator("author", "login", "subject", "header", "attachments")
    @classmethod
    def _one_line_each(cls, value: str | tuple[str, ...] | None) -> str | tuple[str, ...] | None:
        texts = [value] if isinstance(value, str) else value or ()
        if any("\r" in text or "\n" in text or '"' in text for text in texts):
            raise ValueError("write it without quotes in it and without line ends")
        return value

    @field_validator("header")
    @classmethod
    def _fields_have_values(cls, texts: tuple[str, ...]) -> tuple[str, ...]:
        if not all(":" in text for text in texts):
            raise ValueError('write each field as "Name: value"')
        return texts

    def content(self, site: SiteFacts) -> MessageFacts:
        """A message with these facts; without an author its sender is the author."""
        named = any(field.partition(":")[0].strip().lower() == "from" for field in self.header)
        fields = self.header if named and self.author is None else (_from(self.author or self.sender), *self.header)
        return DescribedMessage(self.subject, fields, self.attachments, self.size, login_of(self.login, site))


class Tests(toml.Table):
    """The whole file."""

    test: Annotated[tuple[Test, ...], BeforeValidator(list_as_tuple), Field(max_length=MAX_TESTS)]


def login_of(said: str | None, site: SiteFacts) -> str | None:
    """The login of a mail that is described, as MessageFacts has it: `"<>"` is nobody.

    Left out, it is nobody where each listener is told, and else not known, as for the relay.
    """
    if said is None:
        return "" if site.logins_known else None
    return "" if said == NULL_SENDER else said


def _from(author: str) -> str:
    return f"From: {author or NOBODY}"


class DescribedMessage(MessageFacts):
    """A synthetic message with the facts that rules need; its size may be any number."""

    @classmethod
    def small(cls, sender: str, login: str | None) -> DescribedMessage:
        """What a test is about that says who sends, and nothing else."""
        return cls("", (_from(sender),), login=login)

    def __init__(
        self,
        subject: str,
        fields: tuple[str, ...] = (),
        attachments: tuple[str, ...] = (),
        size: int | None = None,
        login: str | None = "",
    ) -> None:
        """`fields` are `Name: value`, `attachments` are file names."""
        lines = [f"Subject: {subject}", *fields, "MIME-Version: 1.0"]
        if attachments:
            lines += ['Content-Type: multipart/mixed; boundary="="', ""]
            for name in attachments:
                kind = "Content-Type: application/octet-stream"
                lines += ["--=", kind, f'Content-Disposition: attachment; filename="{name}"', "", ""]
            lines += ["--=--"]
        super().__init__("\r\n".join([*lines, "", ""]).encode("utf-8", "surrogateescape"), login)
        self._octets = len(self.message) if size is None else size

    @property
    def size(self) -> int:
        """Bytes, as described."""
        return self._octets


@dataclass(frozen=True, slots=True)
class Expected:
    """One test: `where` is its file and line."""

    where: str
    test: Test

    def failure(self, policies: PolicySet) -> str:
        """The mismatch as one line with file and line number, or ""."""
        test = self.test
        if test.until is not None and test.until < today():
            return ""
        outcome, decision, because = becomes(policies, test.sender, test.recipient, test.content(policies.site))
        faults = [] if outcome == test.expect else [f"expected {shown(test.expect)}, and it is {shown(outcome)}"]
        for name, expected in (("peer", test.peer), ("file", test.file), *_settings(test)):
            if expected is not None and (actual := _actual(policies, decision, name)) != expected:
                faults.append(f"expected {name} {expected!r}, and it is {actual!r}")
        if not faults:
            return ""
        return printable(f"{self.where}: {_mail(test)}: {'; '.join(faults)} ({because})")


def _mail(test: Test) -> str:
    """The mail of a test, for a person: tests in one line of the file differ by this alone."""
    facts: list[str] = [
        *(f"{name} {value}" for name in ("author", "login", "subject") if (value := getattr(test, name))),
        *test.header,
        *test.attachments,
    ]
    more = f" ({', '.join(facts)})" if facts else ""
    return f"mail from {test.sender or NULL_SENDER} to {test.recipient}{more}"


def becomes(
    policies: PolicySet, sender: str, recipient: str, content: MessageFacts
) -> tuple[Expectation, Decision | None, str]:
    """The outcome of policy alone for a mail, the decision if any, and the file that decided or why none did."""
    try:
        decision = policies.decide(sender, recipient, content)
    except RelayError as error:
        return "held" if isinstance(error, TryLater) else "refused", None, str(error)
    size = content.sealed_size
    levels = tuple(level for level in decision.levels if not decision.too_big(level, size))
    if decision.hopeless(size):
        return "refused", decision, f"decided by {decision.where}"
    doubt = f"; {decision.doubt}" if decision.doubt is not None else ""
    return levels, decision, f"decided by {decision.where}{doubt}"


def read_tests(text: str, source: str) -> tuple[Expected, ...]:
    """The tests of a tests.toml. Raises ConfigError."""
    tests = toml.parse(text, Tests, source=source).test
    lines = (toml.line_of(text, ("test", number)) or 1 for number in range(len(tests)))
    return tuple(Expected(f"{source}:{line}", test) for line, test in zip(lines, tests, strict=True))


def failures(tests: tuple[Expected, ...], policies: PolicySet) -> list[str]:
    """A line for each test that fails."""
    return [failure for each in tests if (failure := each.failure(policies))]


def shown(expectation: Expectation) -> str:
    """Formats the expectation for a person."""
    return expectation if isinstance(expectation, str) else ", then ".join(expectation)


def _settings(test: Test) -> tuple[tuple[str, str | None], ...]:
    return ("otherwise", test.otherwise), ("priority", test.priority)


def _actual(policies: PolicySet, decision: Decision | None, name: str) -> str | None:
    if decision is None:
        return None
    if name == "file":
        return decision.source.removeprefix(printable(f"{policies.directory}/"))
    return str(getattr(decision, name)) if getattr(decision, name) is not None else None
