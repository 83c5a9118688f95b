"""Writes the test vectors: `python -m tests.vectors.make [DIRECTORY]`, by default beside this file.
Standard: cases of levels otp and aes come out octet for octet the same; signatures and encapsulations are random.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterable, Iterator
from pathlib import Path

from tests.vectors.case import DIRECTORY, Case
from tests.vectors.made_aes import aes_cases
from tests.vectors.made_attacks import attack_cases
from tests.vectors.made_certified import certified_cases
from tests.vectors.made_enhanced import enhanced_cases
from tests.vectors.made_envelope import envelope_cases
from tests.vectors.made_otp import otp_cases


def cases() -> Iterator[Case]:
    """Every case, made anew."""
    yield from otp_cases()
    yield from aes_cases()
    yield from envelope_cases()
    yield from certified_cases()
    yield from enhanced_cases()
    yield from attack_cases()


def write(directory: Path, made: Iterable[Case]) -> None:
    """One file a case; files of cases that are no more are removed."""
    for path in directory.glob("*.txt"):
        path.unlink()
    for case in made:
        assert not (directory / f"{case.name}.txt").exists(), case.name
        (directory / f"{case.name}.txt").write_bytes(case.text())


if __name__ == "__main__":
    parser = argparse.ArgumentParser(prog="python -m tests.vectors.make", description=__doc__)
    parser.add_argument("directory", nargs="?", type=Path, default=DIRECTORY, help="its *.txt are replaced")
    write(parser.parse_args().directory, cases())
