"""What each level costs: time, memory and how long the event loop was held, beside the bare primitives.
Of several rounds the least time counts, since other work only ever adds.
"""

from __future__ import annotations

import asyncio
import hashlib
import os
import statistics
import tempfile
import time
import tracemalloc
import uuid
from collections.abc import Awaitable, Callable
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path

import pybase64
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import padding
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.poly1305 import Poly1305

from relay.formats import cms, mime
from relay.identity import Identity, create_identity, peer_document, read_document
from relay.keys import Key, KeyReference
from relay.keys.pads import MIN_KEYS, TAG_OCTETS, Pad, pad_of
from relay.keys.types import SealingKey
from relay.levels import AES, OTP, PQC, RSA, SEALING, SMIME, protections
from relay.runtime.aio import off_loop
from relay.schemes import Opening, Parties
from relay.schemes.all import all_schemes
from relay.schemes.padding import padded_size
from tests.bench.result import BenchmarkFailed, BenchResult, Progress, machine
from tests.bench.traffic import mails_of

SIZES = (4_000, 1_000_000, 25_000_000)
KEY_OCTETS = 1024 * 1024
TICK_S = 0.001

_COLUMNS = ("level", "message", "seal", "open", "bare", "x reference", "memory", "held")
_EXPLAINED = """\
Times in ms, the least of the rounds. bare: the level's primitives alone. x reference: sealing, as a
multiple of base64 (pybase64) and AES-256-GCM of the message. memory: peak when sealing / opening, as a
multiple of the message. held: the longest that the event loop stood still, in ms, median of the rounds."""

_SCHEMES = all_schemes()
MEASURED = tuple(level for level in protections() if level != SMIME)
"""The levels between relays; smime is measured beside them in a relay (cases.py)."""


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
    """One level and one size of message (bytes); times are seconds.

    `reference` is base64 by pybase64 and AES-256-GCM of the message, `bare` the level's primitives alone.
    """

    level: str
    size: int
    sealed_size: int
    seal: Cost
    open: Cost
    bare: float
    reference: float

    def row(self) -> tuple[str, ...]:
        """As _COLUMNS says."""
        return (
            self.level,
            f"{self.size / 1e6:g} MB",
            *map(_ms, (self.seal.seconds, self.open.seconds, self.bare)),
            f"{self.seal.seconds / self.reference:.1f}",
            f"{self.seal.memory:.1f} / {self.open.memory:.1f}",
            f"{self.seal.held * 1000:.0f} / {self.open.held * 1000:.0f}",
        )


def _ms(seconds: float) -> str:
    return f"{seconds * 1000:.2f}" if seconds < 0.01 else f"{seconds * 1000:.0f}"


def measure_levels(*, quick: bool, progress: Progress) -> BenchResult:
    """Every level at every size; `quick` leaves out the largest and does one round. Raises ConfigError."""
    began = time.monotonic()
    rounds, sizes = (1, SIZES[:2]) if quick else (9, SIZES)
    with tempfile.TemporaryDirectory(prefix="qumail-relay-bench-") as name:
        progress("making certificates", 0.0)
        parties = _parties(Path(name))
        figures = []
        for number, (size, level) in enumerate((size, level) for size in sizes for level in MEASURED):
            progress(f"{level}, {size:,} bytes", number / (len(sizes) * len(MEASURED)))
            figures.append(asyncio.run(_figures(parties, level, size, rounds)))
    seconds, where = time.monotonic() - began, machine()
    return BenchResult(
        columns=_COLUMNS,
        rows=[each.row() for each in figures],
        notes=f"{_EXPLAINED} {seconds:.0f} s in all.\n{where}",
        data={
            "figures": [asdict(each) for each in figures],
            "rounds": rounds, "seconds": seconds, "machine": asdict(where),
        },
    )  # fmt: skip


