"""Pairs of policy sets for `policy diff --strict`: a generated set, and an edit of it; and whether a mail shows it weaker.
Written beside testlib/policy_reference.py; nothing of relay/ is used here.
"""

from __future__ import annotations

import random
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from datetime import date, timedelta
from functools import lru_cache
from itertools import product
from typing import NamedTuple
from urllib.parse import unquote

from tests.testlib.policy_made import DOMAINS, LOCALS, STRANGE, Made
from tests.testlib.policy_reference import CONTENT, ORDER, PEOPLE, Facts, Reference, Said

Files = dict[str, str]
_STATES = {
    level: ("all", "normal", "none") if level in ("otp", "aes") or "+" in level else ("all", "none")
    for level in ORDER[1:]
}
SUPPLIES = [dict(zip(_STATES, each, strict=True)) | {"plaintext": "all"} for each in product(*_STATES.values())]
"""All that may be there of each level: for all mail, for mail of normal priority, or nothing."""


class Edited(NamedTuple):
    """Files after an edit, and what kind of edit it was."""

    files: Files
    edit: str


def edited(made: Made, files: Files) -> Edited:
    """The files after one edit; half of the edits narrow a rule or floor by one word."""
    narrowing: list[Callable[[Made, str], str]] = [_narrower, _narrower, _without_a_word, _wider_exception]
    others: list[Callable[[Made, str], str]] = [
        _without_a_rule, _without_a_level, _wider, _rules_turned, _with_a_level, _without_a_line, _with_a_rule,
        _other_settings,
    ]  # fmt: skip
    narrow = made.random() < 0.5
    ruled = [name for name, text in files.items() if "[[" in text]
    for _ in range(20):
        edit = made.choice(narrowing if narrow and ruled else others)
        name = made.choice(ruled if narrow and ruled else [each for each in files if each != "groups.toml"])
        changed = edit(made, files[name])
        if changed != files[name] and changed.strip():
            return Edited(files | {name: changed}, edit.__name__.strip("_"))
    return Edited(files | {"default.toml": made.file("default")}, "another_default")


def _tables(text: str) -> list[str]:
    return re.split(r"(?=^\[\[)", text, flags=re.MULTILINE)


def _without_a_rule(made: Made, text: str) -> str:
    tables = _tables(text)
    if len(tables) > 1:
        del tables[made.randrange(1, len(tables))]
    return "".join(tables) or "# none\n"


def _rules_turned(made: Made, text: str) -> str:
    first, *rules = _tables(text)
    made.shuffle(rules)
    return first + "".join(rules)


def _with_a_rule(made: Made, text: str) -> str:
    return f"{text}\n{made.floor() if '[[floor]]' in text else made.rule()}"


def _lists(made: Made, text: str, change: Callable[[list[str]], list[str]]) -> str:
    lists = list(re.finditer(r"^levels = \[(.*)\]$", text, re.MULTILINE))
    if not lists:
        return text
    found = made.choice(lists)
    levels = change(found[1].split(", "))
    return text[: found.start()] + f"levels = [{', '.join(levels)}]" + text[found.end() :]


def _without_a_level(made: Made, text: str) -> str:
    return _lists(made, text, lambda each: made.sample(each, max(1, len(each) - 1)))


def _with_a_level(made: Made, text: str) -> str:
    more = f'"{made.choice(ORDER[1:])}"'
    return _lists(made, text, lambda each: each if "plaintext" in "".join(each) or more in each else [*each, more])


def _texts(made: Made, text: str, change: Callable[[str], str]) -> str:
    lines = list(re.finditer(r"^(?!levels|otherwise|priority|peer|max_size|until)(\w+) = .*$", text, re.MULTILINE))
    if not lines:
        return text
    line = made.choice(lines)
    words = list(re.finditer(r'"((?:[^"\\]|\\.)*)"', line[0]))
    if not words:
        return text
    word = made.choice(words)
    start = line.start() + word.start()
    return text[:start] + f'"{change(word[1])}"' + text[start + len(word[0]) :]


def _narrower(made: Made, text: str) -> str:
    return _texts(made, text, lambda word: word.replace("*", "c*", 1) if "*" in word else word)


def _wider(made: Made, text: str) -> str:
    return _texts(made, text, lambda word: re.sub(r"^\w(?=[\w@*])", "*", word) if "@" in word else word)


def _without_a_word(made: Made, text: str) -> str:
    lists = list(re.finditer(r'^(?!levels)\w+ = \[("[^\n]*, "[^\n]*)\]$', text, re.MULTILINE))
    if not lists:
        return text
    found = made.choice(lists)
    words = re.findall(r'"(?:[^"\\]|\\.)*"', found[1])
    words.remove(made.choice(words))
    return text[: found.start(1)] + ", ".join(words) + text[found.end(1) :]


def _wider_exception(made: Made, text: str) -> str:
    words = list(re.finditer(r'^not_\w+ = .*?"(\w)(?=[^"\n]*@)', text, re.MULTILINE))
    if not words:
        return text
    word = made.choice(words)
    return text[: word.start(1)] + "*" + text[word.end(1) :]


def _without_a_line(made: Made, text: str) -> str:
    lines = text.splitlines(keepends=True)
    places = [place for place, line in enumerate(lines) if re.match(r"\w+ = ", line) and not line.startswith("levels")]
    if places:
        del lines[made.choice(places)]
    return "".join(lines)


