"""The journey in: recognise a sealed mail, open it, verify it, mark it, hand the original on, or put it aside.
Standard: a key taken from the KME is stored before it is used; nothing is handed on that was not verified.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import structlog

from relay import mime
from relay.config import Direction
from relay.deliveries import Deliveries, Delivery
from relay.dkim import Arrivals
from relay.errors import CannotOpen, KeyNotFound, PolicyRefuses, RelayError
from relay.forward import NextHop
from relay.forward.place import Place
from relay.levels.content import off_loop
from relay.mail import InPlace, Mail, Outcomes
from relay.opening import Opened, Opener
from relay.policy import Content, PolicySet
from relay.quarantine.triage import Triage

log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class _Missed:
    """What a mail lacks that policy requires: for the log, for its mark, and whether it is put aside for that."""

    cause: str
    mark: str
    quarantine: bool


@dataclass(frozen=True, slots=True)
class Incoming:
    """What the recipe works with; one value for the life of the relay."""

    direction: Direction
    opener: Opener
    next_hop: NextHop | Place
    deliveries: Deliveries
    policies: Callable[[], PolicySet]
    triage: Triage
    dkim: Arrivals | None = None

    def check_recipient(self, sender: str, recipient: str) -> None:
        """Every recipient is taken: the mail server that hands us mail has already chosen them."""

    async def process(self, mail: Mail) -> Outcomes:
        """Opens the mail where it is sealed for us, and hands it on. Raises TryLater or Refuse.

        What fails now is no news for recipients who got the mail with an earlier try.
        """
        return (await self._delivered(mail)).answer

    async def in_place(self, mail: Mail, fits: Callable[[bytes], bool]) -> InPlace:
        """Opens the mail for a mail server that keeps it (milter). Raises TryLater or Refuse.

        A message that does not fit there is handed to the next hop.
        """
        place = Place(self.next_hop, fits)
        delivery = await replace(self, next_hop=place)._delivered(mail)
        # Whether the client hears we never know: who has the mail another way must be known at each retry.
        before = delivery.begun.delivered
        has = {each.mailbox: each for each in mail.envelope.recipients if place.handed_on or each.mailbox in before}
        outcomes = dict(zip(mail.envelope.mailboxes, delivery.answer, strict=True))
        await self.unheard(mail.to(has.values()), tuple(outcomes[each] for each in has))
        if place.mail is None:
            return InPlace(delivery.answer)  # the next hop has it, or it is in quarantine
        opened = await off_loop(len(mail.message), _has_other_body, mail.message, place.mail.message)
        return InPlace(delivery.answer, place.mail.message, place.mail.envelope.addresses, opened=opened)

    async def unheard(self, mail: Mail, outcomes: Outcomes) -> None:
        """The client was gone before it could hear `outcomes`."""
        await self.deliveries.unheard(mail, outcomes)

    async def _delivered(self, mail: Mail) -> Delivery:
        """What became of the mail, which is over. Raises TryLater or Refuse, where nothing could be begun."""
        await off_loop(len(mail.message), mime.check_carriable, mail.message, self.direction.max_hops)
        async with self.deliveries.of(mail) as delivery:
            if rest := delivery.rest.envelope.recipients:
                try:
                    await self._carry(delivery)
                except RelayError as error:
                    delivery.note_for_all(rest, error)
        return delivery

    async def _carry(self, delivery: Delivery) -> None:
        mail = delivery.rest
        signatures = await self.dkim.verified(mail.message) if self.dkim else ()
        try:
            opened = await self.opener.open(mail.message, mail.envelope.sender)
        except (CannotOpen, KeyNotFound) as error:
            await self.triage.cannot_open(mail, error)
            _note_kept(delivery, mail)
            return
        if opened is None:
            await self._pass_on(delivery, mail)
            return
        await off_loop(len(opened.original), mime.check_carriable, opened.original, self.direction.max_hops)
        missed = await self._missed(mail, opened.original, opened.protection, opened.peer)
        peer = opened.peer + (missed.mark if missed else "")
        marked = await off_loop(len(opened.original), mime.marked, opened.original, opened.protection, peer)
        if self.dkim:
            marked = await self.dkim.told(marked, signatures)
        if missed and missed.quarantine:
            await self.triage.unprotected(mail, mail.trace + marked, opened.protection, opened.peer, missed.cause)
            _note_kept(delivery, mail)
            self._done_soon(opened)
            return
        handed = await self.next_hop.deliver(_returning_headers(mail).with_message(mail.trace + marked))
        delivery.note(mail.envelope.recipients, handed.outcomes)
        if delivery.over:
            self._done_soon(opened)
        refused = [str(outcome) for outcome in handed.outcomes if outcome is not None]
        report = log.warning if refused else log.info
        report(
            "opened_and_sent" if len(refused) < len(handed.outcomes) else "opened_and_not_sent",
            protection=opened.protection,
            peer=opened.peer,
            key_IDs=[reference.key_ID for reference in opened.keys],
            recipients=len(handed.outcomes) - len(refused),
            not_accepted=refused[:10],
            octets=len(opened.original),
            next_hop=handed.next_hop,
            answer=handed.answer,
        )

    def _done_soon(self, opened: Opened) -> None:
        """While the client hears that all is well: should the relay be killed before he does, the mail comes twice.

        The message itself is let go: from here on nobody counts the memory that it takes.
        """
        self.opener.received.later(self._done(replace(opened, original=b"")))

    async def _done(self, opened: Opened) -> None:
        """The next hop has the mail: whatever fails now must not have it sent again."""
        try:
            await self.opener.done(opened)
        except Exception as error:  # noqa: BLE001 - the mail has left
            log.error("keys_not_marked_as_used", cause=str(error), kind=type(error).__name__)

    async def _missed(self, mail: Mail, original: bytes, protection: str, peer: str) -> _Missed | None:
        """What a mail lacks that arrived with less than it must, None for enough.

        Raises PolicyRefuses where policy says refuse.
        """
        content = Content(original)
        required = await off_loop(content.size, self.policies().require, mail.envelope.sender, content)
        missed = required.missed(protection, peer)
        if missed is None:
            return None
        log.warning("arrived_unprotected", cause=missed.cause, action=missed.otherwise, policy_version=required.version)
        if missed.otherwise == "refuse":
            raise PolicyRefuses(missed.cause)
        return _Missed(missed.cause, missed.mark, missed.otherwise == "quarantine")

    async def _pass_on(self, delivery: Delivery, mail: Mail) -> None:
        """Ordinary mail, which must not claim to have been protected by us."""
        message = await off_loop(len(mail.message), mime.without_fields, mail.message, mime.OUR_MARKS)
        if self.dkim:
            message = await self.dkim.without_forged(message)
        if missed := await self._missed(mail, message, "", ""):
            message = b"X-QuMail-Protection: none" + missed.mark.encode() + b"\r\n" + message
        if missed and missed.quarantine:
            await self.triage.unprotected(mail, mail.trace + message, "", "", missed.cause)
            _note_kept(delivery, mail)
            return
        handed = await self.next_hop.deliver(mail.with_message(mail.trace + message))
        delivery.note(mail.envelope.recipients, handed.outcomes)
        refused = [str(outcome) for outcome in handed.outcomes if outcome is not None]
        report = log.warning if refused else log.info
        report(
            "passed_unopened",
            recipients=len(handed.outcomes) - len(refused),
            not_accepted=refused[:10],
            octets=len(mail.message),
        )


def _has_other_body(message: bytes, other: bytes) -> bool:
    return mime.split(message)[1] != mime.split(other)[1]


def _note_kept(delivery: Delivery, mail: Mail) -> None:
    """The mail is in quarantine for these recipients, and whoever sent it need not try again."""
    delivery.note(mail.envelope.recipients, (None,) * len(mail.envelope.recipients))


def _returning_headers(mail: Mail) -> Mail:
    """The mail with RET=HDRS (RFC 3461, 4.3): a bounce of what was opened must not quote its content."""
    return replace(mail, envelope=replace(mail.envelope, ret="HDRS"))
