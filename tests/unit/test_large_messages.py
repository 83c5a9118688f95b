"""What is large goes through in pieces: each stage gives what it gives at once, and a message is there once, not often.
Memory is what Python allocates (tracemalloc), the same in every run.
"""

from __future__ import annotations

import asyncio
import gc
import tracemalloc
from collections.abc import Callable

import pytest
from cryptography.exceptions import AlreadyFinalized
from hypothesis import given, strategies as st

from relay.entry.smtp.session import END_OF_DATA, _Content
from relay.errors import MalformedMessage, TrippedWire
from relay.formats import mime, pieces
from relay.formats.pieces import PIECE_OCTETS, Pieces
from relay.forward import stuffed, transaction
from relay.journey import tripwire
from relay.journey.tripwire import check_sealed
from relay.schemes import Parties, Scheme
from relay.schemes.aes import AES
from relay.schemes.otp import OneTimePad
from relay.schemes.pqc import PQC
from relay.schemes.rsa import RSA
from tests.testlib import mails
from tests.testlib.identities import Identities
from tests.testlib.keys import MemoryKeys
from tests.testlib.payloads import sealed_envelope

LARGE = 10_000_000
PARTIES = Parties(master_sae="2", slave_sae="1", peer="bob")
LEVELS: dict[str, Scheme] = {level.name: level for level in (AES(), OneTimePad(), PQC(), RSA())}
LINES = st.lists(st.sampled_from([b"\r\n", b".", b"..", b"x", b"\r\n.", b"\n", b"\r"]), max_size=30).map(b"".join)


def taken(data: bytes, splits: list[int]) -> _Content:
    """The content that comes in these pieces."""
    content, start = _Content(), 0
    for size in splits:
        if content.ended or start >= len(data):
            break
        content.add(data[start : start + size])
        start += size
    while not content.ended:
        content.add(data[start:])
        start = len(data)
    return content


@given(LINES, st.lists(st.integers(1, 6), max_size=60))
def test_content_is_the_same_in_whatever_pieces_it_comes(data: bytes, splits: list[int]) -> None:
    data += b"\r\n.\r\n"
    whole = b"\r\n" + data
    end = whole.index(END_OF_DATA)
    content = taken(data, splits)
    octets = content.octets()
    assert octets == whole[: end + 2].replace(b"\r\n.", b"\r\n")[2:]
    assert content.size == len(octets)
    behind = whole[end + len(END_OF_DATA) :]
    assert behind.startswith(content.behind)


@given(LINES, LINES.map(lambda lines: lines + b"\r\n"))
def test_content_is_stuffed_alike_in_pieces_of_any_size(message: bytes, trace: bytes) -> None:
    at_once = b"".join(stuffed(message, trace))
    with pytest.MonkeyPatch.context() as patch:
        for octets in (2, 3, 5):
            patch.setattr(transaction, "PIECE_OCTETS", octets)
            assert b"".join(stuffed(message, trace)) == at_once
    assert at_once.endswith(b"\r\n.\r\n")
    assert (b"\r\n" + at_once[:-3]).replace(b"\r\n.", b"\r\n")[2:].removesuffix(b"\r\n") == (
        (trace + message).removesuffix(b"\r\n")
    )


@given(LINES)
def test_ends_of_lines_are_found_wherever_pieces_end(message: bytes) -> None:
    without = message.replace(b"\r\n", b"")
    with pytest.MonkeyPatch.context() as patch:
        for octets in (1, 2, PIECE_OCTETS):
            patch.setattr(pieces, "PIECE_OCTETS", octets)
            if b"\n" in without or b"\r" in without:
                with pytest.raises(MalformedMessage):
                    mime.check_carriable(b"A: b\r\n\r\n" + message, 10)
            else:
                mime.check_carriable(b"A: b\r\n\r\n" + message, 10)


@pytest.mark.parametrize("beyond", [-1, 1])
def test_pieces_that_do_not_add_up_are_no_message(beyond: int) -> None:
    with pytest.raises(ValueError, match="announced"):
        bytes(Pieces(10 + beyond, lambda: [bytes(10)]))


