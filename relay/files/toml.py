"""Parses a TOML file into a validated, immutable model; each fault has file, line and remedy.
Standard: TOML 1.0; faults have the form of Postfix and compilers, `file:line: key: what is wrong`.
"""

from __future__ import annotations

import codecs
import difflib
import functools
import re
import tomllib
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import NoneType, UnionType
from typing import Annotated, Any, ClassVar, TypeVar, Union, get_args, get_origin

from pydantic import BaseModel, ConfigDict, ValidationError

from relay.errors import ConfigError
from relay.files import open_regular, permissions

MAX_FILE_BYTES = 1024 * 1024
"""Maximum size of a configuration or policy file, in bytes; a larger one is refused unread."""

MAX_DEPTH = 16
"""Maximum number of names of a dotted key or table header that are searched for its line."""

MAX_QUOTED_CHARS = 500
"""Maximum number of characters of a file that a fault quotes."""

MAX_NAMES = 200
"""Maximum number of names in one dotted key; tomllib's time grows with their square."""

MAX_FAULTS = 100
"""Maximum number of faults of a file that are reported; the others are counted."""

Location = tuple[str | int, ...]
"""A path of keys and array indexes, such as `("peers", "bob", "domains", 0)`."""

_NAME = r"""(?:"(?:[^"\\\n]|\\.)*"|'[^'\n]*'|[A-Za-z0-9_-]+)"""
_DOTTED = rf"{_NAME}(?:[ \t]*\.[ \t]*{_NAME})*"
_TABLE = re.compile(rf"[ \t]*(\[\[?)[ \t]*({_DOTTED})[ \t]*\]")
_KEY = re.compile(rf"[ \t]*({_DOTTED})[ \t]*=")
_TOKEN = re.compile(
    r'''"""(?:[^\\]|\\.)*?"{3,5}|'{3}.*?'{3,5}|"(?:[^"\\\n]|\\.)*"|'[^'\n]*'|\#[^\n]*|[\[\]{}\n]''', re.DOTALL
)


_QUOTED = re.compile(r"""\"(?:[^"\\\n]|\\.)*+"?|'[^'\n]*+'?""")
_LONG_KEY = re.compile(rf"(?<![\w.-])(?:[\w-]++[ \t]*+\.[ \t]*+){{{MAX_NAMES}}}")


class Table(BaseModel):
    """Base of all models read from TOML: immutable, no conversions by guess, unknown keys are faults."""

    # Rust's regular expressions expand all letters of Unicode for each repetition: they took 20 MB. In Python's `$`
    # matches before a line end: patterns of settings end with `\Z`.
    model_config = ConfigDict(frozen=True, strict=True, extra="forbid", defer_build=True, regex_engine="python-re")
    removed: ClassVar[Mapping[str, str]] = {}
    """Former settings, each with what to do if it is still in a file."""
    elsewhere: ClassVar[Mapping[str, str]] = {}
    """Words that are no settings of this table, each with what to write instead."""
    examples: ClassVar[Mapping[str, object]] = {}
    """Examples in the reference for settings without a default, or whose default is to be absent."""
    alternatives: ClassVar[Mapping[str, object]] = {}
    """Examples of settings that replace others; the reference shows them as comments."""


Model = TypeVar("Model", bound=BaseModel)


def read(path: Path) -> str:
    """The text of `path`, a regular file of at most MAX_FILE_BYTES of UTF-8; raises ConfigError."""
    try:
        with open(path, "rb", opener=open_regular) as file:
            raw = file.read(MAX_FILE_BYTES + 1)
    except OSError as error:
        raise ConfigError(permissions.cause(path, error)) from error
    if len(raw) > MAX_FILE_BYTES:
        raise ConfigError(f"{path}: larger than {MAX_FILE_BYTES} bytes; no such file needs to be")
    if raw.startswith(codecs.BOM_UTF8):
        raise ConfigError(f"{path}:1: begins with a byte order mark; save it as UTF-8 without one")
    try:
        return raw.decode("utf-8")
    except UnicodeDecodeError as error:
        line = raw.count(b"\n", 0, error.start) + 1
        raise ConfigError(f"{path}:{line}: not UTF-8 (byte {raw[error.start]:#04x})") from error


def parse(text: str, model: type[Model], *, source: str, context: dict[str, Any] | None = None) -> Model:
    """Parses TOML `text` as `model`; `source` is the file name for messages. Raises ConfigError, a line per fault.

    `context` is passed to the model's validators (pydantic's `info.context`).
    """
    if _LONG_KEY.search(_QUOTED.sub("x", text)):
        raise ConfigError(f"{source}: a dotted key of more than {MAX_NAMES} names; no setting lies so deep")
    try:
        data = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        match = re.search(r"line (\d+), column (\d+)", str(error))
        fault = _short(re.sub(r" \(at .*\)$", "", str(error)))
        position = f"{match[1]}:{match[2]}" if match else str(text.count("\n") + 1)
        raise ConfigError(f"{source}:{position}: not TOML: {fault}") from error
    except ValueError as error:  # not TOMLDecodeError: a number with thousands of digits
        raise ConfigError(f"{source}: not TOML: {str(error).partition(';')[0]}") from error
    except RecursionError as error:
        raise ConfigError(f"{source}: nested too deeply") from error
    try:
        return model.model_validate(data, context=context)
    except ValidationError as error:
        raise ConfigError(_fault_lines(error, _lines(text), model, source)) from error


