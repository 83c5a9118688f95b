"""Level otp: exactly as much pad as is needed, each octet once, and nothing released that was changed.
Standard: relay/FORMAT.md; Poly1305 and XOR are recomputed here from the parts, independently of the level.
"""

from __future__ import annotations

import struct
import tracemalloc
import zlib

import pytest
from cryptography.hazmat.primitives.poly1305 import Poly1305
from hypothesis import given
from hypothesis import strategies as st

from relay import cms
from relay.errors import BadStructure, BadTag, CannotOpen, KeyNotFound, KMEExhausted
from relay.keys import Key
from relay.levels import Opening, Parties, Sealed
from relay.levels.otp import OTP, TAG_KEY_OCTETS
from relay.levels.padding import compress, decompress, pad, padded_size, padme, unpad
from tests.testlib.keys import MemoryKeys

PARTIES = Parties(master_sae="2", slave_sae="1", peer="bob")


async def _sealed(payload: bytes, *, level: OTP | None = None, segment: int = 4096) -> tuple[Sealed, dict[str, Key]]:
    keys = MemoryKeys(segment=segment)
    sealed = await (level or OTP()).seal(payload, PARTIES, keys)
    return sealed, dict(keys.issued)


async def _open(der: bytes, keys: dict[str, Key]) -> bytes:
    return (await OTP().open(cms.decode_enveloped(der), Opening(keys))).payload


def _content(sealed: Sealed) -> tuple[cms.AuthEnveloped, cms.PadContent]:
    enveloped = cms.decode_enveloped(sealed.der)
    assert isinstance(enveloped.content, cms.PadContent)
    return enveloped, enveloped.content


@pytest.mark.parametrize("size", [0, 1, 31, 32, 33, 4095, 4096, 4097, 100_000])
async def test_what_is_sealed_opens_to_the_same_octets(size: int) -> None:
    payload = bytes(index % 251 for index in range(size))
    sealed, keys = await _sealed(payload)
    assert await _open(sealed.der, keys) == payload


@pytest.mark.parametrize("size", [0, 100, 5000])
async def test_exactly_32_octets_more_than_the_padded_payload_are_spent(size: int) -> None:
    sealed, _ = await _sealed(bytes(size))
    enveloped, content = _content(sealed)
    assert sum(segment.length for segment in content.segments) == TAG_KEY_OCTETS + len(enveloped.ciphertext)
    assert len(enveloped.ciphertext) == padded_size(size)
    assert sealed.quantum_bits == 8 * (TAG_KEY_OCTETS + padded_size(size))


async def test_the_ciphertext_is_the_padded_payload_xor_the_pad_and_nothing_else() -> None:
    payload = b"attack at dawn"
    sealed, keys = await _sealed(payload, segment=40)
    enveloped, content = _content(sealed)
    octets = b"".join(keys[segment.key_ID].key[: segment.length] for segment in content.segments)
    padded = bytes(a ^ b for a, b in zip(enveloped.ciphertext, octets[32:], strict=True))
    assert padded == pad(payload)
    poly1305 = Poly1305(octets[:32])
    for part in (content.encode(), enveloped.ciphertext):
        poly1305.update(part + bytes(-len(part) % 16))
    poly1305.update(struct.pack("<QQ", len(content.encode()), len(enveloped.ciphertext)))
    poly1305.verify(enveloped.tag)


async def test_no_key_of_a_pad_is_used_for_two_messages() -> None:
    keys = MemoryKeys(segment=64)
    first, second = [await OTP().seal(b"x" * 500, PARTIES, keys) for _ in range(2)]
    ids = [[reference.key_ID for reference in sealed.keys] for sealed in (first, second)]
    assert not set(ids[0]) & set(ids[1])
    assert len(set(ids[0])) == len(ids[0])


async def test_without_enough_key_nothing_is_sealed() -> None:
    with pytest.raises(KMEExhausted):
        await OTP().seal(b"x" * 500, PARTIES, MemoryKeys(number=3, segment=64))


async def test_every_flipped_bit_is_noticed() -> None:
    sealed, keys = await _sealed(b"pay 100 to Bob", segment=40)
    for position in range(len(sealed.der)):
        changed = bytearray(sealed.der)
        changed[position] ^= 0x01
        with pytest.raises((CannotOpen, KeyNotFound)):
            await _open(bytes(changed), keys)


