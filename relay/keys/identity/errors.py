"""What can be wrong with a peer document: itself, or that it contradicts what is pinned.
Standard: both are ConfigErrors, for an administrator reads them; their text may quote nothing unprintable.

The tree::

    ConfigError
    ├── BadDocument       not a whole, consistent, signed peer document of a known format
    └── PinRefused        it is one, but contradicts what is known here
        ├── Rollback      older than the pinned document, or as old and different
        └── ChangedKey    its CA or signing key is not the pinned one
"""

from __future__ import annotations

from relay.errors import ConfigError


class BadDocument(ConfigError):
    """Not a whole, consistent, signed peer document of a known format."""


class PinRefused(ConfigError):
    """A valid document that contradicts what is known here."""


class Rollback(PinRefused):
    """The serial number is lower than the pinned document's, or the same with another content."""


class ChangedKey(PinRefused):
    """The CA's or the signing key is not the pinned one."""
