"""The base client of one KME: the calls of programs, and sharing of requests and keys between callers.
Standard: ETSI GS QKD 014 V1.1.1, 5.2 to 5.4, whose three calls Cisco SKIP also has, under other names.
"""

from __future__ import annotations

import asyncio
from abc import abstractmethod
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Self, Unpack

from relay.errors import KeyNotFound, KeyUnavailable, KMEExhausted, KMEUnreachable
from relay.keys.asking import Asker
from relay.keys.faults import Call, KeysMissing
from relay.keys.http import Question
from relay.keys.issued import SeenKeys
from relay.keys.pool import KeyPool
from relay.keys.refill import Prefetch
from relay.keys.settings import ClientOptions
from relay.keys.types import SAEID, Key, sae_text
from relay.keys.untaken import Untaken
from relay.runtime.aio import begun

RECEIVED_AT_ONCE = 5
"""Number of keys of one message that are requested at once where each has a request of its own."""


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


def in_order(
    source: str, key_IDs: Sequence[str], found: Mapping[str, Key], cause: KeyUnavailable | None = None
) -> list[Key]:
    """The keys with these IDs, in order. Raises KeysMissing with the keys found; `source` is for its text."""
    if missing := [key_ID for key_ID in key_IDs if key_ID not in found]:
        text = f"{source}: dec_keys: {len(missing)} of {len(key_IDs)} keys did not come: {missing[0]}"
        raise KeysMissing(f"{text}; {cause}" if cause else text, list(found.values()), missing) from cause
    return [found[key_ID] for key_ID in key_IDs]


class KMEClient(Asker):
    """A client of one KME: subclasses implement the three calls of a protocol.

    Each call ends in a result or a typed error within the configured time; `patient` False means one attempt only.
    """

    def __init__(self, url: str, **options: Unpack[ClientOptions]) -> None:
        """As for an Asker."""
        super().__init__(url, **options)
        self._fresh = self._shared_requests()
        self.untaken = Untaken(self.name, self._timing.clock)
        """Received keys on their way to a caller."""

    async def request_enc_keys(
        self, slave_sae_id: SAEID, number: int = 1, size: int = 256, *, patient: bool = True
    ) -> list[Key]:
        """From 1 to `number` fresh keys of `size` bits shared with the slave SAE. Raises KeyUnavailable.

        Concurrent callers share one request. Keys that arrive after a caller has given up are kept for the next one.
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

    async def request_dec_keys(
        self, master_sae_id: SAEID, key_IDs: Sequence[str], *, patient: bool = True
    ) -> list[Key]:
        """The keys with these IDs, in order, which `master_sae_id` drew (GS QKD 014, 5.4).

        The KME delivers each of them once: store them before anything else. Raises KeysMissing if the KME does not know
        one of them, another KeyUnavailable if it cannot be asked. Their `found` has the keys that did arrive. Keys
        that arrive after the caller has given up are kept for the next caller, for 5 minutes. Raises TypeError if
        `key_IDs` is a string. `patient` False means one attempt only.
        """
        unique, master_sae = once_each(key_IDs), sae_text(master_sae_id)
        self.bind()
        trouble: KeyUnavailable | None = None
        if missing := self.untaken.missing(master_sae, unique):
            try:
                await self._receive_keys(master_sae, missing, patient=patient)
            except KeyUnavailable as error:
                trouble = error
        found = self.untaken.take(master_sae, unique)
        if len(found) < len(unique) and trouble is not None and not (found and isinstance(trouble, KeyNotFound)):
            trouble.found = list(found.values())
            raise trouble
        return in_order(self.name, key_IDs, found, trouble)

    def most_received(self, master_sae: str) -> int:
        """Maximum number of keys to request together: so many requests go out at once."""
        return RECEIVED_AT_ONCE

    @abstractmethod
    async def _receive_keys(self, master_sae: str, key_IDs: Sequence[str], *, patient: bool) -> None:
        """Makes the calls for these keys, each by `_received`. Raises the KeyUnavailable of one that failed."""

    async def _received(self, question: Question[Mapping[str, Key]], *, patient: bool) -> None:
        """Makes one call for received keys: what comes is `untaken`. Raises KeyUnavailable.

        The call goes on when its caller gives up after it was sent, while half of the connections are free for others.
        """

        async def receive() -> None:
            try:
                came = (await self._ask(question, patient=patient)).values()
            except KeyUnavailable as error:
                self.untaken.put(question.request.sae, error.found)
                raise
            self.untaken.put(question.request.sae, came)

        call = begun(receive(), "receive keys")
        try:
            await asyncio.wait([call])
        except asyncio.CancelledError:
            if call in self._sent and len(self._late) < self.pool_maxsize // 2:
                self._late.add(call)
                call.add_done_callback(self._late.discard)
            else:
                call.cancel()
            raise
        if call.cancelled():
            raise KMEUnreachable(f"{self.name}: the client was closed")
        call.result()

    async def _receive_each(self, questions: Iterable[Question[Mapping[str, Key]]], *, patient: bool) -> None:
        """Makes these calls concurrently. Raises the error of one that failed, of a missing key last."""
        answers = await asyncio.gather(
            *(self._received(each, patient=patient) for each in questions), return_exceptions=True
        )
        errors = sorted((each for each in answers if each is not None), key=lambda each: isinstance(each, KeyNotFound))
        if errors:
            raise errors[0]

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
        for call in (late := list(self._late)):
            call.cancel()
        await asyncio.gather(*late, return_exceptions=True)
        self.untaken.close()
        await self.renewal.close()
        await self.transport.close()
        self._fresh = self._shared_requests()
        self.loop = None

    def _shared_requests(self) -> KeyPool:
        """The pool behind the public calls for fresh keys: it draws on demand, and keeps nothing ready."""
        return KeyPool(self, Prefetch(low=0, high=0), SeenKeys(), self._timing, managed=False)
