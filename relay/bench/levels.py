"""What each level costs: time, memory and how long the event loop was held, beside the bare primitive and OpenSSL.
Standard: one run on one machine; of several rounds the least time counts, since other work only ever adds.
"""

from __future__ import annotations

import asyncio
import os
import statistics
import tempfile
import time
import tracemalloc
import uuid
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from relay import cms, mime
from relay.aio import off_loop
from relay.bench.children import BenchmarkFailed
from relay.bench.machine import Machine, machine
from relay.bench.mails import template
from relay.bench.openssl_cms import OpenSSL
from relay.bench.primitives import bare, reference
from relay.identity import Identity, PeerCertificates, create_identity, peer_document, read_document
from relay.keys import Key, KeyReference
from relay.keys.pads import MIN_KEYS, TAG_OCTETS, Pad, pad_of
from relay.keys.types import SealingKey
from relay.levels import Level, Opening, Parties
from relay.levels.aes import AES
from relay.levels.otp import OneTimePad
from relay.levels.padding import padded_size
from relay.levels.pqc import PQC
from relay.levels.rsa import RSA

SIZES = (4_000, 1_000_000, 25_000_000)
KEY_OCTETS = 1024 * 1024
TICK_S = 0.001
LEVELS = ("otp", "aes", "pqc", "pqc+aes", "rsa", "rsa+aes")

_LEVELS: dict[str, Level] = {level.name: level for level in (OneTimePad(), AES(), PQC(), RSA())}


@dataclass(frozen=True, slots=True)
class Cost:
    """One way, for one message: the least time, the peak of memory as a multiple of the message, the loop's hold.

    `seconds` and `held` are seconds; `held` is the longest time that the event loop did not turn, the median of
    the rounds. The message counts in `memory`; it is the sealed one where it is opened.
    """

    seconds: float
    memory: float
    held: float


@dataclass(frozen=True, slots=True)
class LevelFigures:
    """One level and one size of message (octets); times are seconds, None where OpenSSL cannot do it.

    `reference` is base64 by pybase64 and AES-256-GCM of the message, `bare` the level's primitives alone.
    """

    level: str
    size: int
    sealed_size: int
    seal: Cost
    open: Cost
    bare: float
    reference: float
    openssl_seal: float | None
    openssl_open: float | None


@dataclass(frozen=True, slots=True)
class LevelsResult:
    """All figures of one run, and what it ran on."""

    figures: list[LevelFigures]
    rounds: int
    seconds: float
    machine: Machine


def measure_levels(*, quick: bool, progress: Callable[[str, float], None]) -> LevelsResult:
    """Every level at every size; `quick` leaves out the largest and does one round. Raises ConfigError."""
    began = time.monotonic()
    rounds, sizes = (1, SIZES[:2]) if quick else (9, SIZES)
    with tempfile.TemporaryDirectory(prefix="qumail-relay-bench-") as name:
        progress("making certificates", 0.0)
        site = _site(Path(name))
        figures = []
        for number, (size, level) in enumerate((size, level) for size in sizes for level in LEVELS):
            progress(f"{level}, {size:,} octets", number / (len(sizes) * len(LEVELS)))
            figures.append(asyncio.run(_figures(site, level, size, rounds)))
    return LevelsResult(figures, rounds, time.monotonic() - began, machine())


