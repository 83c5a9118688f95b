"""Delivers every copy of a mail exactly once, over any number of attempts.
Standard: RFC 5321 4.5.4.1 and 6.1: a retry completes what was not delivered, repeats nothing and spends no second key.

- An attempt begins before anything is spent on it. If several recipients share one reply, or other relays share the
  store, the attempt is stored first. Of two concurrent attempts of one mail, the second is held.
- If other processes serve the same clients, a mail is held if its client has half-closed and been silent for a while.
  Then this process was frozen, and another one may have served the client.
- Before a mail leaves, there must be room to record it, and no other process may have taken it over. What the next hop
  has accepted is recorded in the step that reads its reply (store/sent.py), and stored before further recipients get
  it.
- If an attempt leaves recipients waiting, the store keeps who has the mail and the sealed copy for the rest. A refused
  recipient waits too if the client will retry all. If none waits, everything is dropped: the same bytes sent again are
  another mail. If the client did not get the reply, what was delivered is kept. Until the listener has reported that,
  nothing is dropped, and no other attempt begins; at other relays, a moment longer.
- A sealed copy is sent again as it is. Once the peer's KME may have dropped its quantum keys it is sealed again, unless
  a next hop may have it.
- An opened mail is identified by its sealed envelope; its opener begins and settles it (relay/journey/opening). A
  recipient never gets it twice.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import AsyncIterator, Iterable, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import replace

import structlog

from relay.errors import DeliveryUnderWay, StoreUnavailable, TryLater
from relay.formats import mime
from relay.journey.delivery import Delivery, leaves_rows, without_messages
from relay.journey.sealing import SealedCopy
from relay.keys import KeyReference
from relay.levels import PLAINTEXT, SMIME
from relay.mail import OURS, Mail, Outcomes, Recipient, name_as_it_came, recipient_name
from relay.runtime.aio import off_loop
from relay.store.delivery_attempts import WaitingCopy
from relay.store.delivery_records import LINGER_S, DeliveryRecords
from relay.store.sent import SentRecords

log = structlog.get_logger(__name__)

ANSWERED_AT_ONCE = 1000
"""Maximum number of mails kept by id because their client may not have got the outcome."""
SERVED_ELSEWHERE_S = LINGER_S
"""Time after a client's last bytes from which it may have been served by another worker, in seconds.

Until then, that worker's mark would still be there."""


