"""Documents and docstrings have short sentences, administrators' pages are short too, and all texts use plain words.
Standard: 30 words a sentence, 25 in code; 1,500 words a page, but for what is looked up (settings, metrics, runbook).
Pronouns that may mean two things, and sentences that begin with a question word, are below 6 % of each page.
"""

from __future__ import annotations

import ast
import io
import re
import tokenize
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
ROOMS = ("relay", "policies", "deploy", "tests")
DOCUMENTS = sorted(
    str(path.relative_to(ROOT))
    for path in (ROOT / "README.md", *(each for room in ROOMS for each in (ROOT / room).rglob("*.md")))
    if "node_modules" not in path.parts
)
PAGES = (
    "README",
    "INSTALL",
    "WEEK",
    "TRYING",
    "SCANNERS",
    "POSTFIX",
    "MAIL-SERVERS",
    "PEERS",
    "KEYS",
    "WATCHING",
    "RUNNING",
    "PORTS",
    "GROUPS",
    "POSTFIX-WATCH",
    "SPEED",
    "CONCEPTS",
)
DEVELOPERS = ("relay/ADDING.md",)
MAX_WORDS, MAX_SENTENCE, MAX_IN_CODE = 1500, 30, 25
PRONOUNS = frozenset({"it", "that", "what", "which", "such"})
FIRST_WORDS = frozenset({"what", "where", "who"})
MAX_SHARE = 0.06
"""Of all words outside code, tables included; of all sentences, for the first word."""
CODE = sorted(each.name for each in (ROOT / "relay").iterdir() if each.is_dir() and each.name != "__pycache__")


def sentences(text: str) -> list[list[str]]:
    """The words of each sentence: of prose and lists, not of tables, headings or what is typed."""
    text = re.sub(r"^```.*?^```$", "", text, flags=re.DOTALL | re.MULTILINE)
    text = re.sub(r"^(\|.*|#.*| {4}.*)$", "", text, flags=re.MULTILINE)
    text = re.sub(r"\]\([^)]*\)", "]", text)
    text = re.sub(r"``.*?``|`[^`]*`", "code", text)
    found = re.split(r"\n\s*\n|^- |(?<=[.?!])[)*]*\s+", text, flags=re.MULTILINE)
    return [words for words in (re.findall(r"[\w'-]+", each) for each in found) if words]


def evasive(text: str) -> bool:
    """Whether the page has too many pronouns, or sentences that begin with a question word. One sentence is none too many."""
    every = [words for line in re.findall(r"^\|.*", text, re.MULTILINE) for words in sentences(line.replace("|", " "))]
    begun = [words[0].lower() in FIRST_WORDS for words in sentences(text)]
    every += sentences(text)
    pronouns = [word.lower() in PRONOUNS for words in every for word in words]
    return sum(pronouns) > MAX_SHARE * len(pronouns) or sum(begun) > max(1, MAX_SHARE * len(begun))


@pytest.mark.parametrize("document", DOCUMENTS)
def test_each_page_names_what_it_speaks_of(document: str) -> None:
    assert not evasive((ROOT / document).read_text())


def test_evasive_pages_are_found() -> None:
    plain = "The relay seals mail. " * 20
    assert not evasive(plain + "What waits is kept.")
    assert evasive(plain + "What waits is kept. " * 2)
    assert evasive(plain + "| it, that, which |\n" * 20)
    assert evasive(plain + "\n\n| it, that, which |\n" * 20)


def test_a_long_sentence_is_found() -> None:
    assert [
        len(each) for each in sentences("- One two `three four`.\n- Five ([six](seven.md)); eight.\n\n| nine |")
    ] == [3, 3]


@pytest.mark.parametrize("page", [*(f"deploy/{page}.md" for page in PAGES), *DEVELOPERS])
def test_each_page_is_short(page: str) -> None:
    assert len((ROOT / page).read_text().split()) <= MAX_WORDS


def test_the_first_page_is_shortest() -> None:
    assert len((ROOT / "README.md").read_text().splitlines()) <= 120


@pytest.mark.parametrize("document", DOCUMENTS)
def test_each_sentence_is_short(document: str) -> None:
    text = (ROOT / document).read_text()
    assert [" ".join(each) for each in sentences(text) if len(each) > MAX_SENTENCE] == []


def texts_of(code: str) -> Iterator[str]:
    """Each docstring, each text under a constant or setting, and each comment of several lines as one."""
    for node in ast.walk(ast.parse(code)):
        for each in getattr(node, "body", ()) if not isinstance(node, ast.Lambda | ast.IfExp) else ():
            if (
                isinstance(each, ast.Expr)
                and isinstance(each.value, ast.Constant)
                and isinstance(each.value.value, str)
            ):
                yield each.value.value
    comment: list[str] = []
    for token in tokenize.generate_tokens(io.StringIO(code).readline):
        if token.type == tokenize.COMMENT:
            comment.append(token.string.lstrip("# "))
        elif token.type != tokenize.NL and comment:
            yield " ".join(comment)
            comment = []


def sentences_of(text: str) -> Iterator[str]:
    """Those of prose: not of tables, nor of what stands in columns. Standards count one by one."""
    lines = ("" if re.match(r"\s*\|", line) or re.search(r"\S {2,}\S", line) else line for line in text.split("\n"))
    for part in re.split(r"\n\s*\n|\n\s*(?=[-*] )|\n(?=Standard: )", "\n".join(lines)):
        ends = r"[;,.:(]\s" if part.strip().startswith("Standard:") else r"(?<=[.?!])[)*\"]*\s+"
        yield from (re.sub(r"``.*?``|`[^`]*`", "code", each) for each in re.split(ends, part))


def too_long(room: Path) -> list[str]:
    files = room.rglob("*.py") if room.is_dir() else [room]
    return [
        f"{file.relative_to(ROOT)}: {' '.join(each.split())}"
        for file in sorted(files)
        for text in texts_of(file.read_text())
        for each in sentences_of(text)
        if len(re.findall(r"[\w'-]+", each)) > MAX_IN_CODE
    ]


def test_a_long_sentence_in_code_is_found() -> None:
    words = " ".join(["word"] * 13)
    code = f'def f() -> None:\n    """Short. A {words}\n    {words}."""\n\n    # b {words}\n    # {words}\n    x = 1\n'
    assert [len(each.split()) for text in texts_of(code) for each in sentences_of(text)] == [1, 27, 27]


@pytest.mark.parametrize("room", [*CODE, "outgoing.py", "incoming.py", "mail.py", "errors.py"])
def test_each_sentence_in_code_is_short(room: str) -> None:
    assert too_long(ROOT / "relay" / room) == []


def test_texts_use_plain_words() -> None:
    """Nobody is meant by a pronoun that leaves half of them out, and a limit is a noun with its unit."""
    odd = re.compile(
        r"(?<![a-z])(?:he|him|his|himself|whoever|whomever)(?![a-z])|(?:\"\"\"|# )So (?:many|long|often|much)\b",
        re.IGNORECASE,
    )
    texts = [
        ROOT / "README.md",
        *(path for room in ROOMS for path in (ROOT / room).rglob("*") if path.suffix in {".md", ".py"}),
    ]
    found = [
        f"{path.relative_to(ROOT)}: {match[0]}"
        for path in texts
        if path != Path(__file__) and "spellings" not in path.parts and "node_modules" not in path.parts
        for match in odd.finditer(path.read_text())
    ]
    assert found == []