class _Keys:
    """Fresh keys that were made before the time is taken; all that were given are remembered for opening."""

    def __init__(self) -> None:
        self.given: dict[str, Key] = {}
        self._ready: list[Key] = []

    def make(self, hidden: int) -> None:
        """Keys of a pad that hides so many octets, and one for level aes."""
        number = max(MIN_KEYS, -(-hidden // (KEY_OCTETS - TAG_OCTETS)))
        self._ready = [Key(str(uuid.uuid4()), os.urandom(size)) for size in (32, *[KEY_OCTETS] * number)]
        self.given = {key.key_ID: key for key in self._ready}

    async def take(self, peer: str, *, level: str = "aes", octets: int = 0) -> SealingKey:
        return SealingKey(self._ready[0], _reference(self._ready[0]))

    async def take_pad(self, peer: str, hidden: int) -> Pad:
        pad, _ = pad_of(self._ready[1:], [_reference(key) for key in self._ready[1:]], hidden)
        return pad


def _reference(key: Key) -> KeyReference:
    return KeyReference(key.key_ID, "2", "1", "alice-bob")


@dataclass(frozen=True, slots=True)
class _Site:
    """One site that seals for itself."""

    identity: Identity
    peer: PeerCertificates
    openssl: OpenSSL

    @property
    def parties(self) -> Parties:
        return Parties("2", "1", "bob", self.identity, self.peer)


def _site(directory: Path) -> _Site:
    state = directory / "identity"
    state.mkdir(mode=0o700)
    identity = create_identity(state, name="bob", domains=["bob.example"])
    document = peer_document(
        state, identity, name="bob", domains=["bob.example"], sae_id="1", kme_groups=["alice-bob"],
        levels=("otp", "aes", "pqc", "rsa"),
    )  # fmt: skip
    return _Site(identity, read_document(document), OpenSSL(directory, identity))


async def _figures(site: _Site, name: str, size: int, rounds: int) -> LevelFigures:
    message = b"".join(template(size).mail(1))
    keys = _Keys()
    sealed = opened = b""

    async def seal() -> None:
        nonlocal sealed
        sealed = await _seal(name, message, site.parties, keys)

    async def open_() -> None:
        opening = Opening(keys.given, site.identity, lambda _: [site.peer])
        nonlocal opened
        opened = await _open(sealed, opening)

    repeats = rounds if size >= SIZES[-1] else 10 * rounds
    needed = padded_size(len(mime.wrap_payload(message, _envelope(name, site.parties))))
    bares, references = [], []
    sealing, opening = _Watch(), _Watch()
    for _ in range(repeats):
        keys.make(needed)
        references.append(_seconds(reference, message))
        bares.append(_seconds(bare, name.partition("+")[0], message, site.identity))
        async with sealing:
            await seal()
        async with opening:
            await open_()
    if opened != message:
        raise BenchmarkFailed(f"level {name}: what was opened is not what was sealed")
    keys.make(needed)
    seal_peak, open_peak = await _peak(seal, len(message)), await _peak(open_, len(sealed))
    openssl_seal, openssl_open = site.openssl.times(name, message, min(rounds, 3))
    return LevelFigures(
        name, size, len(sealed), sealing.cost(seal_peak), opening.cost(open_peak),
        min(bares), min(references), openssl_seal, openssl_open,
    )  # fmt: skip


async def _seal(name: str, message: bytes, parties: Parties, keys: _Keys) -> bytes:
    """As relay/sealing.py does it."""
    inner, _, enhanced = name.partition("+")
    sealed = await _LEVELS[inner].seal(mime.wrap_payload(message, _envelope(name, parties)), parties, keys)
    if enhanced:
        sealed = await _LEVELS[enhanced].seal(mime.wrap_enveloped(sealed.der), parties, keys)
    return await off_loop(len(sealed.der), mime.sealed_message, message, sealed.der)


async def _open(message: bytes, opening: Opening) -> bytes:
    """As relay/opening/layers.py does it."""
    content = await off_loop(len(message), mime.sealed_content, message)
    while True:
        enveloped = await off_loop(len(content), cms.decode_enveloped, content)
        [level] = [level for level in _LEVELS.values() if level.recognises(enveloped)]
        kind, content, envelope = mime.unwrap((await level.open(enveloped, opening)).payload)
        if kind == "message":
            cms.decode_sealed_envelope(envelope)
            return content


def _envelope(name: str, parties: Parties) -> bytes:
    recipients = ("ben@bob.example",)
    now = datetime.now(UTC).replace(microsecond=0)
    envelope = cms.SealedEnvelope(parties.master_sae, parties.slave_sae, name, now, "ann@alice.example", recipients)
    return envelope.encode()


class _Watch:
    """Measures what runs inside it, as often as it is used: the time, and the longest hold of the event loop."""

    def __init__(self) -> None:
        self._took: list[float] = []
        self._held: list[float] = []

    def cost(self, memory: float) -> Cost:
        """What was measured, beside this peak of memory."""
        return Cost(min(self._took), memory, statistics.median(self._held))

    async def __aenter__(self) -> None:
        self._held.append(0.0)
        self._ticking = asyncio.create_task(self._tick())
        await asyncio.sleep(0)
        self._began = time.perf_counter()

    async def __aexit__(self, *_: object) -> None:
        self._took.append(time.perf_counter() - self._began)
        await asyncio.sleep(2 * TICK_S)
        self._ticking.cancel()

    async def _tick(self) -> None:
        while True:
            before = time.perf_counter()
            await asyncio.sleep(TICK_S)
            self._held[-1] = max(self._held[-1], time.perf_counter() - before - TICK_S)


async def _peak(work: Callable[[], Awaitable[None]], size: int) -> float:
    """Memory held at most, the message of `size` octets included, in multiples of it; what Python allocates."""
    tracemalloc.start()
    try:
        await work()
        return (tracemalloc.get_traced_memory()[1] + size) / size
    finally:
        tracemalloc.stop()


def _seconds(work: Callable[..., object], *arguments: object) -> float:
    began = time.perf_counter()
    work(*arguments)
    return time.perf_counter() - began
