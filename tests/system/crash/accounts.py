"""The keys of a run, one by one: what KMEs issued and gave away, and what sites have used and written down.
Standard: ETSI GS QKD 014 gives a key once at each side; so what is in no account is lost, or could be used twice.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence, Set as AbstractSet
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Row, text

from relay.kme import SimulatedLink
from relay.store.database import open_database
from relay.store.kme_memory import DIGEST_OCTETS
from relay.store.received_table import KeyName, from_column
from tests.testlib.sites import Site

REPLY_S = 1.0
"""A reply is on its way for less than this."""

Spans = Sequence[tuple[float, float]]
"""From when to when something was wrong, in seconds of time.monotonic()."""


@dataclass(frozen=True)
class Accounts:
    """What the link between the two KMEs knows of its keys; it remembers more than a run uses."""

    link: SimulatedLink

    @property
    def issued(self) -> Mapping[str, float]:
        """By key_ID: when a KME gave it to the master (enc_keys)."""
        return {key_ID: issued.issued for key_ID, issued in self.link.keys.items()}

    @property
    def given(self) -> Mapping[str, float]:
        """By key_ID: when a KME gave it to the slave (dec_keys)."""
        return {key_ID: max(issued.given.values()) for key_ID, issued in self.link.keys.items() if issued.given}

    def lost_on_the_wire(self, key_IDs: AbstractSet[str], broken: Spans) -> bool:
        """Whether one of these was given to Bob while the wire to Bob's KME was `broken`: no KME gives it again."""
        given = self.given
        return any(_within(given.get(key_ID, 0.0), broken) for key_ID in key_IDs)

    async def check_alice(self, site: Site, used: AbstractSet[str], wrong: Spans) -> tuple[int, int, list[str]]:
        """How many keys were burnt and how many unread, and the broken promises: issued = used + burnt + unread.

        A key is written down before it is used; a burnt one was, and is not used. An unread one was in a reply that the
        relay did not get, because something was `wrong` at Alice's.
        """
        written = await self._written_at_alice(site)
        issued = self.issued
        unused = issued.keys() - used
        unread = unused - written
        broken = [f"key {key_ID} was used, and never issued" for key_ID in used - issued.keys()]
        broken += [f"key {key_ID} was used, and not written down as issued" for key_ID in used - written]
        broken += [
            f"key {key_ID} was issued, and neither used nor written down, though nothing was wrong"
            for key_ID in unread
            if not _within(issued[key_ID], wrong)
        ]
        return len(unused - unread), len(unread), broken

    async def check_bob(self, site: Site, wire_broken: Spans) -> tuple[int, list[str]]:
        """How many keys got lost on the way to Bob, and the broken promises: all others are in Bob's store."""
        written = {from_column(key_ID) for [key_ID] in await _rows(site, "SELECT key_id FROM received_keys")}
        missing = self.given.keys() - written
        lost = {key_ID for key_ID in missing if self.lost_on_the_wire({key_ID}, wire_broken)}
        return len(lost), [f"key {key_ID} was given to Bob, and is not in Bob's store" for key_ID in missing - lost]

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
        return await database.rows(text(query))
    finally:
        await database.close()
