"""Brings every form of a mail to the next hop once, over as many tries as it takes.
Standard: RFC 5321 6.1; what has left, and the sealed form of what has not, is remembered for the retry.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import AsyncIterator, Callable, Coroutine, Iterable, Sequence
from contextlib import asynccontextmanager
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from typing import Any

import structlog

from relay.aio import off_loop
from relay.errors import DeliveryUnderWay, RelayError, StoreUnavailable, TryLater
from relay.keys import KeyReference
from relay.mail import Mail, Outcomes, Recipient
from relay.mime import is_like_no_other
from relay.sealing import SealedCopy
from relay.store import Begun, Journal, JournalForm, Sent, SentOpened, mail_key

log = structlog.get_logger(__name__)

ANSWERED_AT_ONCE = 1000
"""So many mails whose client may not have heard of their outcome are known by their id."""


@dataclass(slots=True)
class Delivery:
    """One try to deliver a mail: what earlier tries have left to do, and what has become of each recipient.

    `key` is its place in the journal. `copies` are those that were sealed before, or are being delivered now; whoever
    delivers adds its own. `outcomes` are by mailbox, as everything in the journal. `check` is to be called last before
    it leaves; it raises DeliveryUnderWay and StoreUnavailable. Of a mail that is `like_no_other` the same octets are a
    retry.
    """

    key: bytes
    mail: Mail
    begun: Begun
    check: Callable[[], None] = lambda: None
    copies: list[SealedCopy] = field(default_factory=list)
    outcomes: dict[str, RelayError | None] = field(default_factory=dict)
    like_no_other: bool = False

    @property
    def rest(self) -> Mail:
        """The mail to those recipients who neither have it nor have a sealed form waiting, each once."""
        known = self.begun.delivered | {recipient.mailbox for copy in self.copies for recipient in copy.recipients}
        unique = {recipient.mailbox: recipient for recipient in self.mail.envelope.recipients}
        return self.mail.to(recipient for mailbox, recipient in unique.items() if mailbox not in known)

    def note(self, recipients: Iterable[Recipient], outcomes: Outcomes) -> None:
        """What the next hop has said for each of these recipients."""
        for recipient, outcome in zip(recipients, outcomes, strict=True):
            self.outcomes[recipient.mailbox] = outcome

    def note_for_all(self, recipients: Iterable[Recipient], outcome: RelayError) -> None:
        """The same failure for all of them."""
        for recipient in recipients:
            self.outcomes[recipient.mailbox] = outcome

    @property
    def answer(self) -> Outcomes:
        """The outcome for each recipient as the envelope has them; one that was forgotten is held."""
        return tuple(self._outcome(mailbox) for mailbox in self.mail.envelope.mailboxes)

    def waits_only_for(self, recipients: Iterable[Recipient]) -> bool:
        """Whether everybody but these has the mail."""
        these = {recipient.mailbox for recipient in recipients}
        mailboxes = self.mail.envelope.mailboxes
        return all(mailbox in these or self._outcome(mailbox) is None for mailbox in mailboxes)

    @property
    def over(self) -> bool:
        """Whether nobody has to wait for another try."""
        return not any(isinstance(outcome, TryLater) for outcome in self.answer)

    def _outcome(self, mailbox: str) -> RelayError | None:
        if mailbox in self.begun.delivered:
            return None
        return self.outcomes.get(mailbox, _NOT_TRIED)


_NOT_TRIED = TryLater("not tried")


class Deliveries:
    """The deliveries of one direction; keeps sealed forms, so that a retry spends no second key."""

    def __init__(self, direction: str, journal: Journal, sent: Sent | None = None) -> None:
        """`direction` keeps apart what passes one journal in both directions; `sent` knows at once what has left."""
        self._direction = direction
        self._journal = journal
        self._sent = sent
        self._under_way: set[tuple[bytes, str]] = set()
        self._unfinished: dict[bytes, asyncio.Task[None]] = {}
        self._all_is_well: dict[str, tuple[asyncio.Task[None], list[str]]] = {}
        self._keys: OrderedDict[str, bytes] = OrderedDict()

    @asynccontextmanager
    async def of(self, mail: Mail) -> AsyncIterator[Delivery]:
        """One try; however it ends, what was delivered is remembered until the client needs to try no more.

        Raises DeliveryUnderWay where another client, or the same one, impatient, has the mail delivered just now, here
        or by another relay, and StoreUnavailable where what is delivered could not be remembered.
        """
        key, like_no_other = await off_loop(len(mail.message), _identity, self._direction, mail)
        await self._finished(key)
        claims = {(key, mailbox) for mailbox in mail.envelope.mailboxes}
        if claims & self._under_way:
            raise DeliveryUnderWay("the same mail to the same recipient is being delivered at this moment")
        self._under_way |= claims
        try:
            self._take_room(like_no_other)  # before a key is spent on it
            begun = await self._begun(key, mail)
            if begun.delivered or begun.forms:
                log.info("delivery_resumed", delivered=len(begun.delivered), forms=len(begun.forms))
            check = partial(self._check, begun.relay, like_no_other)
            copies = [_copy(mail, each) for each in begun.forms]
            delivery = Delivery(key, mail, begun, check, copies, like_no_other=like_no_other)
            try:
                yield delivery
                if delivery.over:
                    self._forget_soon(delivery)
                else:
                    await self._settled(key, delivery)
            except BaseException:
                # The client will not hear that anything was delivered.
                await asyncio.shield(self._journal.later(self._settle(key, delivery, heard=False)))
                raise
        finally:
            self._under_way -= claims
            self._note_key(mail, key)

    def _check(self, relay: str, like_no_other: bool) -> None:
        """Whether the mail may leave: what becomes of it can be written down, and nobody else has it by now.

        Raises DeliveryUnderWay and StoreUnavailable.
        """
        self._take_room(like_no_other)
        self._journal.check(relay)

    def _take_room(self, like_no_other: bool) -> None:
        """For the record of a mail that leaves. Raises StoreUnavailable."""
        if self._sent is not None and like_no_other:
            self._sent.ready()

    async def _begun(self, key: bytes, mail: Mail) -> Begun:
        """Where several recipients get one answer, that they are to get the mail is on the disk when this returns.

        Else a disk that fills meanwhile has those repeated who were served, at each retry for the others.
        """
        recipients = mail.envelope.mailboxes
        intent = not mail.each_answered and len(set(recipients)) > 1
        begin = self._journal.begin(self._direction, key, recipients, intent=intent)
        beginning = self._journal.later(begin)
        try:
            return await asyncio.shield(beginning)
        except BaseException:
            if not beginning.done():  # nobody waits for it any more
                self._first(key, self._break_off(beginning, key, recipients))
            raise

    async def _break_off(self, beginning: asyncio.Task[Begun], key: bytes, recipients: Sequence[str]) -> None:
        await asyncio.wait([beginning])
        if beginning.exception() is None:
            self._journal.break_off(key, recipients)

    def accepted(self, delivery: Delivery, recipients: Iterable[Recipient], opened: SentOpened | None = None) -> None:
        """The next hop has the mail for these, as was read just now; `opened` says what it is to who has opened it."""
        if self._sent is not None and delivery.like_no_other:
            self._sent.note(delivery.key, [each.mailbox for each in recipients], opened)

    async def taken(self, delivery: Delivery, recipients: Iterable[Recipient]) -> None:
        """The next hop has the mail for these, and others are to follow. Raises StoreUnavailable as `so_far` does."""
        for recipient in recipients:
            delivery.outcomes[recipient.mailbox] = None
        await self.so_far(delivery)

    async def so_far(self, delivery: Delivery) -> None:
        """Before others get it: should the relay be killed now, a retry repeats nothing that has left.

        Raises StoreUnavailable where that cannot be written and the retry would be for all.
        """
        delivered = [mailbox for mailbox, outcome in delivery.outcomes.items() if outcome is None]
        if delivered:
            delivery.begun = replace(delivery.begun, delivered=delivery.begun.delivered.union(delivered))
            try:
                await self._journal.remember(delivery.key, delivered)
            except StoreUnavailable as error:
                _not_remembered(error)
                if not delivery.mail.each_answered:
                    raise

    async def unheard(self, mail: Mail, outcomes: Outcomes) -> None:
        """The client has not heard these outcomes and will try again: what is delivered must be known then."""
        delivered = [each for each, outcome in zip(mail.envelope.mailboxes, outcomes, strict=True) if outcome is None]
        if not delivered:
            return
        if mail.id in self._all_is_well:  # and nothing was written yet: nobody can begin in between
            task, unheard = self._all_is_well[mail.id]
            unheard += delivered
            await asyncio.wait([task])
        else:
            await self._remember_unheard(mail, delivered)
        log.info("delivered_unheard", recipients=len(delivered))

    async def _remember_unheard(self, mail: Mail, delivered: list[str]) -> None:
        # Known from before where possible: no retry may come between the end of the delivery and what follows here.
        key = self._keys.pop(mail.id, b"") or await off_loop(len(mail.message), mail_key, self._direction, mail)
        # A retry that comes meanwhile waits until it is written down.
        claims = {(key, mailbox) for mailbox in delivered} - self._under_way
        self._under_way |= claims
        try:
            await self._finished(key)
            await self._journal.remember(key, delivered)
        except Exception as error:  # noqa: BLE001 - the mail has left, whatever fails now
            _not_remembered(error)
        finally:
            self._under_way -= claims

    def _note_key(self, mail: Mail, key: bytes) -> None:
        """For `unheard`, which may come next."""
        if mail.id:
            self._keys[mail.id] = key
        while len(self._keys) > ANSWERED_AT_ONCE:
            self._keys.popitem(last=False)

    async def _settled(self, key: bytes, delivery: Delivery) -> None:
        """Settles; whoever is cancelled meanwhile waits for its end, lest it undo what he does then."""
        settling = self._journal.later(self._settle(key, delivery))
        try:
            await asyncio.shield(settling)
        except asyncio.CancelledError:
            await asyncio.wait([settling])
            raise

    async def _settle(self, key: bytes, delivery: Delivery, *, heard: bool = True) -> None:
        """Remembers what a retry has to know."""
        answers = dict(zip(delivery.mail.envelope.mailboxes, delivery.answer, strict=True))
        delivered = [mailbox for mailbox, outcome in answers.items() if outcome is None]
        final = heard and delivery.mail.each_answered  # then only who waits will be asked for again
        waiting = {
            mailbox
            for mailbox, outcome in answers.items()
            if outcome is not None and (isinstance(outcome, TryLater) or not final)
        }
        forms = [entry for copy in delivery.copies if not copy.in_clear and (entry := _entry(copy, waiting)).recipients]
        await self._over(key, delivery, [] if final else delivered, forms)

    async def _over(
        self, key: bytes, delivery: Delivery, delivered: Sequence[str] = (), forms: Sequence[JournalForm] = ()
    ) -> None:
        try:
            await self._journal.settle(key, delivery.begun, delivery.mail.envelope.mailboxes, delivered, forms)
        except Exception as error:  # noqa: BLE001 - the mail has left, whatever fails now
            _not_remembered(error)

    def _forget_soon(self, delivery: Delivery) -> None:
        """While the client hears that all is well: a relay killed before he does must still know what has left."""
        key, mail_id = delivery.key, delivery.mail.id
        unheard: list[str] = []
        if not delivery.begun.relay and not self._journal.knows(key):
            return

        async def work() -> None:
            self._all_is_well.pop(mail_id, None)
            await self._over(key, delivery, unheard)

        task = self._first(key, work())
        if mail_id:
            self._all_is_well[mail_id] = (task, unheard)

    def _first(self, key: bytes, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        """Begins work, behind earlier work, that the next try of the mail waits for."""
        earlier = self._unfinished.get(key)

        async def in_turn() -> None:
            if earlier is not None:
                await asyncio.wait([earlier])
            await work

        task = self._unfinished[key] = self._journal.later(in_turn())
        task.add_done_callback(lambda done: self._unfinished.get(key) is not done or self._unfinished.pop(key))
        return task

    async def _finished(self, key: bytes) -> None:
        """Waits until earlier tries of this mail have left nothing to do."""
        if task := self._unfinished.get(key):
            await asyncio.wait([task])


def _identity(direction: str, mail: Mail) -> tuple[bytes, bool]:
    return mail_key(direction, mail), is_like_no_other(mail.message)


def _not_remembered(error: Exception) -> None:
    log.error("delivery_not_remembered", cause=str(error), kind=type(error).__name__)


def _entry(copy: SealedCopy, waiting: set[str]) -> JournalForm:
    facts = {
        "protection": copy.protection,
        "peer": copy.peer,
        "policy": copy.policy,
        "policy_version": copy.policy_version,
        "keys": [asdict(reference) for reference in copy.keys],
        "quantum_bits": copy.quantum_bits,
    }
    recipients = tuple(each.mailbox for each in copy.recipients if each.mailbox in waiting)
    return JournalForm(recipients, facts, copy.message, copy.name)


def _copy(mail: Mail, entry: JournalForm) -> SealedCopy:
    """The copy again, for those recipients of this mail who wait for it."""
    wanted = dict.fromkeys(entry.recipients)
    unique = {each.mailbox: each for each in mail.envelope.recipients if each.mailbox in wanted}
    return SealedCopy(
        protection=entry.facts["protection"],
        peer=entry.facts["peer"],
        message=entry.message,
        policy=entry.facts["policy"],
        policy_version=entry.facts["policy_version"],
        keys=tuple(KeyReference(**reference) for reference in entry.facts["keys"]),
        quantum_bits=entry.facts["quantum_bits"],
        recipients=list(unique.values()),
        name=entry.name,
    )
