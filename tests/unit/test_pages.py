"""Man pages and completion are made of the commands themselves: each command has its page, and each option is on it.
Standard: man(7); deploy/debian/pages.py writes them when the package is built.
"""

from __future__ import annotations

import gzip
import runpy
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import click
import pytest

from relay.cli import cli

PROGRAM = Path(__file__).parents[2] / "deploy" / "debian" / "pages.py"
PAGES: dict[str, str] = runpy.run_path(str(PROGRAM))["pages"]("1.2.3")


def commands(context: click.Context) -> Iterator[click.Context]:
    yield context
    if isinstance(context.command, click.Group):
        for name in context.command.list_commands(context):
            command = context.command.get_command(context, name)
            assert command is not None
            if not command.hidden:
                yield from commands(click.Context(command, info_name=name, parent=context))


ALL = list(commands(click.Context(cli, info_name="qumail-relay")))


def page(context: click.Context) -> str:
    return "-".join(context.command_path.split()[:2])


def plain(text: str) -> str:
    """Without what is there for roff."""
    return text.replace("\\-", "-").replace("\\(dq", '"').replace("\\fB", "").replace("\\fR", "")


def test_there_is_a_page_for_each_command_and_for_nothing_else() -> None:
    assert len(ALL) > 30
    assert set(PAGES) == {page(context) for context in ALL}


@pytest.mark.parametrize("context", ALL, ids=lambda context: context.command_path)
def test_a_command_is_on_its_page_with_all_its_options(context: click.Context) -> None:
    text = plain(PAGES[page(context)])
    if len(context.command_path.split()) > 2:
        assert f'\n.SH "{context.command_path}"\n' in text
    for parameter in context.command.get_params(context):
        if record := parameter.get_help_record(context):
            assert f"\n{record[0]}\n" in text


def test_the_first_page_names_all_others() -> None:
    for name in PAGES.keys() - {"qumail-relay"}:
        assert f"{name}(1)" in plain(PAGES["qumail-relay"])


@pytest.mark.skipif(shutil.which("man") is None, reason="man is not installed")
@pytest.mark.parametrize("name", sorted(PAGES))
def test_man_has_nothing_to_say_against_a_page(name: str, tmp_path: Path) -> None:
    file = tmp_path / f"{name}.1"
    file.write_text(PAGES[name])
    shown = subprocess.run(
        ["man", "--warnings", "--local-file", "--pager=cat", file],
        env={"PATH": "/usr/bin:/bin", "LC_ALL": "C.UTF-8", "MANWIDTH": "80"},
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert shown.stderr == ""
    assert "SYNOPSIS" in shown.stdout


def test_all_is_written_where_man_and_the_shells_look(tmp_path: Path) -> None:
    subprocess.run([sys.executable, PROGRAM, "1.2.3", tmp_path], check=True)
    written = {str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*") if path.is_file()}
    completion = {"bash-completion/completions/qumail-relay", "zsh/vendor-completions/_qumail-relay"}
    assert written == completion | {f"man/man1/{name}.1.gz" for name in PAGES}
    assert gzip.decompress((tmp_path / "man/man1/qumail-relay.1.gz").read_bytes()).decode() == PAGES["qumail-relay"]
    assert (tmp_path / "zsh/vendor-completions/_qumail-relay").read_text().startswith("#compdef qumail-relay")
