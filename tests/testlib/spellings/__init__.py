"""Some hundreds of spellings of what rules name: Subject tags, header values, file names, structure.
Standard: each is a message that some mail program may show so; `harmless` has ordinary mail in which there is nothing.
"""

from __future__ import annotations

from tests.testlib.spellings import charsets, fields, names, structure, subjects
from tests.testlib.spellings.spelling import Spelling

ALL: tuple[Spelling, ...] = tuple(
    spelling for table in (subjects, charsets, fields, names, structure) for spelling in table.spellings()
)

__all__ = ["ALL", "Spelling"]
