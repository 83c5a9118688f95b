"""One attempt to deliver a mail: what is left of earlier attempts, and the outcome for each recipient.
Standard: RFC 5321, 4.2.1: 2yz is delivered, 4yz waits for another attempt, 5yz is refused; RFC 2033, 4.2, for each one.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from time import perf_counter
from typing import Protocol

from relay.errors import RelayError, TryLater
from relay.journey.opening import Opened
from relay.journey.plan import Planned
from relay.journey.sealing import SealedCopy
from relay.mail import Mail, Outcomes, Recipient, recipient_name
from relay.store.delivery_attempts import Begun


class Witness(Protocol):
    """Records that a mail is about to leave (relay/outcome/trail.py)."""

    def leaves(self, delivery: Delivery, recipients: Sequence[Recipient], size: int, copy: SealedCopy | None) -> None:
        """Raises StoreUnavailable if the mail must not leave."""


@dataclass(slots=True)
class Delivery:
    """One attempt to deliver a mail: what is left of earlier attempts, and the outcome for each recipient.

    `name` is its name in the store, `came_as` the one before it was opened; with `is_begun` the store has this attempt.
    `copies` were sealed earlier, or are being delivered; the caller adds its own. `outcomes` are by mailbox. If a mail
    is `like_no_other`, the same bytes are a retry. `opened` is the opened mail; `unsealed` mail is passed on. For
    mailboxes in `smime` it was S/MIME of another program, and opened.
    Recipients in `aside` have it in quarantine; for those in `consumed` it ended here (relay/canary). `without` has the
    plan for recipients without a copy, and `said` the next hops' replies. The `witness` is called before mail leaves;
    `steps` have their start times (time.perf_counter).
    """

    name: bytes
    mail: Mail
    like_no_other: bool = False
    begun: Begun = field(default_factory=Begun)
    is_begun: bool = False
    copies: list[SealedCopy] = field(default_factory=list)
    outcomes: dict[str, RelayError | None] = field(default_factory=dict)
    opened: Opened | None = None
    aside: set[str] = field(default_factory=set)
    consumed: set[str] = field(default_factory=set)
    unsealed: bool = False
    smime: set[str] = field(default_factory=set)
    without: dict[str, Planned] = field(default_factory=dict)
    said: dict[str, tuple[str, str]] = field(default_factory=dict)
    witness: Witness | None = None
    came_as: bytes = b""
    steps: list[tuple[str, float]] = field(default_factory=list)
    _names: dict[str, bytes] = field(default_factory=dict, init=False)

    def step(self, name: str) -> None:
        """Begins a step, named as in the metrics (relay/counting/metrics.py)."""
        self.steps.append((name, perf_counter()))

    @property
    def rest(self) -> Mail:
        """The mail to recipients who have neither the mail nor a waiting copy, without duplicates."""
        settled = self.begun.delivered | {recipient.mailbox for copy in self.copies for recipient in copy.recipients}
        unique = {recipient.mailbox: recipient for recipient in self.mail.envelope.recipients}
        return self.mail.to(recipient for mailbox, recipient in unique.items() if mailbox not in settled)

    @property
    def leaving(self) -> list[SealedCopy]:
        """The copies to deliver: those without an outcome in this attempt."""
        return [copy for copy in self.copies if any(each.mailbox not in self.outcomes for each in copy.recipients)]

    def note(self, recipients: Iterable[Recipient], outcomes: Outcomes, next_hop: str = "", answer: str = "") -> None:
        """Adds the next hop's outcome for each of these recipients."""
        for recipient, outcome in zip(recipients, outcomes, strict=True):
            self.outcomes[recipient.mailbox] = outcome
            if outcome is None:
                self.said[recipient.mailbox] = next_hop, answer

    def put_aside(self, recipients: Sequence[Recipient]) -> None:
        """Marks these as done: the mail is in quarantine, and the client need not retry."""
        self.note_for_all(recipients, None)
        self.aside.update(each.mailbox for each in recipients)

    def consume(self, recipients: Sequence[Recipient]) -> None:
        """Marks these as done: the mail ends here, and the client need not retry."""
        self.note_for_all(recipients, None)
        self.consumed.update(each.mailbox for each in recipients)

    def note_for_all(self, recipients: Iterable[Recipient], outcome: RelayError | None) -> None:
        """The same outcome for all of them."""
        for recipient in recipients:
            self.outcomes[recipient.mailbox] = outcome

    @property
    def answer(self) -> Outcomes:
        """The outcome for each recipient in envelope order; one without an outcome is held."""
        delivered, outcomes = self.begun.delivered, self.outcomes
        return tuple(
            [None if each in delivered else outcomes.get(each, _NOT_TRIED) for each in self.mail.envelope.mailboxes]
        )

    def waits_only_for(self, recipients: Iterable[Recipient]) -> bool:
        """Whether all recipients but these have the mail."""
        mailboxes = {recipient.mailbox for recipient in recipients}
        answers = zip(self.mail.envelope.mailboxes, self.answer, strict=True)
        return all(mailbox in mailboxes or outcome is None for mailbox, outcome in answers)

    @property
    def over(self) -> bool:
        """Whether no recipient needs another attempt."""
        return not any(isinstance(outcome, TryLater) for outcome in self.answer)

    def names(self, mailboxes: Sequence[str]) -> list[bytes]:
        """The store's names for these recipients."""
        named = self._names
        for mailbox in mailboxes:
            if mailbox not in named:
                opened = self.opened
                named[mailbox] = recipient_name(self.name, mailbox) if opened is None else opened.name_in_store(mailbox)
        return list(map(named.__getitem__, mailboxes))

    def is_opened(self, opened: Opened) -> None:
        """Renames it by its sealed envelope; its opener settles it."""
        self.came_as, self.opened, self.name, self.like_no_other = self.name, opened, opened.mail, True
        self.begun = Begun(frozenset(opened.served), relay=opened.relay)
        self._names.clear()


_NOT_TRIED = TryLater("not tried")


def without_messages(delivery: Delivery) -> Delivery:
    """A delivery without its messages, to be dropped later: its memory is no longer budgeted."""
    copies = tuple(replace(each, message=b"") for each in delivery.begun.copies)
    begun = replace(delivery.begun, copies=copies)
    return replace(delivery, mail=delivery.mail.changed(message=b""), begun=begun, copies=[], without={}, witness=None)


def leaves_rows(delivery: Delivery) -> bool:
    """Whether the store has rows of this attempt to settle at its end."""
    begun = delivery.begun
    return bool(begun.relay or begun.delivered or begun.copies) and delivery.opened is None
