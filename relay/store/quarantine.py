"""The quarantine: undeliverable messages, sealed at rest, until an administrator decides.
A message in quarantine is on disk, and leaves only when it is released or dropped.

A message is one entry, however often and for however many recipients it arrives; `mail` (32 bytes) identifies it.
Nothing expires; `room` bounds the size. Mail that waits for its key is quarantined after a time, summed up from attempt
to attempt. A clock that is set must not quarantine mail whose key is late.
"""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import ColumnElement, Connection, Row, Update, delete, func, or_, select, true, update

from relay.errors import QuarantineFull, StoreUnavailable
from relay.mail import Recipient
from relay.store.database import Database, batches, to_its_end
from relay.store.quarantine_table import (
    ENTRY_OCTETS,
    Arrival,
    Kept,
    described,
    facts_of,
    kept_of,
    messages,
    opened_message,
    recipient_octets,
    recipients,
    sealed_message,
    waiting_for_keys,
)
from relay.store.secret import SiteSecret

CLAIM_S = 900.0
"""Length of a release's claim, in seconds; one of a killed process expires."""
WAITED_KEEP_FOR_S = 10 * 86400.0
"""Retention of a mail's waiting time, in seconds; longer than mail servers retry."""
MOST_BETWEEN_S = 4000.0
"""Maximum time counted between two attempts, in seconds: Postfix's longest pause."""
NOTED_S = 60.0
"""Minimum interval between recorded attempts, in seconds."""


@dataclass(frozen=True, slots=True)
class Room:
    """Maximum size of the quarantine, and of one party's share, in bytes."""

    total: int
    share: int


@dataclass(frozen=True, slots=True)
class PutAside:
    """The entry of a quarantined mail: its id, whether it is new, and its new recipients."""

    id: str
    new: bool
    recipients: tuple[Recipient, ...]


@dataclass(frozen=True, slots=True)
class Total:
    """Number of messages, and what they count in bytes."""

    number: int = 0
    size: int = 0


