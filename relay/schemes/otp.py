"""Level otp: the payload XORed with quantum key octets that are used once, under a one-time Poly1305 tag.
Standard: relay/FORMAT.md (the composition); RFC 8439 2.5 (Poly1305) and 2.8 (input layout).
"""

from __future__ import annotations

import struct
from collections.abc import Generator, Sequence
from itertools import pairwise

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.poly1305 import Poly1305

from relay import levels
from relay.config import Config
from relay.errors import BadStructure, BadTag, KeyNotFound, KMEBadReply
from relay.formats import cms
from relay.formats.pieces import Octets, Pieces, part_of
from relay.keys import KeyReference
from relay.keys.pads import MIN_KEY_OCTETS, MIN_KEYS, TAG_OCTETS, Pad
from relay.runtime.aio import off_loop
from relay.schemes import FreshKeys, Opening, Parties, Scheme, SealedPayload, Unsealed
from relay.schemes.padding import Padding, decompress, pack, pad, padded_size, unpad


class OneTimePad(Scheme, level=levels.OTP):
    """One-time pad with quantum keys: no computation breaks it, as far as the KMEs can be trusted."""

    def __init__(self, padding: Padding = "padme", *, compression: bool = False) -> None:
        """`compression` saves key but lets the size reveal something of the content."""
        self._padding: Padding = padding
        self._compression = compression

    async def seal(self, payload: Octets | Pieces, parties: Parties, keys: FreshKeys) -> SealedPayload:
        """One AuthEnvelopedData; the first 16 octets of each key go to the tag, the rest to the pad."""
        packed: Octets | Pieces
        packed, compressed = payload, False
        if self._compression:
            packed, compressed = await off_loop(len(payload), pack, payload)
        needed = padded_size(len(packed), self._padding)
        with await keys.take_pad(parties.peer, needed) as one_time_pad:
            content = cms.PadContent(
                parties.master_sae,
                parties.slave_sae,
                _group(one_time_pad),
                int(compressed),
                tuple(key.reference.key_ID for key in one_time_pad.keys),
            )
            _check(content.key_IDs, [key.octets for key in one_time_pad.keys], needed)
            cost = one_time_pad.cost
            # Now, while the pad exists.
            pieces = await off_loop(needed, _seal, packed, self._padding, one_time_pad, content)
        return SealedPayload(pieces, _references(content), 8 * cost)

    def recognises(self, enveloped: cms.AuthEnveloped) -> bool:
        return isinstance(enveloped.content, cms.PadContent)

    def references(self, enveloped: cms.AuthEnveloped) -> tuple[KeyReference, ...]:
        """The keys of the pad in order; all of them are needed."""
        return _references(_pad_content(enveloped))

    async def open(self, enveloped: cms.AuthEnveloped, opening: Opening) -> Unsealed:
        """The payload, released only after the tag over key list and ciphertext has been verified."""
        return Unsealed(await off_loop(len(enveloped.ciphertext), _open, enveloped, opening))


def scheme(config: Config | None = None) -> OneTimePad:
    """The scheme for all_schemes."""
    return OneTimePad(config.otp.padding, compression=config.otp.compression) if config else OneTimePad()


def _group(one_time_pad: Pad) -> str:
    """The KME group of all keys of the pad."""
    groups = {key.group for key in one_time_pad.keys}
    if len(groups) != 1:
        raise KMEBadReply("the pad's keys come from several KME groups")
    return groups.pop()


def _check(key_IDs: Sequence[str], keys: Sequence[bytes | bytearray], hidden: int) -> None:
    """Raises BadStructure unless these keys, in this order, are a pad for this number of octets.

    A sender checks it too: mail that a receiver would refuse must not leave.
    """
    octets = [key_ID.encode() for key_ID in key_IDs]
    if len(keys) < MIN_KEYS or any(not before < after for before, after in pairwise(octets)):
        raise BadStructure("a pad has two keys at least, whose IDs ascend")
    if short := [key_ID for key_ID, key in zip(key_IDs, keys, strict=True) if len(key) < MIN_KEY_OCTETS]:
        raise BadStructure(f"key {short[0]} is shorter than {MIN_KEY_OCTETS} octets, and cannot be one of a pad")
    hides = sum(len(key) - TAG_OCTETS for key in keys)
    if hides < hidden:
        raise BadStructure("the pad's keys hide less than the ciphertext has")
    if len(keys) > MIN_KEYS and hides - (len(keys[-1]) - TAG_OCTETS) >= hidden:
        raise BadStructure("the pad has more keys than tag and ciphertext need")


