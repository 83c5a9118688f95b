"""Reports the outcome of each delivery attempt: counts it, and writes it to the audit record.
Standard: trail.py has the vocabulary; counters and record get the same outcomes, so their numbers agree.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import lru_cache
from time import perf_counter
from typing import NamedTuple

import structlog

from relay.config import Config
from relay.counting import metrics
from relay.counting.board import Board, Cell, SpreadCell
from relay.errors import Refuse, RelayError, TryLater
from relay.journey.delivery import Delivery
from relay.journey.opening import Opened
from relay.journey.sealing import SealedCopy
from relay.levels import PLAINTEXT, SMIME
from relay.mail import OURS, Mail, domain_of
from relay.outcome.trail import NONE, AttemptRecord, Fate, Trail

log = structlog.get_logger(__name__)

_CAUSES = {
    **dict.fromkeys(("PolicyHolds", "NoPolicy"), "policy"),
    **dict.fromkeys(("KeyUnavailable", "KMEExhausted", "KMEUnreachable", "KMEMisconfigured", "KMEBadReply"), "keys"),
    **dict.fromkeys(("KMEUnanswered", "KMEBusy", "NotAsked", "KMERefusedRequest"), "keys"),
    **dict.fromkeys(("KeyNotFound", "KeysMissing", "OtherSize", "HeldForKeys"), "keys"),
    **dict.fromkeys(("NextHopUnavailable", "NotTaken", "TooManyRecipients", "Gone", "Silent"), "next hop"),
    **dict.fromkeys(("StoreUnavailable", "QuarantineFull"), "store"),
}
"""Cause for which a recipient waits, by class of the error; see relay/counting/held.py."""
_NO_NEWS = ("DeliveryUnderWay", "Stopped")
"""Errors after which the outcome of an attempt is unknown."""


class _Cells(NamedTuple):
    """The counters of one fate: of mails, and of recipients."""

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
        config: Callable[[], Config] | None = None,
        board: Board | None = None,
        trail: Trail | None = None,
    ) -> None:
        """`config` returns the configuration with the current peers; without a `trail` nothing is recorded."""
        self._direction = direction
        self._known = config
        self.trail = trail or Trail(direction)
        self._board = board or Board()
        self.seconds = _Seconds(self._board, direction)
        self._cells: dict[tuple[str, Fate], _Cells] = {}

    @contextmanager
    def of(self, mail: Mail) -> Iterator[AttemptRecord]:
        """Context manager for one delivery attempt, which is reported at its end in any case."""
        attempt, began = AttemptRecord(self.trail, mail), perf_counter()
        try:
            yield attempt
        except BaseException as error:
            self._report(attempt, began, error)
            raise
        else:
            self._report(attempt, began, None)
        finally:
            attempt.delivery = None  # breaks a reference cycle, which would keep the message until it is collected

    def _report(self, attempt: AttemptRecord, began: float, error: BaseException | None) -> None:
        """Reports the attempt; a failure is only logged: the mail has left, and must not be retried for that."""
        mail, delivery, now = attempt.mail, attempt.delivery, perf_counter()
        step, since = "begin", began
        try:
            for following, at in delivery.steps if delivery is not None else ():
                self.seconds[step].observe(at - since)
                step, since = following, at
            self.seconds[step].observe(now - since)
            fates = self._fates(mail, delivery, error)
            if any(each.outcome not in ("held", "refused") for each in fates.values()):
                self.seconds["all"].observe(now - began)  # a mail that is turned away at once is not a fast one
            self.count(mail.listener, fates.values())
            if delivery is not None and mail.listener != OURS:
                self.note_waiting(delivery, fates)
            attempt.end(fates, error)
        except Exception as failure:  # noqa: BLE001 - as above
            log.error("mail_not_counted", kind=type(failure).__name__, cause=str(failure))

    def opened(self, mail: Mail, opened: Opened) -> None:
        """Counts a message that was opened in its mailbox."""
        delivery = Delivery(b"", mail)
        delivery.is_opened(opened)
        delivery.note_for_all(mail.envelope.recipients, None)
        self._report_at_once(mail, delivery)

    def not_taken(self, mail: Mail, errors: Mapping[str, RelayError]) -> None:
        """Reports recipients held or refused at RCPT with these errors, by mailbox.

        Those that wait are already noted (`at_rcpt`).
        """
        delivery = Delivery(b"", mail)
        delivery.outcomes.update(errors)
        self._report_at_once(mail, delivery)

    def _report_at_once(self, mail: Mail, delivery: Delivery) -> None:
        fates = self._fates(mail, delivery, None)
        self.count(mail.listener, fates.values())
        AttemptRecord(self.trail, mail, delivery).end(fates)

    def _fates(self, mail: Mail, delivery: Delivery | None, error: BaseException | None) -> dict[str, Fate]:
        """The fate of each recipient, by mailbox; `error` applies to those without any other outcome."""
        copies: dict[str, SealedCopy] = {}
        for copy in delivery.copies if delivery is not None else ():
            for each in copy.recipients:
                copies[each.mailbox] = copy
        fates: dict[str, Fate] = {}
        for each in mail.envelope.recipients:
            mailbox = each.mailbox
            fates[mailbox] = self._fate(mail, mailbox, delivery, copies.get(mailbox), error)
        return fates

    def _fate(
        self, mail: Mail, mailbox: str, delivery: Delivery | None, copy: SealedCopy | None, error: BaseException | None
    ) -> Fate:
        if copy is not None:
            peer, level = copy.peer or "", copy.protection
        else:
            peer, level = self._protection(mail, mailbox, delivery)
        if delivery is not None and mailbox in delivery.outcomes:
            error = delivery.outcomes[mailbox]
        elif delivery is not None and mailbox in delivery.begun.delivered:
            return _known_fate(peer, level, "repeated", "")
        elif error is None:
            return _known_fate(peer, level, "held", "NotTried")
        if error is not None:
            return _known_fate(peer, level, "refused" if isinstance(error, Refuse) else "held", _reason(error))
        if delivery is not None and mailbox in delivery.aside:
            return _known_fate(peer, level, "quarantined", "")
        if delivery is not None and mailbox in delivery.consumed:
            return _known_fate(peer, level, "consumed", "")
        inside = copy is not None and copy.in_clear and mailbox in copy.inside
        return _known_fate(peer, level, "inside" if inside else "delivered", "")

    def _protection(self, mail: Mail, mailbox: str, delivery: Delivery | None) -> tuple[str, str]:
        """Peer and level for a recipient without a copy."""
        if delivery is not None and delivery.opened is not None:
            return delivery.opened.peer, delivery.opened.protection
        if delivery is not None and delivery.unsealed:
            return "", SMIME if mailbox in delivery.smime else PLAINTEXT
        whose = mailbox if self._direction == "outgoing" else mail.envelope.sender
        peer = self._known().peer_by_domain(domain_of(whose)) if self._known is not None else None
        return peer[0] if peer is not None else "", NONE

    def count(self, listener: str, fates: Collection[Fate]) -> None:
        """Counts one mail, with the fate of each recipient."""
        for fate, recipients in (Counter(fates) if len(fates) > 1 else dict.fromkeys(fates, 1)).items():
            cells = self._cells.get((listener, fate)) or self._new_cells(listener, fate)
            cells.mails.add()
            cells.recipients.add(recipients)
            for each in cells.others:
                each.add()

    def _new_cells(self, listener: str, fate: Fate) -> _Cells:
        """Creates the counters of a fate; all labels have fixed values, so outsiders cannot add any."""
        board, labels = self._board, (self._direction, listener, fate.peer, fate.level, fate.outcome)
        others = [board.cell(metrics.FAILURES, self._direction, fate.reason)] if fate.reason else []
        others += [board.cell(metrics.TRIPWIRE)] if fate.reason == "TrippedWire" else []
        cells = _Cells(board.cell(metrics.MAILS, *labels), board.cell(metrics.RECIPIENTS, *labels), others)
        self._cells[listener, fate] = cells
        return cells

    def note_waiting(self, delivery: Delivery, fates: Mapping[str, Fate]) -> None:
        """Notes held recipients, until a later attempt has another outcome; a concurrent one does not count."""
        name, first = delivery.came_as or delivery.name, False
        for mailbox, fate in fates.items():
            if fate.outcome != "held":
                self._board.held.over(name, mailbox)
            elif fate.reason not in _NO_NEWS:
                first |= self._waits(fate.reason, name, mailbox)
        if first:
            self._board.add(metrics.HELD_FIRST, self._direction)

    def _waits(self, reason: str, name: bytes, mailbox: str) -> bool:
        """Notes a waiting recipient; returns whether it is a new one."""
        return self._board.held.held(self._direction, _CAUSES.get(reason, "other"), name, mailbox)

    @contextmanager
    def at_rcpt(self, sender: str, recipient: str) -> Iterator[None]:
        """Context manager for a decision at RCPT; a recipient held there is noted as waiting."""
        name = sender.encode("utf-8", "surrogatepass")
        try:
            yield
        except TryLater as error:
            if self._waits(type(error).__name__, name, recipient):
                self._board.add(metrics.HELD_FIRST, self._direction)
            raise
        except Refuse:
            self._board.held.over(name, recipient)
            raise
        self._board.held.over(name, recipient)


_known_fate = lru_cache(maxsize=1000)(Fate)
"""Cached: most fates repeat."""


def _reason(error: BaseException) -> str:
    """The error's class name; text of others is never used as a label."""
    if isinstance(error, asyncio.CancelledError):
        return "Stopped"
    return type(error).__name__ if isinstance(error, RelayError) else "Unforeseen"
