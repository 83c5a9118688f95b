"""Backups of a Postfix that setup changes: its files before and after, its directory, and the machine.
Standard: machine-id(5). An incomplete backup, left by a crash, counts as none.

    postfix-backup/1/before/main.cf     the file that `apply` found
    postfix-backup/1/after/main.cf      the file that it wrote; `undo` requires this content
    postfix-backup/1/directory          Postfix's directory, and the machine
"""

from __future__ import annotations

import hashlib
from pathlib import Path

from relay.errors import ConfigError

MACHINE_ID = Path("/etc/machine-id")
BACKUP = "postfix-backup"
"""Directory of the backups, beside relay.toml."""


def new_backup(directory: Path) -> Path:
    """Creates the next one; the number of an incomplete one is not reused."""
    directory.mkdir(mode=0o700, exist_ok=True)
    numbers = [int(each.name) for each in directory.iterdir() if each.name.isdigit()]
    path = directory / str(max(numbers, default=0) + 1)
    path.mkdir(mode=0o700)
    return path


def backups(directory: Path) -> list[Path]:
    """The complete backups in this directory, oldest first."""
    entries = directory.iterdir() if directory.is_dir() else ()
    whole = [each for each in entries if each.name.isdigit() and (each / "directory").is_file()]
    return sorted(whole, key=lambda each: int(each.name))


def backups_of(directory: Path, beside: Path) -> list[Path]:
    """The backups of this Postfix, oldest first."""
    own = [each for each in backups(beside / BACKUP) if made_here(each)]
    return [each for each in own if (each / "directory").read_text().splitlines()[0] == str(directory.absolute())]


def changed_last(beside: Path) -> str | None:
    """The directory of the Postfix on this machine that setup changed last."""
    here = [each for each in backups(beside / BACKUP) if made_here(each)]
    return (here[-1] / "directory").read_text().splitlines()[0] if here else None


def made_here(backup: Path) -> bool:
    """Whether the backup is of this machine: a moved or restored site brings along backups of another."""
    return (backup / "directory").read_text().splitlines()[1:2] == [this_machine()]


def this_machine() -> str:
    """A hash that identifies this machine, or "none"; the ID itself must stay confidential (machine-id(5))."""
    try:
        machine = MACHINE_ID.read_bytes().strip()
    except OSError:
        return "none"
    return hashlib.sha256(b"qumail-relay postfix-backup " + machine).hexdigest()[:32] if machine else "none"


def last_backup(beside: Path) -> Path:
    """The backup of the change that `undo` reverts. Raises ConfigError if there is none."""
    candidates = backups(beside / BACKUP)
    here = [each for each in candidates if made_here(each)]
    if candidates and not here:
        raise ConfigError(
            f"{beside / BACKUP}: what is kept there is another machine's Postfix, of before it was moved or restored; "
            "nothing was undone. To take the relay's content filters out here: deploy/SCANNERS.md, at its end"
        )
    if not here:
        raise ConfigError(f"{beside / BACKUP}: no change of Postfix to undo")
    return here[-1]
