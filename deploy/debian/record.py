"""Lists what the package installs in RECORD, compiled files too, and none of the build: `python record.py PACKAGES`.
Standard: PyPA, recording installed projects.
"""

from __future__ import annotations

import base64
import csv
import hashlib
import sys
from importlib.util import cache_from_source
from pathlib import Path


def main(packages: Path) -> None:
    """Rewrites the RECORD of each distribution there."""
    for record in packages.glob("*.dist-info/RECORD"):
        with record.open(newline="", encoding="utf-8") as file:
            rows = [row for row in csv.reader(file) if (packages / row[0]).exists() and not row[0].startswith("../")]
        sources = [packages / row[0] for row in rows if row[0].endswith(".py")]
        rows += [
            row(packages, compiled) for each in sources if (compiled := Path(cache_from_source(str(each)))).exists()
        ]
        with record.open("w", newline="", encoding="utf-8") as file:
            csv.writer(file, lineterminator="\n").writerows(rows)


def row(packages: Path, file: Path) -> list[str]:
    """The path, hash and size of a file."""
    content = file.read_bytes()
    digest = base64.urlsafe_b64encode(hashlib.sha256(content).digest()).rstrip(b"=").decode()
    return [str(file.relative_to(packages)), f"sha256={digest}", str(len(content))]


if __name__ == "__main__":
    main(Path(sys.argv[1]))
