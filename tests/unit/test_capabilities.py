"""The table in relay/README.md of what the lines are for is whole, and as `python -m tests.capabilities` prints it.
A tenth more or less is no reason to edit it.
"""

from __future__ import annotations

import re
from collections import Counter
from pathlib import Path

from tests.capabilities import CAPABILITIES, RELAY, files_of, table


def test_each_file_of_the_relay_serves_one_capability() -> None:
    counted = Counter(file for each in CAPABILITIES for file in files_of(each))
    assert counted == Counter(RELAY.rglob("*.py"))


def test_the_document_has_the_table() -> None:
    text = Path(RELAY / "README.md").read_text()
    shown = re.findall(r"^\| (.+?) \| ([\d,]+) \| (.+?) \|$", text, re.MULTILINE)
    rows = table()
    assert [(what, who) for what, _, who in shown] == [(what, who) for what, _, who in rows]
    for (what, lines, _), (_, said, _) in zip(rows, shown, strict=True):
        assert abs(lines - int(said.replace(",", ""))) <= lines / 10, what
