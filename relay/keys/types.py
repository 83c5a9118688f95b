"""What a quantum key is, what names it in a message, and what a key ring needs from those around it.
Standard: ETSI GS QKD 014 V1.1.1 names (key_ID, master and slave SAE); sizes are in bits.

`ReceivedKeyStore` is where a delivered key goes before anybody gets it. `IssuedKeyStore` remembers fresh keys before
they may be used, and `TrialStore` how KMEs were found to behave. The user of this package stores all three.
"""

from __future__ import annotations

import asyncio
import math
import random
import time
from collections import defaultdict
from collections.abc import Awaitable, Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NamedTuple, Protocol

if TYPE_CHECKING:
    from relay.formats.cms import KeyUse


SAEID = int | str
"""An SAE ID, as all calls take it; a number stands for its digits."""

KeepKeys = Callable[[str, Mapping[str, bytes]], Awaitable[None]]
"""Stores keys that a KME has just delivered: the master SAE, and the bytes by key_ID. Raises StoreUnavailable."""


@dataclass(frozen=True, slots=True)
class Key:
    """One key as a KME delivered it: `key_ID` (opaque, at most 256 characters) and its bytes.

    A fresh one may be used until `good_until`, in seconds of the clients' clock: the peer has to fetch it after that.

    The bytes never appear in repr(), logs or errors. They are `bytes`, which Python cannot overwrite: drop
    the last reference soon. What waits in a pool is held in buffers that are overwritten (stock.py).
    """

    key_ID: str
    key: bytes = field(repr=False)
    good_until: float = field(default=math.inf, repr=False, compare=False)


class KeyReference(NamedTuple):
    """What a sealed message says about one key: its ID, the two SAEs, and the KME group that issued it.

    `master_sae` sealed, `slave_sae` opens; they are None where a message of other software does not say.
    """

    key_ID: str
    master_sae: str | None = None
    slave_sae: str | None = None
    kme_group: str | None = None


@dataclass(frozen=True, slots=True)
class SealingKey:
    """A key to seal with, and what the sealed message has to say about it."""

    key: Key
    reference: KeyReference


def by_origin(references: Iterable[KeyReference]) -> dict[tuple[str, str], list[KeyReference]]:
    """References by (KME group, master SAE), which is how a key_ID is unique."""
    sorted_out: defaultdict[tuple[str, str], list[KeyReference]] = defaultdict(list)
    for reference in references:
        sorted_out[reference.kme_group or "", reference.master_sae or ""].append(reference)
    return dict(sorted_out)


class ReceivedKeyStore(Protocol):
    """Where delivered keys are kept, sealed at rest, until they are no longer needed."""

    async def ready(self) -> None:
        """Returns when keys can be kept now. Raises StoreUnavailable: then no KME may be asked for any."""

    async def put(self, group: str, master_sae: str, keys: Mapping[str, bytes]) -> None:
        """Keeps keys, by ID, and returns only when a crash cannot lose them. Raises StoreUnavailable."""

    def has_none_of(self, group: str, master_sae: str, key_IDs: Collection[str]) -> bool:
        """Whether none of these is likely to be kept, so that a KME is asked first; `look` says what is true."""

    async def look(
        self, group: str, master_sae: str, key_IDs: Sequence[str], use: KeyUse | None = None
    ) -> tuple[Mapping[str, bytes], frozenset[str]]:
        """The bytes of those that are held, by ID, and which of the others were destroyed.

        Raises KeyUsed where one may not be used so, and StoreUnavailable.
        """


class TrialStore(Protocol):
    """The memory of what was found out about KMEs at the price of keys; it outlives relays."""

    async def recall(self, kme: tuple[str, ...], described: tuple[object, ...]) -> str | None:
        """What was found about a KME (its URL and the SAEs) when it described itself so; None: nothing that counts.

        Raises StoreUnavailable.
        """

    async def remember(self, kme: tuple[str, ...], described: tuple[object, ...], result: str) -> None:
        """Remembers what was `result` now, at most 16 characters. Raises StoreUnavailable."""

    async def begin(self, kme: tuple[str, ...]) -> bool:
        """Whether the KME may be tried now, until `end`: two that try it at once spoil each other's trial.

        Raises StoreUnavailable.
        """

    async def end(self, kme: tuple[str, ...]) -> None:
        """The trial is over. Raises StoreUnavailable; then it is over after a while."""


class IssuedKeyStore(Protocol):
    """The memory of the keys that KMEs have issued to us, which outlives relays and KMEs: none is used twice."""

    async def ready(self) -> None:
        """Returns when keys can be remembered now. Raises StoreUnavailable: then none may be drawn."""

    async def remember(self, group: str, keys: Mapping[str, bytes]) -> frozenset[str]:
        """Remembers keys (bytes by ID) of a KME group, so that no crash forgets them; which of them came before.

        Raises StoreUnavailable; then none of them may be used.
        """


@dataclass(frozen=True, slots=True)
class Timing:
    """`clock` gives seconds that never go back, `sleep` waits seconds, `chance` gives a number from 0 to 1.

    Chance is for jitter only, never for secrets.
    """

    clock: Callable[[], float] = time.monotonic
    sleep: Callable[[float], Awaitable[None]] = asyncio.sleep
    chance: Callable[[], float] = random.random


REAL_TIME = Timing()
