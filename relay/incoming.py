"""The journey in: recognise a sealed mail, open it, verify it, mark it, hand the original on, or put it aside.
Standard: a key taken from the KME is stored before it is used; nothing is handed on that was not verified.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial

import structlog

from relay import mime
from relay.config import Direction
from relay.deliveries import Deliveries, Delivery
from relay.dkim import Arrivals, Result
from relay.errors import (
    CannotOpen,
    DeliveryUnderWay,
    KeyNotFound,
    NotNamed,
    PolicyRefuses,
    RelayError,
    TryLater,
)
from relay.forward import NextHop, Supervision
from relay.forward.place import Place
from relay.levels.content import off_loop
from relay.mail import InPlace, Mail, Outcomes, Recipient
from relay.opening import Opened, Opener
from relay.policy import Content, PolicySet
from relay.quarantine.triage import Triage

log = structlog.get_logger(__name__)

_NOT_TRIED = TryLater("not tried")


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
        place = Place(self.next_hop, fits, mail.envelope)
        try:
            delivery = await replace(self, next_hop=place)._delivered(mail)
            return await self._in_its_place(mail, place, delivery)
        except BaseException:
            if place.claimed is not None:
                await self.opener.give_up(place.claimed)
            raise

    async def _in_its_place(self, mail: Mail, place: Place, delivery: Delivery) -> InPlace:
        # Whether the client hears we never know: who has the mail another way must be known at each retry.
        before = delivery.begun.delivered
        has = {each.mailbox: each for each in mail.envelope.recipients if place.handed_on or each.mailbox in before}
        outcomes = dict(zip(mail.envelope.mailboxes, delivery.answer, strict=True))
        await self.unheard(mail.to(has.values()), tuple(outcomes[each] for each in has))
        if place.mail is None:
            return InPlace(delivery.answer)  # the next hop has it, or it is in quarantine
        opened = await off_loop(len(mail.message), _has_other_body, mail.message, place.mail.message)
        taken = partial(self._taken, place.claimed) if place.claimed is not None else None
        return InPlace(delivery.answer, place.mail.message, place.mail.envelope.addresses, opened=opened, taken=taken)

    def _taken(self, opened: Opened, heard: bool) -> None:
        """The mail server has the original, or, for all that we know, it has not."""
        has_it, not_yet = (opened.due, ()) if heard else ((), opened.due)
        self.opener.received.later(self._settled(opened, has_it, not_yet))

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
            opened = await self.opener.open(
                mail.message, mail.envelope.sender, mail.envelope.mailboxes, max_hops=self.direction.max_hops
            )
        except (CannotOpen, KeyNotFound) as error:
            await self.triage.cannot_open(mail, error)
            _note_kept(delivery, mail)
            return
        if opened is None:
            await self._pass_on(delivery, mail)
            return
        try:
            await self._share_out(delivery, mail, opened)
            if opened.due:
                await self._hand_on(delivery, opened.to_the_due(mail), opened, signatures)
        finally:
            await self._settle(delivery, opened)

    async def _share_out(self, delivery: Delivery, mail: Mail, opened: Opened) -> None:
        """What becomes of those recipients who do not get the mail now; nobody may learn from it whom it names."""
        by_mailbox = {each.mailbox: each for each in mail.envelope.recipients}
        served = [by_mailbox[mailbox] for mailbox in opened.served]
        delivery.note(served, (None,) * len(served))
        if served:
            log.warning("came_again", peer=opened.peer, recipients=len(served))
        busy = [by_mailbox[mailbox] for mailbox in opened.busy]
        delivery.note_for_all(busy, DeliveryUnderWay("another relay delivers it, or was killed when it did"))
        if opened.strangers:
            redirected = mail.to(by_mailbox[mailbox] for mailbox in opened.strangers)
            error = NotNamed("the sealed envelope names other recipients")
            error.silent = True
            try:
                await self.triage.cannot_open(redirected, error)
                _note_kept(delivery, redirected)
            except RelayError as failure:
                delivery.note_for_all(redirected.envelope.recipients, failure)

    async def _hand_on(self, delivery: Delivery, mail: Mail, opened: Opened, signatures: Sequence[Result]) -> None:
        """Marks the original and hands it to the next hop for these recipients, or puts it aside."""
        missed = await self._missed(mail, opened.original, opened.protection, opened.peer)
        more = missed.mark if missed else ""
        marked = await off_loop(
            len(opened.original), mime.marked, opened.original, opened.protection, opened.peer, opened.author, more
        )
        if self.dkim:
            marked = await self.dkim.told(marked, signatures)
        if missed and missed.quarantine:
            await self.triage.unprotected(mail, mail.trace + marked, opened.protection, opened.peer, missed.cause)
            _note_kept(delivery, mail)
            return
        leaving = _returning_headers(mail).with_message(mail.trace + marked)
        handed = await self.next_hop.deliver(leaving, self._supervision(delivery, opened))
        delivery.note(mail.envelope.recipients, handed.outcomes)
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

    def _supervision(self, delivery: Delivery, opened: Opened | None = None) -> Supervision:
        def accepted(recipients: Sequence[Recipient]) -> None:
            known = opened.in_store(recipients) if opened is not None else None
            self.deliveries.accepted(delivery, recipients, known)

        return Supervision(delivery.check, partial(self.deliveries.taken, delivery), accepted)

    async def _settle(self, delivery: Delivery, opened: Opened) -> None:
        """Notes who has the mail, while the client hears that all is well: a relay killed before has it sent again.

        Who has it not must be free before the client hears that, lest its retry be held. The message itself is let go:
        from here on nobody counts the memory that it takes. What is put in place is settled when that is known.
        """
        opened = replace(opened, original=b"")
        if isinstance(self.next_hop, Place) and self.next_hop.mail is not None:
            if not any(delivery.outcomes.values()):
                self.next_hop.claimed = opened
                return
            delivery.note_for_all(self.next_hop.mail.envelope.recipients, TryLater("another recipient has to wait"))
            self.next_hop.mail = None
        has_it = {mailbox for mailbox in opened.due if delivery.outcomes.get(mailbox, _NOT_TRIED) is None}
        not_yet = [mailbox for mailbox in opened.due if mailbox not in has_it]
        settling = self.opener.received.later(self._settled(opened, sorted(has_it), not_yet))
        if not_yet:
            await asyncio.shield(settling)

    async def _settled(self, opened: Opened, has_it: Sequence[str], not_yet: Sequence[str]) -> None:
        """The next hop has the mail: whatever fails now must not have it sent again."""
        try:
            await self.opener.settle(opened, has_it, not_yet)
        except Exception as error:  # noqa: BLE001 - the mail has left
            log.error("delivery_not_settled", cause=str(error), kind=type(error).__name__)

    async def _missed(self, mail: Mail, original: bytes, protection: str, peer: str) -> _Missed | None:
        """What a mail lacks that arrived with less than it must, None for enough.

        Raises PolicyRefuses where policy says refuse and the mail came unsealed; what was opened is put aside then.
        """
        content = Content(original)
        required = await off_loop(content.size, self.policies().require, mail.envelope.sender, content)
        missed = required.missed(protection, peer)
        if missed is None:
            return None
        log.warning("arrived_unprotected", cause=missed.cause, action=missed.otherwise, policy_version=required.version)
        if missed.otherwise == "refuse" and not protection:
            raise PolicyRefuses(missed.cause)
        return _Missed(missed.cause, missed.mark, missed.otherwise != "mark")

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
        leaving = mail.with_message(mail.trace + message)
        handed = await self.next_hop.deliver(leaving, self._supervision(delivery))
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
