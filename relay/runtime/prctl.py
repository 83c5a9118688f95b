"""What the kernel is told of this process: that its memory is for nobody else to read, and its name.
Standard: prctl(2) PR_SET_DUMPABLE and PR_SET_NAME, which are Linux's; setrlimit(2) RLIMIT_CORE.

Keys that are in memory stay there: there is no core dump, and no other process of its user reads it. The limit alone
is not enough: a core dump that goes to a program (systemd-coredump) is made in spite of it.
"""

from __future__ import annotations

import ctypes
import os
import resource
import sys

from relay.errors import ConfigError

_PR_SET_DUMPABLE, _PR_SET_NAME = 4, 15


def forbid_core_dumps() -> None:
    """Forbids core dumps of this process, for good; programs that it starts may be traced, but dump no core either.

    Raises ConfigError where the system does not let us.
    """
    # Under systemd's LimitCORE=0 there is nothing to lower, and a sandbox may forbid the call.
    if resource.getrlimit(resource.RLIMIT_CORE) != (0, 0):
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    if sys.platform != "linux":
        return
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(_PR_SET_DUMPABLE, 0, 0, 0, 0) != 0:
        cause = os.strerror(ctypes.get_errno())
        raise ConfigError(f"the keys in memory cannot be kept from core dumps (prctl PR_SET_DUMPABLE): {cause}")


def name_process(name: str) -> None:
    """Names a process that was forked, which has the command line of the one that it was forked from.

    `ps -e` and top show the first 15 characters. Does nothing with a system that has no such call.
    """
    if prctl := getattr(ctypes.CDLL(None), "prctl", None):
        prctl(_PR_SET_NAME, name.encode(), 0, 0, 0)
