"""The composite KEM and signature of level pqc: the drafts' own vectors, malformed input, and what one private key is worth.
Standard: draft-ietf-lamps-pq-composite-kem-17, -pq-composite-sigs-19, -cms-composite-kem-00; data/composite.json.
"""

from __future__ import annotations

import base64
import itertools
import json
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.mldsa import MLDSA87PrivateKey
from cryptography.hazmat.primitives.asymmetric.mlkem import MLKEM1024PrivateKey
from cryptography.hazmat.primitives.keywrap import aes_key_unwrap
from cryptography.hazmat.primitives.serialization import load_der_private_key

from relay.errors import BadSignature, BadTag
from relay.formats import cms
from relay.identity import composite, read_document
from relay.identity.certificates import check_issued_by
from relay.identity.composite import (
    CompositeKEMPrivateKey,
    CompositeKEMPublicKey,
    CompositeSigningPrivateKey,
    CompositeSigningPublicKey,
    from_public_info,
    kem_key,
    public_info,
    signing_key,
)
from relay.identity.document import BadDocument, PinRefused
from relay.identity.x509_keys import check_issued_by as check_signature, key_of
from relay.schemes import content_key
from relay.schemes.pqc import PQC
from relay.schemes.signatures import sign
from tests.testlib.identities import Identities
from tests.testlib.keys import MemoryKeys
from tests.unit.identity.forgeries import ca_key, certified, document
from tests.unit.identity.homes import NOW, Home, inner, pin, signed

VECTORS = json.loads((Path(__file__).parents[2] / "data" / "composite.json").read_text())


def _octets(kind: str, name: str) -> bytes:
    return base64.b64decode(VECTORS[kind][name])


def _kem() -> CompositeKEMPrivateKey:
    octets = _octets("kem", "dk")
    return kem_key((MLKEM1024PrivateKey.from_seed_bytes(octets[:64]), load_der_private_key(octets[64:], None)))


def _signing() -> CompositeSigningPrivateKey:
    octets = _octets("signature", "sk")
    return signing_key((MLDSA87PrivateKey.from_seed_bytes(octets[:32]), load_der_private_key(octets[32:], None)))


# The drafts' vectors


def test_the_drafts_ciphertext_gives_the_drafts_secret() -> None:
    key = _kem()
    assert key.decapsulate(_octets("kem", "c")) == _octets("kem", "k")
    assert key.public_key().public_bytes_raw() == _octets("kem", "ek")
    secret, ciphertext = CompositeKEMPublicKey.from_public_bytes(_octets("kem", "ek")).encapsulate()
    assert (key.decapsulate(ciphertext), len(ciphertext)) == (secret, 1665)


def test_the_combiner_is_the_drafts() -> None:
    said = {name: bytes.fromhex(value) for name, value in VECTORS["kem"]["combiner"].items()}
    assert said["Label"] == b"MLKEM1024-P384"
    made = composite._combined(said["mlkemSS"], said["tradSS"], said["tradCT"], composite._point(said["tradPK"]))
    assert made == said["ss"]


@pytest.mark.parametrize(("signature", "context"), [("s", b""), ("sWithContext", _octets("signature", "ctx"))])
def test_the_drafts_signature_verifies_and_ours_does_under_the_drafts_key(signature: str, context: bytes) -> None:
    message, public = _octets("signature", "m"), CompositeSigningPublicKey.from_public_bytes(_octets("signature", "pk"))
    public.verify(_octets("signature", signature), message, context)
    public.verify(_signing().sign(message, context), message, context)
    for other in (message + b".", message[:-1]):
        with pytest.raises(InvalidSignature):
            public.verify(_octets("signature", signature), other, context)
    with pytest.raises(InvalidSignature):
        public.verify(_octets("signature", signature), message, context + b"x")


def test_the_drafts_certificates_have_the_keys_that_the_draft_says() -> None:
    certificate = x509.load_der_x509_certificate(_octets("signature", "x5c"))
    key = key_of(certificate)
    assert isinstance(key, CompositeSigningPublicKey)
    assert key.public_bytes_raw() == _octets("signature", "pk")
    check_signature(certificate, certificate)
    key = key_of(x509.load_der_x509_certificate(_octets("kem", "x5c")))
    assert isinstance(key, CompositeKEMPublicKey)
    assert key.public_bytes_raw() == _octets("kem", "ek")


