"""Shared clients of the development pair: addresses of its key servers, and a key cache for each.
Standard: ETSI GS QKD 014 V1.1.1 (a cached key is used once, like any other); XDG Base Directory Specification 0.8
(state files).
"""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple, Self, Unpack

from cryptography import x509
from cryptography.x509.oid import NameOID

from relay.errors import ConfigError, KeyNotFound
from relay.files.stamps import read_regular
from relay.keys.etsi014 import OptimizedKMClient
from relay.keys.faults import Call
from relay.keys.http import Question, Result
from relay.keys.issued import SeenKeys
from relay.keys.pairing import Pairing
from relay.keys.pool import KeyPool
from relay.keys.refill import MOST_READY, Prefetch
from relay.keys.settings import PARAMETERS, ClientOptions, checked_url
from relay.keys.takes import PATH, URL, Takes, check
from relay.keys.types import SAEID, Key, sae_text

KME_IDS = ("KM1", "KM2")
"""The two development KMEs: Alice's, then Bob's. Every pair here and in relay/kme/ is in this order."""

NOT_QUANTUM = "DEVELOPMENT KEYS, NOT QUANTUM"
"""Warning shown with keys of development KMEs."""
AUTHORITY = "QuMail Relay development CA"
"""Common name of the CA of the development KMEs."""

DEFAULT_PORTS = (13000, 14000)
"""TCP ports of KM1 and KM2 unless others are chosen."""

ENDPOINTS_FILE = "endpoints.json"
"""File in the state directory while the servers run: `{"KM1": "https://...", "KM2": "https://..."}`."""


STATE_VARIABLE = "QUMAIL_KME_STATE"
"""Environment variable with the state directory, for servers and clients."""


def from_development_kme(ca: Path | None) -> bool:
    """Whether this file (PEM) is the CA of development KMEs, whose keys are NOT quantum. Reads the file."""
    if ca is None:
        return False
    try:
        certificates = x509.load_pem_x509_certificates(read_regular(ca))
    except (OSError, ValueError):
        return False
    names = (name for each in certificates for name in each.subject.get_attributes_for_oid(NameOID.COMMON_NAME))
    return any(name.value == AUTHORITY for name in names)


def default_state_dir() -> Path:
    """The directory of certificates and addresses: `$QUMAIL_KME_STATE`, else `$XDG_STATE_HOME/qumail-relay/kme`.

    Without an absolute XDG_STATE_HOME (the specification ignores others) it is below `~/.local/state`.
    """
    if named := os.environ.get(STATE_VARIABLE):
        return Path(named)
    root = Path(os.environ.get("XDG_STATE_HOME", ""))
    if not root.is_absolute():
        root = Path.home() / ".local" / "state"
    return root / "qumail-relay" / "kme"


def endpoints(state_dir: Path) -> tuple[str, str]:
    """The base URLs of KM1 and KM2, without a slash at the end.

    They are those in ENDPOINTS_FILE of running servers, else localhost with DEFAULT_PORTS. Raises ConfigError if the
    file is unusable.
    """
    path = state_dir / ENDPOINTS_FILE
    try:
        written = json.loads(path.read_bytes())
        first, second = (checked_url(str(written[kme])) for kme in KME_IDS)
    except FileNotFoundError:
        first, second = (f"https://localhost:{port}" for port in DEFAULT_PORTS)
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read: {error.strerror}") from error
    except (ValueError, KeyError, TypeError, RecursionError, ConfigError) as error:
        raise ConfigError(f"{path}: not the addresses of {' and '.join(KME_IDS)}; remove it") from error
    return first, second


USUAL_CACHE = Prefetch(low=8, high=256, lifetime=240.0)
"""As many keys as were used are kept ready in the background, up to `high`; those that nobody took are lost."""


NOTHING_READY = Prefetch(0, 0)

OF_A_CACHE = PARAMETERS | {
    "cache": Takes(int | Prefetch, "a whole number from {0.least} to {0.most} or a Prefetch", 0, MOST_READY)
}
_OF_ONE = Takes(dict | None, 'a dictionary, such as {{"url": "https://localhost:13000"}}')
OF_A_PAIR = OF_A_CACHE | {"state_dir": PATH, "km1": _OF_ONE, "km2": _OF_ONE}
"""What each parameter of CachedKMClient, and of a pair, takes."""


