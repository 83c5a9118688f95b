"""Shared clients of the development pair: addresses of its key servers, and a key cache for each.
Standard: ETSI GS QKD 014 V1.1.1 (a cached key is used once, like any other); XDG Base Directory Specification 0.8
(state files).
"""

from __future__ import annotations

import asyncio
import json
import os
from pathlib import Path
from typing import Unpack
from urllib.parse import urlsplit

from cryptography import x509
from cryptography.x509.oid import NameOID

from relay.errors import ConfigError
from relay.files.stamps import read_regular
from relay.keys.etsi014 import OptimizedKMClient
from relay.keys.pool import KeyPool
from relay.keys.refill import Prefetch
from relay.keys.settings import ClientOptions
from relay.keys.stock import SeenKeys
from relay.keys.types import SAEID

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
    """The directory of certificates and addresses: `$XDG_STATE_HOME/qumail-relay/kme`.

    Without an absolute XDG_STATE_HOME (the specification ignores others) it is below `~/.local/state`.
    """
    root = Path(os.environ.get("XDG_STATE_HOME", ""))
    if not root.is_absolute():
        root = Path.home() / ".local" / "state"
    return root / "qumail-relay" / "kme"


def elsewhere_file() -> Path:
    """The file in the default directory that names another one while its servers run."""
    return default_state_dir() / "elsewhere.json"


def state_dir_in_use() -> Path:
    """The state directory of the running servers: that of `qumail-relay kme --state`, or the default.

    Raises ConfigError if the note of it is unusable.
    """
    path = elsewhere_file()
    try:
        noted = Path(json.loads(path.read_bytes())["state"])
    except FileNotFoundError:
        return default_state_dir()
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read: {error.strerror}") from error
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise ConfigError(f"{path}: names no directory; remove it") from error
    # Killed servers leave a stale note.
    return noted if (noted / "ca.pem").is_file() else default_state_dir()


def endpoints(state_dir: Path) -> tuple[str, str]:
    """The base URLs of KM1 and KM2, without a slash at the end.

    They are those in ENDPOINTS_FILE of running servers, else localhost with DEFAULT_PORTS. Raises ConfigError if the
    file is unusable.
    """
    path = state_dir / ENDPOINTS_FILE
    try:
        written = json.loads(path.read_bytes())
        first, second = (_https(written[kme]) for kme in KME_IDS)
    except FileNotFoundError:
        first, second = (f"https://localhost:{port}" for port in DEFAULT_PORTS)
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read: {error.strerror}") from error
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise ConfigError(f"{path}: not the addresses of {' and '.join(KME_IDS)}; remove it") from error
    return first, second


def _https(url: object) -> str:
    if not isinstance(url, str) or urlsplit(url).scheme != "https" or not urlsplit(url).hostname:
        raise ValueError("not an https URL")
    return url.rstrip("/")


USUAL_CACHE = Prefetch(low=128, high=256, lifetime=240.0, follows_use=False)
"""Keys are drawn in the background whenever fewer than `low` are ready, up to `high`; unused ones are lost."""


class CachedKMClient(OptimizedKMClient):
    """An OptimizedKMClient that draws fresh keys ahead in the background, and returns each once."""

    def __init__(self, url: str, *, cache: Prefetch = USUAL_CACHE, **options: Unpack[ClientOptions]) -> None:
        """`options` as for OptimizedKMClient. Raises ConfigError as it does."""
        self._cache = cache
        super().__init__(url, **options)

    def warm(self, slave_sae_id: SAEID, size: int = 256) -> None:
        """Begins to fill the cache, in the event loop that runs, for keys of `size` bits shared with that SAE."""
        self._fresh.warm(str(slave_sae_id), size, to_high=True)

    def _shared_requests(self) -> KeyPool:
        return KeyPool(self, self._cache, SeenKeys(), self._timing)


_Pair = tuple[CachedKMClient, CachedKMClient]
_pairs: dict[asyncio.AbstractEventLoop, dict[tuple[Path, tuple[str, str]], _Pair]] = {}


def get_optimized_km_clients(state_dir: Path | None = None) -> tuple[CachedKMClient, CachedKMClient]:
    """Clients of the development pair: Alice's of KM1 (SAE 2) and Bob's of KM2 (SAE 1).

    One event loop always gets the same two objects, and keys are then drawn in the background. Outside of a loop they
    are drawn from the first use. `state_dir` is that of `qumail-relay kme --state`, by default that of the running
    servers. Raises ConfigError if these have never run.
    """
    state = state_dir_in_use() if state_dir is None else state_dir
    if not (state / "ca.pem").is_file():
        raise ConfigError(f"{state}: no development key servers here; start them with `qumail-relay kme`")
    urls = endpoints(state)
    for loop in [loop for loop in _pairs if loop.is_closed()]:
        del _pairs[loop]
    try:
        pairs = _pairs.setdefault(asyncio.get_running_loop(), {})
    except RuntimeError:
        return _new_pair(state, urls)  # without a loop they cannot be shared
    if (state, urls) not in pairs:
        alice, bob = pairs[state, urls] = _new_pair(state, urls)
        alice.warm(1)
        bob.warm(2)
    return pairs[state, urls]


def _new_pair(state: Path, urls: tuple[str, str]) -> _Pair:
    first, second = (
        CachedKMClient(url, ca=state / "ca.pem", certificate=state / f"{sae}.pem", key=state / f"{sae}.key")
        for url, sae in zip(urls, ("sae-2", "sae-1"), strict=True)
    )
    return first, second
