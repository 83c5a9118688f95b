"""Sample mails: one for each text of each condition, and those to which two rules apply at once.
Standard: policies/README.md; a sample shows a difference, it proves nothing.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from datetime import date
from functools import lru_cache
from itertools import combinations

from relay.policy.comparing.items import Conditions
from relay.policy.comparing.languages import filled, guessed
from relay.policy.comparing.search import RuleScope
from relay.policy.expected import DescribedMessage
from relay.policy.patterns import Glob
from relay.policy.people import NULL_SENDER
from relay.policy.settings import today

SOMEBODY = "anybody@elsewhere.invalid"
"""Sender and author that no rule looks for."""
DOUBTFUL = "any%body@elsewhere.invalid"
"""A sender in doubt."""
MAX_IN_PAIRS = 40
"""Maximum number of rules or patterns that are tried in pairs."""
_LETTERS = "xqzjkvwyufgbdhmlpcnroiteasQ0123456789"


@dataclass(frozen=True, slots=True)
class SampleMessage:
    """The facts for a `DescribedMessage`, a name, and the sizes in bytes that rules ask for."""

    called: str
    author: str = SOMEBODY
    login: str = ""
    subject: str = ""
    fields: tuple[str, ...] = ()
    attachments: tuple[str, ...] = ()
    least: int = 1
    most: int | None = None

    def of_sizes(self, sizes: Iterable[int]) -> list[int]:
        """The smallest possible size, and those of `sizes` that are possible too."""
        return [self.least, *(each for each in sizes if self.least < each and (self.most is None or each <= self.most))]


def described(message: SampleMessage, size: int) -> DescribedMessage:
    """The message with this size in bytes; cached for one day."""
    return _described(message, size, today())


@lru_cache(maxsize=2000)
def _described(message: SampleMessage, size: int, day: date) -> DescribedMessage:
    """Decisions are cached in the message, and may differ on another day."""
    named = any(each.partition(":")[0].strip().lower() == "from" for each in message.fields)
    fields = message.fields if named else (f"From: {message.author}", *message.fields)
    return DescribedMessage(message.subject, fields, message.attachments, size, message.login)


ANY_MESSAGE = SampleMessage("any")


def messages(conditions: Conditions, avoided: Collection[str] = ()) -> Iterator[SampleMessage]:
    """A message for each text of each condition, with the first text of every other condition.

    Stars are filled with a letter that is in none of the texts `avoided`, if there is one.
    """
    letter = next((each for each in _LETTERS if not any(each in text for text in avoided)), "x")
    tags, fields, types, names = conditions.looked_for
    authors, logins = (conditions.people.get(role, ()) for role in ("author", "login"))
    every: Sequence[Sequence[object]] = (tags, fields, types, names, authors, logins)
    if not any(every) and conditions.larger_than is None and conditions.smaller_than is None:
        return
    first = [texts[:1] for texts in every]
    for place, texts in enumerate(every):
        for text in texts[len(texts) > 0 and any(every[:place]) :]:
            chosen = [*first[:place], (text,), *first[place + 1 :]]
            yield _message(conditions, letter, *chosen)  # type: ignore[arg-type]
    if not any(every):
        yield _message(conditions, letter)


def _message(
    conditions: Conditions,
    letter: str,
    tags: Sequence[Glob] = (),
    fields: Sequence[tuple[str, Glob | None]] = (),
    types: Sequence[Glob] = (),
    names: Sequence[Glob] = (),
    authors: Sequence[Glob] = (),
    logins: Sequence[Glob] = (),
) -> SampleMessage:
    def text(globs: Sequence[Glob]) -> str:
        return next((letter.join(glob.parts) for glob in globs), "")

    lines = tuple(f"{name}: {letter if glob is None else letter.join(glob.parts)}" for name, glob in fields)
    subject = "".join(letter.join(tag.parts[1:-1]) for tag in tags)
    kind, name, login = text(types), text(names), text(logins)
    attachments = (f"{name or letter}: {kind}" if kind else name,) if kind or name else ()
    author = next((filled(glob) for glob in authors if str(glob) != NULL_SENDER), SOMEBODY)
    least = 1 if conditions.larger_than is None else conditions.larger_than + 1
    most = None if conditions.smaller_than is None else conditions.smaller_than - 1
    descriptions = ([f"subject {subject!r}"] if tags else []) + [f"field {each!r}" for each in lines]
    descriptions += [f"attachment {each!r}" for each in attachments]
    descriptions += [f"author {author}"] if authors else []
    descriptions += [f"login {login}"] if logins else []
    descriptions += [f"more than {conditions.larger_than} bytes"] if conditions.larger_than is not None else []
    descriptions += [f"fewer than {conditions.smaller_than} bytes"] if conditions.smaller_than is not None else []
    login = "" if login == NULL_SENDER else login
    return SampleMessage(", ".join(descriptions), author, login, subject, lines, attachments, least, most)


def outside(conditions: Conditions) -> SampleMessage | None:
    """A message that is too large for a rule, which leaves it to others."""
    if conditions.smaller_than is None:
        return None
    return SampleMessage(f"{conditions.smaller_than} bytes or more", least=conditions.smaller_than)


def joined(some: Sequence[SampleMessage]) -> SampleMessage | None:
    """One message that combines all of these; None if they contradict each other."""
    authors = {each.author for each in some} - {SOMEBODY}
    logins = {each.login for each in some} - {""}
    least = max(each.least for each in some)
    most = min((each.most for each in some if each.most is not None), default=None)
    if len(authors) > 1 or len(logins) > 1 or (most is not None and least > most):
        return None
    return SampleMessage(
        ", ".join(dict.fromkeys(each.called for each in some if each != ANY_MESSAGE)) or ANY_MESSAGE.called,
        next(iter(authors), SOMEBODY),
        next(iter(logins), ""),
        " ".join(dict.fromkeys(each.subject for each in some if each.subject)),
        tuple(dict.fromkeys(field for each in some for field in each.fields)),
        tuple(dict.fromkeys(name for each in some for name in each.attachments)),
        least,
        most,
    )


def senders(rules: Iterable[Conditions], separators: str, *, pairs: bool) -> list[str]:
    """The null sender, one that no rule looks for, and one for each pattern; with `pairs` also for each two."""
    globs = list(dict.fromkeys(glob for each in rules for glob in _asked(each)))
    addresses = dict.fromkeys(["", SOMEBODY, *(filled(glob) for glob in globs if str(glob) != NULL_SENDER)])
    if pairs:
        for two in combinations(globs[:MAX_IN_PAIRS], 2):
            if (both := _both(*two, separators)) is not None:
                addresses[both] = None
    return list(addresses)


def _asked(conditions: Conditions) -> Iterator[Glob]:
    for name in ("sender", "not_sender"):
        yield from conditions.people.get(name, ())


@lru_cache(maxsize=10_000)
def _both(one: Glob, other: Glob, separators: str) -> str | None:
    """A sender who fits both patterns, if one is easily found."""
    if NULL_SENDER in (str(one), str(other)):
        return None
    return guessed((RuleScope((one,)), RuleScope((other,))), (), separators)


def with_size(message: SampleMessage, size: int) -> SampleMessage:
    """Returns the same message, padded to at least this size."""
    return replace(message, least=max(size, message.least))