def line_of(text: str, location: Location) -> int | None:
    """The line (1 is the first) of the value at `location`, or of its nearest parent.

    None if neither is in `text`, which must be valid TOML.
    """
    return _nearest(_lines(text), location)


def _nearest(lines: Mapping[Location, int], location: Location) -> int | None:
    while location:
        if location in lines:
            return lines[location]
        location = location[:-1]
    return None


@functools.lru_cache(maxsize=1)
def _lines(text: str) -> Mapping[Location, int]:
    """Returns the line of each table header and each key in `text`, which is valid TOML.

    Cached for the last text, since readers ask for the line of each value in it.
    """
    lines_by_location: dict[Location, int] = {}
    last: dict[Location, int] = {}
    table: Location = ()
    for number, position in _statements(text):
        if header := _TABLE.match(text, position):
            table = ()
            *parents, name = _split(header[2])
            for parent in parents:
                table = (*table, parent)
                lines_by_location.setdefault(table, number)
                table = (*table, last[table]) if table in last else table
            table = (*table, name)
            if header[1] == "[[":
                lines_by_location.setdefault(table, number)
                last[table] = last.get(table, -1) + 1
                table = (*table, last[table])
            lines_by_location.setdefault(table, number)
        elif key := _KEY.match(text, position):
            names = _split(key[1])
            for depth in range(len(names)):
                lines_by_location.setdefault((*table, *names[: depth + 1]), number)
    return lines_by_location


def _statements(text: str) -> Iterator[tuple[int, int]]:
    """Line number and offset of every line that begins outside all strings, arrays and inline tables."""
    number, depth = 1, 0
    yield number, 0
    for token in _TOKEN.finditer(text):
        number += token[0].count("\n")
        if token[0] in ("[", "{"):
            depth += 1
        elif token[0] in ("]", "}"):
            depth -= 1
        elif token[0] == "\n" and depth == 0:
            yield number, token.end()


def _split(dotted: str) -> Location:
    """The names in `a."b.c".d`; at most MAX_DEPTH, since no setting is deeper."""
    try:
        value: Any = tomllib.loads(f"{dotted} = 1")
    except tomllib.TOMLDecodeError:
        return (dotted,)
    keys: list[str | int] = []
    while isinstance(value, dict) and len(keys) < MAX_DEPTH:
        key, value = next(iter(value.items()))
        keys.append(key)
    return tuple(keys)


def _fault_lines(
    error: ValidationError, lines: Mapping[Location, int], model: type[BaseModel], source: str
) -> list[str]:
    faults = error.errors(include_url=False, include_context=False, include_input=False)
    texts = [_fault(fault, lines, model, source) for fault in faults[:MAX_FAULTS]]
    return texts if len(faults) <= MAX_FAULTS else [*texts, f"{source}: {len(faults) - MAX_FAULTS} more faults"]


def _fault(fault: Any, lines: Mapping[Location, int], model: type[BaseModel], source: str) -> str:
    location = tuple(part for part in fault["loc"] if not str(part).startswith("function-"))
    line = _nearest(lines, location)
    place = f"{source}:{line}" if line else source
    name = _short(".".join(str(part) for part in location))
    if fault["type"] == "extra_forbidden":
        table = _model_at(model, location[:-1])
        if issubclass(table, Table) and (instead := table.removed.get(str(location[-1]))):
            return f"{place}: {name}: is no longer a setting: {instead}"
        if issubclass(table, Table) and (instead := table.elsewhere.get(str(location[-1]))):
            return f"{place}: {name}: unknown setting; {instead}"
        known = [field.alias or setting for setting, field in table.model_fields.items()]
        close = difflib.get_close_matches(str(location[-1]), known, n=1)
        hint = f"did you mean {close[0]!r}?" if close else f"known here: {', '.join(sorted(known))}"
        return f"{place}: {name}: unknown setting; {hint}"
    if fault["type"] == "missing":
        return f"{place}: {name}: missing; this setting is required"
    message = _short(fault["msg"].removeprefix("Value error, ")) or "not a value that can stand here"
    if message[1:2].islower():
        message = message[0].lower() + message[1:]
    return f"{place}: {name}: {message}" if name else f"{place}: {message}"


def _short(text: str) -> str:
    """Text from the file as one line of at most MAX_QUOTED_CHARS."""
    text = "".join(char if char.isprintable() else ascii(char)[1:-1] for char in text[: MAX_QUOTED_CHARS + 1])
    return text if len(text) <= MAX_QUOTED_CHARS else text[:MAX_QUOTED_CHARS] + "..."


def _model_at(model: type[BaseModel], location: Location) -> type[BaseModel]:
    """The model at `location`, following nested models, maps and lists of models."""
    current: Any = model
    for part in location:
        current = _inside(current, part)
    return current if isinstance(current, type) and issubclass(current, BaseModel) else BaseModel


def _inside(annotation: Any, part: str | int) -> Any:
    """The type at key or index `part` of a model, `dict[str, Peer]` or `list[Rule]`."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        fields = annotation.model_fields.items()
        return next((_plain(field.annotation) for name, field in fields if part in (name, field.alias)), None)
    arguments = [argument for argument in get_args(annotation) if argument is not Ellipsis]
    return _plain(arguments[-1]) if arguments else None


def _plain(annotation: Any) -> Any:
    """`Peer` for `Annotated[Peer, ...]` and for `Peer | None`."""
    while get_origin(annotation) in (Annotated, Union, UnionType):
        annotation = next(argument for argument in get_args(annotation) if argument is not NoneType)
    return annotation
