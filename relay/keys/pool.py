"""One KME's fresh keys: those that are ready, the drawing of more, and the refill that runs ahead of need.
Standard: ETSI GS QKD 014 V1.1.1, 5.3; one enc_keys is in flight for each (KME, slave SAE), and never hedged.

Whoever needs keys waits for a drawing that belongs to the pool: when they give up, the keys that
come are still there for the next one.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from dataclasses import replace
from typing import Any, TypeVar

from relay.errors import (
    KeyUnavailable,
    KMEBadReply,
    KMEExhausted,
    KMEMisconfigured,
    KMEUnreachable,
    StoreUnavailable,
)
from relay.keys.client import KMEClient
from relay.keys.events import Complaint, Events
from relay.keys.faults import Call, KMERefusedRequest
from relay.keys.own_name import another_name
from relay.keys.refill import OUTAGE_S, BatchLimit, DrawCount, Draws, LinkRate, Peak, Prefetch, Rate, WaterMarks, marks
from relay.keys.replies import KeyStatus
from relay.keys.stock import KMEStore, PeerPool, SeenKeys, Stock, Waiter, under_way
from relay.keys.types import REAL_TIME, IssuedKeyStore, Key, Timing
from relay.keys.undelivered import Undelivered

log = Events(__name__)

Task = TypeVar("Task")

LONGEST_BACKOFF_S = 5.0
"""A KME that ran out of keys is asked again after this time at the latest."""

USE_WINDOW_S = 300.0
"""The use rate is averaged over this time."""

STATUS_RETRY_S = 30.0
"""After a status call that failed, limits are taken as unknown for this long."""


class KeyPool:
    """The keys that one KME issues to us, for all slave SAEs and sizes."""

    def __init__(
        self,
        client: KMEClient,
        prefetch: Prefetch,
        seen: SeenKeys,
        timing: Timing = REAL_TIME,
        *,
        draw: Callable[..., Awaitable[list[Key]]] | None = None,
        one_batch: float = 0.0,
        known_as: Sequence[str] = (),
    ) -> None:
        """`draw` stands for the client's own request_enc_keys where that one asks here.

        `one_batch`, seconds: the KME drops undelivered keys (see relay.keys.undelivered); 0: it keeps them.
        `known_as`: our SAE ID, and what else the KME may call us; empty: whatever it calls us.
        """
        self.undelivered = Undelivered(client, one_batch, timing.clock)
        self.client = client
        self._draw_keys = draw or client.request_enc_keys
        self.prefetch = prefetch
        self._seen = seen
        self._known_as = known_as
        self._timing = timing
        self._peer_pools: dict[tuple[str, int], PeerPool] = {}
        self._kme_stores: dict[str, KMEStore] = {}
        self._began = timing.clock()
        self._closed = False
        self._draws_of: Callable[[str], DrawCount] = lambda _: Draws()
        self._issued: IssuedKeyStore | None = None
        self._group = ""
        self.withheld = ""
        """Why no key is drawn, while the store cannot remember any."""
        self.listeners: set[Callable[[], None]] = set()
        """Called after each answer of the KME."""

    @property
    def trouble(self) -> str:
        """What a person has to do something about; empty when all is well."""
        troubles = list(self.client.troubles.values())
        if self.withheld:
            troubles.append(f"no keys are drawn, the store cannot remember them: {self.withheld}")
        if self.undelivered.dropped:
            troubles.append(
                "the KME drops keys that the peer has not fetched when more are asked for: they are drawn one batch at "
                f"a time, as with one_batch_at_a_time = {self.undelivered.one_batch:.0f}"
            )
        return "; ".join(troubles)

    def count_in(self, draws_of: Callable[[str], DrawCount]) -> None:
        """What is drawn for a slave SAE is counted there; to be called before the first is."""
        self._draws_of = draws_of

    def remember_in(self, issued: IssuedKeyStore, group: str) -> None:
        """From now on a key that was `issued` to this KME group before is refused, and others are noted there first."""
        self._issued, self._group = issued, group

    def ready(self, slave_sae: str, size: int) -> int:
        """How many keys of this kind can be had without asking the KME."""
        peer_pool = self._peer_pools.get((slave_sae, size))
        if peer_pool is None:
            return 0
        peer_pool.stock.destroy_expired()
        return len(peer_pool.stock)

    def held(self, slave_sae: str | None = None) -> dict[tuple[str, int], int]:
        """How many keys are in the pool, by slave SAE and size in bits; of one slave SAE or of all."""
        return {
            place: len(peer_pool.stock)
            for place, peer_pool in self._peer_pools.items()
            if slave_sae in (None, peer_pool.slave_sae)
        }

    def refill_rate(self, slave_sae: str) -> float | None:
        """Bits a second that the link was seen to make, or None before that is known."""
        return self._kme_store(slave_sae).link.per_second

    def use_rate(self, slave_sae: str) -> float:
        """Bits a second that left the pool to seal messages, averaged over some minutes."""
        return self._kme_store(slave_sae).use.per_second

    def bits_at_hand(self, slave_sae: str) -> int:
        """Bits in the pool and, as it said last, in the KME's store, without those drawn since and those waited for."""
        kme_store = self._kme_store(slave_sae)
        stored = (kme_store.status.stored_bits or 0) if kme_store.status else 0
        mine = [each for each in self._peer_pools.values() if each.slave_sae == slave_sae]
        left = sum(each.size * (len(each.stock) - each.wanted) for each in mine)
        return max(0, stored - (kme_store.draws.total - kme_store.drawn_before_status)) + left

    def known_status(self, slave_sae: str) -> KeyStatus | None:
        """What the KME said last of its store for this slave SAE."""
        return self._kme_store(slave_sae).status

    def status_trouble(self, slave_sae: str) -> str:
        """Why its last answer to status is of no use, or for whom it takes us there; "" where all is well."""
        kme_store = self._kme_store(slave_sae)
        return kme_store.status_trouble or str(kme_store.another_name or "")

    def raise_if_another(self, slave_sae: str) -> None:
        """Raises KMEMisconfigured where the KME has said that it takes us for another SAE."""
        found = self._kme_store(slave_sae).another_name
        if found is not None and found.certain:
            raise KMEMisconfigured(f"{self.client.name}: {found}")

    async def take(
        self, slave_sae: str, size: int, number: int = 1, *, patient: bool = True, prefetched: bool = True
    ) -> list[Key]:
        """`number` keys, all or none: from the pool, else drawn now. Raises KeyUnavailable and StoreUnavailable.

        What was drawn for a request that then fails stays in the pool. `prefetched` False (one-time pads)
        draws what is asked for and no more; `patient` False tries each request once.
        """
        if (keys := self.take_ready(slave_sae, size, number, prefetched=prefetched)) is not None:
            return keys
        peer_pool = self._peer_pool(slave_sae, size)
        peer_pool.fill_to = self._marks(peer_pool).high
        keys = await self._wait_for(peer_pool, number, patient)
        self._gave(peer_pool, number)
        return keys

    def take_ready(self, slave_sae: str, size: int, number: int = 1, *, prefetched: bool = True) -> list[Key] | None:
        """As `take`, where the keys are in the pool and nobody waits for them; else None."""
        peer_pool = self._peer_pools.get((slave_sae, size)) or self._peer_pool(slave_sae, size)
        peer_pool.prefetched = peer_pool.prefetched or (prefetched and self.prefetch.high > 0)
        keys = None if peer_pool.queue else peer_pool.stock.pop(number)
        if keys is not None:
            self._gave(peer_pool, number)
        return keys

    def _gave(self, peer_pool: PeerPool, number: int) -> None:
        """Keys have left the pool: learns from it, and has more drawn where few are left."""
        kme_store = peer_pool.kme_store
        kme_store.used_at = self._timing.clock()
        kme_store.use.add(number * peer_pool.size)
        peer_pool.peak.add(number)
        if peer_pool.prefetched:
            self._refill_if_low(peer_pool)
        else:
            self._forget_if_idle(peer_pool)

    async def _wait_for(self, peer_pool: PeerPool, number: int, patient: bool) -> list[Key]:
        """Waits in the queue; who is first in it has keys drawn until there are enough for it.

        When drawing fails, it fails for all who wait: asking again for each of them would only take longer.
        """
        me = Waiter(number)
        peer_pool.queue.append(me)
        try:
            while peer_pool.queue[0] is not me and me.error is None:
                await me.turn.wait()
            if me.error is not None:
                raise me.error
            # Each drawing adds a key, so this ends; the limit is for keys that expire as fast as they come.
            for drawn in range(2 * number + 4):
                if (keys := peer_pool.stock.pop(number)) is not None:
                    return keys
                if drawn and self.undelivered.one_batch:
                    raise KMEExhausted(f"{self.client.name}: {number} keys did not come in one batch")
                await self._drawn(peer_pool, patient)
            raise KMEExhausted(f"{self.client.name}: keys expire before {number} of them are there")
        except (KeyUnavailable, StoreUnavailable) as error:
            for other in peer_pool.queue:
                other.error = error
                other.turn.set()
            raise
        finally:
            peer_pool.queue.remove(me)
            if peer_pool.queue:
                peer_pool.queue[0].turn.set()
            self._forget_if_idle(peer_pool)

    async def limits(self, slave_sae: str) -> KeyStatus | None:
        """The KME's limits as it gave them last; asked for once, None where it does not say.

        The asking belongs to the pool: who gives up waiting for it leaves it to the others.
        """
        kme_store = self._kme_store(slave_sae)
        if kme_store.status is None and not under_way(kme_store.asking):
            if self._closed or self._since_asked(kme_store) < STATUS_RETRY_S:
                return None
            kme_store.asking = _begun(self.ask_status(slave_sae), "ask for status")
        if kme_store.asking is not None and not kme_store.asking.done():
            await asyncio.wait([kme_store.asking])
        return kme_store.status

    async def ask_status(self, slave_sae: str) -> KeyStatus | None:
        """Asks the KME for its status now and learns from it; None where it does not say."""
        kme_store = self._kme_store(slave_sae)
        kme_store.asked = self._timing.clock()
        drawn = kme_store.draws.total
        try:
            status = await self.client.check_key_status(slave_sae, patient=False)
        except KeyUnavailable as error:
            kme_store.status_fails.say(kme=self.client.name, slave_sae=slave_sae, cause=str(error))
            kme_store.status_trouble = f"unreachable: {error}" if isinstance(error, KMEUnreachable) else str(error)
            return None
        kme_store.status_fails.over()
        kme_store.status_trouble = ""
        self._answered()
        kme_store.status = status
        self._compare_names(kme_store, status, slave_sae)
        kme_store.drawn_before_status = drawn
        if status.stored_key_count is not None and status.key_size:
            full = bool(status.max_key_count) and status.stored_key_count >= (status.max_key_count or 0)
            kme_store.link.stored(status.stored_key_count * status.key_size, drawn, full=full)
        return status

    def _compare_names(self, kme_store: KMEStore, status: KeyStatus, slave_sae: str) -> None:
        found = kme_store.another_name = another_name(status, self._known_as, slave_sae)
        for complaint, certain in ((kme_store.takes_us, True), (kme_store.may_take_us, False)):
            if found is not None and found.certain == certain:
                names = {"named": found.named, "sae_id": found.ours}
                complaint.say(kme=self.client.name, slave_sae=slave_sae, **names, cause=str(found))
            else:
                complaint.over()

    def warm(self, slave_sae: str, size: int = 256) -> None:
        """Draws a few keys for this slave SAE, as many as the low mark, so that its first messages need not wait.

        More are for those who use them: what a quiet relay has drawn is burnt with each restart.
        """
        peer_pool = self._peer_pool(slave_sae, size)
        peer_pool.prefetched = self.prefetch.high > 0
        self._refill_if_low(peer_pool, to_high=bool(self.undelivered.one_batch))

    def cool(self, slave_sae: str) -> None:
        """Draws no more ahead of need for this slave SAE."""
        for peer_pool in self._peer_pools.values():
            if peer_pool.slave_sae == slave_sae:
                peer_pool.prefetched, peer_pool.fill_to = False, 0

    def draw_no_more_ahead(self) -> None:
        """For nobody, and for good: the relay stops, and what is in the pool will be burnt."""
        self.prefetch = replace(self.prefetch, low=0, high=0)
        for slave_sae, _ in list(self._peer_pools):
            self.cool(slave_sae)

    def destroy_expired(self) -> int:
        """Destroys keys whose time is over, in all stocks; returns how many."""
        expired = 0
        for peer_pool in list(self._peer_pools.values()):
            expired += peer_pool.stock.destroy_expired() + self._burn_unrecorded(peer_pool)
            self._forget_if_idle(peer_pool)
        return expired

    def keep_ready(self) -> None:
        """Draws a few keys, as many as the low mark, where less are left, though nobody needs any at present."""
        for peer_pool in self._peer_pools.values():
            backing_off = self._timing.clock() < peer_pool.not_before
            if peer_pool.prefetched and not backing_off and not under_way(peer_pool.refill):
                self._refill_if_low(peer_pool, to_high=bool(self.undelivered.one_batch))

    async def close(self) -> None:
        """Ends all drawing and burns what is in the pool; the client stays open."""
        self._closed = True
        peer_pools = list(self._peer_pools.values())
        tasks: list[asyncio.Task[Any] | None] = [kme_store.asking for kme_store in self._kme_stores.values()]
        for peer_pool in peer_pools:
            tasks += [peer_pool.refill, peer_pool.drawing]
        running = [task for task in tasks if task is not None]
        for task in running:
            task.cancel()
        await asyncio.gather(*running, return_exceptions=True)
        burnt = sum(peer_pool.stock.burn_all("relay stops") for peer_pool in peer_pools)
        burnt += sum(self._burn_unrecorded(peer_pool, all_of_them=True) for peer_pool in peer_pools)
        self._peer_pools.clear()
        if burnt:
            log.info("keys_burnt", kme=self.client.name, number=burnt, cause="relay stops")

    def _since_asked(self, kme_store: KMEStore) -> float:
        """Seconds since the KME was last asked for its status."""
        return float("inf") if kme_store.asked is None else self._timing.clock() - kme_store.asked

    # Drawing

    async def _drawn(self, peer_pool: PeerPool, patient: bool) -> None:
        """Waits for the drawing that is under way, or for a new one. Raises what went wrong with it."""
        if self._closed:
            raise KMEUnreachable(f"{self.client.name}: the relay stops")
        if (wait := peer_pool.not_before - self._timing.clock()) > 0:
            kinds = (KMEExhausted, StoreUnavailable)
            kind = next((kind for kind in kinds if isinstance(peer_pool.trouble, kind)), KMEBadReply)
            raise kind(f"not asked again for {wait:.1f} s: {peer_pool.trouble}")
        task = peer_pool.drawing
        if task is None or task.done():
            task = peer_pool.drawing = _begun(self._draw(peer_pool, patient), "draw keys")
        await asyncio.wait([task])
        if task.cancelled():
            raise KMEUnreachable(f"{self.client.name}: the relay stops")
        if error := task.exception():
            raise error

    async def _draw(self, peer_pool: PeerPool, patient: bool) -> None:
        """One request for as many keys as are wanted now and the KME gives at once."""
        kme_store = peer_pool.kme_store
        if kme_store.status is None:
            await self.limits(peer_pool.slave_sae)
        elif kme_store.another_name is not None and self._since_asked(kme_store) >= STATUS_RETRY_S:
            await self.ask_status(peer_pool.slave_sae)  # it may have been mended there meanwhile
        # Before any is drawn: no peer finds a key under the name that we would write into the mail.
        self.raise_if_another(peer_pool.slave_sae)
        try:
            self._burn_unrecorded(peer_pool)
            if not peer_pool.unrecorded:
                await self._store_ready()
                await self.undelivered.find_out(peer_pool.slave_sae, kme_store.status)
                if self.undelivered.one_batch:
                    self._make_room(peer_pool)
                missing = max(peer_pool.wanted, peer_pool.fill_to) - len(peer_pool.stock)
                most = kme_store.batch.most(kme_store.status.max_key_per_request if kme_store.status else None)
                number = max(1, min(missing, most))
                peer_pool.unrecorded = await self._request(peer_pool, number, patient)
                kme_store.draws.add(sum(len(key.key) * 8 for key in peer_pool.unrecorded))
                peer_pool.unrecorded_until = self._timing.clock() + self.prefetch.lifetime
            before = await self._issued_before(peer_pool)
            # Out of there only now: a store that cannot be written for a moment burns none.
            keys, peer_pool.unrecorded = peer_pool.unrecorded, []
            self._put_in_stock(peer_pool, keys, before)
        except (KMEExhausted, KMERefusedRequest, KMEBadReply, StoreUnavailable) as error:
            # No more of these is asked for until a while that doubles is over: the KME has none, or the store no place.
            peer_pool.backoff = min(LONGEST_BACKOFF_S, max(0.25, peer_pool.backoff * 2))
            peer_pool.not_before = self._timing.clock() + peer_pool.backoff * (0.5 + 0.5 * self._timing.chance())
            peer_pool.trouble = error
            raise
        peer_pool.backoff = peer_pool.not_before = 0.0

    async def _request(self, peer_pool: PeerPool, number: int, patient: bool) -> list[Key]:
        """Asks for `number` keys, and for less where the KME has not or does not accept that many.

        Which of the two it is, the status tells, whatever the refusal says.
        """
        refused_more = False
        while True:
            try:
                keys = await self._draw_keys(peer_pool.slave_sae, number, peer_pool.size, patient=patient)
            except (KMEExhausted, KMERefusedRequest):
                if number == 1:
                    raise
                status = await self.ask_status(peer_pool.slave_sae)
                bits = status.stored_bits if status else None
                short = bits is not None and bits < number * peer_pool.size
                number = max(1, (bits or 0) // peer_pool.size) if short else number // 2
                refused_more = not short
            else:
                self._answered()
                peer_pool.kme_store.status_trouble = ""  # of when it was away; the next status says whether it lasts
                peer_pool.kme_store.batch.took(number, refused_more=refused_more)
                return keys

    def _answered(self) -> None:
        for tell in tuple(self.listeners):
            tell()

    def _make_room(self, peer_pool: PeerPool) -> None:
        """Before the next batch from a KME that drops undelivered keys: those still here would be of no use to a peer.

        Raises KMEExhausted while keys of the last batch may be on their way.
        """
        together = [each for each in self._peer_pools.values() if each.slave_sae == peer_pool.slave_sae]
        if any(each.queue or under_way(each.drawing) for each in together if each is not peer_pool):
            raise KMEExhausted(f"{self.client.name}: one batch at a time, and another one is being drawn")
        self.undelivered.raise_if_early(peer_pool.kme_store.used_at)
        burnt = sum(each.stock.burn_all("overtaken") for each in together)
        if burnt:
            log.info("keys_burnt", kme=self.client.name, slave_sae=peer_pool.slave_sae, number=burnt, cause="overtaken")

    # What was issued is remembered first

    async def _store_ready(self) -> None:
        """Returns when keys could be remembered now. Raises StoreUnavailable: then none is drawn."""
        if self._issued is None:
            return
        try:
            await self._issued.ready()
        except StoreUnavailable as error:
            if not self.withheld:
                log.error("keys_not_drawn", kme=self.client.name, cause=str(error))
            self.withheld = str(error)
            raise
        self._store_is_well()

    def _store_is_well(self) -> None:
        if self.withheld:
            log.info("keys_drawn_again", kme=self.client.name)
        self.withheld = ""

    async def _issued_before(self, peer_pool: PeerPool) -> frozenset[str]:
        """The key_IDs of those unrecorded that may not be used. What is new has been written down when this returns."""
        if self._issued is None:
            return frozenset()
        try:
            before = await self._issued.remember(self._group, {key.key_ID: key.key for key in peer_pool.unrecorded})
        except StoreUnavailable as error:
            log.error(
                "issued_keys_not_remembered",
                kme=self.client.name,
                slave_sae=peer_pool.slave_sae,
                number=len(peer_pool.unrecorded),
                cause=str(error),
            )
            self.withheld = str(error)
            raise
        self._store_is_well()
        return before

    def _burn_unrecorded(self, peer_pool: PeerPool, *, all_of_them: bool = False) -> int:
        """Of those that could not be remembered in time nothing may come; returns how many that were."""
        if not peer_pool.unrecorded or not (all_of_them or peer_pool.unrecorded_until <= self._timing.clock()):
            return 0
        burnt, peer_pool.unrecorded = len(peer_pool.unrecorded), []
        self.client.accounts.issued_and_burnt(peer_pool.slave_sae, burnt, "not remembered")
        return burnt

    def _put_in_stock(self, peer_pool: PeerPool, keys: list[Key], before: frozenset[str]) -> None:
        if before:
            self.client.accounts.issued_and_burnt(peer_pool.slave_sae, len(before), "seen before")
            fresh = [key for key in keys if key.key_ID not in before]
        else:
            fresh = keys
        refused = len(before) + peer_pool.stock.add(fresh, until=peer_pool.unrecorded_until)
        if refused:
            log.error("keys_seen_before", kme=self.client.name, slave_sae=peer_pool.slave_sae, number=refused)
        if refused == len(keys):
            raise KMEBadReply(f"{self.client.name}: the KME gave only keys that it gave before")

    # Refill

    def _refill_if_low(self, peer_pool: PeerPool, *, to_high: bool = True) -> None:
        """Begins a refill where fewer keys are left than the low mark; `to_high` False goes no further than that."""
        found = self._marks(peer_pool)
        peer_pool.fill_to = found.high if to_high else found.low
        if len(peer_pool.stock) < found.low and not self._closed and not under_way(peer_pool.refill):
            peer_pool.refill = _begun(self._refill(peer_pool), "refill keys")

    async def _refill(self, peer_pool: PeerPool) -> None:
        """Draws until the pool is as full as it should be; any failure ends it, and it is begun again later."""
        try:
            while len(peer_pool.stock) < (1 if self.undelivered.one_batch else peer_pool.fill_to):
                await self._drawn(peer_pool, patient=True)
            peer_pool.refill_fails.over()
        except (KeyUnavailable, StoreUnavailable) as error:
            peer_pool.refill_fails.say(kme=self.client.name, slave_sae=peer_pool.slave_sae, cause=str(error))

    def _marks(self, peer_pool: PeerPool) -> WaterMarks:
        if not peer_pool.prefetched:
            return WaterMarks(0, 0)
        bits, one_batch = peer_pool.kme_store.link.per_second, self.undelivered.one_batch
        found = marks(
            self.prefetch,
            outage=max(OUTAGE_S, one_batch),
            peak_rate=peer_pool.peak.per_second,
            latency=self.client.time_limits[Call.ENC_KEYS].latency or 1.0,
            refill_rate=bits / peer_pool.size if bits else None,
            status=peer_pool.kme_store.status,
        )
        # What is left of a batch is lost with the next one, so that one is drawn when nothing is left.
        return WaterMarks(min(found.low, 1), found.high) if one_batch else found

    def _forget_if_idle(self, peer_pool: PeerPool) -> None:
        """Forgets a pool of one peer and size that is empty and that nobody uses: one-time pads come in many sizes."""
        if peer_pool.idle and self._timing.clock() >= peer_pool.not_before:
            self._peer_pools.pop((peer_pool.slave_sae, peer_pool.size), None)

    def _kme_store(self, slave_sae: str) -> KMEStore:
        if slave_sae not in self._kme_stores:
            clock = self._timing.clock
            self._kme_stores[slave_sae] = KMEStore(
                LinkRate(clock),
                Rate(USE_WINDOW_S, clock, began=self._began),
                BatchLimit(clock),
                Complaint(log.info, log.debug, "kme_status_unknown", clock),
                Complaint(log.error, log.debug, "kme_takes_us_for_another", clock),
                Complaint(log.warning, log.debug, "kme_may_take_us_for_another", clock),
                self._draws_of(slave_sae),
            )
        return self._kme_stores[slave_sae]

    def _peer_pool(self, slave_sae: str, size: int) -> PeerPool:
        place, clock = (slave_sae, size), self._timing.clock
        if place not in self._peer_pools:
            stock = Stock(slave_sae, self.prefetch.lifetime, self.client.accounts, self._seen, clock)
            complaint = Complaint(log.warning, log.debug, "key_refill_failed", clock)
            kme_store = self._kme_store(slave_sae)
            self._peer_pools[place] = PeerPool(slave_sae, size, stock, kme_store, Peak(clock), complaint)
        return self._peer_pools[place]


def _begun(work: Coroutine[Any, Any, Task], name: str) -> asyncio.Task[Task]:
    """A task whose error is seen, in case that nobody waits for it any more."""
    task = asyncio.create_task(work, name=name)
    task.add_done_callback(lambda task: None if task.cancelled() else task.exception())
    return task
