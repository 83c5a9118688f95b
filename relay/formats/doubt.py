"""What every reader here raises for a value that it does not read beyond doubt.
Standard: policies/README.md; what is in doubt counts as matching wherever that is the strict side.
"""

from __future__ import annotations


class InDoubt(ValueError):
    """The value is not read: it does not keep to its standard, and programs may read it differently.

    The text says why: "it has ...". Of the value itself it has at most one character, in quotes.
    """
