"""One KME's fresh keys: those that are ready, the drawing of more, and the refill that runs ahead of need.
Standard: ETSI GS QKD 014 V1.1.1, 5.3; one enc_keys is in flight for each (KME, slave SAE), and never hedged.

Whoever needs keys waits for a drawing that belongs to the pool, not to him: when he gives up, the keys that
come are still there for the next one.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

from relay.errors import KeyUnavailable, KMEBadReply, KMEExhausted, KMEUnreachable, StoreUnavailable
from relay.keys.client import KMEClient
from relay.keys.events import Complaint, Events
from relay.keys.faults import KMERefusedRequest
from relay.keys.refill import BatchLimit, Marks, Peak, Prefetch, Rate, Refill, marks
from relay.keys.replies import KeyStatus
from relay.keys.stock import SeenKeys, Shelf, Slave, Stock, Waiter
from relay.keys.types import REAL_TIME, IssuedKeys, Key, Timing
from relay.keys.undelivered import Undelivered

log = Events(__name__)

LONGEST_REST_S = 5.0
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
    ) -> None:
        """`draw` stands for the client's own request_enc_keys where that one asks here.

        `one_batch`, seconds: the KME drops undelivered keys (see relay.keys.undelivered); 0: it keeps them.
        """
        self.undelivered = Undelivered(client, one_batch, timing.clock)
        self.client = client
        self._draw_keys = draw or client.request_enc_keys
        self.prefetch = prefetch
        self._seen = seen
        self._timing = timing
        self._shelves: dict[tuple[str, int], Shelf] = {}
        self._slaves: dict[str, Slave] = {}
        self._began = timing.clock()
        self._closed = False
        self._issued: IssuedKeys | None = None
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

    def remember_in(self, issued: IssuedKeys, group: str) -> None:
        """From now on a key that was `issued` to this KME group before is refused, and others are noted there first."""
        self._issued, self._group = issued, group

    def ready(self, slave_sae: str, size: int) -> int:
        """How many keys of this kind can be had without asking the KME."""
        shelf = self._shelves.get((slave_sae, size))
        if shelf is None:
            return 0
        shelf.stock.destroy_expired()
        return len(shelf.stock)

    def held(self, slave_sae: str | None = None) -> dict[tuple[str, int], int]:
        """How many keys are in the pool, by slave SAE and size in bits; of one slave SAE or of all."""
        return {
            place: len(shelf.stock) for place, shelf in self._shelves.items() if slave_sae in (None, shelf.slave_sae)
        }

    def refill_rate(self, slave_sae: str) -> float | None:
        """Bits a second that the link was seen to make, or None before that is known."""
        return self._slave(slave_sae).refill.per_second

    def use_rate(self, slave_sae: str) -> float:
        """Bits a second that left the pool to seal messages, averaged over some minutes."""
        return self._slave(slave_sae).use.per_second

    def bits_at_hand(self, slave_sae: str) -> int:
        """Bits in the pool and, as it said last, in the KME's store."""
        status = self._slave(slave_sae).status
        stored = (status.stored_bits or 0) if status else 0
        return stored + sum(size * number for (_, size), number in self.held(slave_sae).items())

    def known_status(self, slave_sae: str) -> KeyStatus | None:
        """What the KME said last of its store for this slave SAE."""
        return self._slave(slave_sae).status

    async def take(
        self, slave_sae: str, size: int, number: int = 1, *, patient: bool = True, prefetched: bool = True
    ) -> list[Key]:
        """`number` keys, all or none: from the pool, else drawn now. Raises KeyUnavailable and StoreUnavailable.

        What was drawn for a request that then fails stays in the pool. `prefetched` False (one-time pads)
        draws what is asked for and no more; `patient` False tries each request once.
        """
        if (keys := self.take_ready(slave_sae, size, number, prefetched=prefetched)) is not None:
            return keys
        shelf = self._shelf(slave_sae, size)
        shelf.fill_to = self._marks(shelf).high if shelf.prefetched else 0
        keys = await self._wait_for(shelf, number, patient)
        self._gave(shelf, number)
        return keys

    def take_ready(self, slave_sae: str, size: int, number: int = 1, *, prefetched: bool = True) -> list[Key] | None:
        """As `take`, where the keys are in the pool and nobody waits for them; else None."""
        shelf = self._shelf(slave_sae, size)
        shelf.prefetched = shelf.prefetched or (prefetched and self.prefetch.on)
        keys = None if shelf.queue else shelf.stock.pop(number)
        if keys is not None:
            self._gave(shelf, number)
        return keys

    def _gave(self, shelf: Shelf, number: int) -> None:
        """Keys have left the pool: learns from it, and has more drawn where few are left."""
        shelf.peak.add(number)
        slave = self._slave(shelf.slave_sae)
        slave.used_at = self._timing.clock()
        slave.use.add(number * shelf.size)
        if shelf.prefetched:
            self._refill_if_low(shelf, raise_to_high=True)
        else:
            self._put_away(shelf)

    async def _wait_for(self, shelf: Shelf, number: int, patient: bool) -> list[Key]:
        """Waits in the queue; who is first in it has keys drawn until there are enough for him.

        When drawing fails, it fails for all who wait: asking again for each of them would only take longer.
        """
        me = Waiter(number)
        shelf.queue.append(me)
        try:
            while shelf.queue[0] is not me and me.error is None:
                await me.turn.wait()
            if me.error is not None:
                raise me.error
            # Each drawing adds a key, so this ends; the limit is for keys that expire as fast as they come.
            for drawn in range(2 * number + 4):
                if (keys := shelf.stock.pop(number)) is not None:
                    return keys
                if drawn and self.undelivered.one_batch:
                    raise KMEExhausted(f"{self.client.name}: {number} keys did not come in one batch")
                await self._drawn(shelf, patient)
            raise KMEExhausted(f"{self.client.name}: keys expire before {number} of them are there")
        except (KeyUnavailable, StoreUnavailable) as error:
            for other in shelf.queue:
                other.error = error
                other.turn.set()
            raise
        finally:
            shelf.queue.remove(me)
            if shelf.queue:
                shelf.queue[0].turn.set()
            self._put_away(shelf)

    async def limits(self, slave_sae: str) -> KeyStatus | None:
        """The KME's limits as it gave them last; asked for once, None where it does not say.

        The asking belongs to the pool: who gives up waiting for it leaves it to the others.
        """
        slave = self._slave(slave_sae)
        now = self._timing.clock()
        if slave.looking is None and slave.status is None:
            if self._closed or (slave.asked is not None and now - slave.asked < STATUS_RETRY_S):
                return None
            slave.looking = asyncio.create_task(self.ask_status(slave_sae), name="ask for status")
            slave.looking.add_done_callback(lambda task: self._looked(slave, task))
        if slave.looking is not None:
            await asyncio.wait([slave.looking])
        return slave.status

    def _looked(self, slave: Slave, task: asyncio.Task[KeyStatus | None]) -> None:
        slave.looking = None
        if not task.cancelled():
            task.exception()  # seen here, in case that nobody waits any more

    async def ask_status(self, slave_sae: str) -> KeyStatus | None:
        """Asks the KME for its status now and learns from it; None where it does not say."""
        slave = self._slave(slave_sae)
        slave.asked = self._timing.clock()
        try:
            status = await self.client.check_key_status(slave_sae, patient=False)
        except KeyUnavailable as error:
            slave.status_fails.say(kme=self.client.name, slave_sae=slave_sae, cause=str(error))
            return None
        slave.status_fails.over()
        self._answered()
        slave.status = status
        if status.stored_key_count is not None and status.key_size:
            full = bool(status.max_key_count) and status.stored_key_count >= (status.max_key_count or 0)
            slave.refill.stored(status.stored_key_count * status.key_size, full=full)
        return status

    def warm(self, slave_sae: str, size: int = 256) -> None:
        """Starts to fill the pool for this slave SAE, so that its first message need not wait."""
        shelf = self._shelf(slave_sae, size)
        shelf.prefetched = self.prefetch.on
        shelf.fill_to = self._marks(shelf).high
        self._refill_if_low(shelf)

    def destroy_expired(self) -> int:
        """Destroys keys whose time is over, in all stocks; returns how many."""
        expired = 0
        for shelf in list(self._shelves.values()):
            expired += shelf.stock.destroy_expired() + self._burn_old_ones_aside(shelf)
            self._put_away(shelf)
        return expired

    def keep_ready(self) -> None:
        """Draws a few keys, as many as the low mark, where less are left, though nobody needs any at present."""
        for shelf in self._shelves.values():
            if shelf.prefetched and shelf.refill is None and self._timing.clock() >= shelf.not_before:
                marks_of_it = self._marks(shelf)
                shelf.fill_to = marks_of_it.high if self.undelivered.one_batch else marks_of_it.low
                self._refill_if_low(shelf)

    async def close(self) -> None:
        """Ends all drawing and burns what is in the pool; the client stays open."""
        self._closed = True
        shelves = list(self._shelves.values())
        tasks = [task for shelf in shelves for task in (shelf.refill, shelf.drawing)]
        running = [task for task in (*tasks, *(slave.looking for slave in self._slaves.values())) if task is not None]
        for task in running:
            task.cancel()
        await asyncio.gather(*running, return_exceptions=True)
        burnt = sum(shelf.stock.burn_all("relay stops") for shelf in shelves)
        burnt += sum(self._burn_old_ones_aside(shelf, all_of_them=True) for shelf in shelves)
        self._shelves.clear()
        if burnt:
            log.info("keys_burnt", kme=self.client.name, number=burnt, cause="relay stops")

    async def _drawn(self, shelf: Shelf, patient: bool) -> None:
        """Waits for the drawing that is under way, or for a new one. Raises what went wrong with it."""
        if self._closed:
            raise KMEUnreachable(f"{self.client.name}: the relay stops")
        self._raise_if_resting(shelf)
        if shelf.drawing is None:
            shelf.drawing = asyncio.create_task(self._draw(shelf, patient), name="draw keys")
            shelf.drawing.add_done_callback(lambda task: self._drawing_ended(shelf, task))
        task = shelf.drawing
        await asyncio.wait([task])
        if task.cancelled():
            raise KMEUnreachable(f"{self.client.name}: the relay stops")
        if error := task.exception():
            raise error

    def _drawing_ended(self, shelf: Shelf, task: asyncio.Task[None]) -> None:
        shelf.drawing = None
        if not task.cancelled():
            task.exception()  # seen here, in case that nobody waits any more

    async def _draw(self, shelf: Shelf, patient: bool) -> None:
        """One request for as many keys as are wanted now and the KME gives at once."""
        slave = self._slave(shelf.slave_sae)
        await self.limits(shelf.slave_sae)
        try:
            self._burn_old_ones_aside(shelf)
            if not shelf.aside:
                await self._store_ready()
                await self.undelivered.find_out(shelf.slave_sae, slave.status)
                if self.undelivered.one_batch:
                    self._make_room(shelf, slave)
                missing = max(shelf.wanted, shelf.fill_to) - len(shelf.stock)
                most = slave.batch.most(slave.status.max_key_per_request if slave.status else None)
                number = max(1, min(missing, most))
                shelf.aside = await self._request(shelf, slave, number, patient)
                shelf.aside_until = self._timing.clock() + self.prefetch.lifetime
            before = await self._issued_before(shelf)
            # Out of there only now: a store that cannot be written for a moment burns none.
            keys, shelf.aside = shelf.aside, []
            self._put_in_stock(shelf, keys, before)
        except (KMEExhausted, KMERefusedRequest, KMEBadReply, StoreUnavailable) as error:
            self._give_rest(shelf, error)
            raise
        shelf.rest = shelf.not_before = 0.0
        slave.refill.drawn(sum(len(key.key) * 8 for key in keys))

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

    def _make_room(self, shelf: Shelf, slave: Slave) -> None:
        """Before the next batch from a KME that drops undelivered keys: those still here would be of no use to a peer.

        Raises KMEExhausted while keys of the last batch may be on their way.
        """
        together = [each for each in self._shelves.values() if each.slave_sae == shelf.slave_sae]
        others = [each for each in together if each is not shelf]
        if any(other.queue or other.drawing for other in others):
            raise KMEExhausted(f"{self.client.name}: one batch at a time, and another one is being drawn")
        self.undelivered.raise_if_early(slave.used_at)
        burnt = sum(each.stock.burn_all("overtaken") for each in together)
        if burnt:
            log.info("keys_burnt", kme=self.client.name, slave_sae=shelf.slave_sae, number=burnt, cause="overtaken")

    async def _issued_before(self, shelf: Shelf) -> frozenset[str]:
        """The key_IDs of those aside that may not be used. What is new has been written down when this returns."""
        if self._issued is None:
            return frozenset()
        try:
            before = await self._issued.remember(self._group, {key.key_ID: key.key for key in shelf.aside})
        except StoreUnavailable as error:
            log.error(
                "issued_keys_not_remembered",
                kme=self.client.name,
                slave_sae=shelf.slave_sae,
                number=len(shelf.aside),
                cause=str(error),
            )
            self.withheld = str(error)
            raise
        self._store_is_well()
        return before

    def _burn_old_ones_aside(self, shelf: Shelf, *, all_of_them: bool = False) -> int:
        """Of those that could not be remembered in time nothing may come; returns how many that were."""
        if not shelf.aside or not (all_of_them or shelf.aside_until <= self._timing.clock()):
            return 0
        burnt, shelf.aside = len(shelf.aside), []
        self.client.accounts.issued_and_burnt(shelf.slave_sae, burnt, "not remembered")
        return burnt

    def _put_in_stock(self, shelf: Shelf, keys: list[Key], before: frozenset[str]) -> None:
        if before:
            self.client.accounts.issued_and_burnt(shelf.slave_sae, len(before), "seen before")
        fresh = [key for key in keys if key.key_ID not in before]
        refused = len(before) + shelf.stock.add(fresh, until=shelf.aside_until)
        if refused:
            log.error("keys_seen_before", kme=self.client.name, slave_sae=shelf.slave_sae, number=refused)
        if refused == len(keys):
            raise KMEBadReply(f"{self.client.name}: the KME gave only keys that it gave before")

    async def _request(self, shelf: Shelf, slave: Slave, number: int, patient: bool) -> list[Key]:
        """Asks for `number` keys, and for less where the KME has not or does not accept that many.

        Which of the two it is, the status tells, whatever the refusal says.
        """
        refused_more = False
        while True:
            try:
                keys = await self._draw_keys(shelf.slave_sae, number, shelf.size, patient=patient)
            except (KMEExhausted, KMERefusedRequest):
                if number == 1:
                    raise
                status = await self.ask_status(shelf.slave_sae)
                bits = status.stored_bits if status else None
                short = bits is not None and bits < number * shelf.size
                number = max(1, (bits or 0) // shelf.size) if short else number // 2
                refused_more = not short
            else:
                self._answered()
                slave.batch.took(number, refused_more=refused_more)
                return keys

    def _answered(self) -> None:
        for tell in tuple(self.listeners):
            tell()

    def _give_rest(self, shelf: Shelf, error: KeyUnavailable | StoreUnavailable) -> None:
        """Asks for no more of these for a while that doubles: the KME has none for us now, or the store no place."""
        shelf.rest = min(LONGEST_REST_S, max(0.25, shelf.rest * 2))
        shelf.not_before = self._timing.clock() + shelf.rest * (0.5 + 0.5 * self._timing.chance())
        shelf.trouble = error

    def _raise_if_resting(self, shelf: Shelf) -> None:
        wait = shelf.not_before - self._timing.clock()
        if wait > 0:
            kind = next(
                (kind for kind in (KMEExhausted, StoreUnavailable) if isinstance(shelf.trouble, kind)), KMEBadReply
            )
            raise kind(f"not asked again for {wait:.1f} s: {shelf.trouble}")

    def _refill_if_low(self, shelf: Shelf, *, raise_to_high: bool = False) -> None:
        found = self._marks(shelf)
        if raise_to_high:
            shelf.fill_to = found.high
        if shelf.prefetched and not self._closed and shelf.refill is None and len(shelf.stock) < found.low:
            shelf.refill = asyncio.create_task(self._refill(shelf), name="refill keys")
            shelf.refill.add_done_callback(lambda _task: self._refill_ended(shelf))

    def _refill_ended(self, shelf: Shelf) -> None:
        shelf.refill = None

    async def _refill(self, shelf: Shelf) -> None:
        """Draws until the shelf is as full as it should be; any failure ends it, and it is begun again later."""
        try:
            while len(shelf.stock) < (1 if self.undelivered.one_batch else shelf.fill_to):
                await self._drawn(shelf, patient=True)
            shelf.refill_fails.over()
        except (KeyUnavailable, StoreUnavailable) as error:
            shelf.refill_fails.say(kme=self.client.name, slave_sae=shelf.slave_sae, cause=str(error))

    def _put_away(self, shelf: Shelf) -> None:
        """Forgets a shelf that is empty and that nobody uses: one-time pads come in many sizes."""
        if shelf.idle and self._timing.clock() >= shelf.not_before:
            self._shelves.pop((shelf.slave_sae, shelf.size), None)

    def _marks(self, shelf: Shelf) -> Marks:
        slave = self._slave(shelf.slave_sae)
        bits = slave.refill.per_second
        one_batch = self.undelivered.one_batch
        found = marks(
            self.prefetch,
            outage=one_batch,
            peak_rate=shelf.peak.per_second,
            latency=self.client.latency or 1.0,
            refill_rate=bits / shelf.size if bits else None,
            status=slave.status,
        )
        # What is left of a batch is lost with the next one, so that one is drawn when nothing is left.
        return Marks(min(found.low, 1), found.high) if one_batch else found

    def _slave(self, slave_sae: str) -> Slave:
        if slave_sae not in self._slaves:
            self._slaves[slave_sae] = Slave(
                Refill(self._timing.clock),
                Rate(USE_WINDOW_S, self._timing.clock, began=self._began),
                BatchLimit(self._timing.clock),
                Complaint(log.info, log.debug, "kme_status_unknown", self._timing.clock),
            )
        return self._slaves[slave_sae]

    def _shelf(self, slave_sae: str, size: int) -> Shelf:
        place = (slave_sae, size)
        if place not in self._shelves:
            stock = Stock(
                slave_sae,
                lifetime=self.prefetch.lifetime,
                accounts=self.client.accounts,
                seen=self._seen,
                clock=self._timing.clock,
            )
            complaint = Complaint(log.warning, log.debug, "key_refill_failed", self._timing.clock)
            self._shelves[place] = Shelf(slave_sae, size, stock, Peak(self._timing.clock), complaint)
        return self._shelves[place]
