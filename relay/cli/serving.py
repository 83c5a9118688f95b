"""Whether a relay of this site serves now, and whether it does so from the database that lies in its place.
It has one lock on its embedded database and one in its audit record, and the kernel says who has which.
"""

from __future__ import annotations

from pathlib import Path

from relay.audit.sole import LOCK
from relay.config import Config
from relay.store.sqlite import TAKEN_AWAY, serving, user_of_server


def serves(config: Config) -> bool | None:
    """Whether one serves; None where its database is a server's, or this machine cannot say. Blocks."""
    database = config.store.database
    if not isinstance(database, Path):
        return None
    seen = {serving(database), serves_here(config)}
    return True if True in seen else None if None in seen else False


def servers_user(config: Config) -> int | None:
    """The number of the user of the relay that serves; None where none does, or this machine cannot say. Blocks."""
    locked = (config.store.database, config.audit_directory / LOCK)
    users = (user_of_server(path) for path in locked if isinstance(path, Path))
    return next((user for user in users if user is not None), None)


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
