"""Events of the key clients: through `logging`, or structlog if the application has set it up.
Standard: PEP 282 (logging); a library configures nothing, and is silent by default.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable
from typing import Any

import structlog

logging.getLogger("relay.keys").addHandler(logging.NullHandler())

SAY_AGAIN_S = 3600.0
"""Interval at which a lasting fault is logged again, in seconds."""


class Events:
    """Events of one module, with stable names and fields."""

    def __init__(self, module: str) -> None:
        self._module = module
        self._logger = logging.getLogger(module)

    def debug(self, event: str, **fields: Any) -> None:
        """A repeated event, or one for developers only."""
        self._say(logging.DEBUG, event, fields)

    def info(self, event: str, **fields: Any) -> None:
        """A normal event."""
        self._say(logging.INFO, event, fields)

    def warning(self, event: str, **fields: Any) -> None:
        """An event that may need attention."""
        self._say(logging.WARNING, event, fields)

    def error(self, event: str, **fields: Any) -> None:
        """An event that needs action."""
        self._say(logging.ERROR, event, fields)

    def _say(self, level: int, event: str, fields: dict[str, Any]) -> None:
        # Checked each time: an application sets up its log after importing us.
        if structlog.is_configured():
            structlog.get_logger(self._module).log(level, event, **fields)
            return
        if not self._logger.isEnabledFor(level):
            return
        trouble = fields.pop("exc_info", None)
        text = " ".join([event, *(f"{name}={value!r}" for name, value in fields.items())])
        self._logger.log(level, "%s", text, exc_info=trouble)


class Complaint:
    """A repeated failure: logged at first and once an hour, else at debug level."""

    def __init__(
        self, loud: Callable[..., None], quiet: Callable[..., None], event: str, clock: Callable[[], float]
    ) -> None:
        """`loud` and `quiet` are methods of Events; `clock` gives seconds."""
        self._loud, self._quiet = loud, quiet
        self._event = event
        self._clock = clock
        self._logged_at = -math.inf

    def say(self, **fields: Any) -> None:
        """Logs a failure."""
        if self._clock() - self._logged_at < SAY_AGAIN_S:
            self._quiet(self._event, **fields)
            return
        self._logged_at = self._clock()
        self._loud(self._event, **fields)

    def over(self) -> None:
        """Records success: the next failure is logged again."""
        self._logged_at = -math.inf
