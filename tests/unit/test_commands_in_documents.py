"""Every `qumail-relay ...` that a document tells people to type is a command that there is, with options that it has.
Those of deploy/TRYING.md's two sites are typed and run, in integration/setup/test_two_sites.py.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import click
import pytest

from relay.cli import cli

ROOT = Path(__file__).parents[2]
DOCUMENTS = (
    "README.md",
    "deploy/INSTALL.md",
    "deploy/WEEK.md",
    "deploy/TRYING.md",
    "deploy/POSTFIX.md",
    "deploy/PEERS.md",
    "deploy/SMIME.md",
    "deploy/KEYS.md",
    "deploy/WATCHING.md",
    "deploy/RUNNING.md",
    "deploy/PORTS.md",
    "deploy/GROUPS.md",
    "deploy/SPEED.md",
    "deploy/CONCEPTS.md",
    "deploy/MAIL-SERVERS.md",
    "deploy/OPERATING.md",
    "deploy/RUNBOOK.md",
    "deploy/SCANNERS.md",
    "deploy/AUDIT.md",
    "deploy/dkim/README.md",
    "deploy/imap/README.md",
    "policies/README.md",
    "relay/keys/README.md",
)
LINKED = sorted(
    str(path.relative_to(ROOT))
    for folder in ("", "deploy", "deploy/*", "policies", "relay", "relay/*", "tests", "tests/integration/*")
    for path in ROOT.glob(f"{folder}/*.md".lstrip("/"))
)
BLOCK = re.compile(r"^ *```(?:sh)?\n(.*?)^ *```$", re.DOTALL | re.MULTILINE)


def commands(document: str) -> list[str]:
    lines = "".join(BLOCK.findall((ROOT / document).read_text())).replace("\\\n", " ").splitlines()
    found = (re.search(r"(?:^ *|-- )(?:\S*bin/)?qumail-relay ([a-z].*)", line.partition("  #")[0]) for line in lines)
    return [re.split(r"\s{2,}", each[1])[0] for each in found if each]


CASES = [(document, command) for document in DOCUMENTS for command in commands(document)]


def test_there_are_such_commands() -> None:
    assert len(CASES) > 20
    assert ("README.md", "setup") in CASES


@pytest.mark.promise("Nothing of this account types into root's terminal, or reads it")
@pytest.mark.parametrize("document", ["deploy/debian/postinst", *DOCUMENTS])
def test_nothing_that_goes_on_as_another_user_keeps_roots_terminal(document: str) -> None:
    """A process of that user could type into it (TIOCSTI), while root believes to be alone there."""
    text = (ROOT / document).read_text()
    bare = re.findall(r"^.*(?<!setsid -w )\brunuser (?!--pty |\.\.\.).*$", text, re.MULTILINE)
    assert bare == []


@pytest.mark.parametrize("document", DOCUMENTS)
def test_qumail_relay_is_typed_as_root_and_becomes_the_relays_user_itself(document: str) -> None:
    """Behind runuser another process of that user can trace it until it has started."""
    behind = re.findall(r"^.*\brunuser .*-- qumail-relay.*$", (ROOT / document).read_text(), re.MULTILINE)
    assert behind == []


def every_command(group: click.Group, *words: str) -> Iterator[str]:
    """`policy explain` and so on."""
    context = click.Context(group)
    for name in group.list_commands(context):
        command = group.get_command(context, name)
        if isinstance(command, click.Group):
            yield from every_command(command, *words, name)
        else:
            yield " ".join((*words, name))


def test_the_week_of_a_site_types_only_what_other_pages_explain() -> None:
    """Those pages' commands are typed by tests; what the week shows of the log has its row in the runbook."""
    week = (ROOT / "deploy/WEEK.md").read_text()
    others = "".join((ROOT / f"deploy/{page}.md").read_text() for page in ("INSTALL", "OPERATING"))
    lines = "".join(re.findall(r"^```sh\n(.*?)^```$", week, re.DOTALL | re.MULTILINE)).splitlines()
    assert len(lines) > 15
    assert [line for line in lines if line not in others and not line.startswith("qumail-relay ")] == []
    looked_up = "".join((ROOT / f"deploy/{page}.md").read_text() for page in ("RUNBOOK", "METRICS"))
    named = re.findall(r'["`]([a-z]+(?:_[a-z]+)+)["`]', week)
    assert {"sealed_and_sent", "kme_away", "store_restored"} <= set(named)
    assert [name for name in named if name not in looked_up and name != "quantum_bits"] == []


def test_each_command_is_in_the_book() -> None:
    book = "".join((ROOT / document).read_text() for document in DOCUMENTS)
    assert [each for each in every_command(cli) if each not in book] == []


def anchors(document: Path) -> set[str]:
    """The names under which GitHub finds its headings."""
    headings = re.findall(r"^#+ (.*)$", document.read_text(), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("document", LINKED)
def test_each_link_leads_somewhere(document: str) -> None:
    text = re.sub(r"^```.*?^```", "", (ROOT / document).read_text(), flags=re.DOTALL | re.MULTILINE)
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        if "://" not in target:
            path, _, anchor = target.partition("#")
            found = ((ROOT / document).parent / path).resolve() if path else ROOT / document
            assert found.exists(), f"{document}: {target}"
            assert not anchor or anchor in anchors(found), f"{document}: {target}"


def test_the_book_leads_to_each_of_its_documents() -> None:
    links = set(re.findall(r"\]\(([^)#\s]+)", (ROOT / "deploy/README.md").read_text()))
    assert {str(path.relative_to(ROOT / "deploy")) for path in (ROOT / "deploy").glob("**/*.md")} <= links | {
        "README.md"
    }


@pytest.mark.parametrize(("document", "line"), CASES)
def test_each_is_there(document: str, line: str) -> None:
    words = shlex.split(line)
    command: click.Command = cli
    context = click.Context(cli, info_name="qumail-relay")
    while isinstance(command, click.Group):
        name = words.pop(0)
        found = command.get_command(context, name)
        assert found is not None, f"{document}: {line}"
        command, context = found, click.Context(found, context, name)
    try:
        command.parse_args(context, words)
    except click.BadParameter as error:
        assert "does not exist" in error.message, f"{document}: {line}: {error.message}"
