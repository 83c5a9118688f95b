"""What was opened: which ciphertext each received key has opened, and who has got each mail.
Standard: relay/FORMAT.md; a key opens one ciphertext, a recipient gets a mail once, at all relays of a site together.

Both are written in one transaction, before anything is handed on. A recipient is claimed while their mail is on its
way; the claim ends by itself, so that a killed relay keeps nobody's mail for long.
"""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, Literal

from sqlalchemy import Boolean, Column, Double, LargeBinary, Table, bindparam, delete, select, update
from sqlalchemy.ext.asyncio import AsyncConnection

from relay.cms import KeyUse
from relay.errors import CannotOpen, KeyDestroyed, KeyUsed, Replayed, StoreUnavailable
from relay.store.database import Database, metadata, to_its_end
from relay.store.group_commit import GroupCommit
from relay.store.key_name import KeyName
from relay.store.received_table import batches, held, keys, place

CLAIM_S = 600.0
"""Seconds for which one relay has a recipient's mail to itself, unless it says again that it has (`go_on`)."""

_mails = Table(
    "opened_mails",
    metadata,
    Column("mail", LargeBinary(32), primary_key=True),
    Column("fingerprint", LargeBinary(32), nullable=False),
    Column("forget_at", Double, nullable=False, index=True),
)
_recipients = Table(
    "opened_recipients",
    metadata,
    Column("mail", LargeBinary(32), primary_key=True),
    Column("recipient", LargeBinary(32), primary_key=True),
    Column("delivered", Boolean, nullable=False),
    Column("claimed_until", Double, nullable=False),
)
"""Mails by SHA-256 of master SAE and id, recipients by SHA-256 of that and the mailbox: the store names nobody."""

State = Literal["due", "served", "busy"]
"""A recipient who is to get the mail now, has it, or gets it at this moment from another relay."""


@dataclass(frozen=True, slots=True)
class Bound:
    """Keys of one KME group that have opened a ciphertext: from now on they open nothing that `use` forbids."""

    group: str
    master_sae: str
    key_IDs: tuple[str, ...]
    use: KeyUse

    @property
    def places(self) -> dict[bytes, str]:
        """The key_IDs by the primary keys of their rows."""
        return {place(KeyName(self.group, self.master_sae, key_ID)): key_ID for key_ID in self.key_IDs}


@dataclass(frozen=True, slots=True)
class Arrived:
    """A mail by what its sealed envelope says: `id` is unique for its master SAE; `forget_at` in seconds since 1970."""

    master_sae: str
    id: bytes
    fingerprint: bytes
    forget_at: float
    mailboxes: tuple[str, ...] = field(repr=False)

    @property
    def mail(self) -> bytes:
        """The primary key of its row."""
        return hashlib.sha256(self.id + self.master_sae.encode("utf-8", "surrogatepass")).digest()

    def recipient(self, mailbox: str) -> bytes:
        """What a mailbox is called in the store."""
        return hashlib.sha256(self.mail + mailbox.encode("utf-8", "surrogatepass")).digest()


@dataclass(slots=True)
class _Admission:
    bound: Sequence[Bound]
    arrived: Arrived | None
    states: dict[str, State] = field(default_factory=dict)
    trouble: CannotOpen | None = None


@dataclass(slots=True)
class _Settlement:
    """Of a mail's recipients, those who have it now or have it not after all; `served` are all who have it."""

    mail: bytes
    has_it: dict[bytes, bool]
    served: set[bytes] = field(default_factory=set)


