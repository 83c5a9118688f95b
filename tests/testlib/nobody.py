"""The rights of a user who owns nothing, for tests that root runs: root itself may look at everything.
Standard: setgroups(2), setgid(2), setuid(2), in this order; within a test only the effective ids change.
"""

from __future__ import annotations

import os
import pwd
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

by_root = pytest.mark.skipif(os.geteuid() != 0, reason="root alone can act as another user")

NOBODY = pwd.getpwnam("nobody")
AS_NOBODY = (
    "import _strptime, os; from relay.formats import characters; characters.load(); "
    f"os.setgroups([]); os.setgid({NOBODY.pw_gid}); os.setuid({NOBODY.pw_uid})"
)
"""For `before` of a command of its own. This Python may be one that only root can read, so it loads what comes late."""


@contextmanager
def as_nobody(group: int = NOBODY.pw_gid) -> Iterator[None]:
    """What is opened within is opened as nobody, in this group, where root runs the tests."""
    if os.geteuid():
        yield
        return
    groups, gid = os.getgroups(), os.getegid()
    os.setgroups([])
    os.setegid(group)
    os.seteuid(NOBODY.pw_uid)
    try:
        yield
    finally:
        os.seteuid(0)
        os.setegid(gid)
        os.setgroups(groups)


def give_to_nobody(*paths: Path) -> None:
    """These and all below them."""
    for path in paths:
        for each in (path, *path.rglob("*")):
            os.chown(each, NOBODY.pw_uid, NOBODY.pw_gid, follow_symlinks=False)
