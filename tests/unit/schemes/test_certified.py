"""Levels pqc and rsa: signed by a pinned peer, encrypted to our certificate, and nothing else is opened.
Standard: RFC 9629, RFC 8017 and RFC 5652, with OpenSSL and pyasn1-alt-modules as second opinions.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, cast

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import serialization
from pyasn1.codec.der.decoder import decode as pyasn1_decode
from pyasn1.codec.der.encoder import encode as pyasn1_encode
from pyasn1_alt_modules import rfc5083, rfc5652, rfc9629

from relay.errors import (
    BadSignature,
    BadStructure,
    BadTag,
    CannotOpen,
    CertificateExpired,
    NotForUs,
    UnknownSigner,
)
from relay.formats import cms, mime
from relay.identity import PeerCertificates
from relay.identity.composite import signing_key
from relay.identity.directory import read_key
from relay.identity.pairs import Role
from relay.schemes import Opening, Scheme, Unsealed
from relay.schemes.content_key import KEY_OCTETS, encrypt
from relay.schemes.pqc import PQC
from relay.schemes.rsa import RSA
from relay.schemes.signatures import SignedScheme, certificate_id, sign
from tests.testlib import mails
from tests.testlib.identities import Identities, Person
from tests.testlib.keys import MemoryKeys
from tests.testlib.payloads import payload
from tests.unit.identity.forgeries import certified

needs_openssl = pytest.mark.skipif(not shutil.which("openssl"), reason="openssl is not installed")
both = pytest.mark.parametrize("level", [PQC(), RSA()], ids=["pqc", "rsa"])


async def _seal(level: Scheme, identities: Identities, payload: bytes) -> bytes:
    return (await level.seal(payload, identities.to_bob(), MemoryKeys(number=0))).der


async def _open(level: Scheme, der: bytes, opening: Opening) -> Unsealed:
    return await level.open(cms.decode_enveloped(der), opening)


@both
@pytest.mark.parametrize("size", [0, 1, 5000, 400_000])
async def test_what_is_sealed_opens_to_the_same_octets_and_names_its_signer(
    level: Scheme, size: int, identities: Identities
) -> None:
    payload = bytes(index % 251 for index in range(size))
    unsealed = await _open(level, await _seal(level, identities, payload), identities.at_bob())
    assert unsealed.payload == payload
    assert unsealed.signed_by is not None
    assert unsealed.signed_by.name == "alice"


@both
async def test_only_its_own_level_recognises_a_message(level: Scheme, identities: Identities) -> None:
    enveloped = cms.decode_enveloped(await _seal(level, identities, b"x"))
    assert [other.name for other in (PQC(), RSA()) if other.recognises(enveloped)] == [level.name]
    assert level.references(enveloped) == ()


@pytest.mark.promise("Without the key, or the private key, nobody opens anything")
@both
async def test_somebody_elses_private_key_does_not_open_it(level: Scheme, identities: Identities) -> None:
    der = await _seal(level, identities, b"payload")
    with pytest.raises(NotForUs):
        await _open(level, der, replace(identities.at_bob(), identity=identities.eve.identity))
    with pytest.raises(NotForUs):
        await _open(level, der, replace(identities.at_bob(), identity=None))


@pytest.mark.promise("Changed mail is not delivered, nor mail signed by a stranger")
@both
async def test_a_stranger_who_signs_is_not_believed(level: Scheme, identities: Identities) -> None:
    parties = replace(identities.to_bob(), identity=identities.eve.identity)
    der = (await level.seal(b"payload", parties, MemoryKeys())).der
    with pytest.raises(UnknownSigner):
        await _open(level, der, identities.at_bob())


@pytest.mark.promise("Changed mail is not delivered, nor mail signed by a stranger")
@both
async def test_flipped_bits_are_noticed(level: Scheme, identities: Identities) -> None:
    der = await _seal(level, identities, b"pay 100 to Bob")
    enveloped = cms.decode_enveloped(der)
    for position in [*range(0, len(der), 37), *range(len(der) - 40, len(der))]:
        changed = bytearray(der)
        changed[position] ^= 0x04
        with pytest.raises(CannotOpen):
            await _open(level, bytes(changed), identities.at_bob())
    assert enveloped.tag != bytes(16)


def _around(level: Scheme, identities: Identities, content: bytes) -> bytes:
    """`content` encrypted to Bob as `level` does it, whatever it is."""
    assert isinstance(level, SignedScheme)
    certificate, content_key = level.encryption_certificate(identities.bob.certificates), os.urandom(KEY_OCTETS)
    assert certificate is not None
    return bytes(encrypt(content, content_key, level.recipient("bob", certificate, content_key)))


@both
async def test_unsigned_content_is_refused(level: Scheme, identities: Identities) -> None:
    for content in (payload(b"x", level.name), bytes(mime.wrap_enveloped(b"0\0"))):
        with pytest.raises(BadStructure, match="not signed"):
            await _open(level, _around(level, identities, content), identities.at_bob())


@both
async def test_a_signature_of_the_other_kind_is_refused(level: Scheme, identities: Identities) -> None:
    """Breaking RSA must not be enough to forge at level pqc, nor the other way round."""
    alice = identities.alice.identity
    pair = alice.rsa_signing if level.name == "pqc" else alice.signing
    signed = bytes(sign(b"payload", pair.private_key, pair.certificate))
    with pytest.raises(BadSignature, match="is expected"):
        await _open(level, _around(level, identities, bytes(mime.wrap_signed(signed))), identities.at_bob())


@both
@pytest.mark.parametrize("order", [("alice", "carol"), ("carol", "alice")], ids="-".join)
async def test_of_several_peers_with_one_identifier_only_the_one_whose_key_verifies_has_signed(
    level: Scheme, order: tuple[str, str], identities: Identities
) -> None:
    """Importing refuses such a document; should one be there all the same, nobody answers for another."""
    alice, eve = identities.alice, identities.eve
    carol = replace(eve.certificates, name="carol", **cast(Any, _with_identifiers_of(alice.certificates, eve)))
    peers = {"alice": alice.certificates, "carol": carol}
    opening = replace(identities.at_bob(), signers=lambda _: [peers[name] for name in order])
    for person, name in ((alice, "alice"), (eve, "carol")):
        pair = person.identity.signing if level.name == "pqc" else person.identity.rsa_signing
        known = (peers["alice"].signing, peers["alice"].rsa_signing)[level.name == "rsa"]
        assert known is not None
        signed = cms.decode_signed(bytes(sign(b"payload", pair.private_key, pair.certificate)))
        named = bytes(mime.wrap_signed(cms.encode_signed(replace(signed, signer=certificate_id(known)))))
        unsealed = await _open(level, _around(level, identities, named), opening)
        assert unsealed.signed_by is not None
        assert unsealed.signed_by.name == name
    signed = _signed_by_alice(level, identities, b"payload")
    forged = bytes(mime.wrap_signed(cms.encode_signed(replace(signed, signature=bytes(len(signed.signature))))))
    with pytest.raises(BadSignature, match=", ".join(order)):
        await _open(level, _around(level, identities, forged), opening)


def _with_identifiers_of(peer: PeerCertificates, person: Person) -> dict[str, x509.Certificate]:
    """The person's signing certificates, issued by its own CA, with the peer's subjectKeyIdentifiers."""
    [path] = person.directory.glob("ca.key")
    key = read_key(path, signing_key, None)
    return {
        str(role): certified(person.identity.certificates[role], key, ski=certificate_id(peer.certificates[role]).ski)
        for role in (Role.SIGNING, Role.RSA_SIGNING)
    }


@both
async def test_a_certificate_for_the_other_scheme_does_not_name_the_signer(
    level: Scheme, identities: Identities
) -> None:
    alice = identities.alice.identity
    other = alice.rsa_signing if level.name == "pqc" else alice.signing
    signed = replace(_signed_by_alice(level, identities, b"x"), signer=certificate_id(other.certificate))
    with pytest.raises(UnknownSigner):
        await _open(
            level, _around(level, identities, bytes(mime.wrap_signed(cms.encode_signed(signed)))), identities.at_bob()
        )


def _signed_by_alice(level: Scheme, identities: Identities, payload: bytes) -> cms.Signed:
    alice = identities.alice.identity
    pair = alice.signing if level.name == "pqc" else alice.rsa_signing
    return cms.decode_signed(bytes(sign(payload, pair.private_key, pair.certificate)))


@both
@pytest.mark.parametrize(
    "change",
    [
        {"content": b"pay 900 to Eve"},
        {"signature": b"\0" * 512},
        {"attributes": "later"},
    ],
    ids=["content", "signature", "attributes"],
)
async def test_a_signature_over_something_else_is_refused(
    level: Scheme, change: dict[str, Any], identities: Identities
) -> None:
    signed = _signed_by_alice(level, identities, b"pay 100 to Bob")
    if "attributes" in change:
        later = datetime(2030, 1, 1, tzinfo=UTC)
        change = {"attributes": cms.attributes_to_sign(signed.scheme, signed.digest, later)}
    forged = bytes(mime.wrap_signed(cms.encode_signed(replace(signed, **change))))
    with pytest.raises(BadSignature):
        await _open(level, _around(level, identities, forged), identities.at_bob())


@both
async def test_every_truncation_and_every_trailing_octet_is_refused(level: Scheme, identities: Identities) -> None:
    der = await _seal(level, identities, b"payload")
    for damaged in (*(der[:end] for end in range(0, len(der), 101)), der + b"\0", der + der):
        with pytest.raises(BadStructure):
            await _open(level, damaged, identities.at_bob())


@both
def test_a_missing_certificate_is_an_obstacle_that_says_what_to_do(level: Scheme, identities: Identities) -> None:
    parties = identities.to_bob()
    assert level.obstacle(parties) == ""
    assert "identity new" in level.obstacle(replace(parties, identity=None))
    assert "identity import" in level.obstacle(replace(parties, certificates=None))


@both
async def test_expired_certificates_hold_mail_instead_of_refusing_it(
    level: Scheme, identities: Identities, monkeypatch: pytest.MonkeyPatch
) -> None:
    der = await _seal(level, identities, b"payload")
    monkeypatch.setattr("relay.schemes.signatures.valid_now", lambda *_: False)
    assert "renew it" in level.obstacle(identities.to_bob())
    with pytest.raises(CertificateExpired):
        await _open(level, der, identities.at_bob())


async def test_a_kem_ciphertext_for_another_key_is_refused(identities: Identities) -> None:
    enveloped = cms.decode_enveloped(await _seal(PQC(), identities, b"payload"))
    [recipient] = enveloped.recipients
    assert isinstance(recipient, cms.KEMRecipient)
    wrong = replace(recipient, kem_ciphertext=recipient.kem_ciphertext[:-97] + bytes(97))
    with pytest.raises(BadTag):
        await PQC().open(replace(enveloped, recipients=(wrong,)), identities.at_bob())


@both
async def test_an_independent_decoder_reads_every_structure_and_encodes_the_same_octets(
    level: Scheme, identities: Identities
) -> None:
    der = await _seal(level, identities, b"payload")
    info, rest = pyasn1_decode(der, asn1Spec=rfc5652.ContentInfo())
    data, rest = pyasn1_decode(info["content"], asn1Spec=rfc5083.AuthEnvelopedData())
    assert rest == b""
    assert pyasn1_encode(data) == bytes(info["content"])
    recipient = data["recipientInfos"][0]
    if level.name == "pqc":
        kem, rest = pyasn1_decode(recipient["ori"]["oriValue"], asn1Spec=rfc9629.KEMRecipientInfo())
        assert rest == b""
        assert pyasn1_encode(kem) == bytes(recipient["ori"]["oriValue"])
        assert len(kem["kemct"]) == 1665
        assert kem["kekLength"] == 32
        other = rfc9629.CMSORIforKEMOtherInfo()
        other["wrap"] = kem["wrap"]
        other["kekLength"] = 32
        assert pyasn1_encode(other) == cms.kem_kdf_info()
    else:
        assert len(recipient["ktri"]["encryptedKey"]) == 512
    signed = cms.encode_signed(_signed_by_alice(level, identities, b"payload"))
    info, rest = pyasn1_decode(signed, asn1Spec=rfc5652.ContentInfo())
    data, rest = pyasn1_decode(info["content"], asn1Spec=rfc5652.SignedData())
    assert rest == b""
    assert pyasn1_encode(data) == bytes(info["content"])
    assert data["signerInfos"][0]["version"] == 3


def _pem(path: Path, data: Any) -> Path:
    path.write_bytes(
        data.public_bytes(serialization.Encoding.PEM)
        if hasattr(data, "public_bytes")
        else data.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )
    )
    return path


def _openssl(*arguments: str | Path, stdin: bytes = b"") -> bytes:
    done = subprocess.run(["openssl", *map(str, arguments)], input=stdin, capture_output=True, check=False)
    assert done.returncode == 0, done.stderr.decode()
    return done.stdout


@needs_openssl
async def test_openssl_opens_level_rsa_and_verifies_it_by_the_commands_of_the_page(
    tmp_path: Path, identities: Identities
) -> None:
    """OpenSSL cannot verify the site's own CA, whose key is composite: so it trusts the pinned certificate."""
    section = (Path(__file__).parents[3] / "deploy/AUDIT.md").read_text().split("## Opening a mail in ten years\n")[1]
    commands = section.split("```sh\n")[1].split("```")[0]
    original = mails.random_attachment(20_000)
    der = await _seal(RSA(), identities, payload(original, "rsa"))
    (tmp_path / "sealed.eml").write_bytes(mime.sealed_message(original, der))
    bob = identities.bob.identity.rsa_encryption
    _pem(tmp_path / "bob.key", bob.private_key)
    _pem(tmp_path / "bob.pem", bob.certificate)
    (tmp_path / "alice.json").write_bytes(identities.alice.document)
    done = subprocess.run(["sh", "-e", "-c", commands], cwd=tmp_path, capture_output=True, check=False)
    assert (done.returncode, b"CMS Verification successful" in done.stderr) == (0, True), done.stderr.decode()
    assert (tmp_path / "original.eml").read_bytes() == original


