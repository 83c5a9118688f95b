"""What becomes of each mail, recipient by recipient: due, being delivered, waiting with a sealed copy, or served.
relay/deliveries.py has the rules; this is the table behind them, for all relays of a site together.

- A recipient has one row or none. None: of an earlier try nothing is known. A row without a copy: they have the mail. A
  row with one: it waits for them. Only sealed copies are kept, never plaintext, and names are digests.
- Who works on a mail for a recipient has a claim on that (claims.py) where others could as well. That they have the
  mail is written whoever has the claim; anything else only by whoever has it.
- What could not be written is written before anything else of the same mail begins.
- A mail that was opened is remembered for as long as it could be opened again, and who has it gets it never again. In
  the same transaction its keys are bound to what they have opened (relay/FORMAT.md). Any other mail is forgotten when
  its try is over, and after KEEP_FOR_S: the same octets sent anew are another mail.
"""

from __future__ import annotations

import asyncio
import json
import secrets
import time
from collections.abc import Callable, Collection, Coroutine, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, TypeVar

from sqlalchemy import Column, Double, LargeBinary, Row, String, Table, Text, delete, func, select
from sqlalchemy.ext.asyncio import AsyncConnection

from relay.errors import DeliveryUnderWay, RelayError, Replayed, StoreUnavailable
from relay.store.claims import Claims
from relay.store.database import Database, batches, metadata, to_its_end
from relay.store.group_commit import GroupCommit
from relay.store.mail_identity import OpenedMail, recipient_name
from relay.store.received_table import Bound, bind_keys

KEEP_FOR_S = 5 * 86400.0
"""How long what is known of a mail waits for a retry: as long as mail servers keep trying."""
MOST_LATE_OCTETS = 32 * 2**20
"""So much of sealed copies is kept in memory while the store cannot be written."""

RecipientState = Literal["due", "served", "busy"]
"""A recipient who is to get the mail now, has it, or gets it at this moment from another try."""

_Result = TypeVar("_Result")

_recipients = Table(
    "deliveries",
    metadata,
    Column("recipient", LargeBinary(32), primary_key=True),
    Column("mail", LargeBinary(32), nullable=False, index=True),
    Column("copy", String(32)),
    Column("forget_at", Double, index=True),
)
"""Names as in mail_identity.py. `copy` is what waits for them, NULL: they have the mail. `forget_at` is in seconds
since 1970, NULL for a mail in `opened_mails`."""

_copies = Table(
    "sealed_copies",
    metadata,
    Column("copy", String(32), primary_key=True),
    Column("mail", LargeBinary(32), nullable=False, index=True),
    Column("facts", Text, nullable=False),
    Column("message", LargeBinary, nullable=False),
    Column("forget_at", Double, nullable=False),
)
"""What waits to be sent again; `facts` is JSON."""

_opened = Table(
    "opened_mails",
    metadata,
    Column("mail", LargeBinary(32), primary_key=True),
    Column("fingerprint", LargeBinary(32), nullable=False),
    Column("forget_at", Double, nullable=False, index=True),
)


@dataclass(frozen=True, slots=True)
class WaitingCopy:
    """A sealed copy of a mail that waits for its recipients, who are given as mailboxes.

    `facts` are whatever its maker wants back, as JSON; `name` is "" for one that is not in the store yet.
    """

    recipients: tuple[str, ...]
    facts: dict[str, Any]
    message: bytes = field(repr=False)
    name: str = ""


@dataclass(frozen=True, slots=True)
class Begun:
    """What earlier tries of a mail have left: mailboxes that have it, and copies that wait.

    Those who are `busy` are served by another try at this moment; only of an opened mail are there any. `relay` is the
    name under which its recipients are claimed, "" where nobody else could claim them.
    """

    delivered: frozenset[str] = frozenset()
    copies: tuple[WaitingCopy, ...] = ()
    busy: frozenset[str] = frozenset()
    relay: str = ""

    def state(self, mailbox: str) -> RecipientState:
        """What is to be done for this one, of those that were asked about."""
        return "served" if mailbox in self.delivered else "busy" if mailbox in self.busy else "due"


