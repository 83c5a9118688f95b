"""Content encrypted to one S/MIME certificate: AES-256-GCM, or AES-256-CBC for programs that know nothing newer.
Standard: RFC 5083 and RFC 5084 (AuthEnvelopedData), RFC 5652 6 (EnvelopedData), RFC 4055 (RSAES-OAEP), RFC 5753 (ECDH),
RFC 3394 (AES key wrap).

There is one RecipientInfo, so a message names nobody but its reader.
"""

from __future__ import annotations

import os
from collections.abc import Generator, Iterator

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, padding
from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePublicKey
from cryptography.hazmat.primitives.asymmetric.rsa import RSAPublicKey
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from cryptography.hazmat.primitives.kdf.x963kdf import X963KDF
from cryptography.hazmat.primitives.keywrap import aes_key_wrap
from cryptography.hazmat.primitives.padding import PKCS7

from relay.errors import CannotSeal
from relay.formats.cms import CertificateID, GCMContent, RSARecipient, der, enveloped, oids as cms_oids, recipients
from relay.formats.cms.smime_enveloped import ID_ENVELOPED_DATA
from relay.formats.pieces import Octets, Pieces, part_of
from relay.smime import oids

KEY_OCTETS = 32
BLOCK_OCTETS = 16


def enveloped_pieces(content: Octets | Pieces, certificate: x509.Certificate, *, cbc: bool, pkcs1: bool) -> Pieces:
    """The ContentInfo (DER) around `content`, encrypted under a fresh key to this certificate, which is usable.

    It is encrypted while the pieces are consumed, which works once. Raises CannotSeal.
    """
    key = os.urandom(KEY_OCTETS)
    match public_key := certificate.public_key():
        case RSAPublicKey():
            info, version = _key_transport(public_key, certificate, key, pkcs1=pkcs1), 0
        case EllipticCurvePublicKey():
            info, version = _key_agreement(public_key, certificate, key), 2
        case _:
            raise CannotSeal("the key of the certificate is neither RSA nor on an elliptic curve")
    infos = der.set_of([info])
    return _cbc(content, key, infos, version) if cbc else _gcm(content, key, infos)


def _gcm(content: Octets | Pieces, key: bytes, infos: bytes) -> Pieces:
    """AuthEnvelopedData (RFC 5083)."""
    gcm = GCMContent(os.urandom(enveloped.NONCE_OCTETS))
    encryptor = Cipher(algorithms.AES(key), modes.GCM(gcm.nonce)).encryptor()

    def encrypted() -> Generator[bytes, None, bytes]:
        for piece in part_of(content):
            yield encryptor.update(piece)
        encryptor.finalize()
        return encryptor.tag

    return enveloped.enveloped_pieces(infos, gcm, len(content), encrypted)


def _cbc(content: Octets | Pieces, key: bytes, infos: bytes, version: int) -> Pieces:
    """EnvelopedData (RFC 5652, 6.1); the version is 2 with a KeyAgreeRecipientInfo, else 0."""
    iv = os.urandom(BLOCK_OCTETS)
    encryptor, padder = Cipher(algorithms.AES(key), modes.CBC(iv)).encryptor(), PKCS7(8 * BLOCK_OCTETS).padder()
    size = (len(content) // BLOCK_OCTETS + 1) * BLOCK_OCTETS
    algorithm = der.algorithm(oids.ID_AES256_CBC, der.element(der.OCTET_STRING, iv))
    encrypted_content = der.around(der.SEQUENCE, [_DATA, algorithm, der.header(0x80, size)], size)
    data = der.around(der.SEQUENCE, [der.integer(version), infos, *encrypted_content], size)
    before = b"".join(der.around(der.SEQUENCE, [_ENVELOPED_DATA, *der.around(0xA0, data, size)], size))

    def made() -> Iterator[Octets]:
        yield before
        for piece in part_of(content):
            yield encryptor.update(padder.update(piece))
        yield encryptor.update(padder.finalize()) + encryptor.finalize()

    return Pieces(len(before) + size, made)


def _key_transport(public_key: RSAPublicKey, certificate: x509.Certificate, key: bytes, *, pkcs1: bool) -> bytes:
    """KeyTransRecipientInfo (RFC 5652, 6.2.1): RSAES-OAEP with SHA-256, or RSA encryption by PKCS#1 v1.5."""
    if not pkcs1:
        oaep = padding.OAEP(mgf=padding.MGF1(hashes.SHA256()), algorithm=hashes.SHA256(), label=None)
        return recipients.encode(RSARecipient(_identifier(certificate), public_key.encrypt(key, oaep)))
    encrypted = public_key.encrypt(key, padding.PKCS1v15())
    return der.sequence(
        der.integer(0), _rid(certificate), _RSA_ENCRYPTION, der.element(der.OCTET_STRING, encrypted)
    )  # fmt: skip


def _key_agreement(public_key: EllipticCurvePublicKey, certificate: x509.Certificate, key: bytes) -> bytes:
    """KeyAgreeRecipientInfo (RFC 5652, 6.2.2): ephemeral-static ECDH, KDF of X9.63 with SHA-256 (RFC 5753, 3.1)."""
    ephemeral = ec.generate_private_key(public_key.curve)
    shared_info = der.sequence(
        _AES256_WRAP, der.element(0xA2, der.element(der.OCTET_STRING, (8 * KEY_OCTETS).to_bytes(4)))
    )  # ECC-CMS-SharedInfo (RFC 5753, 7.2)
    kdf = X963KDF(hashes.SHA256(), KEY_OCTETS, shared_info)
    wrapped = aes_key_wrap(kdf.derive(ephemeral.exchange(ec.ECDH(), public_key)), key)
    point = ephemeral.public_key().public_bytes(
        serialization.Encoding.X962, serialization.PublicFormat.UncompressedPoint
    )
    originator = der.element(0xA1, der.algorithm(oids.ID_EC_PUBLIC_KEY), der.element(der.BIT_STRING, b"\0", point))
    encrypted_key = der.sequence(_rid(certificate), der.element(der.OCTET_STRING, wrapped))
    algorithm = der.algorithm(oids.ID_ECDH_SHA256_KDF, _AES256_WRAP)
    return der.element(0xA1, der.integer(3), der.element(0xA0, originator), algorithm, der.sequence(encrypted_key))


def _identifier(certificate: x509.Certificate) -> CertificateID:
    return CertificateID(issuer=certificate.issuer.public_bytes(), serial=certificate.serial_number)


def _rid(certificate: x509.Certificate) -> bytes:
    """IssuerAndSerialNumber, which all programs know."""
    return recipients.encode_rid(_identifier(certificate))


_DATA = der.oid(cms_oids.ID_DATA)
_ENVELOPED_DATA = der.oid(ID_ENVELOPED_DATA)
_RSA_ENCRYPTION = der.algorithm(oids.ID_RSA_ENCRYPTION, der.NULL)
_AES256_WRAP = der.algorithm(cms_oids.ID_AES256_WRAP)
