"""Names a process that was forked, which has the command line of the one that it was forked from.
Standard: prctl(2) PR_SET_NAME, which is Linux's; `ps -o comm`, top and pstree show the name.
"""

from __future__ import annotations

import ctypes

_PR_SET_NAME = 15


def name_process(name: str) -> None:
    """Names this process, or nothing with a system that has no such call; 15 characters are shown."""
    if prctl := getattr(ctypes.CDLL(None), "prctl", None):
        prctl(_PR_SET_NAME, name.encode(), 0, 0, 0)
