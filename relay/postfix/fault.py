"""One thing that is wrong with a Postfix configuration, and what to do about it.
Standard: every fault has a code that stays the same, for scripts and for the table of bad configurations in the tests.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Fault:
    """`where` is the line of main.cf or master.cf, `what` is wrong with it, and `remedy` mends it."""

    code: str
    where: str
    what: str
    remedy: str

    def __str__(self) -> str:
        return f"{self.where}: {self.what}; {self.remedy} [{self.code}]"
