"""What we sign, verifies: by us, by dkimpy and by OpenDKIM; and bodies are hashed as dkimpy hashes them.
Standard: RFC 6376 3.4 to 3.7, RFC 8463.
"""

from __future__ import annotations

import hashlib
import re
import subprocess
from pathlib import Path

import pytest
from dkim.canonicalization import CanonicalizationPolicy
from hypothesis import HealthCheck, given, settings, strategies as st

from relay.dkim import Signer
from relay.dkim.canonical import Header, body_hash
from relay.dkim.signing import author_domain
from tests.testlib import mails
from tests.testlib.long import sized
from tests.unit.dkim.conftest import Keys, dkimpy_says

lines = st.binary(max_size=90).map(lambda line: re.sub(rb"[\r\n]", b"", line) + b"\r\n")
blanks = st.sampled_from([b"\r\n", b" \r\n", b"\t \r\n", b"a  b\t\tc \r\n", b" a\r\n", b"x" * 3000 + b"\r\n"])
bodies = st.lists(lines | blanks, max_size=20).map(b"".join)
words = st.text('abz09 \tÄé:;="\\()<>,', max_size=60).map(str.encode)
fields = st.builds(
    lambda name, value, more: name + b":" + value + b"".join(b"\r\n " + each for each in more) + b"\r\n",
    st.sampled_from([b"To", b"to", b"Subject", b"Cc", b"X-Other", b"Content-Type", b"Received"]),
    words,
    st.lists(words.map(lambda word: b"x" + word), max_size=3),
)
AUTHOR = b"From: Ann <ann@alice.example>\r\n"


@settings(max_examples=sized(60, 1000), deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(header=st.lists(fields, max_size=8).map(b"".join), body=bodies)
def test_whatever_the_message_is_its_signatures_verify(keys: Keys, header: bytes, body: bytes) -> None:
    message = AUTHOR + header + b"\r\n" + body
    signed = Signer([keys.rsa, keys.ed25519]).fields(message) + message
    texts = {key.name: key.record.encode() for key in keys.all}
    assert [dkimpy_says(signed, texts, index) for index in (0, 1)] == [True, True]


@settings(max_examples=sized(150, 3000), deadline=None)
@given(body=bodies, piece=st.integers(1, 40), relaxed=st.booleans(), limit=st.none() | st.integers(0, 100))
def test_a_body_is_hashed_as_dkimpy_does_wherever_its_pieces_end(
    body: bytes, piece: int, relaxed: bool, limit: int | None
) -> None:
    name = b"relaxed" if relaxed else b"simple"
    canonical = CanonicalizationPolicy.from_c_value(b"relaxed/" + name).canonicalize_body(body)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("relay.dkim.canonical.PIECE_OCTETS", piece)
        found = body_hash(body, relaxed=relaxed, limit=limit)
    assert found.length == len(canonical)
    assert found.digest == hashlib.sha256(canonical[:limit]).digest()


@pytest.mark.parametrize("octets", [b" ", b"\t", b"\r\n", b" \r\n"])
def test_megabytes_of_blanks_take_linear_time(octets: bytes) -> None:
    body = octets * (8 * 2**20 // len(octets)) + b"x\r\n"
    blank_lines = octets.endswith(b"\n") and body.count(b"\r\n") - 1
    expected = b"\r\n" * blank_lines if octets.endswith(b"\n") else b" "
    assert body_hash(body).digest == hashlib.sha256(expected + b"x\r\n").digest()


MESSAGES = {
    "plain": mails.plain(),
    "eight-bit": mails.eight_bit(),
    "attachment": mails.random_attachment(),
    "no body": AUTHOR + b"\r\n",
    "no empty line": AUTHOR,
    "long lines": AUTHOR + b"Subject: " + b"s" * 900 + b"\r\n\r\n" + b"x" * 990 + b"\r\n",
    "fields twice": AUTHOR + b"To: a@b.example\r\nTo: c@d.example\r\n\r\nText\r\n\r\n\r\n",
}


@pytest.mark.parametrize("algorithm", ["rsa", "ed25519"])
@pytest.mark.parametrize("kind", MESSAGES)
def test_opendkim_finds_our_signature_valid_and_misses_no_change(
    keys: Keys, tmp_path: Path, kind: str, algorithm: str
) -> None:
    key = keys.rsa if algorithm == "rsa" else keys.ed25519
    signed = Signer([key]).fields(MESSAGES[kind]) + MESSAGES[kind]
    assert f"verification (s={key.selector}, d=alice.example" in opendkim_says(tmp_path, keys, signed)
    changed = signed.replace(b"ann@alice.example", b"eve@alice.example")
    assert "failed: signature verification failed" in opendkim_says(tmp_path, keys, changed)
    added = b"Reply-To: eve@eve.example\r\n" + signed
    assert "failed: signature verification failed" in opendkim_says(tmp_path, keys, added)


def opendkim_says(directory: Path, keys: Keys, message: bytes) -> str:
    """OpenDKIM's words on a message, with our keys in place of the DNS."""
    (directory / "message").write_bytes(message)
    (directory / "keys").write_text("".join(f"{key.name} {key.record}\n" for key in keys.all))
    (directory / "opendkim.conf").write_text(f"Mode v\nTestPublicKeys {directory}/keys\n")
    command = ["opendkim", "-v", "-x", str(directory / "opendkim.conf"), "-t", str(directory / "message")]
    return subprocess.run(command, capture_output=True, text=True, check=True, timeout=60).stdout


@pytest.mark.parametrize(
    ("field", "domain"),
    [
        (b"From: ann@alice.example\r\n", "alice.example"),
        (b"From: Ann <ann@ALICE.example>\r\n", "alice.example"),
        (b'From: "Eve <eve@eve.example>"\r\n <ann@alice.example>\r\n', "alice.example"),
        (b"from : (eve@eve.example) ann@alice.example, ben@bob.example\r\n", "alice.example"),
        ("From: Änne <änne@bücher.example>\r\n".encode(), "xn--bcher-kva.example"),
        (b"From: ann@alice.example\r\nFrom: eve@eve.example\r\n", ""),
        (b"From: Ann\r\n", ""),
        (b"From:\r\n", ""),
        (b"From: " + b"(" * 3000 + b"ann@alice.example\r\n", ""),
        (b"From: " + b"(" * 1500 + b"ann@alice.example\r\n", ""),
        (b"X-From: ann@alice.example\r\n", ""),
    ],
)
def test_the_signing_domain_is_that_of_the_author(field: bytes, domain: str) -> None:
    assert author_domain(Header(field)) == domain
