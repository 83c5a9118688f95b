"""Bouncy Castle opens, verifies and parses what every level seals, and every level opens what it seals.
Standard: RFC 5083, RFC 5084, RFC 9629, RFC 4055 and RFC 4056, by an implementation not ours.
"""

from __future__ import annotations

import secrets
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

from relay.errors import BadTag, NotForUs, UnknownSigner
from relay.formats import cms, mime
from relay.formats.cms import oids
from relay.identity import (
    Identity,
    PeerCertificates,
    RSAKeyPair,
    SigningKeyPair,
    create_identity,
    peer_document,
    read_document,
)
from relay.identity.pairs import KEMKeyPair
from relay.keys import Key
from relay.schemes import Opening, Parties
from relay.schemes.aes import AES
from relay.schemes.content_key import decrypt
from relay.schemes.otp import OneTimePad
from relay.schemes.pqc import PQC
from relay.schemes.rsa import RSA
from relay.schemes.signatures import signs_under
from tests.testlib import bouncycastle, mails
from tests.testlib.bouncycastle import Refused, requires_bouncycastle
from tests.testlib.keys import MemoryKeys
from tests.testlib.payloads import payload

pytestmark = requires_bouncycastle
needs_openssl = pytest.mark.skipif(not shutil.which("openssl"), reason="openssl is not installed")
both_forms = pytest.mark.parametrize("ber", [False, True], ids=["der", "ber"])

KEY = Key("key-1", bytes(range(32)))
PAYLOAD = payload(mails.random_attachment(50_000))

Pair = KEMKeyPair | SigningKeyPair | RSAKeyPair


@pytest.fixture(scope="module")
def identity(tmp_path_factory: pytest.TempPathFactory) -> Identity:
    """One site, which seals for itself."""
    return create_identity(_directory(tmp_path_factory, "bob"), name="bob", domains=["b.example"])


@pytest.fixture(scope="module")
def peer(identity: Identity, tmp_path_factory: pytest.TempPathFactory) -> PeerCertificates:
    """The same site as its peers know it."""
    document = peer_document(
        _directory(tmp_path_factory, "export"),
        identity,
        name="bob",
        domains=["b.example"],
        sae_id="1",
        kme_groups=["alice-bob"],
        levels=["otp", "aes", "pqc", "rsa"],
    )
    return read_document(document)


def _directory(factory: pytest.TempPathFactory, name: str) -> Path:
    directory = factory.mktemp(name)
    directory.chmod(0o700)
    return directory


@pytest.fixture
def parties(identity: Identity, peer: PeerCertificates) -> Parties:
    return Parties(master_sae="2", slave_sae="1", peer="bob", identity=identity, certificates=peer)


@pytest.fixture
def opening(identity: Identity, peer: PeerCertificates) -> Opening:
    return Opening({KEY.key_ID: KEY}, identity, lambda named: [peer] if signs_under(peer, named) else [])


def _changed(message: bytes) -> bytes:
    """The message with one bit of its last octet flipped, which belongs to a tag or a signature."""
    return message[:-1] + bytes((message[-1] ^ 1,))