class Quarantine:
    """The quarantine of one store."""

    def __init__(self, database: Database, secret: SiteSecret, clock: Callable[[], float]) -> None:
        """`clock` gives seconds since 1970."""
        self._database = database
        self._secret = secret
        self._clock = clock

    async def has(self, mail: bytes) -> bool:
        """Whether this message is here. Raises StoreUnavailable."""
        return bool(await self._database.rows(select(messages.c.id).where(messages.c.mail == mail)))

    @to_its_end
    async def put(self, mail: bytes, arrival: Arrival, room: Room) -> PutAside:
        """Stores the message, or adds its recipients to an existing entry; on disk when this returns.

        Raises QuarantineFull and StoreUnavailable; then nothing was changed.
        """
        row = None if await self.has(mail) else await asyncio.to_thread(self._row, mail, arrival)

        def put(connection: Connection) -> PutAside:
            name = _arrived_again(connection, mail)
            if name is None:
                if row is None:
                    raise StoreUnavailable("the same message was released or dropped at this moment")
                _check_room(connection, arrival.party, row["octets"], room)
                name = self._insert(connection, row)
            fresh = _not_there(connection, name, arrival.mail.envelope.recipients)
            if fresh:
                size = sum(map(recipient_octets, fresh))
                _check_room(connection, arrival.party, size, room)
                connection.execute(recipients.insert(), [_recipient_row(name, each) for each in fresh])
                counted = update(messages).where(messages.c.id == name)
                connection.execute(counted.values(octets=messages.c.octets + size))
            return PutAside(name, row is not None and name == row["id"], tuple(fresh))

        return await self._database.writing(put)

    async def all(self, reason: str | None = None) -> list[Kept]:
        """Every message, or those with this reason, the oldest first. Raises StoreUnavailable."""
        return await self._kept(true() if reason is None else messages.c.reason == reason)

    async def latest(self, most: int) -> list[Kept]:
        """The most recent messages, newest first, at most `most`. Raises StoreUnavailable."""
        return await self._kept(true(), messages.c.arrived_at.desc(), most)

    async def find(self, name: str) -> Kept | None:
        """The message with this id, or None. Raises StoreUnavailable."""
        return next(iter(await self._kept(messages.c.id == name)), None)

    @to_its_end
    async def _kept(
        self,
        condition: ColumnElement[bool],
        order: ColumnElement[float] = messages.c.arrived_at,
        most: int | None = None,
    ) -> list[Kept]:
        query = select(*described).where(condition).order_by(order, messages.c.id).limit(most)

        def read(connection: Connection) -> list[Kept]:
            rows = connection.execute(query).all()
            waiting: dict[str, list[Recipient]] = {row.id: [] for row in rows}
            for some in batches(list(waiting)):
                for each in _recipients(connection, some):
                    waiting[each.id].append(Recipient(each.address, each.notify, each.orcpt))
            return [kept_of(row, waiting[row.id]) for row in rows]

        return await self._database.reading(read)

    async def message(self, name: str) -> bytes:
        """The bytes of a message. Raises StoreUnavailable, also if its row was modified."""
        rows = await self._database.rows(select(messages).where(messages.c.id == name))
        if not rows:
            raise StoreUnavailable(f"message {name} is not in quarantine any more")
        return await asyncio.to_thread(opened_message, self._secret, rows[0])

    async def claim(self, name: str) -> bool:
        """Claims the message for a release; False if another one has it now, or it no longer exists."""
        now = self._clock()
        free = or_(messages.c.claimed_until.is_(None), messages.c.claimed_until <= now)
        claim = update(messages).where(messages.c.id == name, free).values(claimed_until=now + CLAIM_S)
        return bool(await self._database.write(claim))

    async def unclaim(self, name: str) -> None:
        """Ends the claim; recipients who still wait may be tried again."""
        await self._database.write(_unclaimed(messages.c.id == name))

    @to_its_end
    async def delivered(self, name: str, addresses: Iterable[str]) -> bool:
        """Notes delivered recipients and ends the claim; returns whether the entry is gone, since none waits."""
        served = list(addresses)

        def note(connection: Connection) -> bool:
            connection.execute(select(messages.c.id).where(messages.c.id == name).with_for_update())
            for some in batches(served):
                gone = delete(recipients).where(recipients.c.id == name, recipients.c.address.in_(some))
                connection.execute(gone)
            over = not _recipients(connection, [name], limit=1)
            row = messages.c.id == name
            connection.execute(delete(messages).where(row) if over else _unclaimed(row))
            return over

        over = await self._database.writing(note)
        if over:
            await self._database.scrub()
        return over

    @to_its_end
    async def drop(self, name: str) -> None:
        """Destroys the message. Raises StoreUnavailable."""
        gone = (delete(messages).where(messages.c.id == name), delete(recipients).where(recipients.c.id == name))
        await self._database.write(*gone)
        await self._database.scrub()

    async def totals(self) -> dict[tuple[str, str, str], Total]:
        """Totals by reason, party and claimed peer. Raises StoreUnavailable."""
        by = (messages.c.reason, messages.c.party, messages.c.named)
        rows = await self._database.rows(select(*by, func.count(), func.sum(messages.c.octets)).group_by(*by))
        return {
            (reason, party, named): Total(int(number), int(octets)) for reason, party, named, number, octets in rows
        }

    def _row(self, mail: bytes, arrival: Arrival) -> dict[str, Any]:
        name, facts = secrets.token_hex(6), facts_of(arrival)
        sealed = sealed_message(self._secret, name, mail, arrival.reason, facts, arrival.stored)
        return {
            "id": name,
            "mail": mail,
            "reason": arrival.reason,
            "party": arrival.party,
            "named": arrival.named,
            "facts": facts,
            "arrived_at": self._clock(),
            "arrivals": 1,
            "size": len(arrival.stored),
            "octets": ENTRY_OCTETS + len(facts) + len(sealed.data),
            "secret_id": sealed.secret_id,
            "sealed": sealed.data,
        }

    def _insert(self, connection: Connection, row: dict[str, Any]) -> str:
        """The id of the new entry, or of one that another relay has just created for the same message."""
        insert = self._database.insert(messages).values(row)
        once = insert.on_conflict_do_update(
            index_elements=[messages.c.mail], set_={"arrivals": messages.c.arrivals + 1}
        )
        return str(connection.scalar(once.returning(messages.c.id)))


