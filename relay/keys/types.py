"""Quantum keys, their references in messages, and the interfaces that a key ring needs.
Standard: ETSI GS QKD 014 V1.1.1 names (key_ID, master and slave SAE); sizes are in bits.

`ReceivedKeyStore` stores delivered keys before use. `IssuedKeyStore` records fresh keys before use, and `TrialStore`
the observed behaviour of KMEs. The user of this package implements all three.
"""

from __future__ import annotations

import asyncio
import base64
import math
import random
import time
from collections import defaultdict
from collections.abc import Awaitable, Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal, NamedTuple, Protocol

if TYPE_CHECKING:
    from relay.formats.cms import KeyUse


SAEID = int | str
"""An SAE ID, accepted by all calls; a number is converted to its digits."""


def sae_text(sae_id: SAEID) -> str:
    """The SAE ID as a text. Raises TypeError for what is none."""
    if isinstance(sae_id, bool) or not isinstance(sae_id, int | str) or sae_id == "":
        raise TypeError(f"an SAE ID is a text or a number, not {sae_id!r}")
    return str(sae_id)


Found = Literal["kept", "dropped", "counted", "untold"]
"""What a KME does with undelivered keys when more are drawn: it keeps them or drops them, or that is unknown.

"counted": it drops them, and its stored_key_count is the number of those that nobody has fetched.
"""

KeepKeys = Callable[[str, Mapping[str, bytes]], Awaitable[None]]
"""Stores delivered keys: the master SAE, and the bytes by key_ID. Raises StoreUnavailable."""


@dataclass(frozen=True, slots=True)
class Key(Mapping[str, str]):
    """One key delivered by a KME: `key_ID` (opaque, at most 256 characters) and its bytes.

    A fresh one may be used until `good_until`, in seconds of the clients' clock: the peer needs time to fetch it.

    The bytes never appear in repr(), logs or errors. They are `bytes`, which Python cannot overwrite: drop
    the last reference soon. Keys in a pool are in buffers that are overwritten (stock.py).

    `key["key_ID"]` and `key["key"]` are the same as in the JSON of the standard: the bytes in base64.
    """

    key_ID: str
    key: bytes = field(repr=False)
    good_until: float = field(default=math.inf, repr=False, compare=False)

    def __getitem__(self, name: str) -> str:
        """A field by its name in GS QKD 014, 6.3. Raises KeyError."""
        return {"key_ID": self.key_ID, "key": base64.b64encode(self.key).decode("ascii")}[name]

    def __iter__(self) -> Iterator[str]:
        return iter(("key_ID", "key"))

    def __len__(self) -> int:
        return 2


class KeyReference(NamedTuple):
    """A reference to a key in a sealed message: its ID, the two SAEs, and the issuing KME group.

    `master_sae` sealed, `slave_sae` opens; they may be None in messages of other software.
    """

    key_ID: str
    master_sae: str | None = None
    slave_sae: str | None = None
    kme_group: str | None = None


@dataclass(frozen=True, slots=True)
class SealingKey:
    """A key to seal with, and its reference for the message."""

    key: Key
    reference: KeyReference


def by_origin(references: Iterable[KeyReference]) -> dict[tuple[str, str], list[KeyReference]]:
    """References by (KME group, master SAE), within which a key_ID is unique."""
    sorted_out: defaultdict[tuple[str, str], list[KeyReference]] = defaultdict(list)
    for reference in references:
        sorted_out[reference.kme_group or "", reference.master_sae or ""].append(reference)
    return dict(sorted_out)


class ReceivedKeyStore(Protocol):
    """The store of delivered keys, sealed at rest, until they are no longer needed."""

    async def ready(self) -> None:
        """Returns if keys can be stored now. Raises StoreUnavailable: then no keys may be fetched."""

    async def put(self, group: str, master_sae: str, keys: Mapping[str, bytes]) -> None:
        """Stores keys, by ID; returns only when a crash cannot lose them. Raises StoreUnavailable."""

    def has_none_of(self, group: str, master_sae: str, key_IDs: Collection[str]) -> bool:
        """Whether probably none of these is stored, so that a KME is asked first; `look` is exact."""

    async def look(
        self, group: str, master_sae: str, key_IDs: Sequence[str], use: KeyUse | None = None
    ) -> tuple[Mapping[str, bytes], frozenset[str]]:
        """The bytes of the stored ones, by ID, and the IDs of those that were destroyed.

        Raises KeyUsed if one must not be used for this, and StoreUnavailable.
        """


class TrialStore(Protocol):
    """Persistent results of trials of KMEs, which cost keys."""

    async def recall(self, kme: tuple[str, ...], described: tuple[object, ...]) -> str | None:
        """The result for a KME (its URL and the SAEs) with this description; None without a valid one.

        Raises StoreUnavailable.
        """

    async def remember(self, kme: tuple[str, ...], described: tuple[object, ...], result: str) -> None:
        """Remembers what was `result` now, at most 16 characters. Raises StoreUnavailable."""

    async def begin(self, kme: tuple[str, ...]) -> bool:
        """Claims the KME for a trial, until `end`; False if taken: concurrent trials disturb each other.

        Raises StoreUnavailable.
        """

    async def end(self, kme: tuple[str, ...]) -> None:
        """Ends the trial. Raises StoreUnavailable; then the claim times out."""


class IssuedKeyStore(Protocol):
    """Persistent record of issued keys, which outlives relays and KMEs: none is used twice."""

    async def ready(self) -> None:
        """Returns if keys can be recorded now. Raises StoreUnavailable: then none may be drawn."""

    async def remember(self, group: str, keys: Mapping[str, bytes]) -> frozenset[str]:
        """Records keys (bytes by ID) of a KME group crash-safely; returns the IDs already recorded.

        Raises StoreUnavailable; then none of them may be used.
        """


@dataclass(frozen=True, slots=True)
class Timing:
    """`clock` gives monotonic seconds, `sleep` waits seconds, `chance` gives a number from 0 to 1.

    Chance is for jitter only, never for secrets.
    """

    clock: Callable[[], float] = time.monotonic
    sleep: Callable[[float], Awaitable[None]] = asyncio.sleep
    chance: Callable[[], float] = random.random


REAL_TIME = Timing()
