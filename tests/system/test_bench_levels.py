"""The benchmark of the levels from outside: every level at every size, each figure there, nothing left behind.
Standard: no time and no speed is asserted, since the machine may be busy.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from typing import Any

import pytest

from tests.bench.levels import MEASURED, SIZES


@pytest.fixture(scope="module")
def result(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """What `bench --levels --quick --json` says."""
    directory = tmp_path_factory.mktemp("bench")
    done = subprocess.run(
        [sys.executable, "-m", "tests.bench", "--levels", "--quick", "--json", "-"],
        capture_output=True, text=True, check=False, timeout=100, env={**os.environ, "TMPDIR": str(directory)},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert not list(directory.iterdir())
    return json.loads(done.stdout)


def test_every_level_is_measured_at_every_size(result: Any) -> None:
    measured = [(figures["size"], figures["level"]) for figures in result["figures"]]
    assert measured == [(size, level) for size in SIZES[:2] for level in MEASURED]
    for figures in result["figures"]:
        assert figures["sealed_size"] > figures["size"]
        for way in ("seal", "open"):
            assert figures[way]["seconds"] > 0
            assert figures[way]["memory"] > 1
            assert figures[way]["held"] >= 0
        assert figures["reference"] > 0
        assert figures["bare"] > 0


def test_what_a_megabyte_takes_of_memory_is_a_small_multiple_of_it(result: Any) -> None:
    """5 is aimed at; a thread that has just finished may hold its argument for a moment longer."""
    for figures in result["figures"]:
        if figures["size"] == SIZES[1]:
            assert figures["seal"]["memory"] < 8
            assert figures["open"]["memory"] < 8
