"""Sets process attributes: memory not readable by others, and the process name.
Standard: prctl(2) PR_SET_DUMPABLE and PR_SET_NAME, which are Linux's; setrlimit(2) RLIMIT_CORE.

Keys stay in memory: there is no core dump, and no other process of the same user can read it. RLIMIT_CORE is not
enough: a core dump piped to a program (systemd-coredump) ignores it.
"""

from __future__ import annotations

import ctypes
import os
import resource
import sys

from relay.errors import ConfigError

_PR_SET_DUMPABLE, _PR_SET_NAME = 4, 15


def forbid_core_dumps() -> None:
    """Disables core dumps of this process and its children, permanently; children may be traced.

    Raises ConfigError if the system does not permit it.
    """
    # With systemd's LimitCORE=0 there is nothing to lower, and a sandbox may forbid the call.
    if resource.getrlimit(resource.RLIMIT_CORE) != (0, 0):
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    if sys.platform != "linux":
        return
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(_PR_SET_DUMPABLE, 0, 0, 0, 0) != 0:
        cause = os.strerror(ctypes.get_errno())
        raise ConfigError(f"the keys in memory cannot be kept from core dumps (prctl PR_SET_DUMPABLE): {cause}")


def name_process(name: str) -> None:
    """Sets the name of a forked process, which has its parent's command line.

    `ps -e` and top show the first 15 characters. Does nothing on systems without prctl.
    """
    if prctl := getattr(ctypes.CDLL(None), "prctl", None):
        prctl(_PR_SET_NAME, name.encode(), 0, 0, 0)
