"""Whether the relay may read its policy files: for root, who may read all of them, and would find nothing wrong.
Standard: the relay's user is the owner of its state; the kernel is asked about each file as that user.
"""

from __future__ import annotations

import os
import pwd
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path

from relay.config import Config
from relay.errors import ConfigError
from relay.permissions import denial_at
from relay.policy.walk import Listing


def check_readable(config: Config, directory: Path | None = None) -> None:
    """Raises ConfigError with a line for all that keeps the relay's user from these policies, or those in use."""
    if os.geteuid() != 0 or (user := _user_of(config.state_directory)) is None:
        return
    paths = list(_paths(directory or config.policies.directory))
    with _as(user):
        closed = (path for path, needed in paths if not os.access(path, needed, effective_ids=True))
        denials = dict.fromkeys(denial for path in closed if (denial := denial_at(path)) is not None)
    if denials:
        raise ConfigError(
            [
                f"{each.place}:1: the relay, as {user.pw_name}, may not {each.right} it ({each.rights}): {each.remedy}"
                for each in denials
            ]
        )


def _user_of(directory: Path) -> pwd.struct_passwd | None:
    """None where it runs as root, or nobody knows as whom."""
    try:
        uid = directory.stat().st_uid
        return pwd.getpwuid(uid) if uid else None
    except (OSError, KeyError):
        return None


def _paths(directory: Path) -> Iterator[tuple[Path, int]]:
    """All that the relay reads, each with what it needs for that (os.R_OK, os.X_OK). Raises ConfigError if too much."""
    listing = Listing(directory)
    listing.look()
    yield from ((directory / name, os.R_OK | os.X_OK) for name in listing.directories)
    yield from ((directory / name, os.R_OK) for name in listing.files)


@contextmanager
def as_owner_of(directory: Path) -> Iterator[None]:
    """For root, what is opened within is opened as the owner of the directory, whose files are not to be trusted."""
    user = _user_of(directory) if os.geteuid() == 0 else None
    with _as(user) if user is not None else nullcontext():
        yield


@contextmanager
def _as(user: pwd.struct_passwd) -> Iterator[None]:
    """What is opened within is opened as that user."""
    gid, groups = os.getegid(), os.getgroups()
    os.setgroups(os.getgrouplist(user.pw_name, user.pw_gid))
    os.setegid(user.pw_gid)
    os.seteuid(user.pw_uid)
    try:
        yield
    finally:
        os.seteuid(0)
        os.setegid(gid)
        os.setgroups(groups)
