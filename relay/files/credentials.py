"""systemd credentials: a service has their content in memory, and the disk only encrypted.
Standard: systemd.exec(5), CREDENTIALS. A setting names one by its path, /run/credentials/UNIT.service/NAME.

The path exists while the unit runs, and only for its user. Another unit has its credentials in a directory of its own.
So NAME is first looked up in $CREDENTIALS_DIRECTORY.
"""

from __future__ import annotations

import os
import stat
from pathlib import Path

from relay.files import resolved
from relay.files.commands import command

PLACE = Path("/run/credentials")


def credential_name(path: Path) -> str:
    """The name of the credential with this path; "" for other files."""
    return path.name if path.parent.parent == PLACE else ""


def place_of(path: Path) -> Path:
    """The path of the content for this process: a credential may be in $CREDENTIALS_DIRECTORY."""
    if (name := credential_name(path)) and (directory := os.environ.get("CREDENTIALS_DIRECTORY")):
        given = Path(directory, name)
        return given if _is_there(given) else path
    return path


def is_there(path: Path) -> bool:
    """Whether this path leads to a file or credential."""
    return _is_there(place_of(path))


def _is_there(path: Path) -> bool:
    return os.access(path, os.F_OK, effective_ids=True)


def shown_by_systemd(path: Path, status: os.stat_result) -> bool:
    """Whether this is a systemd file for its service only, though its ACL mask looks like a group's mode."""
    if status.st_uid or not stat.S_ISREG(status.st_mode):
        return False
    directory = os.environ.get("CREDENTIALS_DIRECTORY")
    return bool(credential_name(path)) or (bool(directory) and resolved(path.parent) == resolved(Path(directory or "")))


def missing(path: Path) -> str:
    """The error for a missing credential; "" if the path names none."""
    if not (name := credential_name(path)):
        return ""
    unit = path.parent.name
    why = command("systemctl", "status", unit)
    return (
        f"{path}: credential {name} is there only while {unit} runs with it (deploy/OPERATING.md, Credentials); why it "
        f"does not: {why}"
    )