def _seal(packed: Octets | Pieces, padding: Padding, one_time_pad: Pad, content: cms.PadContent) -> Pieces:
    tag_key, hiding = _apart([key.octets for key in one_time_pad.keys])
    for key in one_time_pad.keys:
        _forget(key.octets)
    padded = pad(packed, padding)
    _xor(padded, hiding)
    ciphertext = memoryview(hiding)[: len(padded)]
    _wipe(memoryview(hiding)[len(padded) :])
    tag = _tag(tag_key, content.encode(), ciphertext).finalize()

    def encrypted() -> Generator[Octets, None, bytes]:
        yield from part_of(ciphertext)
        return tag

    return cms.enveloped_pieces((cms.PadRecipient(),), content, len(padded), encrypted)


def _open(enveloped: cms.AuthEnveloped, opening: Opening) -> bytes:
    content = _pad_content(enveloped)
    missing = [key_ID for key_ID in content.key_IDs if key_ID not in opening.keys]
    if missing:
        raise KeyNotFound(f"{len(missing)} of {len(content.key_IDs)} keys of the pad are not here: {missing[0]} ...")
    keys = [opening.keys[key_ID].key for key_ID in content.key_IDs]
    _check(content.key_IDs, keys, len(enveloped.ciphertext))
    tag_key, hiding = _apart(keys)
    # The tag first: output of an XOR with wrong keys must not be released.
    try:
        _tag(tag_key, content.encode(), enveloped.ciphertext).verify(enveloped.tag)
    except InvalidSignature as error:
        raise BadTag("the tag does not match: the message was changed on the way") from error
    _xor(enveloped.ciphertext, hiding)
    opening.verified()
    try:
        with memoryview(hiding)[: len(enveloped.ciphertext)] as padded:
            packed = unpad(padded)
    finally:
        _forget(hiding)
    return decompress(packed) if content.compression else packed


def _apart(keys: Sequence[bytes | bytearray]) -> tuple[bytes, bytearray]:
    """Splits the keys into the tag's key and the pad: no octet serves both."""
    tag_key = bytes(keys[0][:TAG_OCTETS]) + bytes(keys[1][:TAG_OCTETS])
    return tag_key, bytearray().join(memoryview(key)[TAG_OCTETS:] for key in keys)


def _tag(key: bytes, parameters: bytes, ciphertext: Octets) -> Poly1305:
    """Poly1305 over parameters and ciphertext, each padded to 16 octets, and both lengths."""
    poly1305 = Poly1305(key)
    for part in (parameters, ciphertext):
        poly1305.update(part)
        poly1305.update(bytes(-len(part) % 16))
    poly1305.update(struct.pack("<QQ", len(parameters), len(ciphertext)))
    return poly1305


def _xor(data: Octets | Pieces, octets: bytearray) -> None:
    """`data` XOR the first of `octets`, in place; in pieces, to let other threads run."""
    start = 0
    with memoryview(octets) as target:
        for piece in part_of(data):
            end = start + len(piece)
            mask = int.from_bytes(target[start:end])
            target[start:end] = (int.from_bytes(piece) ^ mask).to_bytes(len(piece))
            start = end


def _forget(octets: bytearray) -> None:
    """Overwrites octets of a pad, and frees their memory."""
    with memoryview(octets) as view:
        _wipe(view)
    octets.clear()


def _wipe(view: memoryview) -> None:
    """Overwrites it in pieces, since each allocates memory."""
    for piece in part_of(view):
        memoryview(piece)[:] = bytes(len(piece))


def _pad_content(enveloped: cms.AuthEnveloped) -> cms.PadContent:
    if not isinstance(enveloped.content, cms.PadContent) or enveloped.recipients != (cms.PadRecipient(),):
        raise BadStructure("not sealed by one-time pad alone")
    if len(enveloped.content.key_IDs) > max(MIN_KEYS, -(-len(enveloped.ciphertext) // (MIN_KEY_OCTETS - TAG_OCTETS))):
        raise BadStructure("the pad has more keys than tag and ciphertext can need")
    return enveloped.content


def _references(content: cms.PadContent) -> tuple[KeyReference, ...]:
    return tuple(
        KeyReference(key_ID, content.master_sae, content.slave_sae, content.kme_group) for key_ID in content.key_IDs
    )
