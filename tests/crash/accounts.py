"""The keys of a run, one by one: what KMEs issued and gave away, and what sites have used and written down.
Standard: ETSI GS QKD 014 gives a key once at each side; so what is in no account is lost, or could be used twice.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, field
from typing import Any

from sqlalchemy import Row, text

from relay.keys import Key
from relay.kme import DevelopmentKMEs
from relay.store.database import open_database
from relay.store.kme_memory import DIGEST_OCTETS
from relay.store.received_table import KeyName, from_column
from tests.testlib.sites import Site

REPLY_S = 1.0
"""A reply is on its way for less than this."""

Spans = Sequence[tuple[float, float]]
"""From when to when something was wrong, in seconds of time.monotonic()."""


@dataclass
class Accounts:
    """`issued` and `given` say for each key_ID when its KME gave it to Alice (enc_keys) and to Bob (dec_keys)."""

    issued: dict[str, float] = field(default_factory=dict)
    given: dict[str, float] = field(default_factory=dict)

    @classmethod
    def of(cls, kmes: DevelopmentKMEs) -> Accounts:
        """Those of all that happens at these KMEs from now on."""
        accounts = cls()
        issue, deliver = kmes.link.issue, kmes.link.deliver

        def issued(**wanted: object) -> list[Key]:
            keys: list[Key] = issue(**wanted)  # type: ignore[arg-type]
            accounts.issued.update((key.key_ID, time.monotonic()) for key in keys)
            return keys

        def delivered(key_ids: Sequence[str], *, master: str, slave: str) -> list[Key]:
            keys = deliver(key_ids, master=master, slave=slave)
            accounts.given.update((key.key_ID, time.monotonic()) for key in keys)
            return keys

        kmes.link.issue = issued  # type: ignore[method-assign]
        kmes.link.deliver = delivered  # type: ignore[method-assign]
        return accounts

    def lost_on_the_wire(self, key_IDs: AbstractSet[str], broken: Spans) -> bool:
        """Whether one of these was given to Bob while the wire to his KME was `broken`: no KME gives it again."""
        return any(_within(self.given.get(key_ID, 0.0), broken) for key_ID in key_IDs)

    async def check_alice(self, site: Site, used: AbstractSet[str], wrong: Spans) -> tuple[int, int, list[str]]:
        """How many keys were burnt and how many unread, and the broken promises: issued = used + burnt + unread.

        A key is written down before it is used; a burnt one was, and is not used. An unread one was in a reply that the
        relay did not get, because something was `wrong` at Alice's.
        """
        written = await self._written_at_alice(site)
        unused = self.issued.keys() - used
        unread = unused - written
        broken = [f"key {key_ID} was used, and never issued" for key_ID in used - self.issued.keys()]
        broken += [f"key {key_ID} was used, and not written down as issued" for key_ID in used - written]
        broken += [
            f"key {key_ID} was issued, and neither used nor written down, though nothing was wrong"
            for key_ID in unread
            if not _within(self.issued[key_ID], wrong)
        ]
        return len(unused - unread), len(unread), broken

    async def check_bob(self, site: Site, wire_broken: Spans) -> tuple[int, list[str]]:
        """How many keys got lost on the way to Bob, and the broken promises: all others are in his store."""
        written = {from_column(key_ID) for [key_ID] in await _rows(site, "SELECT key_id FROM received_keys")}
        missing = self.given.keys() - written
        lost = {key_ID for key_ID in missing if self.lost_on_the_wire({key_ID}, wire_broken)}
        return len(lost), [f"key {key_ID} was given to Bob, and is not in his store" for key_ID in missing - lost]

    async def _written_at_alice(self, site: Site) -> set[str]:
        digests = {name for [name] in await _rows(site, "SELECT name FROM issued_keys")}
        groups = {kme.group for kme in site.config.kmes.values()}
        return {key_ID for key_ID in self.issued if any(_digest(group, key_ID) in digests for group in groups)}


def _digest(group: str, key_ID: str) -> bytes:
    return KeyName(group, "", key_ID).place("issued_keys")[:DIGEST_OCTETS]


def _within(at: float, spans: Spans) -> bool:
    return any(began - REPLY_S <= at <= ended for began, ended in spans)


async def _rows(site: Site, query: str) -> Sequence[Row[Any]]:
    database = await open_database(site.config.store.database, busy_timeout=30)
    try:
        async with database.reading() as connection:
            return (await connection.execute(text(query))).all()
    finally:
        await database.close()