@dataclass(slots=True)
class _Beginning:
    """A try that begins, for these mailboxes by their names, and what was found."""

    kind: str
    mail: bytes
    mailboxes: dict[bytes, str]
    opened: OpenedMail | None = None
    bound: Sequence[Bound] = ()
    begun: Begun = field(default_factory=Begun)
    trouble: RelayError | None = None


@dataclass(slots=True, eq=False)
class _Settlement:
    """What is to be written of some recipients of a mail; what stood there of those in `replaced` goes.

    `claims` end with it, each under its name. Of an `opened` mail `served` are all who have it, once that is written.
    """

    mail: bytes
    delivered: Collection[bytes] = ()
    waiting: dict[bytes, str] = field(default_factory=dict)
    copies: list[dict[str, Any]] = field(default_factory=list, repr=False)
    replaced: Collection[bytes] = ()
    claims: Mapping[bytes, str] = field(default_factory=dict)
    opened: bool = False
    served: set[bytes] = field(default_factory=set)

    @property
    def octets(self) -> int:
        """How much there is of its copies."""
        return sum(len(copy["message"]) for copy in self.copies)


class DeliveryRecords:
    """The records of one store."""

    def __init__(self, database: Database, claims: Claims, clock: Callable[[], float] = time.time) -> None:
        """`clock` gives seconds since 1970."""
        self._database = database
        self._claims = claims
        self._clock = clock
        self._known: set[bytes] | None = None
        self._unwritten: list[_Settlement] = []
        self._begin_together = GroupCommit(self._begin_all)
        self._write_together = GroupCommit(self._write_all)

    @to_its_end
    async def load(self) -> None:
        """Reads of which mails there is something. With SQLite one process writes that and needs to look no more."""
        if self._database.is_sqlite:
            async with self._database.reading() as connection:
                self._known = await _all_known(connection)

    def check(self, relay: str) -> None:
        """To be called last before a mail leaves that was begun as `relay`. Raises DeliveryUnderWay."""
        self._claims.check(relay)

    @property
    def settled(self) -> bool:
        """Whether nothing waits to be written."""
        return not self._unwritten

    def later(self, work: Coroutine[Any, Any, _Result]) -> asyncio.Task[_Result]:
        """Begins work with the records that nobody need wait for; it ends before the store is closed."""
        return self._database.later(work)

    # A try begins

    async def begin(self, direction: str, mail: bytes, mailboxes: Iterable[str], *, intent: bool = False) -> Begun:
        """One try of a mail for all of these begins, or none; what is known of them.

        With `intent` this is on the disk when it returns, also where nobody else uses the store. Whoever is cancelled
        has begun nothing. This process must have no other try of it under way. Raises DeliveryUnderWay where another
        try is under way, and StoreUnavailable.
        """
        await self._written_of(mail)
        if not intent and not self._may_know(mail):
            return Begun()
        names = {recipient_name(mail, mailbox): mailbox for mailbox in mailboxes}
        self._claims.drop(names)  # what a try of ours has left that ended in a way nobody foresaw
        return await self._begun(_Beginning(direction, mail, names))

    async def admit(self, bound: Sequence[Bound], opened: OpenedMail | None = None) -> Begun:
        """Binds the keys, and claims those of the mailboxes that are due; what becomes of each of these.

        All of it is on the disk when this returns; who is cancelled meanwhile has claimed nobody. Raises KeyUsed,
        KeyDestroyed, Replayed and StoreUnavailable.
        """
        if opened is None:
            return await self._begun(_Beginning("", b"", {}, bound=bound)) if bound else Begun()
        await self._written_of(opened.name)
        names = {recipient_name(opened.name, mailbox): mailbox for mailbox in opened.mailboxes}
        return await self._begun(_Beginning("opened", opened.name, names, opened, bound))

    async def _begun(self, this: _Beginning) -> Begun:
        beginning = self._database.later(self._begin_together(this))
        try:
            await asyncio.shield(beginning)
        except BaseException:
            await asyncio.shield(self._database.later(self._break_off(beginning, this)))
            raise
        if this.trouble is not None:
            raise this.trouble
        return this.begun

    async def _break_off(self, beginning: asyncio.Task[None], this: _Beginning) -> None:
        """Nobody does anything with what was claimed, if it was."""
        await asyncio.wait([beginning])
        if beginning.exception() is None and this.trouble is None:
            others = this.begun.busy if this.opened is None else this.begun.busy | this.begun.delivered
            self._claims.drop(at for at, mailbox in this.mailboxes.items() if mailbox not in others)

    async def _begin_all(self, beginnings: Sequence[_Beginning]) -> None:
        """In one transaction, in the order in which they came; what was written by whoever had it before is seen."""
        wanted = {at: each.kind for each in beginnings for at in each.mailboxes}
        async with self._claims.change(wanted) as change:
            for each, trouble in zip(
                beginnings, await bind_keys(change.connection, [each.bound for each in beginnings]), strict=True
            ):
                each.trouble = trouble
            await self._refuse_replays(change.connection, [each for each in beginnings if not each.trouble])
            known, copies = await self._find(change.connection, beginnings)
            free = set(change.taken)
            for each in beginnings:
                if each.trouble is None:
                    free -= _found(each, known, copies, free, change.relay)
            await change.give_back(free)

    async def _refuse_replays(self, connection: AsyncConnection, beginnings: Sequence[_Beginning]) -> None:
        """Adds rows for what is new; two relays that write the same ones wait for each other here."""
        rows: dict[bytes, dict[str, Any]] = {}
        for opened in (each.opened for each in beginnings if each.opened):
            row = {"mail": opened.name, "fingerprint": opened.fingerprint, "forget_at": opened.forget_at}
            rows.setdefault(opened.name, row)
        if not rows:
            return
        new = self._database.insert(_opened).on_conflict_do_nothing()
        await connection.execute(new, [rows[mail] for mail in sorted(rows)])
        first: dict[bytes, bytes] = {}
        for some in batches(sorted(rows)):
            query = select(_opened.c.mail, _opened.c.fingerprint).where(_opened.c.mail.in_(some))
            first.update({row.mail: row.fingerprint for row in await connection.execute(query)})
        for each in beginnings:
            if each.opened and first[each.mail] != each.opened.fingerprint:
                each.trouble = Replayed("the id in its sealed envelope was seen in another message")

    async def _find(
        self, connection: AsyncConnection, beginnings: Sequence[_Beginning]
    ) -> tuple[dict[bytes, str | None], dict[str, Row[Any]]]:
        """The rows that there are, as the copy of each recipient, and these copies."""
        known: dict[bytes, str | None] = {}
        for some in batches(
            [at for each in beginnings if each.opened or self._may_know(each.mail) for at in each.mailboxes]
        ):
            query = select(_recipients.c.recipient, _recipients.c.copy).where(_recipients.c.recipient.in_(some))
            known.update({row.recipient: row.copy for row in await connection.execute(query)})
        copies: dict[str, Row[Any]] = {}
        for names in batches(sorted({copy for copy in known.values() if copy})):
            waiting = await connection.execute(select(_copies).where(_copies.c.copy.in_(names)))
            copies.update({row.copy: row for row in waiting})
        return known, copies

    # A try ends

    async def remember(self, mail: bytes, recipients: Iterable[bytes], *, opened: bool = False) -> None:
        """These (by name) have the mail. On the disk when it returns; what could not be written is written later.

        Raises StoreUnavailable.
        """
        await self._write(_Settlement(mail, list(recipients), opened=opened))

    async def settle(
        self,
        mail: bytes,
        begun: Begun,
        mailboxes: Iterable[str],
        delivered: Iterable[str] = (),
        copies: Iterable[WaitingCopy] = (),
    ) -> None:
        """The end of a try: of its recipients, who is to be known as having the mail, and which copies wait for whom.

        On the disk when it returns. Of the other ones nothing needs to be known any more. Raises StoreUnavailable; then
        it is written later, without its copies where there are too many of them.
        """
        names = {mailbox: recipient_name(mail, mailbox) for mailbox in mailboxes}
        outcome = _Settlement(mail, [names[mailbox] for mailbox in delivered])
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

    async def settle_opened(
        self, opened: OpenedMail, delivered: Iterable[str], not_delivered: Iterable[str] = ()
    ) -> set[str]:
        """Notes who has the mail, and gives up the claims on who has it not; which of `opened.mailboxes` have it now.

        Raises StoreUnavailable.
        """
        has_it = [recipient_name(opened.name, mailbox) for mailbox in delivered]
        claimed = self._claims.held([*has_it, *(recipient_name(opened.name, each) for each in not_delivered)])
        outcome = _Settlement(opened.name, has_it, claims=claimed, opened=True)
        await self._write(outcome)
        return {mailbox for mailbox in opened.mailboxes if recipient_name(opened.name, mailbox) in outcome.served}

    @to_its_end
    async def go_on(self) -> None:
        """Writes what could not be written when it should have been. Raises StoreUnavailable."""
        if self._unwritten:
            await self._write_together(None)

    async def _written_of(self, mail: bytes) -> None:
        """What was said of the mail so far is written when this returns. Raises StoreUnavailable."""
        if any(each.mail == mail for each in self._unwritten):
            await self.go_on()

    @to_its_end
    async def _write(self, outcome: _Settlement) -> None:
        self._unwritten.append(outcome)
        try:
            await self._write_together(None)
        except StoreUnavailable:
            if sum(each.octets for each in self._unwritten) > MOST_LATE_OCTETS:
                outcome.waiting, outcome.copies = {}, []  # a retry costs another key
            if not outcome.delivered and not outcome.waiting and outcome in self._unwritten:
                self._unwritten.remove(outcome)
                self._claims.drop(outcome.claims)
            raise

    async def _write_all(self, _: Sequence[None]) -> None:
        """In one transaction, in the order in which it was said; what is written twice changes nothing."""
        outcomes = list(self._unwritten)
        if not outcomes:
            return
        rows: dict[bytes, dict[str, Any] | None] = {}
        forget_at = self._clock() + KEEP_FOR_S
        async with self._claims.change() as change:
            ours = await change.end({at: relay for each in outcomes for at, relay in each.claims.items()})
            for each in outcomes:
                # What whoever has claimed somebody meanwhile knows of them is newer.
                lost = each.claims.keys() - ours
                until = None if each.opened else forget_at
                rows.update((at, None) for at in each.replaced if at not in lost)
                rows.update(
                    (at, _row(each.mail, at, copy, until)) for at, copy in each.waiting.items() if at not in lost
                )
                rows.update((at, _row(each.mail, at, None, until)) for at in each.delivered)
            put = [row for at in sorted(rows) if (row := rows[at])]
            wanted = {row["copy"] for row in put}
            if new := [copy for each in outcomes for copy in each.copies if copy["copy"] in wanted]:
                await change.connection.execute(self._database.insert(_copies).on_conflict_do_nothing(), new)
            for some in batches([at for at in sorted(rows) if rows[at] is None]):
                await change.connection.execute(delete(_recipients).where(_recipients.c.recipient.in_(some)))
            if put:
                await change.connection.execute(self._put(), put)
            replaced = {each.mail for each in outcomes if each.replaced}
            await _destroy_copies(change.connection, replaced)
            left = await _mails_of(change.connection, replaced)
            await self._note_served(change.connection, [each for each in outcomes if each.opened])
        written = set(outcomes)
        self._unwritten = [each for each in self._unwritten if each not in written]
        if self._known is not None:
            self._known -= replaced - left
            self._known |= {row["mail"] for row in put if row["forget_at"] is not None}

    def _put(self) -> Any:
        """Another relay may have written of the same recipient meanwhile."""
        put = self._database.insert(_recipients)
        newer = {name: put.excluded[name] for name in ("copy", "forget_at")}
        return put.on_conflict_do_update(index_elements=["recipient"], set_=newer)

    async def _note_served(self, connection: AsyncConnection, outcomes: Sequence[_Settlement]) -> None:
        served: dict[bytes, set[bytes]] = {each.mail: set() for each in outcomes}
        for some in batches(list(served)):
            query = select(_recipients.c.mail, _recipients.c.recipient).where(_recipients.c.mail.in_(some))
            for row in await connection.execute(query):
                served[row.mail].add(row.recipient)
        for each in outcomes:
            each.served = served[each.mail]

    def _may_know(self, mail: bytes) -> bool:
        """Whether there may be something of this mail, that is none that was opened."""
        return self._known is None or mail in self._known

    @to_its_end
    async def expire(self, now: float | None = None) -> int:
        """Forgets mails that nobody tried again, and those that could not be opened any more; how many had waited.

        `now` is seconds since 1970, by default the clock's. Who waited is counted as recipients.
        """
        now = self._clock() if now is None else now
        old = _recipients.c.forget_at < now
        closed = select(_opened.c.mail).where(_opened.c.forget_at < now)
        async with self._database.writing() as connection:
            waited = await connection.scalar(select(func.count()).where(old, _recipients.c.copy.is_not(None)))
            gone = await connection.execute(delete(_recipients).where(old))
            wanted = select(_recipients.c.copy).where(_recipients.c.copy.is_not(None))
            await connection.execute(delete(_copies).where(_copies.c.forget_at < now, _copies.c.copy.not_in(wanted)))
            await connection.execute(delete(_recipients).where(_recipients.c.mail.in_(closed)))
            await connection.execute(delete(_opened).where(_opened.c.forget_at < now))
            if self._known is not None and gone.rowcount:
                self._known = await _all_known(connection)
        return int(waited or 0)