async def test_what_is_encrypted_in_pieces_is_encrypted_once() -> None:
    sealed = await AES().seal(b"payload", PARTIES, MemoryKeys())
    bytes(sealed.pieces)
    with pytest.raises(AlreadyFinalized):
        bytes(sealed.pieces)


@pytest.mark.parametrize("size", [0, 1, PIECE_OCTETS - 1, PIECE_OCTETS, 3 * PIECE_OCTETS + 57, 1_000_000])
def test_the_tripwire_reads_bodies_of_any_length(size: int) -> None:
    message = asyncio.run(_sealed("aes", mails.plain(body="x" * size), None))
    check_sealed(message, "aes")
    for changed in (message[:-2], message[:-4], message + b"\r\n", message + b"AAAA\r\n", message + b"Ha!\r\n"):
        with pytest.raises(TrippedWire):
            check_sealed(changed, "aes")


@pytest.mark.parametrize("pieces_before", [1, 2, 20])
def test_the_tripwire_finds_what_can_be_read_wherever_it_stands(pieces_before: int) -> None:
    """Also across the pieces in which it looks."""
    message = asyncio.run(_sealed("aes", mails.plain(body="x" * 1_000_000), None))
    der = mime.sealed_content(message)
    for shift in range(0, 18, 2):
        at = pieces_before * tripwire._PIECE_OCTETS // 78 * 57 - shift
        changed = der[:at] + b"Content-Type: " + der[at + 14 :]
        with pytest.raises(TrippedWire, match="read"):
            check_sealed(mime.sealed_message(b"From: a@b.example\r\n\r\n", changed), "aes")


async def _sealed(layers: str, message: bytes, identities: Identities | None) -> bytes:
    """As relay/journey/sealing.py does it."""
    parties = identities.to_bob() if identities else PARTIES
    first, *around = layers.split("+")
    keys = MemoryKeys(pad_key=1024 * 1024)
    payload = mime.wrap_payload(message, sealed_envelope(layers).encode())
    sealed = await LEVELS[first].seal(payload, parties, keys)
    for layer in around:
        sealed = await LEVELS[layer].seal(mime.wrap_enveloped(sealed.pieces), parties, keys)
    return mime.sealed_message(message, sealed.pieces)


def peak(work: Callable[[], object]) -> float:
    """Octets that it holds at most, beside what was there before, for each octet of a large message."""
    gc.collect()
    tracemalloc.start()
    try:
        work()
        return tracemalloc.get_traced_memory()[1] / LARGE
    finally:
        tracemalloc.stop()


@pytest.fixture(scope="module")
def large() -> bytes:
    return b"From: ann@alice.example\r\n\r\n" + (b"x" * 76 + b"\r\n") * (LARGE // 78)


@pytest.mark.parametrize(
    ("layers", "most"), [("aes", 1.5), ("pqc", 1.5), ("pqc+aes", 1.5), ("rsa+aes", 1.5), ("otp", 3.6)]
)
def test_sealing_takes_memory_for_the_sealed_message_alone(
    large: bytes, identities: Identities, layers: str, most: float
) -> None:
    """1.37 times the message, which counts one more; at level otp the pad comes before it, and is changed in place."""

    async def seal() -> None:
        await _sealed(layers, large, identities)

    assert peak(lambda: asyncio.run(seal())) < most


def test_looking_and_sending_take_no_memory_that_grows_with_the_message(large: bytes, identities: Identities) -> None:
    sealed = asyncio.run(_sealed("aes", large, identities))
    assert peak(lambda: check_sealed(sealed, "aes")) < 0.1
    assert peak(lambda: mime.check_carriable(large, 10)) < 0.1
    # At once each step of this look would hold up the event loop, also from another thread.
    assert peak(lambda: mime.has_in_body(sealed, [b"a name"])) < 0.1
    assert peak(lambda: [len(piece) for piece in stuffed(sealed, b"Received: x\r\n")]) < 0.1


def test_receiving_takes_no_more_memory_than_sealing(large: bytes) -> None:
    def receive() -> None:
        content = _Content()
        for start in range(0, len(large), 128 * 1024):
            content.add(large[start : start + 128 * 1024])
        content.add(b".\r\n")
        assert len(content.octets()) == len(large)

    assert peak(receive) < 2.1
