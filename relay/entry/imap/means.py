"""What the recipe for one folder works with: the flags it sets, what opens messages, and what it knows of each of them.
Standard: flags are IMAP keywords (RFC 3501, 2.3.2), which servers and mail programs show to the user.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field

from relay.budget import Budget, Share
from relay.entry.imap.original import Marks, Replacement
from relay.entry.imap.proofs import Proofs
from relay.entry.imap.responses import Fetched
from relay.opening import Opened
from relay.opening.original import Originals

UNOPENED, OPENED, LOST = "$QuMailUnopened", "$QuMailOpened", "$QuMailKeyLost"
OURS = frozenset({UNOPENED.lower(), OPENED.lower(), LOST.lower()})


@dataclass(frozen=True, slots=True)
class Means:
    """What opens messages; shared by all folders of an account. The originals of `under_way` are about to get there.

    A key that no KME knows `hold_for` seconds after its message came is lost.
    """

    originals: Originals
    marks: Marks
    proofs: Proofs
    budget: Budget
    hold_for: float
    under_way: set[bytes] = field(default_factory=set)


@dataclass(slots=True)
class Waiting:
    """A sealed message in the folder: when we saw it and its next try is due (in the loop's time), how many there were.

    One that is `doubtful` has, or may have, a mark that somebody else wrote.
    """

    size: int
    flagged: bool
    doubtful: bool
    since: float
    due: float = 0.0
    tries: int = 0


@dataclass(slots=True)
class Taken:
    """A message that is being opened, or `forged` and being replaced, and the memory that it holds."""

    share: Share
    forged: bool = False
    message: Fetched | None = None
    marks: tuple[str, ...] = ()
    opening: asyncio.Task[Replacement | None] | None = None
    opened: Opened | None = None
