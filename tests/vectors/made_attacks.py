"""The test vectors of attacks: by who reads the wire and may send what they like, and by a peer who is not honest.
Standard: relay/FORMAT.md, "Security considerations".

An attacker who guesses the original of a genuine message knows all key octets that hid it. Most attacks come twice: before the
genuine message, when its keys have opened nothing, and after it.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from datetime import timedelta
from typing import Any

from relay.formats import cms
from relay.formats.cms import der, recipients
from relay.schemes.padding import pad
from tests.vectors import made_aes, made_enhanced, made_otp, parts, trees
from tests.vectors.case import ALICE, NOW, RECIPIENT, Binding, Case, Name, Peer, Seen, alices
from tests.vectors.parts import FIRST, ORIGINAL, flipped, gcm, kek, octets, one_time_pad, payload, people

EVE = Peer("eve", "3", "eve.example", "eve-bob")
GROUPS = {"alice-bob": "both", "eve-bob": "both"}
APART = {"pads": "otp", "wrapping": "aes"}


def attack_cases() -> Iterator[Case]:
    """By what is attacked."""
    for made in (
        *_pads(),
        *_pads_as_wrapping_keys(),
        *_wrapping_keys_as_pads(),
        *_genuine_again(),
        *_redirections(),
        *_reflections(),
        *_dishonest_peers(),
        *_weaker(),
    ):
        yield replace(made, name=f"attack-{made.name.partition('-')[2]}")


def _forged(layers: str) -> bytes:
    original = ORIGINAL.replace(b"42 and 43", b"10 and 11")
    return payload(layers, original, id=octets("forged id", 16))


class _Genuine:
    """A message of Alice's at level otp under keys of 64 octets, and what a guess of its original reveals."""

    def __init__(self, size: int = 64) -> None:
        said = payload("otp")
        self.padded = bytes(pad(said))
        self.content, self.keys = one_time_pad(said, parts.lengths_of(len(self.padded), size))
        self.names = list(self.keys)
        enveloped = cms.decode_enveloped(self.content)
        self.bound = parts.binds(self.content)
        self.seen = (Seen("2", octets("id", 16), enveloped.fingerprint(), (RECIPIENT,)),)
        mask = bytes(a ^ b for a, b in zip(enveloped.ciphertext, self.padded, strict=True))
        step = size - FIRST
        self.known = {name: mask[index * step :][:step] for index, name in enumerate(self.names)}

    @property
    def after(self) -> dict[str, Any]:
        """What Bob's relay knows once the genuine message was opened."""
        return {"bound": self.bound, "seen": self.seen}


def _twice(
    name: str, comment: str, content: bytes, keys: dict[str, bytes], genuine: _Genuine, before: str, after: str
) -> Iterator[Case]:
    """Before the genuine message and after it."""
    yield made_otp.case(f"{name}-before", before, f"{comment}; before the genuine message", (content, keys))
    yield made_otp.case(
        f"{name}-after", after, f"{comment}; after the genuine message", (content, keys), **genuine.after
    )


