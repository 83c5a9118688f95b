"""The base client of one KME: the calls of programs, and sharing of requests and keys between callers.
Standard: ETSI GS QKD 014 V1.1.1, 5.2 to 5.4, whose three calls Cisco SKIP also has, under other names.
"""

from __future__ import annotations

import asyncio
from abc import abstractmethod
from collections.abc import Awaitable, Callable, Collection, Mapping, Sequence
from typing import Self, Unpack

from relay.errors import KeyNotFound, KeyUnavailable, KMEExhausted
from relay.keys.asking import Asker
from relay.keys.faults import Call, KeysMissing
from relay.keys.issued import SeenKeys
from relay.keys.pool import KeyPool
from relay.keys.refill import Prefetch
from relay.keys.settings import ClientOptions
from relay.keys.types import SAEID, Key, sae_text


def check_numbers(number: int, size: int) -> None:
    """Raises ValueError for an impossible number or size (bits) of keys, and TypeError for what is no whole number."""
    if any(isinstance(each, bool) or not isinstance(each, int) for each in (number, size)):
        raise TypeError(f"number and size are whole numbers, not {number!r} and {size!r}")
    if number < 1 or size < 8 or size % 8:
        raise ValueError("number is at least 1, and size is a multiple of 8 bits above 0")


def once_each(key_IDs: Sequence[str]) -> list[str]:
    """The key_IDs without duplicates. Raises TypeError for a string, and for what can be read only once."""
    if (
        isinstance(key_IDs, str | bytes)
        or not isinstance(key_IDs, Collection)
        or not all(isinstance(key_ID, str) for key_ID in key_IDs)
    ):
        raise TypeError("key_IDs is a sequence of strings: write [key_ID] for a single one")
    return list(dict.fromkeys(key_IDs))


def in_order(source: str, key_IDs: Sequence[str], found: Mapping[str, Key]) -> list[Key]:
    """The keys with these IDs, in order. Raises KeysMissing with the keys found; `source` is for its text."""
    if missing := [key_ID for key_ID in key_IDs if key_ID not in found]:
        text = f"{source}: dec_keys: {len(missing)} of {len(key_IDs)} keys did not come: {missing[0]}"
        raise KeysMissing(text, list(found.values()), missing)
    return [found[key_ID] for key_ID in key_IDs]


class KMEClient(Asker):
    """A client of one KME: subclasses implement the three calls of a protocol.

    Each call ends in a result or a typed error within the configured time; `patient` False means one attempt only.
    """

    def __init__(self, url: str, **options: Unpack[ClientOptions]) -> None:
        """As for an Asker."""
        super().__init__(url, **options)
        self._fresh = self._shared_requests()

    async def request_enc_keys(
        self, slave_sae_id: SAEID, number: int = 1, size: int = 256, *, patient: bool = True
    ) -> list[Key]:
        """From 1 to `number` fresh keys of `size` bits shared with the slave SAE. Raises KeyUnavailable.

        Concurrent callers share one request. When none of them waits any more it is given up, and its keys are burnt.
        A KME with too few keys is asked again, as after a failure; relay.keys.group goes on to the next one instead.
        """
        check_numbers(number, size)
        self.bind()
        attempt = 0
        while True:
            try:
                return await self._fresh.take(sae_text(slave_sae_id), size, number, least=1, patient=patient)
            except KMEExhausted as error:
                if not patient or attempt >= self.retry_attempts:
                    raise
                pause = max(self.state.backoff.pause(attempt), self.state.asks_for_pause(Call.ENC_KEYS))
                await self._pause(Call.ENC_KEYS, str(error), attempt, pause)
                attempt += 1

    @abstractmethod
    async def request_dec_keys(
        self, master_sae_id: SAEID, key_IDs: Sequence[str], *, patient: bool = True
    ) -> list[Key]:
        """The keys with these IDs, in order; the KME delivers each once.

        Raises KeysMissing with the keys that did arrive, or another KeyUnavailable.
        """

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def close(self) -> None:
        """Burns unused keys, and closes all connections. The client may be used again afterwards, in any event loop.

        Raises RuntimeError while another event loop uses it.
        """
        self.bind()
        await self._fresh.close()
        await self.renewal.close()
        await self.transport.close()
        self._fresh = self._shared_requests()
        self._loop = None

    def _shared_requests(self) -> KeyPool:
        """The pool behind the public calls for fresh keys: it draws on demand, and keeps nothing ready."""
        return KeyPool(self, Prefetch(low=0, high=0), SeenKeys(), self._timing, managed=False)

    async def _each_by_itself(
        self, key_IDs: Sequence[str], one: Callable[[str], Awaitable[dict[str, Key]]]
    ) -> dict[str, Key]:
        """The keys by ID, each by a request of its own (`one`), concurrently.

        Raises KeyUnavailable, with the keys that arrived, if one failed; KeysMissing if all are unknown.
        """
        found: dict[str, Key] = {}
        trouble: KeyUnavailable | None = None
        unknown: KeyNotFound | None = None
        for answer in await asyncio.gather(*map(one, key_IDs), return_exceptions=True):
            if isinstance(answer, dict):
                found |= answer
            elif not isinstance(answer, KeyUnavailable):
                raise answer
            elif isinstance(answer, KeyNotFound):
                unknown = answer
            else:
                trouble = answer
        if trouble is not None:
            trouble.found = list(found.values())
            raise trouble
        if unknown is not None and not found:
            raise KeysMissing(str(unknown), [], key_IDs) from (unknown.__cause__ or unknown)
        return found
