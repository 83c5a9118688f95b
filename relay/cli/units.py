"""How the relay of a relay.toml is started and restarted here: by the systemd unit that reads this file, else by hand.
Standard: systemd.unit(5) (where units are, and which of two goes first), sd_booted(3).
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Literal, NamedTuple

from relay.files import permissions, resolved

DIRECTORIES = tuple(
    Path(place, "systemd/system") for place in ("/etc", "/run", "/usr/local/lib", "/usr/lib")
)  # fmt: skip
"""Where units are; of two with one name the first counts."""
BOOTED = Path("/run/systemd/system")
"""There where systemd runs this machine."""
DEFAULT_CONFIG = Path("/etc/qumail-relay/relay.toml")
"""What the relay of deploy/qumail-relay.service reads."""
INSTALL_UNIT = (
    "in the clone: install -m 644 deploy/qumail-relay.service /etc/systemd/system/ && "
    "systemctl daemon-reload && systemctl enable --now qumail-relay"
)
"""What deploy/INSTALL.md says of that unit, where it is not installed yet."""
_STARTS = re.compile(r"^ExecStart=\S*qumail-relay\s+serve\b(.*)$", re.MULTILINE)
_USER = re.compile(r"^User=(\S+)$", re.MULTILINE)
_CONFIG = re.compile(r"--config[=\s]+(\S+)")


class Unit(NamedTuple):
    """A unit that starts a relay: its name without `.service`, the file that this relay reads, and as whom it runs."""

    name: str
    config: Path
    user: str


def unit_of(config_file: Path) -> Unit | None:
    """The unit whose relay reads this file; None where there is none, or systemd does not run."""
    file = resolved(config_file)
    if not BOOTED.is_dir():
        return None
    return next((unit for unit in _units() if resolved(unit.config) == file), None)


def how_to(action: Literal["start", "restart"], config_file: Path, user: str = "") -> str:
    """What to type; `user` is as whom the relay runs, where this process is root's and the relay is not."""
    if unit := unit_of(config_file):
        return f"systemctl {action} {unit.name}"
    user = user or _as_whom(config_file)
    first = "end it, then: " if action == "restart" else ""
    if user and BOOTED.is_dir() and resolved(config_file) == resolved(DEFAULT_CONFIG):
        return first + INSTALL_UNIT
    return f"{first}{f'runuser -u {user} -- ' if user else ''}qumail-relay serve --config {config_file}"


def how_to_run_what_is_installed(config_file: Path) -> str:
    """What to type after another release was put in place: its unit may lie elsewhere than the one that runs."""
    restart = how_to("restart", config_file)
    return f"systemctl daemon-reload && {restart}" if unit_of(config_file) else restart


def _as_whom(config_file: Path) -> str:
    """The user that we are, where root has to become that first: relay.toml is root's. Else ""."""
    try:
        return permissions.user() if config_file.stat().st_uid == 0 != os.geteuid() else ""
    except OSError:
        return ""


def _units() -> Iterator[Unit]:
    """Each unit that starts a relay."""
    units: dict[str, Path] = {}
    for directory in DIRECTORIES:
        for file in sorted(directory.glob("*.service")):
            units.setdefault(file.stem, file)
    for name, file in units.items():
        try:
            text = file.read_text()
        except (OSError, ValueError):
            continue
        if (starts := _STARTS.search(text)) is not None:
            config, user = _CONFIG.search(starts[1]), _USER.search(text)
            yield Unit(name, Path(config[1]) if config else DEFAULT_CONFIG, user[1] if user else "root")
