"""What was opened: which ciphertext each received key has opened, and who has got each mail.
Standard: relay/FORMAT.md; a key opens one ciphertext, a recipient gets a mail once, at all relays of a site together.

Both are written in one transaction, before anything is handed on. A recipient is claimed while their mail is on its
way (relay/store/claims.py).
"""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, Literal

from sqlalchemy import Column, Double, LargeBinary, Table, bindparam, delete, select, update
from sqlalchemy.ext.asyncio import AsyncConnection

from relay.cms import KeyUse
from relay.errors import CannotOpen, KeyDestroyed, KeyUsed, Replayed, StoreUnavailable
from relay.store.claims import Change, Claims
from relay.store.database import Database, metadata, to_its_end
from relay.store.group_commit import GroupCommit
from relay.store.key_name import KeyName
from relay.store.received_table import batches, held, keys, place

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
)
"""Who has got which mail. Mails by SHA-256 of master SAE and id, recipients by SHA-256 of that and the mailbox: the
store names nobody."""

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

    def __init__(self, database: Database, claims: Claims, clock: Callable[[], float]) -> None:
        """`clock` gives seconds since 1970."""
        self._database = database
        self._claims = claims
        self._clock = clock
        self._commit = GroupCommit(self._admit)
        self._commit_settled = GroupCommit(self._settle)
        self._unsettled: dict[tuple[bytes, bytes], bool] = {}

    async def admit(self, bound: Sequence[Bound], arrived: Arrived | None = None) -> Mapping[str, State]:
        """Binds the keys, and claims the mailboxes that have not got the mail; what becomes of each of these.

        All of it is on the disk when this returns; who is cancelled meanwhile has claimed nobody. Raises KeyUsed,
        KeyDestroyed, Replayed and StoreUnavailable.
        """
        if not bound and arrived is None:
            return {}
        if arrived is not None and any(
            (arrived.mail, arrived.recipient(box)) in self._unsettled for box in arrived.mailboxes
        ):
            with suppress(StoreUnavailable):  # until then they are busy
                await self.go_on()
        admission = _Admission(bound, arrived)
        admitting = self._database.later(self._commit(admission))
        try:
            await asyncio.shield(admitting)
        except BaseException:
            await asyncio.shield(self._database.later(self._unclaim(admitting, admission)))
            raise
        if admission.trouble is not None:
            raise admission.trouble
        return admission.states

    async def _unclaim(self, admitting: asyncio.Task[None], admission: _Admission) -> None:
        """Nobody does anything with what was claimed, if it was."""
        await asyncio.wait([admitting])
        if admission.arrived is not None and admitting.exception() is None:
            due = (mailbox for mailbox, state in admission.states.items() if state == "due")
            self._claims.drop(map(admission.arrived.recipient, due))

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

    @property
    def settled(self) -> bool:
        """Whether nothing waits to be written."""
        return not self._unsettled

    @to_its_end
    async def served(self, mail: bytes, recipients: Iterable[bytes]) -> None:
        """These have the mail, as a killed process has said; names as in Arrived. Raises StoreUnavailable."""
        await self._commit_settled(_Settlement(mail, dict.fromkeys(recipients, True)))

    def _settled(self, places: Iterable[tuple[bytes, bytes]]) -> None:
        for place_ in places:
            self._unsettled.pop(place_, None)

    @to_its_end
    async def go_on(self) -> None:
        """Writes what could not be written when it should have been. Raises StoreUnavailable."""
        late = dict(self._unsettled)
        if late:
            await self._settle([_Settlement(mail, {at: has}) for (mail, at), has in late.items()])
            # What was said of one of them meanwhile is newer, and is still to be written.
            self._settled([at for at, has in late.items() if self._unsettled.get(at) == has])

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
        arrived = [each.arrived for each in admissions if each.arrived]
        wanted = {each.recipient(mailbox): "opened" for each in arrived for mailbox in each.mailboxes}
        async with self._claims.change(wanted) as change:
            await _bind(change.connection, admissions)
            await self._claim(change, [each for each in admissions if each.arrived and not each.trouble])

    async def _settle(self, settlements: Sequence[_Settlement]) -> None:
        """One transaction for all, in one order, so that two relays with the same mail do not wait for each other."""
        has_it: dict[tuple[bytes, bytes], bool] = {}
        for each in settlements:
            for at, has in each.has_it.items():
                has_it[each.mail, at] = has or has_it.get((each.mail, at), False)
        rows = [{"mail": mail, "recipient": at} for (mail, at), has in sorted(has_it.items()) if has]
        served: dict[bytes, set[bytes]] = {each.mail: set() for each in settlements}
        async with self._claims.change() as change:
            if rows:
                await change.connection.execute(self._database.insert(_recipients).on_conflict_do_nothing(), rows)
            await change.end(self._claims.held(at for _, at in has_it))
            for mail, recipient in await _served(change.connection, list(served)):
                served[mail].add(recipient)
        for each in settlements:
            each.served = served[each.mail]

    async def _claim(self, change: Change, admissions: Sequence[_Admission]) -> None:
        arrived = {each.arrived.mail: each.arrived for each in admissions if each.arrived}
        await self._add(change.connection, [arrived[mail] for mail in sorted(arrived)])
        fingerprints = await _fingerprints(change.connection, sorted(arrived))
        served = {recipient for _, recipient in await _served(change.connection, sorted(arrived))}
        free = set(change.taken)
        for each in admissions:
            if each.arrived is None:
                continue
            if fingerprints[each.arrived.mail] != each.arrived.fingerprint:
                each.trouble = Replayed("the id in its sealed envelope was seen in another message")
                continue
            for mailbox in each.arrived.mailboxes:
                recipient = each.arrived.recipient(mailbox)
                if recipient in served or self._unsettled.get((each.arrived.mail, recipient)):
                    each.states[mailbox] = "served"
                else:
                    each.states[mailbox] = "due" if recipient in free else "busy"
                    free.discard(recipient)
        await change.give_back(free)

    async def _add(self, connection: AsyncConnection, arrived: Sequence[Arrived]) -> None:
        """Rows for what is new; two relays that write the same ones wait for each other here."""
        mails = [{"mail": each.mail, "fingerprint": each.fingerprint, "forget_at": each.forget_at} for each in arrived]
        if mails:
            await connection.execute(self._database.insert(_mails).on_conflict_do_nothing(), mails)


async def _fingerprints(connection: AsyncConnection, mails: Sequence[bytes]) -> dict[bytes, bytes]:
    found: dict[bytes, bytes] = {}
    for some in batches(mails):
        query = select(_mails.c.mail, _mails.c.fingerprint).where(_mails.c.mail.in_(some))
        found.update({row.mail: row.fingerprint for row in await connection.execute(query)})
    return found


async def _served(connection: AsyncConnection, mails: Sequence[bytes]) -> list[tuple[bytes, bytes]]:
    """Mail and recipient of all who have one of these."""
    found: list[tuple[bytes, bytes]] = []
    for some in batches(mails):
        query = select(_recipients.c.mail, _recipients.c.recipient).where(_recipients.c.mail.in_(some))
        found += [(row.mail, row.recipient) for row in await connection.execute(query)]
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
