"""Whether the relay may read its policy files: for root, who may read all of them, and would find nothing wrong.
Standard: the relay's user is whoever owns its state; each file is opened as that user, so that ACLs count as well.
"""

from __future__ import annotations

import os
import pwd
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path

from relay.config import Config
from relay.errors import ConfigError
from relay.policy.names import SUFFIX, printable


def check_readable(config: Config) -> None:
    """Raises ConfigError with a line for each directory and policy file that the relay's user may not read."""
    if os.geteuid() != 0 or (user := _user_of(config.state_directory)) is None:
        return
    names = list(_names(config.policies.directory))
    with _as(user):
        closed = [name for name in names if not _may_read(name)]
    if closed:
        mend = f"chgrp {user.pw_name} and chmod g+r (a directory: g+rx)"
        raise ConfigError(
            [f"{printable(str(name))}:1: the relay, as {user.pw_name}, may not read it: {mend}" for name in closed]
        )


def _user_of(directory: Path) -> pwd.struct_passwd | None:
    """None where it runs as root, or nobody knows as whom."""
    try:
        uid = directory.stat().st_uid
        return pwd.getpwuid(uid) if uid else None
    except (OSError, KeyError):
        return None


def _names(directory: Path) -> Iterator[Path]:
    for where, _, files in os.walk(directory, followlinks=True):
        yield Path(where)
        yield from (Path(where, name) for name in files if name.endswith(SUFFIX))


@contextmanager
def as_owner_of(directory: Path) -> Iterator[None]:
    """For root, what is opened within is opened as whoever owns the directory: its files are nothing to trust."""
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


def _may_read(name: Path) -> bool:
    try:
        if name.is_dir():
            next(name.iterdir(), None)
        else:
            name.open("rb").close()
    except OSError:
        return False
    return True
