"""The test vectors of levels pqc and rsa.
Standard: relay/FORMAT.md, "Level pqc" and "Level rsa"; RFC 9629, RFC 9882, RFC 8017, RFC 5652.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from datetime import timedelta
from typing import Any

from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import padding

from relay.formats import cms
from relay.formats.cms import SignatureScheme
from relay.formats.cms.der import OCTET_STRING, element
from tests.vectors import parts, trees
from tests.vectors.case import ALICE, NOW, Case, Peer, Seen
from tests.vectors.parts import ORIGINAL, entity, flipped, gcm, payload, people, replaced, signed
from tests.vectors.people import Person

_SCHEMES = {"pqc": SignatureScheme.ML_DSA_87_P384, "rsa": SignatureScheme.RSA_PSS}
_FIRST = (*trees.RECIPIENTS, 0)
_PLAIN_SHA256 = bytes.fromhex("300b0609608648016503040201")
"""Without the NULL."""


def certified_cases() -> Iterator[Case]:
    """What both levels share, then what only one of them can get wrong."""
    for level in ("pqc", "rsa"):
        yield from _opening(level)
        yield from _failing(level)
        yield from _forged(level)
        yield from _envelopes(level)
        yield from _attributes(level)
        yield from _signed_data(level)
        yield from _empty_identifiers(level)
        for name, comment, content in _contents(level):
            yield Case(f"{level}-{name}", "bad structure", level, comment, _to(people()[1], level, content))
    for name, comment, der in _pqc_structures():
        yield Case(f"pqc-{name}", "bad structure", "pqc", comment, der)
    for name, comment, der in _rsa_structures():
        yield Case(f"rsa-{name}", "bad structure", "rsa", comment, der)
    for name, comment, der in _rsa_without_nulls():
        yield success(f"rsa-{name}", "rsa", comment, der)
    [recipient] = cms.decode_enveloped(sealed := _to(people()[1], "rsa", _around(_signed("rsa")))).recipients
    assert isinstance(recipient, cms.RSARecipient)
    longer = trees.put(sealed, (*_FIRST, 3), element(OCTET_STRING, b"\0" + recipient.encrypted_cek))
    yield Case("rsa-longer-ciphertext", "bad tag", "rsa", "a zero before a ciphertext of 4096 bits", longer)


def success(name: str, level: str, comment: str, content: bytes, **more: Any) -> Case:
    """A case that opens and binds no key."""
    fingerprint = cms.decode_enveloped(content).fingerprint()
    return Case(name, "success", level, comment, content, original=ORIGINAL, fingerprint=fingerprint, **more)


def _to(person: Person, level: str, content: bytes, *, by_issuer: bool = False) -> bytes:
    recipient = (parts.kem if level == "pqc" else parts.ktri)(person, by_issuer=by_issuer)
    return gcm(content, recipient)


def _signed(level: str, *, by_issuer: bool = False) -> bytes:
    return cms.encode_signed(signed(payload(level), people()[0], _SCHEMES[level], by_issuer=by_issuer))


def _around(der: bytes) -> bytes:
    return entity("signed-data", der)


def _opening(level: str) -> Iterator[Case]:
    _, bob, eve = people()
    content = _around(_signed(level))
    one = parts.kem if level == "pqc" else parts.ktri
    for name, comment, der in (
        ("plain", "as we seal", _to(bob, level, content)),
        ("by-issuer", "certificates named by issuer and serial number",
         _to(bob, level, _around(_signed(level, by_issuer=True)), by_issuer=True)),
        ("two-recipients", "for Eve and Bob", gcm(content, one(eve), one(bob))),
        ("no-certificate", "SignedData without the signer's certificate",
         _to(bob, level, _around(cms.encode_signed(replace(signed(payload(level), people()[0], _SCHEMES[level]), certificate=b""))))),
    ):  # fmt: skip
        yield success(f"{level}-{name}", level, comment, der)
    without = content.replace(b"Content-Transfer-Encoding: binary\r\n", b"")
    comment = "SignedData without a transfer encoding, which is binary inside"
    yield success(f"{level}-inner-no-encoding", level, comment, _to(bob, level, without))
    comment = "SignedData of indefinite length, its attributes and certificate in DER"
    yield success(f"{level}-signed-ber", level, comment, _to(bob, level, _around(_in_ber(_signed(level)))))


def _empty_identifiers(level: str) -> Iterator[Case]:
    """Key identifiers of no octets."""
    _, bob, eve = people()
    content = _around(_signed(level))
    one = parts.kem if level == "pqc" else parts.ktri
    to_eve = one(eve)
    emptied = trees.changed(
        gcm(content, to_eve, one(bob)), trees.RECIPIENTS, lambda node: [_emptied(node, to_eve.certificate.ski)]
    )
    comment = "a second recipient whose key identifier is empty"
    yield Case(f"{level}-empty-identifier", "bad structure", level, comment, emptied)
    signer = trees.put(_signed(level), (*trees.SIGNER, 1), b"\x80\x00")
    comment = "the signer's key identifier is empty"
    yield Case(f"{level}-empty-signer", "bad structure", level, comment, _to(bob, level, _around(signer)))


def _emptied(node: trees.Node, octets: bytes) -> trees.Node:
    """The SET with an empty element in place of this one; what is shorter comes first."""
    tag, contents = node
    if isinstance(contents, bytes):
        return tag, b"" if contents == octets else contents
    inside = [_emptied(each, octets) for each in contents]
    return tag, sorted(inside, key=trees.encoded) if tag == 0x31 else inside


def _in_ber(signed_data: bytes, *, attributes: bool = False) -> bytes:
    """SignedData in lengths that are indefinite down to SignerInfo, or with `attributes` down to the signed ones."""

    def indefinite(tag: int, *parts: bytes) -> bytes:
        return bytes((tag, 0x80)) + b"".join(parts) + b"\0\0"

    def parts_of(path: trees.Path) -> list[bytes]:
        return [trees.encoded(each) for each in trees.at(signed_data, path)[1]]  # type: ignore[arg-type]

    signer = parts_of(trees.SIGNER)
    if attributes:
        signer[3] = indefinite(0xA0, *parts_of((*trees.SIGNER, 3)))
    *before, _ = parts_of((1, 0))
    data = indefinite(0x30, *before, indefinite(0x31, indefinite(0x30, *signer)))
    return indefinite(0x30, trees.encoded(trees.at(signed_data, (0,))), indefinite(0xA0, data))


def _failing(level: str) -> Iterator[Case]:
    _, bob, eve = people()
    content = _around(_signed(level))
    sealed = _to(bob, level, content)
    yield Case(f"{level}-for-eve", "not for us", level, "encrypted to Eve alone", _to(eve, level, content))
    yield Case(f"{level}-flipped-tag", "bad tag", level, "one bit of the tag", flipped(sealed))
    yield Case(f"{level}-flipped-ciphertext", "bad tag", level, "one bit of the ciphertext", flipped(sealed, -99))
    [recipient] = cms.decode_enveloped(sealed).recipients
    if isinstance(recipient, cms.KEMRecipient):
        old, new = recipient.kem_ciphertext, parts.kem(bob).kem_ciphertext
    else:
        assert isinstance(recipient, cms.RSARecipient)
        old, new = recipient.encrypted_cek, parts.ktri(eve).encrypted_cek
    if level == "pqc":
        yield from _encapsulations(sealed, old, new)
    other = replaced(sealed, old.hex(), new.hex())
    yield Case(f"{level}-other-encapsulation", "bad tag", level, "another message's encrypted key", other)


def _encapsulations(sealed: bytes, old: bytes, new: bytes) -> Iterator[Case]:
    """A ciphertext of the composite KEM of which one half is another, or no ciphertext."""
    half, y = old[:1568], old[-48:]
    for name, comment, changed in (
        ("other-ml-kem", "the ML-KEM ciphertext of another message", new[:1568] + old[1568:]),
        ("other-ecdh", "the ECDH ciphertext of another message", half + new[1568:]),
        ("no-point", "the ECDH ciphertext is no point of P-384", half + b"\4" + bytes(96)),
        ("infinity", "the point at infinity, filled up with zeros", half + bytes(97)),
        ("hybrid-point", "the point in its hybrid form (X9.62)", half + bytes((6 | y[-1] & 1,)) + old[1569:]),
    ):
        yield Case(f"pqc-{name}", "bad tag", "pqc", comment, replaced(sealed, old.hex(), changed.hex()))


def _halves(right: cms.Signed, stranger: cms.Signed) -> Iterator[tuple[str, str, cms.Signed]]:
    """Composite signatures of which Alice made one half alone."""
    ours, eves = right.signature, stranger.signature
    for name, comment, signature in (
        ("ml-dsa-alone", "the ML-DSA signature alone", ours[:4627]),
        ("ecdsa-alone", "the ECDSA signature alone", ours[4627:]),
        ("eves-ml-dsa", "ECDSA by Alice, ML-DSA by Eve", eves[:4627] + ours[4627:]),
        ("eves-ecdsa", "ML-DSA by Alice, ECDSA by Eve", ours[:4627] + eves[4627:]),
        (
            "zeros-for-ecdsa",
            "ML-DSA by Alice, zeros for r and s of ECDSA",
            ours[:4627] + bytes.fromhex("3006020100020100"),
        ),
        ("long-ecdsa", "an octet behind the ECDSA signature", ours + b"\0"),
    ):
        yield name, comment, replace(right, signature=signature)


def _forged(level: str) -> Iterator[Case]:
    alice, bob, eve = people()
    right = signed(payload(level), alice, _SCHEMES[level])
    other = next(scheme for scheme in _SCHEMES.values() if scheme is not _SCHEMES[level])
    later = cms.attributes_to_sign(right.scheme, right.digest, parts.WHEN.replace(year=2030))
    pretended = replace(signed(payload(level), eve, _SCHEMES[level]), signer=right.signer)
    halves = _halves(right, pretended) if level == "pqc" else ()
    for name, comment, forged in (
        *halves,
        ("other-content", "another content under Alice's signature", replace(right, content=payload(level) + b"Eve\r\n")),
        ("other-attributes", "another signing time", replace(right, attributes=later)),
        ("flipped-signature", "one bit of the signature", replace(right, signature=flipped(right.signature, 40))),
        ("other-digest", "a right signature over the digest of something else",
         signed(payload(level), alice, _SCHEMES[level], digest=bytes(len(right.digest)))),
        ("stranger", "signed by Eve, who is nobody's peer", signed(payload(level), eve, _SCHEMES[level])),
        ("pretender", "signed by Eve in Alice's name", pretended),
        ("other-scheme", "signed by Alice with the other level's key", signed(payload(level), alice, other)),
    ):  # fmt: skip
        der = _to(bob, level, _around(cms.encode_signed(forged)))
        yield Case(f"{level}-{name}", "bad signature", level, comment, der)


def _envelopes(level: str) -> Iterator[Case]:
    """What the sealed envelope says, under the signature."""
    alice, bob, _ = people()

    def sealed(**changes: Any) -> bytes:
        said = payload(changes.pop("layers", level), **changes)
        return _to(bob, level, _around(cms.encode_signed(signed(said, alice, _SCHEMES[level]))))

    other = "rsa" if level == "pqc" else "pqc"
    for name, comment, changes in (
        ("foreign-sender", "a sender of a domain that is not Alice's", {"sender": "boss@stranger.example"}),
        ("other-layers", "the other level with a signature", {"layers": other}),
        ("stripped", "a layer of aes around it, which is missing", {"layers": f"{level}+aes"}),
        ("for-other-site", "sealed for another site, and encrypted to Bob", {"slave_sae": "3"}),
        ("other-master", "signed by Alice, and another master SAE", {"master_sae": "3"}),
        ("for-other-recipient", "it names somebody else", {"recipients": ("bea@bob.example",)}),
    ):
        yield Case(f"{level}-{name}", "not named", level, comment, sealed(**changes))
    right = sealed()
    yield success(f"{level}-rewritten-sender", level, "MAIL FROM was rewritten", right, sender="x@stranger.example")
    null = success(f"{level}-null-sender", level, "a bounce", sealed(sender=""), sender="", sealed_sender="")
    yield null
    week, second = timedelta(days=7), timedelta(seconds=1)
    yield success(f"{level}-last-second", level, "opened after 7 days, to the second", right, now=NOW + week)
    yield Case(f"{level}-too-late", "outside window", level, "opened one second later", right, now=NOW + week + second)
    fingerprint, id_ = cms.decode_enveloped(right).fingerprint(), parts.octets("id", 16)
    has_it = Seen("2", id_, fingerprint, ("ben@bob.example",))
    comment = "a copy for who has it: nothing is delivered"
    yield success(f"{level}-served", level, comment, right, seen=(has_it,), due=(), served=("ben@bob.example",))
    comment = "a copy for a second recipient, who is not named"
    yield Case(
        f"{level}-redirected", "not named", level, comment, right, seen=(has_it,), recipients=("bea@bob.example",)
    )
    again = Seen("2", id_, bytes(32), ("ben@bob.example",))
    comment = "the same signed payload, encrypted once more"
    yield Case(f"{level}-replayed", "replayed", level, comment, right, seen=(again,))
    accept = ALICE._replace(accept="otp,aes," + other)
    yield Case(f"{level}-not-accepted", "not accepted", level, "Alice may not use this level", right, peers=(accept,))
    only = ALICE._replace(accept=level)
    yield success(f"{level}-accepted", level, "Alice may use this level alone", right, peers=(only,))
    unsealed = _to(bob, level, _around(cms.encode_signed(signed(parts.VERSION_0, alice, _SCHEMES[level]))))
    yield Case(f"{level}-version-0", "bad structure", level, "a payload of format version 0", unsealed)
    eves = Peer("eve", "3", "eve.example", "eve-bob")
    comment = "signed by Alice, with an envelope that says it is Eve's, who is Bob's peer too"
    claims = {"master_sae": "3", "sender": "eve@eve.example"}
    two = {"alice-bob": "both", "eve-bob": "both"}
    yield Case(f"{level}-claimed", "not named", level, comment, sealed(**claims), peers=(ALICE, eves), groups=two)


def _contents(level: str) -> Iterator[tuple[str, str, bytes]]:
    """What is inside the encryption, and is no SignedData as the format wants it."""
    right = _signed(level)
    yield "unsigned", "the original without a signature", payload(level)
    yield "garbage-inside", "not CMS inside", _around(b"garbage")
    yield "two-signers", "two signers", _around(trees.doubled(right, trees.SIGNER))
    yield "no-signers", "no signer", _around(trees.changed(right, trees.SIGNER, lambda _: []))
    yield (
        "detached",
        "the signed content left out",
        _around(trees.changed(right, (*trees.SIGNED_CONTENT, 1), lambda _: [])),
    )
    bare = trees.changed(right, (*trees.SIGNER, 3), lambda _: [])
    yield "no-signed-attributes", "a signature over the content itself", _around(bare)
    yield "attribute-twice", "one signed attribute twice", _around(trees.doubled(right, (*trees.SIGNER, 3, 0)))
    yield (
        "signer-version",
        "a version that does not fit",
        _around(trees.put(right, (*trees.SIGNER, 0), b"\x02\x01\x02")),
    )
    yield "trailing-inside", "one octet too many inside", _around(right + b"\0")
    unsigned = trees.put(right, (0,), bytes.fromhex("06092a864886f70d010701"))
    yield "inner-type", "the inner content type is data", _around(unsigned)


def _attributes(level: str) -> Iterator[Case]:
    """SignedData is read just as it is written: four signed attributes, and all versions and algorithms fit."""
    alice, bob, _ = people()
    scheme, said = _SCHEMES[level], payload(level)
    right = parts.signed_attributes(said, scheme)

    def sealed(signed_data: cms.Signed | bytes) -> bytes:
        made = signed_data if isinstance(signed_data, bytes) else cms.encode_signed(signed_data)
        return _to(bob, level, _around(made))

    def with_attributes(*attributes: bytes) -> bytes:
        return sealed(signed(said, alice, scheme, attributes=attributes))

    def refused(name: str, comment: str, content: bytes) -> Case:
        return Case(f"{level}-{name}", "bad structure", level, comment, content)

    for name in right:
        rest = [each for other, each in right.items() if other != name]
        yield refused(f"no-{name}", f"the signed attribute {name} is missing", with_attributes(*rest))
        two = trees.changed(right[name], (1, 0), lambda node: [node, node])
        yield refused(f"two-values-{name}", f"two values of the signed attribute {name}", with_attributes(*rest, two))
    capabilities = bytes.fromhex("301006092a864886f70d01090f31030101ff")
    yield refused("more-attributes", "a fifth signed attribute", with_attributes(*right.values(), capabilities))
    for name, comment, time in (
        ("time-generalized", "GeneralizedTime before 2050", b"\x18\x0f20261125100000Z"),
        ("time-fraction", "a signing time with tenths of a second", b"\x18\x1120501125100000.5Z"),
        ("time-no-seconds", "a signing time without seconds", b"\x17\x0b2611251000Z"),
        ("time-zone", "a signing time with an offset", b"\x17\x11261125100000+0000"),
        ("time-null", "NULL as signing time", b"\x05\x00"),
    ):
        changed = trees.put(right["signing-time"], (1, 0), time)
        rest = [each for other, each in right.items() if other != "signing-time"]
        yield refused(name, comment, with_attributes(*rest, changed))
    for name, comment, year in (
        ("signed-in-2050", "a signing time of 2050, which nobody checks", 2050),
        ("signed-in-2049", "a signing time of 2049, the last in UTCTime", 2049),
        ("signed-in-1990", "a signing time of 1990", 1990),
    ):
        when = NOW.replace(year=year)
        yield success(f"{level}-{name}", level, comment, sealed(signed(said, alice, scheme, when=when)))
    rest = [each for other, each in right.items() if other != "content-type"]
    other_type = trees.put(right["content-type"], (1, 0), bytes.fromhex("06092a864886f70d010702"))
    yield refused("content-type", "another signed content type", with_attributes(*rest, other_type))
    rest = [each for other, each in right.items() if other != "algorithm-protection"]
    other = parts.signed_attributes(said, next(each for each in _SCHEMES.values() if each is not scheme))
    protection = other["algorithm-protection"]
    yield refused("other-protection", "algorithm protection of the other level", with_attributes(*rest, protection))
    without = trees.changed(right["algorithm-protection"], (1, 0, 1), lambda _: [])
    yield refused("half-protection", "algorithm protection without the signature's", with_attributes(*rest, without))


def _signed_data(level: str) -> Iterator[Case]:
    """Versions, digest algorithms, and what may stand in SignedData at all."""
    alice, bob, _ = people()
    scheme, said = _SCHEMES[level], payload(level)
    right = parts.signed_attributes(said, scheme)
    whole = cms.encode_signed(signed(said, alice, scheme))
    turned = trees.changed(whole, (*trees.SIGNER, 3), lambda node: [(node[0], node[1][::-1])])
    comment = "signed attributes in another order than DER has"
    yield Case(f"{level}-attributes-turned", "bad structure", level, comment, _to(bob, level, _around(turned)))
    comment = "signed attributes of indefinite length"
    ber = _to(bob, level, _around(_in_ber(whole, attributes=True)))
    yield Case(f"{level}-attributes-ber", "bad structure", level, comment, ber)
    digests = (1, 0, 1)
    signers_digest = (*trees.SIGNER, 2)
    for name, comment, content in (
        ("no-digests", "no digest algorithm in front", trees.put(whole, digests, b"\x31\x00")),
        ("digest-twice", "a digest algorithm twice in front", trees.doubled(whole, (*digests, 0))),
        ("other-digests", "another digest algorithm in front",
         trees.put(whole, (*digests, 0), bytes.fromhex("300b0609608648016503040202"))),
        ("other-signer-digest", "another digest algorithm of the signer",
         trees.put(whole, signers_digest, bytes.fromhex("300b0609608648016503040202"))),
        ("signed-data-version", "SignedData of version 1, whose signer is named by key identifier",
         trees.put(whole, (1, 0, 0), b"\x02\x01\x01")),
        ("unsigned-attributes", "an unsigned attribute",
         trees.followed(whole, (*trees.SIGNER, 5), b"\xa1" + _set_of(right["signing-time"]))),
        ("crls", "a list of revoked certificates", trees.followed(whole, (1, 0, 3), b"\xa1\x02\x30\x00")),
        ("other-certificates", "an attribute certificate", trees.put(whole, (1, 0, 3, 0), b"\xa1\x02\x05\x00")),
    ):  # fmt: skip
        yield Case(f"{level}-{name}", "bad structure", level, comment, _to(bob, level, _around(content)))
    for place in ((*digests, 0), signers_digest):
        whole = trees.changed(whole, place, _other_parameters)
    comment = "NULL parameters of the digest where there were none, or none where there were NULL"
    yield success(f"{level}-digest-parameters", level, comment, _to(bob, level, _around(whole)))


def _set_of(element: bytes) -> bytes:
    return bytes((len(element),)) + element


def _other_parameters(algorithm: trees.Node) -> list[trees.Node]:
    """The AlgorithmIdentifier with NULL instead of absent parameters, or the reverse."""
    tag, contents = algorithm
    assert not isinstance(contents, bytes)
    return [(tag, contents[:1] if len(contents) > 1 else [*contents, (0x05, b"")])]


def _pqc_structures() -> Iterator[tuple[str, str, bytes]]:
    sealed = _to(people()[1], "pqc", _around(_signed("pqc")))
    info = (*_FIRST, 1)
    yield "kem-version", "KEMRecipientInfo version 1", trees.put(sealed, (*info, 0), b"\x02\x01\x01")
    kem, [recipient] = (*info, 2), cms.decode_enveloped(sealed).recipients
    assert isinstance(recipient, cms.KEMRecipient)
    alone = element(OCTET_STRING, recipient.kem_ciphertext[:1568])
    ml_kem = bytes.fromhex("300b0609608648016503040403")
    yield "ml-kem-alone", "ML-KEM-1024 alone", trees.put(trees.put(sealed, kem, ml_kem), (*info, 3), alone)
    yield "other-composite", "ML-KEM-1024 with X448", replaced(sealed, "06082b0601050507063f", "06082b06010505070641")
    yield "short-encapsulation", "without the point of P-384", trees.put(sealed, (*info, 3), alone)
    long = element(OCTET_STRING, recipient.kem_ciphertext + b"\0")
    yield "long-encapsulation", "one octet too many", trees.put(sealed, (*info, 3), long)
    ml_dsa = trees.put(_signed("pqc"), (*trees.SIGNER, 4), bytes.fromhex("300b0609608648016503040313"))
    yield "ml-dsa-scheme", "signed with ML-DSA-87 alone", _to(people()[1], "pqc", _around(ml_dsa))
    yield "kdf", "another key derivation", replaced(sealed, "060b2a864886f70d010910031c", "060b2a864886f70d010910031d")
    yield "kek-length", "a key-encryption key of 16 octets", trees.put(sealed, (*info, 5), b"\x02\x01\x10")
    yield "ukm", "user keying material", trees.followed(sealed, (*info, 5), b"\xa0\x03\x04\x01x")
    yield "short-wrapped-key", "a content key of 16 octets", trees.put(sealed, (*info, 7), b"\x04\x18" + bytes(24))


def _rsa_without_nulls() -> Iterator[tuple[str, str, bytes]]:
    """SHA-256 without parameters in both places, as some software writes it."""
    bob = people()[1]
    sealed = _to(bob, "rsa", _around(_signed("rsa")))
    for place in ((*_FIRST, 2, 1, 0, 0), (*_FIRST, 2, 1, 1, 0, 1)):
        sealed = trees.put(sealed, place, _PLAIN_SHA256)
    yield "oaep-no-null", "RSAES-OAEP with SHA-256 without parameters", sealed
    made = _signed("rsa")
    for place in ((*trees.SIGNER, 4, 1, 0, 0), (*trees.SIGNER, 4, 1, 1, 0, 1)):
        made = trees.put(made, place, _PLAIN_SHA256)
    yield "pss-no-null", "RSASSA-PSS with SHA-256 without parameters", _to(bob, "rsa", _around(made))
    said, alice = payload("rsa"), people()[0]
    right = parts.signed_attributes(said, SignatureScheme.RSA_PSS)
    for where in ((1, 0, 1, 1, 0, 0), (1, 0, 1, 1, 1, 0, 1)):
        right |= {"algorithm-protection": trees.put(right["algorithm-protection"], where, _PLAIN_SHA256)}
    made = cms.encode_signed(signed(said, alice, SignatureScheme.RSA_PSS, attributes=[*right.values()]))
    comment = "RSASSA-PSS with NULL in the signature's algorithm, and without in the algorithm protection"
    yield "pss-null-once", comment, _to(bob, "rsa", _around(made))


def _rsa_structures() -> Iterator[tuple[str, str, bytes]]:
    alice, bob, _ = people()
    sealed = _to(bob, "rsa", _around(_signed("rsa")))
    yield (
        "pkcs1",
        "PKCS #1 v1.5 key transport",
        trees.put(sealed, (*_FIRST, 2), bytes.fromhex("300d06092a864886f70d0101010500")),
    )
    yield "oaep-sha1", "RSAES-OAEP with its defaults, SHA-1", trees.put(sealed, (*_FIRST, 2, 1), b"\x30\x00")
    yield (
        "oaep-half-null",
        "RSAES-OAEP with SHA-256 without parameters in MGF1 alone",
        trees.put(sealed, (*_FIRST, 2, 1, 1, 0, 1), _PLAIN_SHA256),
    )
    long = b"\x04\x82\x08\x01" + bytes(2049)
    yield "rsa-16392", "16392 bits", trees.put(sealed, (*_FIRST, 3), long)
    yield "rsa-2048", "2048 bits", trees.put(sealed, (*_FIRST, 3), b"\x04\x82\x01\x00" + bytes(256))
    yield "ktri-version", "a version that does not fit", trees.put(sealed, (*_FIRST, 0), b"\x02\x01\x00")
    right = signed(payload("rsa"), alice, SignatureScheme.RSA_PSS)
    key = alice.identity.rsa_signing.private_key
    pkcs1 = key.sign(right.attributes, padding.PKCS1v15(), hashes.SHA256())
    made = cms.encode_signed(replace(right, signature=pkcs1))
    signature = trees.put(made, (*trees.SIGNER, 4), bytes.fromhex("300d06092a864886f70d01010b0500"))
    yield "pkcs1-signature", "a PKCS #1 v1.5 signature", _to(bob, "rsa", _around(signature))
    salt = trees.put(made, (*trees.SIGNER, 4, 1, 2), bytes.fromhex("a203020114"))
    half = trees.put(made, (*trees.SIGNER, 4, 1, 1, 0, 1), _PLAIN_SHA256)
    comment = "RSASSA-PSS with SHA-256 without parameters in MGF1 alone"
    yield "pss-half-null", comment, _to(bob, "rsa", _around(half))
    yield "salt-20", "RSASSA-PSS with a salt of 20 octets", _to(bob, "rsa", _around(salt))
