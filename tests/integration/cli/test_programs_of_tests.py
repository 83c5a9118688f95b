"""Programs among the tests say what they are for when they are asked, and do nothing then.
Standard: `--help` ends with 0, and no file or directory is made where they were called.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).parents[3]
PROGRAMS = sorted(
    ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__main__")
    for path in (ROOT / "tests").rglob("*.py")
    if '\nif __name__ == "__main__":\n' in path.read_text()
)


def test_all_are_found() -> None:
    assert {"tests.system.corpus", "tests.system.policy_scale", "tests.vectors.make"} <= set(PROGRAMS)


ASK = """
import contextlib, io, json, runpy, sys
said = {}
for program in sys.argv[1:]:
    sys.argv = [program, "--help"]
    with contextlib.redirect_stdout(io.StringIO()) as out, contextlib.redirect_stderr(out):
        try:
            runpy.run_module(program, run_name="__main__", alter_sys=True)
            ended = None
        except SystemExit as end:
            ended = end.code
    said[program] = ended, out.getvalue()
print(json.dumps(said))
"""
"""Each is run as `python -m` runs it, in one process: they have most of what they load in common."""


def test_a_program_that_is_asked_for_help_gives_it_and_does_nothing_else(tmp_path: Path) -> None:
    asked = subprocess.run(
        [sys.executable, "-c", ASK, *PROGRAMS],
        cwd=tmp_path, env={"PYTHONPATH": str(ROOT)}, capture_output=True, text=True, check=True,
    )  # fmt: skip
    said = json.loads(asked.stdout)
    assert said.keys() == set(PROGRAMS)
    for program, (ended, text) in said.items():
        assert ended == 0, program
        assert f"python -m {program}" in text, program
    assert asked.stderr == ""
    assert not list(tmp_path.iterdir())


SERVES = """
import asyncio, sys
from tests.testlib.relay_command import start

async def main():
    out = open("out", "wb")
    kme = await start("kme", "--state", "kme", "--port", "0", "--port", "0", stdout=out, stderr=out)
    while open("out").read().count("kme_started") < 2:
        await asyncio.sleep(0.05)
    print(kme.pid, flush=True)
    await asyncio.sleep(300)

asyncio.run(main())
"""


def test_of_a_test_run_that_is_killed_no_command_stays(tmp_path: Path) -> None:
    with subprocess.Popen(
        [sys.executable, "-c", SERVES], cwd=tmp_path, env={"PYTHONPATH": str(ROOT)}, stdout=subprocess.PIPE, text=True
    ) as tests:
        assert tests.stdout is not None
        started = Path("/proc", tests.stdout.readline().strip())
        assert started.exists()
        tests.kill()
    until = time.monotonic() + 30
    while started.exists() and time.monotonic() < until:
        time.sleep(0.02)
    assert not started.exists()