class FirstSeen:
    """How long mails have waited for their keys; a small row for each."""

    def __init__(self, database: Database, clock: Callable[[], float]) -> None:
        """`clock` gives seconds since 1970."""
        self._database = database
        self._clock = clock

    @to_its_end
    async def waits_for(self, mail: bytes) -> float:
        """Seconds that this mail (32 bytes) has waited so far; 0 the first time. Raises StoreUnavailable."""
        now = self._clock()
        same_mail = waiting_for_keys.c.mail == mail
        rows = await self._database.rows(select(waiting_for_keys).where(same_mail))
        if not rows:
            new = self._database.insert(waiting_for_keys).values(mail=mail, waited=0.0, last_seen=now)
            await self._database.write(new.on_conflict_do_nothing())
            return 0.0
        since = now - rows[0].last_seen
        waited = float(rows[0].waited + min(max(since, 0.0), MOST_BETWEEN_S))
        if abs(since) >= NOTED_S:
            await self._database.write(update(waiting_for_keys).where(same_mail).values(waited=waited, last_seen=now))
        return waited

    async def expire(self) -> int:
        """Deletes mails not seen for WAITED_KEEP_FOR_S; returns how many. Raises StoreUnavailable."""
        before = self._clock() - WAITED_KEEP_FOR_S
        return await self._database.write(delete(waiting_for_keys).where(waiting_for_keys.c.last_seen < before))


def _unclaimed(condition: ColumnElement[bool]) -> Update:
    return update(messages).where(condition).values(claimed_until=None)


def _arrived_again(connection: Connection, mail: bytes) -> str | None:
    """Notes another arrival of an existing message, and locks its row; returns its id."""
    again = update(messages).where(messages.c.mail == mail).values(arrivals=messages.c.arrivals + 1)
    name: str | None = connection.scalar(again.returning(messages.c.id))
    return name


def _check_room(connection: Connection, party: str, size: int, room: Room) -> None:
    """Raises QuarantineFull if `size` more bytes exceed this party's share, or the total."""
    everything = select(func.coalesce(func.sum(messages.c.octets), 0))
    theirs = connection.scalar(everything.where(messages.c.party == party)) or 0
    if theirs + size > room.share:
        whose = f"mail in the name of peer {party!r}" if party else "mail in the name of no peer"
        raise QuarantineFull(f"{whose} has {theirs} bytes in quarantine, and may have {room.share}")
    total = connection.scalar(everything) or 0
    if total + size > room.total:
        raise QuarantineFull(f"the quarantine holds {total} bytes, and may hold {room.total}")


def _recipients(connection: Connection, names: Sequence[str], limit: int | None = None) -> Sequence[Row[Any]]:
    query = select(recipients).where(recipients.c.id.in_(names)).order_by(recipients.c.address).limit(limit)
    return connection.execute(query).all()


def _not_there(connection: Connection, name: str, expected: Sequence[Recipient]) -> list[Recipient]:
    """The recipients not in this entry yet, without duplicates."""
    unique = {each.address: each for each in expected}
    for some in batches(list(unique)):
        present = select(recipients.c.address).where(recipients.c.id == name, recipients.c.address.in_(some))
        for address in connection.scalars(present):
            unique.pop(address, None)
    return list(unique.values())


def _recipient_row(name: str, recipient: Recipient) -> dict[str, Any]:
    return {"id": name, "address": recipient.address, "notify": recipient.notify, "orcpt": recipient.orcpt}
