"""One KME group as a source of keys: it asks the healthiest KME that can supply.
Standard: ETSI GS QKD 014 V1.1.1; a group is one KME pair or several that share keys, with the same name at both sites.

Fresh keys may come from any KME of the group. A key_ID is fetched only inside its own group, from any KME there. A
KME that does not answer within its timeout is asked after the others from then on, until it is well again.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from copy import copy
from typing import Literal, Self

from relay.errors import ConfigError, KeyUnavailable, StoreUnavailable
from relay.keys.client import KMEClient, check_numbers, in_order, once_each
from relay.keys.counts import KeyCounts, Numbers
from relay.keys.events import Events
from relay.keys.faults import KMEBusy, NotAsked
from relay.keys.issued import SeenKeys
from relay.keys.member import Member, first_that_can
from relay.keys.pads import Pad
from relay.keys.pool import KeyPool
from relay.keys.refill import Prefetch
from relay.keys.takes import Takes, check
from relay.keys.types import REAL_TIME, SAEID, IssuedKeyStore, KeepKeys, Key, Timing, sae_text
from relay.keys.untaken import Untaken

__all__ = ["KMEGroup", "Prefetch"]

log = Events(__name__)

Use = Literal["otp", "aes", "both"]
"""Permitted use of a group's keys; it decides which bytes of an otp key may be known to others."""

USUAL_PREFETCH = Prefetch()

LAG_PATIENCE_S = 5.0
"""Maximum wait for keys that the other KME has not yet synchronised, in seconds; then mail is held."""
LAG_WAITING = 10
"""Maximum number of mails that wait at once: half of what Postfix hands over at the same time."""
REMEMBERED = 10_000
"""Maximum number of messages with unknown keys that are remembered; an older one counts as new."""
FIRST_PAUSE_S, LONGEST_PAUSE_S = 0.1, 2.0
"""First and longest pause before keys are requested again, in seconds; doubled each time."""


_TAKES = {"prefetch": Takes(Prefetch | Mapping, "a Prefetch, or one for each KME by name")}


