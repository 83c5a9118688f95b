"""The test vectors of level otp.
Standard: relay/FORMAT.md, "Level otp".
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from relay import cms
from relay.cms import recipients
from relay.levels.padding import pad
from tests.vectors import parts, trees
from tests.vectors.case import Case
from tests.vectors.parts import ORIGINAL, PAYLOAD, deflate, flipped, kek, one_time_pad

_PARAMETERS = (*trees.ALGORITHM, 1)
_SEGMENTS = (*_PARAMETERS, 5)


def otp_cases() -> Iterator[Case]:
    """What opens, and then what does not."""
    yield from _opening()
    yield from _lacking()
    yield from _changed()
    yield from _malformed()
    yield from _inside()


def _case(name: str, expect: str, comment: str, sealed: tuple[bytes, dict[str, bytes]], original: bytes = b"") -> Case:
    return Case(f"otp-{name}", expect, "otp", comment, *sealed, original=original if expect == "success" else None)


def _lengths(*first: int) -> list[int]:
    """Segments of these lengths, and one for the rest."""
    return [*first, 32 + len(pad(PAYLOAD)) - sum(first)]


def _opening() -> Iterator[Case]:
    yield _case("one-segment", "success", "one key is the whole pad", one_time_pad(PAYLOAD), ORIGINAL)
    yield _case("tiny", "success", "the smallest message: a header and nothing", _tiny(), b"\r\n")
    yield _case(
        "three-segments", "success", "the pad in three keys", one_time_pad(PAYLOAD, _lengths(40, 100)), ORIGINAL
    )
    yield _case(
        "tag-key-from-two-keys", "success", "the tag's key lies across two segments",
        one_time_pad(PAYLOAD, _lengths(5, 1, 20)), ORIGINAL,
    )  # fmt: skip
    sealed, keys = one_time_pad(PAYLOAD, _lengths(64))
    longer = {name: key + b"discarded" for name, key in keys.items()}
    yield _case("remainders", "success", "what keys have beyond their segments is not used", (sealed, longer), ORIGINAL)
    unpadded = len(PAYLOAD).to_bytes(8) + PAYLOAD
    yield _case("unpadded", "success", "padding none", one_time_pad(PAYLOAD, padded=unpadded), ORIGINAL)
    yield _case(
        "more-padding", "success", "1000 zeros: any number of them is accepted",
        one_time_pad(PAYLOAD, padded=unpadded + bytes(1000)), ORIGINAL,
    )  # fmt: skip
    yield _case("compressed", "success", "DEFLATE", one_time_pad(deflate(PAYLOAD), compression=1), ORIGINAL)


def _tiny() -> tuple[bytes, dict[str, bytes]]:
    return one_time_pad(b"Content-Type: message/rfc822\r\n\r\n\r\n")


def _lacking() -> Iterator[Case]:
    sealed, keys = one_time_pad(PAYLOAD, _lengths(40, 100))
    yield _case("no-keys", "no key", "Bob's KME has none of the keys", (sealed, {}))
    some = {name: key for name, key in keys.items() if name != "pad-2"}
    yield _case("one-key-missing", "no key", "one of three keys is missing", (sealed, some))
    used = _case("used", "key already used", "its keys were used and destroyed: a copy that comes late", (sealed, {}))
    yield replace(used, destroyed=tuple(keys))
    partly = _case("partly-used", "key already used", "one of three keys was destroyed", (sealed, some))
    yield replace(partly, destroyed=("pad-2",))
    yield _case(
        "other-octets", "wrong key", "the KMEs disagree about one key",
        (sealed, keys | {"pad-1": parts.octets("another", 40)}),
    )  # fmt: skip


def _changed() -> Iterator[Case]:
    sealed, keys = one_time_pad(PAYLOAD, _lengths(40, 100))
    yield _case("flipped-tag", "bad tag", "one bit of the tag", (flipped(sealed), keys))
    yield _case("flipped-ciphertext", "bad tag", "one bit of the ciphertext", (flipped(sealed, -30), keys))
    content = cms.decode_enveloped(sealed).content
    assert isinstance(content, cms.PadContent)
    first, second, third = content.segments
    for name, comment, parameters in (
        ("swapped-segments", "two segments changed places", replace(content, segments=(second, first, third))),
        (
            "moved-octet", "one octet moved from one segment to the next",
            replace(content, segments=(replace(first, length=39), replace(second, length=101), third)),
        ),
        ("other-compression", "the compression flag was set", replace(content, compression=1)),
    ):  # fmt: skip
        changed, _ = one_time_pad(PAYLOAD, _lengths(40, 100), parameters=parameters)
        yield _case(name, "bad tag", comment, (changed, {name: key + bytes(1) for name, key in keys.items()}))


def _malformed() -> Iterator[Case]:
    sealed, keys = one_time_pad(PAYLOAD, _lengths(40, 100))
    for name, comment, der in (
        ("version-1", "OneTimePadParameters version 1", trees.put(sealed, (*_PARAMETERS, 0), b"\x02\x01\x01")),
        ("compression-2", "an unknown compression", trees.put(sealed, (*_PARAMETERS, 4), b"\x02\x01\x02")),
        ("no-segments", "an empty list of segments", trees.put(sealed, _SEGMENTS, b"\x30\x00")),
        ("key-twice", "one key twice in the pad", trees.doubled(sealed, (*_SEGMENTS, 0))),
        ("empty-segment", "a segment of no octets", trees.put(sealed, (*_SEGMENTS, 0, 1), b"\x02\x01\x00")),
        ("negative-segment", "a segment of -1 octets", trees.put(sealed, (*_SEGMENTS, 0, 1), b"\x02\x01\xff")),
        ("huge-segment", "a segment of 2^63 - 1 octets", trees.put(sealed, (*_SEGMENTS, 0, 1), b"\x02\x08\x7f" + b"\xff" * 7)),
        ("pad-too-short", "the segments do not reach the end", trees.put(sealed, (*_SEGMENTS, 1, 1), b"\x02\x01\x63")),
        ("no-parameters", "the content encryption without parameters", trees.changed(sealed, _PARAMETERS, lambda _: [])),
        ("kek-recipient", "a quantum key's recipient beside the pad's", _kek_first(sealed)),
        ("short-tag", "12 octets of tag", trees.put(sealed, trees.TAG, b"\x04\x0c" + bytes(12))),
        ("long-tag", "32 octets of tag", trees.put(sealed, trees.TAG, b"\x04\x20" + bytes(32))),
        ("truncated", "the last octet is missing", sealed[:-1]),
        ("trailing", "one octet too many", sealed + b"\0"),
    ):  # fmt: skip
        yield _case(name, "bad structure", comment, (der, keys))


def _kek_first(sealed: bytes) -> bytes:
    """Before the other one, as DER orders a SET."""
    recipient = trees.parsed(recipients.encode(kek()))
    return trees.changed(sealed, (*trees.RECIPIENTS, 0), lambda pad: [recipient, pad])


def _inside() -> Iterator[Case]:
    """Sealed by somebody who has the keys, but not as the format wants it."""
    length = len(PAYLOAD).to_bytes(8)
    small = deflate(PAYLOAD)
    for name, comment, sealed in (
        ("padding-not-zero", "padding of other octets than zero", one_time_pad(b"", padded=length + PAYLOAD + b"\0\1")),
        ("length-beyond", "the length goes beyond the end", one_time_pad(b"", padded=(2**63).to_bytes(8) + PAYLOAD)),
        ("no-room-for-length", "less than the 8 octets of the length", one_time_pad(b"", padded=bytes(7))),
        ("bomb", "DEFLATE that grows 1000-fold", one_time_pad(deflate(PAYLOAD + bytes(3_000_000)), compression=1)),
        ("deflate-cut", "DEFLATE without its end", one_time_pad(small[:-3], compression=1)),
        ("deflate-goes-on", "octets after the end of DEFLATE", one_time_pad(small + b"more", compression=1)),
        ("no-message", "the payload is text/plain", one_time_pad(b"Content-Type: text/plain\r\n\r\nhello\r\n")),
        ("another-layer", "a layer of aes inside the pad", one_time_pad(parts.entity("authEnveloped-data", parts.gcm(PAYLOAD, kek())))),
    ):  # fmt: skip
        yield _case(name, "bad structure", comment, sealed)
