"""relay/FORMAT.md says what the code does: identifiers, limits, numbers, and the worked examples.
Standard: every table and every marked example of the document is compared, so that none of them can grow old.
"""

from __future__ import annotations

import importlib
import math
import re
import struct
import uuid
from datetime import timedelta
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.poly1305 import Poly1305
from cryptography.x509 import ObjectIdentifier

from relay import levels
from relay.canary import message as canary
from relay.canary.box import ANSWER_S
from relay.formats import characters, cms, mime
from relay.formats.cms import ber, oids
from relay.formats.cms.der import header
from relay.formats.cms.recipients import KEMS
from relay.journey.opening import SKEW, WINDOW
from relay.keys.pads import plan_pad
from relay.keys.replies import KeyStatus
from relay.schemes.padding import LENGTH_OCTETS, pad, padded_size, padme, unpad
from relay.store.received import OTP_KEEP_FOR_S, USED_KEEP_FOR_S
from relay.store.received_table import UNUSED_KEEP_FOR_S
from tests.vectors import trees
from tests.vectors.case import read_all
from tests.vectors.trees import Node

DOCUMENT = (Path(__file__).parents[2] / "relay" / "FORMAT.md").read_text()
FLAT = " ".join(DOCUMENT.split())
CASES = {case.name: case for case in read_all()}
EXAMPLES = dict(re.findall(r"```hex (\S+)\n(.*?)```", DOCUMENT, re.DOTALL))


def _rows(columns: int) -> list[list[str]]:
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in DOCUMENT.splitlines() if line[:1] == "|"]
    return [row for row in rows if len(row) == columns]


def test_every_object_identifier_is_that_of_the_code_and_none_is_missing() -> None:
    ours = {name: value for name, value in vars(levels).items() if name.startswith("ID_")}
    ours |= {name: value.dotted_string for name, value in vars(oids).items() if isinstance(value, ObjectIdentifier)}
    written = {name: (oid, source) for name, oid, source in _rows(3) if name.startswith("ID_")}
    assert {name: oid for name, (oid, _) in written.items()} == ours
    for oid, source in written.values():
        assert source.startswith("UUID ") == oid.startswith("2.25.")
        if source.startswith("UUID "):
            assert f"2.25.{uuid.UUID(source[5:]).int}" == oid
    for number in re.findall(r"uuid\(25\) (\d+)", DOCUMENT):
        assert f"2.25.{number}" in ours.values()


def test_every_limit_is_that_of_the_code() -> None:
    limits = [(value, where) for _, value, where in _rows(3) if where.startswith("relay.")]
    assert len(limits) == 21
    for value, where in limits:
        module, _, name = where.rpartition(".")
        assert int(value) == getattr(importlib.import_module(module), name), where
    assert f"one for each {ber.OCTETS_A_CHUNK} octets" in FLAT
    assert (OTP_KEEP_FOR_S, USED_KEEP_FOR_S) == (15 * 60, 24 * 3600)
    assert timedelta(seconds=UNUSED_KEEP_FOR_S) == WINDOW + SKEW == timedelta(days=7, minutes=10)
    assert "otp 15 minutes and others 24 hours after the last recipient has the mail, 7 days and 10 minutes" in FLAT
    assert f"at most {WINDOW.days} days ago and" in FLAT


def test_what_is_printable_is_what_is_written() -> None:
    [block] = re.findall(r"```unprintable\n(.*?)```", DOCUMENT, re.DOTALL)
    unprintable = {number for plane in range(17) for number in (plane << 16 | 0xFFFE, plane << 16 | 0xFFFF)}
    for each in block.partition("xFFFE")[0].split():
        first, _, last = each.partition("-")
        unprintable |= {*range(int(first, 16), int(last or first, 16) + 1)}
    found = {number for number in range(0x110000) if not characters.is_printable(chr(number))}
    assert found == unprintable


def test_every_kem_has_the_sizes_of_the_code() -> None:
    written = {name: (int(ciphertext), int(public)) for name, ciphertext, public in _rows(3) if name in KEMS}
    assert written == {kem.name: (kem.ciphertext_octets, kem.public_key_octets) for kem in KEMS.values()}


def test_the_headers_are_those_that_are_written() -> None:
    written = DOCUMENT.replace("\n", "\r\n").encode()
    assert bytes(mime.wrap_enveloped(b""))[:-2] in written
    assert bytes(mime.wrap_signed(b"")) == bytes(mime.wrap_enveloped(b"")).replace(
        b"authEnveloped-data", b"signed-data"
    )
    assert mime.sealed_message(b"\r\n", b"")[:-2] in written
    envelope = bytes(100)
    header = mime.payload_header(envelope)
    assert b"\r\n".join(header.split(b"\r\n")[:2]) + b"\r\n BASE64\r\n" in written
    assert [len(line) for line in header.split(b"\r\n")[2:-2]] == [73, 65]
    assert "in lines of 72 characters, the last one shorter, each behind one space" in FLAT
    fields = "From, To, Cc, Date, Message-ID, Received and Auto-Submitted"
    assert fields in FLAT
    assert {name.encode() for name in re.split(r", | and ", fields.lower())} == mime.VISIBLE_FIELDS
    hidden = "Bcc, Resent-Bcc and Return-Path"
    assert hidden in FLAT
    assert {name.encode() for name in re.split(r", | and ", hidden.lower())} == mime.NEVER_CARRIED