class Deliveries:
    """The deliveries of one direction."""

    def __init__(self, direction: str, records: DeliveryRecords, sent: SentRecords | None = None) -> None:
        """`direction` separates mail of both directions in one store; `sent` records at once what has left."""
        self._direction = direction
        self._records = records
        self._sent = sent
        self._under_way: set[tuple[bytes, str]] = set()
        self._lingering: dict[bytes, tuple[asyncio.TimerHandle, set[str]]] = {}
        self._being_forgotten: dict[bytes, tuple[asyncio.Task[None], list[str]]] = {}
        self._unanswered: dict[str, Delivery] = {}
        self._forgotten_later: dict[bytes, tuple[asyncio.Task[None], asyncio.Event]] = {}
        self._names: OrderedDict[str, bytes] = OrderedDict()

    @property
    def alone(self) -> bool:
        """Whether no other process begins attempts of the same mails."""
        return self._records.alone

    @asynccontextmanager
    async def of(self, mail: Mail, *, begin: bool = True) -> AsyncIterator[Delivery]:
        """One attempt. In any case, what was delivered is kept until the client needs no retry.

        Without `begin`, the caller calls `begin` or `is_opened`. Raises DeliveryUnderWay if another connection has the
        mail delivered now, here or at another relay. Raises StoreUnavailable if a delivery could not be recorded.
        """
        name, like_no_other = await off_loop(mime.work(mail.message), _described, self._direction, mail)
        recipients = {(name, mailbox) for mailbox in mail.envelope.mailboxes}
        if recipients & self._under_way:
            raise DeliveryUnderWay("the same mail to the same recipient is being delivered at this moment")
        self._under_way |= recipients
        delivery = Delivery(name, mail, like_no_other)
        try:
            await self._forgotten(name)
            await self._records.mark(name, mail.envelope.mailboxes)
            self._take_room(delivery)  # before a key is used for it
            if begin:
                await self.begin(delivery)
            yield delivery
            await self._end(delivery)
        except BaseException:
            # The client will get no outcome.
            await asyncio.shield(self._records.later(self._settle(delivery, answered=False)))
            raise
        finally:
            if not (delivery.over and self._unanswered.get(mail.id) is delivery):
                self._let_others_begin(name, mail)
            if mail.id:  # kept for `client_gone`, which may come next
                self._names[mail.id] = _OPENED if delivery.opened is not None else delivery.name
                if len(self._names) > ANSWERED_AT_ONCE:
                    self._names.popitem(last=False)

    async def _end(self, delivery: Delivery) -> None:
        """Stores what a retry needs, and drops the rest once the client has its reply."""
        mail, over = delivery.mail, delivery.over
        waits_for_answer = mail.confirmed and delivery.opened is None
        if over and waits_for_answer:
            self._unanswered[mail.id] = delivery
        elif over:
            self._forget_soon(delivery)
        else:
            final = waits_for_answer and mail.each_answered and delivery.like_no_other
            await asyncio.shield(self._records.later(self._settle(delivery, answered=not final)))
            if final:
                self._unanswered[mail.id] = delivery

    def _let_others_begin(self, name: bytes, mail: Mail) -> None:
        """Ends an attempt."""
        self._under_way.difference_update((name, mailbox) for mailbox in mail.envelope.mailboxes)
        if self._records.shared:
            self._unmark_later(name, tuple(mail.envelope.mailboxes))

    def _unmark_later(self, name: bytes, mailboxes: Sequence[str]) -> None:
        """Keeps the mark for other workers until the client got the reply, or its departure was noticed.

        A client that is gone may retry at another worker before that is stored here.
        """
        pending = set(mailboxes)
        if (lingering := self._lingering.pop(name, None)) is not None:
            timer, before = lingering
            timer.cancel()
            pending |= before
        timer = asyncio.get_running_loop().call_later(LINGER_S, self._unmark, name, pending)
        self._lingering[name] = timer, pending

    def _unmark(self, name: bytes, mailboxes: Iterable[str]) -> None:
        """Removes the marks, except those of another attempt."""
        del self._lingering[name]
        self._records.unmark(name, [each for each in mailboxes if (name, each) not in self._under_way])

    async def begin(self, delivery: Delivery) -> Mail:
        """Begins an attempt for all recipients; returns the mail to those still due. Raises as `of` does.

        If several recipients share one reply, the attempt is on disk when this returns. Otherwise, if the disk fills
        meanwhile, each retry would deliver again to those already served.
        """
        mail, recipients = delivery.mail, delivery.mail.envelope.mailboxes
        intent = not mail.each_answered and len(set(recipients)) > 1
        begun = await self._records.begin(self._direction, delivery.name, recipients, intent=intent)
        if begun.delivered or begun.copies:
            log.debug("delivery_resumed", delivered=len(begun.delivered), forms=len(begun.copies))
        delivery.begun, delivery.is_begun = begun, True
        delivery.copies = [_sealed_copy(mail, each) for each in begun.copies]
        # Only now, when no other attempt can begin: another worker may have served the client meanwhile.
        if not self._records.alone and (absent := mail.absent()) > SERVED_ELSEWHERE_S:
            raise DeliveryUnderWay(f"its client, perhaps gone for {absent:.1f} s, may have been served elsewhere")
        return delivery.rest

    def check(self, delivery: Delivery, leaving: Mail, copy: SealedCopy | None = None) -> None:
        """Last check before a copy leaves: its outcome can be recorded, and no other process has taken it over.

        Raises DeliveryUnderWay and StoreUnavailable.
        """
        if delivery.witness is not None:
            delivery.witness.leaves(delivery, leaving.envelope.recipients, leaving.size, copy)
        self._take_room(delivery)
        if delivery.begun.relay:
            self._records.check(delivery.begun.relay)
        if copy is not None:
            copy.may_have = True  # from now on, until there is a verdict

    def _take_room(self, delivery: Delivery) -> None:
        """Reserves room to record what the next hop accepts. Raises StoreUnavailable."""
        if self._sent is not None and delivery.like_no_other:
            self._sent.ready()

    def accepted(self, delivery: Delivery, recipients: Iterable[Recipient]) -> None:
        """Records accepted recipients, in the step that reads the reply."""
        if self._sent is not None and delivery.like_no_other:
            self._sent.note(
                delivery.name, delivery.names([each.mailbox for each in recipients]), delivery.opened is not None
            )

    async def taken(self, delivery: Delivery, recipients: Iterable[Recipient]) -> None:
        """Stores accepted recipients before others follow. Raises StoreUnavailable as `checkpoint` does."""
        delivery.note_for_all(recipients, None)
        await self.checkpoint(delivery)

    async def checkpoint(self, delivery: Delivery) -> None:
        """Stores who has the mail before others get it, so that a retry after a kill repeats nothing.

        Raises StoreUnavailable if that fails and the retry would be for all.
        """
        delivered = [mailbox for mailbox, outcome in delivery.outcomes.items() if outcome is None]
        if delivered:
            delivery.begun = replace(delivery.begun, delivered=delivery.begun.delivered.union(delivered))
            names = delivery.names(delivered)
            try:
                await self._records.remember(delivery.name, names, opened=delivery.opened is not None)
            except StoreUnavailable as error:
                _not_remembered(error)
                if not delivery.mail.each_answered:
                    raise

    def client_answered(self, mail: Mail) -> None:
        """The client got the reply: drops what it will not retry."""
        delivery = self._unanswered.pop(mail.id, None)
        if delivery is None:
            return
        over = delivery.over
        if self._records.lingers and (not over or leaves_rows(delivery)):
            now = asyncio.Event()
            task = self._records.later(self._forget_later(without_messages(delivery), now))
            self._forgotten_later[delivery.name] = task, now
        elif over:
            self._forget_soon(delivery)
        else:
            self._records.later(self._forget_finished(delivery))
        if over:
            self._let_others_begin(delivery.name, delivery.mail)

    async def _forget_later(self, delivery: Delivery, now: asyncio.Event) -> None:
        """Drops the mail a moment later for other relays: one may have got it from the same client.

        If it is handled there only after that, its client has been gone long enough for it to be held (`begin`).
        """
        with suppress(TimeoutError):
            async with asyncio.timeout(LINGER_S):
                await now.wait()
        if delivery.over:
            await self._write(delivery)
        else:
            await self._forget_finished(delivery)

    async def _forgotten(self, name: bytes) -> None:
        """Waits until the previous mail with the same bytes is dropped."""
        if (later := self._forgotten_later.get(name)) is not None:
            task, now = later
            now.set()
            await asyncio.wait([task])
        for each in [each for each, (task, _) in self._forgotten_later.items() if task.done()]:
            del self._forgotten_later[each]

    async def _forget_finished(self, delivery: Delivery) -> None:
        answers = zip(delivery.mail.envelope.mailboxes, delivery.answer, strict=True)
        over = [mailbox for mailbox, outcome in answers if not isinstance(outcome, TryLater)]
        if over and delivery.is_begun:
            try:
                await self._records.forget(delivery.name, over)
            except Exception as error:  # noqa: BLE001 - a background task
                _not_remembered(error)

    async def client_gone(self, mail: Mail, outcomes: Outcomes) -> None:
        """The client did not get these outcomes and will retry: keeps who has the mail."""
        delivery = self._unanswered.pop(mail.id, None)
        if delivery is None or not delivery.over:
            await self._client_gone(mail, outcomes)
            return
        try:
            if leaves_rows(delivery):
                delivered = [
                    mailbox
                    for mailbox, outcome in zip(mail.envelope.mailboxes, delivery.answer, strict=True)
                    if outcome is None
                ]
                await asyncio.shield(self._records.later(self._write(delivery, delivered)))
                log.debug("delivered_client_gone", recipients=len(delivered))
            else:
                await self._client_gone(mail, delivery.answer)
        finally:
            self._let_others_begin(delivery.name, delivery.mail)

    async def _client_gone(self, mail: Mail, outcomes: Outcomes) -> None:
        delivered = [each for each, outcome in zip(mail.envelope.mailboxes, outcomes, strict=True) if outcome is None]
        # Without an await if possible: no retry may come between the end of the delivery and this.
        name = self._names.pop(mail.id, None)
        if not delivered or name == _OPENED:
            return
        if name in self._being_forgotten:  # nothing was written yet: no attempt can begin in between
            task, client_gone = self._being_forgotten[name]
            client_gone += delivered
            held = {(name, mailbox) for mailbox in delivered} - self._under_way
            self._under_way |= held
            try:
                await asyncio.wait([task])
            finally:
                self._under_way -= held
                self._records.unmark(name, delivered)
        else:
            await self._remember_client_gone(mail, name, delivered)
        log.debug("delivered_client_gone", recipients=len(delivered))

    async def _remember_client_gone(self, mail: Mail, name: bytes | None, delivered: list[str]) -> None:
        if name is None:
            name = await self._name(mail)
        # A retry that comes meanwhile is held until this is stored.
        recipients = {(name, mailbox) for mailbox in delivered} - self._under_way
        self._under_way |= recipients
        try:
            await self._records.mark(name, delivered)
            await self._records.remember(name, [recipient_name(name, mailbox) for mailbox in delivered])
        except Exception as error:  # noqa: BLE001 - the mail has left, whatever fails now
            _not_remembered(error)
        finally:
            self._under_way -= recipients
            self._records.unmark(name, delivered)

    async def _name(self, mail: Mail) -> bytes:
        return await off_loop(mime.work(mail.message), name_as_it_came, self._direction, mail)

    async def _settle(self, delivery: Delivery, *, answered: bool = True) -> None:
        """Stores what a retry needs."""
        answers = dict(zip(delivery.mail.envelope.mailboxes, delivery.answer, strict=True))
        delivered = [mailbox for mailbox, outcome in answers.items() if outcome is None]
        final = answered and delivery.mail.each_answered  # then only held recipients will be retried
        waiting = {
            mailbox
            for mailbox, outcome in answers.items()
            if outcome is not None and (isinstance(outcome, TryLater) or not final)
        }
        tried_again = delivery.mail.listener != OURS
        # Nor is one at level smime kept: it cost no key, and there may be many.
        kept = [each for each in delivery.copies if tried_again and each.protection not in (PLAINTEXT, SMIME)]
        copies = [_waiting_copy(each, waiting) for each in kept]
        await self._write(delivery, [] if final else delivered, [copy for copy in copies if copy.recipients])

    def _forget_soon(self, delivery: Delivery) -> None:
        """Drops the mail while the client is answered: after a kill before that, a retry must repeat nothing."""
        name = delivery.name
        if not leaves_rows(delivery):
            return
        client_gone: list[str] = []

        async def forget() -> None:
            self._being_forgotten.pop(name, None)
            await self._write(delivery, client_gone)

        self._being_forgotten[name] = self._records.later(forget()), client_gone

    async def _write(
        self, delivery: Delivery, delivered: Sequence[str] = (), copies: Sequence[WaitingCopy] = ()
    ) -> None:
        """Ends an attempt that began here."""
        if not delivery.is_begun:
            return
        mailboxes = delivery.mail.envelope.mailboxes
        try:
            await self._records.settle(delivery.name, delivery.begun, mailboxes, delivered, copies)
        except Exception as error:  # noqa: BLE001 - the mail has left, whatever fails now
            _not_remembered(error)


