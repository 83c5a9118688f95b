"""A long run against KMEs that fail at random: keys drawn at one site are fetched at the other, all the time.
Promised are exact accounts, no key twice, no key lost that was given, no growth, and messages whenever keys exist.
"""

from __future__ import annotations

import asyncio
import os
import random
import tempfile
import time
from collections import Counter
from contextlib import AsyncExitStack, suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path

from relay.errors import KeyUnavailable
from relay.keys import OptimizedKMClient
from relay.keys.group import KMEGroup, Prefetch
from relay.keys.health import BreakerRules
from relay.keys.ring import KeyRing, PeerKeys
from relay.keys.types import Key, KeyReference
from relay.kme import DevelopmentKME, KMERequest, LinkSettings, Misbehaviour, SimulatedLink, certificates
from tests.bench.result import BenchResult, Progress, machine
from tests.testlib.counted import burnt_by_cause

FAILURES = (
    *(Misbehaviour(kind) for kind in ("drop", "lose_reply", "hang_in_body", "hang", "close_unsaid")),
    *(Misbehaviour(kind) for kind in ("short", "lower_case", "object_keys", "bad_base64", "other_keys")),
    *(Misbehaviour(kind) for kind in ("wrong_length", "repeat_ids", "same_again", "same_octets")),
    *(Misbehaviour("http", code, "<html>") for code in (500, 502, 503, 504)),
    Misbehaviour("http", 429, headers=(("Retry-After", "0.2"),)),
)

ALICE, BOB = "2", "1"
LINK = LinkSettings(key_rate=0, stored_key_limit=1_000_000_000, lifetime=86_400, max_sae_id_count=0)

_FAILING = 0.3
"""The share of calls that go wrong."""
_PAUSE_S = 0.01
"""Pause between two messages, in seconds."""
_PAD_SHARE = 0.1
_PAD_OCTETS = 5_000
_GROWTH_ALLOWED = 48 * 2**20
_LONGEST_SILENCE_S = 15.0


@dataclass(slots=True)
class SoakFigures:
    """What happened. `faults` is empty when all promises were kept."""

    seconds: float = 0.0
    sent: int = 0
    opened: int = 0
    held_for_keys: int = 0
    lost_by_kme: int = 0
    longest_silence_s: float = 0.0
    failures_made: int = 0
    requests: int = 0
    memory_growth: int = 0
    tasks_left: int = 0
    accounts: dict[str, dict[str, int]] = field(default_factory=dict)
    burnt_by_cause: dict[str, int] = field(default_factory=dict)
    faults: list[str] = field(default_factory=list)

    def shown(self) -> BenchResult:
        """As it is printed."""
        data = asdict(self)
        rows = [(name.replace("_", " "), str(value)) for name, value in data.items()]
        return BenchResult(("what", "found"), rows, data, notes=str(machine()), names=2, faults=self.faults)


class _Dice:
    """Decides for each request whether the KME fails, and how."""

    def __init__(self) -> None:
        self._chance = random.Random()
        self.requests = self.failures = 0

    def __call__(self, _request: KMERequest) -> Misbehaviour | None:
        self.requests += 1
        if self._chance.random() >= _FAILING:
            return None
        self.failures += 1
        return self._chance.choice(FAILURES)


async def soak(seconds: float, *, progress: Progress) -> BenchResult:
    """Sends messages for `seconds` while each KME call may fail."""
    dice, result, link = _Dice(), SoakFigures(), SimulatedLink(LINK, time.monotonic)
    before = asyncio.all_tasks()
    with tempfile.TemporaryDirectory() as directory:
        state = Path(directory)
        certificates.prepare(state, "localhost")
        async with AsyncExitStack() as stack:
            kmes: list[DevelopmentKME] = []
            for name, other in (("KM1", "KM2"), ("KM1", "KM2"), ("KM2", "KM1"), ("KM2", "KM1")):
                kme = DevelopmentKME(name, link, certificates.server_context(state, name), other=other)
                kme.latency, kme.decide = 0.005, dice
                kmes.append(await stack.enter_async_context(kme))
            alice, bob = _ring(ALICE, BOB, kmes[:2], state), _ring(BOB, ALICE, kmes[2:], state)
            alice.start()
            bob.start()
            await _Messages(alice, bob, link, result, progress).for_seconds(seconds)
            _check_accounts(alice, result)
            await alice.close()
            await bob.close()
            _check_accounts(alice, result, closed=True)
            if result.accounts["together"]["issued"] < link.issued["KM1"]:
                result.faults.append(f"the KMEs issued {link.issued['KM1']} keys, more than were entered")
    await asyncio.sleep(0.1)
    result.tasks_left = len(asyncio.all_tasks() - before)
    result.requests, result.failures_made = dice.requests, dice.failures
    if result.tasks_left:
        result.faults.append(f"{result.tasks_left} tasks are left")
    return result.shown()


