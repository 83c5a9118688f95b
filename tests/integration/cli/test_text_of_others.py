"""What others wrote reaches no terminal as it stands: it is shown as text, with all that could disturb one escaped.
Standard: ECMA-48 (ESC, and CSI as one octet), UAX #9 (signs that turn text around).
"""

from __future__ import annotations

import json
import os
import pty
import subprocess
import sys
from contextlib import suppress

import pytest
from rich.text import Text

from relay.cli.output import plain_console, print_json, print_message

EVIL = "\x1b]0;x\x07\x1b[2J\x9b31m\u202ex\x7f\x08\x00"
RAW = ("\x1b]", "\x1b[2J", "\x9b", "\u202e", "\x7f", "\x08", "\x00", "\x07")
WAYS = {
    "echo": f"import click; click.echo({EVIL!r})",
    "error": f"import click; click.echo({EVIL!r}, err=True)",
    "traceback": f"raise ValueError({EVIL!r})",
    "print": f"print({EVIL!r})",
    "console": f"from relay.cli.output import plain_console; plain_console().print({EVIL!r})",
    "text": "from rich.text import Text; from relay.cli.output import plain_console; "
    f"plain_console().print(Text.assemble(('WRONG', 'bold red'), {EVIL!r}))",
    "table": f"from relay.cli.output import *; print_table(plain_console(), ['a'], [[{EVIL!r}]])",
    "pairs": f"from relay.cli.output import *; print_pairs(plain_console(), [('a', {EVIL!r})])",
    "json": f"from relay.cli.output import *; print_json({{'a': {EVIL!r}}})",
    "message": f"from relay.cli.output import *; print_message({EVIL!r}.encode() + b'\\x9b')",
}


def at_a_terminal(program: str) -> str:
    master, slave = pty.openpty()
    begin = "from relay.cli import stdout; stdout.open_output(); "
    done = subprocess.Popen(
        [sys.executable, "-c", f"{begin}{program}\nstdout.flush_output()"], stdout=slave, stderr=slave
    )
    os.close(slave)
    shown = b""
    with suppress(OSError):
        while piece := os.read(master, 65_536):
            shown += piece
    os.close(master)
    assert done.wait(60) == ("raise" in program), shown
    return shown.decode("utf-8", "surrogateescape")


@pytest.mark.parametrize("way", WAYS)
def test_no_way_to_print_leaves_a_terminal_open_to_text_of_others(way: str) -> None:
    shown = at_a_terminal(WAYS[way])
    assert [each for each in RAW if each in shown] == [], shown
    assert "\\x1b" in shown or "\\u001b" in shown
    assert "\udc9b" not in shown


def test_our_own_colours_stay() -> None:
    assert "\x1b[1;31mWRONG" in at_a_terminal(WAYS["text"])


def test_a_line_end_of_others_begins_no_line_of_its_own(capsys: pytest.CaptureFixture[str]) -> None:
    plain_console().print(Text.assemble(("ok", "bold"), "a\nok all is well"), soft_wrap=True)
    plain_console().print("a\nok all is well", soft_wrap=True)
    assert capsys.readouterr().out == "oka\\nok all is well\na\\nok all is well\n"


def test_json_is_read_again_as_it_was(capsys: pytest.CaptureFixture[str]) -> None:
    print_json({"a": EVIL})
    assert json.loads(capsys.readouterr().out) == {"a": EVIL}


def test_a_message_goes_into_a_file_as_it_is(capfdbinary: pytest.CaptureFixture[bytes]) -> None:
    print_message(EVIL.encode())
    assert capfdbinary.readouterr().out == EVIL.encode()
