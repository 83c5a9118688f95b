"""The layer of a further KEM around level pqc: what it seals it opens, and nothing else.
Standard: RFC 9629 (KEMRecipientInfo); relay/FORMAT.md.
"""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

import pytest
from pyasn1.codec.der.decoder import decode as pyasn1_decode
from pyasn1.codec.der.encoder import encode as pyasn1_encode
from pyasn1.type.univ import ObjectIdentifier
from pyasn1_alt_modules import rfc5083, rfc5652, rfc9629

from relay.errors import (
    BadStructure,
    BadTag,
    CannotOpen,
    KEMUnavailable,
    NotForUs,
)
from relay.formats import cms
from relay.formats.cms import FURTHER_KEMS, KEMS
from relay.identity import (
    liboqs,
    load_identity,
)
from relay.schemes import Scheme
from relay.schemes.aes import AES
from relay.schemes.further_kem import FurtherKEM
from relay.schemes.pqc import PQC
from tests.integration.schemes.further_kems import FAMILIES, HQC, use, with_kems
from tests.testlib.identities import Identities
from tests.testlib.keys import MemoryKeys


@FAMILIES
@pytest.mark.parametrize("size", [0, 1, 400_000])
async def test_what_a_layer_seals_it_opens(people: Identities, kem: str, size: int) -> None:
    payload = os.urandom(size)
    layer = FurtherKEM(kem)
    assert layer.obstacle(people.to_bob()) == ""
    enveloped = cms.decode_enveloped((await layer.seal(payload, people.to_bob(), MemoryKeys(number=0))).der)
    levels: list[Scheme] = [PQC(), AES(), *map(FurtherKEM, FURTHER_KEMS)]
    assert [each.name for each in levels if each.recognises(enveloped)] == [kem]
    assert layer.references(enveloped) == ()
    unsealed = await layer.open(enveloped, people.at_bob())
    assert (unsealed.payload, unsealed.signed_by) == (payload, None)


@FAMILIES
async def test_flipped_bits_and_another_key_are_noticed(people: Identities, kem: str, tmp_path: Path) -> None:
    layer = FurtherKEM(kem)
    der = (await layer.seal(b"pay 100 to Bob", people.to_bob(), MemoryKeys())).der
    for position in [*range(0, len(der), 997), *range(len(der) - 40, len(der))]:
        changed = bytearray(der)
        changed[position] ^= 0x04
        with pytest.raises(CannotOpen):
            await layer.open(cms.decode_enveloped(bytes(changed)), people.at_bob())
    stranger = with_kems(people.eve, tmp_path / "eve", "eve", "3", (kem,))
    enveloped = cms.decode_enveloped(der)
    for identity in (stranger.identity, people.alice.identity, None):
        with pytest.raises(NotForUs):
            await layer.open(enveloped, replace(people.at_bob(), identity=identity))
    [theirs] = stranger.identity.further_kems
    [mine] = [pair for pair in people.bob.identity.further_kems if pair.name == kem]
    wrong = replace(people.bob.identity, further_kems=(replace(mine, private_key=theirs.private_key),))
    with pytest.raises(BadTag):
        await layer.open(enveloped, replace(people.at_bob(), identity=wrong))


@FAMILIES
async def test_an_independent_decoder_reads_the_recipient_and_encodes_the_same_octets(
    people: Identities, kem: str
) -> None:
    der = (await FurtherKEM(kem).seal(b"payload", people.to_bob(), MemoryKeys())).der
    info, _ = pyasn1_decode(der, asn1Spec=rfc5652.ContentInfo())
    data, rest = pyasn1_decode(info["content"], asn1Spec=rfc5083.AuthEnvelopedData())
    assert rest == b""
    assert pyasn1_encode(data) == bytes(info["content"])
    recipient, rest = pyasn1_decode(data["recipientInfos"][0]["ori"]["oriValue"], asn1Spec=rfc9629.KEMRecipientInfo())
    assert rest == b""
    assert str(recipient["kem"]["algorithm"]) == KEMS[kem].oid
    assert len(recipient["kemct"]) == KEMS[kem].ciphertext_octets
    assert len(recipient["rid"]["subjectKeyIdentifier"]) == 20


async def test_sizes_kems_and_names_of_keys_that_do_not_fit_are_refused(people: Identities) -> None:
    enveloped = cms.decode_enveloped((await FurtherKEM(HQC).seal(b"x", people.to_bob(), MemoryKeys())).der)
    [recipient] = enveloped.recipients
    assert isinstance(recipient, cms.KEMRecipient)
    for change in (
        {"kem": "ml-kem-1024-p384"},
        {"kem_ciphertext": recipient.kem_ciphertext[:-1]},
        {"certificate": cms.CertificateID(ski=b"short")},
        {"certificate": cms.CertificateID(issuer=b"\x30\x00", serial=1)},
    ):
        other = replace(enveloped, recipients=(replace(recipient, **change),))
        with pytest.raises(BadStructure):
            cms.decode_enveloped(cms.encode_enveloped(other))
    der = bytearray(cms.encode_enveloped(enveloped))
    oid = KEMS[HQC].oid
    place = bytes(der).index(cms_oid(oid))
    der[place + len(cms_oid(oid)) - 1] ^= 1
    with pytest.raises(BadStructure, match="is unknown"):
        cms.decode_enveloped(bytes(der))


def cms_oid(dotted: str) -> bytes:
    encoded = pyasn1_encode(ObjectIdentifier(dotted))
    assert isinstance(encoded, bytes)
    return encoded


async def test_a_missing_library_holds_mail_that_was_sealed_for_us(
    people: Identities, monkeypatch: pytest.MonkeyPatch
) -> None:
    enveloped = cms.decode_enveloped((await FurtherKEM(HQC).seal(b"x", people.to_bob(), MemoryKeys())).der)
    use(monkeypatch, f"the native library liboqs is missing: {liboqs.INSTALL}")
    keys = load_identity(people.bob.directory).further_kems
    assert keys == people.bob.identity.further_kems, "keys are read without the library"
    with pytest.raises(KEMUnavailable) as caught:
        await FurtherKEM(HQC).open(enveloped, people.at_bob())
    assert caught.value.reply.startswith("451 4.7.5")
    assert "pip install liboqs-python" in FurtherKEM(HQC).obstacle(people.to_bob())


@pytest.mark.usefixtures("library")
async def test_a_peer_without_such_a_key_is_an_obstacle_that_says_what_to_do(identities: Identities) -> None:
    for parties in (identities.to_bob(), replace(identities.to_bob(), certificates=None)):
        assert "identity new --kem hqc-256" in FurtherKEM(HQC).obstacle(parties)
        with pytest.raises(KEMUnavailable):
            await FurtherKEM(HQC).seal(b"x", parties, MemoryKeys())