class Openings:
    """The memory of one store."""

    def __init__(self, database: Database, clock: Callable[[], float]) -> None:
        """`clock` gives seconds since 1970."""
        self._database = database
        self._clock = clock
        self._commit = GroupCommit(self._admit)
        self._commit_settled = GroupCommit(self._settle)
        self._held: set[tuple[bytes, bytes]] = set()
        self._unsettled: dict[tuple[bytes, bytes], bool] = {}

    async def admit(self, bound: Sequence[Bound], arrived: Arrived | None = None) -> Mapping[str, State]:
        """Binds the keys, and claims the mailboxes that have not got the mail; what becomes of each of these.

        All of it is on the disk when this returns; who is cancelled meanwhile has claimed nobody. Raises KeyUsed,
        KeyDestroyed, Replayed and StoreUnavailable.
        """
        if not bound and arrived is None:
            return {}
        admission = _Admission(bound, arrived)
        admitting = self._database.later(self._commit(admission))
        try:
            await asyncio.shield(admitting)
        except BaseException:
            await asyncio.shield(self._database.later(self._unclaim(admitting, admission)))
            raise
        if admission.trouble is not None:
            raise admission.trouble
        if arrived is not None:
            due = (mailbox for mailbox, state in admission.states.items() if state == "due")
            self._held.update((arrived.mail, arrived.recipient(mailbox)) for mailbox in due)
        return admission.states

    async def _unclaim(self, admitting: asyncio.Task[None], admission: _Admission) -> None:
        """Nobody does anything with what was claimed, if it was; else the claim ends by itself."""
        await asyncio.wait([admitting])
        due = [mailbox for mailbox, state in admission.states.items() if state == "due"]
        if due and admission.arrived is not None and admitting.exception() is None:
            with suppress(StoreUnavailable):
                await self.settle(admission.arrived, (), due)

    @to_its_end
    async def settle(self, arrived: Arrived, delivered: Iterable[str], not_delivered: Iterable[str] = ()) -> set[str]:
        """Notes who has the mail, and gives up the claim on who has not; which of `delivered` and older ones have it.

        Returns all of `arrived.mailboxes` that have it. Raises StoreUnavailable.
        """
        has_it = dict.fromkeys(map(arrived.recipient, not_delivered), False)
        settlement = _Settlement(arrived.mail, has_it | dict.fromkeys(map(arrived.recipient, delivered), True))
        places = {(arrived.mail, at): has for at, has in settlement.has_it.items()}
        # What cannot be written now is busy here until it is: else a copy could be delivered as if nobody had the mail.
        self._unsettled.update(places)
        await self._commit_settled(settlement)
        self._settled([at for at, has in places.items() if self._unsettled.get(at, has) == has])
        return {mailbox for mailbox in arrived.mailboxes if arrived.recipient(mailbox) in settlement.served}

    def _settled(self, places: Iterable[tuple[bytes, bytes]]) -> None:
        for place_ in places:
            self._unsettled.pop(place_, None)
            self._held.discard(place_)

    @to_its_end
    async def go_on(self) -> None:
        """To be called more often than claims end: writes what could not be written, claims again what is under way.

        Raises StoreUnavailable.
        """
        await self._settle_late()
        held_ = sorted(self._held)
        if held_:
            row = (_recipients.c.mail == bindparam("of")) & (_recipients.c.recipient == bindparam("at"))
            again = update(_recipients).where(row, ~_recipients.c.delivered)
            async with self._database.writing() as connection:
                rows = [{"of": mail, "at": at, "until": self._clock() + CLAIM_S} for mail, at in held_]
                await connection.execute(again.values(claimed_until=bindparam("until")), rows)

    @to_its_end
    async def close(self) -> None:
        """Writes what could not be written so far. Raises StoreUnavailable."""
        await self._settle_late()

    async def _settle_late(self) -> None:
        late = dict(self._unsettled)
        if late:
            await self._settle([_Settlement(mail, {at: has}) for (mail, at), has in late.items()])
            # What was said of one of them meanwhile is newer, and is still to be written.
            self._settled([at for at, has in late.items() if self._unsettled.get(at) == has])

    @to_its_end
    async def end_claims(self) -> None:
        """To be called when a relay starts that has the store to itself: who was killed delivers nothing more."""
        self._held.clear()
        if self._database.is_sqlite:
            async with self._database.writing() as connection:
                await connection.execute(update(_recipients).where(~_recipients.c.delivered).values(claimed_until=0.0))

    @to_its_end
    async def expire(self, now: float | None = None) -> int:
        """Forgets mails that could not be opened any more at `now`, seconds since 1970; returns how many."""
        now = self._clock() if now is None else now
        gone = select(_mails.c.mail).where(_mails.c.forget_at < now)
        async with self._database.writing() as connection:
            await connection.execute(delete(_recipients).where(_recipients.c.mail.in_(gone)))
            forgotten = await connection.execute(delete(_mails).where(_mails.c.forget_at < now))
        return int(forgotten.rowcount)

    async def _admit(self, admissions: Sequence[_Admission]) -> None:
        """One transaction for all, in the order in which they came."""
        async with self._database.writing() as connection:
            await _bind(connection, admissions)
            await self._claim(connection, [each for each in admissions if each.arrived and not each.trouble])

    async def _settle(self, settlements: Sequence[_Settlement]) -> None:
        """One transaction for all, in one order, so that two relays with the same mail do not wait for each other."""
        has_it: dict[tuple[bytes, bytes], bool] = {}
        for each in settlements:
            for at, has in each.has_it.items():
                has_it[each.mail, at] = has or has_it.get((each.mail, at), False)
        row = (_recipients.c.mail == bindparam("of")) & (_recipients.c.recipient == bindparam("at"))
        change = update(_recipients).where(row, ~_recipients.c.delivered)
        rows = [{"of": mail, "at": at, "has_it": has_it[mail, at]} for mail, at in sorted(has_it)]
        served: dict[bytes, set[bytes]] = {each.mail: set() for each in settlements}
        async with self._database.writing() as connection:
            if rows:
                await connection.execute(change.values(delivered=bindparam("has_it"), claimed_until=0.0), rows)
            for some in batches(list(served)):
                query = select(_recipients.c.mail, _recipients.c.recipient)
                for found in await connection.execute(
                    query.where(_recipients.c.mail.in_(some), _recipients.c.delivered)
                ):
                    served[found.mail].add(found.recipient)
        for each in settlements:
            each.served = served[each.mail]

    async def _claim(self, connection: AsyncConnection, admissions: Sequence[_Admission]) -> None:
        arrived = [each.arrived for each in admissions if each.arrived]
        if not arrived:
            return
        now = self._clock()
        await self._add(connection, arrived)
        known = await _known(connection, arrived)
        claims = []
        for each in admissions:
            if each.arrived is None:
                continue
            fingerprint, rows = known[each.arrived.mail]
            if fingerprint != each.arrived.fingerprint:
                each.trouble = Replayed("the id in its sealed envelope was seen in another message")
                continue
            for mailbox in each.arrived.mailboxes:
                recipient = each.arrived.recipient(mailbox)
                delivered, claimed_until = rows[recipient]
                each.states[mailbox] = self._state(each.arrived.mail, recipient, delivered, claimed_until > now)
                if each.states[mailbox] == "due":
                    rows[recipient] = (False, now + CLAIM_S)
                    claims.append({"of": each.arrived.mail, "at": recipient, "until": now + CLAIM_S})
        if claims:
            row = (_recipients.c.mail == bindparam("of")) & (_recipients.c.recipient == bindparam("at"))
            await connection.execute(update(_recipients).where(row).values(claimed_until=bindparam("until")), claims)

    def _state(self, mail: bytes, recipient: bytes, delivered: bool, claimed: bool) -> State:
        if delivered or self._unsettled.get((mail, recipient)):
            return "served"
        return "busy" if claimed or (mail, recipient) in self._held else "due"

    async def _add(self, connection: AsyncConnection, arrived: Sequence[Arrived]) -> None:
        """Rows for what is new; two relays that write the same ones wait for each other here."""
        ordered = sorted({each.mail: each for each in arrived}.values(), key=lambda each: each.mail)
        mails = [{"mail": each.mail, "fingerprint": each.fingerprint, "forget_at": each.forget_at} for each in ordered]
        await connection.execute(self._database.insert(_mails).on_conflict_do_nothing(), mails)
        rows = {
            (each.mail, each.recipient(mailbox)): {
                "mail": each.mail,
                "recipient": each.recipient(mailbox),
                "delivered": False,
                "claimed_until": 0.0,
            }
            for each in arrived
            for mailbox in each.mailboxes
        }
        if rows:
            in_order = [rows[name] for name in sorted(rows)]
            await connection.execute(self._database.insert(_recipients).on_conflict_do_nothing(), in_order)


