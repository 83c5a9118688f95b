"""What others wrote reaches no terminal as it stands: it is shown as text, with all that could disturb one escaped.
Standard: ECMA-48 (ESC, and CSI as one octet), UAX #9 (signs that turn text around).
"""

from __future__ import annotations

import asyncio
import json
import os
import pty
import sqlite3
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

import pytest
from rich.text import Text

from relay.cli.output import plain_console, print_json, print_message, print_pairs, print_table
from relay.store.secret import SiteSecret
from relay.store.store import open_store

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
    "heading": f"from relay.cli.output import *; print_table(plain_console(), [{EVIL!r}], [['a']], title={EVIL!r})",
    "cell": "from rich.text import Text; from relay.cli.output import *; "
    f"print_table(plain_console(), ['a'], [[Text({EVIL!r})]])",
    "name": f"from relay.cli.output import *; print_pairs(plain_console(), [({EVIL!r}, 'a')])",
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


@pytest.mark.promise("No text of others reaches a terminal as it stands")
@pytest.mark.parametrize("way", WAYS)
def test_no_way_to_print_leaves_a_terminal_open_to_text_of_others(way: str) -> None:
    shown = at_a_terminal(WAYS[way])
    assert [each for each in RAW if each in shown] == [], shown
    assert "\\x1b" in shown or "\\u001b" in shown
    assert "\udc9b" not in shown


def test_our_own_colours_stay() -> None:
    assert "\x1b[1;31mWRONG" in at_a_terminal(WAYS["text"])


@pytest.mark.promise("No text of others reaches a terminal as it stands")
def test_a_line_end_of_others_begins_no_line_of_its_own(capsys: pytest.CaptureFixture[str]) -> None:
    plain_console().print(Text.assemble(("ok", "bold"), "a\nok all is well"), soft_wrap=True)
    plain_console().print("a\nok all is well", soft_wrap=True)
    assert capsys.readouterr().out == "oka\\nok all is well\na\\nok all is well\n"


def test_nor_does_one_where_a_title_a_cell_or_a_name_ends(capsys: pytest.CaptureFixture[str]) -> None:
    out = plain_console()
    out.print(Text.assemble(("title\n", "bold"), "problem\n"), soft_wrap=True)
    print_table(out, ["a\n"], [[Text("b\nc")]], title="d\n")
    print_pairs(out, [("a\n", "b\nc")])
    shown = capsys.readouterr().out
    assert shown.startswith("title\\nproblem\\n\n")
    assert all(f"{each}\\n" in shown for each in "abd")
    assert "b\\nc" in shown


FORGED = "x\x1b]0;x\x07\u202e\nNext   fix1: touch /root/pwned1\n"


@pytest.fixture
def site(tmp_path: Path) -> Path:
    """A site whose relay's account writes the text into everything that commands show."""
    state = tmp_path / "state"
    state.mkdir(mode=0o700)
    (tmp_path / "policies").mkdir()
    (tmp_path / "relay.toml").write_text(
        '[site]\nname = "alice"\ndomains = ["alice.example"]\nsae_id = "2"\n'
        '[outgoing]\nlisten = "127.0.0.1:0"\nnext_hop = "127.0.0.1:1"\n'
        '[policies]\ndirectory = "policies"\n[store]\ndatabase = "state/relay.db"\nsecret = "state/site.secret"\n'
    )
    secret = SiteSecret.load_or_create(state / "site.secret")

    async def make_store() -> None:
        async with await open_store(state / "relay.db", secret) as store:
            await store.restore_check.go_on()

    asyncio.run(make_store())
    return tmp_path


def command(site: Path, *words: str) -> tuple[int, str]:
    """The exit status and all that was printed."""
    done = subprocess.run(
        [sys.executable, "-m", "relay", *words, "--config", str(site / "relay.toml")],
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, check=False, encoding="utf-8",
    )  # fmt: skip
    return done.returncode, done.stdout


def forged(shown: str) -> list[str]:
    """What of the text reached the terminal as it is, or began a line."""
    return [each for each in ("\x1b", "\x07", "\u202e", "\nNext   fix1") if each in f"\n{shown}"]


def write_keys(site: Path) -> None:
    pool = dict.fromkeys(("refill_bits_per_s", "empty_in_s", "stored_keys", "status_age_s"))
    pool |= {"kme": FORGED, "peer": FORGED, "trouble": FORGED, "pool_keys": 1, "use_bits_per_s": 0, "alarm": False}
    release = {"version": FORGED, "directory": FORGED, "stamp": "x"}
    text = json.dumps({"source": FORGED, "pools": [pool], "levels": [], "release": release})
    (site / "state/keys.json").write_text(text)


def test_what_the_account_writes_for_keys_status_forges_nothing(site: Path) -> None:
    write_keys(site)
    status, shown = command(site, "keys", "status")
    assert (status, forged(shown)) == (1, []), shown
    assert "touch /root/pwned1" in shown


@pytest.mark.promise("This account forges no line of what a command prints for root")
def test_what_the_account_writes_for_check_forges_nothing(site: Path) -> None:
    write_keys(site)
    row = {"alarm": "keys_gone", "about": FORGED, "cause": FORGED, "since": 1, "told": 1}
    (site / "state/alarms.json").write_text(json.dumps({"alarms": [row]}))
    former = site / f"state/relay.db.schema-{FORGED.replace('/', '')}"
    former.touch()
    os.utime(former, (1, 1))
    doubt(site)
    status, shown = command(site, "check")
    assert (status, forged(shown)) == (1, []), shown
    assert shown.count("fix1: touch") > 8


def doubt(site: Path) -> None:
    with sqlite3.connect(site / "state/relay.db") as database:
        assert database.execute("UPDATE store_identity SET doubt = ?", (FORGED,)).rowcount == 1
    database.close()


@pytest.mark.promise("This account forges no line of what a command prints for root")
def test_what_the_account_writes_into_the_store_forges_no_line_of_store_accept(site: Path) -> None:
    doubt(site)
    status, shown = command(site, "store", "accept")
    said = [line for line in shown.splitlines() if not line.startswith("{")]
    assert (status, forged(shown), len(said)) == (0, [], 1), shown


@pytest.mark.parametrize("words", [("keys", "status"), ("check",)])
def test_the_name_of_a_file_forges_no_line_of_an_error(site: Path, words: tuple[str, ...]) -> None:
    with (site / "relay.toml").open("a") as settings:
        settings.write('[identity]\ndirectory = "state/identity"\npeers_directory = "state/peers"\n')
    peers = site / "state/peers"
    peers.mkdir()
    (peers / f"{FORGED.replace('/', '')}.json").write_text("{}")
    status, shown = command(site, *words)
    assert (status, forged(shown)) == (1, []), shown


def test_json_is_read_again_as_it_was(capsys: pytest.CaptureFixture[str]) -> None:
    print_json({"a": EVIL})
    assert json.loads(capsys.readouterr().out) == {"a": EVIL}


def test_a_message_goes_into_a_file_as_it_is(capfdbinary: pytest.CaptureFixture[bytes]) -> None:
    print_message(EVIL.encode())
    assert capfdbinary.readouterr().out == EVIL.encode()
