"""What the log holds, and what it never holds.
Standard: no content, no key, at any level and in any traceback.
"""

from __future__ import annotations

import json
import subprocess
import sys

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
