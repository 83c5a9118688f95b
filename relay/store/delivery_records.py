"""The delivery state of each recipient of a mail: due, being delivered, waiting with a sealed copy, or served.
relay/journey/deliveries.py has the rules; this is the table behind them, for all relays of a site.

- A recipient has at most one row. No row: no earlier attempt. A row without a copy: they have the mail. A row with one:
  it waits for them. Only sealed copies are kept, never plaintext, and names are digests.
- A delivery to a recipient needs a claim (claims.py) if others could deliver too. That they have the mail is written
  regardless of the claim, anything else only by its holder.
- A failed write is repeated before anything else of the same mail begins.
- An opened mail is kept as long as it could be opened again, and a recipient never gets it twice. In the same
  transaction its keys are bound to what they have opened (relay/FORMAT.md). Any other mail is dropped after its
  attempt, or KEEP_FOR_S: the same bytes sent again are another mail.
"""

from __future__ import annotations

import asyncio
import json
import secrets
import time
from collections.abc import Awaitable, Callable, Coroutine, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from sqlalchemy import Connection, delete, func, select

from relay.errors import DeliveryUnderWay, RelayError, StoreUnavailable
from relay.mail import OpenedMail, recipient_name
from relay.store.claims import Claims, ClaimsTransaction
from relay.store.database import Database, batches, to_its_end
from relay.store.delivery_attempts import (
    KEEP_FOR_S,
    AttemptRows,
    Beginning,
    Begun,
    Settlement,
    WaitingCopy,
    all_known,
    copy_rows,
    opened_rows,
    recipient_rows,
)
from relay.store.group_commit import GroupCommit
from relay.store.neighbours import Neighbours
from relay.store.received import PROOF_S, ReceivedKeys
from relay.store.received_table import Bound, KeysUsed

MOST_LATE_OCTETS = 32 * 2**20
"""Maximum size of sealed copies in memory while the store cannot be written, in bytes."""

LINGER_S = 1.0
"""Time after its answer for which a mail is marked as under way for other workers of this relay, in seconds."""
PATIENCE_S, LOOK_S = 1.5 * LINGER_S, 0.05
"""Maximum wait of the same mail at another worker for the end of its mark, and the poll interval, in seconds."""

_Result = TypeVar("_Result")


@dataclass(slots=True)
class _Writing:
    """A caller waiting until everything is written, and its error."""

    trouble: RelayError | None = None


