"""Sets up the log: one event a line, for people on a terminal and as JSON for everything else.
Standard: structlog's event dictionaries; time in UTC, RFC 3339.
"""

from __future__ import annotations

import logging
import sys

import structlog

from relay.config import Log


def configure_logging(settings: Log | None = None) -> None:
    """Log to standard error as [log] says; warnings and above of libraries come along."""
    settings = settings or Log()
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
        logger_factory=structlog.WriteLoggerFactory(file=sys.stderr),
        cache_logger_on_first_use=False,
    )
    logging.basicConfig(stream=sys.stderr, level=logging.WARNING, force=True)


# Tracebacks are written without the values of variables, which may be keys or content.


def _for_people() -> list[structlog.typing.Processor]:
    return [structlog.dev.ConsoleRenderer(exception_formatter=structlog.dev.plain_traceback)]


def _for_programs() -> list[structlog.typing.Processor]:
    without_values = structlog.tracebacks.ExceptionDictTransformer(show_locals=False)
    return [structlog.processors.ExceptionRenderer(without_values), structlog.processors.JSONRenderer()]
