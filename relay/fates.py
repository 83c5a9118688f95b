"""What became of a mail for each of its recipients, in words that bear counting, and the counting of it.
Standard: a recipient of a try has one fate; peers are those of relay.toml, whatever strangers write.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import TracebackType
from typing import Literal

from relay.config import Config
from relay.counting import Board, metrics
from relay.counting.board import Timed
from relay.deliveries import Delivery
from relay.errors import Refuse, RelayError
from relay.mail import Mail, domain_of
from relay.sealing import SealedCopy

Outcome = Literal["delivered", "inside", "held", "refused", "quarantined", "repeated"]
"""`inside` is in clear to a domain of ours, as it should be; `repeated`: whoever has the mail already."""
NONE = "none"
"""Where a level stands: it did not come so far."""


@dataclass(frozen=True, slots=True)
class Fate:
    """What those recipients of a mail have in common who share it, and why they did not get it (`reason`), or "".

    `peer` is "" where none can be named: mail in clear to elsewhere, and from strangers. What could not be opened has
    the peer in whose name it came, and what could not be sealed that of the recipient's domain.
    """

    peer: str
    level: str
    outcome: Outcome
    reason: str = ""


class Tally:
    """Counts the mails of one direction: what becomes of them, and how long each step takes."""

    def __init__(self, direction: str, known: Callable[[], Config] | None = None, board: Board | None = None) -> None:
        """`known` gives the configuration with the peers as they are now."""
        self._direction = direction
        self._known = known
        self._board = board or Board()

    def step(self, name: str) -> Timed:
        """`with`: one step of a mail."""
        return self._board.spread(metrics.STEP_SECONDS, self._direction, name).timed()

    def of(self, mail: Mail) -> Trial:
        """`with`: one try of a mail, which is counted when it ends, however that is."""
        return Trial(self, mail, self.step("all"))

    def count(self, door: str, fates: Mapping[Fate, int]) -> None:
        """One mail: how many recipients have each fate."""
        for fate, recipients in fates.items():
            labels = self._direction, door, fate.peer, fate.level, fate.outcome
            self._board.add(metrics.MAILS, *labels)
            self._board.add(metrics.RECIPIENTS, *labels, by=recipients)
            if fate.reason:
                self._board.add(metrics.FAILURES, self._direction, fate.reason)
            if fate.reason == "TrippedWire":
                self._board.add(metrics.TRIPWIRE)

    def fates(self, mail: Mail, delivery: Delivery | None, error: BaseException | None) -> dict[Fate, int]:
        """How many recipients have each fate; `error` is that of all of whom nothing else is known."""
        found: dict[Fate, int] = {}
        copies = {each.mailbox: copy for copy in delivery.copies for each in copy.recipients} if delivery else {}
        for mailbox in dict.fromkeys(mail.envelope.mailboxes):
            fate = self._fate(mail, mailbox, delivery, copies.get(mailbox), error)
            found[fate] = found.get(fate, 0) + 1
        return found

    def _fate(
        self, mail: Mail, mailbox: str, delivery: Delivery | None, copy: SealedCopy | None, error: BaseException | None
    ) -> Fate:
        peer, level = self._protection(mail, mailbox, delivery, copy)
        if delivery is not None and mailbox in delivery.outcomes:
            error = delivery.outcomes[mailbox]
        elif delivery is not None and mailbox in delivery.begun.delivered:
            return Fate(peer, level, "repeated")
        elif error is None:
            return Fate(peer, level, "held", "NotTried")
        if error is not None:
            return Fate(peer, level, "refused" if isinstance(error, Refuse) else "held", _reason(error))
        if delivery is not None and mailbox in delivery.aside:
            return Fate(peer, level, "quarantined")
        return Fate(peer, level, "inside" if copy is not None and mailbox in copy.inside else "delivered")

    def _protection(
        self, mail: Mail, mailbox: str, delivery: Delivery | None, copy: SealedCopy | None
    ) -> tuple[str, str]:
        if copy is not None:
            return copy.peer or "", copy.protection
        if delivery is not None and delivery.opened is not None:
            return delivery.opened.peer, delivery.opened.protection
        if delivery is not None and delivery.unsealed:
            return "", "plaintext"
        whose = mailbox if self._direction == "outgoing" else mail.envelope.sender
        found = self._known().peer_by_domain(domain_of(whose)) if self._known is not None else None
        return found[0] if found is not None else "", NONE


class Trial:
    """One try of a mail; whoever carries it out says which `delivery` it is."""

    __slots__ = ("_mail", "_tally", "_time", "delivery")

    def __init__(self, tally: Tally, mail: Mail, time: Timed) -> None:
        self._tally = tally
        self._mail = mail
        self._time = time
        self.delivery: Delivery | None = None

    def __enter__(self) -> Trial:
        self._time.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._time.__exit__()
        self._tally.count(self._mail.door, self._tally.fates(self._mail, self.delivery, error))


def _reason(error: BaseException) -> str:
    """A name of ours: no word of a stranger."""
    if isinstance(error, asyncio.CancelledError):
        return "Stopped"
    return type(error).__name__ if isinstance(error, RelayError) else "Unforeseen"
