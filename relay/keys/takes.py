"""What each parameter of the clients takes: a wrong value is refused with the parameter's name and what it takes.
Standard: none; a value is never shown where it may be a key.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from types import UnionType
from typing import ClassVar, NamedTuple

from relay.errors import ConfigError


class Takes(NamedTuple):
    """The type of a parameter, in words as well; the least and most of a number, or the texts that count."""

    kind: type | UnionType
    what: str
    least: float = -math.inf
    most: float = math.inf
    texts: tuple[str, ...] = ()


PATH = Takes(str | Path | None, "a path")
SECONDS = Takes(float | int, "seconds from {0.least:g} to {0.most:g}", 0.001, 86400)
WHOLE = Takes(int, "a whole number from {0.least} to {0.most}", 0, 1000)
URL = Takes(str, "an address, https://host:port")
TEXT = Takes(str | None, "a text")
YES_OR_NO = Takes(bool, "True or False")


def one_of(*texts: str) -> Takes:
    """One of these texts."""
    return Takes(str, " or ".join(map(repr, texts)), texts=texts)


def check(values: Mapping[str, object], table: Mapping[str, Takes]) -> None:
    """Raises ConfigError for a value that its parameter in the table does not take, TypeError for another parameter."""
    for name, value in values.items():
        if (takes := table.get(name)) is None:
            raise TypeError(f"{name}: there is no such parameter; there are {', '.join(table)}")
        wrong = not isinstance(value, takes.kind) or (isinstance(value, bool) and takes.kind not in (bool, object))
        wrong = wrong or value == "" or bool(takes.texts and value not in takes.texts)
        outside = isinstance(value, int | float) and not takes.least <= value <= takes.most
        lines = "\n" in str(value)
        if wrong or outside or lines:
            # A wrong value may be the key itself.
            harmless = isinstance(value, int | float | str | None) and not lines
            shown = repr(value) if harmless else f"what is a {type(value).__name__}"
            raise ConfigError(f"{name}: it takes {takes.what.format(takes)}, not {shown}")


class Parameters:
    """Base of a dataclass of parameters: checked when it is made, by the table `TAKES`."""

    __slots__ = ()
    TAKES: ClassVar[Mapping[str, Takes]]

    def __post_init__(self) -> None:
        """Raises ConfigError."""
        check({each.name: getattr(self, each.name) for each in fields(self)}, self.TAKES)  # type: ignore[arg-type]
