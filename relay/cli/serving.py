"""Whether a relay of this site serves now, and whether it does so from the database that lies in its place.
Standard: it has one lock on its embedded database and one in its audit record, and the kernel says who has which.
"""

from __future__ import annotations

from pathlib import Path

from relay.audit.sole import LOCK
from relay.config import Config
from relay.store.sqlite import TAKEN_AWAY, serving


def serves(config: Config) -> bool | None:
    """Whether one serves; None where its database is a server's, or this machine cannot say. Blocks."""
    database = config.store.database
    return (serving(database) or serves_here(config)) if isinstance(database, Path) else None


def database_taken_away(config: Config) -> str:
    """What to say where a relay serves from another file than the one that lies there, or is missing; "" else. Blocks.

    Such a file is not to be opened: a log that is beside it belongs to the other.
    """
    database = config.store.database
    if isinstance(database, Path) and serving(database) is False and serves_here(config):
        return f"{database}: {TAKEN_AWAY}"
    return ""


def serves_here(config: Config) -> bool | None:
    """Whether one writes the audit record of this configuration; None where this machine cannot say. Blocks."""
    return serving(config.audit_directory / LOCK)
