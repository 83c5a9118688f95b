"""Opens a sealed message of a mailbox for its account, and settles who has the mail once its original is there."""

from __future__ import annotations

import secrets
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta

import structlog

from relay.entry.imap.marks import OriginalMarks
from relay.entry.imap.responses import Fetched
from relay.errors import DeliveryUnderWay, MalformedMessage, NotNamed, PolicyRefuses, RelayError, Replayed
from relay.formats import mime
from relay.formats.addresses import read_addresses
from relay.journey.opening import Opened
from relay.journey.opening.original import Original, Originals
from relay.mail import Envelope, Mail, Recipient
from relay.outcome.tally import Tally
from relay.runtime.aio import off_loop

log = structlog.get_logger(__name__)

MAX_FIELD_OCTETS = 8192
KEYS_ARE_THERE = timedelta(minutes=10)
"""Age in the mailbox from which a message no longer waits for keys."""


@dataclass(frozen=True, slots=True)
class Replacement:
    """What takes the place of a message in the mailbox, and its mark; `opened` is None where nothing was sealed.

    `mail` is what log and audit record call it.
    """

    message: bytes = field(repr=False)
    mark: str
    opened: Opened | None
    mail: str = ""


@dataclass(frozen=True, slots=True)
class MailboxOpener:
    """Opens for one account, which gets mail for `mailboxes`. The originals of `under_way` are about to get there."""

    originals: Originals
    marks: OriginalMarks
    mailboxes: tuple[str, ...]
    tally: Tally
    under_way: set[bytes] = field(default_factory=set)

    async def open(self, message: Fetched, mark: str) -> Replacement | None:
        """The original with `mark`, proven to be ours, or None where the message is not sealed for us.

        The mail is `under_way` until `settle` or `give_up`: a copy has to wait. While it may have come before its keys,
        keys that the KME does not know yet are waited for. Raises TryLater or Refuse, and then nobody is claimed and
        nothing under way.
        """
        mail = secrets.token_hex(6)
        # To be called in a task of its own: all that is logged there is about this message.
        structlog.contextvars.bind_contextvars(mail=mail, message_id=mime.message_id_hash(message.content))
        # A claim of our own from before we were killed does not count: one watcher at a time has the mailbox.
        original = await self.originals.open(
            message.content,
            await _sender_of(message.content),
            self.mailboxes,
            patient=has_just_come(message.date),
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
        """The original is there: from now on a copy of the sealed message is a replay. Ordinary mail has none."""
        if opened is not None:
            await self.originals.opener.settle(opened, (*opened.due, *opened.busy))
            self.under_way.discard(opened.mail)

    def record(self, sealed: bytes, original: Replacement) -> None:
        """Records that the mailbox has the original in place of this."""
        if (opened := original.opened) is not None:
            envelope = Envelope(opened.envelope.sender, tuple(map(Recipient, (*opened.due, *opened.busy))))
            message_id = mime.message_id_hash(sealed)
            self.tally.opened(Mail(envelope, sealed, original.mail, listener="imap", message_id=message_id), opened)

    async def settle_late(self, sealed: bytes) -> None:
        """The original of this message is there from before we were broken off, perhaps without a record of it.

        Else it would come again where the sealed message is copied back once the original has been filed away.
        """
        try:
            opened = await self.originals.opener.open(sealed, await _sender_of(sealed), self.mailboxes, patient=False)
        except RelayError as error:
            log.info("original_not_recorded", kind=type(error).__name__, cause=str(error))
            return
        if opened is not None and (opened.due or opened.busy):
            await self.settle(opened)

    async def give_up(self, opened: Opened | None) -> None:
        """The original is not there, as far as we know: the next one to open it may have it."""
        if opened is not None:
            self.under_way.discard(opened.mail)
            await self.originals.opener.give_up(opened)


def _check(original: Original) -> None:
    """Raises MalformedMessage and PolicyRefuses for what stays sealed: a mailbox has no quarantine."""
    if b"\0" in original.message:
        raise MalformedMessage("a NUL, which IMAP cannot carry")
    if original.missed and original.missed.otherwise != "mark":
        raise PolicyRefuses(original.missed.cause)


async def _sender_of(sealed: bytes) -> str:
    """As `sender_of`, in a thread where the header is long."""
    return await off_loop(mime.header_work(sealed), sender_of, sealed)


def sender_of(sealed: bytes) -> str:
    """Whom a message in a mailbox is from: its envelope sender, else the one address in From; "" where neither is.

    The server that delivered it has put the envelope sender on top, as Return-Path (RFC 5321, 4.4). A sender may
    choose that freely, but gains nothing: whose keys or signature opened the message decides whether it counts.
    """
    authors: list[bytes] = []
    for name, raw in mime.fields(mime.header_of(sealed)):
        value = raw.partition(b":")[2]
        if name == b"return-path" and len(raw) <= MAX_FIELD_OCTETS:
            return value.replace(b"\r\n", b"").decode("utf-8", "replace").strip().strip("<>")
        if name == b"from":
            authors.append(value)
    try:
        [field] = authors
        [author] = read_addresses(field)
    except ValueError:  # two fields, two addresses, or none that can be read without doubt
        return ""
    return str(author)


def has_just_come(date: str) -> bool:
    """Whether a message with this INTERNALDATE may have come before its keys; those of an old one are there or gone."""
    age = age_of(date)
    return age is None or age < KEYS_ARE_THERE


def age_of(date: str) -> timedelta | None:
    """How long ago this INTERNALDATE was, None where it is none."""
    try:
        return datetime.now(UTC) - datetime.strptime(date.strip(), "%d-%b-%Y %H:%M:%S %z")
    except ValueError:
        return None
