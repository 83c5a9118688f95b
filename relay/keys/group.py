"""One KME group as a source of keys: the pools of its KMEs, of which the healthiest that can is asked.
Standard: ETSI GS QKD 014 V1.1.1; a group is one KME pair or several that share keys, named alike at both sites.

Fresh keys may come from any KME of the group. A key_ID is fetched inside its own group only, from whichever
KME there has it.

Who has waited for a KME longer than its answers usually take goes on to the next one. What the first was asked for goes
on too: its keys come into its pool, or into the store, and are there for the next mail.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Literal, TypeVar

from relay.errors import KeyUnavailable, KMEExhausted, KMEUnreachable, StoreUnavailable
from relay.keys.accounts import KeyMetrics
from relay.keys.events import Events
from relay.keys.faults import Call
from relay.keys.fetch import Fetcher
from relay.keys.lag import FIRST_PAUSE_S, LAG_PATIENCE_S, LAG_WAITING, LONGEST_PAUSE_S, Lag, Want
from relay.keys.pads import Pad, PadPlan, pad_of, plan_pad
from relay.keys.pending import MOST_PER_CALL
from relay.keys.pool import FreshKeys
from relay.keys.refill import Prefetch, Supply
from relay.keys.replies import USUAL_KEY_BITS
from relay.keys.stock import SeenKeys
from relay.keys.types import REAL_TIME, IssuedKeys, KeepKeys, Key, KeyDelivery, KeyReference, Timing

__all__ = ["KMEGroup", "Prefetch"]

log = Events(__name__)

_T = TypeVar("_T")

Use = Literal["otp", "aes", "both"]
"""What a group's keys may be used for. Which octets of a key of level otp are known to others, its use decides."""

USUAL_PREFETCH = Prefetch()

LATE_FOR_S = 30.0
"""A KME that was late is asked after the others for so long; by then its call has failed, and its health tells."""