async def test_swapped_segments_are_noticed() -> None:
    sealed, keys = await _sealed(bytes(200), segment=64)
    enveloped, content = _content(sealed)
    first, second, *rest = content.segments
    swapped = cms.PadContent("2", "1", "alice-bob", 0, (second, first, *rest))
    with pytest.raises(BadTag):
        await _open(
            cms.encode_enveloped(cms.AuthEnveloped(enveloped.recipients, swapped, enveloped.ciphertext, enveloped.tag)),
            keys,
        )


@pytest.mark.parametrize(
    "change",
    [
        {"compression": 1},
        {"master_sae": "9"},
        {"slave_sae": "9"},
        {"kme_group": "other"},
    ],
)
async def test_what_the_message_says_of_its_pad_is_under_the_tag(change: dict[str, int | str]) -> None:
    sealed, keys = await _sealed(b"payload")
    enveloped, content = _content(sealed)
    fields = {"master_sae": "2", "slave_sae": "1", "kme_group": "alice-bob", "compression": 0} | change
    other = cms.PadContent(segments=content.segments, **fields)  # type: ignore[arg-type]
    with pytest.raises(BadTag):
        await _open(
            cms.encode_enveloped(cms.AuthEnveloped(enveloped.recipients, other, enveloped.ciphertext, enveloped.tag)),
            keys,
        )


async def test_one_missing_key_of_the_pad_holds_the_mail() -> None:
    sealed, keys = await _sealed(bytes(200), segment=64)
    keys.popitem()
    with pytest.raises(KeyNotFound, match="1 of 4 keys"):
        await _open(sealed.der, keys)


async def test_a_key_named_twice_is_refused() -> None:
    sealed, _ = await _sealed(bytes(100), segment=64)
    enveloped, content = _content(sealed)
    twice = cms.PadContent("2", "1", "alice-bob", 0, (content.segments[0],) * 2)
    with pytest.raises(BadStructure, match="twice"):
        cms.decode_enveloped(
            cms.encode_enveloped(cms.AuthEnveloped(enveloped.recipients, twice, enveloped.ciphertext, enveloped.tag))
        )


@given(st.integers(0, 10**9))
def test_padme_adds_at_most_12_percent_and_never_takes_away(length: int) -> None:
    assert length <= padme(length) <= length + max(length * 0.12, 1)


@given(st.binary(max_size=3000))
def test_padding_and_compression_give_the_payload_back(payload: bytes) -> None:
    assert unpad(pad(payload)) == payload
    assert unpad(pad(payload, "none")) == payload
    assert decompress(compress(payload)) == payload


def test_sizes_fall_into_few_classes() -> None:
    assert len({padded_size(size) for size in range(4000, 5000)}) <= 10


@pytest.mark.parametrize("padded", [b"", b"\0" * 7, b"\0" * 7 + b"\x05abcd", b"\0" * 7 + b"\x01a\x01", b"\xff" * 16])
def test_padding_that_we_do_not_make_is_refused(padded: bytes) -> None:
    with pytest.raises(BadStructure):
        unpad(padded)


async def test_compression_saves_key_and_still_gives_the_same_octets() -> None:
    payload = b"the same line again\r\n" * 500
    sealed, keys = await _sealed(payload, level=OTP(compression=True))
    plain, _ = await _sealed(payload)
    assert sealed.quantum_bits * 10 < plain.quantum_bits
    assert await _open(sealed.der, keys) == payload


def test_a_compressed_bomb_is_refused_before_it_takes_memory() -> None:
    compressor = zlib.compressobj(level=9, wbits=-15)
    bomb = b"".join(compressor.compress(bytes(2**20)) for _ in range(300)) + compressor.flush()
    tracemalloc.start()
    try:
        with pytest.raises(BadStructure, match="grows beyond"):
            decompress(bomb)
        assert tracemalloc.get_traced_memory()[1] < 128 * 2**20
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("garbage", [b"", b"\xff\xff\xff", compress(b"x" * 100)[:-2], compress(b"x") + b"more"])
def test_what_is_no_whole_deflate_is_refused(garbage: bytes) -> None:
    with pytest.raises(BadStructure):
        decompress(garbage)