class TestAES:
    @pytest.mark.parametrize("size", [0, 1, 16, 100_000])
    async def test_bouncy_castle_opens_what_we_seal(self, size: int, parties: Parties) -> None:
        payload = secrets.token_bytes(size)
        keys = MemoryKeys()
        sealed = await AES().seal(payload, parties, keys)
        [key] = keys.issued.values()
        assert bouncycastle.open_kek(sealed.der, key.key) == payload

    @both_forms
    @pytest.mark.parametrize("size", [0, 1, 16, 100_000])
    async def test_we_open_what_bouncy_castle_seals(self, size: int, ber: bool, opening: Opening) -> None:
        payload = secrets.token_bytes(size)
        enveloped = cms.decode_enveloped(bouncycastle.seal_kek(payload, KEY.key, KEY.key_ID, ber=ber))
        assert [reference.key_ID for reference in AES().references(enveloped)] == [KEY.key_ID]
        assert (await AES().open(enveloped, opening)).payload == payload

    async def test_bouncy_castle_refuses_what_was_changed_and_other_keys(self, parties: Parties) -> None:
        keys = MemoryKeys()
        sealed = await AES().seal(PAYLOAD, parties, keys)
        [key] = keys.issued.values()
        with pytest.raises(Refused):
            bouncycastle.open_kek(_changed(sealed.der), key.key)
        with pytest.raises(Refused):
            bouncycastle.open_kek(sealed.der, KEY.key)

    async def test_bouncy_castle_finds_the_key_id_our_attribute_and_a_tag_of_16_octets(self, parties: Parties) -> None:
        sealed = await AES().seal(PAYLOAD, parties, MemoryKeys())
        assert bouncycastle.parse(sealed.der) == {
            "content_type": oids.ID_AUTH_ENVELOPED_DATA.dotted_string,
            "inner_type": oids.ID_DATA.dotted_string,
            "content_encryption": oids.ID_AES256_GCM.dotted_string,
            "nonce_octets": 12,
            "icv_length": 16,
            "content_octets": len(PAYLOAD),
            "tag_octets": 16,
            "recipients": [
                {
                    "kind": "kek",
                    "version": 4,
                    "key_identifier": sealed.keys[0].key_ID.encode().hex(),
                    "attribute": oids.ID_QKD_KEY.dotted_string,
                    "wrap": oids.ID_AES256_WRAP.dotted_string,
                    "encrypted_key_octets": 40,
                }
            ],
        }


class TestPQC:
    """Bouncy Castle 1.80 has composite signatures of an earlier draft and no composite KEM: it can only parse."""

    async def test_bouncy_castle_finds_the_algorithms_of_both_layers(
        self, parties: Parties, identity: Identity
    ) -> None:
        sealed = await PQC().seal(PAYLOAD, parties, MemoryKeys())
        assert bouncycastle.parse(sealed.der)["recipients"] == [
            {
                "kind": "kem",
                "subject_key_identifier": identity.kem.ski.hex(),
                "algorithm": oids.ID_ML_KEM_1024_P384.dotted_string,
                "kdf": oids.ID_HKDF_SHA256.dotted_string,
                "wrap": oids.ID_AES256_WRAP.dotted_string,
                "ciphertext_octets": 1665,
                "encrypted_key_octets": 40,
            }
        ]
        enveloped = cms.decode_enveloped(sealed.der)
        found = bouncycastle.parse(mime.unwrap(decrypt(enveloped, PQC().content_key(enveloped, identity))).content)
        assert (found["content_type"], found["certificates"]) == (oids.ID_SIGNED_DATA.dotted_string, 1)
        _assert_signer(found, identity.signing, oids.ID_SHA512, oids.ID_ML_DSA_87_P384)


