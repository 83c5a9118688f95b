"""How the relay of a relay.toml is started and restarted here: by the systemd unit that reads this file, else by hand.
Standard: systemd.unit(5) (where units are, and which of two goes first), sd_booted(3).
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

DIRECTORIES = tuple(
    Path(place, "systemd/system") for place in ("/etc", "/run", "/usr/local/lib", "/usr/lib")
)  # fmt: skip
"""Where units are; of two with one name the first counts."""
BOOTED = Path("/run/systemd/system")
"""There where systemd runs this machine."""
DEFAULT_CONFIG = Path("/etc/qumail-relay/relay.toml")
"""What a relay reads that is told no file."""
_STARTS = re.compile(r"^ExecStart=\S*qumail-relay\s+serve\b(.*)$", re.MULTILINE)
_CONFIG = re.compile(r"--config[=\s]+(\S+)")


def unit_of(config_file: Path) -> str:
    """The unit whose relay reads this file, without `.service`; "" where there is none, or systemd does not run."""
    wanted = config_file.resolve()
    if not BOOTED.is_dir():
        return ""
    return next((name for name, config in _units() if config.resolve() == wanted), "")


def how_to(what: Literal["start", "restart"], config_file: Path) -> str:
    """What to type."""
    if unit := unit_of(config_file):
        return f"systemctl {what} {unit}"
    return f"{'end it, then: ' if what == 'restart' else ''}qumail-relay serve --config {config_file}"


def _units() -> Iterator[tuple[str, Path]]:
    """Each unit that starts a relay, and the file that this relay reads."""
    found: dict[str, Path] = {}
    for directory in DIRECTORIES:
        for file in sorted(directory.glob("*.service")):
            found.setdefault(file.stem, file)
    for name, file in found.items():
        try:
            starts = _STARTS.search(file.read_text())
        except (OSError, ValueError):
            continue
        if starts is not None:
            config = _CONFIG.search(starts[1])
            yield name, Path(config[1]) if config else DEFAULT_CONFIG
