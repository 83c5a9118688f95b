"""Standard output of all commands: an error there says where it was, and nothing is said twice.
Standard: write(2); Python says an error of the last flush by itself, and ends with status 120.
"""

from __future__ import annotations

import errno
import io
import os
import sys
from typing import Any

_STANDARD_OUTPUT = 1


class NotPrinted(OSError):
    """What a command printed cannot be written."""


class _Output(io.FileIO):
    def write(self, octets: Any) -> Any:
        """Raises NotPrinted, and BrokenPipeError where nobody reads any more."""
        try:
            return super().write(octets)
        except BrokenPipeError:
            raise
        except OSError as error:
            raise NotPrinted(error.errno, error.strerror) from error


def open_output() -> None:
    """From here on `sys.stdout` raises NotPrinted; one that a program has put in its place stays."""
    before = sys.stdout
    if before is None:  # it was closed: without this the next file that is opened has its number, and gets the output
        nowhere = os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC)
        if nowhere != _STANDARD_OUTPUT:
            os.dup2(nowhere, _STANDARD_OUTPUT)
            os.close(nowhere)
        sys.stdout = io.TextIOWrapper(io.BufferedWriter(_Output(_STANDARD_OUTPUT, "wb", closefd=False)), "utf-8")
    elif isinstance(before, io.TextIOWrapper) and before is sys.__stdout__:
        raw = _Output(_STANDARD_OUTPUT, "wb", closefd=False)
        errors = "backslashreplace" if before.errors == "strict" else before.errors
        sys.stdout = io.TextIOWrapper(
            io.BufferedWriter(raw), before.encoding, errors, line_buffering=before.line_buffering
        )


def flush_output() -> None:
    """Writes what was printed and is not written yet. Raises NotPrinted."""
    if sys.stdout is not None:
        try:
            sys.stdout.flush()
        except BrokenPipeError:
            drop_output()


def drop_output() -> None:
    """What was printed and is not written is written nowhere."""
    nowhere = os.open(os.devnull, os.O_WRONLY | os.O_CLOEXEC)
    os.dup2(nowhere, _STANDARD_OUTPUT)
    os.close(nowhere)


def why(error: NotPrinted) -> str:
    """One line for people."""
    return f"standard output cannot be written: {os.strerror(error.errno or errno.EIO)}"
