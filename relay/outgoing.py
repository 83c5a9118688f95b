"""The journey out: policy, keys, sealing, next hop; nothing leaves before everything is sealed.
Standard: DATA is answered with 250 only after `process` has returned (RFC 5321, 6.1).

What happens to a mail, in this order:

1. It is checked that it can be carried, and that nobody else delivers it now (`process`).
2. Copies sealed at an earlier attempt are reused if policy still permits them. For all other recipients policy decides,
   keys are taken and copies sealed (sealing.py). A level below the first one listed is entered in the ledger
   (`_add_copies`).
3. Each copy is signed, checked by the tripwire, and handed to the next hop. A copy that fails does not stop the others
   (`_hand_on`).
4. Who has the mail, and the copies that wait, are stored for the retry (deliveries.py, at the end of `process`).

A mail server that keeps the mail (milter) gets one copy in its place (`in_place`). In shadow mode the mail leaves
unchanged, and the log shows what would have been done.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING

import structlog

from relay.audit.entries import LedgerEntry
from relay.audit.writing import Audit
from relay.config import OutgoingSettings
from relay.errors import (
    NextHopUnavailable,
    OutcomeUnknown,
    RelayError,
    ReservedSender,
    StoreUnavailable,
    TryLater,
)
from relay.formats import mime
from relay.forward import NextHop, NextHopResult, Supervision
from relay.journey.deliveries import Deliveries
from relay.journey.delivery import Delivery
from relay.journey.plan import Planned
from relay.journey.planner import check_shown
from relay.journey.sealing import SealedCopy, SealedMail, Sealer
from relay.journey.shadow import Shadow
from relay.journey.tripwire import check_sealed
from relay.levels import PLAINTEXT
from relay.mail import OURS, InPlace, Mail, Outcomes, for_all
from relay.outcome.tally import Tally
from relay.policy.require import Missed
from relay.runtime.aio import off_loop

if TYPE_CHECKING:
    from relay.dkim import Signer

log = structlog.get_logger(__name__)

MAX_ENTERED = 1000
"""Maximum number of waiting mails whose ledger lines are remembered; lines of others may be written twice."""

SHADOW = "shadow mode"
"""Placeholder for the policy file that let a mail out in clear."""


@dataclass(frozen=True, slots=True)
class Outgoing:
    """The parts that this journey uses; one value for the relay's lifetime.

    `signer` returns the current DKIM signer, if [dkim] is set. `is_own_canary` recognises the relay's own sender
    address. `entered` has the ledger entries already written for mails of which nothing has left yet.
    """

    direction: OutgoingSettings
    sealer: Sealer
    next_hop: NextHop
    audit: Audit
    deliveries: Deliveries
    shadow: Shadow | None = None
    signer: Callable[[], Signer | None] | None = None
    tally: Tally = field(default_factory=partial(Tally, "outgoing"), repr=False)
    is_own_canary: Callable[[str], bool] = lambda _: False
    entered: dict[tuple[bytes, str], frozenset[LedgerEntry]] = field(default_factory=dict, repr=False)

    def check_recipient(self, sender: str, recipient: str) -> None:
        """Rejects a recipient at RCPT TO if the outcome is already certain.

        Raises ReservedSender, PolicyHolds, PolicyRefuses and MalformedMessage.
        """
        self._check_sender(sender)
        if self.shadow is None:
            with self.tally.at_rcpt(sender, recipient):
                self.sealer.check(sender, recipient)

    def _check_sender(self, sender: str) -> None:
        """Raises ReservedSender for the canary address: a forged question would use up a genuine one's receipt."""
        if self.is_own_canary(sender):
            raise ReservedSender("this sender address is the relay's own, for canaries")

    def not_taken(self, mail: Mail, errors: Mapping[str, RelayError]) -> None:
        """Counts and records recipients held or refused at RCPT, once their transaction has ended."""
        self.tally.not_taken(mail, errors)

    async def process(self, mail: Mail, missed: Missed | None = None) -> Outcomes:
        """Seals the mail as policy requires for each recipient and delivers it. Raises TryLater or Refuse.

        A failure for one group of recipients does not stop the others. What stays inside gets the mark of `missed`.
        """
        with self.tally.of(mail) as attempt:
            if mail.listener != OURS:
                self._check_sender(mail.envelope.sender)
            await off_loop(mime.work(mail.message), mime.check_carriable, mail.message, self.direction.max_hops)
            async with self.deliveries.of(mail) as delivery:
                attempt.begins(delivery)
                await self._add_copies(delivery, missed)
                await self._hand_on_all(delivery, delivery.leaving, more=False)
        return delivery.answer

    async def _add_copies(self, delivery: Delivery, missed: Missed | None = None) -> None:
        """Seals for those recipients who have no copy from an earlier attempt that policy still permits."""
        kept: list[LedgerEntry] = []
        if delivery.copies and self.shadow is None:
            delivery.copies = await self.sealer.still_permitted(delivery.mail, delivery.copies)
            await self._leave_out_outlived(delivery)
            kept = await _entries(delivery.mail, delivery.copies)
            if kept:
                await self._enter(delivery, kept)
                _warn_of_downgrades(kept)
        rest = delivery.rest
        if not rest.envelope.recipients:
            return
        try:
            if self.shadow is not None:
                entries, inside = await self.shadow.foresee(rest)
                sealed = self._in_clear(rest, inside)
            else:
                # Before keys are drawn: header fields that trip the wire would do so at every retry.
                await off_loop(mime.header_work(rest.message), check_shown, rest.message)
                delivery.step("seal")
                sealed = await self.sealer.seal(rest)
                entries = await _entries(rest, sealed.copies)
            # Before anything leaves: the ledger must have every downgrade.
            await self._enter(delivery, [*kept, *entries])
        except RelayError as error:
            delivery.note_for_all(rest.envelope.recipients, error)
            return
        _warn_of_downgrades(entries)
        for copy in sealed.copies:
            if copy.in_clear:
                mark = missed if copy.inside else None
                copy.message = await off_loop(mime.work(copy.message), self._with_our_mark, copy.message, mark)
        delivery.copies += sealed.copies
        delivery.without |= sealed.without
        if sealed.failures:
            for recipient in rest.envelope.recipients:
                if failure := sealed.failures.get(recipient.address):
                    delivery.note_for_all([recipient], failure)
            for cause in set(map(str, sealed.failures.values())):
                log.warning("not_sealed", cause=cause, policy_version=sealed.policy_version)

    def _with_our_mark(self, message: bytes, missed: Missed | None) -> bytes:
        """The message without marks of protection, but for that of `missed`, or the one that this site has given it.

        Opened mail may come by the way out: through a scanner, or the milter that stands behind the incoming one.
        """
        clean = mime.without_marks(message)
        if missed is not None:
            return self.sealer.marks.proven(missed.marked(clean))
        return message if clean is message or self.sealer.marks.is_proven(message) else clean

    async def _leave_out_outlived(self, delivery: Delivery) -> None:
        """Drops copies too old for the peer to open, so that they are sealed again under other keys.

        If no next hop answers, they are kept: each attempt would spend keys for nothing.
        """
        if not (outlived := self.sealer.outlived(delivery.copies)):
            return
        troubles = [trouble for _, trouble in await self.next_hop.states()]
        if all(troubles):
            for copy in outlived:
                delivery.note_for_all(copy.recipients, NextHopUnavailable(troubles[0] if troubles else "no next hop"))
            return
        for copy in outlived:
            log.info("sealed_anew", peer=copy.peer, protection=copy.protection, recipients=len(copy.recipients))
            delivery.copies.remove(copy)

    async def _enter(self, delivery: Delivery, entries: Sequence[LedgerEntry]) -> None:
        """Writes the ledger; for a retry of a mail of which nothing has left, only the new entries."""
        if not (entries or self.entered):
            return
        name = self._entered_as(delivery)
        written = self.entered.pop(name, frozenset())
        if not entries:
            return
        delivery.step("ledger")
        await self.audit.record(*(entry for entry in entries if entry not in written))
        self.entered[name] = written.union(entries)
        if len(self.entered) > MAX_ENTERED:
            del self.entered[next(iter(self.entered))]

    def _entered_as(self, delivery: Delivery) -> tuple[bytes, str]:
        """The key that a mail and its retries have in common.

        Another process may have delivered it since, and the same bytes may then be another mail. The queue ID
        distinguishes them; without one, each attempt has its own lines.
        """
        mail = delivery.mail
        return delivery.name, "" if self.deliveries.alone else mail.origin.ident or mail.id

    def _in_clear(self, mail: Mail, inside: tuple[Planned, ...]) -> SealedMail:
        """Shadow mode: one unchanged copy for all; `inside` are the recipients for whom it does not leave the site."""
        version, recipients = self.sealer.policies().version, list(mail.envelope.recipients)
        copy = SealedCopy(PLAINTEXT, None, mail.message, SHADOW, version, recipients=recipients, planned=inside)
        return SealedMail([copy], {}, version)

    async def _hand_on_all(self, delivery: Delivery, copies: Sequence[SealedCopy], *, more: bool) -> None:
        """Delivers the copies one by one; who has the mail is recorded after each that is followed by `more`."""
        for number, copy in enumerate(copies, 1):
            try:
                await self._hand_on(delivery, copy, more=more or number < len(copies))
            except StoreUnavailable as error:
                # Who has the mail is now in memory only: another delivery would risk a duplicate.
                for rest in copies[number:]:
                    delivery.note_for_all(rest.recipients, error)
                return

    async def _hand_on(self, delivery: Delivery, copy: SealedCopy, *, more: bool) -> None:
        """Delivers one copy. Raises StoreUnavailable if it could not be recorded who has the mail."""
        mail, may_have = delivery.mail.to(copy.recipients), copy.may_have
        try:
            delivery.step("check")
            leaving = mail.changed(message=copy.message, trace=await self._top(copy, mail.trace))
            noted = (partial(self.deliveries.taken, delivery), partial(self.deliveries.accepted, delivery))
            supervision = Supervision(partial(self.deliveries.check, delivery, leaving, copy), *noted)
            delivery.step("deliver")
            result = await self.next_hop.deliver(leaving, supervision)
        except RelayError as error:
            copy.may_have = may_have or isinstance(error, OutcomeUnknown)
            log.warning("copy_not_delivered", protection=copy.protection, peer=copy.peer, cause=str(error))
            delivery.note_for_all(copy.recipients, error)
            return
        except Exception as error:  # noqa: BLE001 - unknown errors hold what they concern, and only that
            log.error("copy_not_delivered", protection=copy.protection, peer=copy.peer, cause=repr(error))
            delivery.note_for_all(copy.recipients, TryLater(f"{type(error).__name__}: {error}"))
            return
        copy.may_have = may_have or OutcomeUnknown in map(type, result.outcomes)
        delivery.note(copy.recipients, result.outcomes, result.next_hop, result.answer)
        if self.entered and None in result.outcomes:
            self.entered.pop(self._entered_as(delivery), None)
        try:
            if more:  # before anything else: after a kill in between the mail would be sent twice
                await self.deliveries.checkpoint(delivery)
        finally:
            _report(copy, result, leaving.size)

    async def _top(self, copy: SealedCopy, trace: bytes = b"") -> bytes:
        """The fields on top of a copy: `trace`, our mark, and DKIM signatures of the author's domain.

        Mail in clear is signed by the mail server. Raises TrippedWire.
        """
        if copy.in_clear:
            return trace
        work = mime.work(copy.message)
        trace += await off_loop(work, self.sealer.marks.sealed_field, copy.message, copy.peer or "", copy.protection)
        if self.signer is not None and (signer := self.signer()) is not None:
            trace += await off_loop(work, signer.fields, copy.message)
        await off_loop(work, check_sealed, copy.message, copy.protection, trace)
        return trace

    def client_answered(self, mail: Mail) -> None:
        """The client was connected when it was answered."""
        self.deliveries.client_answered(mail)

    async def client_gone(self, mail: Mail, outcomes: Outcomes) -> None:
        """The client was gone before it could get `outcomes`."""
        await self.deliveries.client_gone(mail, outcomes)

    # Milter: the mail server keeps the mail..

    async def in_place(self, mail: Mail, fits: Callable[[bytes], bool], missed: Missed | None = None) -> InPlace:
        """Seals the mail for a mail server that keeps it (milter). Raises TryLater or Refuse.

        One copy replaces it. The others go to the next hop first; if one of these is held, so is the whole mail.
        Without `milter_split` a mail that needs several copies is held. A message that does not fit goes to the next
        hop too.
        """
        message: bytes | None = None
        with self.tally.of(mail) as attempt:
            self._check_sender(mail.envelope.sender)
            await off_loop(mime.work(mail.message), mime.check_carriable, mail.message, self.direction.max_hops)
            async with self.deliveries.of(mail) as delivery:
                attempt.begins(delivery)
                await self._add_copies(delivery, missed)
                self._check_one_copy(delivery)
                # Sealed before plain: should the mail server not remove a recipient, they must not get plaintext.
                stays = max(delivery.leaving, key=lambda copy: (not copy.in_clear, len(copy.recipients)), default=None)
                await self._hand_on_all(delivery, [copy for copy in delivery.leaving if copy is not stays], more=True)
                if stays is not None and delivery.waits_only_for(stays.recipients):
                    message = await self._put_in_place(delivery, stays, fits)
                if stays is not None and message is None:
                    await self._hand_on_all(delivery, [stays], more=False)
        here = stays.recipients if stays is not None and message is not None else []
        stay = {each.mailbox for each in here}
        # Recipients who already had it are included: a mail server may have to retry more than once.
        elsewhere = {each.mailbox: each for each in mail.envelope.recipients if each.mailbox not in stay}
        # Whether the client gets the answer is never known. Only a Message-ID distinguishes its retry from a second
        # mail.
        if len(elsewhere) and await off_loop(mime.header_work(mail.message), _has_message_id, mail.message):
            outcomes = dict(zip(mail.envelope.mailboxes, delivery.answer, strict=True))
            await self.client_gone(mail.to(elsewhere.values()), tuple(outcomes[each] for each in elsewhere))
        return InPlace(delivery.answer, message, tuple(each.address for each in here))

    def _check_one_copy(self, delivery: Delivery) -> None:
        """Raises TryLater where one message cannot serve all recipients and the mail may not be split."""
        if self.direction.milter_split:
            return
        if failure := for_all(delivery.outcomes.values()):
            raise failure
        if len(delivery.copies) > 1:
            raise TryLater("its recipients need different protection, and milter_split is off")

    async def _put_in_place(self, delivery: Delivery, copy: SealedCopy, fits: Callable[[bytes], bool]) -> bytes | None:
        """The message that replaces the mail, or None where it does not fit."""
        delivery.step("check")
        top = await self._top(copy)
        message = top + copy.message if top else copy.message
        if not await off_loop(mime.work(message), fits, message):
            return None
        self.deliveries.check(delivery, delivery.mail.to(copy.recipients).changed(message=message), copy)
        delivery.note(copy.recipients, (None,) * len(copy.recipients), "milter")
        self.entered.pop(self._entered_as(delivery), None)
        _report(copy, NextHopResult((None,) * len(copy.recipients), "put in place", "milter"), len(message))
        return message