class CachedKMClient(OptimizedKMClient):
    """An OptimizedKMClient that draws fresh keys ahead in the background, from its first use, and returns each once."""

    def __init__(self, url: str, *, cache: Prefetch | int = USUAL_CACHE.high, **options: Unpack[ClientOptions]) -> None:
        """`cache` is the maximum number of keys kept ready, or a Prefetch; `options` as for OptimizedKMClient.

        As many are kept ready as were used; with a Prefetch at least its `low`. Raises ConfigError.
        """
        check({"cache": cache}, OF_A_CACHE)
        self._keeps_low: dict[str, int] | None = {} if isinstance(cache, Prefetch) else None
        """The size that is kept ready without use, in bits, by slave SAE: that of its first request."""
        self._cache = (
            replace(USUAL_CACHE, low=min(USUAL_CACHE.low, cache), high=cache) if isinstance(cache, int) else cache
        )
        self._pairing = Pairing(keeps=True)
        self._other: CachedKMClient | None = None
        self._has_drawn = False
        super().__init__(url, **options)

    def pair_with(self, other: CachedKMClient, pairing: Pairing) -> None:
        """The client of the peer's KME is at hand: keys are kept ready once one was fetched there after another."""
        self._other, self._pairing = other, pairing
        self._fresh.prefetch = NOTHING_READY

    async def request_enc_keys(self, slave_sae_id: SAEID, number: int = 1, size: int = 256, **more: Any) -> list[Key]:
        """As that of OptimizedKMClient."""
        self._fresh.prefetch = self._ready
        sae = sae_text(slave_sae_id)
        if self._keeps_low is not None and self._keeps_low.setdefault(sae, size) == size:
            self._fresh.warm(sae, size)
        return await super().request_enc_keys(slave_sae_id, number, size, **more)

    async def draw_keys(self, slave_sae_id: str, number: int, size: int, **more: Any) -> list[Key]:
        """As that of OptimizedKMClient.

        Before the KMEs of a pair are seen to keep undelivered keys, keys are drawn once those before were fetched.
        """
        if self._pairing.keeps or self._other is None:
            return await super().draw_keys(slave_sae_id, number, size, **more)
        async with self._turn(""):
            await self._pairing.delivered(self)
            if self._has_drawn and self._cache.high:
                await self._pairing.find_out(self, self._other, slave_sae_id, super().draw_keys)
            keys = await super().draw_keys(slave_sae_id, number, size, **more)
            self._has_drawn = True
            self._pairing.drawn(self, [key.key_ID for key in keys])
            return keys

    async def _ask(self, question: Question[Result], *, patient: bool = True) -> Result:
        if question.call is Call.STATUS:
            return await super()._ask(question, patient=patient)
        async with self._pairing.turn(self):
            return await super()._ask(question, patient=patient)

    async def request_dec_keys(self, master_sae_id: SAEID, key_IDs: Sequence[str], **more: Any) -> list[Key]:
        """As that of OptimizedKMClient."""
        try:
            keys = await super().request_dec_keys(master_sae_id, key_IDs, **more)
        except KeyNotFound:
            self._pairing.fetched(key_IDs)
            raise
        self._pairing.fetched(key_IDs)
        return keys

    @property
    def one_batch(self) -> bool:
        """As for every client: before the KMEs of a pair are seen to keep undelivered keys."""
        return self._other is not None and not self._pairing.keeps

    def warm(self, slave_sae_id: SAEID, size: int = 256) -> None:
        """Begins to fill the cache, in the event loop that runs, for keys of `size` bits shared with that SAE."""
        self.bind()
        self._fresh.prefetch = self._ready
        self._fresh.warm(sae_text(slave_sae_id), size)

    def _shared_requests(self) -> KeyPool:
        return KeyPool(self, self._ready, SeenKeys(), self._timing)

    @property
    def _ready(self) -> Prefetch:
        """What is kept ready: nothing before it was seen that the KMEs of a pair keep undelivered keys."""
        return self._cache if self._pairing.keeps else NOTHING_READY


class PairOptions(ClientOptions, total=False):
    """What CachedKMClient takes, for signatures."""

    cache: Prefetch | int


class KMOptions(PairOptions, total=False):
    """What concerns one client of a pair: its address, and any option that differs from the other's."""

    url: str


class KMClients(NamedTuple):
    """The clients of both sites. `async with` closes both at its end."""

    km1: CachedKMClient
    km2: CachedKMClient

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def close(self) -> None:
        """Closes both as `close` of a client does; they may be used again afterwards, in any event loop."""
        await asyncio.gather(self.km1.close(), self.km2.close())


_pairs: dict[object, KMClients] = {}
"""The pairs of this process by their options; None: the last one that was made with options."""


def get_optimized_km_clients(
    state_dir: Path | str | None = None,
    *,
    km1: KMOptions | None = None,
    km2: KMOptions | None = None,
    **options: Unpack[PairOptions],
) -> KMClients:
    """The clients of KM1 and KM2: by default Alice's (SAE 2) and Bob's (SAE 1) of the development pair.

    `options` are those of CachedKMClient for both; `km1` and `km2` are for one of them, with its `url`. What of url,
    ca, certificate and key is missing is that of the development pair in `state_dir` (default: `default_state_dir()`).

    The same options give the same two objects in the whole process, and no options those of the last call with some.
    They belong to the event loop of their first use, until they are closed or that loop is; in another one they raise
    RuntimeError. Raises ConfigError for unusable options, or if the development pair is needed and has never run.
    """
    check({"state_dir": state_dir, "km1": km1, "km2": km2, **options}, OF_A_PAIR)
    for each in (km1 or {}, km2 or {}):
        check(each, {"url": URL, **OF_A_CACHE})
    some = bool(km1 or km2 or options or state_dir)
    if not some and None in _pairs:
        return _pairs[None]
    chosen: list[KMOptions] = [{**options, **(km1 or {})}, {**options, **(km2 or {})}]
    if not all(each.keys() >= {"url", "ca", "certificate", "key"} for each in chosen):
        usual = _development_pair(Path(state_dir or default_state_dir()))
        chosen = [{**each, **mine} for each, mine in zip(usual, chosen, strict=True)]
    named = tuple(frozenset(each.items()) for each in chosen)
    if named not in _pairs:
        first, second = (CachedKMClient(**each) for each in chosen)
        pairing = Pairing()
        first.pair_with(second, pairing)
        second.pair_with(first, pairing)
        _pairs[named] = KMClients(first, second)
    if some:
        _pairs[None] = _pairs[named]
    return _pairs[named]


def _development_pair(state: Path) -> list[KMOptions]:
    if not (state / "ca.pem").is_file():
        raise ConfigError(
            f"{state}: no development key servers have run here: start `qumail-relay kme` and wait until it has said "
            f"where they are; {STATE_VARIABLE} names another directory; other KMEs need url, ca, certificate and key"
        )
    return [
        {"url": url, "ca": state / "ca.pem", "certificate": state / f"{sae}.pem", "key": state / f"{sae}.key"}
        for url, sae in zip(endpoints(state), ("sae-2", "sae-1"), strict=True)
    ]
