"""What commands print as a table fits 80 columns, or as many as COLUMNS says, and says all of what it has to.
A terminal that is narrower or wider is rich's affair; pipes and files have none.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
LONG = "a-name-that-is-longer-than-any-column-of-a-narrow-table.example"
KEYS = """
from relay.cli.keys import _print
from relay.cli.output import plain_console

row = {"kme": LONG, "peer": LONG, "pool_keys": 32, "stored_keys": 1280000, "refill_bits_per_s": 31200.0,
       "use_bits_per_s": 1234567.0, "empty_in_s": 4000.0, "trouble": "", "alarm": True}
level = {"peer": LONG, "level": "otp", "keys_used": 123456789, "use_bits_per_s": 1.0, "share": 0.9, "empty_in_s": None}
received = {"group": LONG, "master_sae": LONG, "held": 3, "used": 100000, "destroyed": 99999}
_print(plain_console(), {"source": "the serving relay", "age_s": 3.0, "pools": [row], "levels": [level],
       "received": [received], "peers_without_keys": [], "certificates": []})
"""
LEDGER = """
from relay.cli.ledger import _print

_print([{"number": 123456, "time": "2026-11-27T02:44:19Z", "event": "downgraded", "peer": LONG, "used": "pqc+aes",
         "listed": ["otp", "aes"], "policy": LONG, "reason": LONG}])
"""
QUARANTINE = """
from unittest.mock import patch
from relay.cli import as_relay, quarantine
from relay.mail import Envelope, Recipient
from relay.store.quarantine import Kept
from types import SimpleNamespace

kept = SimpleNamespace(id="q123456789ab", arrived_at=1.8e9, reason="outside-window", size=25000000, cause=LONG,
                       envelope=Envelope(LONG, (Recipient(LONG),)))

async def everything(*_):
    return [kept]

with patch.object(quarantine, "_all", everything), patch.object(quarantine, "_config", lambda _: None):
    with patch.object(as_relay, "become_the_relays_user", lambda _: None):
        quarantine.list_messages.main([], standalone_mode=False)
"""


Printed = Callable[[str, int | None], str]


@pytest.fixture
def printed(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Printed:
    """What a program prints where COLUMNS says so many, or nothing; into a pipe or a file, which is no terminal."""

    def run(program: str, columns: int | None) -> str:
        for name in ("COLUMNS", "LINES"):
            monkeypatch.delenv(name, raising=False)
        if columns:
            monkeypatch.setenv("COLUMNS", str(columns))
        exec(program, {"LONG": LONG})
        return capsys.readouterr().out

    return run


@pytest.mark.parametrize("program", [KEYS, LEDGER, QUARANTINE], ids=["keys status", "ledger show", "quarantine list"])
def test_a_table_is_no_wider_than_it_may_be_and_nothing_is_cut_off(program: str, printed: Printed) -> None:
    for columns in (None, 200):
        shown = printed(program, columns)
        assert max(map(len, shown.splitlines())) <= (columns or 80)
        assert "…" not in shown
        in_columns = zip(*(line.split("│") for line in shown.splitlines() if line.startswith("│")), strict=False)
        assert any(LONG in re.sub(r"\s", "", "".join(column)) for column in in_columns)
    assert max(map(len, shown.splitlines())) > 80


POLICIES = """
from relay.cli.output import plain_console, print_table

print_table(plain_console(), ("File", "Covers", "Levels", "Time"), [
    ("alice.example/ann.toml", "one person at alice.example, and nobody else there",
     "PLAINTEXT: not sealed, leaves in clear", "2026-11-27T02:44:19Z"),
    ("x.toml", "everybody else", "otp, aes", ""),
])
"""


def test_words_are_broken_only_where_there_is_no_room_for_them(printed: Printed) -> None:
    shown = printed(POLICIES, None)
    assert max(map(len, shown.splitlines())) <= 80
    for word in ("alice.example/ann.toml", "2026-11-27T02:44:19Z", "PLAINTEXT:", "alice.example,"):
        assert word in shown


def test_no_command_has_tables_or_json_of_its_own_kind() -> None:
    own = {
        path.name
        for path in (ROOT / "relay" / "cli").glob("*.py")
        if re.search(r"\b(Table|_WholeWords|Table\.grid)\(|json\.dumps\(.*indent", path.read_text())
    }
    assert own == {"output.py"}
