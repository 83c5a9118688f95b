"""floors.toml: rules for all mail that raise the settings of a recipient's file, and never lower them.
Standard: policies/README.md; each is a rule as in files, with conditions on the recipient as well.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated, ClassVar

from pydantic import BeforeValidator, Field

from relay.errors import ConfigError
from relay.files import toml
from relay.policy.conditions import ON_RECIPIENTS
from relay.policy.names import GROUPS_FILE, printable
from relay.policy.patterns import GROUP, Groups
from relay.policy.people import Fit, Reading
from relay.policy.rules import PlacedRule, When
from relay.policy.units import Texts, list_as_tuple


class Floor(When):
    """One rule of floors.toml. It does not apply to mail to our own domains, where nothing can be sealed."""

    elsewhere: ClassVar[Mapping[str, str]] = {}

    recipient: Texts | None = None
    not_recipient: Texts | None = None

    @property
    def conditions(self) -> tuple[str, ...]:
        """The names of this rule's conditions."""
        return (*(name for name in ON_RECIPIENTS if getattr(self, name)), *super().conditions)

    def fit_of(self, recipient: Reading, groups: Groups, *, inside: bool) -> tuple[Fit, str]:
        """How surely it applies to this recipient, as `fit`; `inside` says that they are at a domain of ours."""
        if inside:
            return Fit.NOT, "the recipient is at one of our own domains, which floors leave alone"
        return self.recipient_fit(recipient, groups)


class _FloorsFile(toml.Table):
    elsewhere: ClassVar[Mapping[str, str]] = dict.fromkeys(("when", "rule", "floors"), "floors are [[floor]] tables")

    floor: Annotated[tuple[Floor, ...], BeforeValidator(list_as_tuple), Field(max_length=1000)] = ()


def read_floors(text: str, source: str) -> tuple[PlacedRule, ...]:
    """The rules in the text of floors.toml; `source` names it in messages. Raises ConfigError."""
    floors = toml.parse(text, _FloorsFile, source=source).floor
    lines = (toml.line_of(text, ("floor", number, "levels")) or 1 for number in range(len(floors)))
    return tuple(
        PlacedRule(rule, source, line, number) for number, (rule, line) in enumerate(zip(floors, lines, strict=True), 1)
    )


def unknown_groups(directory: Path, named: Mapping[str, frozenset[str]], groups: Groups) -> Iterator[str]:
    """One line for each group that a file names and groups.toml lacks."""
    for name in sorted(named):
        for group in sorted(named[name] - groups.keys()):
            path = directory / name
            close = difflib.get_close_matches(group, groups, n=1)
            hint = f"did you mean {close[0]!r}?" if close else f"write it into {GROUPS_FILE}"
            yield f"{printable(str(path))}:{_line_naming(path, GROUP + group)}: no group {group!r}; {hint}"


def _line_naming(path: Path, text: str) -> int:
    """The first line that has the text; 1 where none has."""
    try:
        lines = toml.read(path).splitlines()
    except ConfigError:
        return 1
    return next((number for number, line in enumerate(lines, 1) if text in line), 1)
