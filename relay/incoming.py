"""The journey in: recognise a sealed mail, open it, verify it, mark it, and deliver the original or quarantine it.
A key is written down before it is used. Nothing is delivered before it is verified and its keys are on disk.

What happens to a mail, in this order:

1. It is checked that it can be carried, and that nobody else delivers these bytes now (`_process`).
2. The outer signatures are verified. The mail is opened layer by layer, its keys are bound to it, and its recipients
   claimed. Policy is checked, and the original is marked (`_carry`, by opening/original.py).
3. Recipients who have the mail, or are not named by the sealed envelope, get nothing (`_share_out`). Mail to our canary
   address ends here, opened or not (`_consume`, relay/canary).
4. The original goes to the next hop, or to quarantine if policy requires more (`_hand_on`).
5. Who has it is stored; the claims on all others are released (`_settle`).

Unsealed mail is passed on unchanged if policy permits (`_pass_on`), and identified by its bytes (deliveries.py). S/MIME
of other programs for a key of this site is opened on that way (relay/smime). A mail server that keeps the mail (milter)
gets the original in its place, and reports later whether it took it (`in_place`).
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from typing import TYPE_CHECKING

import structlog

from relay.canary.box import CanaryBox, Reason
from relay.config import DirectionSettings
from relay.errors import CannotOpen, DeliveryUnderWay, KeyNotFound, NotNamed, PolicyRefuses, RelayError, TryLater
from relay.formats import mime
from relay.formats.mailbox import folded_mailbox
from relay.forward import NextHop, NextHopResult, Supervision
from relay.journey.deliveries import Deliveries
from relay.journey.delivery import Delivery
from relay.journey.opening import Opened, undisclosed
from relay.journey.opening.original import Original, Originals
from relay.levels import SMIME
from relay.mail import Envelope, InPlace, Mail, Outcomes, domain_of
from relay.outcome.tally import Tally
from relay.policy.content import MessageFacts
from relay.quarantine.triage import Triage
from relay.runtime.aio import off_loop, off_loop_in_turn

if TYPE_CHECKING:
    from relay.smime.reading import SMIMEReading

log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Incoming:
    """The parts that this journey uses; one value for the relay's lifetime."""

    direction: DirectionSettings
    originals: Originals
    next_hop: NextHop
    deliveries: Deliveries
    triage: Triage
    canaries: CanaryBox
    tally: Tally = field(default_factory=partial(Tally, "incoming"), repr=False)

    def check_recipient(self, sender: str, recipient: str) -> None:
        """Accepts every recipient: the mail server that hands us mail has already checked them."""

    def not_taken(self, mail: Mail, errors: Mapping[str, RelayError]) -> None:
        """Nothing to record: no recipient is refused at RCPT."""

    async def process(self, mail: Mail) -> Outcomes:
        """Opens the mail if it is sealed for us, and delivers it. Raises TryLater or Refuse.

        A failure does not concern recipients who got the mail at an earlier attempt.
        """
        return (await self._process(mail, None)).answer

    def client_answered(self, mail: Mail) -> None:
        """The client was connected when it was answered."""
        self.deliveries.client_answered(mail)

    async def client_gone(self, mail: Mail, outcomes: Outcomes) -> None:
        """The client was gone before it could get `outcomes`."""
        await self.deliveries.client_gone(mail, outcomes)

    async def _process(self, mail: Mail, kept: _KeptMail | None) -> Delivery:
        """The finished delivery of the mail. Raises TryLater or Refuse if it could not begin."""
        with self.tally.of(mail) as attempt:
            await off_loop(mime.work(mail.message), mime.check_carriable, mail.message, self.direction.max_hops)
            async with self.deliveries.of(mail, begin=False) as delivery:
                attempt.begins(delivery)
                try:
                    await self._carry(delivery, kept)
                except RelayError as error:
                    rest = [each for each in delivery.rest.envelope.recipients if each.mailbox not in delivery.consumed]
                    delivery.note_for_all(rest, error)
        return delivery

    async def _carry(self, delivery: Delivery, kept: _KeptMail | None) -> None:
        mail = delivery.rest
        unreadable: CannotOpen | KeyNotFound | None = None
        delivery.step("open")
        try:
            original = await self.originals.open(
                mail.message, mail.envelope.mailboxes, max_hops=self.direction.max_hops
            )
        except (CannotOpen, KeyNotFound) as error:
            original, unreadable = None, error
        if original is None:
            delivery.step("begin")
            mail = await self._without_canaries(delivery, await self.deliveries.begin(delivery), unreadable)
            if mail.envelope.recipients and unreadable is not None:
                await self._put_aside(delivery, mail, self.triage.cannot_open(mail, unreadable))
            elif mail.envelope.recipients:
                await self._pass_on(delivery, mail, kept)
            return
        opened = original.opened
        delivery.is_opened(opened)
        try:
            await self._share_out(delivery, mail, opened)
            due = self._consume(delivery, opened.to_the_due(mail))
            if due.envelope.recipients:
                await self._hand_on(delivery, due, original, kept)
        finally:
            # After the next hop's 250: if recorded earlier, a kill in between would lose the mail.
            await self._settle(delivery, opened, kept)
        if delivery.consumed.intersection(opened.due):
            missed = original.missed
            self.canaries.take(opened, protected=missed is None or missed.otherwise == "mark")

    def _consume(self, delivery: Delivery, mail: Mail, reason: Reason | None = None) -> Mail:
        """The mail without our canary address, whose mail ends here; with a `reason` it is counted as dropped."""
        ours = [each for each in mail.envelope.recipients if self.canaries.takes(each.mailbox)]
        if not ours:
            return mail
        delivery.consume(ours)
        if reason is not None:
            self.canaries.drop(reason)
        return mail.to(each for each in mail.envelope.recipients if each.mailbox not in delivery.consumed)

    async def _without_canaries(self, delivery: Delivery, mail: Mail, unreadable: RelayError | None) -> Mail:
        """Drops unsealed or unreadable mail to our canary address, unless its key may still arrive."""
        if not any(map(self.canaries.takes, mail.envelope.mailboxes)):
            return mail
        if isinstance(unreadable, KeyNotFound) and await self.triage.waits_for_key(mail):
            return mail
        clear: Reason = "clear text" if mail.envelope.sender else "bounce"
        return self._consume(delivery, mail, clear if unreadable is None else "unreadable")

    async def _share_out(self, delivery: Delivery, mail: Mail, opened: Opened) -> None:
        """Settles recipients who do not get the mail now; the reply must not reveal whom the envelope names."""
        by_mailbox = {each.mailbox: each for each in mail.envelope.recipients}
        if opened.served:
            log.warning("came_again", peer=opened.peer, recipients=len(opened.served))
        busy = [by_mailbox[mailbox] for mailbox in opened.busy]
        delivery.note_for_all(busy, DeliveryUnderWay("another relay delivers it, or was killed when it did"))
        if any(map(self.canaries.takes, opened.served)):
            self.canaries.drop("repeated", opened.peer)
        redirected = self._consume(delivery, mail.to(by_mailbox[mailbox] for mailbox in opened.strangers), "not named")
        if redirected.envelope.recipients:
            error = NotNamed("the sealed envelope names other recipients")
            error.silent, error.claimed = True, opened.peer
            try:
                await self._put_aside(delivery, redirected, self.triage.cannot_open(redirected, error))
            except RelayError as failure:
                delivery.note_for_all(redirected.envelope.recipients, failure)

    async def _hand_on(self, delivery: Delivery, due: Mail, original: Original, kept: _KeptMail | None) -> None:
        """Delivers the original to those who are due, or quarantines it."""
        opened, missed = original.opened, original.missed
        leaving = due.changed(message=original.message)
        if missed and missed.otherwise != "mark":  # also "refuse": a refusal would reveal that it could be opened
            keeping = self.triage.unprotected(leaving, opened.protection, opened.peer, missed.cause)
            await self._put_aside(delivery, due, keeping)
            return
        await self._deliver(delivery, leaving, kept, opened)

    async def _pass_on(self, delivery: Delivery, mail: Mail, kept: _KeptMail | None) -> None:
        """Delivers mail that no relay has sealed; S/MIME of other programs is opened for those whose key opens it."""
        delivery.unsealed = True
        try:
            reading = await self.originals.read_smime(mail)
            for_us = reading is not None and reading.opened
        except CannotOpen:
            reading, for_us = None, True
        if for_us:  # opened or not: a notice would tell an attacker which changes of a captured mail open
            mail = mail.changed(envelope=undisclosed(mail.envelope))
        if reading is None or not reading.opened:
            await self._pass(delivery, mail, kept, reading)
            return
        if kept is not None:  # a mail server that keeps it could quote it in a bounce to anybody
            kept.handed_on, kept = True, None
        theirs = [each for each in mail.envelope.recipients if each.mailbox in reading.mailboxes]
        others = [each for each in mail.envelope.recipients if each.mailbox not in reading.mailboxes]
        for recipients, opened in ((theirs, reading), (others, None)):
            if recipients:
                try:
                    await self._pass(delivery, mail.to(recipients), kept, opened)
                except RelayError as failure:
                    delivery.note_for_all(recipients, failure)

    async def _pass(self, delivery: Delivery, mail: Mail, kept: _KeptMail | None, reading: SMIMEReading | None) -> None:
        """Delivers mail that no relay has sealed, or quarantines it; marked if it is S/MIME, or lacks something."""
        if reading is not None and reading.opened:
            delivery.smime.update(mail.envelope.mailboxes)
        message = await self.originals.unopened(reading.message if reading is not None else mail.message)
        content = MessageFacts(message)
        authors = await off_loop_in_turn(mime.work(message), lambda: content.authors)
        self.canaries.came_unsealed(mail.envelope.sender, [each.domain for each in authors or ()])
        protection = SMIME if reading is not None and _is_from(reading, content, mail.envelope.sender) else ""
        missed = await self.originals.missed(mail.envelope.sender, content, protection, "")
        if missed and missed.otherwise == "refuse":
            raise PolicyRefuses(missed.cause)
        if missed or reading is not None:
            mark = (reading.mark if reading is not None else "none") + (missed.mark if missed else "")
            marked = mime.with_mark(message, mark)
            message = await off_loop(mime.work(message), self.originals.marks.proven, marked)
        leaving = mail.changed(message=message)
        if missed and missed.otherwise == "quarantine":
            await self._put_aside(delivery, mail, self.triage.unprotected(leaving, "", "", missed.cause))
            return
        await self._deliver(delivery, leaving, kept)

    async def _put_aside(self, delivery: Delivery, mail: Mail, keeping: Awaitable[None]) -> None:
        """Quarantines the mail, after which the sender need not retry."""
        delivery.step("quarantine")
        await keeping
        delivery.put_aside(mail.envelope.recipients)

    async def _deliver(
        self, delivery: Delivery, leaving: Mail, kept: _KeptMail | None, opened: Opened | None = None
    ) -> None:
        """Delivers to the next hop, or in place if the mail server keeps the mail."""
        check = partial(self.deliveries.check, delivery, leaving)
        result = await kept.put_in_place(leaving, check) if kept is not None else None
        if result is None:
            noted = (partial(self.deliveries.taken, delivery), partial(self.deliveries.accepted, delivery))
            delivery.step("deliver")
            result = await self.next_hop.deliver(leaving, Supervision(check, *noted))
        delivery.note(leaving.envelope.recipients, result.outcomes, result.next_hop, result.answer)
        refused = [str(outcome) for outcome in result.outcomes if outcome is not None]
        event, facts = "passed_unopened", dict[str, object]()
        if leaving.envelope.recipients[0].mailbox in delivery.smime:
            event = "opened_and_sent" if len(refused) < len(result.outcomes) else "opened_and_not_sent"
            facts = {"protection": SMIME}
        elif opened is not None:
            event = "opened_and_sent" if len(refused) < len(result.outcomes) else "opened_and_not_sent"
            facts = {
                "protection": opened.protection,
                "peer": opened.peer,
                "sealed": opened.sealed,
                "key_IDs": [reference.key_ID for reference in opened.keys],
            }
        report = log.warning if refused else log.info
        report(
            event,
            recipients=len(result.outcomes) - len(refused),
            not_accepted=refused[:10],
            octets=len(opened.original if opened is not None else delivery.mail.message),
            next_hop=result.next_hop,
            answer=result.answer,
            **facts,
        )

    async def _settle(self, delivery: Delivery, opened: Opened, kept: _KeptMail | None) -> None:
        """Records who has the mail while the client is answered: a relay killed earlier gets it again.

        Who has it not must be free before the client hears that, lest its retry be held. What is put in place is
        settled when that is known.
        """
        if kept is not None and kept.mail is not None:
            if not any(delivery.outcomes.values()):
                kept.claimed = replace(opened, original=b"")
                return
            delivery.note_for_all(kept.mail.envelope.recipients, TryLater("another recipient has to wait"))
            kept.mail = None
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
        kept = _KeptMail(mail.envelope, fits)
        try:
            delivery = await self._process(mail, kept)
            return await self._in_its_place(mail, kept, delivery)
        except BaseException:
            if kept.claimed is not None:
                await self.originals.opener.give_up(kept.claimed)
            raise

    async def _in_its_place(self, mail: Mail, kept: _KeptMail, delivery: Delivery) -> InPlace:
        # Whether the client gets the answer is never known, so each retry must know who has the mail already.
        before = delivery.begun.delivered
        has = {each.mailbox: each for each in mail.envelope.recipients if kept.handed_on or each.mailbox in before}
        outcomes = dict(zip(mail.envelope.mailboxes, delivery.answer, strict=True))
        await self.client_gone(mail.to(has.values()), tuple(outcomes[each] for each in has))
        if kept.mail is None:
            return InPlace(delivery.answer)  # the next hop has it, or it is in quarantine
        opened = await off_loop(mime.work(mail.message), _has_other_body, mail.message, kept.mail.message)
        taken = partial(self._taken, kept.claimed) if kept.claimed is not None else None
        return InPlace(delivery.answer, kept.mail.message, kept.mail.envelope.addresses, opened=opened, taken=taken)

    def _taken(self, opened: Opened, answered: bool) -> None:
        """The mail server has the original, or may not have it."""
        self.originals.opener.begin_to_settle(opened, opened.due if answered else ())


