"""Programs among the tests say what they are for when they are asked, and do nothing then.
Standard: `--help` ends with 0, and no file or directory is made where they were called.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]
PROGRAMS = sorted(
    ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__main__")
    for path in (ROOT / "tests").rglob("*.py")
    if '\nif __name__ == "__main__":\n' in path.read_text()
)


def test_all_are_found() -> None:
    assert {"tests.system.corpus", "tests.system.policy_scale", "tests.vectors.make"} <= set(PROGRAMS)


@pytest.mark.parametrize("program", PROGRAMS)
def test_a_program_that_is_asked_for_help_gives_it_and_does_nothing_else(program: str, tmp_path: Path) -> None:
    asked = subprocess.run(
        [sys.executable, "-m", program, "--help"],
        cwd=tmp_path, env={"PYTHONPATH": str(ROOT)}, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert (asked.returncode, asked.stderr) == (0, "")
    assert f"python -m {program}" in asked.stdout
    assert not list(tmp_path.iterdir())
