"""The journey in: recognise a sealed mail, open it, verify it, mark it, hand the original on, or put it aside.
A key taken from the KME is stored before it is used; nothing is handed on that was not verified.

What happens to a mail, in this order:

1. it is one that can be carried, and nobody else delivers it at this moment (`_delivered`)
2. the outer signatures are verified; the mail is opened, layer by layer; its keys are bound to it and its recipients
   claimed; what policy requires is checked; the original is marked (`_carry`, by opening/original.py)
3. whom the sealed envelope does not name, or who has the mail, gets nothing (`_share_out`)
4. the next hop gets the original, or the quarantine, where policy requires more (`_hand_on`)
5. who has it is noted, and who has it not is free for the next try (`_settle`)

What is not sealed goes on as it came, if policy lets it (`_pass_on`). A mail server that keeps the mail (milter) stands
in for the next hop, and says later whether it has it (`in_place`).
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial

import structlog

from relay import mime
from relay.aio import off_loop
from relay.config import Direction
from relay.deliveries import Deliveries, Delivery
from relay.errors import CannotOpen, DeliveryUnderWay, KeyNotFound, NotNamed, PolicyRefuses, RelayError, TryLater
from relay.forward import NextHop, Supervision
from relay.forward.place import Place
from relay.mail import InPlace, Mail, Outcomes, Recipient
from relay.opening import Opened
from relay.opening.original import Original, Originals
from relay.policy import MessageFacts
from relay.quarantine.triage import Triage

log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Incoming:
    """What the recipe works with; one value for the life of the relay."""

    direction: Direction
    originals: Originals
    next_hop: NextHop | Place
    deliveries: Deliveries
    triage: Triage

    def check_recipient(self, sender: str, recipient: str) -> None:
        """Every recipient is taken: the mail server that hands us mail has already chosen them."""

    async def process(self, mail: Mail) -> Outcomes:
        """Opens the mail where it is sealed for us, and hands it on. Raises TryLater or Refuse.

        What fails now is no news for recipients who got the mail with an earlier try.
        """
        return (await self._delivered(mail)).answer

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
        try:
            original = await self.originals.open(
                mail.message, mail.envelope.sender, mail.envelope.mailboxes, max_hops=self.direction.max_hops
            )
        except (CannotOpen, KeyNotFound) as error:
            await self._put_aside(delivery, mail, self.triage.cannot_open(mail, error))
            return
        if original is None:
            await self._pass_on(delivery, mail)
            return
        opened = original.opened
        try:
            await self._share_out(delivery, mail, opened)
            if opened.due:
                await self._hand_on(delivery, mail, original)
        finally:
            # After the next hop's 250: were it noted before, a relay killed in between would lose the mail.
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
                await self._put_aside(delivery, redirected, self.triage.cannot_open(redirected, error))
            except RelayError as failure:
                delivery.note_for_all(redirected.envelope.recipients, failure)

    async def _hand_on(self, delivery: Delivery, mail: Mail, original: Original) -> None:
        """The original goes to the next hop for those who are due, or is put aside."""
        opened, missed, due = original.opened, original.missed, original.opened.to_the_due(mail)
        leaving = due.with_message(mail.trace + original.message)
        if missed and missed.otherwise != "mark":  # "refuse" as well: the answer would tell that it could be opened
            kept = self.triage.unprotected(due, leaving.message, opened.protection, opened.peer, missed.cause)
            await self._put_aside(delivery, due, kept)
            return
        await self._deliver(delivery, leaving, opened)

    async def _pass_on(self, delivery: Delivery, mail: Mail) -> None:
        """Ordinary mail, which must not claim to have been protected by us."""
        message = await self.originals.unopened(mail.message)
        missed = await self.originals.missed(mail.envelope.sender, MessageFacts(message), "", "")
        if missed and missed.otherwise == "refuse":
            raise PolicyRefuses(missed.cause)
        if missed:
            message = b"X-QuMail-Protection: none" + missed.mark.encode() + b"\r\n" + message
        leaving = mail.with_message(mail.trace + message)
        if missed and missed.otherwise == "quarantine":
            await self._put_aside(delivery, mail, self.triage.unprotected(mail, leaving.message, "", "", missed.cause))
            return
        await self._deliver(delivery, leaving)

    async def _put_aside(self, delivery: Delivery, mail: Mail, kept: Awaitable[None]) -> None:
        """Whoever sent it need not try again, once it is in quarantine on the disk."""
        await kept
        delivery.note(mail.envelope.recipients, (None,) * len(mail.envelope.recipients))

    async def _deliver(self, delivery: Delivery, leaving: Mail, opened: Opened | None = None) -> None:
        """Hands it to the next hop, who says what becomes of each recipient."""
        handed = await self.next_hop.deliver(leaving, self._supervision(delivery, opened))
        delivery.note(leaving.envelope.recipients, handed.outcomes)
        refused = [str(outcome) for outcome in handed.outcomes if outcome is not None]
        event, facts = "passed_unopened", {}
        if opened is not None:
            event = "opened_and_sent" if len(refused) < len(handed.outcomes) else "opened_and_not_sent"
            facts = {
                "protection": opened.protection,
                "peer": opened.peer,
                "key_IDs": [reference.key_ID for reference in opened.keys],
            }
        report = log.warning if refused else log.info
        report(
            event,
            recipients=len(handed.outcomes) - len(refused),
            not_accepted=refused[:10],
            octets=len(opened.original if opened is not None else delivery.mail.message),
            next_hop=handed.next_hop,
            answer=handed.answer,
            **facts,
        )

    def _supervision(self, delivery: Delivery, opened: Opened | None) -> Supervision:
        """What the next hop asks for before the end of the content, and tells once it has the mail for some."""

        def accepted(recipients: Sequence[Recipient]) -> None:
            known = opened.in_store(recipients) if opened is not None else None
            self.deliveries.accepted(delivery, recipients, known)

        return Supervision(delivery.check, partial(self.deliveries.taken, delivery), accepted)

    async def _settle(self, delivery: Delivery, opened: Opened) -> None:
        """Notes who has the mail, while the client hears that all is well: a relay killed before has it sent again.

        Who has it not must be free before the client hears that, lest its retry be held. What is put in place is
        settled when that is known.
        """
        place = self.next_hop if isinstance(self.next_hop, Place) else None
        if place is not None and place.mail is not None:
            if not any(delivery.outcomes.values()):
                place.claimed = replace(opened, original=b"")
                return
            delivery.note_for_all(place.mail.envelope.recipients, TryLater("another recipient has to wait"))
            place.mail = None
        outcomes = delivery.outcomes
        has_it = [mailbox for mailbox in opened.due if mailbox in outcomes and outcomes[mailbox] is None]
        settling = self.originals.opener.begin_to_settle(opened, has_it)
        if len(has_it) < len(opened.due):
            await asyncio.shield(settling)

    # Where the mail server keeps the mail

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
                await self.originals.opener.give_up(place.claimed)
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
        self.originals.opener.begin_to_settle(opened, opened.due if heard else ())


def _has_other_body(message: bytes, other: bytes) -> bool:
    return mime.split(message)[1] != mime.split(other)[1]
