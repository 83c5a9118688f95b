"""How fast keys come: four figures, each against what a KME with 240 ms handshake and 160 ms a request allows.
The development KMEs, over real TLS on localhost, run in this same process.
"""

from __future__ import annotations

import asyncio
import tempfile
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

from relay.bench.result import BenchResult, Progress, machine
from relay.keys import OptimizedKMClient
from relay.keys.group import KMEGroup, Prefetch
from relay.keys.pads import TAG_OCTETS
from relay.kme import DevelopmentKME, DevelopmentKMEs, LinkSettings

HANDSHAKE_S = 0.240
REQUEST_S = 0.160
SECONDS = 3.0
"""How long each open-ended measurement lasts."""

ALICE, BOB = "2", "1"
LINK = LinkSettings(key_rate=0, stored_key_limit=10_000_000)


@dataclass(frozen=True, slots=True)
class Figure:
    """One measurement: its value, what it has to be, and whether it is."""

    name: str
    value: float
    unit: str
    target: str
    reached: bool
    details: dict[str, float]


async def measure_keys(progress: Progress) -> BenchResult:
    """All four figures, one after the other."""
    figures: list[Figure] = []
    with tempfile.TemporaryDirectory() as directory:
        kmes = DevelopmentKMEs(state_dir=Path(directory), host="127.0.0.1", ports=(0, 0), link=LINK)
        for number, measure in enumerate((sustained_rate, waiting_time, pad_time, gathered_calls)):
            progress(measure.__name__.replace("_", " "), number / 4)
            async with kmes:
                for kme in (kmes.km1, kmes.km2):
                    kme.handshake, kme.latency = HANDSHAKE_S, REQUEST_S
                    kme.requests.clear()
                figures.append(await measure(kmes))
    return BenchResult(
        columns=("what", "measured", "aim", "details"),
        rows=[
            (
                each.name, f"{each.value:,.2f} {each.unit}", each.target,
                ", ".join(f"{name} {value:,.2f}" for name, value in each.details.items()),
            )
            for each in figures
        ],
        names=4,
        missed=[number for number, each in enumerate(figures) if not each.reached],
        notes=str(machine()),
        data=[asdict(each) for each in figures],
    )  # fmt: skip


async def sustained_rate(kmes: DevelopmentKMEs) -> Figure:
    """256-bit keys a second with many messages at once, against a client that asks for one key a request."""
    async with _client(kmes, kmes.km1, "sae-2") as client:
        await client.request_enc_keys(BOB)
        began, naive = time.monotonic(), 0
        while time.monotonic() - began < SECONDS:
            naive += len(await client.request_enc_keys(BOB, number=1))
        naive_rate = naive / (time.monotonic() - began)
    async with _group(kmes, kmes.km1, "sae-2", Prefetch(32, 256)) as group:
        await group.take(BOB)
        began, end = time.monotonic(), time.monotonic() + SECONDS

        async def messages() -> int:
            number = 0
            while time.monotonic() < end:
                await group.take(BOB)
                number += 1
            return number

        taken = sum(await asyncio.gather(*(messages() for _ in range(64))))
        rate = taken / (time.monotonic() - began)
    return Figure(
        "sustained keys",
        round(rate / naive_rate, 1),
        "times the naive client",
        "at least 50",
        rate / naive_rate >= 50,
        {"keys_per_s": round(rate, 1), "naive_keys_per_s": round(naive_rate, 2)},
    )


async def waiting_time(kmes: DevelopmentKMEs, rate: float = 50.0) -> Figure:
    """How long a message waits for its key while `rate` messages a second find a warm pool."""
    async with _group(kmes, kmes.km1, "sae-2", Prefetch(32, 128)) as group:
        group.warm(BOB)
        await asyncio.gather(*(task for task in asyncio.all_tasks() if task.get_name() == "refill keys"))
        waits = []
        for _ in range(int(SECONDS * rate)):
            began = time.perf_counter()
            await group.take(BOB)
            waits.append(time.perf_counter() - began)
            await asyncio.sleep(1 / rate)
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


async def pad_time(kmes: DevelopmentKMEs, hidden: int = 10_000_000) -> Figure:
    """A pad of 10 MB, against the requests that the KME's limits make necessary, one after the other."""
    async with _group(kmes, kmes.km1, "sae-2", Prefetch(0, 0)) as group:
        await group.pools[0].limits(BOB)
        began = time.monotonic()
        pad = await group.take_pad(BOB, hidden)
        took = time.monotonic() - began
        requests = len(kmes.km1.got("enc_keys"))
        assert pad.hides >= hidden  # noqa: S101 - a benchmark of something else would be worthless
    most = (LINK.max_key_size // 8 - TAG_OCTETS) * LINK.max_key_per_request
    allowed = -(-hidden // most) * REQUEST_S
    return Figure(
        "pad of 10 MB",
        round(took / allowed, 3),
        "times what the KME's limits allow",
        "at most 1.2",
        took / allowed <= 1.2,
        {"seconds": round(took, 3), "allowed_s": round(allowed, 3), "requests": requests},
    )


async def gathered_calls(kmes: DevelopmentKMEs, rate: float = 500.0) -> Figure:
    """Messages in one dec_keys call on average, when `rate` of them arrive a second."""
    keys = kmes.link.issue(kme="KM1", master=ALICE, slaves={BOB}, number=int(SECONDS * rate), size=256)
    async with _group(kmes, kmes.km2, "sae-1", Prefetch(0, 0)) as group:
        began = time.monotonic()
        fetches = []
        for number, key in enumerate(keys):
            if (early := began + number / rate - time.monotonic()) > 0:
                await asyncio.sleep(early)
            fetches.append(asyncio.create_task(group.fetch(ALICE, [key.key_ID])))
        answers = await asyncio.gather(*fetches)
        took = time.monotonic() - began
        calls = len(kmes.km2.got("dec_keys"))
    found = sum(len(answer) for answer in answers)
    return Figure(
        "messages in a dec_keys call",
        round(found / calls, 1),
        "messages a call",
        "at least 20",
        found == len(keys) and found / calls >= 20,
        {"messages": found, "calls": calls, "messages_per_s": round(found / took, 1)},
    )


@asynccontextmanager
async def _group(kmes: DevelopmentKMEs, kme: DevelopmentKME, sae: str, prefetch: Prefetch) -> AsyncIterator[KMEGroup]:
    group = KMEGroup("bench", [_client(kmes, kme, sae)], prefetch)
    yield group
    await group.close()


def _client(kmes: DevelopmentKMEs, kme: DevelopmentKME, sae: str) -> OptimizedKMClient:
    state = kmes.state_dir
    return OptimizedKMClient(
        kme.url,
        ca=state / "ca.pem",
        certificate=state / f"{sae}.pem",
        key=state / f"{sae}.key",
        name=kme.name,
        adaptive=True,
    )
