"""The keys of a dec_keys reply that were asked for, in whatever letters the KME writes their IDs.
Standard: ETSI GS QKD 014 V1.1.1, 6.3; a key comes once, so none that was asked for may be thrown away.
"""

from __future__ import annotations

import base64
from typing import Any

import pytest

from relay.keys.replies import keys_asked_for, text_of_error

ONE, TWO = b"1" * 32, b"2" * 32


def _reply(*keys: tuple[str, bytes]) -> Any:
    return {"keys": [{"key_ID": key_ID, "key": base64.b64encode(octets).decode()} for key_ID, octets in keys]}


@pytest.mark.promise("Forgeries do not block the genuine mail")
def test_a_key_that_comes_in_other_letters_is_the_one_that_was_asked_for() -> None:
    """Who forges a message that names a key in capitals must not have it thrown away."""
    found, refused = keys_asked_for(_reply(("ab-1", ONE)), ["AB-1"])
    assert ({key_ID: key.key for key_ID, key in found.items()}, refused) == ({"AB-1": ONE}, 0)


def test_a_key_that_was_asked_for_in_two_spellings_and_comes_in_a_third_is_both() -> None:
    found, _ = keys_asked_for(_reply(("ab-1", ONE)), ["AB-1", "Ab-1"])
    assert {key_ID: key.key for key_ID, key in found.items()} == {"AB-1": ONE, "Ab-1": ONE}


def test_two_keys_whose_ids_differ_in_case_alone_are_told_apart_where_the_kme_does() -> None:
    found, refused = keys_asked_for(_reply(("ab-1", ONE), ("AB-1", TWO)), ["AB-1", "ab-1"])
    assert {key_ID: key.key for key_ID, key in found.items()} == {"AB-1": TWO, "ab-1": ONE}
    assert refused == 0


def test_other_keys_and_doubtful_ones_are_of_no_use() -> None:
    assert keys_asked_for(_reply(("cd", ONE)), ["ab"]) == ({}, 1)
    assert keys_asked_for(_reply(("ab", ONE), ("ab", TWO)), ["ab"]) == ({}, 1)
    assert keys_asked_for(_reply(("Ab", ONE), ("aB", TWO)), ["ab"]) == ({}, 1)


@pytest.mark.parametrize(
    ("body", "text"),
    [
        ('{"message": "no", "details": [{"key_ID": "a"}]}', "no [{'key_ID': 'a'}]"),
        ('{"detail": "0 activated keys remaining"}', "0 activated keys remaining"),
        (
            '{"type": "about:blank", "title": "Not Found", "status": 404, "detail": "no such key"}',
            "Not Found no such key",
        ),
        ('{"error": "invalid_token", "error_description": "expired"}', "invalid_token expired"),
        ('{"errors": [{"field": "size"}]}', "[{'field': 'size'}]"),
        ('{"Msg": "who are you"}', "who are you"),
        ('"text"', "text"),
        ("<html><title>502</title>", "502"),
        ("", "empty"),
        ("{}", "no message"),
    ],
)
def test_the_text_of_an_error_is_found_wherever_a_framework_puts_it(body: str, text: str) -> None:
    assert text_of_error(body.encode()).text == text
