"""One KME group as a source of keys: of its KMEs, the healthiest that can is asked.
Standard: ETSI GS QKD 014 V1.1.1; a group is one KME pair or several that share keys, named alike at both sites.

Fresh keys may come from any KME of the group. A key_ID is fetched inside its own group only, from whichever
KME there has it. Who has waited for a KME longer than its answers usually take goes on to the next one; what the first
was asked for goes on too: its keys come into its pool, or into the store, and are there for the next mail.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Awaitable, Callable, Mapping, Sequence
from types import TracebackType
from typing import Literal, Self, TypeVar

from relay.counting import key_metrics as metrics
from relay.errors import KeyUnavailable, KMEExhausted, KMEUnreachable, StoreUnavailable
from relay.keys.client import KMEClient, in_order, once_each
from relay.keys.counts import Board, Numbers
from relay.keys.events import Events
from relay.keys.faults import Call
from relay.keys.fetch import Fetcher
from relay.keys.lag import FIRST_PAUSE_S, LAG_PATIENCE_S, LAG_WAITING, LONGEST_PAUSE_S, Attempts, LagRetries
from relay.keys.pads import Pad, PadPlan, pad_of, plan_keys
from relay.keys.pending import MOST_PER_CALL, Outcome
from relay.keys.pool import KeyPool
from relay.keys.refill import Prefetch, Supply
from relay.keys.replies import KeyStatus
from relay.keys.stock import SeenKeys
from relay.keys.types import REAL_TIME, SAEID, IssuedKeyStore, KeepKeys, Key, KeyReference, Timing

__all__ = ["KMEGroup", "Prefetch"]

log = Events(__name__)

Use = Literal["otp", "aes", "both"]
"""What a group's keys may be used for. Which octets of a key of level otp are known to others, its use decides."""

Taken = TypeVar("Taken", Key, Pad)
Answer = TypeVar("Answer")

USUAL_PREFETCH = Prefetch()

LATE_FOR_S = 30.0
"""A KME that was late is asked after the others for so long; by then its call has failed, and its health tells."""


