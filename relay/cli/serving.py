"""Whether a relay of this site serves now, and whether it uses the database file at the configured path.
A relay holds one lock on its embedded database and one in its audit record; the kernel tells who holds them.
"""

from __future__ import annotations

from pathlib import Path

from relay.audit.sole import LOCK
from relay.config import Config
from relay.store.sqlite import TAKEN_AWAY, serving, user_of_server


def serves(config: Config) -> bool | None:
    """Whether one serves; None if the database is a server's, or this machine cannot tell. Blocks."""
    database = config.store.database
    if not isinstance(database, Path):
        return None
    seen = {serving(database), serves_here(config)}
    return True if True in seen else None if None in seen else False


def servers_user(config: Config) -> int | None:
    """The user ID of the serving relay; None if there is none, or this machine cannot tell. Blocks."""
    locked = (config.store.database, config.audit_directory / LOCK)
    users = (user_of_server(path) for path in locked if isinstance(path, Path))
    return next((user for user in users if user is not None), None)


def database_taken_away(config: Config) -> str:
    """An error if a relay serves from another database file than the one at this path, if any; else "". Blocks.

    The file at the path must not be opened: the log beside it belongs to the other.
    """
    database = config.store.database
    if isinstance(database, Path) and serving(database) is False and serves_here(config):
        return f"{database}: {TAKEN_AWAY}"
    return ""


def serves_here(config: Config) -> bool | None:
    """Whether a relay writes the audit record of this configuration; None if this machine cannot tell. Blocks."""
    return serving(config.audit_directory / LOCK)
