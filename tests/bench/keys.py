"""How fast keys come: against what a KME with 240 ms handshake and 160 ms a request allows, and against plain aiohttp.
The development KMEs, over real TLS on localhost, run in this same process.
"""

from __future__ import annotations

import asyncio
import base64
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

import aiohttp

from relay.keys import OptimizedKMClient
from relay.keys.fetch import AT_ONCE
from relay.keys.group import KMEGroup, Prefetch
from relay.keys.pads import TAG_OCTETS
from relay.keys.tls import client_context
from relay.kme import DevelopmentKME, DevelopmentKMEs, LinkSettings
from tests.bench.result import BenchResult, Progress, machine

HANDSHAKE_S = 0.240
REQUEST_S = 0.160
SECONDS = 3.0
"""Duration of each open-ended measurement, in seconds."""

LATENCIES_S = (0.0, 0.03, 0.2)
SIDE_BY_SIDE_S = 0.3
"""Length of a turn of each of the two clients, in seconds: short, so that both have the same of what else runs here."""
TURNS = 10

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
    """All figures, one after the other."""
    figures: list[Figure] = []
    with tempfile.TemporaryDirectory() as directory:
        kmes = DevelopmentKMEs(state_dir=Path(directory), host="127.0.0.1", ports=(0, 0), link=LINK)
        measures = (sustained_rate, waiting_time, pad_time, received_keys, beside_plain_10, beside_plain_1)
        for number, measure in enumerate(measures):
            progress(measure.__name__.replace("_", " "), number / len(measures))
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
    async with _group(kmes, kmes.km1, "sae-2", Prefetch(32, 1000)) as group:
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
    async with _group(kmes, kmes.km1, "sae-2", Prefetch(128, 128)) as group:
        group.warm(BOB)
        await asyncio.gather(*(task for task in asyncio.all_tasks() if task.get_name() == "draw keys"))
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
        await group.pools[0].store(BOB).limits()
        began = time.monotonic()
        pad = await group.take_pad(BOB, hidden)
        took = time.monotonic() - began
        requests = len(kmes.km1.got("enc_keys"))
        assert pad.hides >= hidden
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


async def received_keys(kmes: DevelopmentKMEs, messages: int = 200) -> Figure:
    """Keys of arriving messages a second, all of which come at once, each with a call of its own."""
    keys = kmes.link.issue(kme="KM1", master=ALICE, slaves={BOB}, number=messages, size=256)
    async with _group(kmes, kmes.km2, "sae-1", Prefetch(0, 0)) as group:
        began = time.monotonic()
        answers = await asyncio.gather(*(group.fetch(ALICE, [key.key_ID]) for key in keys))
        rate = messages / (time.monotonic() - began)
    allowed = AT_ONCE / REQUEST_S
    return Figure(
        "keys of arriving messages",
        round(rate / allowed, 2),
        "times what the calls at once allow",
        "at least 0.8",
        all(answers) and rate / allowed >= 0.8,
        {"messages_per_s": round(rate, 1), "allowed_per_s": round(allowed, 1)},
    )


async def beside_plain_10(kmes: DevelopmentKMEs) -> Figure:
    """Ten callers of one client, beside ten over a plain session; the worst of the latencies counts."""
    return await _beside_plain(kmes, callers=10, least=1.0)


async def beside_plain_1(kmes: DevelopmentKMEs) -> Figure:
    """One caller of a client, beside one over a plain session."""
    return await _beside_plain(kmes, callers=1, least=0.9)


async def _beside_plain(kmes: DevelopmentKMEs, *, callers: int, least: float) -> Figure:
    state, details, ratios = kmes.state_dir, dict[str, float](), list[float]()
    tls = client_context(state / "ca.pem", state / "sae-2.pem", state / "sae-2.key")
    for latency in LATENCIES_S:
        kmes.km1.handshake, kmes.km1.latency = 0.0, latency
        async with _client(kmes, kmes.km1, "sae-2", adaptive=False) as client, aiohttp.ClientSession() as session:

            async def ours() -> None:
                await client.request_enc_keys(BOB)

            async def plain() -> None:
                url = f"{kmes.km1.url}/api/v1/keys/{BOB}/enc_keys"
                async with session.post(url, json={"number": 1, "size": 256}, ssl=tls) as reply:
                    base64.b64decode((await reply.json())["keys"][0]["key"])

            rates = {ours: 0.0, plain: 0.0}
            for _ in range(TURNS):
                for take in rates:
                    rates[take] += await _rate(take, callers) / TURNS
            ratios.append(rates[ours] / rates[plain])
            details[f"ratio_{latency * 1000:.0f}_ms"] = round(ratios[-1], 2)
            details[f"keys_per_s_{latency * 1000:.0f}_ms"] = round(rates[ours], 1)
            details[f"plain_keys_per_s_{latency * 1000:.0f}_ms"] = round(rates[plain], 1)
    return Figure(
        f"{callers} at once, beside plain aiohttp",
        round(min(ratios), 2),
        "times as many keys",
        f"at least {least}",
        min(ratios) >= least,
        details,
    )


async def _rate(take: Callable[[], Awaitable[None]], callers: int) -> float:
    """Keys a second, of a number of callers that each take one after the other."""
    await take()
    began, taken = time.monotonic(), 0

    async def caller() -> None:
        nonlocal taken
        while time.monotonic() - began < SIDE_BY_SIDE_S:
            await take()
            taken += 1

    await asyncio.gather(*(caller() for _ in range(callers)))
    return taken / (time.monotonic() - began)


@asynccontextmanager
async def _group(kmes: DevelopmentKMEs, kme: DevelopmentKME, sae: str, prefetch: Prefetch) -> AsyncIterator[KMEGroup]:
    group = KMEGroup("bench", [_client(kmes, kme, sae)], prefetch)
    yield group
    await group.close()


def _client(kmes: DevelopmentKMEs, kme: DevelopmentKME, sae: str, *, adaptive: bool = True) -> OptimizedKMClient:
    state = kmes.state_dir
    return OptimizedKMClient(
        kme.url,
        ca=state / "ca.pem",
        certificate=state / f"{sae}.pem",
        key=state / f"{sae}.key",
        name=kme.name,
        adaptive=adaptive,
    )
