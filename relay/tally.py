"""Tells of each try of a mail what became of it: counts it, and has it written into the audit record.
Standard: fates.py says what there is to tell; both are told the same, so that their numbers agree.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from types import TracebackType

import structlog

from relay.config import Config
from relay.counting import Board, metrics
from relay.counting.board import Timed
from relay.deliveries import Delivery
from relay.errors import Refuse, TryLater
from relay.fates import Fate, Fates
from relay.mail import OURS, Mail
from relay.opening import Opened
from relay.trail import Trail

log = structlog.get_logger(__name__)

_CAUSES = {
    "PolicyHolds": "policy",
    **dict.fromkeys(("KeyUnavailable", "KMEExhausted", "KMEUnreachable", "KMEMisconfigured", "KMEBadReply"), "keys"),
    **dict.fromkeys(("KeyNotFound", "NotAsked"), "keys"),
    **dict.fromkeys(("NextHopUnavailable", "NotTaken", "TooManyRecipients", "Gone", "Silent"), "next hop"),
    **dict.fromkeys(("StoreUnavailable", "QuarantineFull"), "store"),
}
"""For whom waits, by the class of the error; see relay/counting/held.py."""
_NO_NEWS = ("DeliveryUnderWay", "Stopped")
"""How a try may end of which it is not known what has become."""


class Tally:
    """The mails of one direction: what becomes of them, and how long each step takes."""

    def __init__(
        self,
        direction: str,
        known: Callable[[], Config] | None = None,
        board: Board | None = None,
        trail: Trail | None = None,
    ) -> None:
        """`known` gives the configuration with the peers as they are now; without a `trail` nothing is written."""
        self._direction = direction
        self.fates = Fates(direction, known)
        self.trail = trail or Trail(direction)
        self._board = board or Board()

    def step(self, name: str) -> Timed:
        """`with`: one step of a mail."""
        return self._board.spread(metrics.STEP_SECONDS, self._direction, name).timed()

    def of(self, mail: Mail) -> Trial:
        """`with`: one try of a mail, of which is told when it ends, however that is."""
        return Trial(self, mail, self.step("all"))

    def opened(self, mail: Mail, opened: Opened) -> None:
        """A message was opened where it lay, in a mailbox."""
        delivery = Delivery(b"", mail)
        delivery.is_opened(opened)
        delivery.note_for_all(mail.envelope.recipients, None)
        fates, record = self.fates.of(mail, delivery, None), self.trail.of(mail)
        record.begins(delivery)
        self.count(mail.door, fates.values())
        record.end(fates, None)

    def count(self, door: str, fates: Iterable[Fate]) -> None:
        """One mail: the fate of each of its recipients."""
        for fate, recipients in Counter(fates).items():
            labels = self._direction, door, fate.peer, fate.level, fate.outcome
            self._board.add(metrics.MAILS, *labels)
            self._board.add(metrics.RECIPIENTS, *labels, by=recipients)
            if fate.reason:
                self._board.add(metrics.FAILURES, self._direction, fate.reason)
            if fate.reason == "TrippedWire":
                self._board.add(metrics.TRIPWIRE)

    def note_who_waits(self, delivery: Delivery, fates: Mapping[str, Fate]) -> None:
        """Who is held waits until a later try tells something else; what another try does meanwhile tells nothing."""
        held, name = self._board.held, delivery.came_as or delivery.name
        for mailbox, fate in fates.items():
            if fate.outcome != "held":
                held.over(name, mailbox)
            elif fate.reason not in _NO_NEWS:
                held.held(self._direction, _CAUSES.get(fate.reason, "other"), name, mailbox)

    @contextmanager
    def at_rcpt(self, sender: str, recipient: str) -> Iterator[None]:
        """Around what policy says before there is a mail: who is held there waits as well."""
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


class Trial:
    """One try of a mail; whoever carries it out says which delivery it is."""

    __slots__ = ("_delivery", "_mail", "_record", "_tally", "_time")

    def __init__(self, tally: Tally, mail: Mail, time: Timed) -> None:
        self._tally = tally
        self._mail = mail
        self._time = time
        self._record = tally.trail.of(mail)
        self._delivery: Delivery | None = None

    def begins(self, delivery: Delivery) -> None:
        """What is known of the mail from here on is in there."""
        self._delivery = delivery
        self._record.begins(delivery)

    def __enter__(self) -> Trial:
        self._time.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._time.__exit__()
        try:
            self._tell(error)
        except Exception as failure:  # noqa: BLE001 - the mail has left: for a number its client must not try again
            log.error("mail_not_counted", kind=type(failure).__name__, cause=str(failure))

    def _tell(self, error: BaseException | None) -> None:
        fates = self._tally.fates.of(self._mail, self._delivery, error)
        self._tally.count(self._mail.door, fates.values())
        if self._delivery is not None and self._mail.door != OURS:
            self._tally.note_who_waits(self._delivery, fates)
        self._record.end(fates, error)
