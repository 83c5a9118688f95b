"""Authentication-Results: which of those from outside claim to be ours, whatever they are hidden in.
Standard: RFC 8601 2.2 (syntax), 5 (removal); everything else stays octet for octet.
"""

from __future__ import annotations

import time

import pytest
from hypothesis import given, strategies as st

from relay.dkim.results import AuthResult, results_field, without_forged
from tests.testlib import mails

OURS = "relay.bob.example"


@pytest.mark.parametrize(
    "field",
    [
        "Authentication-Results: relay.bob.example; dkim=pass",
        "Authentication-Results:relay.bob.example;dkim=pass",
        "AUTHENTICATION-RESULTS : Relay.Bob.Example ; dkim=pass",
        "Authentication-Results: relay.bob.example 1; dkim=pass",
        "Authentication-Results: relay.bob.example",
        "Authentication-Results:\r\n\trelay.bob.example;\r\n dkim=pass",
        "Authentication-Results: relay.bob.example.; dkim=pass",
        "Authentication-Results: relay.bob.example/1; dkim=pass",
        "Authentication-Results: relay.bob.example./1 1; dkim=pass",
        "Authentication-Results: relay.bob.example=1; dkim=pass",
        "Authentication-Results: relay.bob.example, dkim=pass",
        'Authentication-Results: "relay.bob.example"; dkim=pass',
        'Authentication-Results: "relay.\\bob.example"; dkim=pass',
        "Authentication-Results: (other.example;) relay.bob.example; dkim=pass",
        "Authentication-Results: (a (b) \\) c) relay.bob.example(d); dkim=pass",
        'Authentication-Results: (") relay.bob.example; x=(") other.example; dkim=pass',
        "Authentication-Results: (never closed relay.bob.example; dkim=pass",
        "Authentication-Results: ) relay.bob.example; dkim=pass",
        "Authentication-Results: relay. bob.example; dkim=pass",
        "Authentication-Results: relay.bob\r\n .example; dkim=pass",
        "Authentication-Results: relay(a).bob.(b)example 1; dkim=pass",
        'Authentication-Results: "relay." "bob.example" 1; dkim=pass',
        "Authentication-Results: relay .bob . example / 1; dkim=pass",
        'Authentication-Results: "relay.bob.example; dkim=pass',
        "Authentication-Results:",
    ],
)
def test_a_field_that_claims_to_be_ours_or_cannot_be_read_is_removed(field: str) -> None:
    before, after = b"X-Before: 1\r\n", b"X-After: 2\r\n"
    message = before + field.encode() + b"\r\n" + after + mails.plain()
    assert without_forged(message, OURS) == before + after + mails.plain()


@pytest.mark.parametrize("written", ["mx.b\u00fccher.example", "MX.Bu\u0308cher.Example.", "mx.xn--bcher-kva.example"])
def test_our_name_is_known_in_every_spelling(written: str) -> None:
    message = f"Authentication-Results: {written}; dkim=pass\r\n".encode() + mails.plain()
    assert without_forged(message, "mx.xn--bcher-kva.example") == mails.plain()


@pytest.mark.parametrize("piece", [b'"\\', b'\\"', b"()", b"(", b'""'])
def test_a_megabyte_that_never_comes_to_a_name_takes_linear_time(piece: bytes) -> None:
    field = b"Authentication-Results: " + piece * (2**20 // len(piece)) + b"\r\n"
    begun = time.process_time()
    assert without_forged(field + mails.plain(), OURS) == mails.plain()
    assert time.process_time() - begun < 2


@pytest.mark.parametrize(
    "field",
    [
        "Authentication-Results: mx.bob.example; dkim=pass (relay.bob.example)",
        "Authentication-Results: relay.bob.example.eve.example; dkim=pass",
        "Authentication-Results: relay.bob.example-1; dkim=pass",
        "Authentication-Results: relay.bob .example.eve.example 1; dkim=pass",
        "Authentication-Results: relay 1; dkim=pass",
        "Authentication-Results: \xe9.relay.bob.example; dkim=pass",
        "Authentication-Results: (relay.bob.example;) other.example; dkim=pass",
        "X-Authentication-Results: relay.bob.example; dkim=pass",
        "ARC-Authentication-Results: i=1; relay.bob.example; dkim=pass",
        "Subject: Authentication-Results: relay.bob.example; dkim=pass",
        "X-Folded: a\r\n Authentication-Results: relay.bob.example; dkim=pass",
    ],
)
def test_every_other_field_stays(field: str) -> None:
    message = field.encode() + b"\r\n" + mails.plain()
    assert without_forged(message, OURS) == message


@given(st.binary(max_size=300), st.sampled_from([b"", b"Authentication-Results: "]))
def test_any_header_is_read_to_its_end(octets: bytes, name: bytes) -> None:
    value = octets.replace(b"\r", b"").replace(b"\n", b"\r\n ")
    message = b"A: 1\r\n" + name + value + b"\r\n" + mails.plain()
    assert without_forged(message, OURS).endswith(mails.plain())


def test_what_strangers_wrote_cannot_end_the_field_or_a_word_in_it() -> None:
    hostile = 'a"; spf=pass\r\nX-Injected: 1'
    result = AuthResult("dkim", "fail", hostile, (("header.d", hostile), ("header.s", "fine")))
    field = results_field(OURS, [result])
    assert (
        field
        == b'Authentication-Results: relay.bob.example;\r\n dkim=fail reason="a spf=passX-Injected: 1" header.s=fine\r\n'
    )
