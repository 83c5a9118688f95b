"""What the key clients have to say: through `logging`, or into the log of an application that has set up structlog.
Standard: PEP 282 (logging); a library configures nothing, and is silent where nobody listens.
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
    """Events of one module: a name that stays, and what it is about as fields."""

    def __init__(self, module: str) -> None:
        self._module = module

    def debug(self, event: str, **fields: Any) -> None:
        """Something that was said before, or that only a developer wants to know."""
        self._say(logging.DEBUG, event, fields)

    def info(self, event: str, **fields: Any) -> None:
        """Something that is as it should be."""
        self._say(logging.INFO, event, fields)

    def warning(self, event: str, **fields: Any) -> None:
        """Something that a person may want to look at."""
        self._say(logging.WARNING, event, fields)

    def error(self, event: str, **fields: Any) -> None:
        """Something that a person has to look at."""
        self._say(logging.ERROR, event, fields)

    def _say(self, level: int, event: str, fields: dict[str, Any]) -> None:
        # Looked at each time: an application sets up its log after it has imported us.
        if structlog.is_configured():
            structlog.get_logger(self._module).log(level, event, **fields)
            return
        trouble = fields.pop("exc_info", None)
        text = " ".join([event, *(f"{name}={value!r}" for name, value in fields.items())])
        logging.getLogger(self._module).log(level, "%s", text, exc_info=trouble)


class Complaint:
    """Something that is tried again and again, and fails: said at first and once an hour, else only to who debugs."""

    def __init__(
        self, loud: Callable[..., None], quiet: Callable[..., None], event: str, clock: Callable[[], float]
    ) -> None:
        """`loud` and `quiet` are methods of Events; `clock` gives seconds."""
        self._loud, self._quiet = loud, quiet
        self._event = event
        self._clock = clock
        self._logged_at = -math.inf

    def say(self, **fields: Any) -> None:
        """It has failed."""
        if self._clock() - self._logged_at < SAY_AGAIN_S:
            self._quiet(self._event, **fields)
            return
        self._logged_at = self._clock()
        self._loud(self._event, **fields)

    def over(self) -> None:
        """It has succeeded: the next failure is news."""
        self._logged_at = -math.inf