async def _known(
    connection: AsyncConnection, arrived: Sequence[Arrived]
) -> dict[bytes, tuple[bytes, dict[bytes, tuple[bool, float]]]]:
    """By mail: its fingerprint, and of each recipient whether they have it and until when it is claimed."""
    found: dict[bytes, tuple[bytes, dict[bytes, tuple[bool, float]]]] = {}
    for some in batches(sorted({each.mail for each in arrived})):
        mails = select(_mails.c.mail, _mails.c.fingerprint).where(_mails.c.mail.in_(some))
        for mail, fingerprint in await connection.execute(mails):
            found[mail] = (fingerprint, {})
        rows = select(_recipients).where(_recipients.c.mail.in_(some))
        ordered = rows.order_by(_recipients.c.mail, _recipients.c.recipient)
        for row in await connection.execute(ordered.with_for_update()):
            found[row.mail][1][row.recipient] = (row.delivered, row.claimed_until)
    return found


async def _bind(connection: AsyncConnection, admissions: Sequence[_Admission]) -> None:
    """Each key to its ciphertext; whoever comes second with another one gets `trouble`."""
    wanted = sorted({at for each in admissions for bound in each.bound for at in bound.places})
    known: dict[bytes, tuple[str | None, bytes | None]] = {}
    columns = select(keys.c.place, keys.c.level, keys.c.bound_to)
    for some in batches(wanted):
        # Locked in one order, so that two relays with the same keys do not wait for each other.
        rows = columns.where(held, keys.c.place.in_(some)).order_by(keys.c.place).with_for_update()
        known.update({row.place: (row.level, row.bound_to) for row in await connection.execute(rows)})
    changed: set[bytes] = set()
    for each in admissions:
        for bound in each.bound:  # from the outermost layer inwards: an inner one may not use its keys once more
            each.trouble = _trouble(bound, known)
            if each.trouble is not None:
                break
            changed.update(_bound(bound, known))
    change = update(keys).where(keys.c.place == bindparam("at"))
    rows_changed: list[dict[str, Any]] = [{"at": at, "its_level": known[at][0], "to": known[at][1]} for at in changed]
    if rows_changed:
        await connection.execute(change.values(level=bindparam("its_level"), bound_to=bindparam("to")), rows_changed)


def _trouble(bound: Bound, known: Mapping[bytes, tuple[str | None, bytes | None]]) -> CannotOpen | None:
    for at, key_ID in bound.places.items():
        if at not in known:
            return KeyDestroyed(f"key {key_ID} was destroyed while the message was opened")
        if trouble := bound.use.trouble(*known[at]):
            return KeyUsed(f"key {key_ID}: {trouble}")
    return None


def _bound(bound: Bound, known: dict[bytes, tuple[str | None, bytes | None]]) -> list[bytes]:
    """Notes in `known` what these keys have opened now; the places of those for which that is news."""
    news = [at for at in bound.places if not bound.use.opened_before(known[at][1])]
    for at in news:
        known[at] = (bound.use.level, (known[at][1] or b"") + bound.use.fingerprint)
    return news
