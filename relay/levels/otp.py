"""Level otp: the payload XORed with quantum key octets that are used once, under a one-time Poly1305 tag.
Standard: relay/FORMAT.md (the composition); RFC 8439 2.5 (Poly1305) and 2.8 (how its input is laid out).
"""

from __future__ import annotations

import struct

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.poly1305 import Poly1305

from relay import cms
from relay.errors import BadStructure, BadTag, KeyNotFound, KMEBadReply
from relay.keys import KeyReference
from relay.keys.pads import Pad
from relay.levels import FreshKeys, Opening, Parties, Sealed, Unsealed
from relay.levels.content import off_loop
from relay.levels.padding import Padding, bound, compress, decompress, pad, padded_size, unpad

TAG_KEY_OCTETS = 32
PIECE_OCTETS = 64 * 1024
"""XOR goes on in pieces of this size, so that other threads get their turn."""


class OTP:
    """One-time pad with quantum keys (level 1): no computation breaks it, up to the KMEs themselves."""

    name = "otp"
    quantum = True

    def __init__(self, padding: Padding = "padme", *, compression: bool = False) -> None:
        """`compression` saves key but lets the size tell something of the content."""
        self._padding: Padding = padding
        self._compression = compression

    def obstacle(self, parties: Parties) -> str:
        """None: all it needs is keys from the KME."""
        return ""

    async def seal(self, payload: bytes, parties: Parties, keys: FreshKeys) -> Sealed:
        """One AuthEnvelopedData; exactly 32 octets more of quantum key are spent than the padded payload has."""
        packed, compressed = payload, False
        if self._compression:
            packed, compressed = await off_loop(len(payload), _packed, payload)
        needed = TAG_KEY_OCTETS + padded_size(len(packed), self._padding)
        with await keys.take_pad(parties.peer, needed) as one_time_pad:
            if len(one_time_pad) != needed:
                raise KMEBadReply("the pad is not as long as it has to be")
            content = cms.PadContent(
                parties.master_sae,
                parties.slave_sae,
                _group(one_time_pad),
                int(compressed),
                tuple(
                    cms.PadSegment(segment.reference.key_ID, len(segment.octets)) for segment in one_time_pad.segments
                ),
            )
            der = await off_loop(needed, _seal, packed, self._padding, one_time_pad, content)
        return Sealed(der, _references(content), 8 * needed)

    def recognises(self, enveloped: cms.AuthEnveloped) -> bool:
        """Whether the content is under a one-time pad."""
        return isinstance(enveloped.content, cms.PadContent)

    def references(self, enveloped: cms.AuthEnveloped) -> tuple[KeyReference, ...]:
        """The keys of the pad in their order; all of them are needed."""
        return _references(_pad_content(enveloped))

    async def open(self, enveloped: cms.AuthEnveloped, opening: Opening) -> Unsealed:
        """The payload, released only after the tag over segment list and ciphertext has been verified."""
        return Unsealed(await off_loop(len(enveloped.ciphertext), _open, enveloped, opening))


def _group(one_time_pad: Pad) -> str:
    """The one KME group that gave all of the pad."""
    groups = {segment.group for segment in one_time_pad.segments}
    if len(groups) != 1:
        raise KMEBadReply("the pad's keys come from several KME groups")
    return groups.pop()


def _packed(payload: bytes) -> tuple[bytes, bool]:
    """The payload compressed, unless the receiver would have to take it for a bomb, and whether it is."""
    packed = compress(payload)
    return (packed, True) if len(payload) <= bound(len(packed)) else (payload, False)


def _seal(packed: bytes, padding: Padding, one_time_pad: Pad, content: cms.PadContent) -> bytes:
    octets = one_time_pad.octets()
    for segment in one_time_pad.segments:
        _forget(segment.octets)
    ciphertext = _xor(pad(packed, padding), octets)
    tag = _tag(octets, content.encode(), ciphertext).finalize()
    _forget(octets)
    return cms.encode_enveloped(cms.AuthEnveloped((cms.PadRecipient(),), content, ciphertext, tag))


def _open(enveloped: cms.AuthEnveloped, opening: Opening) -> bytes:
    content = _pad_content(enveloped)
    octets = _collect(content, opening)
    if len(octets) != TAG_KEY_OCTETS + len(enveloped.ciphertext):
        raise BadStructure("the pad's segments are not as long as the ciphertext needs")
    try:
        _tag(octets, content.encode(), enveloped.ciphertext).verify(enveloped.tag)
    except InvalidSignature as error:
        raise BadTag("the tag does not match: the message was changed on the way") from error
    padded = _xor(enveloped.ciphertext, octets)
    _forget(octets)
    packed = unpad(padded)
    return decompress(packed) if content.compression else packed


def _collect(content: cms.PadContent, opening: Opening) -> bytearray:
    """The pad's octets, of every segment's key the first ones, in order."""
    missing = [segment.key_ID for segment in content.segments if segment.key_ID not in opening.keys]
    if missing:
        raise KeyNotFound(f"{len(missing)} of {len(content.segments)} keys of the pad are not here: {missing[0]} ...")
    octets = bytearray()
    for segment in content.segments:
        key = opening.keys[segment.key_ID].key
        if segment.length > len(key):
            raise BadStructure(f"key {segment.key_ID} is shorter than its segment of the pad")
        octets += key[: segment.length]
    return octets


def _tag(octets: bytearray, parameters: bytes, ciphertext: bytes) -> Poly1305:
    """Poly1305 over parameters and ciphertext, each filled up to 16 octets, and both lengths; its key comes first."""
    poly1305 = Poly1305(bytes(octets[:TAG_KEY_OCTETS]))
    for part in (parameters, ciphertext):
        poly1305.update(part)
        poly1305.update(bytes(-len(part) % 16))
    poly1305.update(struct.pack("<QQ", len(parameters), len(ciphertext)))
    return poly1305


def _xor(data: bytes, octets: bytearray) -> bytes:
    """`data` XOR what follows the tag's key in `octets`, which is overwritten by the result."""
    with memoryview(octets)[TAG_KEY_OCTETS:] as target:
        for start in range(0, len(data), PIECE_OCTETS):
            piece = data[start : start + PIECE_OCTETS]
            mask = int.from_bytes(target[start : start + len(piece)])
            target[start : start + len(piece)] = (int.from_bytes(piece) ^ mask).to_bytes(len(piece))
        return bytes(target)


def _forget(octets: bytearray) -> None:
    """Overwrites octets of a pad, in pieces since each takes memory itself, and gives their memory back."""
    with memoryview(octets) as view:
        for start in range(0, len(octets), PIECE_OCTETS):
            view[start : start + PIECE_OCTETS] = bytes(len(view[start : start + PIECE_OCTETS]))
    octets.clear()


def _pad_content(enveloped: cms.AuthEnveloped) -> cms.PadContent:
    if not isinstance(enveloped.content, cms.PadContent) or enveloped.recipients != (cms.PadRecipient(),):
        raise BadStructure("not sealed by one-time pad alone")
    return enveloped.content


def _references(content: cms.PadContent) -> tuple[KeyReference, ...]:
    return tuple(
        KeyReference(segment.key_ID, content.master_sae, content.slave_sae, content.kme_group)
        for segment in content.segments
    )
