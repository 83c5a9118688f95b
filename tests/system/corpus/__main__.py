"""Writes the corpus into a directory: NAME.eml, and expected.txt with what must become of each.
Standard: what stands in the files is exactly what is submitted; nothing that is there already is deleted.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from tests.system.corpus import Case, corpus


def _expectation(case: Case) -> str:
    if case.arrives is None:
        return f"refused: {case.refusal}"
    if case.arrives == case.message:
        return "arrives octet for octet"
    return f"arrives with {len(case.arrives)} octets of {len(case.message)}"


def main() -> None:
    """Exit status 2 where no directory is named."""
    parser = argparse.ArgumentParser(prog="python -m tests.system.corpus", description=__doc__)
    parser.add_argument("directory", type=Path, help="made where it is missing")
    directory: Path = parser.parse_args().directory
    directory.mkdir(parents=True, exist_ok=True)
    cases = corpus()
    for case in cases:
        (directory / f"{case.name}.eml").write_bytes(case.message)
    (directory / "expected.txt").write_text("".join(f"{case.name}: {_expectation(case)}\n" for case in cases))
    sys.stdout.write(f"{len(cases)} messages in {directory}\n")


if __name__ == "__main__":
    main()
