"""A client of a Cisco SKIP key provider, with the same interface as the ETSI client: one key a request.
Standard: draft-cisco-skip (Secure Key Integration Protocol): GET /capabilities, /key and /key/{keyId}, hex.

A provider returns one key at a time and has only GET, so each request has its own connection and is sent once.
localSystemID and remoteSystemID are the SAE IDs of the two sites.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from fnmatch import fnmatchcase
from typing import Any
from urllib.parse import quote

from relay.errors import KeyNotFound, KMEBadReply
from relay.formats.characters import is_printable
from relay.keys.client import KMEClient
from relay.keys.faults import Call, ErrorRule, KMEFault
from relay.keys.http import HTTPRequest, Question
from relay.keys.replies import (
    LARGEST_KEY_BITS,
    MAX_KEY_ID_CHARS,
    USUAL_KEY_BITS,
    KeyStatus,
    is_worn,
    json_body,
    max_reply_octets,
)
from relay.keys.types import SAEID, Found, Key

_HEX = re.compile(r"(?:[0-9A-Fa-f]{2})+")
_PLAIN = re.compile(r"[0-9A-Za-z_-]{1,256}")


class SKIPClient(KMEClient):
    """A client of one key provider. Its settings are those of KMEClient; the quirks of ETSI do not apply."""

    usual_errors = (ErrorRule(KMEFault.NOT_FOUND, 400, Call.DEC_KEYS),)

    one_by_one = True  # SKIP has only GET
    any_size = False  # other sizes than 256 bits are optional; pads use keys of the usual size

    def status_question(self, slave_sae: str) -> Question[KeyStatus]:
        """The question for the provider's capabilities as a status; SKIP does not report stored keys.

        It raises KMEBadReply if the provider has no keys for this remote system.
        """
        remote = slave_sae

        async def read(body: bytes | bytearray) -> KeyStatus:
            capabilities = _object(self.name, body)
            remotes = capabilities.get("remoteSystemID")
            if capabilities.get("key") is False or (isinstance(remotes, list) and not _serves(remotes, remote)):
                raise KMEBadReply(f"{self.name}: the provider has no keys for remote system {remote}")
            local = str(capabilities.get("localSystemID", ""))
            return KeyStatus(
                source_KME_ID=local,
                target_KME_ID=remote,
                master_SAE_ID=local,
                slave_SAE_ID=remote,
                key_size=USUAL_KEY_BITS,
                max_key_per_request=1,
                max_key_size=USUAL_KEY_BITS,
                status_extension={"algorithm": capabilities.get("algorithm"), "entropy": capabilities.get("entropy")},
            )

        return Question(Call.STATUS, HTTPRequest("GET", "/capabilities", sae=remote), read)

    most_per_request = 1

    async def keeps_undelivered(self, slave_sae_id: SAEID, own_sae_id: SAEID) -> Found:
        """A key provider gives one key a request, so it keeps those before."""
        return "kept"

    async def draw_keys(self, slave_sae_id: str, number: int, size: int, *, patient: bool = True) -> list[Key]:
        """One fresh key of `size` bits, whatever `number` is. Raises KeyUnavailable."""
        remote = slave_sae_id
        query = (("remoteSystemID", remote), ("size", str(size)))
        request = HTTPRequest("GET", "/key", query, sae=remote, max_octets=max_reply_octets(1, size))

        async def read(body: bytes | bytearray) -> list[Key]:
            try:
                return [_key(self.name, body, size)]
            except KMEBadReply:
                self.burn(remote, 1, "reply not believed")
                raise

        async with self._turn(remote):
            return await self._ask(Question(Call.ENC_KEYS, request, read, spends=1, bits=size), patient=patient)

    async def _receive_keys(self, master_sae: str, key_IDs: Sequence[str], *, patient: bool) -> None:
        """Each by its own concurrent request."""
        if wrong := [key_ID for key_ID in key_IDs if not _PLAIN.fullmatch(key_ID)]:
            raise KeyNotFound(f"{self.name}: {wrong[0]!r} is no keyId of SKIP")
        await self._receive_each([self._question_for(master_sae, key_ID) for key_ID in key_IDs], patient=patient)

    def _question_for(self, master_sae: str, key_ID: str) -> Question[Mapping[str, Key]]:
        query = (("remoteSystemID", master_sae),)
        path, most = f"/key/{quote(key_ID, safe='')}", max_reply_octets(1, LARGEST_KEY_BITS)

        async def read(body: bytes | bytearray) -> dict[str, Key]:
            return {key_ID: key_asked_for(self.name, body, key_ID)}

        return Question(Call.DEC_KEYS, HTTPRequest("GET", path, query, None, master_sae, (key_ID,), most), read)


def key_asked_for(source: str, body: bytes | bytearray, key_ID: str) -> Key:
    """The key of a reply to /key/{keyId}; `source` is named in errors. Raises KMEBadReply."""
    key = _key(source, body)
    if key.key_ID.lower() != key_ID.lower():
        raise KMEBadReply(f"{source}: another key came than the one asked for")
    return Key(key_ID, key.key)


def _object(source: str, body: bytes | bytearray) -> dict[str, Any]:
    parsed = json_body(source, body)
    if not isinstance(parsed, dict):
        raise KMEBadReply(f"{source}: the reply is not a JSON object")
    return parsed


def _key(source: str, body: bytes | bytearray, size: int | None = None) -> Key:
    fields = _object(source, body)
    key_ID, octets = fields.get("keyId"), fields.get("key")
    if not isinstance(key_ID, str) or not 0 < len(key_ID) <= MAX_KEY_ID_CHARS or not is_printable(key_ID):
        raise KMEBadReply(f"{source}: a keyId is not 1 to {MAX_KEY_ID_CHARS} printable characters")
    if not isinstance(octets, str) or not _HEX.fullmatch(octets):
        raise KMEBadReply(f"{source}: the key is not hexadecimal")
    if size is not None and len(octets) * 4 != size:
        raise KMEBadReply(f"{source}: {len(octets) * 4} bits came, {size} were asked for")
    key = Key(key_ID, bytes.fromhex(octets))
    if size is not None and is_worn(key.key):
        raise KMEBadReply(f"{source}: all bytes of the key are the same, which no source of keys gives by chance")
    return key


def _serves(remotes: Sequence[object], remote: str) -> bool:
    """Whether a remote system matches; entries may be patterns with `*`, `?`, `[list]` and `[!list]`."""
    return any(str(name) == remote or fnmatchcase(remote, str(name)) for name in remotes)