class TestRSA:
    async def test_bouncy_castle_opens_and_verifies_what_we_seal(self, parties: Parties, identity: Identity) -> None:
        sealed = await RSA().seal(PAYLOAD, parties, MemoryKeys())
        kind, signed, _ = mime.unwrap(bouncycastle.open_rsa(sealed.der, identity.rsa_encryption.private_key))
        assert kind == "signed"
        assert bouncycastle.verify(signed, identity.rsa_signing.certificate) == PAYLOAD

    @both_forms
    async def test_we_open_what_bouncy_castle_signs_and_seals(
        self, ber: bool, identity: Identity, opening: Opening
    ) -> None:
        pair = identity.rsa_signing
        signed = bouncycastle.sign(PAYLOAD, pair.private_key, pair.certificate, ber=ber)
        sealed = bouncycastle.seal_rsa(bytes(mime.wrap_signed(signed)), identity.rsa_encryption.certificate, ber=ber)
        enveloped = cms.decode_enveloped(sealed)
        assert RSA().recognises(enveloped)
        assert (await RSA().open(enveloped, opening)).payload == PAYLOAD

    async def test_neither_side_opens_what_was_changed(
        self, parties: Parties, identity: Identity, opening: Opening
    ) -> None:
        sealed = await RSA().seal(PAYLOAD, parties, MemoryKeys())
        with pytest.raises(Refused):
            bouncycastle.open_rsa(_changed(sealed.der), identity.rsa_encryption.private_key)
        theirs = bouncycastle.seal_rsa(PAYLOAD, identity.rsa_encryption.certificate)
        with pytest.raises(BadTag):
            await RSA().open(cms.decode_enveloped(_changed(theirs)), opening)

    async def test_what_bouncy_castle_seals_for_another_key_or_a_stranger_signs_is_not_opened(
        self, identity: Identity, opening: Opening
    ) -> None:
        other = bouncycastle.seal_rsa(PAYLOAD, identity.rsa_signing.certificate)
        with pytest.raises(NotForUs):
            await RSA().open(cms.decode_enveloped(other), opening)
        signed = bouncycastle.sign(PAYLOAD, identity.rsa_signing.private_key, identity.ca)
        sealed = bouncycastle.seal_rsa(bytes(mime.wrap_signed(signed)), identity.rsa_encryption.certificate)
        with pytest.raises(UnknownSigner):
            await RSA().open(cms.decode_enveloped(sealed), opening)

    async def test_bouncy_castle_finds_the_algorithms_of_both_layers(
        self, parties: Parties, identity: Identity
    ) -> None:
        sealed = await RSA().seal(PAYLOAD, parties, MemoryKeys())
        assert bouncycastle.parse(sealed.der)["recipients"] == [
            {
                "kind": "key-transport",
                "version": 2,
                "subject_key_identifier": identity.rsa_encryption.ski.hex(),
                "algorithm": oids.ID_RSAES_OAEP.dotted_string,
                "hash": oids.ID_SHA256.dotted_string,
                "mask_hash": oids.ID_SHA256.dotted_string,
                "encrypted_key_octets": 512,
            }
        ]
        _, signed, _ = mime.unwrap(bouncycastle.open_rsa(sealed.der, identity.rsa_encryption.private_key))
        _assert_signer(bouncycastle.parse(signed), identity.rsa_signing, oids.ID_SHA256, oids.ID_RSASSA_PSS)


def _assert_signer(
    found: dict[str, Any], pair: Pair, digest: x509.ObjectIdentifier, signature: x509.ObjectIdentifier
) -> None:
    attributes = (
        oids.ID_CONTENT_TYPE, oids.ID_MESSAGE_DIGEST, oids.ID_SIGNING_TIME, oids.ID_ALGORITHM_PROTECTION,
    )  # fmt: skip
    [signer] = found["signers"]
    assert set(signer.pop("signed_attributes")) == {attribute.dotted_string for attribute in attributes}
    assert signer == {
        "version": 3,
        "subject_key_identifier": pair.ski.hex(),
        "digest": digest.dotted_string,
        "signature": signature.dotted_string,
    }


class TestOTP:
    async def test_bouncy_castle_parses_what_we_seal_though_its_algorithm_is_ours(self, parties: Parties) -> None:
        sealed = await OneTimePad().seal(PAYLOAD, parties, MemoryKeys())
        found = bouncycastle.parse(sealed.der)
        assert found["content_type"] == oids.ID_AUTH_ENVELOPED_DATA.dotted_string
        assert found["content_encryption"] == oids.ID_ONE_TIME_PAD.dotted_string
        assert found["tag_octets"] == 16
        assert found["recipients"] == [{"kind": "other", "algorithm": oids.ID_ORI_PAD.dotted_string}]


class TestQuantumEnhancement:
    async def test_bouncy_castle_opens_all_three_layers(self, parties: Parties, identity: Identity) -> None:
        keys = MemoryKeys()
        inner = await RSA().seal(PAYLOAD, parties, keys)
        outer = await AES().seal(mime.wrap_enveloped(inner.der), parties, keys)
        [key] = keys.issued.values()
        kind, enveloped, _ = mime.unwrap(bouncycastle.open_kek(outer.der, key.key))
        assert kind == "enveloped"
        kind, signed, _ = mime.unwrap(bouncycastle.open_rsa(enveloped, identity.rsa_encryption.private_key))
        assert kind == "signed"
        assert bouncycastle.verify(signed, identity.rsa_signing.certificate) == PAYLOAD


