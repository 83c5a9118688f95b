"""Reports the outcome of each delivery attempt: counts it, and has it written into the audit record.
Standard: fates.py has the vocabulary; both get the same, so that their numbers agree.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from time import perf_counter
from types import TracebackType
from typing import NamedTuple

import structlog

from relay.config import Config
from relay.counting import metrics
from relay.counting.board import Board, Cell, SpreadCell
from relay.errors import Refuse, RelayError, TryLater
from relay.journey.delivery import Delivery
from relay.journey.opening import Opened
from relay.mail import OURS, Mail
from relay.outcome.fates import Fate, Fates
from relay.outcome.trail import Trail

log = structlog.get_logger(__name__)

_CAUSES = {
    **dict.fromkeys(("PolicyHolds", "NoPolicy"), "policy"),
    **dict.fromkeys(("KeyUnavailable", "KMEExhausted", "KMEUnreachable", "KMEMisconfigured", "KMEBadReply"), "keys"),
    **dict.fromkeys(("KeyNotFound", "NotAsked", "HeldForKeys"), "keys"),
    **dict.fromkeys(("NextHopUnavailable", "NotTaken", "TooManyRecipients", "Gone", "Silent"), "next hop"),
    **dict.fromkeys(("StoreUnavailable", "QuarantineFull"), "store"),
}
"""Cause for which a recipient waits, by the error's class; see relay/counting/held.py."""
_NO_NEWS = ("DeliveryUnderWay", "Stopped")
"""Errors after which the outcome of an attempt is unknown."""


class _Cells(NamedTuple):
    """The counters that grow with a mail of one fate: by one for the mail, by their number for its recipients."""

    mails: Cell
    recipients: Cell
    others: Sequence[Cell]


class _Seconds(dict[str, SpreadCell]):
    """Duration of each step, by its name."""

    def __init__(self, board: Board, direction: str) -> None:
        self._board = board
        self._direction = direction

    def __missing__(self, step: str) -> SpreadCell:
        self[step] = self._board.spread(metrics.STEP_SECONDS, self._direction, step)
        return self[step]


class Tally:
    """Counts the outcomes of one direction's mails, and times their steps."""

    def __init__(
        self,
        direction: str,
        known: Callable[[], Config] | None = None,
        board: Board | None = None,
        trail: Trail | None = None,
    ) -> None:
        """`known` returns the configuration with the current peers; without a `trail` nothing is recorded."""
        self._direction = direction
        self.fates = Fates(direction, known)
        self.trail = trail or Trail(direction)
        self._board = board or Board()
        self.seconds = _Seconds(self._board, direction)
        self._cells: dict[tuple[str, Fate], _Cells] = {}

    def of(self, mail: Mail) -> Attempt:
        """`with`: one delivery attempt, which is reported when it ends, in any way."""
        return Attempt(self, mail)

    def opened(self, mail: Mail, opened: Opened) -> None:
        """Counts a message that was opened in its mailbox."""
        delivery = Delivery(b"", mail)
        delivery.is_opened(opened)
        delivery.note_for_all(mail.envelope.recipients, None)
        self._tell_at_once(mail, delivery)

    def not_taken(self, mail: Mail, errors: Mapping[str, RelayError]) -> None:
        """Those whom RCPT has held or refused with these errors, by mailbox: an attempt that ended before there was
        content.

        Who waits is known already (`at_rcpt`).
        """
        delivery = Delivery(b"", mail)
        delivery.outcomes.update(errors)
        self._tell_at_once(mail, delivery)

    def _tell_at_once(self, mail: Mail, delivery: Delivery) -> None:
        fates = self.fates.of(mail, delivery, None)
        self.count(mail.listener, fates.values())
        self.trail.of(mail).end(delivery, fates, None)

    def count(self, listener: str, fates: Collection[Fate]) -> None:
        """One mail: the fate of each of its recipients."""
        for fate, recipients in (Counter(fates) if len(fates) > 1 else dict.fromkeys(fates, 1)).items():
            cells = self._cells.get((listener, fate)) or self._new_cells(listener, fate)
            cells.mails.add()
            cells.recipients.add(recipients)
            for each in cells.others:
                each.add()

    def _new_cells(self, listener: str, fate: Fate) -> _Cells:
        """The number of fates is that of the labels, so a stranger cannot add any."""
        board, labels = self._board, (self._direction, listener, fate.peer, fate.level, fate.outcome)
        others = [board.cell(metrics.FAILURES, self._direction, fate.reason)] if fate.reason else []
        others += [board.cell(metrics.TRIPWIRE)] if fate.reason == "TrippedWire" else []
        cells = _Cells(board.cell(metrics.MAILS, *labels), board.cell(metrics.RECIPIENTS, *labels), others)
        self._cells[listener, fate] = cells
        return cells

    def note_who_waits(self, delivery: Delivery, fates: Mapping[str, Fate]) -> None:
        """Who is held waits until a later attempt has another outcome; a concurrent attempt does not count."""
        held, name = self._board.held, delivery.came_as or delivery.name
        for mailbox, fate in fates.items():
            if fate.outcome != "held":
                held.over(name, mailbox)
            elif fate.reason not in _NO_NEWS:
                held.held(self._direction, _CAUSES.get(fate.reason, "other"), name, mailbox)

    @contextmanager
    def at_rcpt(self, sender: str, recipient: str) -> Iterator[None]:
        """`with`: a decision at RCPT, before there is a mail; a recipient held there waits as well."""
        name = sender.encode("utf-8", "surrogatepass")
        try:
            yield
        except TryLater as error:
            self._board.held.held(self._direction, _CAUSES.get(type(error).__name__, "other"), name, recipient)
            raise
        except Refuse:
            self._board.held.over(name, recipient)
            raise
        self._board.held.over(name, recipient)


class Attempt:
    """One delivery attempt; the caller says which delivery it is.

    Its first step is to begin. A fault in reporting the end is logged: a mail that has left would be
    sent again.
    """

    __slots__ = ("_began", "_delivery", "_mail", "_record", "_tally")

    def __init__(self, tally: Tally, mail: Mail) -> None:
        self._tally = tally
        self._mail = mail
        self._record = tally.trail.of(mail)
        self._delivery: Delivery | None = None

    def begins(self, delivery: Delivery) -> None:
        """What is known of the mail from here on is in there."""
        self._delivery, delivery.witness = delivery, self._record

    def __enter__(self) -> Attempt:
        self._began = perf_counter()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            self._tell(perf_counter(), error)
        except Exception as failure:  # noqa: BLE001 - the mail has left: for a number its client must not try again
            log.error("mail_not_counted", kind=type(failure).__name__, cause=str(failure))

    def _tell(self, now: float, error: BaseException | None) -> None:
        tally, mail, delivery = self._tally, self._mail, self._delivery
        seconds, step, since = tally.seconds, "begin", self._began
        for following, at in delivery.steps if delivery is not None else ():
            seconds[step].observe(at - since)
            step, since = following, at
        seconds[step].observe(now - since)
        seconds["all"].observe(now - self._began)
        fates = tally.fates.of(mail, delivery, error)
        tally.count(mail.listener, fates.values())
        if delivery is not None and mail.listener != OURS:
            tally.note_who_waits(delivery, fates)
        self._record.end(delivery, fates, error)