class DeliveryRecords:
    """The records of one store."""

    def __init__(
        self, database: Database, claims: Claims, received: ReceivedKeys, clock: Callable[[], float] = time.time
    ) -> None:
        """`clock` gives seconds since 1970."""
        self._database = database
        self._claims = claims
        self._received = received
        self._clock = clock
        self._known: set[bytes] | Neighbours | None = None
        self._neighbours: Neighbours | None = None
        self.shared = False
        """Whether other workers use this store, and see each attempt."""
        self.alone = database.is_sqlite
        """Whether no other process begins attempts in this store."""
        self.lingers = not database.is_sqlite
        """Whether other relays begin attempts in this store; they see an attempt by its claims alone."""
        self._take_over: Callable[[], Awaitable[object]] = _nothing
        self._ready_until = float("-inf")
        self._marked_still: dict[bytes, set[bytes]] = {}
        self._unwritten: list[Settlement] = []
        self._attempts = AttemptRows(database)
        self._write_together = GroupCommit(self._commit)
        # On a server, an attempt that begins may have to wait for another relay; one that ends must not wait for it.
        self._begin_together = self._write_together if database.is_sqlite else GroupCommit(self._commit)

    @to_its_end
    async def load(self) -> None:
        """Reads which mails have rows. With SQLite only one process writes them, so this is done once."""
        if self._database.is_sqlite:
            self._known = await self._database.reading(all_known)

    def share(self, neighbours: Neighbours, take_over: Callable[[], Awaitable[object]]) -> None:
        """Shares this store (SQLite) with other workers. Call it before the first attempt.

        `take_over` stores what workers that have ended had delivered.
        """
        for mail in self._known if isinstance(self._known, set) else ():
            neighbours.add(mail)
        self._known = self._neighbours = neighbours
        self.shared, self.alone = True, False
        self._take_over = take_over

    async def waiting(self) -> int:
        """Number of recipients with a waiting sealed copy. Raises StoreUnavailable."""
        query = select(func.count()).select_from(recipient_rows).where(recipient_rows.c.copy.is_not(None))
        [(number,)] = await self._database.rows(query)
        return int(number)

    async def who_have_it(self, recipients: Sequence[bytes]) -> set[bytes]:
        """Those of these names of recipients (32 bytes each) who have their mail. Raises StoreUnavailable."""
        delivered: set[bytes] = set()
        for some in batches(recipients):
            query = select(recipient_rows.c.recipient).where(recipient_rows.c.recipient.in_(some))
            rows = await self._database.rows(query.where(recipient_rows.c.copy.is_(None)))
            delivered.update([bytes(name) for (name,) in rows])
        return delivered

    async def mark(self, mail: bytes, mailboxes: Iterable[str]) -> None:
        """Prevents attempts of this mail by other workers until `unmark`. Call it before `begin`.

        If another worker has just answered its client, waits for the end of its mark. After that the same bytes are
        another mail, or a retry. Raises DeliveryUnderWay if another worker has the mail, and StoreUnavailable if it is
        unknown what an ended one had delivered.
        """
        if self._neighbours is None:
            return
        places = [recipient_name(mail, mailbox) for mailbox in mailboxes]
        until = asyncio.get_running_loop().time() + PATIENCE_S
        while True:
            try:
                # Before any query: what a killed worker had delivered is only in its own files.
                while ended := self._neighbours.ended():
                    await self._take_over()
                    self._neighbours.forget(ended)
                self._neighbours.begin(places)
                break
            except DeliveryUnderWay:
                if asyncio.get_running_loop().time() > until:
                    raise
            await asyncio.sleep(LOOK_S)
        self._marked_still.pop(mail, None)

    def unmark(self, mail: bytes, mailboxes: Iterable[str]) -> None:
        """Removes the marks of an attempt, once its result is written."""
        if self._neighbours is None:
            return
        places = {recipient_name(mail, mailbox) for mailbox in mailboxes}
        if any(each.mail == mail for each in self._unwritten):
            self._marked_still[mail] = places
        else:
            self._neighbours.end(places)

    def check(self, relay: str) -> None:
        """Last check before a mail leaves that was claimed as `relay`. Raises DeliveryUnderWay."""
        self._claims.check(relay)

    @property
    def settled(self) -> bool:
        """Whether nothing waits to be written."""
        return not self._unwritten

    def later(self, work: Coroutine[Any, Any, _Result]) -> asyncio.Task[_Result]:
        """Starts background work with the records; it ends before the store is closed."""
        return self._database.later(work)

    # An attempt begins.

    async def begin(self, direction: str, mail: bytes, mailboxes: Iterable[str], *, intent: bool = False) -> Begun:
        """Begins a delivery attempt for all of these, or none; returns what is left of earlier ones.

        With `intent` this is on disk when it returns, even if nobody else uses the store. Without, nothing begins while
        the store cannot be written. If cancelled, nothing has begun. This process must have no other attempt of the
        mail. Raises DeliveryUnderWay if another attempt is under way, and StoreUnavailable.
        """
        if any(each.mail == mail for each in self._unwritten):
            await self.go_on()
        if not intent and not self._may_know(mail):
            await self._ready()
            return Begun()
        names = {recipient_name(mail, mailbox): mailbox for mailbox in mailboxes}
        self._claims.drop(names)  # left by an attempt of ours that ended unexpectedly
        return await self._begun(Beginning(direction, mail, names))

    async def _ready(self) -> None:
        """Checks at most every PROOF_S that the store can be written. Raises StoreUnavailable."""
        if time.monotonic() >= self._ready_until:
            await self._database.can_be_written(PROOF_S)
            self._ready_until = time.monotonic() + PROOF_S

    async def admit(self, bound: Sequence[Bound], opened: OpenedMail | None = None) -> Begun:
        """Binds the keys, and claims the due mailboxes; returns the state of each mailbox.

        Everything is on disk when this returns; if cancelled, nobody is claimed. Raises KeyUsed, KeyDestroyed, Replayed
        and StoreUnavailable.
        """
        if opened is None:
            return await self._begun(Beginning("", b"", {}, bound=bound)) if bound else Begun()
        if any(each.mail == opened.name for each in self._unwritten):
            await self.go_on()
        names = {recipient_name(opened.name, mailbox): mailbox for mailbox in opened.mailboxes}
        return await self._begun(Beginning("opened", opened.name, names, opened, bound))

    async def _begun(self, this: Beginning) -> Begun:
        beginning = self._database.later(self._begin_together(this))
        try:
            await asyncio.shield(beginning)
        except BaseException:
            await asyncio.shield(self._database.later(self._break_off(beginning, this)))
            raise
        if this.trouble is not None:
            raise this.trouble
        return this.begun

    async def _break_off(self, beginning: asyncio.Task[None], attempt: Beginning) -> None:
        """Releases the claims, if there are any."""
        await asyncio.wait([beginning])
        if beginning.exception() is None and attempt.trouble is None:
            others = attempt.begun.busy if attempt.opened is None else attempt.begun.busy | attempt.begun.delivered
            self._claims.drop(at for at, mailbox in attempt.mailboxes.items() if mailbox not in others)

    # An attempt ends.

    async def remember(self, mail: bytes, recipients: Iterable[bytes], *, opened: bool = False) -> None:
        """Stores that these recipients (by name) have the mail; a failed write is repeated later.

        Raises StoreUnavailable.
        """
        await self._write(Settlement(mail, list(recipients), opened=opened))

    async def settle(
        self,
        mail: bytes,
        begun: Begun,
        mailboxes: Iterable[str],
        delivered: Iterable[str] = (),
        copies: Iterable[WaitingCopy] = (),
    ) -> None:
        """Ends an attempt: stores who has the mail, and the waiting copies; other recipients are dropped.

        On disk when it returns. Raises StoreUnavailable; then it is written later, without the copies if they are too
        large.
        """
        names = {mailbox: recipient_name(mail, mailbox) for mailbox in mailboxes}
        outcome = Settlement(mail, [names[mailbox] for mailbox in delivered])
        for copy in copies:
            name = copy.name or secrets.token_hex(16)
            outcome.waiting.update((names[mailbox], name) for mailbox in copy.recipients)
            if not copy.name:
                row = {"copy": name, "mail": mail, "facts": json.dumps(copy.facts), "message": copy.message}
                outcome.copies.append(row | {"forget_at": self._clock() + KEEP_FOR_S})
        if begun.relay:
            outcome.claims = dict.fromkeys(names.values(), begun.relay)
        if begun.delivered or begun.copies:
            outcome.replaced = names.values()
        if outcome.delivered or outcome.waiting or outcome.claims or outcome.replaced:
            await self._write(outcome)

    async def all_have(self, mail: bytes, mailboxes: Iterable[str]) -> bool:
        """Whether all of these are stored as having the mail. Raises StoreUnavailable."""
        names = {recipient_name(mail, mailbox) for mailbox in mailboxes}

        def number(connection: Connection) -> int:
            here = (recipient_rows.c.recipient.in_(some) for some in batches(list(names)))
            return sum(
                int(connection.scalar(select(func.count()).where(each, recipient_rows.c.copy.is_(None))) or 0)
                for each in here
            )

        return await self._database.reading(number) == len(names)

    async def forget(self, mail: bytes, mailboxes: Iterable[str]) -> None:
        """Deletes the rows of these recipients; rows of others stay. Raises StoreUnavailable."""
        await self._write(Settlement(mail, replaced=[recipient_name(mail, mailbox) for mailbox in mailboxes]))

    async def settle_opened(
        self,
        opened: OpenedMail,
        delivered: Iterable[str],
        not_delivered: Iterable[str] = (),
        *,
        complete: Callable[[set[str]], bool] = lambda _: False,
        used: Sequence[KeysUsed] = (),
    ) -> set[str]:
        """Stores who has the mail, and releases the other claims; returns those of `opened.mailboxes` that have it.

        If these are `complete`, the `used` keys get an early expiry in the same transaction. If those delivered now are
        already complete, no query is made. Raises StoreUnavailable.
        """
        names = {recipient_name(opened.name, mailbox): mailbox for mailbox in opened.mailboxes}
        has_it = [recipient_name(opened.name, mailbox) for mailbox in delivered]
        claimed = self._claims.held([*has_it, *(recipient_name(opened.name, each) for each in not_delivered)])

        def nobody_waits(served: set[bytes]) -> bool:
            return complete({names[at] for at in served if at in names})

        outcome = Settlement(opened.name, has_it, claims=claimed, opened=True, complete=nobody_waits, used=used)
        await self._write(outcome)
        return {mailbox for at, mailbox in names.items() if at in outcome.served}

    @to_its_end
    async def go_on(self) -> None:
        """Repeats failed writes. Raises StoreUnavailable."""
        if self._unwritten:
            await self._write_now()

    @to_its_end
    async def _write(self, outcome: Settlement) -> None:
        self._unwritten.append(outcome)
        try:
            await self._write_now()
        except StoreUnavailable:
            if sum(each.size for each in self._unwritten) > MOST_LATE_OCTETS:
                outcome.waiting, outcome.copies = {}, []  # a retry costs another key
            if not outcome.delivered and not outcome.waiting and outcome in self._unwritten:
                self._unwritten.remove(outcome)
                self._claims.drop(outcome.claims)
            raise

    async def _write_now(self) -> None:
        writing = _Writing()
        await self._write_together(writing)
        if writing.trouble is not None:
            raise writing.trouble

    # Beginnings and ends, in one transaction.

    async def _commit(self, items: Sequence[Beginning | _Writing]) -> None:
        """Writes results in order, and begins attempts; idempotent.

        It is one transaction, except with sealed copies, since a disk without room for them may have room for
        beginnings. On a server there are two, so that two relays with the same mails do not deadlock.
        """
        outcomes = list(self._unwritten)
        beginnings = [each for each in items if isinstance(each, Beginning)]
        if self._database.is_sqlite and not any(each.copies for each in outcomes):
            await self._transact(outcomes, beginnings, items)
            return
        if writings := [each for each in items if isinstance(each, _Writing)]:
            await self._transact(outcomes, [], writings)
        await self._transact([], beginnings, beginnings)

    async def _transact(
        self,
        outcomes: Sequence[Settlement],
        beginnings: Sequence[Beginning],
        items: Sequence[Beginning | _Writing],
    ) -> None:
        """Runs one transaction; an error is set in these items."""
        if not outcomes and not beginnings:
            return
        fresh = self._received.fresh(at for each in beginnings for bound in each.bound for at in bound.places)
        new = self._received.new_rows()

        def work(change: ClaimsTransaction) -> tuple[set[bytes], set[bytes]]:
            forgotten_and_known = self._attempts.settle(outcomes, change, self._clock())
            if beginnings:
                self._attempts.begin(beginnings, fresh, new, change, self._may_know)
            return forgotten_and_known

        if self._neighbours is not None:
            # First: once it is written and its claims have ended, another worker may begin, and must query.
            for each in outcomes:
                self._neighbours.add(each.mail)
        kinds = {at: each.kind for each in beginnings for at in each.mailboxes}
        try:
            forgotten, remembered = await self._claims.change(work, kinds)
        except StoreUnavailable as error:
            for item in items:
                item.trouble = StoreUnavailable(str(error))
            return
        self._received.have_rows(fresh)
        written = set(outcomes)
        self._unwritten = [each for each in self._unwritten if each not in written]
        if isinstance(self._known, set):
            self._known -= forgotten
            self._known |= remembered
        elif self._neighbours is not None:
            for mail in self._marked_still.keys() - {each.mail for each in self._unwritten}:
                self._neighbours.end(self._marked_still.pop(mail))

    def _may_know(self, mail: bytes) -> bool:
        """Whether this mail, not an opened one, may have rows."""
        return self._known is None or mail in self._known

    @to_its_end
    async def expire(self, now: float | None = None) -> int:
        """Deletes mails that were not retried, and those that can no longer be opened; returns how many had waited.

        `now` is a Unix time, by default the clock's. Waiting recipients are counted.
        """
        now = self._clock() if now is None else now
        old = recipient_rows.c.forget_at < now
        closed = select(opened_rows.c.mail).where(opened_rows.c.forget_at < now)

        def forget(connection: Connection) -> tuple[int, set[bytes] | None]:
            waited = connection.scalar(select(func.count()).where(old, recipient_rows.c.copy.is_not(None)))
            gone = connection.execute(delete(recipient_rows).where(old))
            needed = select(recipient_rows.c.copy).where(recipient_rows.c.copy.is_not(None))
            connection.execute(delete(copy_rows).where(copy_rows.c.forget_at < now, copy_rows.c.copy.not_in(needed)))
            connection.execute(delete(recipient_rows).where(recipient_rows.c.mail.in_(closed)))
            connection.execute(delete(opened_rows).where(opened_rows.c.forget_at < now))
            return int(waited or 0), all_known(connection) if isinstance(self._known, set) and gone.rowcount else None

        waited, remembered = await self._database.writing(forget)
        if remembered is not None:
            self._known = remembered
        return waited


async def _nothing() -> None:
    """Default without other workers: there is nothing to take over."""
