"""One KME's fresh keys: the ready ones, drawing, and the refill ahead of need.
Standard: ETSI GS QKD 014 V1.1.1, 5.3; enc_keys is never hedged, and concurrent callers share one request.

A request belongs to the pool: when a caller gives up, the keys that arrive are kept for the next one. state.py decides
what to request and who gets the keys; the requests are here.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial

from relay.errors import (
    KeyUnavailable,
    KMEBadReply,
    KMEExhausted,
    KMEUnreachable,
    StoreUnavailable,
)
from relay.keys.asking import Asker
from relay.keys.events import Events
from relay.keys.faults import FAILED_CODE, KMERefusedRequest, KMEUnanswered
from relay.keys.forks import forget_in_children
from relay.keys.health import OF_AN_SAE
from relay.keys.issued import IssuedKeys, SeenKeys
from relay.keys.kme_store import KMEStore
from relay.keys.refill import OUTAGE_S, DrawCount, Draws, Peak, Prefetch, WaterMarks, marks
from relay.keys.state import PeerPool, Want
from relay.keys.stock import Stock
from relay.keys.types import REAL_TIME, Key, Timing
from relay.keys.undelivered import Undelivered
from relay.runtime.aio import begun, goes_on

log = Events(__name__)

PATIENCE_S = 10.0
"""Longest time that a caller waits for the next batch of a KME that gives one at a time, in seconds."""
FIRST_LOOK_S, LONGEST_LOOK_S = 0.1, 1.0
"""First and longest interval at which its status is asked for meanwhile, in seconds."""
LONE_BATCH = 8
"""Minimum number of keys in a batch of such a KME."""
MANY_SIZES = 64
"""Number of sizes from which those that are no longer used are forgotten."""


class KeyPool:
    """The keys that one KME issues to us, for all slave SAEs and sizes."""

    def __init__(
        self,
        client: Asker,
        prefetch: Prefetch,
        seen: SeenKeys,
        timing: Timing = REAL_TIME,
        *,
        one_batch: float | None = None,
        known_as: Sequence[str] = (),
        managed: bool = True,
    ) -> None:
        """`one_batch` is the setting for keys that the peer has not fetched (see relay.keys.undelivered).

        `known_as`: our SAE ID, and its spellings at the KME; empty: any name. `managed` False requests no status, and
        does not back off after a refusal: the caller decides what to request.
        """
        self.undelivered = Undelivered(one_batch, timing.clock)
        self.client = client
        self._managed = managed
        self.prefetch = prefetch
        self._known_as = known_as
        self._timing = timing
        self._peer_pools: dict[tuple[str, int], PeerPool] = {}
        self._kme_stores: dict[str, KMEStore] = {}
        self._turns: dict[str, asyncio.Lock] = {}
        self._began = timing.clock()
        self._closed = False
        self._draws_of: Callable[[str], DrawCount] = lambda _: Draws()
        self.issued = IssuedKeys(client.name, seen)
        """The record of issued keys, written before use."""
        forget_in_children(self)

    def forked(self) -> None:
        """As for all."""
        for peer_pool in self._peer_pools.values():
            peer_pool.stock.wipe()
        self._peer_pools.clear()
        self._turns.clear()

    @property
    def trouble(self) -> str:
        """The faults that need action, or ""."""
        troubles = [text for what, text in self.client.troubles.items() if not what.startswith(OF_AN_SAE)]
        if withheld := self.issued.withheld:
            troubles.append(f"no keys are drawn, the store cannot remember them: {withheld}")
        if self.undelivered.dropped:
            troubles.append(
                "the KME drops keys that the peer has not fetched when more are asked for: they are drawn one batch at "
                f"a time, as with one_batch_at_a_time = {self.undelivered.pause:.0f}"
            )
        return "; ".join(troubles)

    def refusal(self, slave_sae: str) -> str:
        """Why the KME issues no keys for this slave SAE at present, such as a shortage, or ""."""
        if blocked := self.client.troubles.get(OF_AN_SAE + slave_sae):
            return blocked
        refused = (each.refused for each in self._peer_pools.values() if each.slave_sae == slave_sae)
        return next(filter(None, refused), "")

    def count_in(self, draws_of: Callable[[str], DrawCount]) -> None:
        """Sets the counters of drawn keys by slave SAE; call it before any is drawn."""
        self._draws_of = draws_of

    def ready(self, slave_sae: str, size: int) -> int:
        """The number of such keys available without asking the KME."""
        peer_pool = self._peer_pools.get((slave_sae, size))
        if peer_pool is None:
            return 0
        peer_pool.stock.destroy_expired()
        return len(peer_pool.stock)

    def held(self, slave_sae: str | None = None) -> dict[tuple[str, int], int]:
        """The number of keys in the pool, by slave SAE and size in bits; of one slave SAE or of all."""
        return {
            place: len(peer_pool.stock) + peer_pool.stock.handed
            for place, peer_pool in self._peer_pools.items()
            if slave_sae in (None, peer_pool.slave_sae) and not peer_pool.idle
        }

    def bits_at_hand(self, slave_sae: str) -> int:
        """Bits in the pool and, by its last status, in the KME, without those drawn since or promised to callers."""
        peer_pools = [each for each in self._peer_pools.values() if each.slave_sae == slave_sae]
        left = sum(each.size * (len(each.stock) - each.wanted) for each in peer_pools)
        return max(0, self.store(slave_sae).left) + left

    async def take(
        self,
        slave_sae: str,
        size: int,
        number: int = 1,
        *,
        least: int | None = None,
        patient: bool = True,
        prefetched: bool = True,
    ) -> list[Key]:
        """`number` keys, all or none: from the pool, else drawn now. Raises KeyUnavailable and StoreUnavailable.

        With `least` at least that many, if the KME issues no more at once. Keys drawn for a request that then fails
        stay in the pool. `prefetched` False (one-time pads) draws only the requested number; `patient` False makes each
        request once.
        """
        if (ready := self.take_ready(slave_sae, size, number, prefetched=prefetched)) is not None:
            return ready
        peer_pool = self._peer_pool(slave_sae, size)
        peer_pool.fill_to, peer_pool.used_at = self._marks(peer_pool).high, self._timing.clock()
        want = Want(number, number if least is None else least, asyncio.get_running_loop().create_future(), patient)
        peer_pool.queue.append(want)
        self._draw(peer_pool)
        try:
            keys = await want.served
        except BaseException:
            peer_pool.gave_up(want)
            if self._closed:
                peer_pool.stock.burn_all("relay stops")
            self._forget_if_idle(peer_pool)
            raise
        peer_pool.stock.receive(len(keys))
        self._gave(peer_pool, len(keys))
        return keys

    def take_ready(self, slave_sae: str, size: int, number: int = 1, *, prefetched: bool = True) -> list[Key] | None:
        """As `take`, if the keys are in the pool and nobody waits for them; else None."""
        if self.client.loop is not asyncio.get_running_loop():  # another thread could take the same key
            self.client.bind()
        peer_pool = self._peer_pools.get((slave_sae, size)) or self._peer_pool(slave_sae, size)
        peer_pool.prefetched = peer_pool.prefetched or (prefetched and self.prefetch.high > 0)
        keys = None if peer_pool.queue else peer_pool.stock.pop(number)
        if keys is not None:
            self._gave(peer_pool, number)
        return keys

    def _gave(self, peer_pool: PeerPool, number: int) -> None:
        """Records that keys have left the pool, and refills it if few are left."""
        if not self._managed:
            self._forget_if_idle(peer_pool)
            return
        kme_store = self.store(peer_pool.slave_sae)
        kme_store.used_at = peer_pool.used_at = self._timing.clock()
        kme_store.use.add(number * peer_pool.size)
        peer_pool.peak.add(number)
        if peer_pool.prefetched:
            self._refill_if_low(peer_pool)
            peer_pool.given += number
        else:
            self._forget_if_idle(peer_pool)

    def warm(self, slave_sae: str, size: int = 256) -> None:
        """Draws a small batch for this slave SAE, so that its first messages need not wait; more with use."""
        peer_pool = self._peer_pool(slave_sae, size)
        peer_pool.prefetched = peer_pool.kept_ready = self.prefetch.high > 0
        self._refill_if_low(peer_pool)

    def cool(self, slave_sae: str) -> None:
        """Stops drawing ahead of need for this slave SAE."""
        for peer_pool in self._peer_pools.values():
            if peer_pool.slave_sae == slave_sae:
                peer_pool.prefetched, peer_pool.kept_ready, peer_pool.fill_to = False, False, 0

    def stop_drawing_ahead(self) -> None:
        """Stops drawing ahead permanently, at shutdown: keys in the pool will be burnt."""
        self.prefetch = replace(self.prefetch, low=0, high=0)
        for slave_sae, _ in list(self._peer_pools):
            self.cool(slave_sae)

    def destroy_expired(self) -> None:
        """Destroys expired keys in all stocks."""
        for peer_pool in list(self._peer_pools.values()):
            peer_pool.stock.destroy_expired()
            self._forget_if_idle(peer_pool)

    def maintain(self) -> None:
        """Destroys expired keys, and draws keys up to the low mark of the sizes that are kept ready without use."""
        self.destroy_expired()
        for peer_pool in self._peer_pools.values():
            if peer_pool.kept_ready and not peer_pool.filling:
                self._refill_if_low(peer_pool)

    async def close(self) -> None:
        """Ends all drawing and burns the keys in the pool; the client stays open."""
        self._closed = True
        for kme_store in self._kme_stores.values():
            await kme_store.close()
        running = [each.drawing for each in self._peer_pools.values() if goes_on(each.drawing)]
        for task in running:
            task.cancel()
        await asyncio.gather(*running, return_exceptions=True)
        burnt = 0
        for peer_pool in self._peer_pools.values():
            peer_pool.forget_other_loops()
            peer_pool.refuse(self._stopped())
            burnt += peer_pool.stock.burn_all("relay stops")
        self._peer_pools.clear()
        if burnt:
            log.info("keys_burnt", kme=self.client.name, number=burnt, cause="relay stops")

    # Drawing

    def _draw(self, peer_pool: PeerPool) -> None:
        """Starts drawing for callers and the refill; callers before its first step share the request."""
        if goes_on(peer_pool.drawing):
            return
        peer_pool.forget_other_loops()
        if self._closed:
            peer_pool.refuse(self._stopped())
        elif self._managed and (error := peer_pool.too_early(self.client.name)) is not None:
            peer_pool.refuse(error)
        else:
            peer_pool.drawing = begun(self._draw_until_enough(peer_pool), "draw keys")
            peer_pool.drawing.add_done_callback(partial(self._ended, peer_pool))

    def _ended(self, peer_pool: PeerPool, drawing: asyncio.Task[None]) -> None:
        if drawing.cancelled() and peer_pool.drawing is drawing:
            peer_pool.refuse(self._stopped())
        self._forget_if_idle(peer_pool)

    async def _draw_until_enough(self, peer_pool: PeerPool) -> None:
        """Makes requests, each for the keys then wanted, until none is wanted or one fails."""
        try:
            while await self._drawn(peer_pool):
                pass
        except (KeyUnavailable, StoreUnavailable) as error:
            peer_pool.failed(error, self._timing.chance())
        except Exception as error:
            log.error("keys_not_tended", kme=self.client.name, cause=f"{type(error).__name__}: {error}")
            peer_pool.refuse(self._stopped())
            raise

    async def _drawn(self, peer_pool: PeerPool) -> bool:
        """Makes one request for the wanted keys, up to the KME's limit; False if none are wanted."""
        if peer_pool.missing <= 0:
            peer_pool.filling = False
            return False
        await self._prepare(peer_pool)
        if not self.undelivered.pause:
            return await self._landed(peer_pool, *await self._batch(peer_pool))
        async with self._turns.setdefault(peer_pool.slave_sae, asyncio.Lock()):  # all sizes in turn
            landed = await self._landed(peer_pool, *await self._next_batch(peer_pool))
            if peer_pool.stock.handed:  # their callers have not run yet
                self.store(peer_pool.slave_sae).used_at = self._timing.clock()
            return landed

    async def _landed(self, peer_pool: PeerPool, keys: list[Key], asked: int) -> bool:
        """Gives keys that have come to those who wait; False if none came."""
        if not keys:
            return False
        until = self._timing.clock() + self.prefetch.lifetime
        try:
            before = await self.issued.seen_before(keys)
        except BaseException:
            self.client.burn(peer_pool.slave_sae, len(keys), "not remembered")
            raise
        self._put_in_stock(peer_pool, keys, before, until)
        drawn = {"number": len(keys), "asked": asked, "ready": len(peer_pool.stock)}
        log.debug("keys_drawn", kme=self.client.name, slave_sae=peer_pool.slave_sae, bits=peer_pool.size, **drawn)
        peer_pool.landed(short=len(keys) < asked or self.client.one_batch, alone=self.undelivered.strict)
        if len(peer_pool.stock):
            asyncio.get_running_loop().call_later(self.prefetch.lifetime, self.maintain)
        await asyncio.sleep(0)  # served callers may return now, and share the next request with those still waiting
        return True

    async def _batch(self, peer_pool: PeerPool) -> tuple[list[Key], int]:
        """Requests the keys that are wanted now; the keys, and how many were asked for. None, if none are wanted."""
        number = peer_pool.missing
        if number <= 0 or (self.undelivered.pause and not peer_pool.queue):  # one batch at a time is for callers only
            peer_pool.filling = False
            return [], 0
        kme_store = self.store(peer_pool.slave_sae)
        most = self.client.most_per_request or kme_store.most
        patient = peer_pool.filling or any(want.patient for want in peer_pool.queue)
        keys, asked = await self._request(peer_pool, min(number, most), patient)
        kme_store.draws.add(sum(len(key.key) * 8 for key in keys))
        return keys, asked

    async def _prepare(self, peer_pool: PeerPool) -> None:
        """Checks before a key is drawn. Raises KeyUnavailable and StoreUnavailable if none may be."""
        kme_store, slave_sae = self.store(peer_pool.slave_sae), peer_pool.slave_sae
        await kme_store.check_name()
        await self.issued.ready()
        await self.undelivered.find_out(self.client, slave_sae, kme_store.status, may_try=False)

    async def _next_batch(self, peer_pool: PeerPool) -> tuple[list[Key], int]:
        """A batch of a KME that may drop undelivered keys with it.

        First it waits until the peer had time to fetch the keys in use. A trial of the KME is made only then, too.
        """
        first = peer_pool.queue[0] if peer_pool.queue else None
        if first is not None and (self.undelivered.strict or not first.landings):  # else it needs several batches
            await self._wait_for_the_peer(peer_pool)
            status = self.store(peer_pool.slave_sae).status
            await self.undelivered.find_out(self.client, peer_pool.slave_sae, status, may_try=True)
            if self.undelivered.pause and peer_pool.kept_ready:  # the next batch has to wait
                peer_pool.fill_to = max(peer_pool.fill_to, min(self.prefetch.high, LONE_BATCH))
        return await self._batch(peer_pool)

    async def _wait_for_the_peer(self, peer_pool: PeerPool) -> None:
        """Waits until the peer had time to fetch the keys in use, then burns the rest. Raises KMEExhausted."""
        kme_store, rules, clock = self.store(peer_pool.slave_sae), self.undelivered, self._timing.clock
        if rules.strict and rules.for_others:
            raise KMEExhausted(f"{self.client.name}: drops undelivered keys, so that one process alone draws from it")
        together = [each for each in self._peer_pools.values() if each.slave_sae == peer_pool.slave_sae]
        until, pause = clock() + PATIENCE_S, FIRST_LOOK_S
        while (wait := rules.wait(kme_store.used_at)) > 0:
            if rules.found == "counted":
                status = await kme_store.ask()
                stored = status.stored_key_count if status else None
                if stored is not None and stored <= sum(len(each.stock) for each in together):
                    break
                wait = min(wait, pause)
                pause = min(LONGEST_LOOK_S, pause * 2)
            if clock() + wait > until:
                left = rules.wait(kme_store.used_at)
                text = f"one batch at a time, until the peer had time to fetch it: the next are drawn in {left:.0f} s"
                raise KMEExhausted(f"{self.client.name}: {text}")
            await self._timing.sleep(wait)
        burnt = sum(each.stock.burn_all("overtaken") for each in together)
        if burnt:
            log.info("keys_burnt", kme=self.client.name, slave_sae=peer_pool.slave_sae, number=burnt, cause="overtaken")

    async def _request(self, peer_pool: PeerPool, number: int, patient: bool) -> tuple[list[Key], int]:
        """Requests keys, and fewer if the KME does not have, accept or manage that many; also how many in the end.

        The status decides which of the first two it is, whatever the refusal says. Of a KME that may drop undelivered
        keys no fewer are drawn than the first caller needs: they would be burnt before the next batch.
        """
        kme_store, refused_more = self.store(peer_pool.slave_sae), False
        least = peer_pool.queue[0].least - len(peer_pool.stock) if self.undelivered.pause and peer_pool.queue else 1
        while True:
            try:
                keys = await self.client.draw_keys(peer_pool.slave_sae, number, peer_pool.size, patient=patient)
            except (KMEExhausted, KMERefusedRequest, KMEUnanswered) as error:
                # One that failed may have issued those keys, and lose the next ones, too.
                failed, budget = error.http_status == FAILED_CODE, self.client.state.budget
                less = not isinstance(error, KMEUnanswered) or (patient and failed and budget.allows(number // 2))
                if number == 1 or not less:
                    raise
                status = await kme_store.ask()
                bits = status.stored_bits if status else None
                short = bits is not None and bits < number * peer_pool.size
                if short and number <= least:
                    raise
                number = max(1, least, (bits or 0) // peer_pool.size) if short else number // 2
                refused_more = not short
            else:
                kme_store.unanswered = ""  # outdated; the next status shows whether it lasts
                kme_store.batch.took(number, refused_more=refused_more)
                return keys, number

    def _put_in_stock(self, peer_pool: PeerPool, keys: list[Key], before: frozenset[str], until: float) -> None:
        peer_pool.stock.add([key for key in keys if key.key_ID not in before], until)
        if before:
            self.client.accounts.issued_and_burnt(peer_pool.slave_sae, len(before), "seen before")
            log.error("keys_seen_before", kme=self.client.name, slave_sae=peer_pool.slave_sae, number=len(before))
        if len(before) == len(keys):
            raise KMEBadReply(f"{self.client.name}: the KME gave only keys that it gave before")

    # Refill

    def _refill_if_low(self, peer_pool: PeerPool) -> None:
        """Begins a refill below the low mark."""
        limits = self._marks(peer_pool)
        peer_pool.fill_to = limits.high
        peer_pool.filling = peer_pool.filling or len(peer_pool.stock) < limits.low
        if peer_pool.filling and not self._closed:
            self._draw(peer_pool)

    def _marks(self, peer_pool: PeerPool) -> WaterMarks:
        if not peer_pool.prefetched:
            return WaterMarks(0, 0)
        kme_store = self.store(peer_pool.slave_sae)
        bits = kme_store.link.per_second
        others = [
            each for each in self._peer_pools.values() if each.slave_sae == peer_pool.slave_sae and each.prefetched
        ]
        return marks(
            self.prefetch,
            room=self.prefetch.high + len(peer_pool.stock) - sum(len(each.stock) for each in others),
            outage=max(OUTAGE_S, self.undelivered.pause),
            peak_rate=peer_pool.peak.per_second,
            use_rate=kme_store.use.per_second / peer_pool.size,
            latency=self.client.state.latency or 1.0,
            refill_rate=bits / peer_pool.size if bits else None,
            status=kme_store.status,
            given=None if peer_pool.kept_ready else peer_pool.given,
        )

    def _forget_if_idle(self, peer_pool: PeerPool) -> None:
        """Drops an empty, unused pool of one peer and size: one-time pads use many sizes."""
        place = (peer_pool.slave_sae, peer_pool.size)
        if peer_pool.idle and self._peer_pools.get(place) is peer_pool and not goes_on(peer_pool.drawing):
            del self._peer_pools[place]

    def _stopped(self) -> KMEUnreachable:
        return KMEUnreachable(f"{self.client.name}: the drawing of keys was ended")

    def store(self, slave_sae: str) -> KMEStore:
        """The state of the KME's key store for this slave SAE."""
        if slave_sae not in self._kme_stores:
            self._kme_stores[slave_sae] = KMEStore(
                self.client,
                slave_sae,
                self._known_as,
                self._draws_of(slave_sae),
                self._timing,
                began=self._began,
                asks=self._managed and not self._closed,
            )
        return self._kme_stores[slave_sae]

    def _peer_pool(self, slave_sae: str, size: int) -> PeerPool:
        place, clock = (slave_sae, size), self._timing.clock
        if place not in self._peer_pools:
            if len(self._peer_pools) >= MANY_SIZES:
                self.destroy_expired()
            stock = Stock(slave_sae, self.client.accounts, clock)
            self._peer_pools[place] = PeerPool(slave_sae, size, stock, Peak(clock), clock)
        return self._peer_pools[place]
