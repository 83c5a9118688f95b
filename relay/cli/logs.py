"""Sets up the log: one event a line, for people on a terminal and as JSON otherwise.
Events are structlog's dictionaries, with the time in UTC (RFC 3339). Each line to the journal begins with its priority
(sd-daemon(3), "<4>"), so that `journalctl -p warning` works.
"""

from __future__ import annotations

import io
import logging
import os
import sys
from contextlib import suppress
from typing import Any, TextIO, cast

import structlog

from relay.config import LogSettings
from relay.policy.names import printable


def configure_logging(settings: LogSettings | None = None, *, for_good: bool = False) -> None:
    """Logs to standard error as [log] says, including warnings and errors of libraries.

    With `for_good`, loggers cache their configuration, which halves the time for each line.
    """
    settings = settings or LogSettings()
    people = settings.format == "console" or (settings.format == "auto" and sys.stderr.isatty())
    level = logging.getLevelNamesMapping()[settings.level.upper()]
    to_journal = _is_journal(sys.stderr)
    structlog.configure(
        processors=[
            structlog.contextvars.merge_contextvars,
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            *(_for_people() if people else _for_programs()),
            *([_for_the_journal] if to_journal else []),
        ],
        wrapper_class=structlog.make_filtering_bound_logger(level),
        logger_factory=structlog.WriteLoggerFactory(file=cast(TextIO, _NeverFails(_styled(sys.stderr)))),
        cache_logger_on_first_use=for_good,
    )
    logging.basicConfig(stream=sys.stderr, level=logging.WARNING, force=True)
    formatter = _ForTheJournal if to_journal else _OfLibraries
    logging.getLogger().handlers[0].setFormatter(formatter(logging.BASIC_FORMAT))


def _styled(stream: TextIO) -> TextIO:
    """The stream without the escaping of stdout.py: the log escapes by itself, and uses colours."""
    return cast(TextIO, getattr(stream, "rich_proxied_file", stream))


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


# Tracebacks omit values of variables, which may be keys or content.


def _for_people() -> list[structlog.typing.Processor]:
    return [_escaped, structlog.dev.ConsoleRenderer(colors=sys.stderr.isatty(), exception_formatter=_traceback)]


def _for_programs() -> list[structlog.typing.Processor]:
    without_values = structlog.tracebacks.ExceptionDictTransformer(show_locals=False)
    return [structlog.processors.ExceptionRenderer(without_values), structlog.processors.JSONRenderer()]


def _escaped(_: Any, __: str, event: structlog.typing.EventDict) -> structlog.typing.EventDict:
    """Escapes text of others, which could move the terminal's cursor or imitate a line; JSON escapes by itself."""
    return {name: printable(value) if isinstance(value, str) else value for name, value in event.items()}


def _traceback(stream: TextIO, info: structlog.typing.ExcInfo) -> None:
    plain = io.StringIO()
    structlog.dev.plain_traceback(plain, info)
    stream.write(_printable_lines(plain.getvalue()))


def _printable_lines(text: str) -> str:
    return "\n".join(map(printable, text.split("\n")))


_PRIORITIES = {"debug": 7, "info": 6, "warning": 4, "critical": 2}
"""syslog(3) priorities of log levels; all others are errors (3)."""


def _is_journal(stream: TextIO) -> bool:
    """Whether the stream goes to the journal: systemd names its device and inode (systemd.exec(5))."""
    try:
        info = os.fstat(stream.fileno())
    except (OSError, ValueError):
        return False
    return os.environ.get("JOURNAL_STREAM") == f"{info.st_dev}:{info.st_ino}"


def _for_the_journal(_: Any, method: str, text: Any) -> str:
    return _with_priority(method, text)


def _with_priority(level: str, text: str) -> str:
    """Puts the priority before each line, which is a journal entry of its own."""
    prefix = f"<{_PRIORITIES.get(level, 3)}>"
    return prefix + text.replace("\n", f"\n{prefix}")


class _OfLibraries(logging.Formatter):
    def formatMessage(self, record: logging.LogRecord) -> str:
        return printable(super().formatMessage(record))

    def formatException(self, ei: Any) -> str:
        return _printable_lines(super().formatException(ei))


class _ForTheJournal(_OfLibraries):
    def format(self, record: logging.LogRecord) -> str:
        return _with_priority(record.levelname.lower(), super().format(record))
