"""Level otp: no more keys than are needed, each octet once, and nothing released that was changed.
Standard: relay/FORMAT.md; Poly1305 and XOR are recomputed here from the parts, independently of the level.
"""

from __future__ import annotations

import struct
import tracemalloc
import zlib
from dataclasses import replace

import pytest
from cryptography.hazmat.primitives.poly1305 import Poly1305
from hypothesis import given, strategies as st

from relay.errors import BadStructure, BadTag, CannotOpen, KeyNotFound, KMEExhausted
from relay.formats import cms
from relay.keys import Key
from relay.keys.pads import TAG_OCTETS
from relay.schemes import Opening, Parties, SealedPayload
from relay.schemes.otp import OneTimePad
from relay.schemes.padding import compress, decompress, pad, padded_size, padme, unpad
from tests.testlib.keys import MemoryKeys

PARTIES = Parties(master_sae="2", slave_sae="1", peer="bob")


async def _sealed(
    payload: bytes, *, level: OneTimePad | None = None, pad_key: int = 4096
) -> tuple[SealedPayload, dict[str, Key]]:
    keys = MemoryKeys(pad_key=pad_key)
    sealed = await (level or OneTimePad()).seal(payload, PARTIES, keys)
    return sealed, dict(keys.issued)


async def _open(der: bytes, keys: dict[str, Key]) -> bytes:
    return (await OneTimePad().open(cms.decode_enveloped(der), Opening(keys))).payload


def _content(sealed: SealedPayload) -> tuple[cms.AuthEnveloped, cms.PadContent]:
    enveloped = cms.decode_enveloped(sealed.der)
    assert isinstance(enveloped.content, cms.PadContent)
    return enveloped, enveloped.content


@pytest.mark.parametrize("size", [0, 1, 31, 32, 33, 4095, 4096, 4097, 100_000])
async def test_what_is_sealed_opens_to_the_same_octets(size: int) -> None:
    payload = bytes(index % 251 for index in range(size))
    sealed, keys = await _sealed(payload)
    assert await _open(sealed.der, keys) == payload


