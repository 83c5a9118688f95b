"""Whether the relay may read its policy files: for root, who would hear of the first one alone that it may not.
Standard: all of it is listed as the relay's user, and the kernel is asked about each file as that user.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

from relay.cli.as_relay import relays_user
from relay.config import Config
from relay.errors import ConfigError
from relay.files.permissions import denial_at
from relay.files.rights import acting_as
from relay.policy.walk import Listing


def check_readable(config: Config, directory: Path | None = None) -> None:
    """Raises ConfigError with a line for all that keeps the relay's user from these policies, or those in use."""
    user = relays_user(config)
    if user is None:
        return
    with acting_as(user):
        paths = _paths(directory or config.policies.directory)
        closed = [path for path, needed in paths if not os.access(path, needed, effective_ids=True)]
        denials = dict.fromkeys(denial for path in closed if (denial := denial_at(path)) is not None)
    if denials:
        raise ConfigError(
            [
                f"{each.place}:1: the relay, as {user.name}, may not {each.right} it ({each.rights}): {each.remedy}"
                for each in denials
            ]
        )


def _paths(directory: Path) -> Iterator[tuple[Path, int]]:
    """All that the relay reads, each with what it needs for that (os.R_OK, os.X_OK). Raises ConfigError if too much."""
    listing = Listing(directory)
    listing.look()
    yield from ((directory / name, os.R_OK | os.X_OK) for name in listing.directories)
    yield from ((directory / name, os.R_OK) for name in listing.files)
