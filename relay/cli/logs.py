"""Sets up the log: one event a line, for people on a terminal and as JSON for everything else.
They are structlog's event dictionaries, with the time in UTC (RFC 3339).
"""

from __future__ import annotations

import logging
import sys
from contextlib import suppress
from typing import TextIO, cast

import structlog

from relay.config import LogSettings


def configure_logging(settings: LogSettings | None = None, *, for_good: bool = False) -> None:
    """Log to standard error as [log] says; warnings and above of libraries come along.

    With `for_good` a logger that was used once keeps what it found, which takes half the time a line.
    """
    settings = settings or LogSettings()
    people = settings.format == "console" or (settings.format == "auto" and sys.stderr.isatty())
    level = logging.getLevelNamesMapping()[settings.level.upper()]
    structlog.configure(
        processors=[
            structlog.contextvars.merge_contextvars,
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            *(_for_people() if people else _for_programs()),
        ],
        wrapper_class=structlog.make_filtering_bound_logger(level),
        logger_factory=structlog.WriteLoggerFactory(file=cast(TextIO, _NeverFails(sys.stderr))),
        cache_logger_on_first_use=for_good,
    )
    logging.basicConfig(stream=sys.stderr, level=logging.WARNING, force=True)


class _NeverFails:
    """A text stream that loses lines rather than raising: a log on a full disk must not stop the mail."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def write(self, text: str) -> None:
        with suppress(OSError):
            self._stream.write(text)

    def flush(self) -> None:
        with suppress(OSError):
            self._stream.flush()


# Tracebacks are written without the values of variables, which may be keys or content.


def _for_people() -> list[structlog.typing.Processor]:
    return [structlog.dev.ConsoleRenderer(exception_formatter=structlog.dev.plain_traceback)]


def _for_programs() -> list[structlog.typing.Processor]:
    without_values = structlog.tracebacks.ExceptionDictTransformer(show_locals=False)
    return [structlog.processors.ExceptionRenderer(without_values), structlog.processors.JSONRenderer()]