class KMEGroup:
    """The keys shared by the KMEs of one group; each key is used once, by either site."""

    def __init__(
        self,
        group: str,
        clients: Sequence[KMEClient],
        prefetch: Prefetch | Mapping[str, Prefetch] = USUAL_PREFETCH,
        *,
        lag_patience: float = LAG_PATIENCE_S,
        lag_waiting: int = LAG_WAITING,
        keep: KeepKeys | None = None,
        board: KeyCounts | None = None,
        timing: Timing = REAL_TIME,
        use: Use = "both",
        one_batch: Mapping[str, float | None] | None = None,
        known_as: Mapping[str, Sequence[str]] | None = None,
    ) -> None:
        """`prefetch` is for all KMEs, or by KME name.

        `lag_patience` is in seconds; at most `lag_waiting` fetches wait for lagging keys. `keep` stores fetched keys
        before they are returned.
        `one_batch`, by KME name, is the setting for keys that the peer has not fetched (relay.keys.undelivered). By
        default KMEs keep them.
        `known_as` are our names at each KME, by KME name: our SAE ID first.
        """
        check({"prefetch": prefetch}, _TAKES)
        if not clients or len(set(clients)) < len(clients):
            raise ConfigError("clients: it takes each client once, and one at least")
        by_name = {"prefetch": prefetch if isinstance(prefetch, Mapping) else {}, "one_batch": one_batch or {}}
        for what, rules in (by_name | {"known_as": known_as or {}}).items():
            if strange := sorted(rules.keys() - {client.name for client in clients}):
                raise ConfigError(f"{what}: {strange[0]!r} is the name of none of the clients")
        self.use: Use = use
        self.group = group
        """The group's name, sent with every key_ID."""
        self._timing = timing
        self._lag_patience, self._lag_waiting = lag_patience, lag_waiting
        self._waiting = 0
        self._unknown_since: dict[tuple[str, str], float] = {}
        self._pauses: set[asyncio.Future[None]] | None = set()
        """The waits for lagging keys; None at shutdown: nobody waits any more."""
        self._untaken = Untaken(group, timing.clock) if keep is None else None
        """Fetched keys on their way to a caller, where no store keeps them."""
        keep = self._untaken.keep if self._untaken else keep
        seen, board = SeenKeys(), board or Numbers()
        self.members: list[Member] = []
        """Its KMEs, in the order of the configuration."""
        for client in clients:
            rule = prefetch if isinstance(prefetch, Prefetch) else prefetch.get(client.name, USUAL_PREFETCH)
            names = (known_as or {}).get(client.name, ())
            one_by_one = (one_batch or {}).get(client.name, 0.0)
            pool = KeyPool(client, rule, seen, timing, one_batch=one_by_one, known_as=names)
            self.members.append(Member(group, client, pool, keep, board, timing))
        self.pools = [member.pool for member in self.members]
        """Their fresh keys."""

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    @property
    def health(self) -> float:
        """From 0, where no KME of the group is worth asking, to 1."""
        return max(member.health for member in self.members)

    def keep_in(self, keep: KeepKeys, ready: Callable[[], Awaitable[None]]) -> None:
        """Sets `keep`, which stores every fetched key before it is returned, and `ready`, which checks that."""
        self._untaken = None
        for member in self.members:
            member.fetcher.keep, member.fetcher.ready = keep, ready

    def remember_in(self, issued: IssuedKeyStore) -> None:
        """Sets the store in which every fresh key is recorded before use; recorded ones are refused."""
        for pool in self.pools:
            pool.issued.remember_in(issued, self.group)

    def candidates(self, slave_sae: str = "", size: int = 0) -> list[Member]:
        """The KMEs by health; equal ones in the order of the configuration.

        With `slave_sae` and `size` (bits) only those with such a key ready, unless none has one.
        """
        with_keys = [member for member in self.members if size and member.pool.ready(slave_sae, size)]
        return sorted(with_keys or self.members, key=lambda member: -member.health)

    async def take(self, slave_sae: SAEID, size: int = 256) -> Key:
        """A fresh key of `size` bits for `slave_sae`, from a pool, else drawn now.

        Raises KeyUnavailable, and StoreUnavailable while issued keys cannot be recorded.
        """
        check_numbers(1, size)
        slave_sae = sae_text(slave_sae)
        members = self.candidates(slave_sae, size)
        _, key = await first_that_can(members, "key", lambda member, wait: member.key(slave_sae, size, wait=wait))
        return key

    async def take_pad(self, slave_sae: SAEID, hidden: int) -> Pad:
        """A one-time pad that hides `hidden` bytes, all or nothing, from one KME. Raises KeyUnavailable.

        Keys drawn for an incomplete pad stay in the pool for the next attempt and expire there. Excess bytes are
        discarded and counted.
        """
        if hidden < 1:
            raise ValueError("a pad hides at least one byte")
        slave_sae, members = sae_text(slave_sae), self.candidates()
        _, pad = await first_that_can(members, "pad", lambda member, wait: member.pad(slave_sae, hidden, wait=wait))
        return pad

    async def request_dec_keys(self, master_sae: SAEID, key_IDs: Sequence[str]) -> list[Key]:
        """As a client's: the keys with these IDs, in order. Raises KeysMissing with the keys that did arrive.

        Waits for lagging keys. Also raises other KeyUnavailable, and TypeError.
        """
        return in_order(self.group, key_IDs, await self.fetch(master_sae, once_each(key_IDs)))

    async def fetch(
        self,
        master_sae: SAEID,
        key_IDs: Sequence[str],
        *,
        patient: bool = True,
        elsewhere: Callable[[Sequence[str]], Awaitable[dict[str, Key]]] | None = None,
    ) -> dict[str, Key]:
        """The keys that one message names, by ID, drawn by `master_sae`. The KME delivers them only once.

        Keys that did not come are requested again until the lag patience is over, unless too many wait. Keys that stay
        unknown are missing from the result. Once a key does not come, no more are requested: a message needs all of its
        keys. `patient` False asks once. `elsewhere` returns keys that another process of the
        site got from the KME meanwhile, which are then unknown there without any lag. It is called before each further
        attempt. Raises StoreUnavailable if they cannot be stored, and KeyUnavailable unless the KMEs say of the missing
        keys that they are not there. Keys that arrived before are still stored. Without a store they are `found` of
        the error, or kept for the next caller if this one gives up.
        """
        master_sae = sae_text(master_sae)
        if (untaken := self._untaken) is None:
            return await self._fetch(master_sae, key_IDs, patient=patient, elsewhere=elsewhere)
        trouble: KeyUnavailable | None = None
        if missing := untaken.missing(master_sae, key_IDs):
            try:
                await self._fetch(master_sae, missing, patient=patient, elsewhere=elsewhere)
            except KeyUnavailable as error:
                trouble = copy(error)  # others may have the same one
        found = untaken.take(master_sae, key_IDs)
        if trouble is not None and _missing(key_IDs, found):
            trouble.found = list(found.values())
            raise trouble
        return found

    def give_back(self, master_sae: str, keys: Iterable[Key]) -> None:
        """Keeps fetched keys for the next caller, unless a store has them."""
        if self._untaken is not None:
            self._untaken.put(master_sae, keys)

    async def _fetch(
        self,
        master_sae: str,
        key_IDs: Sequence[str],
        *,
        patient: bool,
        elsewhere: Callable[[Sequence[str]], Awaitable[dict[str, Key]]] | None,
    ) -> dict[str, Key]:
        """The same for keys that did not arrive before."""
        found: dict[str, Key] = {}
        began, pause = self._timing.clock(), FIRST_PAUSE_S
        trouble = await self._ask_each(master_sae, key_IDs, found)
        if patient and _missing(key_IDs, found) and self._waiting < self._lag_waiting:
            self._waiting += 1
            until = (self._first_try(master_sae, key_IDs[0]) if trouble is None else began) + self._lag_patience
            try:
                while (missing := _missing(key_IDs, found)) and not isinstance(trouble, NotAsked):
                    left = until - self._timing.clock()
                    asked = (isinstance(trouble, KMEBusy) and trouble.retry_after) or 0.0
                    wait = min(left, max(asked, pause * (0.5 + 0.5 * self._timing.chance())))
                    if left <= asked or not await self._paused(wait):
                        break
                    pause = min(LONGEST_PAUSE_S, pause * 2)
                    if elsewhere is not None:
                        found |= (came := await elsewhere(missing))
                        self.give_back(master_sae, came.values())
                    trouble = await self._ask_each(master_sae, missing[:1], found)  # the others come with it
                    if missing[0] in found:
                        trouble = await self._ask_each(master_sae, key_IDs, found)
            finally:
                self._waiting -= 1
        if trouble is not None and _missing(key_IDs, found):
            raise trouble
        return found

    def _first_try(self, master_sae: str, key_ID: str) -> float:
        """When the message that names this key first was found to have unknown ones: its patience begins then.

        Else each further try of forged mail would take a place among those who wait for as long again.
        """
        first = self._unknown_since.setdefault((master_sae, key_ID), self._timing.clock())
        if len(self._unknown_since) > REMEMBERED:
            del self._unknown_since[next(iter(self._unknown_since))]
        return first

    async def _paused(self, seconds: float) -> bool:
        """Waits; False at shutdown, then at once."""
        if self._pauses is None:
            return False
        pause = asyncio.ensure_future(self._timing.sleep(seconds))
        self._pauses.add(pause)
        pause.add_done_callback(self._pauses.discard)
        try:
            await asyncio.wait([pause])
        finally:
            pause.cancel()
        return self._pauses is not None

    def warm(self, slave_sae: SAEID, size: int = 256) -> None:
        """Starts filling the pools for this slave SAE."""
        for pool in self.pools:
            pool.warm(sae_text(slave_sae), size)

    def cool(self, slave_sae: SAEID) -> None:
        """Stops drawing ahead of need for this slave SAE; existing keys stay until they expire."""
        for pool in self.pools:
            pool.cool(sae_text(slave_sae))

    def stop_waiting(self) -> None:
        """At shutdown: stops drawing ahead of need, and ends all waiting for lagging keys."""
        pauses, self._pauses = self._pauses, None
        for pause in pauses or ():
            pause.cancel()
        for pool in self.pools:
            pool.stop_drawing_ahead()

    async def close(self) -> None:
        """Ends refills and calls in flight, burns held keys, closes the connections."""
        await asyncio.gather(*(member.close() for member in self.members))
        if self._untaken is not None:
            self._untaken.close()

    async def _ask_each(self, master_sae: str, key_IDs: Sequence[str], found: dict[str, Key]) -> KeyUnavailable | None:
        """Asks the KMEs once, in turn, for keys not in `found` yet.

        Returns the last error of those that did not say that a key is not there. Raises StoreUnavailable if an arrived
        key could not be stored.
        """
        trouble: KeyUnavailable | None = None
        for member in sorted(self.members, key=lambda member: -member.health):
            if not (missing := _missing(key_IDs, found)):
                break
            came, error = await member.fetcher.fetch(master_sae, missing)
            found |= came
            if isinstance(error, StoreUnavailable):
                raise error
            trouble = error or trouble
        return trouble


def _missing(key_IDs: Sequence[str], found: Mapping[str, Key]) -> Sequence[str]:
    return [key_ID for key_ID in key_IDs if key_ID not in found] if found else key_IDs