class KMEGroup:
    """A KeySource over the KMEs of one group."""

    def __init__(
        self,
        group: str,
        clients: Sequence[KeyDelivery],
        prefetch: Prefetch | Mapping[str, Prefetch] = USUAL_PREFETCH,
        *,
        lag_patience: float = LAG_PATIENCE_S,
        lag_waiting: int = LAG_WAITING,
        gather: bool | Mapping[str, bool] = True,
        gather_window: float = 0.005,
        keep: KeepKeys | None = None,
        metrics: KeyMetrics | None = None,
        timing: Timing = REAL_TIME,
        clock: Callable[[], float] | None = None,
        use: Use = "both",
        one_batch: Mapping[str, float] | None = None,
    ) -> None:
        """`prefetch` and `gather` hold for all KMEs, or are given by KME name.

        `lag_patience` and `gather_window` are seconds; `lag_waiting` fetches at once wait for lagging keys. `keep`
        stores what is fetched before anybody gets it.
        `one_batch`, seconds by KME name, is for KMEs that drop undelivered keys (relay.keys.undelivered).
        `clock`, seconds, replaces that of `timing`.
        """
        if clock is not None:
            timing = Timing(clock, timing.sleep, timing.chance)
        self.use: Use = use
        self._group = group
        self._clients = list(clients)
        self._metrics = metrics or KeyMetrics()
        self._timing = timing
        self._late: dict[tuple[KeyDelivery, Call], float] = {}
        self._lag = Lag(lag_patience, lag_waiting, timing)
        seen = SeenKeys()
        self.pools: list[FreshKeys] = []
        self._fetchers: list[Fetcher] = []
        for client in clients:
            rule = prefetch if isinstance(prefetch, Prefetch) else prefetch.get(client.name, Prefetch())
            pool = FreshKeys(client, rule, seen, timing, one_batch=(one_batch or {}).get(client.name, 0.0))
            self.pools.append(pool)
            self._fetchers.append(
                Fetcher(
                    client,
                    limit=_ids_in_a_call(pool),
                    gather=gather if isinstance(gather, bool) else gather.get(client.name, True),
                    window=gather_window,
                    keep=keep,
                    count=self._count,
                    timing=timing,
                )
            )

    @property
    def group(self) -> str:
        """The group's name."""
        return self._group

    @property
    def clients(self) -> tuple[KeyDelivery, ...]:
        """The clients of this group's KMEs, in the order of the configuration."""
        return tuple(self._clients)

    @property
    def health(self) -> float:
        """From 0, where no KME of the group is worth asking, to 1."""
        return max((self._health(client, Call.ENC_KEYS) for client in self._clients), default=0.0)

    @property
    def calls(self) -> int:
        """dec_keys calls made so far."""
        return sum(fetcher.calls for fetcher in self._fetchers)

    def keep_in(self, keep: KeepKeys, ready: Callable[[], Awaitable[None]]) -> None:
        """From now on `keep` stores every fetched key before anybody gets it; `ready` says whether it could."""
        for fetcher in self._fetchers:
            fetcher.keep, fetcher.ready = keep, ready

    def remember_in(self, issued: IssuedKeys) -> None:
        """From now on every fresh key is written down in `issued` before it can be used; one that was is refused."""
        for pool in self.pools:
            pool.remember_in(issued, self._group)

    async def take(self, slave_sae: str, size: int = 256, *, patient: bool = True) -> Key:
        """A fresh key of `size` bits for `slave_sae`: from a pool, else drawn now.

        Raises KeyUnavailable, and StoreUnavailable while it cannot be remembered that the key was issued.

        `patient` False asks each KME once: there is another group.
        """
        began = self._timing.clock()
        with_keys = [pool for pool in self._healthiest_first() if pool.ready(slave_sae, size)]
        pools = with_keys or self._healthiest_first()
        key = await self._first_that_can(
            pools, lambda pool, again: self._take_one(pool, slave_sae, size, again), patient
        )
        self._metrics.wait.labels(self._group, "key").observe(self._timing.clock() - began)
        return key

    async def take_pad(self, slave_sae: str, hidden: int, *, patient: bool = True) -> Pad:
        """A one-time pad that hides `hidden` octets, all or nothing, from one KME. Raises KeyUnavailable.

        Keys that were drawn for a pad which then could not be completed stay in the pool for the next try
        and expire there. What its keys could hide beyond that is discarded and counted.
        """
        if hidden < 1:
            raise ValueError("a pad hides at least one octet")
        began = self._timing.clock()
        pad = await self._first_that_can(
            self._healthiest_first(),
            lambda pool, again: self._pad_from(pool, slave_sae, hidden, again),
            patient,
        )
        self._metrics.wait.labels(self._group, "pad").observe(self._timing.clock() - began)
        return pad

    async def can_supply(self, slave_sae: str, hidden: int) -> Supply:
        """Whether a pad that hides `hidden` octets (0: one key of 256 bits) can be had now, and if not, when.

        The KMEs are asked for their status.
        """
        answers = await asyncio.gather(*(self._supply(pool, slave_sae, hidden) for pool in self._healthiest_first()))
        waits = [answer for answer in answers if answer.wait is not None]
        return next(
            (answer for answer in answers if answer.now),
            min(waits, key=lambda answer: answer.wait or 0.0, default=None)
            or next(iter(answers), Supply(False, None, f"group {self._group}: no KME is configured")),
        )

    async def fetch(self, master_sae: str, key_IDs: Sequence[str], *, patient: bool = True) -> dict[str, Key]:
        """The keys by ID; one that is not known yet is asked for again until the lag patience is over (relay.keys.lag).

        All are asked for together, and no further once one of them is not known: a message needs all of its keys.
        `patient` False asks once. Raises StoreUnavailable when they could not be kept, and KeyUnavailable when no KME
        of the group could be asked; keys that came before are kept all the same.
        """
        found: dict[str, Key] = {}
        want = self._lag.want(master_sae, key_IDs)
        if await self._all_came(master_sae, key_IDs, want, found) or not patient:
            return found
        pause = FIRST_PAUSE_S
        with self._lag.place(master_sae) as place:
            while (left := self._lag.left(want)) > 0:
                if not await self._lag.pause(place, min(left, pause * (0.5 + 0.5 * self._timing.chance()))):
                    break
                pause = min(LONGEST_PAUSE_S, pause * 2)
                if await self._all_came(master_sae, key_IDs, want, found):
                    break
        return found

    async def _all_came(self, master_sae: str, key_IDs: Sequence[str], want: Want, found: dict[str, Key]) -> bool:
        """Asks once for those that are not in `found` yet. Raises what went wrong where nothing was found so far."""
        trouble = await self._ask_all(master_sae, key_IDs, want.tries, found)
        if len(found) == len(set(key_IDs)):
            self._lag.came(want)
            return True
        if trouble is not None and not found:
            raise trouble
        want.tries += 1
        return False

    def warm(self, slave_sae: str, size: int = 256) -> None:
        """Starts to fill the pools for this slave SAE."""
        for pool in self.pools:
            pool.warm(slave_sae, size)

    def wait_no_more(self) -> None:
        """Whoever waits for a lagging key hears at once that it is not there."""
        self._lag.stop()

    async def close(self) -> None:
        """Ends the refills and calls under way, burns the keys held, closes the connections."""
        for pool in self.pools:
            await pool.close()
        await asyncio.gather(*(fetcher.close() for fetcher in self._fetchers))
        for client in self._clients:
            await client.close()

    def _healthiest_first(self) -> list[FreshKeys]:
        """The pools by health; equally good ones in the order of the configuration."""
        return sorted(self.pools, key=lambda pool: -self._health(pool.client, Call.ENC_KEYS))

    def _health(self, client: KeyDelivery, call: Call) -> float:
        """The client's own, roughly, and half of it while the KME is late with such calls.

        Each call by itself: whoever sends forged mail can make dec_keys late, and that alone.
        """
        late = self._late.get((client, call), float("-inf")) > self._timing.clock()
        return round(client.health, 1) * (0.5 if late else 1.0)

    async def _from(self, pool: FreshKeys, take: Awaitable[_T]) -> _T:
        """What `take` gives, as long as each answer comes within its usual time. Raises KeyUnavailable."""
        usual = pool.client.usual_time(Call.ENC_KEYS)

        def answered() -> None:
            if not limit.expired():
                limit.reschedule(asyncio.get_running_loop().time() + usual)

        limit = asyncio.timeout(usual)
        pool.listeners.add(answered)
        try:
            return await self._unless_late(pool.client, Call.ENC_KEYS, limit, take)
        finally:
            pool.listeners.discard(answered)

    async def _unless_late(self, client: KeyDelivery, call: Call, limit: asyncio.Timeout, answer: Awaitable[_T]) -> _T:
        """The answer. Raises KMEUnreachable past the limit; the call behind it must not end with `answer`."""
        try:
            async with limit:
                return await answer
        except TimeoutError:
            if not limit.expired():
                raise
            self._late[client, call] = self._timing.clock() + LATE_FOR_S
            log.warning("kme_late", kme=client.name, call=str(call))
            raise KMEUnreachable(f"{client.name}: {call}: no answer within the usual time") from None

    async def _first_that_can(
        self, pools: Sequence[FreshKeys], take: Callable[[FreshKeys, bool], Awaitable[_T]], patient: bool
    ) -> _T:
        """What the first KME that can gives; only the last one is waited for, and asked again and again."""
        trouble: KeyUnavailable = KMEExhausted(f"group {self._group}: no KME is configured")
        for pool in pools:
            try:
                if patient and pool is pools[-1]:
                    return await take(pool, True)
                return await self._from(pool, take(pool, False))
            except KeyUnavailable as error:
                trouble = error
        raise trouble

    async def _take_one(self, pool: FreshKeys, slave_sae: str, size: int, patient: bool) -> Key:
        [key] = await pool.take(slave_sae, size, patient=patient)
        return key

    async def pad_octets(self, slave_sae: str, hidden: int) -> int:
        """How many octets of quantum key a pad costs that hides so many, at the KME that would be asked first."""
        return (await self._plan(self._healthiest_first()[0], slave_sae, hidden)).octets

    async def _pad_from(self, pool: FreshKeys, slave_sae: str, hidden: int, patient: bool) -> Pad:
        plan = await self._plan(pool, slave_sae, hidden)
        keys = await pool.take(slave_sae, plan.size, plan.number, patient=patient, prefetched=False)
        references = [KeyReference(key.key_ID, None, slave_sae, self._group) for key in keys]
        pad, discarded = pad_of(keys, references, hidden)
        pool.client.accounts.octets_discarded += discarded
        return pad

    async def _plan(self, pool: FreshKeys, slave_sae: str, hidden: int) -> PadPlan:
        if not hidden:
            return PadPlan(1, USUAL_KEY_BITS, 1)
        return plan_pad(hidden, await pool.limits(slave_sae), any_size=pool.client.any_size)

    async def _supply(self, pool: FreshKeys, slave_sae: str, hidden: int) -> Supply:
        name = pool.client.name
        if pool.client.health == 0:
            return Supply(False, None, f"{name}: does not answer at present")
        status = await pool.look(slave_sae)
        try:
            plan = await self._plan(pool, slave_sae, hidden)
        except KeyUnavailable as error:
            return Supply(False, None, f"{name}: {error}")
        needed = max(0, plan.number - pool.ready(slave_sae, plan.size)) * plan.size
        if needed == 0:
            return Supply(True, 0.0, f"{name}: the keys are in the pool", plan.octets)
        if status is None or status.stored_key_count is None:
            return Supply(False, None, f"{name}: does not say how many keys it has")
        usual = status.key_size or plan.size
        stored = status.stored_key_count * usual
        if stored >= needed:
            return Supply(True, 0.0, f"{name}: {stored} bits stored, {needed} needed", plan.octets)
        if status.max_key_count and needed > status.max_key_count * usual:
            return Supply(False, None, f"{name}: {needed} bits are more than the KME ever stores")
        rate = pool.refill_rate(slave_sae)
        wait = (needed - stored) / rate if rate else None
        return Supply(False, wait, f"{name}: {stored} bits stored, {needed} needed")

    async def _ask_all(
        self, master_sae: str, key_IDs: Sequence[str], tries: int, found: dict[str, Key]
    ) -> KeyUnavailable | None:
        """One round through the KMEs, adding to `found`; gives what went wrong with the last one that failed.

        `tries` is how often they were asked for before.
        """
        trouble: KeyUnavailable | None = None
        unstored: StoreUnavailable | None = None
        pairs = zip(self._fetchers, self.pools, strict=True)
        fetchers = sorted(pairs, key=lambda pair: -self._health(pair[0].client, Call.DEC_KEYS))
        for fetcher, pool in fetchers:
            missing = [key_ID for key_ID in key_IDs if key_ID not in found]
            if not missing:
                break
            answer = fetcher.fetch(master_sae, missing, tries)
            try:
                if fetcher is fetchers[-1][0]:
                    outcomes = await answer
                else:
                    limit = asyncio.timeout(self._usual_time_of(pool, master_sae, len(missing)))
                    outcomes = await self._unless_late(fetcher.client, Call.DEC_KEYS, limit, answer)
            except KeyUnavailable as error:
                trouble = error
                continue
            for key_ID, outcome in outcomes.items():
                if isinstance(outcome, Key):
                    found[key_ID] = outcome
                elif isinstance(outcome, StoreUnavailable):
                    unstored = outcome
                elif outcome is not None:
                    trouble = outcome
        if unstored is not None:
            raise unstored
        return trouble

    def _usual_time_of(self, pool: FreshKeys, master_sae: str, number: int) -> float:
        """Seconds within which so many keys usually come by their IDs, in calls one after the other."""
        status = pool.known_status(master_sae)
        in_a_call = (status.max_key_per_request if status else None) or MOST_PER_CALL
        return pool.client.usual_time(Call.DEC_KEYS) * math.ceil(number / in_a_call)

    def _count(self, outcome: str, number: int) -> None:
        self._metrics.received.labels(self._group, outcome).inc(number)


def _ids_in_a_call(pool: FreshKeys) -> Callable[[str], Awaitable[int | None]]:
    async def limit(master_sae: str) -> int | None:
        status = await pool.limits(master_sae)
        return status.max_key_per_request if status else None

    return limit