class Member:
    """One KME of a group: its fresh keys, the keys that are fetched from it, and whether it is worth asking now."""

    def __init__(
        self, group: str, client: KMEClient, pool: KeyPool, keep: KeepKeys | None, board: Board, timing: Timing
    ) -> None:
        """The arguments are those of KMEGroup."""
        self.group = group
        self.client = client
        self.pool = pool
        self.clock = timing.clock
        self._late_until = dict.fromkeys(Call, float("-inf"))
        self.waited = {use: board.spread(metrics.KEY_WAIT, group, use) for use in ("key", "pad")}
        """Where it is noted how many seconds messages wait for keys from here."""

        def count(outcome: str, number: int) -> None:
            board.add(metrics.KEYS_RECEIVED, group, outcome, by=number)

        async def limits(master_sae: str) -> KeyStatus | None:
            return await pool.store(master_sae).limits()

        self.fetcher = Fetcher(client, limits=limits, keep=keep, count=count, timing=timing)

    def health(self, call: Call) -> float:
        """The client's own, roughly, and half of it while the KME is late with such calls.

        Each call by itself: whoever sends forged mail can make dec_keys late, and that alone.
        """
        return round(self.client.health, 1) * (0.5 if self._late_until[call] > self.clock() else 1.0)

    async def key(self, slave_sae: str, size: int, *, wait: bool) -> Key:
        """A fresh key of `size` bits. `wait` False: one try, no longer than answers take. Raises KeyUnavailable."""
        keys = self.pool.take_ready(slave_sae, size)
        if keys is None:
            keys = await self._in_usual_time(self.pool.take(slave_sae, size, patient=wait), wait)
        return keys[0]

    async def pad(self, slave_sae: str, hidden: int, *, wait: bool, master_sae: str | None = None) -> Pad:
        """A one-time pad that hides `hidden` octets, all or nothing; `wait` as above. Raises KeyUnavailable."""
        return await self._in_usual_time(self._pad(slave_sae, hidden, wait, master_sae), wait)

    async def _pad(self, slave_sae: str, hidden: int, wait: bool, master_sae: str | None) -> Pad:
        plan = await self.plan(slave_sae, hidden)
        keys = await self.pool.take(slave_sae, plan.size, plan.number, patient=wait, prefetched=False)
        references = [KeyReference(key.key_ID, master_sae, slave_sae, self.group) for key in keys]
        pad, discarded = pad_of(keys, references, hidden)
        self.client.accounts.discarded(discarded)
        return pad

    async def plan(self, slave_sae: str, hidden: int) -> PadPlan:
        """Of which keys a pad would be made that hides so many octets; 0: one key of the usual size, and no pad."""
        status = await self.pool.store(slave_sae).limits() if hidden else None
        return plan_keys(hidden, status, any_size=self.client.any_size)

    async def supply(self, slave_sae: str, hidden: int) -> Supply:
        """Whether such a pad (0: a key) can be had here now, and if not, when. The KME is asked for its status."""
        name = self.client.name
        if self.client.health == 0:
            return Supply(False, None, f"{name}: unreachable: it has not answered of late")
        kme_store = self.pool.store(slave_sae)
        status = await kme_store.ask()
        try:
            kme_store.raise_if_another()
            plan = await self.plan(slave_sae, hidden)
        except KeyUnavailable as error:
            return Supply(False, None, f"{name}: {error}")
        needed = max(0, plan.number - self.pool.ready(slave_sae, plan.size)) * plan.size
        if needed == 0:
            return Supply(True, 0.0, f"{name}: the keys are in the pool", plan.octets)
        if status is None:
            return Supply(False, None, f"{name}: {kme_store.trouble or 'unreachable'}")
        if status.stored_key_count is None:
            return Supply(False, None, f"{name}: does not say how many keys it has")
        usual = status.key_size or plan.size
        stored = status.stored_key_count * usual
        if stored >= needed:
            return Supply(True, 0.0, f"{name}: {stored} bits stored, {needed} needed", plan.octets)
        if status.max_key_count and needed > status.max_key_count * usual:
            return Supply(False, None, f"{name}: {needed} bits are more than the KME ever stores")
        rate = kme_store.link.per_second
        wait = (needed - stored) / rate if rate else None
        return Supply(False, wait, f"{name}: {stored} bits stored, {needed} needed")

    async def fetch(self, master_sae: str, key_IDs: Sequence[str], tries: int, *, wait: bool) -> dict[str, Outcome]:
        """What became of each key, asked for once; `wait` False: only as long as that usually takes.

        `tries` is how often they were asked for before. Raises KMEUnreachable where that was not long enough.
        """
        answer = self.fetcher.fetch(master_sae, key_IDs, tries)
        if wait:
            return await answer
        status = self.pool.store(master_sae).status
        in_a_call = (status.max_key_per_request if status else None) or MOST_PER_CALL
        usual = self.client.time_limits[Call.DEC_KEYS].usual * math.ceil(len(key_IDs) / in_a_call)
        return await self._unless_late(Call.DEC_KEYS, asyncio.timeout(usual), answer)

    async def close(self) -> None:
        """Burns the keys held, ends the calls under way, closes the connections."""
        await self.pool.close()
        await self.fetcher.close()
        await self.client.close()

    async def _in_usual_time(self, take: Awaitable[Answer], wait: bool) -> Answer:
        """What `take` gives, which draws keys here; unless we `wait`, each answer has to come within its usual time.

        Raises KeyUnavailable.
        """
        if wait:
            return await take
        usual = self.client.time_limits[Call.ENC_KEYS].usual

        def answered() -> None:
            if not limit.expired():
                limit.reschedule(asyncio.get_running_loop().time() + usual)

        limit = asyncio.timeout(usual)
        self.pool.listeners.add(answered)
        try:
            return await self._unless_late(Call.ENC_KEYS, limit, take)
        finally:
            self.pool.listeners.discard(answered)

    async def _unless_late(self, call: Call, limit: asyncio.Timeout, answer: Awaitable[Answer]) -> Answer:
        """The answer. Raises KMEUnreachable past the limit; the call behind it must not end with `answer`."""
        try:
            async with limit:
                return await answer
        except TimeoutError:
            if not limit.expired():
                raise
            self._late_until[call] = self.clock() + LATE_FOR_S
            log.warning("kme_late", kme=self.client.name, call=str(call))
            raise KMEUnreachable(f"{self.client.name}: {call}: no answer within the usual time") from None


async def first_that_can(
    members: Sequence[Member],
    use: Literal["key", "pad"],
    take: Callable[[Member, bool], Awaitable[Taken]],
    *,
    patient: bool = True,
    allowed: Callable[[Member], Awaitable[None]] | None = None,
) -> tuple[Member, Taken]:
    """The first KME that can, with what `take` gives there; only the last is waited for, and asked again and again.

    `patient` False: not even that one. `allowed` raises KeyUnavailable where nothing may be taken. Raises what went
    wrong at the last one.
    """
    trouble: KeyUnavailable = KMEExhausted("no KME is configured")
    began = members[0].clock() if members else 0.0
    for member in members:
        try:
            if allowed is not None:
                await allowed(member)
            taken = await take(member, patient and member is members[-1])
        except KeyUnavailable as error:
            trouble = error
        else:
            member.waited[use].observe(member.clock() - began)
            return member, taken
    raise trouble


