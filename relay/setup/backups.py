"""What setup keeps of a Postfix that it changes: the files before and after, and which Postfix on which machine it was.
Standard: half of a backup, which a crash has left, is none; machine-id(5) says that the ID itself is not to be shown.

    postfix-backup/1/before/main.cf     what `apply` found
    postfix-backup/1/after/main.cf      what it wrote; `undo` wants to find just this
    postfix-backup/1/directory          which Postfix, and which machine
"""

from __future__ import annotations

import hashlib
from pathlib import Path

from relay.errors import ConfigError

MACHINE_ID = Path("/etc/machine-id")
BACKUP = "postfix-backup"
"""The directory beside relay.toml that keeps what was there."""


def new_backup(directory: Path) -> Path:
    """The next one; half of one that a crash has left is no backup, and its number is not used again."""
    directory.mkdir(mode=0o700, exist_ok=True)
    numbers = [int(each.name) for each in directory.iterdir() if each.name.isdigit()]
    path = directory / str(max(numbers, default=0) + 1)
    path.mkdir(mode=0o700)
    return path


def backups(directory: Path) -> list[Path]:
    """The whole ones in this directory, the oldest first."""
    entries = directory.iterdir() if directory.is_dir() else ()
    whole = [each for each in entries if each.name.isdigit() and (each / "directory").is_file()]
    return sorted(whole, key=lambda each: int(each.name))


def backups_of(directory: Path, beside: Path) -> list[Path]:
    """Those of this Postfix, the oldest first."""
    own = [each for each in backups(beside / BACKUP) if made_here(each)]
    return [each for each in own if (each / "directory").read_text().splitlines()[0] == str(directory.absolute())]


def changed_last(beside: Path) -> str | None:
    """The directory of the Postfix here that setup has changed last."""
    here = [each for each in backups(beside / BACKUP) if made_here(each)]
    return (here[-1] / "directory").read_text().splitlines()[0] if here else None


def made_here(backup: Path) -> bool:
    """A backup travels along when a site is moved or restored, and is of no Postfix here then."""
    return (backup / "directory").read_text().splitlines()[1:2] == [this_machine()]


def this_machine() -> str:
    """What tells this machine from others, or "none"; its ID itself is not to be shown (machine-id(5))."""
    try:
        machine = MACHINE_ID.read_bytes().strip()
    except OSError:
        return "none"
    return hashlib.sha256(b"qumail-relay postfix-backup " + machine).hexdigest()[:32] if machine else "none"


def last_backup(beside: Path) -> Path:
    """The change that `undo` takes back. Raises ConfigError where there is none."""
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