@dataclass(slots=True)
class _Messages:
    """The messages of one soak, from Alice's ring to Bob's."""

    _alice: KeyRing
    _bob: KeyRing
    _link: SimulatedLink
    _result: SoakFigures
    _progress: Progress
    _used: set[int] = field(default_factory=set)
    _last_opened: float = 0.0
    _until: float = 0.0
    _chance: random.Random = field(default_factory=lambda: random.Random(1))

    async def for_seconds(self, seconds: float) -> None:
        """Sends, waits for the last message, and checks what can be checked on the way."""
        began = self._last_opened = time.monotonic()
        self._until = began + seconds
        settled: int | None = None
        messages: set[asyncio.Task[None]] = set()
        while (now := time.monotonic()) - began < seconds:
            message = asyncio.create_task(self._message())
            messages.add(message)
            message.add_done_callback(messages.discard)
            if settled is None and now - began > seconds * 0.4:
                settled = _resident()
            self._progress(f"{self._result.opened} of {self._result.sent} opened", (now - began) / seconds)
            await asyncio.sleep(_PAUSE_S)
        memory = _resident()
        if messages:
            await asyncio.wait(messages)
        self._result.seconds = round(time.monotonic() - began, 1)
        self._result.memory_growth = memory - (settled or memory)
        if self._result.memory_growth > _GROWTH_ALLOWED:
            self._result.faults.append(f"memory grew by {self._result.memory_growth} bytes")
        if self._result.longest_silence_s > _LONGEST_SILENCE_S:
            self._result.faults.append(f"no message for {self._result.longest_silence_s} s")

    async def _message(self) -> None:
        try:
            sealed = await self._sealed()
        except KeyUnavailable:
            self._result.held_for_keys += 1
            return
        self._result.sent += 1
        for reference, _ in sealed:
            mark = hash(reference.key_ID)
            if mark in self._used:
                self._result.faults.append(f"key {reference.key_ID} was used twice")
            self._used.add(mark)
        await self._open(sealed)

    async def _sealed(self) -> list[tuple[KeyReference, bytes]]:
        if self._chance.random() >= _PAD_SHARE:
            taken = await self._alice.take(BOB)
            return [(taken.reference, taken.key.key)]
        with await self._alice.take_pad(BOB, _PAD_OCTETS) as pad:
            return [(key.reference, bytes(key.octets)) for key in pad.keys]

    async def _open(self, sealed: list[tuple[KeyReference, bytes]]) -> None:
        """Fetches as a mail queue would: again while the KME has a key and cannot be asked for it."""
        keys: dict[KeyReference, Key] = {}
        for _ in range(50):
            with suppress(KeyUnavailable):
                keys |= await self._bob.fetch([one for one, _ in sealed if one not in keys])
            if all(self._may_be_lost(one) for one, _ in sealed if one not in keys):
                break
            await asyncio.sleep(0.2)
        for reference, octets in sealed:
            key = keys.get(reference)
            if key is None:
                self._result.lost_by_kme += 1
                if not self._may_be_lost(reference):
                    self._result.faults.append(f"key {reference.key_ID} was delivered or there, and is lost")
            elif key.key[: len(octets)] != octets:
                self._result.faults.append(f"key {reference.key_ID} is not the same at both sites")
        if len(keys) == len(sealed):
            self._result.opened += 1
        now = min(time.monotonic(), self._until)
        self._result.longest_silence_s = max(self._result.longest_silence_s, round(now - self._last_opened, 2))
        self._last_opened = now

    def _may_be_lost(self, reference: KeyReference) -> bool:
        """Whether a KME spent this key without our getting it (or the key is too old to be known here)."""
        issued = self._link.keys.get(reference.key_ID)
        return issued is None or bool(issued.lost)


def _ring(own: str, other: str, kmes: list[DevelopmentKME], state: Path) -> KeyRing:
    clients = [
        OptimizedKMClient(
            kme.url,
            ca=state / "ca.pem",
            certificate=state / f"sae-{own}.pem",
            key=state / f"sae-{own}.key",
            name=f"{kme.name}-{number}",
            retry_attempts=2,
            retry_delay=0.05,
            timeout=1.0,
            adaptive=True,
            burn_budget=1_000_000,
            breaker=BreakerRules(delay=0.5, longest=2.0, misconfigured=1.0),
        )
        for number, kme in enumerate(kmes)
    ]
    group = KMEGroup("soak", clients, Prefetch(16, 64, 20.0), lag_patience=5.0)
    return KeyRing(own, {"soak": group}, {other: PeerKeys(other, ("soak",))})


def _check_accounts(ring: KeyRing, result: SoakFigures, *, closed: bool = False) -> None:
    together: Counter[str] = Counter()
    causes: Counter[str] = Counter()
    for group in ring.groups.values():
        for pool in group.pools:
            totals = pool.client.accounts.totals()
            result.accounts[pool.client.name] = totals
            together.update(totals)
            causes.update(burnt_by_cause(pool.client.accounts))
            held = sum(pool.held().values())
            if totals["in_pool"] != held or (closed and held):
                result.faults.append(f"{pool.client.name}: {held} keys in the pool, the accounts say {totals}")
    result.accounts["together"] = dict(together)
    result.burnt_by_cause = dict(causes)


def _resident() -> int:
    """Bytes of memory that this process holds (Linux; 0 elsewhere)."""
    try:
        pages = Path("/proc/self/statm").read_text().split()[1]
    except OSError:
        return 0
    return int(pages) * os.sysconf("SC_PAGE_SIZE")
