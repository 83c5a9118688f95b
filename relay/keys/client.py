"""A client of one KME, whatever it speaks: what programs call, and how callers share requests and keys.
Standard: ETSI GS QKD 014 V1.1.1, 5.2 to 5.4, whose three calls Cisco SKIP has under other names.
"""

from __future__ import annotations

import asyncio
from abc import abstractmethod
from collections.abc import Awaitable, Callable, Mapping, Sequence
from datetime import datetime
from functools import partial
from types import TracebackType
from typing import Self, Unpack

from relay.errors import KeyNotFound, KeyUnavailable
from relay.keys.asking import Asker
from relay.keys.faults import KeysMissing
from relay.keys.health import State
from relay.keys.http import Receiver
from relay.keys.pool import KeyPool
from relay.keys.refill import Prefetch
from relay.keys.settings import ClientOptions
from relay.keys.stock import SeenKeys
from relay.keys.tls import CertificateEnd
from relay.keys.types import SAEID, Key


def check_numbers(number: int, size: int) -> None:
    """Raises ValueError where no KME could give `number` keys of `size` bits."""
    if number < 1 or size < 8 or size % 8:
        raise ValueError("number is at least 1, and size is a multiple of 8 bits above 0")


def once_each(key_IDs: Sequence[str]) -> list[str]:
    """The key_IDs, each once. A string, which is a sequence of strings as well, is a mistake: raises TypeError."""
    if isinstance(key_IDs, str | bytes) or not all(isinstance(key_ID, str) for key_ID in key_IDs):
        raise TypeError("key_IDs is a sequence of strings: write [key_ID] for a single one")
    return list(dict.fromkeys(key_IDs))


def in_order(source: str, key_IDs: Sequence[str], found: Mapping[str, Key]) -> list[Key]:
    """The keys with these IDs, which `source` has given. Raises KeysMissing, with those that did come."""
    if missing := [key_ID for key_ID in key_IDs if key_ID not in found]:
        text = f"{source}: dec_keys: {len(missing)} of {len(key_IDs)} keys did not come: {missing[0]}"
        raise KeysMissing(text, list(found.values()), missing)
    return [found[key_ID] for key_ID in key_IDs]


class KMEClient(Asker):
    """A client of one KME, over whatever protocol: subclasses make the three calls.

    Each call ends in a result or a typed error within the configured time; `patient` False means one attempt only.
    """

    most_per_request: int | None = None
    """The most keys that one request can ask for; None: the KME says."""

    def __init__(self, url: str, **options: Unpack[ClientOptions]) -> None:
        """As for an Asker."""
        super().__init__(url, **options)
        self._fresh = self._shared_requests()

    @abstractmethod
    async def draw_keys(self, slave_sae_id: str, number: int, size: int, *, patient: bool = True) -> list[Key]:
        """From 1 to `number` fresh keys of `size` bits, by a request of its own. Raises KeyUnavailable."""

    async def request_enc_keys(
        self, slave_sae_id: SAEID, number: int = 1, size: int = 256, *, patient: bool = True
    ) -> list[Key]:
        """From 1 to `number` fresh keys of `size` bits shared with the slave SAE. Raises KeyUnavailable.

        Callers who wait at the same time share one request. Keys that come when their caller has given up are there for
        the next one.
        """
        check_numbers(number, size)
        return await self._fresh.take(str(slave_sae_id), size, number, least=1, patient=patient)

    @abstractmethod
    async def request_dec_keys(
        self, master_sae_id: SAEID, key_IDs: Sequence[str], *, patient: bool = True
    ) -> list[Key]:
        """The keys with these IDs, in their order; the KME gives each once.

        Raises KeysMissing, which carries those that did come, or another KeyUnavailable.
        """

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def close(self) -> None:
        """Burns keys that nobody took, and closes all connections. The client may be used again afterwards."""
        await self._fresh.close()
        await self.renewal.close()
        await self.key_requests.close()
        await self.transport.close()
        self._fresh = self._shared_requests()

    def _shared_requests(self) -> KeyPool:
        """What the public calls for fresh keys share: it draws what callers ask for, and keeps nothing ready."""
        return KeyPool(self, Prefetch(low=0, high=0), SeenKeys(), self._timing, managed=False)

    def ending_certificates(self, now: datetime) -> list[str]:
        """Which certificates end within 30 days of `now` (aware), or have: ours, the CA's, the KME's. Reads files."""
        return self.transport.tls.ending(now)

    def certificate_ends(self) -> list[CertificateEnd]:
        """When they end. Reads files. Raises OSError and ValueError."""
        return self.transport.tls.ends()

    async def keeps_undelivered(self, slave_sae_id: SAEID, own_sae_id: SAEID) -> bool | None:
        """Whether keys that were not delivered yet are still there when more were asked for; None: nobody can say.

        It costs two keys, and with a KME that drops keys whatever the slave has not fetched yet. Raises KeyUnavailable.
        """
        return None

    def receive_through(self, receiver: Receiver) -> None:
        """From now on `receiver` sends the requests for received keys."""
        self._receive = partial(receiver.send, self.name, self.transport)

    @property
    def health(self) -> float:
        """From 0 (fresh keys are not even asked for) to 1 (all recent attempts got an answer)."""
        return self.state.score

    @property
    def at_once(self) -> int:
        """How many requests for fresh keys may be on their way for one slave SAE."""
        return self.settings.quirks.at_once

    @property
    def any_size(self) -> bool:
        """Whether keys of other sizes than the usual one are available."""
        return self.settings.quirks.size_unit != "ignored"

    @property
    def breakers(self) -> dict[str, State]:
        """The state of the breaker of each call."""
        return {str(call): breaker.state for call, breaker in self.state.breakers.items()}

    @property
    def troubles(self) -> dict[str, str]:
        """Why calls are not made at present, by call, and what else is wrong; empty when all is well."""
        if not (why := self.renewal.refused):
            return self.state.troubles
        text = f"the KME does not take the renewed files of CA, certificate and key, and those before are used: {why}"
        return self.state.troubles | {"certificates": text}

    async def _each_by_itself(
        self, key_IDs: Sequence[str], one: Callable[[str], Awaitable[dict[str, Key]]]
    ) -> dict[str, Key]:
        """The keys by ID, each by a request of its own (`one`), at the same time.

        The failure of one does not lose the others. Raises KeyUnavailable where all failed: KeysMissing as unknown.
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
        if trouble is not None and not found:
            raise trouble
        if unknown is not None and not found:
            raise KeysMissing(str(unknown), [], key_IDs) from (unknown.__cause__ or unknown)
        return found
