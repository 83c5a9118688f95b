"""Standard output of all commands: an error there says where it was, nothing is said twice, and text is only text.
Standard: write(2); Python says an error of the last flush by itself, and ends with status 120.
"""

from __future__ import annotations

import errno
import io
import os
import sys
from typing import Any

from relay.files.permissions import printable

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


class _Escaping(io.TextIOWrapper):
    """Shows what others wrote as text: nothing in it moves a terminal's cursor, or hides from who reads it."""

    def write(self, text: str) -> int:
        """As text; line ends stay."""
        super().write(text if text.isprintable() else "\n".join(map(printable, text.split("\n"))))
        return len(text)

    @property
    def rich_proxied_file(self) -> _Styled:
        """Where rich writes, which escapes what it is given (output.py) and adds styles of its own."""
        return _Styled(self)


class _Styled:
    """The same stream, with escape sequences."""

    def __init__(self, stream: _Escaping) -> None:
        self._stream = stream
        self.encoding, self.flush, self.isatty, self.fileno = (
            stream.encoding,
            stream.flush,
            stream.isatty,
            stream.fileno,
        )

    def write(self, text: str) -> int:
        return io.TextIOWrapper.write(self._stream, text)


def open_output() -> None:
    """From here on `sys.stdout` raises NotPrinted, and both streams escape; those that a program has put there stay."""
    if isinstance(sys.stderr, io.TextIOWrapper) and sys.stderr is sys.__stderr__:
        raw_error = io.BufferedWriter(io.FileIO(sys.stderr.fileno(), "wb", closefd=False))
        sys.stderr = _Escaping(raw_error, sys.stderr.encoding, "backslashreplace", line_buffering=True)
    before = sys.stdout
    if before is None:  # it was closed: without this the next file that is opened has its number, and gets the output
        nowhere = os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC)
        if nowhere != _STANDARD_OUTPUT:
            os.dup2(nowhere, _STANDARD_OUTPUT)
            os.close(nowhere)
        sys.stdout = _Escaping(io.BufferedWriter(_Output(_STANDARD_OUTPUT, "wb", closefd=False)), "utf-8")
    elif isinstance(before, io.TextIOWrapper) and before is sys.__stdout__:
        raw = _Output(_STANDARD_OUTPUT, "wb", closefd=False)
        errors = "backslashreplace" if before.errors == "strict" else before.errors
        sys.stdout = _Escaping(io.BufferedWriter(raw), before.encoding, errors, line_buffering=before.line_buffering)


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
