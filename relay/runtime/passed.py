"""Takes over the listening sockets that the service manager holds and passes at the start.
Standard: sd_listen_fds(3). Sockets are matched by address, so their names (LISTEN_FDNAMES) do not count.
"""

from __future__ import annotations

import os

FIRST = 3
"""The first passed descriptor (SD_LISTEN_FDS_START)."""
_VARIABLES = ("LISTEN_PID", "LISTEN_FDS", "LISTEN_FDNAMES", "LISTEN_PIDFDID")


def passed_descriptors() -> tuple[int, ...]:
    """The passed descriptors, none without a service manager; later calls return none.

    Children inherit neither them nor the variables that name them.
    """
    process, number, *_ = [os.environ.pop(name, "") for name in _VARIABLES]
    if process != str(os.getpid()) or not (number.isascii() and number.isdigit()):
        return ()
    descriptors = tuple(range(FIRST, FIRST + int(number)))
    for each in descriptors:
        os.set_inheritable(each, False)
    return descriptors
