"""One KME of a group: its fresh keys, fetching, and whether it is worth asking now.
Standard: ETSI GS QKD 014 V1.1.1. A caller goes on to the next KME after one attempt.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from typing import Literal, TypeVar

from relay.counting import key_metrics as metrics
from relay.errors import KeyUnavailable, KMEExhausted, KMEUnreachable
from relay.keys.client import KMEClient
from relay.keys.counts import KeyCounts
from relay.keys.fetch import Fetcher
from relay.keys.pads import Pad, PadPlan, pad_of, plan_keys
from relay.keys.pool import KeyPool
from relay.keys.types import KeepKeys, Key, KeyReference, Timing

Taken = TypeVar("Taken", Key, Pad)


class Member:
    """One KME of a group: its fresh keys, fetching, and whether it is worth asking now."""

    def __init__(
        self,
        group: str,
        client: KMEClient,
        pool: KeyPool,
        keep: KeepKeys | None,
        board: KeyCounts,
        timing: Timing,
    ) -> None:
        """The arguments are those of KMEGroup."""
        self.group = group
        self.client = client
        self.pool = pool
        self.clock = timing.clock
        self.waited = {use: board.spread(metrics.KEY_WAIT, group, use) for use in ("key", "pad")}
        """Histogram of the seconds that messages wait for keys from here."""

        def count(outcome: str, number: int) -> None:
            board.add(metrics.KEYS_RECEIVED, group, outcome, by=number)

        self.fetcher = Fetcher(client, keep=keep, count=count)

    @property
    def health(self) -> float:
        """The client's health, rounded: a failure now and then changes no order."""
        return round(self.client.health, 1)

    async def key(self, slave_sae: str, size: int, *, wait: bool) -> Key:
        """A fresh key of `size` bits. `wait` False: one attempt. Raises KeyUnavailable."""
        [key] = await self.pool.take(slave_sae, size, patient=wait)
        return key

    async def pad(self, slave_sae: str, hidden: int, *, wait: bool, master_sae: str | None = None) -> Pad:
        """A one-time pad that hides `hidden` bytes, all or nothing; `wait` as above. Raises KeyUnavailable."""
        plan = await self.plan(slave_sae, hidden)
        keys = await self.pool.take(slave_sae, plan.size, plan.number, patient=wait, prefetched=False)
        references = [KeyReference(key.key_ID, master_sae, slave_sae, self.group) for key in keys]
        pad, discarded = pad_of(keys, references, hidden)
        self.client.accounts.discarded(discarded)
        return pad

    async def plan(self, slave_sae: str, hidden: int) -> PadPlan:
        """The keys needed for a pad that hides `hidden` bytes; 0: one key of the usual size, and no pad."""
        status = await self.pool.store(slave_sae).limits() if hidden else None
        return plan_keys(hidden, status, any_size=self.client.any_size)

    async def supply(self, slave_sae: str, hidden: int) -> int:
        """The cost in bytes of such a pad (0: a key) that is available here now. Asks the KME for its status.

        Raises KeyUnavailable, with the reason.
        """
        name = self.client.name
        if self.client.health == 0:
            raise KMEUnreachable(f"{name}: unreachable: it has not answered of late")
        kme_store = self.pool.store(slave_sae)
        status = await kme_store.ask()
        kme_store.raise_if_another()
        plan = await self.plan(slave_sae, hidden)
        needed = max(0, plan.number - self.pool.ready(slave_sae, plan.size)) * plan.size
        if needed and status is None:
            raise KMEUnreachable(f"{name}: {kme_store.trouble or 'unreachable'}")
        if needed and status is not None and (status.stored_bits or 0) < needed:
            stored = "unknown" if status.stored_bits is None else f"{status.stored_bits} bits"
            raise KMEExhausted(f"{name}: {stored} stored, {needed} bits needed")
        return plan.cost

    async def close(self) -> None:
        """Burns held keys, ends calls in flight, closes the connections."""
        await self.pool.close()
        await self.fetcher.close()
        await self.client.close()


async def first_that_can(
    members: Sequence[Member],
    use: Literal["key", "pad"],
    take: Callable[[Member, bool], Awaitable[Taken]],
    *,
    allowed: Callable[[Member], Awaitable[None]] | None = None,
) -> tuple[Member, Taken]:
    """The first KME that can supply, with the result of `take`; only the last one is waited for, with retries.

    `allowed` raises KeyUnavailable if nothing may be taken. Raises the error of the
    last one.
    """
    began = members[0].clock()
    for member in members:
        try:
            if allowed is not None:
                await allowed(member)
            taken = await take(member, member is members[-1])
        except KeyUnavailable:
            if member is members[-1]:
                raise
        else:
            member.waited[use].observe(member.clock() - began)
            return member, taken
    raise KMEExhausted("no KME is configured")