def test_the_content_key_is_wrapped_as_in_the_drafts_cms_example() -> None:
    said = {name: bytes.fromhex(value) for name, value in VECTORS["cms"].items() if name != "source"}
    assert cms.kem_kdf_info() == said["ori_info"]
    assert content_key.kem_key(said["shared_secret"]) == said["kek"]
    assert aes_key_unwrap(said["kek"], said["encrypted_cek"]) == said["cek"]


# Malformed input


@pytest.mark.parametrize("kind", [CompositeKEMPublicKey, CompositeSigningPublicKey])
def test_public_keys_of_another_form_are_refused(kind: Any) -> None:
    right = _octets("kem", "ek") if kind is CompositeKEMPublicKey else _octets("signature", "pk")
    lattice, point = right[:-97], right[-97:]
    compressed = bytes((2 | point[-1] & 1,)) + point[1:49]
    for wrong in (
        b"", lattice, point, right[:-1], right + b"\0", lattice + b"\0" + point, lattice + compressed,
        lattice + b"\0", lattice + bytes(97), lattice + b"\4" + bytes(96), lattice + point[:-1] + bytes((point[-1] ^ 1,)),
        lattice + bytes((6 | point[-1] & 1,)) + point[1:],
    ):  # fmt: skip
        with pytest.raises(ValueError, match=r"."):
            kind.from_public_bytes(wrong)
    assert kind.from_public_bytes(right).public_bytes_raw() == right


def test_subject_public_key_infos_of_another_form_are_refused() -> None:
    key = _kem().public_key()
    right = public_info(key)
    assert from_public_info(right) == key
    for wrong in (
        b"",
        b"0",
        b"0\0",
        b"0\x80",
        b"0\x84\x7f\xff\xff\xff",
        right[:-1],
        right + b"\0",
        right.replace(b"\x06?", b"\x061"),
    ):
        with pytest.raises(ValueError, match="not a composite public key"):
            from_public_info(wrong)


def test_ciphertexts_of_another_form_give_no_secret_and_others_another_one() -> None:
    key, right = _kem(), _octets("kem", "c")
    for wrong in (
        b"",
        right[:-1],
        right + b"\0",
        right[:1568],
        right[:-97] + b"\4" + bytes(96),
        right[:-97] + bytes(97),
    ):
        with pytest.raises(ValueError, match=r"."):
            key.decapsulate(wrong)
    other = key.public_key().encapsulate()[1]
    for half in (right[:1568] + other[1568:], other[:1568] + right[1568:], b"\1" + right[1:]):
        assert key.decapsulate(half) not in (b"", _octets("kem", "k"))


@pytest.mark.parametrize(
    "wrong",
    [
        b"", bytes(4627), bytes(4731), _octets("signature", "s")[:4627], _octets("signature", "s")[4627:],
        _octets("signature", "s") + b"\0", _octets("signature", "s")[:-1], bytes(2**20),
        _octets("signature", "s")[:4627] + bytes.fromhex("3006020100020100"),
    ],
    ids=lambda octets: str(len(octets)),
)  # fmt: skip
def test_signatures_of_another_form_are_invalid(wrong: bytes) -> None:
    with pytest.raises(InvalidSignature):
        _signing().public_key().verify(wrong, _octets("signature", "m"))


def test_a_certificate_whose_inner_algorithm_is_another_is_not_issued_by_the_ca(alice: Home) -> None:
    key, certificate = ca_key(alice), alice.identity.kem.certificate
    other = certified(certificate, key, algorithm=bytes.fromhex("300a06082b06010505070640"))
    check_issued_by(certified(certificate, key), alice.identity.ca)
    with pytest.raises(ValueError, match="did not issue it"):
        check_issued_by(other, alice.identity.ca)


# One private key is worth nothing


def _stolen(whole: Any, half: str) -> Any:
    """The key of an attacker who has got one half of `whole`, and puts an own one beside it."""
    return replace(type(whole).generate(), **({half: getattr(whole, half)} if half else {}))


