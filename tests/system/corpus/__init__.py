"""The corpus: awkward messages, made the same each time, each with what must become of it.
Standard: names are unique; `python -m tests.system.corpus DIRECTORY` writes them as .eml files for people to look at.
"""

from __future__ import annotations

from tests.system.corpus import charsets, headers, lines, protected, structure
from tests.system.corpus.case import Case


def corpus() -> tuple[Case, ...]:
    """All cases, in the order of their files."""
    return tuple(case for part in (charsets, lines, headers, structure, protected) for case in part.cases())


__all__ = ["Case", "corpus"]
