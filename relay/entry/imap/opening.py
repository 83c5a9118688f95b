"""Opens a sealed message for its account, and settles the delivery once the original is in the mailbox."""

from __future__ import annotations

import secrets
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta

import structlog

from relay.entry.imap.marks import OriginalMarks
from relay.entry.imap.responses import Fetched
from relay.errors import DeliveryUnderWay, MalformedMessage, NotNamed, PolicyRefuses, RelayError, Replayed
from relay.formats import mime
from relay.journey.opening import Opened
from relay.journey.opening.original import Original, Originals
from relay.mail import Envelope, Mail, Recipient
from relay.outcome.tally import Tally
from relay.runtime.aio import off_loop

log = structlog.get_logger(__name__)

MAX_FIELD_OCTETS = 8192
KEYS_ARE_THERE = timedelta(minutes=10)
"""Age from which a message no longer waits for keys."""


@dataclass(frozen=True, slots=True)
class Replacement:
    """The replacement of a message in the mailbox, and its mark; `opened` is None if nothing was sealed.

    `mail` is its name in log and audit record.
    """

    message: bytes = field(repr=False)
    mark: str
    opened: Opened | None
    mail: str = ""


@dataclass(frozen=True, slots=True)
class MailboxOpener:
    """Opens for one account, which gets mail for `mailboxes`; originals of `under_way` are about to be appended."""

    originals: Originals
    marks: OriginalMarks
    mailboxes: tuple[str, ...]
    tally: Tally
    under_way: set[bytes] = field(default_factory=set)

    async def open(self, message: Fetched, mark: str) -> Replacement | None:
        """The original with `mark` and proof, or None if the message is not sealed for us.

        The mail is `under_way` until `settle` or `give_up`: a duplicate has to wait. For a recent message, waits for
        keys that the KME does not have yet. Raises TryLater or Refuse, without a claim and not under way.
        """
        mail = secrets.token_hex(6)
        # Call this in its own task: all its log lines name this message.
        structlog.contextvars.bind_contextvars(mail=mail, message_id=mime.message_id_hash(message.content))
        # Our own claim from before a kill does not count: only one watcher has the mailbox.
        original = await self.originals.open(
            message.content,
            self.mailboxes,
            patient=is_recent(message.date),
            mailbox=True,
            mark=f"; sealed={mark}",
        )
        if original is None:
            return None
        opened = original.opened
        if not original.message:
            raise (
                Replayed("it was opened before")
                if opened.served
                else NotNamed("its sealed envelope names none of this mailbox's addresses; see `addresses`")
            )
        if opened.mail in self.under_way:
            await self.originals.opener.give_up(opened)
            raise DeliveryUnderWay("another copy of it is being opened")
        self.under_way.add(opened.mail)
        try:
            _check(original)
            proven = await off_loop(mime.work(original.message), self.marks.proven, original.message)
        except BaseException:
            await self.give_up(opened)
            raise
        return Replacement(proven, mark, opened, mail)

    async def settle(self, opened: Opened | None) -> None:
        """Settles after APPEND: from now on a copy of the sealed message is a replay."""
        if opened is not None:
            await self.originals.opener.settle(opened, (*opened.due, *opened.busy))
            self.under_way.discard(opened.mail)

    def record(self, sealed: bytes, original: Replacement) -> None:
        """Writes the audit record of this message."""
        if (opened := original.opened) is not None:
            envelope = Envelope(opened.envelope.sender, tuple(map(Recipient, (*opened.due, *opened.busy))))
            message_id = mime.message_id_hash(sealed)
            self.tally.opened(Mail(envelope, sealed, original.mail, listener="imap", message_id=message_id), opened)

    async def settle_late(self, sealed: bytes) -> None:
        """Settles a message whose original exists since before an interruption, perhaps without a record.

        Otherwise it would be opened again if the sealed message were copied back after the original was filed away.
        """
        try:
            opened = await self.originals.opener.open(sealed, self.mailboxes, patient=False)
        except RelayError as error:
            log.info("original_not_recorded", kind=type(error).__name__, cause=str(error))
            return
        if opened is not None and (opened.due or opened.busy):
            await self.settle(opened)

    async def give_up(self, opened: Opened | None) -> None:
        """Releases the claim: the original was not appended, as far as is known."""
        if opened is not None:
            self.under_way.discard(opened.mail)
            await self.originals.opener.give_up(opened)


def _check(original: Original) -> None:
    """Raises MalformedMessage and PolicyRefuses for messages that stay sealed: a mailbox has no quarantine."""
    if b"\0" in original.message:
        raise MalformedMessage("a NUL, which IMAP cannot carry")
    if original.missed and original.missed.otherwise != "mark":
        raise PolicyRefuses(original.missed.cause)


def is_recent(date: str) -> bool:
    """Whether a message with this INTERNALDATE may have arrived before its keys."""
    age = age_of(date)
    return age is None or age < KEYS_ARE_THERE


def age_of(date: str) -> timedelta | None:
    """The age of this INTERNALDATE, None if it cannot be parsed."""
    try:
        return datetime.now(UTC) - datetime.strptime(date.strip(), "%d-%b-%Y %H:%M:%S %z")
    except ValueError:
        return None