def _opened(sealed: cms.AuthEnveloped, public: CompositeKEMPublicKey, **stolen: Any) -> set[bytes]:
    """All that an attacker opens who sees the message, knows Bob's public key, and has stolen these halves of the private one."""
    [recipient] = sealed.recipients
    assert isinstance(recipient, cms.KEMRecipient)
    lattice, point = recipient.kem_ciphertext[:1568], recipient.kem_ciphertext[1568:]
    own = CompositeKEMPrivateKey.generate()
    sender = composite._point(point)
    ml_kem_secrets = [stolen.get("ml_kem", own.ml_kem).decapsulate(lattice), b"", bytes(32)]
    shared = stolen.get("ecdh", own.ecdh).exchange(ec.ECDH(), sender)
    ecdh_secrets = [shared, b"", bytes(48), point[1:49], composite._octets_of(public.ecdh)[1:49]]
    found = set()
    for first, second in itertools.product(ml_kem_secrets, ecdh_secrets):
        secret = composite._combined(first, second, point, public.ecdh)
        with suppress(BadTag):
            key = content_key.unwrap(content_key.kem_key(secret), recipient.wrapped_cek, "the attacker's")
            found.add(content_key.decrypt(sealed, key))
    return found


@pytest.mark.promise("One of the two private keys of level pqc is worth nothing")
async def test_with_one_of_bobs_two_private_keys_nobody_opens_what_is_sealed_for_bob(identities: Identities) -> None:
    bob = identities.bob.identity.kem.private_key
    sealed = cms.decode_enveloped((await PQC().seal(b"secret", identities.to_bob(), MemoryKeys(number=0))).der)
    public = bob.public_key()
    assert _opened(sealed, public) == set()
    assert _opened(sealed, public, ml_kem=bob.ml_kem) == set()
    assert _opened(sealed, public, ecdh=bob.ecdh) == set()
    [content] = _opened(sealed, public, ml_kem=bob.ml_kem, ecdh=bob.ecdh)
    assert b"secret" in content, "who has both opens it: the attack is right"


@pytest.mark.promise("One of the two private keys of level pqc is worth nothing")
@pytest.mark.parametrize("half", ["ml_dsa", "ecdsa"])
async def test_with_one_of_alices_two_private_keys_nobody_signs_in_alices_name(
    half: str, identities: Identities, alice: Home
) -> None:
    """Neither mail, nor a document that replaces Alice's keys, nor a certificate, nor with the other half replayed."""
    pair = identities.alice.identity.signing
    both = replace(_stolen(pair.private_key, "ml_dsa"), ecdsa=pair.private_key.ecdsa)
    parties, at_bob = identities.to_bob(), identities.at_bob()
    assert parties.identity is not None
    for key in (_stolen(pair.private_key, half), both):
        forger = replace(parties.identity, signing=replace(pair, private_key=key))
        sealed = await PQC().seal(b"pay Eve", replace(parties, identity=forger), MemoryKeys(number=0))
        if key is both:
            assert (await PQC().open(cms.decode_enveloped(sealed.der), at_bob)).payload == b"pay Eve"
        else:
            with pytest.raises(BadSignature):
                await PQC().open(cms.decode_enveloped(sealed.der), at_bob)
    genuine = cms.decode_signed(bytes(sign(b"pay Bob", pair.private_key, pair.certificate)))
    forged = _stolen(pair.private_key, half).sign(b"forged")
    for mixed in (forged[:4627] + genuine.signature[4627:], genuine.signature[:4627] + forged[4627:]):
        with pytest.raises(InvalidSignature):
            pair.private_key.public_key().verify(mixed, b"forged")
    own = alice.identity.signing.private_key
    with pytest.raises(BadDocument, match="the signature is not that of its signing key"):
        read_document(signed(inner(alice.document()), _stolen(own, half)))
    with pytest.raises(ValueError, match="did not issue it"):
        check_issued_by(certified(alice.identity.kem.certificate, _stolen(ca_key(alice), half)), alice.identity.ca)


def test_a_key_that_shares_a_half_with_another_peers_is_refused(alice: Home, bob: Home, carol: Home) -> None:
    pin(alice.config, bob.document(), now=NOW)
    theirs, own = bob.identity.kem.private_key.public_key(), carol.identity.kem.private_key.public_key()
    for mixed in (replace(own, ml_kem=theirs.ml_kem), replace(own, ecdh=theirs.ecdh)):
        forged = certified(carol.identity.kem.certificate, ca_key(carol), key=mixed)
        with pytest.raises(PinRefused, match="certificate kem: its public key already belongs to peer bob"):
            pin(alice.config, document(carol, kem=forged), now=NOW)