class _ReadyKeys:
    """Fresh keys that were made before the time is taken; all that were given are remembered for opening."""

    def __init__(self) -> None:
        self.given: dict[str, Key] = {}
        self._ready: list[Key] = []

    def make(self, hidden: int) -> None:
        """Keys of a pad that hides this number of bytes, and one for level aes."""
        number = max(MIN_KEYS, -(-hidden // (KEY_OCTETS - TAG_OCTETS)))
        self._ready = [Key(str(uuid.uuid4()), os.urandom(size)) for size in (32, *[KEY_OCTETS] * number)]
        self.given = {key.key_ID: key for key in self._ready}

    async def take(self, peer: str, *, level: str = AES.name, size: int = 0) -> SealingKey:
        return SealingKey(self._ready[0], _reference(self._ready[0]))

    async def take_pad(self, peer: str, hidden: int) -> Pad:
        pad, _ = pad_of(self._ready[1:], [_reference(key) for key in self._ready[1:]], hidden)
        return pad


def _reference(key: Key) -> KeyReference:
    return KeyReference(key.key_ID, "2", "1", "alice-bob")


def _parties(directory: Path) -> Parties:
    """One site that seals for itself."""
    state = directory / "identity"
    state.mkdir(mode=0o700)
    identity = create_identity(state, name="bob", domains=["bob.example"])
    document = peer_document(
        state, identity, name="bob", domains=["bob.example"], sae_id="1", kme_groups=["alice-bob"],
        levels=SEALING,
    )  # fmt: skip
    return Parties("2", "1", "bob", identity, read_document(document))


async def _figures(parties: Parties, name: str, size: int, rounds: int) -> LevelFigures:
    message = next(mails_of(size))
    identity, peer, keys = parties.identity, parties.certificates, _ReadyKeys()
    assert identity is not None and peer is not None
    sealed = opened = b""

    async def seal() -> None:
        nonlocal sealed
        sealed = await _seal(name, message, parties, keys)

    async def open_() -> None:
        opening = Opening(keys.given, identity, lambda _: [peer])
        nonlocal opened
        opened = await _open(sealed, opening)

    repeats = rounds if size >= SIZES[-1] else 10 * rounds
    needed = padded_size(len(mime.wrap_payload(message, _envelope(name, parties))))
    bares, references = [], []
    sealing, opening = _Watch(), _Watch()
    for _ in range(repeats):
        keys.make(needed)
        references.append(_seconds(_reference_work, message))
        bares.append(_seconds(_bare, name.partition("+")[0], message, identity))
        async with sealing:
            await seal()
        async with opening:
            await open_()
    if opened != message:
        raise BenchmarkFailed(f"level {name}: what was opened is not what was sealed")
    keys.make(needed)
    seal_peak, open_peak = await _peak(seal, len(message)), await _peak(open_, len(sealed))
    seal_cost, open_cost = sealing.cost(seal_peak), opening.cost(open_peak)
    return LevelFigures(name, size, len(sealed), seal_cost, open_cost, min(bares), min(references))


async def _seal(name: str, message: bytes, parties: Parties, keys: _ReadyKeys) -> bytes:
    """As relay/journey/sealing.py does it."""
    inner, _, enhanced = name.partition("+")
    sealed = await _SCHEMES[inner].seal(mime.wrap_payload(message, _envelope(name, parties)), parties, keys)
    if enhanced:
        sealed = await _SCHEMES[enhanced].seal(mime.wrap_enveloped(sealed.pieces), parties, keys)
    return await off_loop(len(sealed.pieces), mime.sealed_message, message, sealed.pieces)


async def _open(message: bytes, opening: Opening) -> bytes:
    """As relay/journey/opening/layers.py does it."""
    content = await off_loop(len(message), mime.sealed_content, message)
    while True:
        enveloped = await off_loop(len(content), cms.decode_enveloped, content)
        [level] = [level for level in _SCHEMES.values() if level.recognises(enveloped)]
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
    """Memory held at most, the message of `size` bytes included, in multiples of it; what Python allocates."""
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


# --- what the levels are measured beside: the same primitives and parameters, without CMS, MIME or base64


def _reference_work(message: bytes) -> None:
    """Base64 in lines by pybase64, and AES-256-GCM."""
    pybase64.encodebytes(message)
    _gcm(message)


def _bare(level: str, message: bytes, identity: Identity) -> None:
    """What a level does to seal for this site; for one that is not here, AES-256-GCM alone."""
    match level:
        case OTP.name:
            mask = int.from_bytes(message)
            Poly1305.generate_tag(bytes(32), (int.from_bytes(message) ^ mask).to_bytes(len(message)))
            return
        case PQC.name:
            identity.signing.private_key.sign(hashlib.sha512(message).digest())
            identity.kem.private_key.public_key().encapsulate()
        case RSA.name:
            pss = padding.PSS(mgf=padding.MGF1(hashes.SHA256()), salt_length=32)
            oaep = padding.OAEP(mgf=padding.MGF1(hashes.SHA256()), algorithm=hashes.SHA256(), label=None)
            identity.rsa_signing.private_key.sign(message, pss, hashes.SHA256())
            identity.rsa_encryption.private_key.public_key().encrypt(bytes(32), oaep)
    _gcm(message)


def _gcm(message: bytes) -> None:
    AESGCM(bytes(32)).encrypt(bytes(12), message, None)
