"""Files and who may read or write them: rights, permissions, stamps that tell a change, TOML.
Standard: a file that cannot be looked at is not gone; what root does follows no link of somebody else.
"""

from __future__ import annotations

import os
from pathlib import Path


def write_whole(path: Path, text: str) -> None:
    """Writes the file so that a reader sees all of it or nothing."""
    beside = path.with_name(f".{path.name}.{os.getpid()}")
    beside.write_text(text)
    beside.replace(path)


def sync_directory(directory: Path) -> None:
    """Puts the directory's own entries on the disk: that a file was made or renamed."""
    descriptor = os.open(directory, os.O_RDONLY | os.O_CLOEXEC | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
