"""Fuzz target for what KMEs answer: nothing but KMEBadReply, believable keys only, and no key in any text for the log.
Standard: ETSI GS QKD 014 V1.1.1 6, draft-cisco-skip; a key is text of an object's member `key` that may be long enough.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from relay.errors import KMEBadReply
from relay.keys import replies, skip
from tests.system.fuzz.target import Target, check
from tests.testlib import hostile

KEY_BITS = 256
AT_MOST = 8
ASKED = ("5f1c9b9e-0000-4000-8000-000000000001", "a", "7")

WORDS = (
    b'"keys"', b'"Keys"', b'"key_ID"', b'"key_id"', b'"key"', b'"keyId"', b'"details"', b'"message"', b'"key_size"',
    b'"stored_key_count"', b'"max_key_per_request"', b"[", b"]", b"{", b"}", b":", b",", b'"', b"\\", b"null", b"true", b"NaN",
    b"-1", b"1e999", b"1" * 5000, b"0", b'"\\ud800"', b'"\\u0000"', b"[" * 2000, b'{"a":' * 500, b"\xff", b"\xef\xbb\xbf",
    b"\xff\xfe", b"\0", b"<html>", b'"' + base64.b64encode(bytes(32)) + b'"', b'"' + b"00" * 32 + b'"', b"=", b"\r\n",
)  # fmt: skip


def seeds() -> list[bytes]:
    """Replies of the standard's shapes and of those that real KMEs have."""
    key = base64.b64encode(b"0123456789abcdef0123456789abcdef").decode()
    one = {"key_ID": ASKED[0], "key": key}
    status = {
        "source_KME_ID": "K1", "target_KME_ID": "K2", "master_SAE_ID": "2", "slave_SAE_ID": "1", "key_size": 256,
        "stored_key_count": 500, "max_key_count": 1000, "max_key_per_request": 128, "max_key_size": 1024,
        "min_key_size": 64, "max_SAE_ID_count": 0, "status_extension": {"x": [1]},
    }  # fmt: skip
    found: tuple[dict[str, Any], ...] = (
        {"keys": [one]},
        {"keys": [one, {"key_ID": "a", "key": key, "key_extension": {"a": 1}}], "key_container_extension": {}},
        {"Keys": {"key_id": 7, "KEY": key}},
        {"keys": {"first": one}},
        {"keys": []},
        status,
        {"message": "one or more keys specified are not found on KME", "details": [{"key_ID": "a"}]},
        {"message": "no", "details": {"keys": {"deep": [7, ASKED[0]]}}},
        {"keyId": "a", "key": "00" * 32},
        {"entropy": True, "key": True, "algorithm": "x", "localSystemID": "2", "remoteSystemID": ["1", "bob*"]},
    )
    return [*(json.dumps(each).encode() for each in found), b"<html>502 Bad gateway</html>", b"", b"null", b"[1, 2]"]


def target(data: bytes) -> None:
    """A reply's body through every reader of it."""
    secrets = _secrets(data)
    check(0 <= len(replies.text_of_error(data).text) <= 200, "an error's text is long")
    check(replies.text_of_error(data).text.isprintable(), "an error's text is not one line")
    check(replies.key_IDs_in_error(data, ASKED) <= set(ASKED), "an error names keys that nobody asked for")
    count = replies.count_of_keys(data, AT_MOST)
    check(count is None or count >= 0, "a number of keys")
    with _no_key_told(secrets):
        _skip_key(data)
    with _no_key_told(secrets):
        body = replies.json_body("kme", data)
        with _no_key_told(secrets):
            replies.status_from_reply(body)
        with _no_key_told(secrets):
            _fresh(body)
        with _no_key_told(secrets):
            found, refused = replies.keys_asked_for(body, ASKED)
            check(found.keys() <= set(ASKED) and refused >= 0, "keys came that nobody asked for")


def _fresh(body: Any) -> None:
    keys = replies.keys_from_container(body, at_most=AT_MOST, size=KEY_BITS)
    check(len(keys) <= AT_MOST, "more keys than were asked for")
    check(len({key.key_ID for key in keys}) == len(keys), "a key_ID twice")
    for key in keys:
        check(len(key.key) * 8 == KEY_BITS, "a key of another length")
        check(0 < len(key.key_ID) <= 256 and key.key_ID.isprintable(), "a key_ID that cannot be")


def _skip_key(data: bytes) -> None:
    key = skip._key("provider", data, KEY_BITS)
    check(len(key.key) * 8 == KEY_BITS and key.key_ID.isprintable(), "a key that cannot be")


def _secrets(data: bytes) -> set[str]:
    """Every text in a member `key` that is long enough to be one, and no other text that the errors quote."""
    try:
        waiting: list[Any] = [json.loads(data)]
    except (ValueError, RecursionError):
        return set()
    keys: set[str] = set()
    others: set[str] = set()
    while waiting:
        value = waiting.pop()
        if isinstance(value, dict):
            for name, inside in value.items():
                named = name.lower() == "key" and isinstance(inside, str)
                (keys if named else others).add(inside if isinstance(inside, str) else "")
                waiting.append(inside)
        elif isinstance(value, list):
            waiting += value
    return {key for key in keys if len(key) >= 20 and not any(key in other for other in others)}


@contextmanager
def _no_key_told(secrets: set[str]) -> Iterator[None]:
    """Lets KMEBadReply be, in whose text there must not be a key."""
    try:
        yield
    except KMEBadReply as error:
        check(not any(secret in f"{error!r} {error.__cause__!r}" for secret in secrets), "a key is told")


KME = Target("kme", target, seeds, WORDS, hostile.REPLIES)
