"""What the log holds, and what it never holds.
Standard: no content, no key, at any level and in any traceback.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

PROGRAM = """
import structlog
from relay.cli.logs import configure_logging
from relay.config import LogSettings
configure_logging(LogSettings(level="debug", format="{format}"))
def fails(key):
    raise ValueError("what went wrong")
try:
    fails(b"the key " + b"itself")
except ValueError as error:
    structlog.get_logger().error("it_failed", exc_info=error)
"""


@pytest.mark.parametrize("form", ["json", "console"])
def test_a_traceback_in_the_log_shows_where_but_no_values(form: str) -> None:
    done = subprocess.run([sys.executable, "-c", PROGRAM.replace("{format}", form)], capture_output=True, check=True)
    assert b"what went wrong" in done.stderr
    assert b"fails" in done.stderr
    assert b"the key itself" not in done.stderr
    if form == "json":
        assert json.loads(done.stderr)["event"] == "it_failed"


OF_EACH_LEVEL = """
import logging
import structlog
log = structlog.get_logger()
for say in (log.debug, log.info, log.warning, log.error, log.exception):
    say("event")
logging.getLogger("library").warning("its words")
"""


def said_to_a_file(tmp_path: Path, form: str, program: str, *, journal: bool) -> list[str]:
    """The lines of a program whose standard error is a file, which systemd says is the journal's, or is not."""
    with (tmp_path / "log").open("w+b") as file:
        found = os.fstat(file.fileno())
        stream = f"{found.st_dev}:{found.st_ino + (not journal)}"
        before = PROGRAM.replace("{format}", form)
        subprocess.run(
            [sys.executable, "-c", before + program],
            stderr=file,
            check=True,
            env=os.environ | {"JOURNAL_STREAM": stream},
        )
        file.seek(0)
        return file.read().decode().splitlines()


HOSTILE = """
import unicodedata
hostile = "x".join(map(chr, (number for number in range(0x110000) if unicodedata.category(chr(number)) in
                             ("Cc", "Cf", "Zl", "Zp", "Zs"))))
log = structlog.get_logger()
log.warning("event", cause=hostile, several=[hostile], named={"name": hostile})
log.warning(hostile)
try:
    raise ValueError(hostile)
except ValueError as error:
    log.error("failed", exc_info=error)
logging.getLogger("library").warning("its words: %s", hostile)
try:
    raise ValueError(hostile)
except ValueError:
    logging.getLogger("library").exception("its exception")
"""


@pytest.mark.promise("Nothing in the log moves the cursor of a terminal, or looks like another line")
@pytest.mark.parametrize("form", ["console", "json"])
@pytest.mark.parametrize("journal", [True, False])
def test_nothing_in_a_line_of_the_log_moves_a_terminals_cursor_or_begins_another_line(
    tmp_path: Path, form: str, journal: bool
) -> None:
    lines = said_to_a_file(tmp_path, form, "import logging\n" + HOSTILE, journal=journal)
    shown = "\n".join(lines[1 if form == "json" else 0 :])
    assert {char for char in shown if not char.isprintable()} <= {"\n", "\x7f"}
    assert "\x7f" not in shown or form == "json"
    assert sum("its words" in line for line in lines) == 1
    assert sum("several" in line for line in lines) == 1
    assert r"\x1b" in shown or r"\u001b" in shown


def test_the_journal_is_told_how_bad_each_line_is(tmp_path: Path) -> None:
    lines = said_to_a_file(tmp_path, "auto", OF_EACH_LEVEL, journal=True)
    assert [line[:3] for line in lines] == ["<3>", "<7>", "<6>", "<4>", "<3>", "<3>", "<4>"]
    assert [json.loads(line[3:])["level"] for line in lines[1:5]] == ["debug", "info", "warning", "error"]
    assert "its words" in lines[-1]


def test_each_line_of_a_traceback_is_as_bad_as_what_it_is_about(tmp_path: Path) -> None:
    lines = said_to_a_file(tmp_path, "console", "", journal=True)
    assert len(lines) > 3
    assert {line[:3] for line in lines} == {"<3>"}


def test_what_is_not_the_journal_gets_lines_as_they_are(tmp_path: Path) -> None:
    lines = said_to_a_file(tmp_path, "auto", OF_EACH_LEVEL, journal=False)
    assert all(line.startswith("{") for line in lines[:-1])
    assert lines[-1].startswith("WARNING:library")