@pytest.mark.parametrize(("size", "number"), [(0, 2), (100, 3), (5000, 107)])
async def test_no_more_keys_are_spent_than_hide_the_padded_payload(size: int, number: int) -> None:
    sealed, keys = await _sealed(bytes(size), pad_key=64)
    enveloped, content = _content(sealed)
    assert len(enveloped.ciphertext) == padded_size(size)
    assert len(content.key_IDs) == len(keys) == number
    assert number == max(2, -(-padded_size(size) // (64 - TAG_OCTETS)))
    assert sealed.quantum_bits == 8 * 64 * number


async def test_the_ciphertext_is_the_padded_payload_xor_the_keys_without_their_first_16_octets() -> None:
    payload = b"attack at dawn, not at dusk"
    sealed, keys = await _sealed(payload, pad_key=40)
    enveloped, content = _content(sealed)
    assert list(content.key_IDs) == sorted(content.key_IDs)
    octets = [keys[key_ID].key for key_ID in content.key_IDs]
    hiding = b"".join(key[16:] for key in octets)
    assert bytes(a ^ b for a, b in zip(enveloped.ciphertext, hiding, strict=False)) == bytes(pad(payload))
    poly1305 = Poly1305(octets[0][:16] + octets[1][:16])
    for part in (content.encode(), enveloped.ciphertext):
        poly1305.update(part + bytes(-len(part) % 16))
    poly1305.update(struct.pack("<QQ", len(content.encode()), len(enveloped.ciphertext)))
    poly1305.verify(enveloped.tag)


@pytest.mark.promise("Each octet of a pad hides one octet of one message")
async def test_no_key_of_a_pad_is_used_for_two_messages() -> None:
    keys = MemoryKeys(pad_key=64)
    first, second = [await OneTimePad().seal(b"x" * 500, PARTIES, keys) for _ in range(2)]
    ids = [[reference.key_ID for reference in sealed.keys] for sealed in (first, second)]
    assert not set(ids[0]) & set(ids[1])
    assert len(set(ids[0])) == len(ids[0])


async def test_without_enough_key_nothing_is_sealed() -> None:
    with pytest.raises(KMEExhausted):
        await OneTimePad().seal(b"x" * 500, PARTIES, MemoryKeys(number=3, pad_key=64))


@pytest.mark.promise("Changed mail is not delivered, nor mail signed by a stranger")
async def test_every_flipped_bit_is_noticed() -> None:
    sealed, keys = await _sealed(b"pay 100 to Bob", pad_key=40)
    for position in range(len(sealed.der)):
        changed = bytearray(sealed.der)
        changed[position] ^= 0x01
        with pytest.raises((CannotOpen, KeyNotFound)):
            await _open(bytes(changed), keys)


async def test_exchanged_keys_are_refused_before_any_key_is_asked_for() -> None:
    sealed, _ = await _sealed(bytes(200), pad_key=64)
    enveloped, content = _content(sealed)
    first, second, *rest = content.key_IDs
    for key_IDs in ((second, first, *rest), (first, first, second, *rest), tuple(reversed(content.key_IDs))):
        swapped = cms.PadContent("2", "1", "alice-bob", 0, key_IDs)
        der = cms.encode_enveloped(replace(enveloped, content=swapped))
        with pytest.raises(BadStructure, match="do not ascend"):
            cms.decode_enveloped(der)


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
    other = cms.PadContent(key_IDs=content.key_IDs, **fields)  # type: ignore[arg-type]
    with pytest.raises(BadTag):
        await _open(
            cms.encode_enveloped(cms.AuthEnveloped(enveloped.recipients, other, enveloped.ciphertext, enveloped.tag)),
            keys,
        )


async def test_one_missing_key_of_the_pad_holds_the_mail() -> None:
    sealed, keys = await _sealed(bytes(200), pad_key=64)
    keys.popitem()
    with pytest.raises(KeyNotFound, match="1 of 5 keys"):
        await _open(sealed.der, keys)


async def test_a_key_named_twice_in_other_letters_is_refused() -> None:
    sealed, _ = await _sealed(bytes(100), pad_key=64)
    enveloped, _ = _content(sealed)
    twice = cms.PadContent("2", "1", "alice-bob", 0, ("KEY", "key"))
    with pytest.raises(BadStructure, match="one key twice, in other letters"):
        cms.decode_enveloped(cms.encode_enveloped(replace(enveloped, content=twice)))


async def test_a_pad_of_version_0_is_refused_with_the_remedy() -> None:
    sealed, _ = await _sealed(bytes(100))
    parameters = _content(sealed)[1].encode()
    assert parameters[2:5] == b"\x02\x01\x01"
    older = sealed.der.replace(parameters, parameters[:4] + b"\0" + parameters[5:])
    with pytest.raises(BadStructure, match="version 0; 1 is the only one: its sender must be upgraded"):
        cms.decode_enveloped(older)


@pytest.mark.parametrize("lengths", [(31, 300), (300, 31), (32, 32), (300, 300, 300)])
async def test_keys_that_are_no_pad_are_refused_although_the_tag_is_right(lengths: tuple[int, ...]) -> None:
    """Too short, too few octets, too many keys: the sender checks it as well, so the message is made without it."""
    payload = bytes(100)
    padded = bytes(pad(payload))
    keys = {
        f"key-{number}": Key(f"key-{number}", bytes([number + 1]) * length) for number, length in enumerate(lengths)
    }
    first, second, *_ = octets = [key.key for key in keys.values()]
    content = cms.PadContent("2", "1", "alice-bob", 0, tuple(keys))
    hiding = b"".join(key[16:] for key in octets).ljust(len(padded), b"x")
    ciphertext = bytes(a ^ b for a, b in zip(padded, hiding, strict=False))
    poly1305 = Poly1305(first[:16] + second[:16])
    for part in (content.encode(), ciphertext):
        poly1305.update(part + bytes(-len(part) % 16))
    poly1305.update(struct.pack("<QQ", len(content.encode()), len(ciphertext)))
    verified: list[bool] = []
    with pytest.raises(BadStructure):
        await OneTimePad().open(
            cms.AuthEnveloped((cms.PadRecipient(),), content, ciphertext, poly1305.finalize()),
            Opening(keys, verified=lambda: verified.append(True)),
        )
    assert not verified


async def test_a_right_tag_is_told_even_where_the_padding_is_wrong() -> None:
    sealed, keys = await _sealed(b"payload", pad_key=64)
    enveloped, content = _content(sealed)
    verified: list[bool] = []
    garbled = {key_ID: Key(key_ID, key.key[:16] + bytes(48)) for key_ID, key in keys.items()}
    with pytest.raises(BadStructure):
        await OneTimePad().open(enveloped, Opening(garbled, verified=lambda: verified.append(True)))
    assert verified == [True]
    flipped = replace(enveloped, tag=bytes(16))
    with pytest.raises(BadTag):
        await OneTimePad().open(flipped, Opening(keys, verified=lambda: verified.append(True)))
    assert verified == [True]
    assert len(content.key_IDs) == 2


@given(st.integers(0, 10**9))
def test_padme_adds_at_most_12_percent_and_never_takes_away(length: int) -> None:
    assert length <= padme(length) <= length + max(length * 0.12, 1)


@given(st.binary(max_size=3000))
def test_padding_and_compression_give_the_payload_back(payload: bytes) -> None:
    assert unpad(bytes(pad(payload))) == payload
    assert unpad(bytes(pad(payload, "none"))) == payload
    assert decompress(compress(payload)) == payload


def test_sizes_fall_into_few_classes() -> None:
    assert len({padded_size(size) for size in range(4000, 5000)}) <= 10


@pytest.mark.parametrize("padded", [b"", b"\0" * 7, b"\0" * 7 + b"\x05abcd", b"\0" * 7 + b"\x01a\x01", b"\xff" * 16])
def test_padding_that_we_do_not_make_is_refused(padded: bytes) -> None:
    with pytest.raises(BadStructure):
        unpad(padded)


async def test_compression_saves_key_and_still_gives_the_same_octets() -> None:
    payload = b"the same line again\r\n" * 500
    sealed, keys = await _sealed(payload, level=OneTimePad(compression=True), pad_key=64)
    plain, _ = await _sealed(payload, pad_key=64)
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