class KMEGroup:
    """The keys that the KMEs of one group share, seen from one site: each leaves once, whichever side takes it."""

    def __init__(
        self,
        group: str,
        clients: Sequence[KMEClient],
        prefetch: Prefetch | Mapping[str, Prefetch] = USUAL_PREFETCH,
        *,
        lag_patience: float = LAG_PATIENCE_S,
        lag_waiting: int = LAG_WAITING,
        keep: KeepKeys | None = None,
        board: Board | None = None,
        timing: Timing = REAL_TIME,
        use: Use = "both",
        one_batch: Mapping[str, float] | None = None,
        known_as: Mapping[str, Sequence[str]] | None = None,
    ) -> None:
        """`prefetch` holds for all KMEs, or is given by KME name.

        `lag_patience` is in seconds; `lag_waiting` fetches at once wait for lagging keys. `keep` stores what is fetched
        before anybody gets it.
        `one_batch`, seconds by KME name, is for KMEs that drop undelivered keys (relay.keys.undelivered); `known_as`
        has, by KME name, what each may call us: our SAE ID first.
        """
        self.use: Use = use
        self.group = group
        """The group's name, which travels with every key_ID it issued."""
        self._timing = timing
        self._lag = LagRetries(lag_patience, lag_waiting, timing)
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

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    @property
    def health(self) -> float:
        """From 0, where no KME of the group is worth asking, to 1."""
        return max((member.health(Call.ENC_KEYS) for member in self.members), default=0.0)

    def keep_in(self, keep: KeepKeys, ready: Callable[[], Awaitable[None]]) -> None:
        """From now on `keep` stores every fetched key before anybody gets it; `ready` says whether it could."""
        for member in self.members:
            member.fetcher.keep, member.fetcher.ready = keep, ready

    def remember_in(self, issued: IssuedKeyStore) -> None:
        """From now on every fresh key is written down in `issued` before it can be used; one that was is refused."""
        for pool in self.pools:
            pool.issued.remember_in(issued, self.group)

    def candidates(self, slave_sae: str = "", size: int = 0) -> list[Member]:
        """The KMEs by health; equally good ones in the order of the configuration.

        With `slave_sae` and `size` (bits) only those that have such a key ready, unless none has.
        """
        if len(self.members) == 1:
            return self.members
        with_keys = [member for member in self.members if size and member.pool.ready(slave_sae, size)]
        return sorted(with_keys or self.members, key=lambda member: -member.health(Call.ENC_KEYS))

    async def take(self, slave_sae: SAEID, size: int = 256, *, patient: bool = True) -> Key:
        """A fresh key of `size` bits for `slave_sae`, never handed out again: from a pool, else drawn now.

        Raises KeyUnavailable, and StoreUnavailable while it cannot be remembered that the key was issued.

        `patient` False asks each KME once: there is another group.
        """
        slave_sae = str(slave_sae)
        members = self.candidates(slave_sae, size)
        if members and (keys := members[0].pool.take_ready(slave_sae, size)) is not None:
            members[0].waited["key"].observe(0.0)
            return keys[0]
        _, key = await first_that_can(
            members, "key", lambda member, wait: member.key(slave_sae, size, wait=wait), patient=patient
        )
        return key

    async def take_pad(self, slave_sae: SAEID, hidden: int, *, patient: bool = True) -> Pad:
        """A one-time pad that hides `hidden` octets, all or nothing, from one KME. Raises KeyUnavailable.

        Keys that were drawn for a pad which then could not be completed stay in the pool for the next try
        and expire there. What its keys could hide beyond that is discarded and counted.
        """
        if hidden < 1:
            raise ValueError("a pad hides at least one octet")
        slave_sae, members = str(slave_sae), self.candidates()
        _, pad = await first_that_can(
            members, "pad", lambda member, wait: member.pad(slave_sae, hidden, wait=wait), patient=patient
        )
        return pad

    async def request_dec_keys(self, master_sae: SAEID, key_IDs: Sequence[str]) -> list[Key]:
        """As a client's: the keys with these IDs, in their order, or KeysMissing, which carries those that did come.

        Keys that lag behind are waited for. Raises another KeyUnavailable, too, and TypeError.
        """
        found = await self.fetch(master_sae, once_each(key_IDs))
        return in_order(self.group, key_IDs, found)

    async def can_supply(
        self, slave_sae: SAEID, hidden: int, allowed: Callable[[Member, int], Awaitable[None]] | None = None
    ) -> Supply:
        """Whether a pad that hides `hidden` octets (0: one key of 256 bits) can be had now, and if not, when.

        The KMEs are asked for their status. `allowed` raises KeyUnavailable where so many octets may not be taken.
        """

        async def answer(member: Member) -> Supply:
            supply = await member.supply(str(slave_sae), hidden)
            if supply.now and allowed is not None:
                try:
                    await allowed(member, supply.octets)
                except KeyUnavailable as error:
                    return Supply(False, None, str(error))
            return supply

        answers = await asyncio.gather(*map(answer, self.candidates()))
        return Supply.best(answers, f"group {self.group}: no KME is configured")

    @property
    def refusal(self) -> str:
        """What its KMEs last said to dec_keys where that says nothing of keys; empty where none did."""
        return "; ".join(filter(None, (member.client.state.refusal for member in self.members)))

    async def fetch(
        self,
        master_sae: SAEID,
        key_IDs: Sequence[str],
        *,
        patient: bool = True,
        elsewhere: Callable[[Sequence[str]], Awaitable[dict[str, Key]]] | None = None,
    ) -> dict[str, Key]:
        """The keys that one message names, by ID, drawn by `master_sae`. They leave the KME for good.

        One that is not known yet is asked for again until the lag patience is over (relay.keys.lag); what stays
        unknown is missing from the result. All are asked for together, and no further once one of them is not known: a
        message needs all of its keys.
        `patient` False asks once. `elsewhere` has those that another process of the site got from the KME meanwhile,
        which are not unknown there for lag: it is looked at before each further try. Raises StoreUnavailable when they
        could not be kept, and KeyUnavailable when no KME of the group could be asked; keys that came before are kept
        all the same.
        """
        master_sae, found = str(master_sae), dict[str, Key]()
        attempts = self._lag.attempts(master_sae, key_IDs)
        if await self._all_came(master_sae, key_IDs, attempts, found) or not patient:
            return found
        pause = FIRST_PAUSE_S
        with self._lag.slot(master_sae) as slot:
            while (left := self._lag.left(attempts)) > 0:
                if not await self._lag.pause(slot, min(left, pause * (0.5 + 0.5 * self._timing.chance()))):
                    break
                pause = min(LONGEST_PAUSE_S, pause * 2)
                if elsewhere is not None:
                    found |= await elsewhere([key_ID for key_ID in key_IDs if key_ID not in found])
                if await self._all_came(master_sae, key_IDs, attempts, found):
                    break
        return found

    def warm(self, slave_sae: SAEID, size: int = 256) -> None:
        """Starts to fill the pools for this slave SAE."""
        for pool in self.pools:
            pool.warm(str(slave_sae), size)

    def cool(self, slave_sae: SAEID) -> None:
        """Draws no more ahead of need for this slave SAE; the keys that are there wait until their time is over."""
        for pool in self.pools:
            pool.cool(str(slave_sae))

    def wait_no_more(self) -> None:
        """The relay stops: none is drawn ahead of need, and who waits for a lagging key hears that it is not there."""
        self._lag.stop()
        for pool in self.pools:
            pool.draw_no_more_ahead()

    async def close(self) -> None:
        """Ends the refills and calls under way, burns the keys held, closes the connections."""
        await asyncio.gather(*(member.close() for member in self.members))

    async def _all_came(
        self, master_sae: str, key_IDs: Sequence[str], attempts: Attempts, found: dict[str, Key]
    ) -> bool:
        """Asks the KMEs once, in turn, for those that are not in `found` yet; whether all are there now.

        Raises StoreUnavailable where one that came could not be kept, and what went wrong where none was found so far.
        """
        trouble: KeyUnavailable | None = None
        unstored: StoreUnavailable | None = None
        members, missing = self.members, key_IDs
        if len(members) > 1:
            members = sorted(members, key=lambda member: -member.health(Call.DEC_KEYS))
        for member in members:
            if found:
                missing = [key_ID for key_ID in key_IDs if key_ID not in found]
            if not missing:
                break
            try:
                outcomes = await member.fetch(master_sae, missing, attempts.tries, wait=member is members[-1])
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
        if len(found) == len(set(key_IDs)):
            self._lag.arrived(attempts)
            return True
        if trouble is not None and not found:
            raise trouble
        attempts.tries += 1
        return False