@dataclass(slots=True)
class _KeptMail:
    """A mail that its mail server keeps, with `envelope`; `mail` replaces it, None where nothing does.

    `claimed` is what was opened for that, to be settled once the mail server has it; what it could not be given was
    `handed_on`.
    """

    envelope: Envelope
    fits: Callable[[bytes], bool]
    mail: Mail | None = None
    claimed: Opened | None = None
    handed_on: bool = False

    async def put_in_place(self, leaving: Mail, check: Callable[[], None]) -> NextHopResult | None:
        """None where it does not fit there, or the mail server would tell more of it or of its sender than it may.

        Raises what `check` raises.
        """
        original = {each.mailbox: each.notify for each in self.envelope.recipients}
        changed = any(each.notify != original.get(each.mailbox) for each in leaving.envelope.recipients)
        other = changed or folded_mailbox(leaving.envelope.sender) != folded_mailbox(self.envelope.sender)
        if other or not await off_loop(mime.work(leaving.message), self.fits, leaving.message):
            self.handed_on = True
            return None
        check()
        self.mail = leaving
        return NextHopResult((None,) * len(leaving.envelope.recipients), "put in place", "milter")


def _is_from(reading: SMIMEReading, content: MessageFacts, sender: str) -> bool:
    """Whether S/MIME protects it: opened, with a good signature, and all named as senders at the signer's domain."""
    domain = reading.signer.rpartition("@")[2]
    named = [*(content.authors or ()), *(content.senders or ())]
    certain = content.authors is not None and content.senders is not None
    others = sender and domain_of(sender) != domain
    return (
        reading.opened
        and reading.signature.verdict == "good"
        and certain
        and not others
        and all(each.domain == domain for each in named)
    )


def _has_other_body(message: bytes, other: bytes) -> bool:
    return not mime.has_body(message, memoryview(other)[mime.bounds(other)[1] :])
