"""What the lines of the relay are for: `python -m tests.capabilities` prints the table that relay/README.md has.
A line counts where it has code: no blank ones, no comments, no docstrings.
"""

from __future__ import annotations

import argparse
import ast
import io
import sys
import tokenize
from pathlib import Path
from typing import NamedTuple

RELAY = Path(__file__).parents[1] / "relay"
_NO_CODE = frozenset(
    {tokenize.COMMENT, tokenize.NL, tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT, tokenize.ENCODING, tokenize.ENDMARKER}
)  # fmt: skip
OF_ALL = "everybody"


class Capability(NamedTuple):
    """What some places under relay/ are for, and who needs that."""

    what: str
    places: tuple[str, ...]
    who: str


CAPABILITIES = (
    Capability(
        "a message sealed, opened, handed on, once",
        ("outgoing.py", "incoming.py", "mail.py", "errors.py", "journey", "schemes", "formats", "levels", "forward", "outcome"),
        OF_ALL,
    ),
    Capability("SMTP and LMTP in", ("entry/*.py", "entry/smtp"), OF_ALL),
    Capability("milter", ("entry/milter",), "sites without content filters"),
    Capability("mailboxes by IMAP", ("entry/imap",), "sites with mailboxes at a provider"),
    Capability("quantum keys, ETSI GS QKD 014", ("keys", "key_receiver"), "sites with a KME; programs"),
    Capability("development KMEs", ("kme",), "trials, tests"),
    Capability("policy", ("policy",), OF_ALL),
    Capability("groups from a directory", ("groups",), "sites with Active Directory or OpenLDAP"),
    Capability("identity, peers, invitations", ("identity",), OF_ALL),
    Capability("S/MIME with other products", ("smime",), "sites whose partners have no relay"),
    Capability("store, quarantine", ("store", "quarantine"), OF_ALL),
    Capability("audit record", ("audit",), "sites with auditors"),
    Capability("DKIM", ("dkim",), "sites that sign or check mail"),
    Capability("alarms, page, metrics, canaries", ("status", "counting", "canary"), "administrators"),
    Capability("the Postfix beside it", ("postfix", "setup"), "sites with Postfix"),
    Capability("processes, settings, files", ("process", "runtime", "config", "files", "__init__.py", "__main__.py"), OF_ALL),
    Capability("commands", ("cli",), "administrators"),
)  # fmt: skip


def files_of(each: Capability) -> set[Path]:
    """Its Python files."""
    found: set[Path] = set()
    for place in each.places:
        path = RELAY / place
        found |= set(path.rglob("*.py") if path.is_dir() else RELAY.glob(place))
    return found


def code_lines(file: Path) -> int:
    """The number of lines with code."""
    source = file.read_text()
    docstrings: set[int] = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef) and node.body:
            first = node.body[0]
            if (
                isinstance(first, ast.Expr)
                and isinstance(first.value, ast.Constant)
                and isinstance(first.value.value, str)
            ):
                docstrings |= set(range(first.lineno, (first.end_lineno or first.lineno) + 1))
    lines: set[int] = set()
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type not in _NO_CODE:
            lines |= set(range(token.start[0], token.end[0] + 1))
    return len(lines - docstrings)


def table() -> list[tuple[str, int, str]]:
    """What, how many lines to the next ten, and who needs it."""
    return [(each.what, round(sum(map(code_lines, files_of(each))), -1), each.who) for each in CAPABILITIES]


if __name__ == "__main__":
    argparse.ArgumentParser(prog="python -m tests.capabilities", description=__doc__).parse_args()
    rows = table()
    for what, lines, who in (*rows, ("in all", sum(lines for _, lines, _ in rows), "")):
        sys.stdout.write(f"| {what} | {lines:,} | {who} |\n")