@pytest.mark.parametrize("name", ["aes-plain", "otp-tiny"])
def test_the_examples_are_those_of_the_vectors(name: str) -> None:
    written = [line.partition(";")[0].rstrip() for line in EXAMPLES[name].splitlines()]
    assert written == list(_dumped(trees.parsed(CASES[name].content)))


def test_there_are_no_examples_beside_those_and_as_many_vectors_as_it_says() -> None:
    assert EXAMPLES.keys() == {"aes-plain", "otp-tiny"}
    assert f"holds {len(CASES)} cases" in FLAT


def test_a_canary_is_what_is_written() -> None:
    [question] = re.findall(r"```canary question\n(.*)\n```", DOCUMENT)
    note = canary.CanaryNote("question", bytes(range(canary.NONCE_OCTETS)))
    written = canary.write(note, "qumail-canary@alice.example", "qumail-canary@bob.example", "relay.alice.example")
    header, _, body = written.decode().partition("\r\n\r\n")
    assert body == f"{question}\r\n"
    for field in ("Auto-Submitted: auto-generated", "MIME-Version: 1.0", f"Content-Type: {canary.CONTENT_TYPE}"):
        assert field in DOCUMENT.splitlines()
        assert field in header.splitlines()
    assert canary.read(written) == note
    assert f"`{canary.LOCAL_PART}` at the first mail domain of the peer" in FLAT
    assert f"no more than one in {ANSWER_S:.0f} seconds for each peer" in FLAT


def test_the_composition_of_the_one_time_pad_is_that_of_the_example() -> None:
    case = CASES["otp-tiny"]
    enveloped = cms.decode_enveloped(case.content)
    assert isinstance(enveloped.content, cms.PadContent)
    keys = {name.key_ID: octets for name, octets in case.keys.items()}
    in_order = [keys[key_ID] for key_ID in enveloped.content.key_IDs]
    tag_key = in_order[0][:16] + in_order[1][:16]
    hiding = b"".join(key[16:] for key in in_order)
    ciphertext, parameters = enveloped.ciphertext, enveloped.content.encode()
    padded = bytes(a ^ b for a, b in zip(ciphertext, hiding, strict=False))
    assert padded == bytes(pad(unpad(padded)))
    assert mime.unwrap(unpad(padded)).content == b"\r\n"
    filled = b"".join(part + bytes(-len(part) % 16) for part in (parameters, ciphertext))
    Poly1305.verify_tag(tag_key, filled + struct.pack("<QQ", len(parameters), len(ciphertext)), enveloped.tag)
    rows = dict(row for row in _rows(2) if re.fullmatch("[0-9a-f]+", row[1]))
    assert rows == {"padded payload": padded.hex(), "key of the tag": tag_key.hex(), "tag": enveloped.tag.hex()}
    assert f"both keys have {len(in_order[0])} octets" in FLAT
    assert f"P begins here, {len(parameters)} octets" in DOCUMENT
    assert LENGTH_OCTETS == 8


def test_a_pad_costs_what_the_document_says() -> None:
    """5 KB and 75 KB of mail with their sealed envelopes, under keys of 32 and of 1024 octets."""
    for hidden, costs in (
        (padded_size(5 * 1024 + 400), (11_264, 6_144)),
        (padded_size(75 * 1024 + 400), (155_648, 79_872)),
    ):
        for octets, cost in zip((32, 1024), costs, strict=True):
            plan = plan_pad(
                hidden, KeyStatus("", "", "", "", 8 * octets, None, None, None, None, None, None), any_size=False
            )
            assert plan.cost == cost
            assert str(cost) in DOCUMENT


def test_padme_is_what_the_document_says() -> None:
    for n in (2, 3, 8, 9, 42, 1000, 1_000_003):
        e = n.bit_length() - 1
        s = (e.bit_length() - 1 if e else -1) + 1
        m = 2 ** (e - s) - 1
        assert padme(n) == (n + m) & ~m
        assert padme(n) <= 1.12 * n + 1


def test_the_input_of_the_key_derivation_is_what_the_document_says() -> None:
    assert f"`{cms.kem_kdf_info().hex()}`" in DOCUMENT


def test_the_bound_of_the_one_time_tag_is_computed_right() -> None:
    assert "8 * ceil(L / 16) / 2^106" in FLAT
    assert 8 * -(-(2**20) // 16) / 2**106 == 2**-87
    promises = (Path(__file__).parents[2] / "policies" / "README.md").read_text()
    for octets, keys, bound in ((2**20, 65_536, -85), (75 * 1024, 4864, -89)):
        key_IDs = tuple(str(uuid.UUID(int=number)) for number in range(keys))
        parameters = len(cms.PadContent("2", "1", "alice-bob", 0, key_IDs).encode())
        assert round(math.log2(8 * -(-(parameters + octets) // 16)) - 106) == bound
        assert f"2^{bound}" in FLAT
    assert "2^-85 an attempt for 1 MiB" in promises


def _dumped(node: Node, depth: int = 0) -> list[str]:
    """A line for each element: identifier and length octets, then the contents where they are primitive."""
    tag, contents = node
    octets = contents if isinstance(contents, bytes) else b"".join(map(trees.encoded, contents))
    line = "  " * depth + header(tag, len(octets)).hex()
    if isinstance(contents, bytes):
        text = contents.hex() if len(contents) <= 24 else f"{contents[:8].hex()} ... {contents[-8:].hex()}"
        return [f"{line} {text}".rstrip()]
    return [line, *(each for child in contents for each in _dumped(child, depth + 1))]