def _pads() -> Iterator[Case]:
    """A new message at level otp from octets that hid the genuine one."""
    genuine = _Genuine()
    keys, names, known = genuine.keys, genuine.names, genuine.known
    padded = bytes(pad(_forged("otp")))
    mask = b"".join(known.values())
    needed = names[: -(-len(padded) // 48)]
    first, second = known[names[0]], known[names[1]]
    for name, comment, tag_key in (
        ("pad-as-tag-key", "known octets of two keys as the tag's", first[:FIRST] + second[:FIRST]),
        ("pad-key-as-tag-key", "32 known octets of one key as the tag's", first[:32]),
        ("pad-ends-as-tag-key", "the last known octets of two keys as the tag's", first[-FIRST:] + second[-FIRST:]),
        ("guessed-tag-key", "zeros as the tag's key", bytes(32)),
        ("pair-swapped", "r and s of the genuine tag exchanged", keys[names[1]][:FIRST] + keys[names[0]][:FIRST]),
    ):
        content, _ = one_time_pad(padded=padded, keys=keys, names=needed, hiding=mask, tag_key=tag_key)
        yield from _twice(name, comment, content, keys, genuine, "bad tag", "key used")
    segments = {**known, "z": bytes(len(padded))}
    for name, comment, content in (
        ("pair-exchanged", "the pair that gives the tag's key exchanged in the list",
         one_time_pad(padded=padded, keys=keys, names=[needed[1], needed[0], *needed[2:]], hiding=mask)[0]),
        ("key-doubled", "the first key twice",
         one_time_pad(padded=padded, keys=keys, names=[needed[0], needed[0], *needed[1:]], hiding=mask)[0]),
        ("version-0", "a message of version 0 from known octets", parts.pad_in_version_0(_forged("otp"), segments)),
    ):  # fmt: skip
        yield from _twice(name, comment, content, keys, genuine, "bad structure", "bad structure")
    yield from _flipped_bits(genuine)
    yield from _keys_twice(genuine)


def _flipped_bits(genuine: _Genuine) -> Iterator[Case]:
    """The genuine message with changes that XOR alone would let through."""
    enveloped = cms.decode_enveloped(genuine.content)
    wanted = bytes(pad(payload("otp", recipients=("eve@bob.example",))))
    difference = (a ^ b for a, b in zip(genuine.padded, wanted, strict=True))
    ciphertext = bytes(a ^ b for a, b in zip(enveloped.ciphertext, difference, strict=True))
    for name, comment, changed in (
        (
            "recipient-flipped",
            "the sealed recipient changed by flipping bits",
            replace(enveloped, ciphertext=ciphertext),
        ),
        ("other-tag", "the genuine ciphertext with another tag", replace(enveloped, tag=flipped(enveloped.tag, 0))),
    ):
        content = cms.encode_enveloped(changed)
        yield from _twice(name, comment, content, genuine.keys, genuine, "bad tag", "key used")


def _keys_twice(genuine: _Genuine) -> Iterator[Case]:
    """A key that two messages name, by a fault of the sender's or of a KME."""
    first, *_, last = genuine.names
    spelt = trees.put(genuine.content, (*trees.ALGORITHM, 1, 5, 0), der.element(0x0C, first.upper().encode()))
    comment = "the genuine message with one key spelt otherwise, for a KME that gives it again"
    upper = genuine.keys | {first.upper(): genuine.keys[first]}
    yield made_otp.case("other-spelling-after", "key used", comment, (spelt, upper), **genuine.after)
    other = payload("otp", id=octets("second id", 16))
    second, _ = one_time_pad(other, keys=genuine.keys)
    comment = "Alice's relay used all keys for two messages"
    yield made_otp.case("keys-twice", "key used", comment, (second, genuine.keys), **genuine.after)
    two = {"a-key": octets("a-key", 2048), last: genuine.keys[last]}
    third = one_time_pad(other, keys=two)
    comment = "of two messages the last key is the same"
    yield made_otp.case("last-key-twice", "key used", comment, third, **genuine.after)
    yield made_otp.case("last-key-first", "success", "the second of these messages comes first", third)


def _pads_as_wrapping_keys() -> Iterator[Case]:
    """A new message at level aes, whose key is one that hid the genuine one."""
    for size in (32, 48, 64):
        genuine = _Genuine(size)
        name = genuine.names[0]
        known = genuine.known[name]
        guesses = {
            32: (("guessed", known.rjust(32, b"\0")), ("repeated", known * 2)),
            48: (("whole", known), ("filled-up", known.rjust(48, b"\0")[:32])),
            64: (("end", known[-32:]), ("begin", known[:32])),
        }[size]
        for title, key in guesses:
            content = gcm(_forged("aes"), kek(name, key=key))
            comment = f"{len(known)} known octets of a pad key of {size} as key-encryption key"
            before = "bad tag" if size == 32 else "bad structure"
            for when, expect, more in (("before", before, {}), ("after", "key used", genuine.after)):
                yield made_aes.case(
                    f"pad-{size}-as-wrapping-key-{title}-{when}", expect, f"{comment}; {when} the genuine message", content,
                    keys=alices(genuine.keys), **more,
                )  # fmt: skip


def _wrapping_keys_as_pads() -> Iterator[Case]:
    """Keys of one level named at the other, rightly sealed: by a peer, or by who knows a key."""
    wrapped = gcm(payload("aes", id=octets("genuine id", 16)), kek())
    bound = parts.binds(wrapped)
    keys = {"key-0": octets("key-0", 2048), "key-1": octets("key-1")}
    content, _ = one_time_pad(payload("otp"), keys=keys)
    comment = "a pad whose second key was a key-encryption key"
    yield made_otp.case("wrapping-key-in-pad-after", "key used", comment, (content, keys), bound=bound)
    comment = "a pad whose second key will be a key-encryption key: the first that opens has it"
    yield made_otp.case("wrapping-key-in-pad-before", "success", comment, (content, keys))
    genuine = gcm(payload("aes"), kek())
    comment = "a key-encryption key that was one of a pad"
    yield made_aes.case("pad-key-wraps-after", "key used", comment, genuine, bound=parts.binds(content, ["key-1"]))
    pads, wrapping = Name("pads", "2", "key-1"), Name("wrapping", "2", "key-1")
    two: dict[str, Any] = {"groups": APART, "peers": (ALICE._replace(groups="pads,wrapping"),)}
    attribute = cms.QKDKeyAttribute("2", "1", "pads")
    crossed = gcm(payload("aes"), kek(attribute=attribute))
    comment = "a key of a group for otp as key-encryption key"
    yield made_aes.case("pad-group-wraps", "not accepted", comment, crossed, keys={pads: octets("key-1")}, **two)
    crossed, _ = one_time_pad(payload("otp"), keys=keys, kme_group="wrapping")
    named = {Name("wrapping", "2", key_ID): key for key_ID, key in keys.items()}
    comment = "keys of a group for aes as a pad"
    yield replace(made_otp.case("wrapping-group-pads", "not accepted", comment, (crossed, {}), **two), keys=named)
    right = gcm(payload("aes"), kek(attribute=cms.QKDKeyAttribute("2", "1", "wrapping")))
    elsewhere = Binding(pads, "otp", (octets("another fingerprint"),))
    made = made_aes.case(
        "groups-apart", "success", "a key_ID that was used in the group for otp", right, keys={wrapping: octets("key-1")},
        bound=(elsewhere,), **two,
    )  # fmt: skip
    yield replace(made, binds=parts.binds(right, group="wrapping"))


def _genuine_again() -> Iterator[Case]:
    """Copies of a genuine message, as they are and with changes outside of what the tag covers."""
    genuine = _Genuine()
    sealed = (genuine.content, genuine.keys)

    def again(name: str, comment: str, **more: Any) -> Case:
        return replace(made_otp.case(name, "success", comment, sealed, **(genuine.after | more)), binds=())

    yield again("copy", "a copy for who has it: answered as success, nothing delivered", due=(), served=(RECIPIENT,))
    yield again(
        "copy-from-outside", "a copy with another MAIL FROM", sender="eve@eve.example", due=(), served=(RECIPIENT,)
    )
    yield again("copy-for-two", "a copy for who has it, and for another", recipients=(RECIPIENT, "eve@bob.example"), due=(),
                served=(RECIPIENT,), aside=("eve@bob.example",))  # fmt: skip
    late = NOW + timedelta(days=7, seconds=1)
    yield made_otp.case("copy-late", "outside window", "a copy after the window", sealed, now=late, **genuine.after)
    destroyed = tuple(alices(genuine.keys))
    comment = "a copy after its keys were destroyed"
    yield made_otp.case(
        "copy-destroyed", "key destroyed", comment, (genuine.content, {}), destroyed=destroyed, seen=genuine.seen
    )
    wrapped = gcm(payload("aes"), kek())
    seen = (Seen("2", octets("id", 16), cms.decode_enveloped(wrapped).fingerprint(), (RECIPIENT,)),)
    bound = parts.binds(wrapped)
    dated = trees.followed(wrapped, (*trees.RECIPIENTS, 0, 1, 0), b"\x18\x0f20261125100000Z")
    comment = "a copy with a date in the key identifier, which no tag covers"
    yield made_aes.case("copy-with-date", "bad structure", comment, dated, bound=bound, seen=seen)
    other = kek("key-2", key=octets("key-2"))
    moved = trees.put(wrapped, (*trees.RECIPIENTS, 0), recipients.encode(other))
    keys = made_aes.KEYS | alices({"key-2": octets("key-2")})
    comment = "the genuine ciphertext, its content key wrapped under another key by who has both: served already"
    yield made_aes.case(
        "rewrapped", "success", comment, moved, keys=keys, bound=bound, seen=seen, due=(), served=(RECIPIENT,)
    )
    resealed = gcm(payload("aes"), kek("key-2", cek="other"), cek="other")
    comment = "the genuine payload sealed once more under another key: its id was seen"
    yield made_aes.case("resealed", "replayed", comment, resealed, keys=keys, bound=bound, seen=seen, binds=True)
    comment = "the same, before the genuine message: the first to arrive has the id"
    yield made_aes.case("resealed-before", "success", comment, resealed, keys=keys)


def _redirections() -> Iterator[Case]:
    """Bob's relay is no oracle: nobody gets what is not for them, and nobody learns who else does."""
    genuine = _Genuine()
    sealed = (genuine.content, genuine.keys)
    eve = ("eve@bob.example",)
    comment = "a genuine message sent to another mailbox"
    yield made_otp.case("redirect-before", "not named", comment + ", first", sealed, recipients=eve, binds=True)
    yield made_otp.case("redirect-after", "not named", comment + ", once more", sealed, recipients=eve, **genuine.after)
    comment = "the same from outside, in the hope for a notice"
    yield made_otp.case(
        "redirect-from-outside", "not named", comment, sealed, sender="eve@eve.example", recipients=eve, binds=True
    )
    yield made_otp.case("redirect-null-sender", "not named", comment, sealed, sender="", recipients=eve, binds=True)
    for number, address in enumerate(
        ("ben+eve@bob.example", "ben@eve.bob.example", "ben@bob.example.", "@bob.example", "ben")
    ):
        comment = f"sent to {address}, which is another mailbox"
        yield made_otp.case(
            f"redirect-alike-{number + 1}", "not named", comment, sealed, recipients=(address,), binds=True
        )
    wrapped = gcm(payload("aes"), kek())
    yield made_aes.case("redirect-aes", "not named", "the same at level aes", wrapped, recipients=eve, binds=True)


def _reflections() -> Iterator[Case]:
    """What Bob sealed for Alice comes back to Bob."""
    reflected = payload(
        "aes", master_sae="1", slave_sae="2", sender="bob@bob.example", recipients=("ann@alice.example",)
    )
    for_ann = ("ann@alice.example",)
    bobs = cms.QKDKeyAttribute("1", "2", "alice-bob")
    comment = "Bob's own message to Alice"
    yield made_aes.case(
        "reflected-aes", "unknown peer", comment, gcm(reflected, kek(attribute=bobs)), recipients=for_ann
    )
    rewritten = gcm(reflected, kek())
    comment = "Bob's own message to Alice, with a key attribute that says the opposite; Bob's KME does not have it so"
    yield made_aes.case("reflected-rewritten-no-key", "no key", comment, rewritten, keys={}, recipients=for_ann)
    comment = "the same, with a KME that does not look at the direction"
    yield made_aes.case("reflected-rewritten", "not named", comment, rewritten, recipients=for_ann, binds=True)
    content, keys = one_time_pad(payload("otp", master_sae="1", slave_sae="2"), master="1", slave="2")
    yield made_otp.case("reflected-otp", "unknown peer", "Bob's own message to Alice", (content, keys))
    parameters = cms.decode_enveloped(content).content
    assert isinstance(parameters, cms.PadContent)
    turned = replace(cms.decode_enveloped(content), content=replace(parameters, master_sae="2", slave_sae="1"))
    comment = "Bob's own message to Alice with exchanged SAEs: they are under the tag"
    yield made_otp.case("reflected-otp-rewritten", "bad tag", comment, (cms.encode_enveloped(turned), keys))
    _, bob, _ = people()
    for level in ("pqc", "rsa"):
        said = payload(
            level, master_sae="1", slave_sae="2", sender="bob@bob.example", recipients=("ann@alice.example",)
        )
        signed = made_enhanced.signed_content(level, said, bob)
        content = made_enhanced.inner_layer(level, bob, signed)
        comment = "signed by Bob for Alice, and encrypted to Bob"
        yield Case(f"{level}-reflected-{level}", "bad signature", level, comment, content, recipients=for_ann)


def _dishonest_peers() -> Iterator[Case]:
    """Eve is Bob's peer too, and has mail that Alice sealed for her."""
    alice, bob, eve = people()
    two: dict[str, Any] = {"peers": (ALICE, EVE), "groups": GROUPS}
    eves = cms.QKDKeyAttribute("3", "1", "eve-bob")
    eves_key = {Name("eve-bob", "3", "key-1"): octets("key-1")}
    for level in ("pqc", "rsa"):
        for_eve = payload(level, slave_sae="3", recipients=("eve@eve.example",))
        signed = made_enhanced.signed_content(level, for_eve, alice)
        content = made_enhanced.inner_layer(level, bob, signed)
        comment = "signed by Alice for Eve, who encrypted it to Bob"
        yield Case(f"{level}-passed-on-{level}", "not named", level, comment, content, **two)
        comment = "the same, sent to the address that Alice sealed"
        yield Case(
            f"{level}-passed-on-to-{level}",
            "not named",
            level,
            comment,
            content,
            recipients=("eve@eve.example",),
            **two,
        )
        enhanced = made_enhanced.inner_layer(
            level, bob, made_enhanced.signed_content(level, payload(f"{level}+aes"), alice)
        )
        outer = gcm(parts.entity("authEnveloped-data", enhanced), kek(attribute=eves))
        made = Case(
            f"{level}-other-peers-layer-{level}", "bad signature", f"{level}+aes",
            "signed by Alice for Bob, in a layer under a key of Eve's", outer, eves_key, **two,
        )  # fmt: skip
        yield replace(made, binds=parts.binds(outer, group="eve-bob", sae="3"))
        by_eve = made_enhanced.signed_content(level, payload(level), eve)
        content = made_enhanced.inner_layer(level, bob, by_eve)
        yield Case(
            f"{level}-in-alices-name-{level}",
            "not named",
            level,
            "signed by Eve, with Alice's envelope",
            content,
            **two,
        )
        said = payload(level, master_sae="3")
        content = made_enhanced.inner_layer(level, bob, made_enhanced.signed_content(level, said, eve))
        comment = "sealed by Eve, from Alice's domain"
        yield Case(f"{level}-from-alice-{level}", "not named", level, comment, content, **two)
    for name, envelope, expect, comment in (
        (
            "alices-sender",
            {"master_sae": "3"},
            "not named",
            "sealed by Eve from Alice's domain, under a key of her own",
        ),
        ("alices-sae", {}, "not named", "sealed by Eve with Alice's SAE in the envelope, under a key of her own"),
        ("her-own", {"master_sae": "3", "sender": "eve@eve.example"}, "success", "a right message of Eve's"),
    ):
        content = gcm(payload("aes", ORIGINAL, **envelope), kek(attribute=eves))
        made = made_aes.case(f"eve-{name}", expect, comment, content, keys=eves_key, **two)
        if expect == "success":
            made = replace(made, by="eve", sealed_sender="eve@eve.example")
        yield replace(made, binds=parts.binds(content, group="eve-bob", sae="3"))
    crossed = cms.QKDKeyAttribute("3", "1", "alice-bob")
    comment = "a key of the group that Alice and Bob share, named as Eve's"
    keys = {Name("alice-bob", "3", "key-1"): octets("key-1")}
    yield made_aes.case(
        "eve-alices-group",
        "unknown peer",
        comment,
        gcm(payload("aes", master_sae="3"), kek(attribute=crossed)),
        keys=keys,
        **two,
    )


def _weaker() -> Iterator[Case]:
    """A message is made to look weaker or stronger than it was sealed."""
    _, bob, _ = people()
    for level in ("pqc", "rsa"):
        inner = made_enhanced.inner_layer(level, bob, made_enhanced.signed_content(level, payload(f"{level}+aes")))
        comment = "the outer layer was taken off by who has its key"
        yield Case(f"{level}-stripped-{level}", "not named", level, comment, inner)
        plain = made_enhanced.inner_layer(level, bob, made_enhanced.signed_content(level, payload(level)))
        added = gcm(parts.entity("authEnveloped-data", plain), kek())
        comment = "a layer was put around it by who has a quantum key"
        yield made_enhanced.case(f"{level}-added-{level}", "not named", f"{level}+aes", comment, added, binds=True)
    rsa = made_enhanced.inner_layer("rsa", bob, made_enhanced.signed_content("rsa", payload("rsa")))
    comment = "forged with a broken RSA key, where Alice may use pqc alone"
    yield Case("rsa-where-pqc", "not accepted", "rsa", comment, rsa, peers=(ALICE._replace(accept="pqc"),))
    enhanced = gcm(
        parts.entity("authEnveloped-data", made_enhanced.inner_layer("rsa", bob, made_enhanced.signed_content("rsa", payload("rsa+aes")))),
        kek(),
    )  # fmt: skip
    comment = "the same in a layer of aes, which Alice may use"
    peers = (ALICE._replace(accept="pqc,aes"),)
    yield made_enhanced.case("rsa-aes-where-pqc", "not accepted", "rsa+aes", comment, enhanced, peers=peers, binds=True)
