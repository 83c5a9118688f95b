"""How fast keys come: four figures, each against what a KME with 240 ms handshake and 160 ms a request allows.
Standard: ETSI GS QKD 014 V1.1.1 over real TLS on localhost; the KME is simulated, in this same process.
"""

from __future__ import annotations

import asyncio
import tempfile
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from relay.bench.simulated_kme import SimulatedKME, SimulatedPair
from relay.keys import OptimizedKMClient
from relay.keys.group import KMEGroup, Prefetch
from relay.keys.pads import TAG_OCTETS
from relay.kme import certificates

HANDSHAKE_S = 0.240
REQUEST_S = 0.160


@dataclass(frozen=True, slots=True)
class Figure:
    """One measurement: its value, what it has to be, and whether it is."""

    name: str
    value: float
    unit: str
    target: str
    reached: bool
    details: dict[str, float]


async def bench_keys(seconds: float = 3.0) -> list[Figure]:
    """All four figures, one after the other; each open-ended measurement lasts about `seconds`."""
    with tempfile.TemporaryDirectory() as directory:
        state = Path(directory)
        certificates.prepare(state, "localhost")
        return [
            await sustained_rate(state, seconds),
            await waiting_time(state, seconds),
            await pad_time(state),
            await gathered_calls(state, seconds),
        ]


def as_json(figures: list[Figure]) -> list[dict[str, Any]]:
    """The figures as plain dicts."""
    return [asdict(figure) for figure in figures]


async def sustained_rate(state: Path, seconds: float) -> Figure:
    """256-bit keys a second with many messages at once, against a client that asks for one key a request."""
    async with _kme(state) as kme, _client(state, kme) as client:
        await client.request_enc_keys("bob")
        began, naive = time.monotonic(), 0
        while time.monotonic() - began < seconds:
            naive += len(await client.request_enc_keys("bob", number=1))
        naive_rate = naive / (time.monotonic() - began)
    async with _kme(state) as kme:
        group = KMEGroup("bench", [_client(state, kme)], Prefetch(32, 256))
        await group.take("bob")
        began, end, taken = time.monotonic(), time.monotonic() + seconds, 0

        async def messages() -> int:
            number = 0
            while time.monotonic() < end:
                await group.take("bob")
                number += 1
            return number

        taken = sum(await asyncio.gather(*(messages() for _ in range(64))))
        rate = taken / (time.monotonic() - began)
        await group.close()
    return Figure(
        "sustained keys",
        round(rate / naive_rate, 1),
        "times the naive client",
        "at least 50",
        rate / naive_rate >= 50,
        {"keys_per_s": round(rate, 1), "naive_keys_per_s": round(naive_rate, 2)},
    )


async def waiting_time(state: Path, seconds: float, rate: float = 50.0) -> Figure:
    """How long a message waits for its key while `rate` messages a second find a warm pool."""
    async with _kme(state) as kme:
        group = KMEGroup("bench", [_client(state, kme)], Prefetch(32, 128))
        group.warm("bob")
        await asyncio.gather(*(task for task in asyncio.all_tasks() if task.get_name() == "refill keys"))
        waits = []
        for _ in range(int(seconds * rate)):
            began = time.perf_counter()
            await group.take("bob")
            waits.append(time.perf_counter() - began)
            await asyncio.sleep(1 / rate)
        await group.close()
    waits.sort()
    p99 = waits[int(len(waits) * 0.99)] * 1000
    return Figure(
        "wait for a key, warm pool, p99",
        round(p99, 3),
        "ms",
        "under 1",
        p99 < 1,
        {"median_ms": round(waits[len(waits) // 2] * 1000, 4), "longest_ms": round(waits[-1] * 1000, 3)},
    )


async def pad_time(state: Path, hidden: int = 10_000_000) -> Figure:
    """A pad of 10 MB, against the requests that the KME's limits make necessary, one after the other."""
    async with _kme(state) as kme:
        group = KMEGroup("bench", [_client(state, kme)], Prefetch(0, 0))
        await group.pools[0].limits("bob")
        began = time.monotonic()
        pad = await group.take_pad("bob", hidden)
        took = time.monotonic() - began
        requests = len(kme.got("enc_keys"))
        assert pad.hides >= hidden  # noqa: S101 - a benchmark of something else would be worthless
        await group.close()
    most = (kme.limits["max_key_size"] // 8 - TAG_OCTETS) * kme.limits["max_key_per_request"]
    allowed = -(-hidden // most) * REQUEST_S
    return Figure(
        "pad of 10 MB",
        round(took / allowed, 3),
        "times what the KME's limits allow",
        "at most 1.2",
        took / allowed <= 1.2,
        {"seconds": round(took, 3), "allowed_s": round(allowed, 3), "requests": requests},
    )


async def gathered_calls(state: Path, seconds: float, rate: float = 500.0) -> Figure:
    """Messages in one dec_keys call on average, when `rate` of them arrive a second."""
    async with _kme(state) as kme:
        group = KMEGroup("bench", [_client(state, kme)], Prefetch(0, 0))
        key_IDs = [key_ID for key_ID, _ in kme.pair.draw(int(seconds * rate), 256)]
        began = time.monotonic()
        fetches = []
        for number, key_ID in enumerate(key_IDs):
            if (early := began + number / rate - time.monotonic()) > 0:
                await asyncio.sleep(early)
            fetches.append(asyncio.create_task(group.fetch("alice", [key_ID])))
        answers = await asyncio.gather(*fetches)
        took = time.monotonic() - began
        calls = len(kme.got("dec_keys"))
        await group.close()
    found = sum(len(answer) for answer in answers)
    return Figure(
        "messages in a dec_keys call",
        round(found / calls, 1),
        "messages a call",
        "at least 20",
        found == len(key_IDs) and found / calls >= 20,
        {"messages": found, "calls": calls, "messages_per_s": round(found / took, 1)},
    )


@asynccontextmanager
async def _kme(state: Path) -> AsyncIterator[SimulatedKME]:
    tls = certificates.server_context(state, "KM1")
    async with SimulatedKME(SimulatedPair(), tls, handshake=HANDSHAKE_S, latency=REQUEST_S) as kme:
        yield kme


def _client(state: Path, kme: SimulatedKME) -> OptimizedKMClient:
    return OptimizedKMClient(
        kme.url,
        ca=state / "ca.pem",
        certificate=state / "sae-2.pem",
        key=state / "sae-2.key",
        name="simulated",
        adaptive=True,
    )
