"""Level aes: what it seals opens, here and in OpenSSL; what was changed does not open.
Standard: RFC 5083 and RFC 5084, with OpenSSL and pyasn1-alt-modules as independent implementations.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.keywrap import aes_key_wrap
from hypothesis import given, strategies as st
from pyasn1.codec.der.decoder import decode as pyasn1_decode
from pyasn1.codec.der.encoder import encode as pyasn1_encode
from pyasn1_alt_modules import rfc5083, rfc5084, rfc5652

from relay.errors import BadStructure, BadTag, CannotOpen, KeyNotFound, KMEBadReply, KMEExhausted
from relay.formats import cms, mime
from relay.formats.cms.recipients import MAX_NUMBER
from relay.keys import Key, KeyReference
from relay.schemes import Opening, Parties, SealedPayload
from relay.schemes.aes import AES
from relay.schemes.content_key import KEY_OCTETS, encrypt
from tests.testlib import mails
from tests.testlib.keys import MemoryKeys
from tests.testlib.payloads import payload, said_whose

PARTIES = Parties(master_sae="2", slave_sae="1", peer="bob")
ATTRIBUTE = cms.QKDKeyAttribute("2", "1", "alice-bob")
needs_openssl = pytest.mark.skipif(not shutil.which("openssl"), reason="openssl is not installed")


async def _sealed(payload: bytes) -> tuple[SealedPayload, dict[str, Key]]:
    source = MemoryKeys()
    sealed = await AES().seal(payload, PARTIES, source)
    return sealed, dict(source.issued)


async def _open(der: bytes, keys: dict[str, Key]) -> bytes:
    return (await AES().open(cms.decode_enveloped(der), Opening(keys))).payload


def _references(der: bytes) -> tuple[KeyReference, ...]:
    return AES().references(cms.decode_enveloped(der))


def _to(recipients: tuple[cms.KEKRecipient, ...]) -> cms.AuthEnveloped:
    return cms.AuthEnveloped(recipients, cms.GCMContent(bytes(12)), b"x", bytes(16))


@pytest.mark.parametrize("size", [0, 1, 15, 16, 17, 4096, 300_000])
async def test_what_is_sealed_opens_to_the_same_octets(size: int) -> None:
    payload = bytes(range(256)) * (size // 256) + bytes(size % 256)
    sealed, keys = await _sealed(payload)
    assert await _open(sealed.der, keys) == payload


async def test_the_message_names_its_key_and_both_sites() -> None:
    sealed, keys = await _sealed(b"payload")
    [reference] = _references(sealed.der)
    assert reference == sealed.keys[0]
    assert reference.key_ID in keys
    assert (reference.master_sae, reference.slave_sae, reference.kme_group) == ("2", "1", "alice-bob")


async def test_each_message_takes_its_own_key_and_content_key() -> None:
    source = MemoryKeys()
    first, second = [await AES().seal(b"same", PARTIES, source) for _ in range(2)]
    assert first.keys != second.keys
    assert cms.decode_enveloped(first.der).ciphertext != cms.decode_enveloped(second.der).ciphertext


async def test_without_a_key_nothing_is_sealed() -> None:
    with pytest.raises(KMEExhausted):
        await AES().seal(b"payload", PARTIES, MemoryKeys(number=0))


async def test_a_key_of_the_wrong_length_is_not_used() -> None:
    with pytest.raises(KMEBadReply):
        await AES().seal(b"payload", PARTIES, MemoryKeys(octets=16))


@pytest.mark.promise("Changed mail is not delivered, nor mail signed by a stranger")
async def test_every_flipped_bit_is_noticed() -> None:
    sealed, keys = await _sealed(b"pay 100 to Bob")
    for position in range(len(sealed.der)):
        changed = bytearray(sealed.der)
        changed[position] ^= 0x01
        try:
            opened = await _open(bytes(changed), keys)
        except (CannotOpen, KeyNotFound):
            continue
        assert opened == b"pay 100 to Bob", position
        # What is not authenticated is the label of the key, which only says where to look for it.
        assert cms.decode_enveloped(bytes(changed)).ciphertext == cms.decode_enveloped(sealed.der).ciphertext


@pytest.mark.parametrize("octets", [16, 24, 31, 33, 48, 64])
async def test_a_key_that_has_not_32_octets_opens_nothing(octets: int) -> None:
    key = Key("key-1", bytes(range(octets)))
    wrapping = key.key if octets in (16, 24) else key.key[:32].ljust(32, b"\0")
    content_key = os.urandom(KEY_OCTETS)
    recipient = cms.KEKRecipient(b"key-1", aes_key_wrap(wrapping, content_key), ATTRIBUTE)
    der = bytes(encrypt(b"payload", content_key, recipient))
    with pytest.raises(BadStructure, match=f"has {octets} octets; level aes needs 32"):
        await _open(der, {"key-1": key})


async def test_two_recipients_are_refused_before_any_key_is_asked_for() -> None:
    recipient = cms.KEKRecipient(b"id", bytes(40), ATTRIBUTE)
    two = cms.encode_enveloped(_to((recipient, recipient)))
    with pytest.raises(BadStructure, match="2 recipients; level aes has one"):
        _references(two)


async def test_without_the_word_whose_key_it_is_a_message_is_refused() -> None:
    bare = cms.encode_enveloped(_to((cms.KEKRecipient(b"id", bytes(40)),)))
    with pytest.raises(BadStructure, match="QKDKeyAttribute"):
        _references(bare)


@pytest.mark.promise("Without the key, or the private key, nobody opens anything")
async def test_another_key_does_not_open_it() -> None:
    sealed, keys = await _sealed(b"payload")
    [key_ID] = keys
    with pytest.raises(BadTag):
        await _open(sealed.der, {key_ID: Key(key_ID, bytes(32))})
    with pytest.raises(KeyNotFound):
        await _open(sealed.der, {})


@pytest.mark.parametrize("garbage", [b"x", b"\0", b"\x30\x00", b"\x05\x00"])
async def test_trailing_octets_are_refused(garbage: bytes) -> None:
    sealed, keys = await _sealed(b"payload")
    with pytest.raises(BadStructure):
        await _open(sealed.der + garbage, keys)


async def test_every_truncation_is_refused() -> None:
    sealed, keys = await _sealed(b"payload")
    for end in range(len(sealed.der)):
        with pytest.raises(BadStructure):
            await _open(sealed.der[:end], keys)


@given(st.binary(max_size=500))
def test_garbage_is_a_typed_error(garbage: bytes) -> None:
    with pytest.raises(BadStructure):
        cms.decode_enveloped(garbage)


@pytest.mark.parametrize(
    ("old", "new", "cause"),
    [
        ("020110", "02010c", "DEFAULT|16 octets"),  # ICVlen 12
        ("020110", "020104", "16 octets"),  # ICVlen 4
        ("0609608648016503040 12e".replace(" ", ""), "0609608648016503040 12a".replace(" ", ""), "is none that a level uses"),
        ("060960864801650304012d", "0609608648016503040119", "not AES-256 wrap"),
        ("020104", "020102", "version 2"),
        ("060b2a864886f70d0109100117", "060b2a864886f70d0109100109", "not authenticated enveloped data"),
    ],
)  # fmt: skip
async def test_other_algorithms_versions_and_tag_lengths_are_refused(old: str, new: str, cause: str) -> None:
    sealed, keys = await _sealed(b"payload")
    text = sealed.der.hex()
    assert text.count(old) == 1
    with pytest.raises(BadStructure, match=cause):
        await _open(bytes.fromhex(text.replace(old, new)), keys)


async def test_enveloped_data_without_authentication_is_refused() -> None:
    enveloped = rfc5652.ContentInfo()
    enveloped["contentType"] = rfc5652.id_envelopedData
    enveloped["content"] = b"\x30\x03\x02\x01\x04"
    with pytest.raises(BadStructure, match="not authenticated enveloped data"):
        _references(pyasn1_encode(enveloped))


async def test_too_many_recipients_are_refused_before_any_key_is_asked_for() -> None:
    recipient = cms.KEKRecipient(b"id", bytes(40))
    few = _to((recipient,) * MAX_NUMBER)
    assert len(cms.decode_enveloped(cms.encode_enveloped(few)).recipients) == MAX_NUMBER
    many = _to((recipient,) * (MAX_NUMBER + 1))
    with pytest.raises(BadStructure, match="recipientInfos"):
        cms.decode_enveloped(cms.encode_enveloped(many))
    masses = _to((recipient,) * 20_000)
    with pytest.raises(BadStructure, match="recipientInfos"):
        cms.decode_enveloped(cms.encode_enveloped(masses))


async def test_an_independent_decoder_reads_every_field_and_encodes_the_same_octets() -> None:
    sealed, keys = await _sealed(b"payload")
    content_info, rest = pyasn1_decode(sealed.der, asn1Spec=rfc5652.ContentInfo())
    assert (rest, content_info["contentType"]) == (b"", rfc5083.id_ct_authEnvelopedData)
    data, rest = pyasn1_decode(content_info["content"], asn1Spec=rfc5083.AuthEnvelopedData())
    assert rest == b""
    assert data["version"] == 0
    kek = data["recipientInfos"][0]["kekri"]
    assert kek["version"] == 4
    assert bytes(kek["kekid"]["keyIdentifier"]).decode() in keys
    algorithm = data["authEncryptedContentInfo"]["contentEncryptionAlgorithm"]
    assert algorithm["algorithm"] == rfc5084.id_aes256_GCM
    parameters, _ = pyasn1_decode(algorithm["parameters"], asn1Spec=rfc5084.GCMParameters())
    assert (len(parameters["aes-nonce"]), parameters["aes-ICVlen"]) == (12, 16)
    assert not data["authAttrs"].isValue
    assert pyasn1_encode(data) == bytes(content_info["content"])
    assert pyasn1_encode(content_info) == sealed.der


@needs_openssl
async def test_openssl_opens_what_we_seal(tmp_path: Path) -> None:
    original = mails.random_attachment(50_000)
    whole = payload(original)
    sealed, keys = await _sealed(whole)
    [key] = keys.values()
    (tmp_path / "sealed.eml").write_bytes(mime.sealed_message(original, sealed.der))
    opened = subprocess.run(
        ["openssl", "cms", "-decrypt", "-in", str(tmp_path / "sealed.eml"), "-binary",
         "-secretkey", key.key.hex(), "-secretkeyid", key.key_ID.encode().hex()],
        capture_output=True, check=True,
    ).stdout  # fmt: skip
    assert opened == whole


@needs_openssl
async def test_we_open_what_openssl_seals_once_it_is_said_whose_key_it_is(tmp_path: Path) -> None:
    """`openssl cms` has no way to write the key attribute, which is outside of what it encrypts and authenticates."""
    original = mails.eight_bit()
    key = Key("key-1", bytes(range(32)))
    (tmp_path / "payload").write_bytes(payload(original))
    der = subprocess.run(
        ["openssl", "cms", "-encrypt", "-in", str(tmp_path / "payload"), "-binary", "-outform", "DER",
         "-aes-256-gcm", "-secretkey", key.key.hex(), "-secretkeyid", key.key_ID.encode().hex()],
        capture_output=True, check=True,
    ).stdout  # fmt: skip
    with pytest.raises(BadStructure, match="QKDKeyAttribute"):
        _references(der)
    said = said_whose(der)
    assert _references(said) == (KeyReference("key-1", "2", "1", "alice-bob"),)
    entity = mime.unwrap(await _open(said, {"key-1": key}))
    assert (entity.kind, entity.content) == ("message", original)
    assert cms.decode_enveloped(said).fingerprint() == cms.decode_enveloped(der).fingerprint()
