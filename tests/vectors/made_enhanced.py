"""The test vectors of layers around layers: quantum keys and further KEMs around pqc and rsa.
Standard: relay/FORMAT.md, "Layers".
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

from relay.formats import cms
from relay.formats.cms import SignatureScheme
from tests.vectors import parts, trees
from tests.vectors.case import ALICE, Binding, Case, alices
from tests.vectors.made_aes import KEY, KEYS
from tests.vectors.parts import ORIGINAL, entity, flipped, gcm, kek, octets, payload, people, signed
from tests.vectors.people import Person

_SCHEMES = {"pqc": SignatureScheme.ML_DSA_87_P384, "rsa": SignatureScheme.RSA_PSS}
MCELIECE, HQC, FRODO = "classic-mceliece-6688128", "hqc-256", "frodokem-1344-shake"
SECRETS = tuple(
    (kem, parts.further(kem, octets(f"{kem} public key"), b"").certificate.ski, octets(f"{kem} secret"))
    for kem in (MCELIECE, HQC, FRODO)
)


def enhanced_cases() -> Iterator[Case]:
    """What opens, and what does not, for both levels inside."""
    for inner in ("pqc", "rsa"):
        yield from _around_certified(inner)
    yield from _further_kems()


def case(name: str, expect: str, level: str, comment: str, content: bytes, *, binds: bool = False, **more: Any) -> Case:
    """A case whose outermost layer is one of aes; with success its key is bound."""
    success = expect == "success"
    if success or binds:
        more = {"binds": parts.binds(content)} | more
    if success:
        more |= {"original": ORIGINAL, "fingerprint": cms.decode_enveloped(content).fingerprint()}
    return Case(name, expect, level, comment, content, more.pop("keys", KEYS), **more)


def signed_content(inner: str, said: bytes, by: Person | None = None) -> bytes:
    """SignedData around this payload, as the content of a layer."""
    return entity("signed-data", cms.encode_signed(signed(said, by or people()[0], _SCHEMES[inner])))


def inner_layer(level: str, to: Person, content: bytes) -> bytes:
    """The layer of pqc or rsa."""
    return gcm(content, (parts.kem if level == "pqc" else parts.ktri)(to))


def outer(content: bytes, *recipients: cms.KEKRecipient | cms.KEMRecipient) -> bytes:
    """One more layer, of aes unless it is for others."""
    return gcm(entity("authEnveloped-data", content), *(recipients or (kek(),)))


def _around_certified(inner: str) -> Iterator[Case]:
    alice, bob, eve = people()
    level = f"{inner}+aes"
    content = signed_content(inner, payload(level))
    right = inner_layer(inner, bob, content)
    whole = outer(right)
    yield case(f"{level}-plain", "success", level, "as we seal", whole)
    yield from _layers(inner)
    yield case(f"{level}-no-key", "no key", level, "Bob's KME does not have the key", whole, keys={})
    comment = "the quantum key was destroyed"
    yield case(f"{level}-destroyed", "key destroyed", level, comment, whole, keys={}, destroyed=(KEY,))
    other = alices({"key-1": octets("another")})
    yield case(f"{level}-other-octets", "bad tag", level, "the KMEs disagree about the key", whole, keys=other)
    bound = Binding(KEY, "aes", (bytes(32),))
    yield case(f"{level}-bound", "key used", level, "its key has opened another message", whole, bound=(bound,))
    forged = replace(signed(payload(level), alice, _SCHEMES[inner]), content=payload(level) + b"Eve\r\n")
    forgery = inner_layer(inner, bob, entity("signed-data", cms.encode_signed(forged)))
    yield case(f"{level}-flipped-tag", "bad tag", level, "one bit of the outer tag", flipped(whole))
    for name, expect, comment, der in (
        ("flipped-inner-tag", "bad tag", "one bit of the inner tag", outer(flipped(right))),
        ("inner-for-eve", "not for us", "the inner layer is for Eve", outer(inner_layer(inner, eve, content))),
        ("forged", "bad signature", "another content under Alice's signature", outer(forgery)),
        ("truncated-inside", "bad structure", "the inner layer without its last octet", outer(right[:-1])),
        ("signed-only", "bad structure", "signed inside, but not encrypted a second time", gcm(content, kek())),
    ):  # fmt: skip
        yield case(f"{level}-{name}", expect, level, comment, der, binds=True)
    turned = inner_layer(inner, bob, entity("authEnveloped-data", gcm(payload(f"aes+{inner}"), kek())))
    comment = "the layer of aes inside that of the certificates"
    yield case(f"{level}-wrong-way-round", "bad structure", level, comment, turned)
    unsigned = inner_layer(inner, bob, payload(level))
    yield case(f"{level}-unsigned", "bad structure", level, "no signature inside", outer(unsigned), binds=True)
    only = ALICE._replace(accept=inner)
    comment = "Alice may use the inner level alone: the layer around it may be there"
    yield case(f"{level}-accepted", "success", level, comment, whole, peers=(only,))
    comment = "Alice may use aes alone"
    yield case(
        f"{level}-not-accepted",
        "not accepted",
        level,
        comment,
        whole,
        peers=(ALICE._replace(accept="aes"),),
        binds=True,
    )
    comment = "a key of a group that serves level otp alone"
    yield case(f"{level}-group-for-otp", "not accepted", level, comment, whole, groups={"alice-bob": "otp"})


def _layers(inner: str) -> Iterator[Case]:
    """What the sealed envelope says of the layers, and how many there are."""
    _, bob, _ = people()
    level = f"{inner}+aes"

    def saying(layers: str) -> bytes:
        return inner_layer(inner, bob, signed_content(inner, payload(layers)))

    for name, said, comment in (
        ("layer-added", inner, "a layer of aes that the sealed envelope does not name"),
        ("layer-missing", f"{level}+aes", "a second layer of aes is missing"),
        ("layers-turned", f"aes+{inner}", "the layers named in another order"),
        ("layers-of-other", f"{'rsa' if inner == 'pqc' else 'pqc'}+aes", "the other level named"),
        ("layers-outer-alone", "aes", "the outer layer named alone"),
    ):
        yield case(f"{level}-{name}", "not named", level, comment, outer(saying(said)), binds=True)
    both = KEYS | alices({"key-2": octets("key-2")})
    twice = saying(f"{level}+aes")
    two = outer(outer(twice), kek("key-2"))
    bindings = (*parts.binds(two), *parts.binds(outer(twice)))
    comment = "two layers of aes around it, with two keys"
    yield replace(case(f"{level}-two-layers", "success", f"{level}+aes", comment, two, keys=both), binds=bindings)
    same = outer(outer(twice))
    comment = "two layers of aes around it with one key: the tags are right, but a key opens one ciphertext"
    yield case(f"{level}-one-key-twice", "key used", f"{level}+aes", comment, same, binds=True)
    names = [f"key-{number}" for number in range(1, 7)]
    layers, bindings = saying(f"{level}{'+aes' * 5}"), ()
    for name in names:
        layers = outer(layers, kek(name))
        bindings = (*parts.binds(layers), *bindings)
    keys = alices({name: octets(name) for name in names})
    comment = "seven layers, more than there may be"
    made = case(f"{level}-too-many-layers", "bad structure", f"{level}{'+aes' * 5}", comment, layers, keys=keys)
    yield replace(made, binds=bindings[:5])


def _further_kems() -> Iterator[Case]:
    """Each is a layer of certificates' kind, of which nothing is signed; Bob's `secret` fields stand for the library."""
    _, bob, _ = people()

    def around(content: bytes, *kems: str) -> bytes:
        for kem in kems:
            content = outer(content, _to(kem))
        return content

    def pqc(*layers: str) -> bytes:
        return inner_layer("pqc", bob, signed_content("pqc", payload("+".join(("pqc", *layers)))))

    def made(name: str, expect: str, layers: str, comment: str, content: bytes, **more: Any) -> Case:
        secrets = tuple(each for each in SECRETS if each[0] in layers)
        return case(
            f"kem-{name}", expect, layers, comment, content, **({"binds": (), "secrets": secrets, "keys": {}} | more)
        )

    def stack(*layers: str) -> str:
        return "+".join(("pqc", *layers))

    yield made("mceliece", "success", stack(MCELIECE), "Classic McEliece around pqc", around(pqc(MCELIECE), MCELIECE))
    yield made("hqc", "success", stack(HQC), "HQC around pqc", around(pqc(HQC), HQC))
    yield made("frodo", "success", stack(FRODO), "FrodoKEM around pqc", around(pqc(FRODO), FRODO))
    three = (MCELIECE, HQC, FRODO)
    yield made("three", "success", stack(*three), "three further KEMs", around(pqc(*three), *three))
    whole = outer(around(pqc(MCELIECE, "aes"), MCELIECE))
    bound = {"keys": KEYS, "binds": parts.binds(whole)}
    yield made("aes-outside", "success", stack(MCELIECE, "aes"), "Classic McEliece, and aes around it", whole, **bound)
    added = around(pqc(), MCELIECE)
    yield made("added", "not named", stack(MCELIECE), "a layer that anybody can add with Bob's public key", added)
    yield made("stripped", "not named", "pqc", "a layer of Classic McEliece is missing", pqc(MCELIECE))
    turned = around(pqc(MCELIECE, HQC), HQC, MCELIECE)
    yield made("turned", "not named", stack(HQC, MCELIECE), "two layers in another order than is said", turned)
    other = around(pqc(MCELIECE), HQC)
    yield made("other", "not named", stack(HQC), "another KEM than is said", other)
    twice = around(pqc(MCELIECE, MCELIECE), MCELIECE, MCELIECE)
    yield made("twice", "bad structure", stack(MCELIECE, MCELIECE), "one KEM twice", twice)
    rsa = inner_layer("rsa", bob, signed_content("rsa", payload(f"rsa+{MCELIECE}")))
    yield made("around-rsa", "bad structure", f"rsa+{MCELIECE}", "a further KEM around rsa", around(rsa, MCELIECE))
    aes = outer(pqc("aes", MCELIECE))
    comment = "a further KEM around aes"
    yield made("around-aes", "bad structure", stack("aes", MCELIECE), comment, around(aes, MCELIECE), keys=KEYS)
    content = signed_content("pqc", payload(MCELIECE))
    signed_alone = gcm(content, _to(MCELIECE))
    yield made("around-signed", "bad structure", MCELIECE, "a further KEM around SignedData", signed_alone)
    alone = gcm(payload(MCELIECE), _to(MCELIECE))
    yield made("around-message", "bad structure", MCELIECE, "a further KEM alone: nobody is proved", alone)
    right = around(pqc(MCELIECE), MCELIECE)
    yield made("for-other-key", "not for us", stack(MCELIECE), "for a key that is not Bob's", right, secrets=())
    changed = ((MCELIECE, SECRETS[0][1], octets("another")),)
    short = trees.put(right, (*trees.RECIPIENTS, 0, 1, 3), b"\x04\x81\xcf" + bytes(207))
    yield made("short-encapsulation", "bad structure", stack(MCELIECE), "a ciphertext of 207 octets", short)
    nameless = trees.put(right, (*trees.RECIPIENTS, 0, 1, 1), b"\x80\x13" + bytes(19))
    yield made("short-identifier", "not for us", stack(MCELIECE), "a key named by 19 octets", nameless)
    yield made("other-secret", "bad tag", stack(MCELIECE), "another shared secret", right, secrets=changed)
    yield made("flipped-tag", "bad tag", stack(MCELIECE), "one bit of the outer tag", flipped(right))


def _to(kem: str) -> cms.KEMRecipient:
    return parts.further(kem, octets(f"{kem} public key"), octets(f"{kem} secret"))
