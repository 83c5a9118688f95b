"""What root types to install loads no module from the directory where root happens to be.
Standard: Python's -I and -P; without them `-c`, `-m` and `-` look into the current directory first.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

DEPLOY = Path(__file__).parents[2] / "deploy"
SCRIPTS = [
    each for each in sorted(DEPLOY.rglob("*")) if each.is_file() and each.read_bytes().startswith(b"#!/bin/sh")
] + [DEPLOY / "environment"]
_RUNS_PYTHON = re.compile(r'(?:"[^"\n]*python3?"|\S*\bpython3?) (?=-|"\$root)(?!-[IP] )[^\n]*')
PLANTED = ("ensurepip", "venv", "hashlib", "pathlib", "sysconfig", "pip", "zlib", "random", "tempfile")


@pytest.mark.promise("Root's working directory counts for nothing")
def test_planted_modules_are_not_loaded_by_deploy_install(tmp_path: Path) -> None:
    (programs := tmp_path / "bin").mkdir()
    (programs / "python3").symlink_to(sys.executable)
    (planted := tmp_path / "planted").mkdir()
    for name in PLANTED:
        (planted / f"{name}.py").write_text("import os\nopen(os.environ['LOADED'], 'w').write(__file__)\n")
    environment = {
        **os.environ, "LOADED": str(tmp_path / "loaded"), "PIP_NO_INDEX": "1",
        "PATH": f"{programs}:{os.environ['PATH']}", "PYTHONPATH": str(planted),
    }  # fmt: skip
    done = subprocess.run(
        [DEPLOY / "install", tmp_path / "relay"], cwd=planted, env=environment, capture_output=True, text=True
    )
    assert "the Python packages could not be installed" in done.stderr
    assert (tmp_path / "relay/bin/python").exists()
    assert not (tmp_path / "loaded").exists(), (tmp_path / "loaded").read_text()


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda script: str(script.relative_to(DEPLOY)))
def test_each_python_of_a_script_is_isolated_from_the_current_directory(script: Path) -> None:
    lines = [line for line in script.read_text().splitlines() if not line.lstrip().startswith("#")]
    assert [match[0] for line in lines for match in _RUNS_PYTHON.finditer(line)] == []