def _found(
    this: _Beginning, known: Mapping[bytes, str | None], copies: Mapping[str, Row[Any]], free: set[bytes], relay: str
) -> set[bytes]:
    """Notes what was found for a try; the claims that it has. Unless it was opened, it has all recipients or none.

    `known` is the copy of each recipient who has a row, `free` are the claims that nobody has.
    """
    served = {at for at in this.mailboxes if at in known and known[at] is None}
    claimed = set(this.mailboxes) if this.opened is None else free & (this.mailboxes.keys() - served)
    if not claimed <= free:
        this.trouble = DeliveryUnderWay("another relay, or another try, has the same mail to the same recipient now")
        return set()
    waiting: dict[str, list[str]] = {}
    for at, mailbox in this.mailboxes.items():
        if (copy := known.get(at)) and copy in copies:
            waiting.setdefault(copy, []).append(mailbox)
    busy = this.mailboxes.keys() - served - claimed
    this.begun = Begun(
        frozenset(this.mailboxes[at] for at in served),
        tuple(
            WaitingCopy(tuple(mailboxes), json.loads(copies[name].facts), copies[name].message, name)
            for name, mailboxes in waiting.items()
        ),
        frozenset(this.mailboxes[at] for at in busy),
        relay,
    )
    return claimed


def _row(mail: bytes, recipient: bytes, copy: str | None, forget_at: float | None) -> dict[str, Any]:
    return {"recipient": recipient, "mail": mail, "copy": copy, "forget_at": forget_at}


async def _all_known(connection: AsyncConnection) -> set[bytes]:
    """The mails of which there is something, without those that were opened."""
    return set(await connection.scalars(select(_recipients.c.mail).where(_recipients.c.forget_at >= 0).distinct()))


async def _mails_of(connection: AsyncConnection, mails: Collection[bytes]) -> set[bytes]:
    """Those of these mails of which there is still something."""
    found: set[bytes] = set()
    for some in batches(list(mails)):
        found.update(
            await connection.scalars(select(_recipients.c.mail).where(_recipients.c.mail.in_(some)).distinct())
        )
    return found


async def _destroy_copies(connection: AsyncConnection, mails: Collection[bytes]) -> None:
    """Of these mails, those for which nobody waits any more."""
    for some in batches(list(mails)):
        wanted = select(_recipients.c.copy).where(_recipients.c.mail.in_(some), _recipients.c.copy.is_not(None))
        await connection.execute(delete(_copies).where(_copies.c.mail.in_(some), _copies.c.copy.not_in(wanted)))
