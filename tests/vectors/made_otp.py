"""The test vectors of level otp: its keys, their list, the tag, and what is inside.
Standard: relay/FORMAT.md, "Level otp".
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

from relay.formats import cms
from relay.formats.cms import der, recipients
from relay.schemes.padding import pad
from tests.vectors import parts, trees
from tests.vectors.case import ALICE, Binding, Case, Name, alices
from tests.vectors.parts import FIRST, ORIGINAL, deflate, flipped, kek, one_time_pad

_PARAMETERS = (*trees.ALGORITHM, 1)
_KEY_IDS = (*_PARAMETERS, 5)
PAYLOAD = parts.payload("otp")
SIZE = len(pad(PAYLOAD))

Sealed = tuple[bytes, dict[str, bytes]]


def otp_cases() -> Iterator[Case]:
    """What opens, and then what does not."""
    yield from _opening()
    yield from _orders()
    yield from _lacking()
    yield from _bound()
    yield from _changed()
    yield from _keys_that_are_no_pad()
    yield from _malformed()
    yield from _names()
    yield from _not_between_us()
    yield from _inside()


def case(
    name: str,
    expect: str,
    comment: str,
    sealed: Sealed,
    original: bytes = ORIGINAL,
    *,
    binds: bool = False,
    **more: Any,
) -> Case:
    """A case of this level; with success its keys are bound."""
    content, keys = sealed
    success = expect == "success"
    if success or binds:
        more = {"binds": parts.binds(content)} | more
    if success:
        more |= {"original": original, "fingerprint": cms.decode_enveloped(content).fingerprint()}
    return Case(f"otp-{name}", expect, "otp", comment, content, alices(keys), **more)


def _sealed(lengths: Sequence[int] | None = None, **more: Any) -> Sealed:
    return one_time_pad(PAYLOAD, lengths, **more)


def _opening() -> Iterator[Case]:
    yield case("plain", "success", "as we seal, with keys of 1,024 octets", _sealed())
    tiny = parts.payload("otp", b"\r\n", recipients=("b@b.example",))
    yield case(
        "tiny", "success", "a small message: an original of one line end", one_time_pad(tiny, [300, 300]), b"\r\n",
        recipients=("b@b.example",), due=("b@b.example",),
    )  # fmt: skip
    for size in (32, 48, 64):
        yield case(f"keys-of-{size}", "success", f"keys of {size} octets", _sealed(parts.lengths_of(SIZE, size)))
    half = -(-SIZE // 2)
    yield case("two-keys", "success", "two keys, the fewest", _sealed([FIRST + half] * 2))
    yield case(
        "first-key-enough", "success", "the first key hides it all, the second gives s only", _sealed([2048] * 2)
    )
    yield case(
        "second-key-of-32", "success", "a second key of 32 octets, which gives s and hides nothing", _sealed([2048, 32])
    )
    yield case("mixed-keys", "success", "keys of many lengths", _sealed([32, 48, 64, 200, 33, 1024]))
    exact = [FIRST + 100, FIRST + 200, FIRST + SIZE - 300]
    yield case("keys-used-up", "success", "no octet of the last key is left", _sealed(exact))
    yield case(
        "one-octet", "success", "of the last key one octet is used", _sealed([FIRST + 100, FIRST + SIZE - 101, 32])
    )
    unpadded = len(PAYLOAD).to_bytes(8) + PAYLOAD
    yield case("unpadded", "success", "padding none", _sealed(padded=unpadded))
    yield case(
        "more-padding", "success", "1000 zeros: any number of them is accepted", _sealed(padded=unpadded + bytes(1000))
    )
    yield case("compressed", "success", "DEFLATE", one_time_pad(deflate(PAYLOAD), compression=1))
    eight_bit = "Subject: Grüße\r\n\r\nÄ\0Ö\r\n.\r\n".encode()
    payload = parts.payload("otp", eight_bit)
    yield case("eight-bit", "success", "octets above 127 and a NUL", one_time_pad(payload), eight_bit)
    long = parts.payload("otp", ORIGINAL * 12)
    hundreds = one_time_pad(long, parts.lengths_of(len(pad(long)), 32))
    yield case("many-keys", "success", "hundreds of keys of 32 octets", hundreds, ORIGINAL * 12)


def _orders() -> Iterator[Case]:
    """key_IDs ascend as UTF-8 octets, each once; nothing else is an order."""
    three = _even(3)
    for name, names, comment in (
        ("order-upper-first", ("Z", "a", "b"), "upper case comes before lower case"),
        ("order-shorter-first", ("a", "a-", "aa"), "what begins alike: the shorter first"),
        ("order-digits", ("10", "100", "9"), "digits are characters as all others"),
        ("order-utf-8", ("z", "\u00e9", "\uff5e"), "octets above 127 come last"),
        ("order-astral", ("a", "\uff5e", "\U0001f511"), "in UTF-8 U+1F511 comes after U+FF5E, in UTF-16 before it"),
        ("order-later", ("a", "\u0264", "\ua7cb"), "U+A7CB, which Unicode 14.0 does not assign, folds to itself"),
        ("order-uuids", ("0b8d2f9e-2f52-4a37-9a4f-3c1f6e5f9f41", "0b8d2f9e-2f52-4a37-9a4f-3c1f6e5f9f42", "f"), "UUIDs"),
    ):
        yield case(name, "success", comment, _sealed(three, names=names))
    for name, names, comment in (
        (
            "order-swapped",
            ("pad-2", "pad-1", "pad-3"),
            "the first two exchanged, and the tag made of them as they stand",
        ),
        ("order-descending", ("pad-3", "pad-2", "pad-1"), "descending"),
        ("order-last-two", ("pad-1", "pad-3", "pad-2"), "the last two exchanged"),
        ("order-ignoring-case", ("a", "B", "c"), "ascending only for who ignores upper and lower case"),
        ("order-numbers", ("9", "10", "100"), "ascending only as numbers"),
        ("order-utf-16", ("a", "\U0001f511", "\uff5e"), "ascending only as UTF-16"),
        ("order-shorter-last", ("aa", "a", "b"), "what begins alike: the longer first"),
        ("other-case", ("KEY", "key", "z"), "one key in upper and in lower case"),
        ("other-case-apart", ("A", "B", "a"), "one key in upper and in lower case, another between them"),
        ("other-case-folded", ("STRASSE", "stra\u00dfe", "z"), "one key for who folds case: ss is \u00df"),
    ):
        yield case(name, "bad structure", comment, _sealed(three, names=names))
    yield case("key-twice", "bad structure", "one key twice", _sealed(three, names=("pad-1", "pad-1", "pad-2")))
    comment = "descending, by an SAE that is no peer: the structure is looked at first"
    yield case("order-of-stranger", "bad structure", comment, _sealed(three, names=("b", "a", "c"), master="9"))
    sealed, keys = _sealed(three)
    yield case("last-key-twice", "bad structure", "the last key twice", (trees.doubled(sealed, (*_KEY_IDS, 2)), keys))


def _even(number: int) -> list[int]:
    return [FIRST + max(FIRST, -(-SIZE // number))] * number


def _lacking() -> Iterator[Case]:
    sealed, keys = _sealed(_even(3))
    names = tuple(alices(keys))
    yield case("no-keys", "no key", "Bob's KME has none of the keys", (sealed, {}))
    some = {name: key for name, key in keys.items() if name != "pad-2"}
    yield case("one-key-missing", "no key", "one of three keys is missing", (sealed, some))
    late = "its keys were used and destroyed: a copy that comes late"
    yield case("destroyed", "key destroyed", late, (sealed, {}), destroyed=names)
    yield case(
        "partly-destroyed", "key destroyed", "one of three keys was destroyed", (sealed, some), destroyed=names[1:2]
    )
    other = keys | {"pad-1": parts.octets("another", len(keys["pad-1"]))}
    yield case("other-octets", "bad tag", "the KMEs disagree about the first key", (sealed, other))
    other = keys | {"pad-2": parts.octets("another", len(keys["pad-2"]))}
    yield case("other-second-key", "bad tag", "the KMEs disagree about the second key", (sealed, other))
    shared = {Name("other", "2", "pad-1"): keys["pad-1"]} | alices({name: keys[name] for name in ("pad-2", "pad-3")})
    yield replace(case("key-of-other-group", "no key", "a key_ID that another group has", (sealed, {})), keys=shared)


def _bound() -> Iterator[Case]:
    sealed, keys = _sealed(_even(3))
    same = parts.binds(sealed)
    other = bytes(32)
    opened = case(
        "bound-to-this", "success", "a copy: its keys have opened just this", (sealed, keys), bound=same, binds=False
    )
    yield replace(opened, binds=())
    partly = case("partly-bound-to-this", "success", "one of its keys has opened this", (sealed, keys), bound=same[:1])
    yield replace(partly, binds=same[1:])
    for name, comment, bound in (
        ("bound-to-another", "one key has opened another message", Binding(same[1].name, "otp", (other,))),
        ("bound-at-aes", "one key has opened something at level aes", Binding(same[0].name, "aes", (other,))),
        ("bound-at-aes-to-this", "the same fingerprint, but at level aes", Binding(same[0].name, "aes", same[0].fingerprints)),
        ("bound-last", "the last key has opened another message", Binding(same[2].name, "otp", (other,))),
    ):  # fmt: skip
        yield case(name, "key used", comment, (sealed, keys), bound=(bound,))
    several = (ALICE._replace(messages=5),)
    yield case(
        "bound-with-messages", "key used", "a key of a pad never opens two messages, whatever is set",
        (sealed, keys), bound=(Binding(same[1].name, "otp", (other,)),), peers=several,
    )  # fmt: skip
    elsewhere = Binding(Name("other", "2", "pad-1"), "otp", (other,))
    yield case(
        "bound-elsewhere", "success", "a key_ID that was used in another group", (sealed, keys), bound=(elsewhere,)
    )
    spelt = Binding(Name("alice-bob", "2", "PAD-2"), "otp", (other,))
    yield case(
        "bound-in-other-case", "key used", "a key that was used, in other letters", (sealed, keys), bound=(spelt,)
    )


def _changed() -> Iterator[Case]:
    lengths = _even(3)
    sealed, keys = _sealed(lengths)
    first, second, third = keys.values()
    yield case("flipped-tag", "bad tag", "one bit of the tag", (flipped(sealed), keys))
    yield case("flipped-first-tag-octet", "bad tag", "one bit of the tag's first octet", (flipped(sealed, -16), keys))
    yield case("flipped-ciphertext", "bad tag", "one bit of the ciphertext", (flipped(sealed, -30), keys))
    shorter = trees.changed(sealed, trees.CIPHERTEXT, lambda node: [(node[0], node[1][:-1])])
    yield case("shorter-ciphertext", "bad tag", "the ciphertext without its last octet", (shorter, keys))
    longer, _ = _sealed([*lengths[:2], lengths[2] + 16])
    longer = trees.changed(longer, trees.CIPHERTEXT, lambda node: [(node[0], bytes(node[1]) + b"\0")])  # type: ignore[arg-type]
    more = keys | {"pad-3": parts.octets("pad-3", lengths[2] + 16)}
    yield case("longer-ciphertext", "bad tag", "the ciphertext with one octet more", (longer, more))
    content = cms.decode_enveloped(sealed).content
    assert isinstance(content, cms.PadContent)
    other = _sealed(lengths, parameters=replace(content, compression=1))
    yield case("other-compression", "bad tag", "the compression flag was set", other)
    names = ("pad-1", "pad-2", "pad-4")
    renamed = _sealed(lengths, parameters=replace(content, key_IDs=names))[0], {**keys, "pad-4": third}
    yield case("other-key-id", "bad tag", "one key named otherwise, with the same octets", renamed)
    for name, comment, tag_key in (
        ("tag-s-and-r", "r and s exchanged", second[:FIRST] + first[:FIRST]),
        ("tag-of-first-key", "the tag's key from the first 32 octets of the first key, as in version 0", first[:32]),
        ("tag-of-first-key-alone", "r and s from the first key", first[:FIRST] * 2),
        (
            "tag-of-hiding-octets",
            "the tag's key from octets that hide",
            first[FIRST : 2 * FIRST] + second[FIRST : 2 * FIRST],
        ),
        ("tag-of-later-keys", "the tag's key from the second and the third key", second[:FIRST] + third[:FIRST]),
        ("tag-of-last-key", "the tag's key from the first and the last key", first[:FIRST] + third[:FIRST]),
        ("tag-of-ends", "the tag's key from the ends of keys", first[-FIRST:] + second[-FIRST:]),
        ("tag-of-zeros", "a tag under a key of zeros", bytes(32)),
    ):
        yield case(name, "bad tag", comment, _sealed(lengths, tag_key=tag_key))
    everything = _sealed(lengths, hiding=first + second + third)
    comment = "the tag is right, but the first 16 octets of each key were not left out when hiding"
    yield case("first-octets-hide", "bad structure", comment, everything, binds=True)


def _keys_that_are_no_pad() -> Iterator[Case]:
    def refused(name: str, comment: str, sealed: Sealed) -> Case:
        return case(name, "bad structure", comment, sealed)

    alone = _sealed([FIRST + SIZE], tag_key=parts.octets("pad-1", FIRST) * 2)
    yield refused("one-key", "one key alone", alone)
    yield refused("first-key-of-31", "a first key of 31 octets", _sealed([31, 1024, 1024]))
    yield refused("second-key-of-31", "a second key of 31 octets", _sealed([2048, 31]))
    yield refused("last-key-of-31", "a last key of 31 octets, of which one octet would hide", _sealed(
        [FIRST + 100, FIRST + SIZE - 101, 31]))  # fmt: skip
    yield refused("keys-of-16", "keys of 16 octets, which hide nothing", _sealed([2048, 16]))
    yield refused("key-of-one-octet", "a second key of one octet", _sealed([2048, 1]))
    yield refused("surplus-key", "one key more than is needed", _sealed([FIRST + 100, FIRST + SIZE - 100, 32]))
    yield refused("surplus-keys", "many keys more than are needed", _sealed([2048] * 9))
    sealed, keys = _sealed([FIRST + 100, FIRST + 200, FIRST + SIZE - 300])
    fewer = keys | {"pad-3": keys["pad-3"][:-1]}
    yield refused("one-octet-short", "the keys hide one octet less than there is", (sealed, fewer))
    yield refused("key-missing-in-list", "the keys hide far less than there is", _sealed([64, 64]))
    longer = keys | {"pad-2": keys["pad-2"] + bytes(SIZE)}
    yield refused("key-longer-at-bob", "the second key is so long at Bob's that the third is surplus", (sealed, longer))
    shifted = keys | {"pad-2": keys["pad-2"][:-1], "pad-3": keys["pad-3"] + b"x"}
    yield case("key-shorter-at-bob", "bad structure", "the second key is one octet shorter at Bob's, the third longer", (
        sealed, shifted), binds=True)  # fmt: skip
    yield case(
        "last-key-longer-at-bob", "success", "what a key has beyond the ciphertext is not used",
        (sealed, keys | {"pad-3": keys["pad-3"] + b"discarded"}),
    )  # fmt: skip


def _malformed() -> Iterator[Case]:
    sealed, keys = _sealed(_even(3))
    number = (*_PARAMETERS, 0)
    utf8 = b"\x0c\x05pad-1"
    for name, comment, content in (
        ("version-2", "OneTimePadParameters version 2", trees.put(sealed, number, b"\x02\x01\x02")),
        ("version-0-number", "OneTimePadParameters version 0, with a list of key_IDs", trees.put(sealed, number, b"\x02\x01\x00")),
        ("version-257", "OneTimePadParameters version 257", trees.put(sealed, number, b"\x02\x02\x01\x01")),
        ("version-long", "version 1 in two octets", trees.put(sealed, number, b"\x02\x02\x00\x01")),
        ("compression-2", "an unknown compression", trees.put(sealed, (*_PARAMETERS, 4), b"\x02\x01\x02")),
        ("compression-negative", "compression -1", trees.put(sealed, (*_PARAMETERS, 4), b"\x02\x01\xff")),
        ("no-key-ids", "an empty list of keys", trees.put(sealed, _KEY_IDS, b"\x30\x00")),
        ("no-parameters", "the content encryption without parameters", trees.changed(sealed, _PARAMETERS, lambda _: [])),
        ("null-parameters", "NULL as parameters", trees.put(sealed, _PARAMETERS, b"\x05\x00")),
        ("field-missing", "the list of keys left out", trees.changed(sealed, _KEY_IDS, lambda _: [])),
        ("field-too-many", "one field too many", trees.followed(sealed, _KEY_IDS, b"\x02\x01\x01")),
        ("key-id-in-segment", "a key_ID with a length, as in version 0",
         trees.put(sealed, (*_KEY_IDS, 0), der.sequence(utf8, der.integer(300)))),
        ("key-id-printable-string", "a key_ID as PrintableString", trees.put(sealed, (*_KEY_IDS, 0), b"\x13" + utf8[1:])),
        ("key-id-octets", "a key_ID as OCTET STRING", trees.put(sealed, (*_KEY_IDS, 0), b"\x04" + utf8[1:])),
        ("key-id-empty", "an empty key_ID", trees.put(sealed, (*_KEY_IDS, 0), b"\x0c\x00")),
        ("key-id-line-end", "a key_ID with a line end", trees.put(sealed, (*_KEY_IDS, 0), b"\x0c\x05pad\r\n")),
        ("key-id-nul", "a key_ID with a NUL", trees.put(sealed, (*_KEY_IDS, 0), b"\x0c\x05pad-\0")),
        ("key-id-not-utf-8", "a key_ID that is not UTF-8", trees.put(sealed, (*_KEY_IDS, 0), b"\x0c\x05pad-\xff")),
        ("key-id-surrogate", "half a surrogate pair in UTF-8", trees.put(sealed, (*_KEY_IDS, 0), b"\x0c\x05pa\xed\xa0\x80")),
        ("key-id-long", "a key_ID of 257 characters", trees.put(sealed, (*_KEY_IDS, 0), der.element(0x0C, b"a" * 257))),
        ("empty-group", "an empty name of the KME group", trees.put(sealed, (*_PARAMETERS, 3), b"\x0c\x00")),
        ("no-recipient", "an empty SET of recipients", trees.put(sealed, trees.RECIPIENTS, b"\x31\x00")),
        ("kek-recipient", "a quantum key's recipient beside the pad's", _kek_first(sealed)),
        ("kek-recipient-alone", "a quantum key's recipient instead of the pad's",
         trees.put(sealed, (*trees.RECIPIENTS, 0), recipients.encode(kek()))),
        ("two-recipients", "the pad's recipient twice", trees.doubled(sealed, (*trees.RECIPIENTS, 0))),
        ("recipient-value", "another value than NULL in the recipient",
         trees.put(sealed, (*trees.RECIPIENTS, 0, 1), b"\x02\x01\x00")),
        ("short-tag", "12 octets of tag", trees.put(sealed, trees.TAG, b"\x04\x0c" + bytes(12))),
        ("long-tag", "32 octets of tag", trees.put(sealed, trees.TAG, b"\x04\x20" + bytes(32))),
        ("no-ciphertext", "encryptedContent left out", trees.changed(sealed, trees.CIPHERTEXT, lambda _: [])),
        ("truncated", "the last octet is missing", sealed[:-1]),
        ("trailing", "one octet too many", sealed + b"\0"),
    ):  # fmt: skip
        yield case(name, "bad structure", comment, (content, keys))
    segments = {name: parts.octets(name, 32 + SIZE) for name in ("pad-1",)}
    version_0 = parts.pad_in_version_0(parts.VERSION_0, segments)
    yield case("version-0", "bad structure", "a message of format version 0", (version_0, segments))
    several = {f"pad-{number}": parts.octets(f"pad-{number}", 300) for number in (1, 2, 3)}
    envelope = parts.pad_in_version_0(PAYLOAD, several)
    yield case("version-0-envelope", "bad structure", "version 0 around a sealed envelope", (envelope, several))


def _kek_first(sealed: bytes) -> bytes:
    """Before the other one, as DER orders a SET."""
    recipient = trees.parsed(recipients.encode(kek()))
    return trees.changed(sealed, (*trees.RECIPIENTS, 0), lambda pad: [recipient, pad])


def _names() -> Iterator[Case]:
    long = "k" * 255
    yield case(
        "key-ids-of-256", "success", "key_IDs of 256 characters", _sealed(_even(3), names=[long + end for end in "abc"])
    )
    wide = "\u00e9" * 255
    yield case(
        "key-ids-of-256-wide", "success", "key_IDs of 256 characters, of more octets",
        _sealed(_even(3), names=[wide + end for end in "abc"]),
    )  # fmt: skip
    joined = [f"0b8d2f9e-2f52-4a37-9a4f-3c1f6e5f9f41+{end}" for end in ("1", "2", "3")]
    yield case("key-ids-joined", "success", "key_IDs that are no UUIDs", _sealed(_even(3), names=joined))


def _not_between_us() -> Iterator[Case]:
    for name, comment, more in (
        ("other-master", "sealed by an SAE that is no peer's", {"master": "9"}),
        ("other-slave", "sealed for another SAE than Bob's", {"slave": "9"}),
        ("other-group", "keys of a KME group that Bob does not share with Alice", {"kme_group": "other"}),
        ("reflected", "master and slave SAE exchanged", {"master": "1", "slave": "2"}),
    ):
        yield case(name, "unknown peer", comment, _sealed(_even(3), **more))
    right = _sealed(_even(3))
    for name, comment, given in (
        ("group-for-aes", "keys of a group that serves level aes alone", {"groups": {"alice-bob": "aes"}}),
        ("not-accepted", "Alice may use aes and pqc only", {"peers": (ALICE._replace(accept="aes,pqc"),)}),
    ):
        yield case(name, "not accepted", comment, right, **given)
    yield case("group-for-otp", "success", "keys of a group for level otp", right, groups={"alice-bob": "otp"})
    yield case("accepted", "success", "Alice may use otp only", right, peers=(ALICE._replace(accept="otp"),))
    yield case("two-groups", "success", "one of two groups", right, groups={"first": "aes", "alice-bob": "both"}, peers=(
        ALICE._replace(groups="first,alice-bob"),))  # fmt: skip


def _inside() -> Iterator[Case]:
    """Sealed by somebody who has the keys, but not as the format wants it; the keys are bound all the same."""
    length = len(PAYLOAD).to_bytes(8)
    small = deflate(PAYLOAD)
    layer = parts.entity("authEnveloped-data", parts.gcm(parts.payload("aes+otp"), kek()))
    for name, comment, sealed in (
        ("padding-not-zero", "padding of other octets than zero", one_time_pad(padded=length + PAYLOAD + b"\0\1")),
        ("length-beyond", "the length goes beyond the end", one_time_pad(padded=(2**63).to_bytes(8) + PAYLOAD)),
        ("length-one-beyond", "the length goes one octet beyond the end",
         one_time_pad(padded=(len(PAYLOAD) + 1).to_bytes(8) + PAYLOAD)),
        ("no-room-for-length", "less than the 8 octets of the length", one_time_pad(padded=bytes(7))),
        ("no-octets", "a ciphertext of no octets", one_time_pad(padded=b"")),
        ("bomb", "DEFLATE that grows 1000-fold", one_time_pad(deflate(PAYLOAD + bytes(3_000_000)), compression=1)),
        ("deflate-cut", "DEFLATE without its end", one_time_pad(small[:-3], compression=1)),
        ("deflate-goes-on", "octets after the end of DEFLATE", one_time_pad(small + b"more", compression=1)),
        ("deflate-header", "zlib's header around DEFLATE", one_time_pad(b"\x78\x9c" + small, compression=1)),
        ("not-compressed", "compression is said, and there is none", one_time_pad(PAYLOAD, compression=1)),
        ("no-message", "the payload is text/plain", one_time_pad(b"Content-Type: text/plain\r\n\r\nhello\r\n")),
        ("version-0-payload", "version 1 around a payload without sealed envelope", one_time_pad(parts.VERSION_0)),
        ("another-layer", "a layer of aes inside the pad", one_time_pad(layer)),
    ):  # fmt: skip
        yield case(name, "bad structure", comment, sealed, binds=True)
