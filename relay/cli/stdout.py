"""Standard output of all commands: reports write errors with their cause and once only, and escapes all text.
Standard: write(2); Python itself reports errors of the last flush, with exit status 120.
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
        """Raises NotPrinted, and BrokenPipeError if the reader is gone."""
        try:
            return super().write(octets)
        except BrokenPipeError:
            raise
        except OSError as error:
            raise NotPrinted(error.errno, error.strerror) from error


class _Escaping(io.TextIOWrapper):
    """Escapes text of others: nothing in it moves a terminal's cursor, or is hidden from the reader."""

    def write(self, text: str) -> int:
        """Writes the text escaped, except for line ends."""
        super().write(text if text.isprintable() else "\n".join(map(printable, text.split("\n"))))
        return len(text)

    @property
    def rich_proxied_file(self) -> _Styled:
        """The stream for rich, which escapes its input (output.py) and adds styles."""
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
    """Makes `sys.stdout` raise NotPrinted and both streams escape; streams that a program has replaced stay."""
    if isinstance(sys.stderr, io.TextIOWrapper) and sys.stderr is sys.__stderr__:
        raw_error = io.BufferedWriter(io.FileIO(sys.stderr.fileno(), "wb", closefd=False))
        sys.stderr = _Escaping(raw_error, sys.stderr.encoding, "backslashreplace", line_buffering=True)
    before = sys.stdout
    if before is None:  # closed: without this the next file opened gets descriptor 1, and the output
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
    """Flushes standard output. Raises NotPrinted."""
    if sys.stdout is not None:
        try:
            sys.stdout.flush()
        except BrokenPipeError:
            drop_output()


def drop_output() -> None:
    """Discards output that could not be written."""
    nowhere = os.open(os.devnull, os.O_WRONLY | os.O_CLOEXEC)
    os.dup2(nowhere, _STANDARD_OUTPUT)
    os.close(nowhere)


def why(error: NotPrinted) -> str:
    """The error as one line for people."""
    return f"standard output cannot be written: {os.strerror(error.errno or errno.EIO)}"
