"""How much a test tries: what shows a fault in the suite, and much more with `deploy/test --long`.
Standard: the same test either way; the long form takes hours.
"""

from __future__ import annotations

import os

_VARIABLE = "QUMAIL_TESTS_LONG"


def be_long() -> None:
    """From now on, in this process and those that it starts; before test modules are loaded."""
    os.environ[_VARIABLE] = "1"


def sized(usual: int, long: int) -> int:
    """The one in the suite, the other with `--long`."""
    return long if _VARIABLE in os.environ else usual
