"""The last look before a message leaves: a fault in everything before it still lets nothing out in clear.
Standard: each case is a message that some fault could have produced.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from unittest.mock import AsyncMock

import pytest
from hypothesis import given, settings, strategies as st

from relay.errors import MalformedMessage, TrippedWire
from relay.formats import mime
from relay.formats.cms.der import header
from relay.formats.pieces import Pieces
from relay.journey.tripwire import check_sealed
from relay.kme import DevelopmentKMEs
from relay.schemes import SealedPayload
from relay.schemes.aes import AES
from tests.testlib import mails
from tests.testlib.keys import MemoryKeys
from tests.testlib.payloads import payload
from tests.testlib.sink import Sink
from tests.testlib.sites import make_site, serving
from tests.testlib.submit import submit
from tests.unit.schemes.test_aes import PARTIES
from tests.vectors import trees
from tests.vectors.case import read_all


async def _sealed(original: bytes = b"") -> bytes:
    sealed = await AES().seal(payload(b"x" * 500), PARTIES, MemoryKeys())
    return b"Received: by relay; now\r\n" + mime.sealed_message(original or mails.plain(), sealed.der)


SEALED = next(each.content for each in read_all() if each.name == "aes-plain")


async def test_sealed_messages_pass() -> None:
    for original in (mails.plain(), mails.random_attachment(100), b"\r\n", b"To: a@b,\r\n\tc@d\r\n\r\nx\r\n"):
        check_sealed(await _sealed(original), "aes")


NAMES = st.sampled_from([*sorted(mime.VISIBLE_FIELDS), b"From", b"DATE", b"Subject", b"Content-Type", b"X-Y", b">From"])
BLANKS = st.text(" \t", max_size=3).map(str.encode)
TEXTS = st.binary(max_size=12) | st.sampled_from(
    [b"", b":", b" \t", b"\xff", b"\x0b", b"\x0c", b"\x1c", b"\x85", b"\0"]
)
LINES = st.tuples(NAMES, BLANKS, st.sampled_from([b":", b":", b":", b""]), BLANKS, TEXTS).map(b"".join) | TEXTS
ENDS = st.sampled_from([b"\r\n"] * 6 + [b"\r\n ", b"\r\n\t", b"\r\n \r\n", b"\r\n\r\n", b"\r", b"\n", b""])
MESSAGES = st.lists(st.tuples(LINES, ENDS).map(b"".join), max_size=8).map(b"".join)


@settings(max_examples=300, deadline=None)
@given(message=MESSAGES)
def test_what_may_be_carried_never_trips_it(message: bytes) -> None:
    """Whatever a header looks like: what is shown of it, octet for octet, are fields for the tripwire too."""
    try:
        mime.check_carriable(message, max_hops=50)
    except MalformedMessage:
        return
    check_sealed(mime.sealed_message(mime.without_hidden_fields(message), SEALED), "aes")


TYPE = bytes.fromhex("060b2a864886f70d0109100117")
DATA = bytes.fromhex("2a864886f70d010701")
AES_256_GCM = bytes.fromhex("60864801650304012e")


def _element(tag: int, *contents: bytes) -> bytes:
    inside = b"".join(contents)
    return header(tag, len(inside)) + inside


TEXT = _element(0x04, b"The figures are 42 and 43")


CHANGES = {
    "plaintext instead": lambda m: mails.plain(),
    "plaintext body": lambda m: m.partition(b"\r\n\r\n")[0] + b"\r\n\r\nThe figures are 42\r\n",
    "plaintext in front": lambda m: m.replace(b"\r\n\r\n", b"\r\n\r\nThe figures are 42\r\n", 1),
    "plaintext behind": lambda m: m + b"The figures are 42\r\n",
    "no body": lambda m: m.partition(b"\r\n\r\n")[0],
    "empty body": lambda m: m.partition(b"\r\n\r\n")[0] + b"\r\n\r\n",
    "subject": lambda m: m.replace(b"[...]", b"Quarterly figures"),
    "two subjects": lambda m: b"Subject: Quarterly figures\r\n" + m,
    "field": lambda m: b"X-Project: Zeus\r\n" + m,
    "bcc": lambda m: b"Bcc: a@b\r\n" + m,
    "no field": lambda m: b"The figures are 42\r\n" + m,
    "continuation first": lambda m: b" The figures are 42\r\n" + m,
    "two types": lambda m: b"Content-Type: text/plain\r\n" + m,
    "type": lambda m: m.replace(b"authEnveloped-data", b"signed-data"),
    "encoding": lambda m: m.replace(b"base64", b"8bit"),
    "other cms": lambda m: mime.sealed_message(m, b"\x30\x1f" + b"\x06\x09" + bytes(29)),
    "cut": lambda m: m[: len(m) - 200] + b"\r\n",
    "plaintext behind the type": lambda m: mime.sealed_message(m, _element(0x30, TYPE, b"The figures are 42 and 43")),
    "plaintext beside the structure": lambda m: _changed(m, lambda der: der[:2] + der[2:] + b"The figures are 42"),
    "plaintext as version": lambda m: _changed(m, lambda der: trees.put(der, trees.VERSION, TEXT)),
    "plaintext as tag": lambda m: _changed(m, lambda der: trees.put(der, trees.TAG, TEXT)),
    "plaintext as attribute": lambda m: _changed(m, lambda der: trees.followed(der, trees.CONTENT, TEXT)),
    "plaintext as recipient": lambda m: _changed(m, lambda der: trees.put(der, (*trees.RECIPIENTS, 0), TEXT)),
    "no recipient": lambda m: _changed(m, lambda der: trees.put(der, trees.RECIPIENTS, b"\x31\0")),
    "many recipients": lambda m: _changed(m, lambda der: trees.doubled(der, (*trees.RECIPIENTS, 0), 101)),
    "no ciphertext": lambda m: _changed(m, lambda der: trees.put(der, trees.CIPHERTEXT, b"\x80\0")),
    "null cipher": lambda m: _changed(
        m, lambda der: trees.put(der, trees.CIPHERTEXT, _element(0x80, payload(mails.plain())))
    ),
    "other algorithm": lambda m: _changed(m, lambda der: der.replace(AES_256_GCM, AES_256_GCM[:-1] + b"\x2a")),
    "other inner type": lambda m: _changed(m, lambda der: der.replace(DATA, DATA[:-1] + b"\x02")),
    "BER": lambda m: _changed(m, lambda der: b"\x30\x80" + trees.encoded(trees.parsed(der))[4:] + b"\0\0"),
}


def _changed(message: bytes, change: Callable[[bytes], bytes]) -> bytes:
    """The sealed message with its DER changed."""
    der = mime.sealed_content(message)
    assert change(der) != der
    return mime.sealed_message(message, change(der))


@pytest.mark.parametrize("change", CHANGES)
async def test_everything_else_trips_it(change: str) -> None:
    with pytest.raises(TrippedWire):
        check_sealed(CHANGES[change](await _sealed()), "aes")  # type: ignore[no-untyped-call]


WANTED = ("aes", "otp", "rsa", "pqc", "pqc+aes", "rsa+aes", "pqc+hqc-256", "pqc+frodokem-1344-shake", "unknown")


@pytest.mark.parametrize("case", ["aes-plain", "otp-plain", "rsa-plain", "pqc-plain", "pqc+aes-plain", "kem-hqc"])
def test_a_message_sealed_at_another_level_than_policy_wants_trips_it(case: str) -> None:
    """The outermost layer is what can be seen; levels and further layers may differ by their KEM alone."""
    content = {each.name: each.content for each in read_all()}[case]
    passes = set()
    for protection in WANTED:
        with suppress(TrippedWire):
            check_sealed(mime.sealed_message(mails.plain(), content), protection)
            passes.add(protection)
    level = case.partition("-")[0].rpartition("+")[2]
    seen = {"aes": {"aes", "pqc+aes", "rsa+aes"}, "kem": {"pqc+hqc-256"}}
    assert passes == seen.get(level, {level})


@pytest.mark.parametrize("place", [(0,), (1, 0), (1, 1), (1, 2), (1, 2, 0)])
def test_a_kem_that_cannot_be_read_trips_it(place: tuple[int, ...]) -> None:
    """In a KEMRecipientInfo it is the third element, after version and key (RFC 9629, 3)."""
    content = {each.name: each.content for each in read_all()}["pqc-plain"]
    changed = trees.put(content, (*trees.RECIPIENTS, 0, *place), TEXT)
    with pytest.raises(TrippedWire):
        check_sealed(mime.sealed_message(mails.plain(), changed), "pqc")


@pytest.mark.in_process
async def test_a_level_that_does_not_seal_holds_the_mail(
    tmp_path: Path, kmes: DevelopmentKMEs, sink: Sink, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def broken(self: AES, payload: bytes, *_: object) -> SealedPayload:
        return SealedPayload(Pieces.of(payload))

    monkeypatch.setattr(AES, "seal", broken)
    site = make_site(tmp_path / "alice", "alice", state=kmes.state_dir, kme_url=kmes.urls[0], outgoing=sink.address)
    async with serving(site) as addresses:
        reply = await submit(addresses["outgoing"], mails.plain())
    assert str(reply).startswith("451 4.3.0")
    assert not sink.got


@pytest.mark.in_process
async def test_a_header_that_it_reads_otherwise_is_refused_at_once_and_costs_no_key(
    tmp_path: Path, kmes: DevelopmentKMEs, sink: Sink, monkeypatch: pytest.MonkeyPatch
) -> None:
    """There is no such header; should there be one, its sender hears of it instead of waiting for days."""
    monkeypatch.setattr("relay.journey.tripwire._LINE", re.compile(rb"(?:([A-Za-z0-9-]+):|[ \t])[^\r\n]*\r\n"))
    drawn = AsyncMock(side_effect=AssertionError("a key was drawn"))
    monkeypatch.setattr(AES, "seal", drawn)
    site = make_site(tmp_path / "alice", "alice", state=kmes.state_dir, kme_url=kmes.urls[0], outgoing=sink.address)
    async with serving(site) as addresses:
        reply = await submit(addresses["outgoing"], b"From : ann@alice.example\r\n\r\nx\r\n")
    assert str(reply).startswith("554 5.6.0")
    assert not sink.got
