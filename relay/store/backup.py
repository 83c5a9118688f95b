"""Copies a relay's state while it serves; a relay that starts from the copy detects that it was restored.
Standard: SQLite's VACUUM INTO, one read transaction; the files of the copy are on disk when this returns.

Record files are copied first. A record leaves its file only once the database has it, so in the other order it might be
in neither copy. A record in both counts once.
"""

from __future__ import annotations

import errno
import fcntl
import os
import sqlite3
from collections.abc import Mapping
from contextlib import closing, suppress
from pathlib import Path

from relay.config import UNFINISHED, Config
from relay.errors import ConfigError, StoreUnavailable
from relay.files import sync_directory, sync_file
from relay.files.commands import command
from relay.files.rights import UnixUser, acting_as, as_owner_of, owner_of
from relay.files.sqlite import connected, said_by_sqlite
from relay.store.database import SCHEMA_VERSION, not_ours, schema
from relay.store.restore_check import mark_as_copy
from relay.store.secret_file import locked, open_regular

MAX_FILE_OCTETS = 512 * 2**20
"""Maximum size of a record file, or a file of the audit record, that is copied, in bytes; no relay writes more."""


def make_new(to: Path, user: UnixUser | None = None) -> None:
    """Makes the directory `to`, of mode 0700; root makes it for `user`, as the owner of the directory above it.

    Raises ConfigError if it exists or cannot be created, and if `user` could not write into it.
    """
    if user is not None and os.geteuid() == 0:
        _refuse_unless_theirs(to, user)
    try:
        with as_owner_of(to.absolute().parent):
            to.mkdir(mode=0o700)
            if user is not None and os.geteuid() == 0:
                os.chown(to, user.uid, user.gid, follow_symlinks=False)
    except OSError as error:
        there = "; it must not be there yet" if isinstance(error, FileExistsError) else ""
        raise ConfigError(f"{to}: cannot be made: {error.strerror}{there}") from error


def _refuse_unless_theirs(to: Path, user: UnixUser) -> None:
    above = to.absolute().parent
    try:
        owner = owner_of(above)
        with acting_as(user):
            os.stat(f"{above}/.")  # noqa: PTH116 - a Path would drop the dot
        if owner is None or owner.uid == user.uid:
            return
        cause = f"{above} is user {owner.name}'s"
    except PermissionError as error:
        cause = f"{above}: {error.strerror}"
    except OSError:  # which making it says
        return
    make = command("install", "-d", "-m", "700", "-o", user.name, "/var/backups/qumail-relay")
    raise ConfigError(
        f"{to}: {user.name}, as whom the relay runs, has to write there and cannot ({cause}): "
        f"{make}, then name a new directory in that one"
    )


def copy_state(config: Config, on_their_way: Mapping[str, str], to: Path) -> list[tuple[Path, Path]]:
    """Copies the state into the empty directory `to`; returns (source, copy) pairs. A PostgreSQL store is left out.

    `on_their_way` has the directories of record files, with their suffixes. Blocks. Raises StoreUnavailable if
    something cannot be read or written, and ConfigError for the store of a newer release, before anything is copied.
    """
    made: list[tuple[Path, Path]] = []
    if isinstance(config.store.database, Path):
        _refuse_newer(config.store.database)
    try:
        # First, and removed last: a relay would take a copy that was cut off, and has no store, for its first start.
        (to / UNFINISHED).touch(mode=0o600)
        sync_directory(to)
        for name, suffix in on_their_way.items():
            made += _copied_files(config.state_directory / name, suffix, to / name)
        if isinstance(config.store.database, Path):
            made.append((_copied_database(config.store.database, to), config.store.database))
        made += _copied_records(config.audit_directory, to / "audit")
        sync_directory(to)
        (to / UNFINISHED).unlink()
        sync_directory(to)
    except OSError as error:
        raise StoreUnavailable(f"{error.filename or to}: cannot be copied: {error.strerror}; {_cut_off(to)}") from error
    except StoreUnavailable as error:
        raise StoreUnavailable(f"{error}; {_cut_off(to)}") from error
    return made


def _cut_off(to: Path) -> str:
    return f"{to} is not whole: delete it"


def _refuse_newer(path: Path) -> None:
    """Raises ConfigError: nobody knows what else a newer release would have copied, or how it marks a copy."""
    try:
        with closing(connected(path)) as store:
            if not store.execute("SELECT 1 FROM sqlite_master WHERE name = ?", (schema.name,)).fetchone():
                return
            [version] = store.execute(f"SELECT version FROM {schema.name}").fetchone() or (0,)  # noqa: S608 - ours
    except sqlite3.Error as error:
        raise StoreUnavailable(f"{path}: cannot be copied: {said_by_sqlite(path, error)}") from error
    if version > SCHEMA_VERSION:
        raise not_ours(str(path), version)


def _copied_files(directory: Path, suffix: str, to: Path) -> list[tuple[Path, Path]]:
    if not directory.is_dir():
        return []
    to.mkdir(mode=0o700)
    for path in directory.glob(f"*{suffix}"):
        with suppress(FileNotFoundError):  # taken over meanwhile
            # The writer of such a file keeps its lock, and a torn record is recognised.
            _copied(path, to / path.name, lock=False)
    sync_directory(to)
    return [(to, directory)]


def _copied_records(directory: Path, to: Path) -> list[tuple[Path, Path]]:
    """Copies the audit record, consistent between two lines."""
    if not directory.is_dir():
        return []
    to.mkdir(mode=0o700)
    with locked(directory):  # finished files do not change, and are copied without the lock
        paths = sorted(path for path in directory.iterdir() if path.name[:1].isdigit())
        for path in paths[-1:]:
            _copied(path, to / path.name)
    for path in paths[:-1]:
        try:
            _copied(path, to / path.name)
        except FileNotFoundError:  # compressed meanwhile, or removed as too old
            with suppress(FileNotFoundError):
                _copied(path.with_name(f"{path.name}.gz"), to / f"{path.name}.gz")
    sync_directory(to)
    return [(to, directory)]


def _copied_database(path: Path, to: Path) -> Path:
    copy = to / path.name
    # SQLite creates the file; the directory's mode protects it meanwhile.
    try:
        with closing(connected(path)) as store:
            store.execute("VACUUM INTO ?", (str(copy),))
        with closing(connected(copy)) as copied:
            mark_as_copy(copied)
    except sqlite3.Error as error:
        raise StoreUnavailable(f"{path}: cannot be copied: {said_by_sqlite(copy, error)}") from error
    copy.chmod(0o600)
    sync_file(copy)
    return copy


def _copied(path: Path, copy: Path, *, lock: bool = True) -> Path:
    """Copies a file that others append to, consistent between two lines."""
    with os.fdopen(open_regular(path, os.O_RDONLY), "rb") as source, copy.open("xb") as target:
        os.fchmod(target.fileno(), 0o600)
        if lock:
            fcntl.flock(source, fcntl.LOCK_SH)
        if os.fstat(source.fileno()).st_size > MAX_FILE_OCTETS:  # it is sparse, and its copy would not be
            raise OSError(errno.EFBIG, os.strerror(errno.EFBIG), str(path))
        while piece := source.read(2**20):
            target.write(piece)
        target.flush()
        os.fsync(target.fileno())
    return copy
