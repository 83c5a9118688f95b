"""Numbers and sizes as people read them, the same on the page and in every command.
Standard: IEC 80000-13 for KiB, MiB and GiB; one is singular.
"""

from __future__ import annotations


def many(count: float, word: str) -> str:
    """1 mail, 2 mails."""
    return f"{count:,.0f} {word}" if count == 1 else f"{count:,.0f} {word}s"


def octets(value: float) -> str:
    """A size: 512 B, 1.5 KiB, 2.0 MiB, 1.0 GiB."""
    for unit, size in (("GiB", 2**30), ("MiB", 2**20), ("KiB", 2**10)):
        if value >= size:
            return f"{value / size:,.1f} {unit}"
    return f"{value:,.0f} B"
