"""Credentials of systemd: what a service has in memory, and the disk only encrypted.
Standard: systemd.exec(5), CREDENTIALS. A setting names one by its path, /run/credentials/UNIT.service/NAME.

The path is there while the unit runs, for its user alone. Another unit has its credentials in a directory of its own.
So NAME is looked for in $CREDENTIALS_DIRECTORY first.
"""

from __future__ import annotations

import os
import stat
from pathlib import Path

from relay.files import resolved
from relay.files.commands import command

PLACE = Path("/run/credentials")


def credential_name(path: Path) -> str:
    """The name of the credential that this path means; "" for a file that is none."""
    return path.name if path.parent.parent == PLACE else ""


def place_of(path: Path) -> Path:
    """Where the content is for this process: the path itself, unless it means a credential."""
    if (name := credential_name(path)) and (directory := os.environ.get("CREDENTIALS_DIRECTORY")):
        given = Path(directory, name)
        return given if _is_there(given) else path
    return path


def is_there(path: Path) -> bool:
    """Whether there is a file or credential for this path."""
    return _is_there(place_of(path))


def _is_there(path: Path) -> bool:
    return os.access(path, os.F_OK, effective_ids=True)


def shown_by_systemd(path: Path, status: os.stat_result) -> bool:
    """Whether only its service can read it although the mask of an ACL shows as a group's mode."""
    if status.st_uid or not stat.S_ISREG(status.st_mode):
        return False
    directory = os.environ.get("CREDENTIALS_DIRECTORY")
    return bool(credential_name(path)) or (bool(directory) and resolved(path.parent) == resolved(Path(directory or "")))


def missing(path: Path) -> str:
    """What to say of a credential that is not there; "" where the path means none."""
    if not (name := credential_name(path)):
        return ""
    unit = path.parent.name
    why = command("systemctl", "status", unit)
    return (
        f"{path}: credential {name} is there only while {unit} runs with it (deploy/OPERATING.md, Credentials); why it "
        f"does not: {why}"
    )