@needs_openssl
class TestOpenSSLAndBouncyCastle:
    """The two agree with each other, so that neither is only bent to what we do."""

    @both_forms
    def test_openssl_opens_bouncy_castles_kek_recipients(self, ber: bool, tmp_path: Path) -> None:
        sealed = bouncycastle.seal_kek(PAYLOAD, KEY.key, KEY.key_ID, ber=ber)
        assert _openssl(
            tmp_path, sealed, "-decrypt", "-inform", "DER", "-secretkey", KEY.key.hex(), "-secretkeyid", _key_id_hex()
        ) == PAYLOAD  # fmt: skip

    @pytest.mark.parametrize("stream", [(), ("-stream",)], ids=["der", "stream"])
    def test_bouncy_castle_opens_openssls_kek_recipients(self, stream: tuple[str, ...], tmp_path: Path) -> None:
        sealed = _openssl(
            tmp_path, PAYLOAD, "-encrypt", "-outform", "DER", "-aes-256-gcm", *stream,
            "-secretkey", KEY.key.hex(), "-secretkeyid", _key_id_hex(),
        )  # fmt: skip
        assert bouncycastle.open_kek(sealed, KEY.key) == PAYLOAD

    @both_forms
    def test_openssl_opens_bouncy_castles_rsa_recipients(self, ber: bool, identity: Identity, tmp_path: Path) -> None:
        sealed = bouncycastle.seal_rsa(PAYLOAD, identity.rsa_encryption.certificate, ber=ber)
        key, certificate = _files(tmp_path, identity.rsa_encryption)
        assert _openssl(
            tmp_path, sealed, "-decrypt", "-inform", "DER", "-inkey", key, "-recip", certificate
        ) == PAYLOAD  # fmt: skip

    def test_bouncy_castle_opens_openssls_rsa_recipients(self, identity: Identity, tmp_path: Path) -> None:
        _, certificate = _files(tmp_path, identity.rsa_encryption)
        sealed = _openssl(
            tmp_path, PAYLOAD, "-encrypt", "-outform", "DER", "-aes-256-gcm", "-recip", certificate,
            "-keyopt", "rsa_padding_mode:oaep", "-keyopt", "rsa_oaep_md:sha256", "-keyopt", "rsa_mgf1_md:sha256",
        )  # fmt: skip
        assert bouncycastle.open_rsa(sealed, identity.rsa_encryption.private_key) == PAYLOAD

    @both_forms
    def test_openssl_verifies_what_bouncy_castle_signs(self, ber: bool, identity: Identity, tmp_path: Path) -> None:
        pair = identity.rsa_signing
        signed = bouncycastle.sign(PAYLOAD, pair.private_key, pair.certificate, ber=ber)
        _, certificate = _files(tmp_path, pair)
        assert _openssl(
            tmp_path, signed, "-verify", "-inform", "DER", "-noverify", "-nointern", "-certfile", certificate
        ) == PAYLOAD  # fmt: skip

    def test_bouncy_castle_verifies_what_openssl_signs(self, identity: Identity, tmp_path: Path) -> None:
        pair = identity.rsa_signing
        key, certificate = _files(tmp_path, pair)
        signed = _openssl(
            tmp_path, PAYLOAD, "-sign", "-nodetach", "-outform", "DER", "-signer", certificate, "-inkey", key,
            "-md", "sha256", "-keyopt", "rsa_padding_mode:pss", "-keyopt", "rsa_pss_saltlen:32",
        )  # fmt: skip
        assert bouncycastle.verify(signed, pair.certificate) == PAYLOAD
        with pytest.raises(Refused):
            bouncycastle.verify(signed, identity.rsa_encryption.certificate)


def _key_id_hex() -> str:
    return KEY.key_ID.encode().hex()


def _files(directory: Path, pair: RSAKeyPair) -> tuple[str, str]:
    """Private key and certificate as PEM files."""
    key, certificate = directory / "key.pem", directory / "certificate.pem"
    key.write_bytes(pair.private_key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
    certificate.write_bytes(pair.certificate.public_bytes(Encoding.PEM))
    return str(key), str(certificate)


def _openssl(directory: Path, data: bytes, *arguments: str) -> bytes:
    source = directory / "in"
    source.write_bytes(data)
    return subprocess.run(
        ["openssl", "cms", "-binary", "-in", str(source), *arguments], capture_output=True, check=True
    ).stdout