def _other_settings(made: Made, text: str) -> str:
    head, *rules = _tables(text)
    return head + made.settings(raises=not head.strip()) + "".join(rules) if head.strip() else text


def day_of(chance: random.Random, today: date) -> date:
    """Today, or a later day on which generated files begin or end."""
    return chance.choice([today, today, today + timedelta(days=1), today + timedelta(days=3), date(2999, 1, 2)])


class Aim:
    """Mails that an edit may concern: to recipients for whom files differ, about what their rules and all floors name."""

    def __init__(self, made: Made, old: Reference, new: Reference) -> None:
        self.made = made
        self.people = [
            each
            for each in _recipients(old, new)
            if old.floors != new.floors or old.files_of(each) != new.files_of(each)
        ]
        tables = [table for each in (old, new) for who in self.people for _, table in each.files_of(who)]
        rules = [*old.floors, *new.floors, *(rule for table in tables for rule in table.get("when", []))]
        self.named: dict[str, list[str]] = {}
        for rule in rules:
            for name in (*PEOPLE, *CONTENT):
                if name in rule and not isinstance(rule[name], int):
                    self.named.setdefault(name.removeprefix("not_"), []).extend(old.patterns(rule[name]))

    def facts(self) -> Facts:
        """One of them, or any mail."""
        made = self.made
        facts = made.facts()
        if not self.people or made.random() < 0.2:
            return facts
        sender = self._sender()
        login = self._filled("sender", lambda each: each.startswith("login:")).removeprefix("login:")
        return replace(
            facts,
            recipients=tuple(made.sample(self.people, min(2, len(self.people)))),
            sender=sender,
            authors=made.choice([(sender,), (sender,), facts.authors, (self._sender(),)]),
            login=made.choice(["", "", login, facts.login]),
            octets=made.choice([50, 1000, 1500, 1999, 2001, 2040, 3000, facts.octets]) + facts.hidden,
            subject=made.choice([facts.subject, "", self._filled("subject_tag")]),
            fields=tuple(each if ":" in each else f"{each}: x" for each in (self._filled("header"),) if each),
            attachment=made.choice(["", self._filled("attachment_name"), "x"]),
            unclear=False,
        )

    def _sender(self) -> str:
        found = (
            self._filled("sender", lambda each: "@" in each and not each.startswith("login:")) or "ceo@alice.example"
        )
        tagged = found.replace("@", "+ann@") if '"' not in found else found
        return self.made.choice([found, found, tagged, self.made.sender(), "somebody@elsewhere.example"])

    def _filled(self, name: str, of: Callable[[str], bool] = bool) -> str:
        """One of the patterns in conditions of this name, with something for its stars."""
        found = [each for each in self.named.get(name, []) if of(each)]
        return re.sub(r"\*", lambda _: self.made.choice(["x", "c", "ann"]), self.made.choice(found)) if found else ""


def _recipients(old: Reference, new: Reference) -> Iterator[str]:
    """One of each kind at least."""
    yield from (f"{local}@{domain}" for local, domain in product(LOCALS, DOMAINS))
    for name in {**old.files, **new.files}:
        domain, _, local = name.removesuffix(".toml").partition("/")
        if local:
            quoted = unquote(local)
            yield f"{quoted}@{domain}" if re.fullmatch(r"[\w+-]+", quoted) else f'"{quoted}"@{domain}'
        yield from (f"somebody@{below}{domain}" for below in ("", "below."))
    yield from STRANGE


def weaker(old: Reference, new: Reference, facts: Facts, recipient: str) -> str:
    """Why a mail leaves weaker by the new set, or where it could not leave by the old one, by some supply; or "".

    Mail that was too large may leave by what is as strong as the old guarantee.
    """
    before, after = old.said(facts, recipient), new.said(facts, recipient)
    if before == after or not after.tried or before.listed == ("plaintext",):
        return ""
    clear = after.tried == ("plaintext",)
    if not after.possible:
        return ""
    if _never(before):
        return "it could not leave before"
    if not clear and before.peer != after.peer and after.possible != ("smime",):
        return f"peer {after.peer} instead of {before.peer}"
    return _weaker(_Asked.of(before), _Asked.of(after))


class _Asked(NamedTuple):
    """What of a decision the supply of keys bears upon."""

    listed: tuple[str, ...]
    tried: tuple[str, ...]
    low: bool

    @classmethod
    def of(cls, said: Said) -> _Asked:
        return cls(said.listed, said.possible, said.settings.priority == "low")

    def leaves(self, supply: Mapping[str, str]) -> int | None:
        """The strength of what leaves; `supply` says of each level "all", "normal" (the rest is in reserve) or "none"."""
        for level in self.tried:
            enough = supply[level] == "all" or (supply[level] == "normal" and not self.low)
            if enough:
                return ORDER.index(level)
        return None


@lru_cache(maxsize=100_000)
def _weaker(before: _Asked, after: _Asked) -> str:
    least = min(map(ORDER.index, before.listed))
    for supply in SUPPLIES:
        leaves, left = after.leaves(supply), before.leaves(supply)
        if leaves is not None and leaves < (least if left is None else left):
            return f"{after} instead of {before}, with {supply}"
    return ""


def _never(said: Said) -> bool:
    return said.file is None or (said.listed != ("plaintext",) and said.peer is None and "smime" not in said.listed)