def _signed_by_openssl(directory: Path, identities: Identities, content: bytes) -> bytes:
    """SignedData of level rsa whose signature OpenSSL made, over the signed attributes that every relay writes.

    `openssl cms -sign` itself has no way to write the algorithm protection (RFC 6211).
    """
    signed = _signed_by_alice(RSA(), identities, content)
    key = _pem(directory / "signing-key", identities.alice.identity.rsa_signing.private_key)
    attributes = directory / "attributes"
    attributes.write_bytes(signed.attributes)
    signature = _openssl(
        "dgst",
        "-sha256",
        "-sign",
        key,
        "-sigopt",
        "rsa_padding_mode:pss",
        "-sigopt",
        "rsa_pss_saltlen:32",
        attributes,
    )
    assert signature != signed.signature
    return cms.encode_signed(replace(signed, signature=signature))


@needs_openssl
@pytest.mark.parametrize("stream", [[], ["-stream"]], ids=["der", "ber"])
@pytest.mark.parametrize("identifier", [[], ["-keyid"]], ids=["issuer", "ski"])
async def test_we_open_what_openssl_seals_at_level_rsa(
    tmp_path: Path, identities: Identities, stream: list[str], identifier: list[str]
) -> None:
    original = mails.eight_bit()
    signed = _signed_by_openssl(tmp_path, identities, payload(original, "rsa"))
    recipient = _pem(tmp_path / "recipient", identities.bob.identity.rsa_encryption.certificate)
    der = _openssl(
        "cms", "-encrypt", "-binary", "-aes-256-gcm", "-recip", recipient, *identifier, *stream,
        "-keyopt", "rsa_padding_mode:oaep", "-keyopt", "rsa_oaep_md:sha256", "-keyopt", "rsa_mgf1_md:sha256",
        "-outform", "DER", stdin=bytes(mime.wrap_signed(signed)),
    )  # fmt: skip
    unsealed = await _open(RSA(), der, identities.at_bob())
    entity = mime.unwrap(unsealed.payload)
    assert (entity.kind, entity.content) == ("message", original)


@needs_openssl
async def test_signed_data_of_openssl_alone_lacks_the_algorithm_protection_and_is_refused(
    tmp_path: Path, identities: Identities
) -> None:
    pair = identities.alice.identity.rsa_signing
    signer, key = _pem(tmp_path / "signer", pair.certificate), _pem(tmp_path / "key", pair.private_key)
    signed = _openssl(
        "cms", "-sign", "-nodetach", "-binary", "-nosmimecap", "-signer", signer, "-inkey", key, "-md", "sha256",
        "-keyopt", "rsa_padding_mode:pss", "-keyopt", "rsa_pss_saltlen:32", "-outform", "DER", stdin=b"payload",
    )  # fmt: skip
    with pytest.raises(BadStructure, match="signed attributes"):
        await _open(RSA(), _around(RSA(), identities, bytes(mime.wrap_signed(signed))), identities.at_bob())