_OPENED = b""
"""Placeholder for the name of an opened mail, for which who has it is always stored."""


def _described(direction: str, mail: Mail) -> tuple[bytes, bool]:
    return name_as_it_came(direction, mail), mime.is_like_no_other(mail.message)


def _not_remembered(error: Exception) -> None:
    log.error("delivery_not_remembered", cause=str(error), kind=type(error).__name__)


def _waiting_copy(copy: SealedCopy, waiting: set[str]) -> WaitingCopy:
    facts = {
        "protection": copy.protection,
        "peer": copy.peer,
        "policy": copy.policy,
        "policy_version": copy.policy_version,
        "keys": [reference._asdict() for reference in copy.keys],
        "quantum_bits": copy.quantum_bits,
        "sealed": copy.sealed,
        "sealed_at": copy.sealed_at,
        "may_have": copy.may_have,
        "listed": sorted(copy.listed),
    }
    recipients = tuple(each.mailbox for each in copy.recipients if each.mailbox in waiting)
    return WaitingCopy(recipients, facts, copy.message, copy.name)


def _sealed_copy(mail: Mail, waiting: WaitingCopy) -> SealedCopy:
    """Restores a waiting copy, for those recipients of this mail who wait for it."""
    remaining = dict.fromkeys(waiting.recipients)
    unique = {each.mailbox: each for each in mail.envelope.recipients if each.mailbox in remaining}
    return SealedCopy(
        protection=waiting.facts["protection"],
        peer=waiting.facts["peer"],
        message=waiting.message,
        policy=waiting.facts["policy"],
        policy_version=waiting.facts["policy_version"],
        keys=tuple(KeyReference(**reference) for reference in waiting.facts["keys"]),
        quantum_bits=waiting.facts["quantum_bits"],
        recipients=list(unique.values()),
        name=waiting.name,
        sealed=waiting.facts["sealed"],
        sealed_at=waiting.facts["sealed_at"],
        may_have=waiting.facts["may_have"],
        listed=frozenset(waiting.facts["listed"]),
    )
