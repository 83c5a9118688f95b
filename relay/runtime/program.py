"""Whether the installed program is what was installed, and whether root alone can change it.
Standard: the RECORD file of each installed distribution (PyPA, recording installed projects): path, hash, size.
"""

from __future__ import annotations

import base64
import csv
import hashlib
import os
import stat
import sys
import sysconfig
from collections.abc import Collection
from contextlib import suppress
from functools import lru_cache
from pathlib import Path

import relay

MAX_NAMED = 3
"""Maximum number of files in a finding."""


def places() -> tuple[Path, ...]:
    """The directories whose files a relay runs: its environment; of one that runs from its sources these alone."""
    own = Path(relay.__file__).parent
    if not own.is_relative_to(_site()):
        return (own,)
    return (Path(sys.prefix) if sys.prefix != sys.base_prefix else _site(),)


def differences() -> list[str]:
    """Files that are not as they were installed: missing or of another size, the relay's also of other content. Blocks.

    Sources that a relay runs from are no installation. Scripts are left out, which change when an environment is moved.
    What describes a distribution is too: the relay's version is written there after the installation.
    """
    found = []
    for record in sorted(_site().glob("*.dist-info/RECORD")) if places()[0] != Path(relay.__file__).parent else ():
        with suppress(OSError, ValueError):
            found += [each[0] for each in _rows(record, record.stat().st_mtime_ns) if _differs(*each)]
    return _some(found, "is not as it was installed")


def writable_by_others(trusted: Collection[int]) -> list[str]:
    """Files and directories that users other than root and the `trusted` ones, or a group, can change. Blocks."""
    found = []
    for place in places():
        for where, _, files in os.walk(place):
            for path in (Path(where), *(Path(where, name) for name in files)):
                with suppress(OSError):
                    status = path.lstat()
                    free = status.st_mode & (stat.S_IWOTH | (stat.S_IWGRP if status.st_gid else 0))
                    if status.st_uid not in {0, *trusted} or (free and not stat.S_ISLNK(status.st_mode)):
                        found.append(path)
    return _some(found, "can be changed by others than root")


def _site() -> Path:
    return Path(sysconfig.get_path("purelib"))


@lru_cache(maxsize=1000)
def _rows(record: Path, _changed: int) -> list[tuple[Path, int, str]]:
    """Path, size and, for the relay's own files, digest of each file of a distribution. Read once for each change."""
    own, top = record.parent.name.startswith("qumail_relay-"), record.parent.parent
    rows = [row for row in csv.reader(record.read_text("utf-8").splitlines()) if len(row) == 3 and row[1]]
    return [
        (top / name, int(size or -1), digest if own else "")
        for name, digest, size in rows
        if not name.startswith(("../", record.parent.name))
    ]


def _differs(path: Path, size: int, digest: str) -> bool:
    try:
        found = path.stat()
        return found.st_size != size or (digest != "" and not _has(path, digest, found.st_ino, found.st_ctime_ns))
    except (OSError, ValueError):
        return True


@lru_cache(maxsize=2000)
def _has(path: Path, digest: str, _inode: int, _changed: int) -> bool:
    """Whether the file has this digest. Read once for each change."""
    kind, _, value = digest.partition("=")
    with path.open("rb") as file:
        seen = hashlib.file_digest(file, kind).digest()
    return base64.urlsafe_b64encode(seen).rstrip(b"=").decode() == value


def _some(paths: list[Path], what: str) -> list[str]:
    said = [f"{path}: {what}" for path in paths[:MAX_NAMED]]
    return [*said, f"{len(paths) - MAX_NAMED} more files"] if len(paths) > MAX_NAMED else said
