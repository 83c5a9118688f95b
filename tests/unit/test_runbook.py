"""deploy/RUNBOOK.md has every event that the relay logs, every name of a Postfix finding, and nothing that is gone.
Both are read out of the source. Findings of `check` have their remedy with them; the page has what is left to say.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from itertools import chain
from pathlib import Path

import pytest

import relay
from relay.errors import KeyUnavailable
from relay.postfix import KEEPS_BACK, PAST_THE_RELAY, UNJUDGED, UNREAD
from relay.quarantine import REASONS

RELAY = Path(relay.__file__).parent
RUNBOOK = (RELAY.parent / "deploy" / "RUNBOOK.md").read_text()
LEVELS = ("info", "warning", "error")
"""Those of which an administrator reads; debug is for developers."""
EVENT = re.compile(r"[a-z]+(_[a-z0-9]+)*")
FINDERS = (
    "cli/check.py",
    "cli/check_alarms.py",
    "cli/check_listeners.py",
    "cli/check_kmes.py",
    "cli/check_rights.py",
    "cli/check_site.py",
    "cli/check_store.py",
    "cli/dkim.py",
    "cli/quarantine.py",
    "config/__init__.py",
    "entry/imap/check.py",
    "entry/server_tls.py",
    "entry/smtp/listener.py",
    "identity/findings.py",
    "keys/kme_store.py",
    "keys/tls.py",
    "status/listener.py",
)
"""Where the findings of `check` are made, but for those that errors bring along."""
KME_ERRORS = {each.__name__ for each in KeyUnavailable.__subclasses__() if each.__module__ == "relay.errors"}
OF_NO_FAULT = ("next_steps", "_remarks")
"""Functions there whose texts say what to do next, or how something stands."""


def sections(title: str) -> str:
    """The part of the runbook under this heading."""
    return RUNBOOK.split(f"\n## {title}\n")[1].split("\n## ")[0]


def named(part: str) -> list[str]:
    """The names in backticks before the colon of each item of its lists."""
    items = re.findall(r"^- ((?:`[^`]+`,?\s+)*`[^`]+`):\s", part, re.MULTILINE)
    return [" ".join(name.split()) for names in items for name in re.findall(r"`([^`]+)`", names)]


def syntax() -> Iterator[ast.Module]:
    for path in sorted(RELAY.rglob("*.py")):
        yield ast.parse(path.read_text())


def functions(tree: ast.AST) -> Iterator[ast.FunctionDef | ast.AsyncFunctionDef]:
    return (each for each in ast.walk(tree) if isinstance(each, ast.FunctionDef | ast.AsyncFunctionDef))


def is_log(node: ast.AST) -> bool:
    """`log.info`, `log.warning`, `log.error`."""
    if not isinstance(node, ast.Attribute) or not isinstance(node.value, ast.Name):
        return False
    return node.value.id == "log" and node.attr in LEVELS


def texts(node: ast.AST) -> Iterator[str]:
    return (each.value for each in ast.walk(node) if isinstance(each, ast.Constant) and isinstance(each.value, str))


def logged() -> set[str]:
    """The names of all events: said at once, chosen in the same function, or handed to who says them."""
    found: set[str] = set()
    handed: set[str] = set()
    trees = list(syntax())
    for function in chain.from_iterable(map(functions, trees)):
        calls = [each for each in ast.walk(function) if isinstance(each, ast.Call)]
        said = {id(each.func) for each in calls if is_log(each.func)}
        for call in calls:
            if is_log(call.func) and isinstance(call.args[0], ast.Constant):
                found.add(str(call.args[0].value))
            elif is_log(call.func):
                handed.add(function.name)
        if any(is_log(each) and id(each) not in said for each in ast.walk(function)):
            for call in calls:
                found |= {text for argument in call.args for text in texts(argument) if "_" in text}
            assigned = (each.value for each in ast.walk(function) if isinstance(each, ast.Assign))
            found |= {text for value in assigned for text in texts(value) if "_" in text}
    for call in (each for tree in trees for each in ast.walk(tree) if isinstance(each, ast.Call)):
        if isinstance(call.func, ast.Name) and call.func.id in handed:
            found |= {text for argument in call.args for text in texts(argument)}
    return {each for each in found if EVENT.fullmatch(each)}


def template(node: ast.AST) -> str:
    """A text with `...` for what is put in."""
    if isinstance(node, ast.Constant):
        return str(node.value)
    if isinstance(node, ast.JoinedStr):
        return "".join(template(each) if isinstance(each, ast.Constant) else "..." for each in node.values)
    return "..."


def problem_texts(function: ast.FunctionDef | ast.AsyncFunctionDef) -> Iterator[str]:
    """Of a function, the texts that are said of something that is wrong."""
    only_problems = ast.unparse(function.returns or ast.Constant("")).endswith("Iterator[str]")
    for node in ast.walk(function):
        told: list[ast.expr | None] = []
        if isinstance(node, ast.Yield | ast.YieldFrom) and only_problems:
            told = [node.value]
        elif isinstance(node, ast.Tuple) and len(node.elts) in (2, 3):
            told = [node.elts[-1]]
        elif isinstance(node, ast.Assign | ast.AugAssign):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            if any(isinstance(each, ast.Name) and re.match("problem|cannot|wrong", each.id) for each in targets):
                told = [node.value]
        elif isinstance(node, ast.Call) and ast.unparse(node.func).endswith("problems.append"):
            told = list(node.args)
        elif isinstance(node, ast.Return) and function.name in ("_missing_secrets", "_not_read", "peers_without_keys"):
            told = [node.value]
        for each in told:
            parts = [each] if each is not None else []
            for part in parts:
                inner = [found for found in ast.walk(part) if isinstance(found, ast.JoinedStr | ast.Constant)]
                within = {id(value) for found in inner if isinstance(found, ast.JoinedStr) for value in ast.walk(found)}
                for found in inner:
                    text = template(found)
                    if (isinstance(found, ast.JoinedStr) or id(found) not in within) and text.count(" ") > 3:
                        yield text


def findings() -> set[str]:
    trees = (ast.parse((RELAY / name).read_text()) for name in FINDERS)
    every = chain.from_iterable(map(functions, trees))
    return {text for each in every if each.name not in OF_NO_FAULT for text in problem_texts(each)}


def test_each_event_is_in_the_runbook_and_none_that_is_not_logged() -> None:
    known = logged()
    assert len(known) > 120
    assert {"put_in_quarantine", "sent_in_clear", "record_file_not_read", "kme_call_failed"} <= known
    assert set(named(sections("Log events"))) == known


def test_each_finding_in_the_runbook_is_made() -> None:
    known = findings()
    assert len(known) > 30
    documented = named(sections("Findings of check"))
    assert len(documented) > 20
    assert [part for part in documented if not any(part in text for text in known)] == []


def test_each_fault_of_postfix_is_in_the_runbook_beside_the_alarm_that_it_raises() -> None:
    source = "".join(path.read_text() for path in (RELAY / "postfix").glob("*.py"))
    known = set(re.findall(r'(?:PostfixFault|fault)\(\s*"([a-z0-9-]+)"', source))
    rows = re.findall(r"^\| (`.*?) \|.*\| (.*?) \|$", sections("Findings of check --postfix"), re.MULTILINE)
    raised = {"postfix_bypasses": PAST_THE_RELAY, "postfix_holds": KEEPS_BACK, "postfix_unwatched": {UNREAD, UNJUDGED}}
    assert {alarm.strip("`"): sorted(re.findall(r"`([^`]+)`", names)) for names, alarm in rows} == {
        **{alarm: sorted(codes) for alarm, codes in raised.items()},
        "none": sorted(known.difference(*raised.values())),
    }


@pytest.mark.parametrize(
    ("title", "known"),
    [
        ("Reasons of the quarantine", set(REASONS)),
        ("What a KME error is called", KME_ERRORS),
    ],
    ids=["quarantine", "KME"],
)
def test_each_word_for_what_is_wrong_is_in_the_runbook(title: str, known: set[str]) -> None:
    assert set(named(sections(title))) == known


def test_no_event_is_said_by_two_rows() -> None:
    names = named(sections("Log events"))
    assert sorted(set(names)) == sorted(names)


def test_why_a_document_is_not_taken_is_said_in_the_words_of_the_code() -> None:
    source = "".join((RELAY / path).read_text() for path in ("identity/peers.py", "cli/peer_domains.py"))
    messages = named(sections("Why an invitation or document is not taken"))
    assert len(messages) > 5
    for told in messages:
        for part in re.split(r" \.\.\.(?: |, |$)", told):
            assert part in source, part
