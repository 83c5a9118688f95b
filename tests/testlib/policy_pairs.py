"""Pairs of policy sets for `policy diff --strict`: a generated set, and an edit of it; and whether a mail shows it weaker.
Written beside testlib/policy_reference.py; nothing of relay/ is used here.
"""

from __future__ import annotations

import random
import re
from collections.abc import Callable
from datetime import date, timedelta

from tests.testlib.policy_made import Made
from tests.testlib.policy_reference import ORDER, Ability, Facts, Reference, Said

Files = dict[str, str]


def edited(made: Made, files: Files) -> Files:
    """The files after one edit; about half of them narrow or take away by one word."""
    edits: list[Callable[[Made, str], str]] = [
        _without_a_rule, _without_a_level, _narrower, _narrower, _wider, _rules_turned, _with_a_level, _without_a_line,
        _with_a_rule, _other_settings,
    ]  # fmt: skip
    for _ in range(20):
        name = made.choice([each for each in files if each != "groups.toml"])
        changed = made.choice(edits)(made, files[name])
        if changed != files[name] and changed.strip():
            return files | {name: changed}
    return files | {"default.toml": made.file("default")}


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
    lines = list(
        re.finditer(r"^(?!levels|otherwise|priority|peer|kem|max_size|since|until)(\w+) = .*$", text, re.MULTILINE)
    )
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


def weaker(old: Reference, new: Reference, facts: Facts, recipient: str, can: Ability) -> str:
    """Why a mail leaves weaker by the new set, or where it could not leave by the old one; or ""."""
    before, after = old.said(facts, recipient), new.said(facts, recipient)
    leaves, left = after.strength(facts, can), before.strength(facts, can)
    if leaves is None:
        return ""
    if _never(before):
        return "it could not leave before"
    if before.listed == ("plaintext",):
        return ""
    if leaves < (min(map(ORDER.index, before.listed)) if left is None else left):
        return f"{after.tried} instead of {before.tried}"
    if leaves and before.peer != after.peer:
        return f"peer {after.peer} instead of {before.peer}"
    if ORDER[leaves].startswith("pqc") and left is not None and ORDER[left].startswith("pqc"):
        return "" if before.settings.kem <= after.settings.kem else "a KEM less"
    return ""


def _never(said: Said) -> bool:
    return said.file is None or (said.listed != ("plaintext",) and said.peer is None)
