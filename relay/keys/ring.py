"""All quantum keys of a site, for sealing and opening: peers by name, choice of groups, received keys stored first.
Standard: ETSI GS QKD 014 V1.1.1; a key_ID travels with the name of the group that issued it.

Fresh keys come from the healthiest of a peer's groups. A message's keys come from the store, else only from the
group that the message names.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Self

from relay.counting import key_metrics as metrics
from relay.errors import KeyDestroyed, KeyUnavailable, KMEExhausted, KMEMisconfigured
from relay.keys.counts import KeyCounts, Numbers
from relay.keys.events import Events
from relay.keys.forks import forget_in_children
from relay.keys.group import KMEGroup, Use
from relay.keys.member import Member, first_that_can
from relay.keys.pads import Pad
from relay.keys.pool import KeyPool
from relay.keys.refill import DrawCount, Rate
from relay.keys.report import KeyReport, LevelRow, PoolRow, pool_row
from relay.keys.rotation import KeysInUse, Rotation
from relay.keys.takes import TEXT, Takes, check
from relay.keys.types import (
    REAL_TIME,
    IssuedKeyStore,
    Key,
    KeyReference,
    ReceivedKeyStore,
    SealingKey,
    Timing,
    TrialStore,
    by_origin,
)

if TYPE_CHECKING:
    from relay.formats.cms import KeyUse

log = Events(__name__)

MAINTAIN_EVERY_S = 5.0
"""Interval at which expired keys are destroyed and forecasts are made, in seconds."""

STATUS_EVERY_S = 30.0
"""Interval at which each KME is asked for its status, for the forecasts, in seconds."""

RATE_WINDOW_S = 300.0
"""Averaging window of use rates, in seconds."""


_TAKES = {"own_sae": TEXT, "sae_id": TEXT, "groups": Takes(tuple, "a tuple of names")}


@dataclass(frozen=True, slots=True)
class PeerKeys:
    """Key settings of one peer: its SAE ID, its KME groups (most preferred first), its rotation."""

    sae_id: str
    groups: tuple[str, ...]
    rotation: Rotation = field(default_factory=Rotation)

    def __post_init__(self) -> None:
        """Raises ConfigError."""
        check({"sae_id": self.sae_id or None, "groups": self.groups}, _TAKES)


@dataclass(frozen=True, slots=True)
class SupplyLimits:
    """Per KME: `reserve` keys of the usual size, not for mail of low priority, and the alarm.

    The alarm is raised when the keys will last less than `alarm` seconds at the present rates.
    """

    reserve: int = 0
    alarm: float = 3600.0


class KeyRing:
    """The source of keys for sealing and opening; an async context manager."""

    def __init__(
        self,
        own_sae: str,
        groups: Mapping[str, KMEGroup],
        peers: Mapping[str, PeerKeys],
        *,
        received: ReceivedKeyStore | None = None,
        issued: IssuedKeyStore | None = None,
        trials: TrialStore | None = None,
        limits: Mapping[str, SupplyLimits] | None = None,
        board: KeyCounts | None = None,
        timing: Timing = REAL_TIME,
    ) -> None:
        """`groups` and `peers` are by name, `limits` by KME name. `received` stores keys before they are used.

        `issued` records fresh keys; without it they are recorded only in memory. `trials` records how KMEs treat
        undelivered keys. Keys used by sealed mail are counted on the `board`.
        """
        check({"own_sae": own_sae or None}, _TAKES)
        self._own_sae = own_sae
        self.groups = dict(groups)
        self.peers = dict(peers)
        self._shared = self._shared_with(peers)
        """The groups that we share with each peer, most preferred first."""
        self._received = received
        self._limits = dict(limits or {})
        self._timing = timing
        self._board = board or Numbers()
        for pool in self._pools():
            pool.client.accounts.peers = {peer.sae_id: name for name, peer in peers.items()}
        self._in_use = KeysInUse(timing.clock)
        self._began = timing.clock()
        self._level_use: dict[tuple[str, str], Rate] = {}
        self._level_keys: dict[tuple[str, str], int] = {}
        self._maintaining: asyncio.Task[None] | None = None
        forget_in_children(self)
        if received is not None:
            for name, group in self.groups.items():
                group.keep_in(partial(received.put, name), received.ready)
        if issued is not None:
            for group in self.groups.values():
                group.remember_in(issued)
        if trials is not None:
            for pool in self._pools():
                pool.undelivered.trials = trials

    def forked(self) -> None:
        """As for all."""
        self._in_use.forget_all()
        self._maintaining = None

    async def __aenter__(self) -> Self:
        self.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    def share(self, draws_of: Callable[[str, str], DrawCount], *, first: bool) -> None:
        """Shares the KMEs with other processes of the relay; call it before anything is drawn.

        `draws_of` returns the shared count for a KME (by name) and slave SAE. Only the `first` process draws from KMEs
        that drop undelivered keys.
        """
        for pool in self._pools():
            pool.count_in(partial(draws_of, pool.client.name))
            pool.undelivered.for_others = not first

    @property
    def drop_undelivered(self) -> list[str]:
        """The names of those KMEs that were seen to drop undelivered keys."""
        return [pool.client.name for pool in self._pools() if pool.undelivered.dropped]

    def start(self) -> None:
        """Starts filling and maintaining the pools, until `close`."""
        if self._maintaining is None:
            for pool in self._pools():
                pool.undelivered.serve(self._own_sae)
            for sae_id, group in self._shared_groups():
                self._warm(sae_id, group)
            self._maintaining = asyncio.create_task(self._maintain_until_closed(), name="maintain keys")

    def set_peers(self, peers: Mapping[str, PeerKeys]) -> None:
        """Sets the peers; stops drawing keys for removed ones."""
        for name in self.peers.keys() | peers.keys():
            if peers.get(name) != self.peers.get(name):
                self._in_use.forget(name)
        self.peers, self._shared = dict(peers), self._shared_with(peers)
        needed = self._shared_groups()
        for group in self.groups.values():
            for sae_id in {sae_id for pool in group.pools for sae_id, _ in pool.held()}:
                if (sae_id, group) not in needed:
                    group.cool(sae_id)
        if self._maintaining is not None:
            for sae_id, group in needed:
                self._warm(sae_id, group)

    def renew_certificates(self, *, anyway: bool = False) -> None:
        """Reloads changed certificate files, or all with `anyway` (SIGHUP); unusable ones are ignored."""
        for pool in self._pools():
            pool.client.renew_certificates(anyway=anyway)

    def stop_waiting(self) -> None:
        """At shutdown: ends all waits; mail without keys stays with its sender."""
        for group in self.groups.values():
            group.stop_waiting()

    async def close(self) -> None:
        """Ends all background work, burns the keys held, closes all connections."""
        maintaining, self._maintaining = self._maintaining, None
        if maintaining is not None:
            maintaining.cancel()
            await asyncio.gather(maintaining, return_exceptions=True)
        self._in_use.forget_all()
        await asyncio.gather(*(group.close() for group in self.groups.values()))

    async def take(self, peer: str, *, level: str = "aes", size: int = 0, low_priority: bool = False) -> SealingKey:
        """A 256-bit key for one message of `size` bytes to `peer`, with its reference. Raises KeyUnavailable.

        It is fresh, except at level "aes" if the peer's rotation lets one key wrap several messages.
        """
        rules = self._peer(peer)
        sae_id, rotates = rules.sae_id, level == "aes" and rules.rotation.max_messages > 1
        if rotates and (taken := self._in_use.reuse(peer, rules.rotation, size)):
            return taken
        members = self._candidates(peer, "aes", 256)
        member = members[0]
        if not low_priority and (keys := member.pool.take_ready(sae_id, 256)) is not None:
            [key] = keys
            member.waited["key"].observe(0.0)
        else:
            member, key = await first_that_can(
                members,
                "key",
                lambda member, wait: member.key(sae_id, 256, wait=wait),
                allowed=partial(self._allow_low_priority, sae_id, 0) if low_priority else None,
            )
        taken = SealingKey(key, KeyReference(key.key_ID, self._own_sae, sae_id, member.group))
        if rotates and self.peers.get(peer) == rules:
            self._in_use.begin(peer, rules.rotation, size, taken)
        self._count(peer, level, bits=len(key.key) * 8, keys=1)
        return taken

    async def take_pad(self, peer: str, hidden: int, *, level: str = "otp", low_priority: bool = False) -> Pad:
        """A one-time pad that hides `hidden` bytes for `peer`, all or nothing. Raises KeyUnavailable."""
        sae_id = self._peer(peer).sae_id
        _, pad = await first_that_can(
            self._candidates(peer, "otp"),
            "pad",
            lambda member, wait: member.pad(sae_id, hidden, wait=wait, master_sae=self._own_sae),
            allowed=partial(self._allow_low_priority, sae_id, hidden) if low_priority else None,
        )
        self._count(peer, level, bits=8 * pad.cost, keys=len(pad.keys))
        return pad

    async def can_supply(self, peer: str, hidden: int, *, low_priority: bool = False) -> int:
        """The cost in bytes of a pad that hides `hidden` bytes (0: one key of 256 bits), available for `peer` now.

        With `low_priority` reserved keys do not count. Raises KeyUnavailable, with the reason at the first KME.
        """
        sae_id, trouble = self._peer(peer).sae_id, list[KeyUnavailable]()
        for member in self._candidates(peer, "otp" if hidden else "aes"):
            try:
                cost = await member.supply(sae_id, hidden)
                if low_priority:
                    await self._leave_the_reserve(sae_id, member, cost)
                return cost
            except KeyUnavailable as error:
                trouble.append(error)
        raise trouble[0]

    async def fetch(
        self, references: Iterable[KeyReference], *, use: KeyUse | None = None, patient: bool = True
    ) -> dict[KeyReference, Key]:
        """The keys that a sealed message names: from the store, else from their KME, and then stored.

        The caller (relay/journey/opening) has checked whose keys the message may name. A key
        that its KME does not know is missing from the result; `patient` False does not wait for the lag between the
        KMEs. Raises KeyDestroyed and KeyUsed, as a rule before any KME is asked; StoreUnavailable, and KeyUnavailable
        when no KME of the group could be asked.
        """
        found: dict[KeyReference, Key] = {}
        try:
            for origin, named in by_origin(references).items():
                found |= await self._fetch_from(*origin, named, use=use, patient=patient)
        except BaseException:
            for (group, master_sae), named in by_origin(found).items():
                self.groups[group].give_back(master_sae, [found[reference] for reference in named])
            raise
        return found

    async def _fetch_from(
        self, group: str, master_sae: str, named: Sequence[KeyReference], *, use: KeyUse | None, patient: bool
    ) -> dict[KeyReference, Key]:
        """The same for the keys of one group."""
        if group not in self.groups:
            raise KMEMisconfigured(f"KME group {group!r} is not configured")
        by_ID = {reference.key_ID: reference for reference in named}
        keys: dict[str, Key] = {}
        if self._received is None or not self._received.has_none_of(group, master_sae, by_ID):
            keys = await self._held(group, master_sae, list(by_ID), use)
        if missing := [key_ID for key_ID in by_ID if key_ID not in keys]:
            stored = partial(self._held, group, master_sae, use=use)
            trouble: KeyUnavailable | None = None
            try:
                keys |= await self.groups[group].fetch(master_sae, missing, patient=patient, elsewhere=stored)
            except KeyUnavailable as error:
                trouble = error
            # A key fetched by another relay of the site is in the store by now.
            if late := [key_ID for key_ID in missing if key_ID not in keys]:
                keys |= await self._held(group, master_sae, late, use)
            if trouble is not None and any(key_ID not in keys for key_ID in late):
                raise trouble
        return {reference: keys[key_ID] for key_ID, reference in by_ID.items() if key_ID in keys}

    async def report(self, *, ask: bool = True) -> KeyReport:
        """The report of `keys status`; with `ask` it requests the status of each KME first."""
        if ask:
            await self._ask_all()
        pools = list(self.pool_rows())
        return KeyReport(pools, list(self._level_rows(pools)))

    async def maintain(self, *, ask: bool) -> None:
        """Destroys expired keys, and refills empty pools.

        With `ask` it requests the KMEs' status first.
        """
        self.renew_certificates()
        for pool in self._pools():
            pool.maintain()
        if ask:
            await self._ask_all()

    async def _maintain_until_closed(self) -> None:
        asked = float("-inf")
        while True:
            now = self._timing.clock()
            ask = now - asked >= STATUS_EVERY_S
            asked = now if ask else asked
            try:
                await self.maintain(ask=ask)
            except Exception as error:  # noqa: BLE001 - expired keys must be destroyed despite any failure
                log.error("keys_not_tended", cause=f"{type(error).__name__}: {error}")
            await self._timing.sleep(MAINTAIN_EVERY_S)

    async def _ask_all(self) -> None:
        questions = [
            pool.store(peer.sae_id).ask()
            for name, peer in self.peers.items()
            for group in self._shared[name]
            for pool in group.pools
            if pool.client.health > 0
        ]
        await asyncio.gather(*questions)

    def _candidates(self, peer: str, use: Use, size: int = 0) -> list[Member]:
        """The KMEs to ask in turn, of the healthiest group first; `size` as for KMEGroup.candidates.

        Raises KMEMisconfigured if no group serves the level.
        """
        groups, sae_id = [each for each in self._shared[peer] if each.use in (use, "both")], self.peers[peer].sae_id
        if not groups:
            names = ", ".join(self.peers[peer].groups) or "none"
            raise KMEMisconfigured(f"no KME group for SAE {sae_id} serves level {use}; its groups: {names}")
        if len(groups) == len(groups[0].members) == 1:  # the common case: no choice
            return groups[0].members
        groups = sorted(groups, key=lambda group: -round(group.health, 1))
        return [member for group in groups for member in group.candidates(sae_id, size)]

    async def _allow_low_priority(self, sae_id: str, hidden: int, member: Member) -> None:
        """Raises KMEExhausted if a pad that hides `hidden` bytes (0: a key) would touch the reserve."""
        await self._leave_the_reserve(sae_id, member, (await member.plan(sae_id, hidden)).cost)

    async def _leave_the_reserve(self, sae_id: str, member: Member, size: int) -> None:
        """Raises KMEExhausted if taking `size` bytes would touch this KME's reserve for mail of normal priority.

        Keys of other KMEs of the group do not count: they may be unavailable when needed.
        """
        pool = member.pool
        reserve = self._limits.get(pool.client.name, SupplyLimits()).reserve
        if not reserve:
            return
        usual = (status.key_size if (status := await pool.store(sae_id).limits()) else None) or 256
        if pool.bits_at_hand(sae_id) - 8 * size < reserve * usual:
            raise KMEExhausted(f"{pool.client.name}: what is left is reserved for mail of normal priority")

    async def _held(self, group: str, master_sae: str, key_IDs: Sequence[str], use: KeyUse | None) -> dict[str, Key]:
        """The keys that are in the store. Raises KeyDestroyed, KeyUsed and StoreUnavailable."""
        if self._received is None:
            return {}
        held, destroyed = await self._received.look(group, master_sae, key_IDs, use)
        if destroyed:
            key_ID = min(destroyed)
            raise KeyDestroyed(f"key {key_ID} was destroyed after its use: this is a copy, or mail too late")
        return {key_ID: Key(key_ID, octets) for key_ID, octets in held.items()}

    def _shared_with(self, peers: Mapping[str, PeerKeys]) -> dict[str, list[KMEGroup]]:
        return {
            name: [self.groups[group] for group in peer.groups if group in self.groups] for name, peer in peers.items()
        }

    def _shared_groups(self) -> set[tuple[str, KMEGroup]]:
        """The peers' SAE IDs, each with a group that we share with it."""
        return {(peer.sae_id, group) for name, peer in self.peers.items() for group in self._shared[name]}

    @staticmethod
    def _warm(sae_id: str, group: KMEGroup) -> None:
        if group.use != "otp":  # pads have no usual size, and are drawn on demand
            group.warm(sae_id)

    def _peer(self, name: str) -> PeerKeys:
        if name not in self.peers:
            raise KMEMisconfigured(f"peer {name!r} is not configured")
        return self.peers[name]

    def _pools(self) -> Iterator[KeyPool]:
        for group in self.groups.values():
            yield from group.pools

    def _count(self, peer: str, level: str, *, bits: int, keys: int) -> None:
        place = (peer, level)
        if place not in self._level_use:
            self._level_use[place] = Rate(RATE_WINDOW_S, self._timing.clock, began=self._began)
        self._level_use[place].add(bits)
        self._level_keys[place] = self._level_keys.get(place, 0) + keys
        self._board.add(metrics.KEY_BITS_USED, peer, level, by=bits)

    def alarm(self, kme: str) -> float:
        """The alarm threshold of this KME, in seconds."""
        return self._limits.get(kme, SupplyLimits()).alarm

    def pool_rows(self) -> Iterable[PoolRow]:
        """One row for each KME and peer, from what is known now."""
        for name, peer in self.peers.items():
            for group in self._shared[name]:
                for pool in group.pools:
                    limits = self._limits.get(pool.client.name, SupplyLimits())
                    yield pool_row(group.group, name, peer.sae_id, pool, reserve=limits.reserve, alarm=limits.alarm)

    def _level_rows(self, pools: Sequence[PoolRow]) -> Iterable[LevelRow]:
        for (peer, level), rate in sorted(self._level_use.items()):
            mine = [row for row in pools if row.peer == peer]
            yield LevelRow.of(peer, level, rate.lasting, self._level_keys[peer, level], mine)
