"""Every command that the code prints for a person to paste is made in relay/files/commands.py, where words are quoted.
Standard: POSIX shell quoting; the syntax tree of all of relay/ is searched, so that no new place appears.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

RELAY = Path(__file__).parents[2] / "relay"
ROOTS = r"chown|chmod|chgrp|setfacl|getfacl|runuser|sudo -|setpriv|namei|rm -|mv /|ln -"
PRINTED = r"systemctl|journalctl|postconf|postsuper|postqueue|postmap|postfix -c|qumail-relay [a-z]+|install -[dm]|usermod|useradd"
_ANY = re.compile(rf"(?<![\w/.-])(?:{ROOTS}|{PRINTED})(?![\w/.(])")
_ROOTS = re.compile(rf"(?<![\w/.-])(?:{ROOTS})(?![\w.(])")
HOLE = "\0"
"""Stands for what an f-string fills in."""


MAKERS = {"command", "as_user", "typed_by_root", "given_by_root"}
"""Functions that quote each word they are given."""


def _docstrings(tree: ast.AST) -> set[int]:
    """The nodes that are documentation, of attributes too, and words for MAKERS."""
    words = {
        id(word)
        for call in ast.walk(tree)
        if isinstance(call, ast.Call) and (getattr(call.func, "id", "") or getattr(call.func, "attr", "")) in MAKERS
        for word in call.args
    }
    return words | {id(each.value) for each in ast.walk(tree) if isinstance(each, ast.Expr)}


def _texts(tree: ast.AST) -> Iterator[tuple[ast.expr, str]]:
    """Each string that is made somewhere, with HOLE for what is filled in or put behind it."""
    known = _docstrings(tree)
    for node in ast.walk(tree):
        if isinstance(node, ast.JoinedStr):
            known |= {id(each) for each in ast.walk(node) if each is not node and isinstance(each, ast.Constant)}
            parts = [each.value if isinstance(each, ast.Constant) else HOLE for each in node.values]
            yield node, "".join(map(str, parts))
        elif isinstance(node, ast.BinOp) and isinstance(node.op, ast.Add | ast.Mod):
            for side in (node.left, node.right):
                if isinstance(side, ast.Constant) and isinstance(side.value, str):
                    known.add(id(side))
                    yield side, side.value + (HOLE if side is node.left else "")
        elif isinstance(node, ast.Attribute) and isinstance(node.value, ast.Constant):
            if isinstance(node.value.value, str) and node.attr in ("format", "join", "replace"):
                yield node.value, node.value.value + HOLE
        elif isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in known:
            yield node, node.value


def _made_by_hand(text: str) -> bool:
    """Whether a command in this text goes on with something that is filled in, or is root's own kind."""
    if _ROOTS.search(text):
        return True
    for match in _ANY.finditer(text):
        rest = text[match.start() :]
        quoted = match.start() and text[match.start() - 1] == "`"
        if HOLE in (rest.partition("`")[0] if quoted else rest):
            return True
    return False


def places(source: str) -> list[int]:
    """The lines of this source that print a command made by hand."""
    tree = ast.parse(source)
    skipped = _docstrings(tree)
    return sorted({node.lineno for node, text in _texts(tree) if id(node) not in skipped and _made_by_hand(text)})


@pytest.mark.promise("Commands shown to root are safe to paste")
@pytest.mark.parametrize("path", sorted(RELAY.rglob("*.py")), ids=lambda path: str(path.relative_to(RELAY)))
def test_no_command_is_put_together_by_hand(path: Path) -> None:
    if path == RELAY / "files/commands.py":
        return
    found = places(path.read_text())
    assert found == [], [f"{path.relative_to(RELAY)}:{line}" for line in found]


@pytest.mark.parametrize(
    "line",
    [
        'f"chown {user}: {path}"', '"chown root: x"', 'f"restart it: qumail-relay check --config {path}"',
        'f"`postconf -e {value}`"', '"qumail-relay policy install " + path', '"systemctl restart {}".format(unit)',
        '"postconf -e %s" % value', 'f"run: {name} && chmod 600 {name}"', 'x = ("as root: " f"runuser -u {name} -- x")',
    ],
)  # fmt: skip
def test_a_command_that_is_made_by_hand_is_found(line: str) -> None:
    assert places(line if line.startswith("x") else f"x = {line}") == [1]


def test_hints_without_anything_filled_in_are_no_such_commands() -> None:
    assert places('x = f"{name}: see `qumail-relay quarantine list`, {more}"\n"""chown {x}"""') == []
