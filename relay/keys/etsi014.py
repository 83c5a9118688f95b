"""The optimized KM client: one KME, with pooled connections, retries, timeouts and a breaker.
Standard: ETSI GS QKD 014 V1.1.1, 5.2 to 5.4 (calls), 6.1 to 6.4 (bodies), read as tolerantly as real KMEs need, but
strictly about keys.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from functools import lru_cache
from types import MappingProxyType
from typing import Any, Unpack
from urllib.parse import quote

from relay.errors import KeyNotFound, KeyUnavailable, KMEBadReply, KMEExhausted, KMEMisconfigured
from relay.keys.asking import SHORTAGE
from relay.keys.client import KMEClient, check_numbers
from relay.keys.events import Events
from relay.keys.faults import Call, KMERefusedRequest
from relay.keys.http import HTTPRequest, Question
from relay.keys.replies import (
    LARGEST_KEY_BITS,
    USUAL_KEY_BITS,
    KeyStatus,
    OtherSize,
    count_of_keys,
    json_body,
    keys_asked_for,
    keys_from_container,
    max_reply_octets,
    status_from_reply,
)
from relay.keys.settings import ClientOptions
from relay.keys.types import SAEID, Found, Key, sae_text
from relay.runtime.aio import off_loop

log = Events(__name__)

SIZE_BELIEVED_FOR_S = 120.0
"""Time for which no other size is requested from a KME that ignores it, in seconds: each attempt burns keys."""


MOST_RECEIVED = 128
"""Maximum number of key IDs in one request if the KME states no limit."""

TRIAL_KEYS = (3, 2)
"""Number of keys in the two requests of a trial: no link makes just as many at the same moments."""


class OptimizedKMClient(KMEClient):
    """A client of one KME, for one SAE of ours (the one that the client certificate names).

    Every request is sent once and counted; a retry is a new request. Keys that an unanswered request may have spent are
    recorded as burnt, and limited by `burn_budget`.
    """

    def __init__(self, url: str, **options: Unpack[ClientOptions]) -> None:
        """As for an Asker."""
        super().__init__(url, **options)
        self._other_size: tuple[int, int, float] | None = None
        """Size in bits of keys of another size than requested, how often in a row, and until when this is believed."""
        self._most_of: dict[str, int | None] = {}
        """The KME's limit of keys in a request, by SAE, where its status was asked for."""

    @property
    def gives_only(self) -> int | None:
        """The size in bits of all its keys, if the KME was seen to ignore the requested size."""
        bits, seen, until = self._other_size or (0, 0, 0.0)
        return bits if seen > 1 and self._timing.clock() < until else None

    @property
    def any_size(self) -> bool:
        """As for every client; False while the KME was seen to ignore the size."""
        return super().any_size and self.gives_only is None

    @property
    def troubles(self) -> dict[str, str]:
        """As for every client."""
        if (bits := self.gives_only) is None:
            return super().troubles
        text = f"its keys have {bits} bits, whatever size is asked for: size_unit of this KME should say so"
        return super().troubles | {"size": text}

    def status_question(self, slave_sae: str) -> Question[KeyStatus]:
        """As for every client."""

        async def read(body: bytes | bytearray) -> KeyStatus:
            return status_from_reply(json_body(self.name, body))

        return Question(Call.STATUS, HTTPRequest("GET", _path(slave_sae, Call.STATUS), sae=slave_sae), read)

    async def request_enc_keys(
        self,
        slave_sae_id: SAEID,
        number: int = 1,
        size: int = 256,
        *,
        additional_slave_SAE_IDs: Sequence[str] = (),
        extension_mandatory: Sequence[dict[str, Any]] = (),
        extension_optional: Sequence[dict[str, Any]] = (),
        patient: bool = True,
    ) -> list[Key]:
        """From 1 to `number` fresh keys of `size` bits shared with the slave SAE (GS QKD 014, 5.3).

        Concurrent callers share one request. When none of them waits any more it is given up, and its keys are burnt.
        With further slaves or extensions the request is not shared. `patient` False means one attempt only. Raises
        KMEExhausted or another KeyUnavailable.
        """
        options = {
            "additional_slave_SAE_IDs": list(additional_slave_SAE_IDs),
            "extension_mandatory": list(extension_mandatory),
            "extension_optional": list(extension_optional),
        }
        if special := {name: value for name, value in options.items() if value}:
            check_numbers(number, size)
            return await self.draw_keys(sae_text(slave_sae_id), number, size, patient=patient, options=special)
        return await super().request_enc_keys(slave_sae_id, number, size, patient=patient)

    async def draw_keys(
        self,
        slave_sae_id: str,
        number: int,
        size: int,
        *,
        patient: bool = True,
        options: Mapping[str, Any] = MappingProxyType({}),
    ) -> list[Key]:
        """From 1 to `number` fresh keys of `size` bits, by a request of its own, with these `options`."""
        sae = slave_sae_id
        if self.gives_only not in (None, size):
            raise KMERefusedRequest(f"{self.name}: not asked for keys of {size} bits: {self.troubles['size']}")

        async def read(body: bytes | bytearray) -> list[Key]:
            return await self._fresh_keys(body, sae, number, size)

        question = Question(
            Call.ENC_KEYS, self._enc_keys_request(sae, number, size, options), read, spends=number, bits=number * size
        )
        async with self._turn(sae):
            return await self._ask(question, patient=patient)

    async def _fresh_keys(self, body: bytes | bytearray, sae: str, number: int, size: int) -> list[Key]:
        """The keys of a reply to a request for `number` of them, of `size` bits. Raises KeyUnavailable."""
        try:
            keys = await off_loop(len(body), self._read_fresh, body, number, size)
        except KMEBadReply as error:
            received = await off_loop(len(body), count_of_keys, body, number)
            self.burn(sae, number if received is None else received, "reply not believed")
            if isinstance(error, OtherSize):
                seen = self._other_size[1] + 1 if self._other_size and self._other_size[0] == error.bits else 1
                self._other_size = error.bits, seen, self._timing.clock() + SIZE_BELIEVED_FOR_S
            raise KMEBadReply(f"{self.name}: enc_keys: {error}") from error
        if not keys:
            raise KMEExhausted(f"{self.name}: enc_keys: {SHORTAGE}: no key left for SAE {sae}")
        if self.gives_only is None:
            self._other_size = None
        return keys

    async def check_key_status(self, slave_sae_id: SAEID, *, patient: bool = True) -> KeyStatus:
        """As for every client."""
        status = await super().check_key_status(slave_sae_id, patient=patient)
        self._most_of[sae_text(slave_sae_id)] = status.max_key_per_request
        return status

    async def _receive_keys(self, master_sae: str, key_IDs: Sequence[str], *, patient: bool) -> None:
        """In as many requests as the KME wants, one after the other, until one fails; with GET, each by itself."""
        if self.one_by_one:
            await self._receive_each([self._question_for(master_sae, [each]) for each in key_IDs], patient=patient)
            return
        todo, most = list(key_IDs), self.most_received(master_sae)
        while todo:
            part = todo[:most]
            try:
                await self._received(self._question_for(master_sae, part), patient=patient)
            except KMERefusedRequest as error:
                if len(part) == 1 or error.http_status == 0:
                    raise
                most = await self._fewer(master_sae, len(part))
            else:
                del todo[:most]

    def most_received(self, master_sae: str) -> int:
        """As for every client: the KME's limit, where its status was asked for."""
        return super().most_received(master_sae) if self.one_by_one else self._most_of.get(master_sae) or MOST_RECEIVED

    async def _fewer(self, master_sae: str, number: int) -> int:
        """The most keys for a request, after one for `number` was refused: the KME's limit, else half as many."""
        if master_sae not in self._most_of:
            with suppress(KeyUnavailable):
                await self.check_key_status(master_sae, patient=False)
        limit = self._most_of.setdefault(master_sae, None)
        return limit if limit and limit < number else number // 2

    async def keeps_undelivered(self, slave_sae_id: SAEID, own_sae_id: SAEID) -> Found:
        """What becomes of keys that the slave has not fetched with a further request for keys.

        Where ourselves may be a further slave, it draws two keys and fetches them. Else it draws three keys and two,
        and looks whether stored_key_count is the number of those that nobody has fetched. With a KME that drops keys
        it costs all that the slave has not fetched yet. Raises KeyUnavailable when the KME cannot be asked.
        """
        sae, own = sae_text(slave_sae_id), sae_text(own_sae_id)
        status = await self.check_key_status(sae, patient=False)
        size = status.key_size or USUAL_KEY_BITS
        if not status.max_SAE_ID_count:
            return await self._counted(sae, status, size)
        try:
            drawn = [(await self._trial_keys(sae, 1, size, own))[0] for _ in range(2)]
        except KMEMisconfigured:
            return "untold"
        # The later one first: if that arrives, a missing earlier one is not due to lag.
        answers: tuple[Found, Found] = ("untold", "dropped")
        for key, answer in zip(reversed(drawn), answers, strict=True):
            try:
                await self._fetch_trial(own, key.key_ID)
            except (KeyNotFound, KMEMisconfigured):
                return answer
        return "kept"

    async def _counted(self, sae: str, status: KeyStatus, size: int) -> Found:
        """The same from the number of stored keys: as a rule it falls with each request, and shows nothing."""
        if status.stored_key_count is None or 0 < (status.max_key_per_request or 0) < TRIAL_KEYS[0]:
            return "untold"
        before, stored = status.stored_key_count, []
        for number in TRIAL_KEYS:
            if len(await self._trial_keys(sae, number, size)) != number:
                return "untold"
            stored.append((await self.check_key_status(sae, patient=False)).stored_key_count)
            if stored[0] not in (before + TRIAL_KEYS[0], TRIAL_KEYS[0]):
                return "untold"
        first, second = TRIAL_KEYS
        if stored == [before + first, before + first + second]:
            return "kept"
        return "counted" if stored[1] == (stored[0] or 0) - first + second else "untold"

    async def _trial_keys(self, sae: str, number: int, size: int, further: str = "") -> list[Key]:
        """Keys for the trial only."""
        options = {"additional_slave_SAE_IDs": [further]} if further else {}
        keys = await self.draw_keys(sae, number, size, patient=False, options=options)
        self.accounts.issued_and_burnt(sae, len(keys), "trial")
        return keys

    async def _fetch_trial(self, own: str, key_ID: str) -> None:
        """Fetches the trial key: a request without key_IDs of its own, so that no spool keeps the reply."""
        question = self._question_for(own, [key_ID])
        question = replace(question, request=replace(question.request, key_IDs=()))
        if not await self._ask(question, patient=False):
            raise KeyNotFound(f"{self.name}: dec_keys: {key_ID} did not come")

    def _question_for(self, master_sae: str, key_IDs: Sequence[str]) -> Question[Mapping[str, Key]]:
        """The question for the keys with these IDs."""

        async def read(body: bytes | bytearray) -> dict[str, Key]:
            keys, others = await off_loop(len(body), self._read_asked_for, body, key_IDs)
            if not others:
                return keys
            log.error("kme_gave_other_keys", kme=self.name, master_sae=master_sae, number=others)
            if len(keys) < len(key_IDs):
                which = f"{others} entries are no key" if keys else f"none of {others} entries is a key"
                error = KMEBadReply(f"{self.name}: dec_keys: {which} asked for")
                error.found = list(keys.values())
                raise error
            return keys

        return Question(Call.DEC_KEYS, self._dec_keys_request(master_sae, key_IDs), read)

    def _enc_keys_request(self, sae: str, number: int, size: int, options: Mapping[str, Any]) -> HTTPRequest:
        """POST, or GET if the KME has only that and without options."""
        quirks = self.settings.quirks
        sizes = {"bits": {"size": size}, "bytes": {"size": size // 8}, "ignored": {}}[quirks.size_unit]
        content: dict[str, Any] = {"number": number, **sizes, **options}
        path, most = _path(sae, Call.ENC_KEYS), max_reply_octets(number, size)
        if quirks.method == "GET" and not options:
            query = tuple((name, str(value)) for name, value in content.items())
            return HTTPRequest("GET", path, query, sae=sae, max_octets=most)
        return HTTPRequest("POST", path, json=content, sae=sae, max_octets=most)

    def _dec_keys_request(self, master_sae: str, key_IDs: Sequence[str]) -> HTTPRequest:
        """The request for the keys with these IDs; only one if the KME has only GET."""
        quirks = self.settings.quirks
        path, most = _path(master_sae, Call.DEC_KEYS), max_reply_octets(len(key_IDs), LARGEST_KEY_BITS)
        if quirks.method == "GET":
            [key_ID] = key_IDs
            return HTTPRequest("GET", path, (("key_ID", key_ID),), None, master_sae, (key_ID,), most)
        items = [
            {"key_ID": int(each) if quirks.integer_key_ids and each.isascii() and each.isdigit() else each}
            for each in key_IDs
        ]
        return HTTPRequest("POST", path, (), {"key_IDs": items}, master_sae, tuple(key_IDs), most)

    def _read_fresh(self, body: bytes | bytearray, number: int, size: int) -> list[Key]:
        """The keys of a reply to enc_keys. Raises KMEBadReply; then none of them may be used."""
        numbers = self.settings.quirks.integer_key_ids
        return keys_from_container(json_body(self.name, body, number), at_most=number, size=size, numbers=numbers)

    def _read_asked_for(self, body: bytes | bytearray, key_IDs: Sequence[str]) -> tuple[dict[str, Key], int]:
        """The keys of a reply to dec_keys, and the number of unusable entries. Raises KMEBadReply."""
        return keys_asked_for(json_body(self.name, body, len(key_IDs)), key_IDs)


@lru_cache(maxsize=256)
def _path(sae: str, call: Call) -> str:
    return f"/api/v1/keys/{quote(sae, safe='')}/{call}"
