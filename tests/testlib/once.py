"""What takes long to make and no test changes: made by the first process of a test run that needs it, for all of them.
Standard: who comes meanwhile waits.
"""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest


@contextmanager
def made_once(tmp_path_factory: pytest.TempPathFactory, name: str) -> Iterator[Path]:
    """The directory of this name that the whole run has; nobody else is in it meanwhile."""
    ours = tmp_path_factory.getbasetemp()
    directory = (ours.parent if "PYTEST_XDIST_WORKER" in os.environ else ours) / name
    directory.mkdir(exist_ok=True)
    with directory.with_suffix(".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield directory
