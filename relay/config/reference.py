"""Generates deploy/SETTINGS.md, the reference of every setting, from the models and the texts under their fields.
`python -m relay.config.reference >deploy/SETTINGS.md`; a serving relay does not load it.
"""

from __future__ import annotations

import ast
import inspect
import json
import sys
import textwrap
from collections.abc import Iterator
from types import NoneType
from typing import Any, get_args

from pydantic import BeforeValidator
from pydantic.fields import FieldInfo

import relay.config
from relay.config import Config, kmes, ldap, listeners, parse_size, smime, tables
from relay.files import toml

SAMPLES = {"kmes": "km1", "peers": "bob", "imap": "ben"}
"""Name used in the reference for one of several tables."""
WIDTH = 116
_INTRODUCTION = """\
# Settings

Every setting of relay.toml, with its default. Made from the code, by `python -m relay.config.reference`; edits by hand
are lost.

Lines that begin with `#` and a name are settings at their default, other lines are examples. Paths are relative to the
directory of relay.toml. Sizes: "50 MiB". Times: seconds. [site], [policies] and [store] are needed, other tables only
if used. After an edit: `qumail-relay check --config relay.toml`.
"""

_Texts = dict[str, dict[str, str]]
"""By class, then by field; "" is the class itself."""


def markdown() -> str:
    """The whole page."""
    seen: set[tuple[str, str]] = set()
    parts = [_INTRODUCTION]
    for name in Config.model_fields:
        model, text = model_of(name), _description(name)
        header = f"{name}.{SAMPLES[name]}" if name in SAMPLES else name
        lines = _aliases() if model is None else list(_table(f"[{header}]", header, model, seen))
        title = f"[{name}.NAME]" if name in SAMPLES else f"[{name}]"
        paragraphs = "\n\n".join(textwrap.fill(each, WIDTH + 2, break_on_hyphens=False) for each in text.split("\n\n"))
        parts.append("\n".join((f"## {title}", "", paragraphs, "", "```toml", *lines, "```", "")))
    return "\n".join(parts)


def model_of(name: str) -> type[toml.Table] | None:
    """The model of one table, or of one of several; None for [aliases], whose keys are addresses."""
    return _model_in(Config.model_fields[name].annotation)


def text_of(model: type[toml.Table], name: str) -> tuple[str, str]:
    """The class that defines the setting, and the text under it, or ""."""
    for owner in model.__mro__:
        if text := _TEXTS.get(owner.__name__, {}).get(name):
            return owner.__name__, text
    return model.__name__, ""


def value_of(field: FieldInfo, value: object) -> str:
    """A value in TOML syntax."""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, int) and any(_is_size(each) for each in field.metadata):
        return json.dumps(_size(value))
    if isinstance(value, int | float):
        return str(int(value)) if value == int(value) else str(value)
    if isinstance(value, tuple | list):
        return f"[{', '.join(value_of(field, each) for each in value)}]"
    if isinstance(value, dict):
        return f"{{ {', '.join(f'{name} = {value_of(field, each)}' for name, each in value.items())} }}"
    return json.dumps(str(value), ensure_ascii=False)


def _description(name: str) -> str:
    model = model_of(name)
    return text_of(Config, name)[1] if model is None else _TEXTS[model.__name__][""]


def _aliases() -> list[str]:
    example = Config.examples["aliases"]
    assert isinstance(example, dict)  # noqa: S101
    return ["[aliases]", *(f"{json.dumps(name)} = {json.dumps(to)}" for name, to in example.items())]


def _table(header: str, path: str, model: type[toml.Table], seen: set[tuple[str, str]]) -> Iterator[str]:
    """The lines of one table: settings with examples first, nested tables last."""
    yield header
    inside = {name: table for name, field in model.model_fields.items() if (table := _model_in(field.annotation))}
    settings = [name for name in model.model_fields if name not in inside]
    for name in sorted(settings, key=lambda each: each not in {**model.examples, **model.alternatives}):
        field = model.model_fields[name]
        owner, text = text_of(model, name)
        if (owner, name) not in seen:
            seen.add((owner, name))
            yield from _comment(text)
        if name in model.examples:
            yield f"{name} = {value_of(field, model.examples[name])}"
        elif name in model.alternatives:
            yield f"#{name} = {value_of(field, model.alternatives[name])}"
        else:
            yield f"#{name} = {value_of(field, field.get_default(call_default_factory=True))}"
    for name, each in inside.items():
        yield ""
        yield from _comment(text_of(model, name)[1])
        yield from _table(f"[[{path}.{name}]]", f"{path}.{name}", each, seen)


def _comment(text: str) -> Iterator[str]:
    for paragraph in text.split("\n\n"):
        drawn = paragraph.startswith(" ")
        lines = paragraph.splitlines() if drawn else textwrap.wrap(paragraph, WIDTH, break_on_hyphens=False)
        yield from (f"# {line}" for line in lines)


def _model_in(annotation: Any) -> type[toml.Table] | None:
    """The table in `Table`, `Table | None`, `dict[str, Table]` or `tuple[Table, ...]`."""
    if isinstance(annotation, type) and issubclass(annotation, toml.Table):
        return annotation
    models = (_model_in(each) for each in get_args(annotation) if each is not NoneType)
    return next((each for each in models if each is not None), None)


def _is_size(metadata: object) -> bool:
    return isinstance(metadata, BeforeValidator) and metadata.func is parse_size


def _size(size: int) -> str:
    for power, unit in ((2**30, "GiB"), (2**20, "MiB"), (2**10, "KiB")):
        if size % power == 0:
            return f"{size // power} {unit}"
    return str(size)


def _texts() -> _Texts:
    """The texts under each class and each of its fields (attribute docstrings, PEP 257)."""
    texts: _Texts = {}
    for module in (relay.config, listeners, kmes, ldap, smime, tables):
        for node in ast.parse(inspect.getsource(module)).body:
            if isinstance(node, ast.ClassDef):
                texts[node.name] = {"": _unwrapped(ast.get_docstring(node) or "")} | _under_fields(node)
    return texts


def _under_fields(node: ast.ClassDef) -> dict[str, str]:
    pairs = zip(node.body, node.body[1:], strict=False)
    return {
        field.target.id: _unwrapped(inspect.cleandoc(text.value.value))
        for field, text in pairs
        if isinstance(field, ast.AnnAssign) and isinstance(field.target, ast.Name)
        if isinstance(text, ast.Expr) and isinstance(text.value, ast.Constant) and isinstance(text.value.value, str)
    }


def _unwrapped(text: str) -> str:
    """The text with each paragraph on one line, except preformatted ones."""
    return "\n\n".join(each if each.startswith(" ") else " ".join(each.split()) for each in text.split("\n\n"))


_TEXTS = _texts()


if __name__ == "__main__":
    sys.stdout.write(markdown())