def _has_message_id(message: bytes) -> bool:
    return any(name == b"message-id" for name, _ in mime.fields(mime.header_of(message)))


def _report(copy: SealedCopy, result: NextHopResult, size: int) -> None:
    """Logs a copy's delivery: accepted and refused recipients, protection. Mail that stays inside is not in clear."""
    inside = copy.inside
    stays: list[RelayError | None] = []
    leaves: list[RelayError | None] = []
    for recipient, outcome in zip(copy.recipients, result.outcomes, strict=True):
        (stays if recipient.mailbox in inside else leaves).append(outcome)
    in_clear = "shadow_sent_unsealed" if copy.policy == SHADOW else "sent_in_clear"
    if stays:
        _report_of(copy, result, size, stays, log.info, "delivered_inside")
    if leaves and copy.in_clear:
        _report_of(copy, result, size, leaves, log.warning, in_clear)
    elif leaves:
        _report_of(copy, result, size, leaves, log.info, "sealed_and_sent")


def _report_of(
    copy: SealedCopy,
    result: NextHopResult,
    size: int,
    outcomes: Sequence[RelayError | None],
    report: Callable[..., None],
    event: str,
) -> None:
    refused = [str(outcome) for outcome in filter(None, outcomes)]
    if len(refused) == len(outcomes):
        report, event = log.warning, "copy_not_delivered"
    doubts = list(dict.fromkeys([each.doubt for each in copy.planned if each.doubt]))
    report(
        event,
        protection=copy.protection,
        peer=copy.peer,
        sealed=copy.sealed,
        key_IDs=[reference.key_ID for reference in copy.keys],
        quantum_bits=copy.quantum_bits,
        recipients=len(outcomes) - len(refused),
        not_accepted=refused[:10],
        octets=size,
        policy=copy.policy,
        policy_version=copy.policy_version,
        **({"doubt": doubts[:10]} if doubts else {}),
        next_hop=result.next_hop,
        answer=result.answer,
    )


def _warn_of_downgrades(entries: Sequence[LedgerEntry]) -> None:
    for each in entries:
        if each.event == "downgrade":
            log.warning("downgraded", protection=each.level, peer=each.peer, policy=each.policy, cause=each.reason)


async def _entries(mail: Mail, copies: list[SealedCopy]) -> list[LedgerEntry]:
    """The ledger entries: one for all recipients with the same policy and the same reason."""
    alike: dict[tuple[int, str, str], list[Planned]] = {}
    for number, copy in enumerate(copies):
        for each in copy.planned:
            if each.downgrade:
                alike.setdefault((number, each.policy["policy"], each.downgrade), []).append(each)
    return [
        await off_loop(mime.work(mail.message), _entry, mail, copies[number], planned)
        for (number, _, _), planned in alike.items()
    ]


def _entry(mail: Mail, copy: SealedCopy, planned: list[Planned]) -> LedgerEntry:
    return LedgerEntry.of(
        PLAINTEXT if copy.in_clear else "downgrade",
        mail,
        [each.recipient.address for each in planned],
        **planned[0].policy,
        level=copy.protection,
        reason=planned[0].downgrade,
    )
