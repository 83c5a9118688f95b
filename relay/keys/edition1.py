"""The paths and bodies of ETSI GS QKD 014 V1.1.1, with the quirks of one KME.
Standard: 5.2 to 5.4 (calls), 6.1 to 6.4 (status, key request, key container, key IDs). Another edition would be another
file.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any
from urllib.parse import quote

from relay.keys.faults import Call
from relay.keys.http import HTTPRequest
from relay.keys.replies import (
    LARGEST_KEY_BITS,
    KeyStatus,
    json_body,
    keys_asked_for,
    keys_from_container,
    max_reply_octets,
    status_from_reply,
)
from relay.keys.settings import Quirks
from relay.keys.types import Key


class Edition1:
    """Makes the requests of one client, and reads their replies. `source` is named in errors."""

    def __init__(self, source: str, quirks: Quirks) -> None:
        self._source = source
        self._quirks = quirks

    def status(self, slave_sae: str) -> HTTPRequest:
        """The request for the status."""
        return HTTPRequest("GET", _path(slave_sae, Call.STATUS), sae=slave_sae)

    def enc_keys(self, slave_sae: str, number: int, size: int, options: Mapping[str, Any]) -> HTTPRequest:
        """The request for fresh keys of `size` bits: POST, or GET if the KME has only that and without options."""
        sizes = {"bits": {"size": size}, "bytes": {"size": size // 8}, "ignored": {}}[self._quirks.size_unit]
        content: dict[str, Any] = {"number": number, **sizes, **options}
        path, most = _path(slave_sae, Call.ENC_KEYS), max_reply_octets(number, size)
        if self._quirks.method == "GET" and not options:
            query = tuple((name, str(value)) for name, value in content.items())
            return HTTPRequest("GET", path, query, sae=slave_sae, max_octets=most)
        return HTTPRequest("POST", path, json=content, sae=slave_sae, max_octets=most)

    def dec_keys(self, master_sae: str, key_IDs: Sequence[str]) -> HTTPRequest:
        """The request for the keys with these IDs; only one if the KME has only GET."""
        path, most = _path(master_sae, Call.DEC_KEYS), max_reply_octets(len(key_IDs), LARGEST_KEY_BITS)
        if self._quirks.method == "GET":
            [key_ID] = key_IDs
            return HTTPRequest("GET", path, (("key_ID", key_ID),), None, master_sae, (key_ID,), most)
        items = [{"key_ID": self._written(key_ID)} for key_ID in key_IDs]
        return HTTPRequest("POST", path, (), {"key_IDs": items}, master_sae, tuple(key_IDs), most)

    def read_status(self, body: bytes | bytearray) -> KeyStatus:
        """The status in a reply. Raises KMEBadReply."""
        return status_from_reply(json_body(self._source, body))

    def read_fresh(self, body: bytes | bytearray, number: int, size: int) -> list[Key]:
        """The keys of a reply to `enc_keys`. Raises KMEBadReply; then none of them may be used."""
        numbers = self._quirks.integer_key_ids
        return keys_from_container(json_body(self._source, body, number), at_most=number, size=size, numbers=numbers)

    def read_asked_for(self, body: bytes | bytearray, key_IDs: Sequence[str]) -> tuple[dict[str, Key], int]:
        """The keys of a reply to `dec_keys`, and the number of unusable entries. Raises KMEBadReply."""
        return keys_asked_for(json_body(self._source, body, len(key_IDs)), key_IDs)

    def _written(self, key_ID: str) -> str | int:
        number = self._quirks.integer_key_ids and key_ID.isascii() and key_ID.isdigit()
        return int(key_ID) if number else key_ID


def _path(sae: str, call: Call) -> str:
    return f"/api/v1/keys/{quote(sae, safe='')}/{call}"
