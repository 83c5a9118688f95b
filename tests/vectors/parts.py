"""The parts that test vectors are put together from, right ones and wrong ones.
Standard: content keys, nonces and quantum keys come from SHAKE-256 of a name, so that cases come out the same.
"""

from __future__ import annotations

import functools
import hashlib
import struct
import zlib
from collections.abc import Sequence
from datetime import UTC, datetime

from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import padding
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.kdf.hkdf import HKDF
from cryptography.hazmat.primitives.keywrap import aes_key_wrap
from cryptography.hazmat.primitives.poly1305 import Poly1305
from cryptography.hazmat.primitives.serialization import Encoding

from relay import cms
from relay.cms import SignatureScheme
from relay.levels.padding import pad
from tests.vectors.people import Person, person

ORIGINAL = (
    b"From: Ann <ann@alice.example>\r\nTo: Ben <ben@bob.example>\r\nSubject: Quarterly figures\r\n"
    b"Date: Wed, 25 Nov 2026 10:00:00 +0000\r\nMessage-ID: <1@alice.example>\r\n\r\nThe figures are 42 and 43.\r\n"
)
PAYLOAD = b"Content-Type: message/rfc822\r\n\r\n" + ORIGINAL
ATTRIBUTE = cms.QKDKeyAttribute("2", "1", "alice-bob")
WHEN = datetime(2026, 11, 25, 10, tzinfo=UTC)


def octets(name: str, length: int = 32) -> bytes:
    """Octets that look random and are always the same for one name."""
    return hashlib.shake_256(f"QuMail Relay test vectors: {name}".encode()).digest(length)


@functools.cache
def people() -> tuple[Person, Person, Person]:
    """Alice, Bob, Eve."""
    return person("alice"), person("bob"), person("eve")


def gcm(payload: bytes, *recipients: cms.KEKRecipient | cms.RSARecipient | cms.KEMRecipient, cek: str = "cek") -> bytes:
    """AuthEnvelopedData by AES-256-GCM."""
    encrypted = AESGCM(octets(cek)).encrypt(octets(f"{cek} nonce", 12), payload, None)
    content = cms.GCMContent(octets(f"{cek} nonce", 12))
    return cms.encode_enveloped(cms.AuthEnveloped(recipients, content, encrypted[:-16], encrypted[-16:]))


def kek(key_ID: str = "key-1", *, attribute: cms.QKDKeyAttribute | None = ATTRIBUTE) -> cms.KEKRecipient:
    """For whoever has this quantum key."""
    return cms.KEKRecipient(key_ID.encode(), aes_key_wrap(octets(key_ID), octets("cek")), attribute)


def kem(to: Person, *, by_issuer: bool = False) -> cms.KEMRecipient:
    """For whoever has this site's ML-KEM-1024 key."""
    pair = to.identity.kem
    secret, ciphertext = pair.private_key.public_key().encapsulate()
    kdf = HKDF(algorithm=hashes.SHA256(), length=32, salt=None, info=cms.kem_kdf_info())
    wrapped = aes_key_wrap(kdf.derive(secret), octets("cek"))
    return cms.KEMRecipient(_identifier(pair.certificate, by_issuer), ciphertext, wrapped)


def ktri(to: Person, *, by_issuer: bool = False) -> cms.RSARecipient:
    """For whoever has this site's RSA key."""
    pair = to.identity.rsa_encryption
    oaep = padding.OAEP(mgf=padding.MGF1(hashes.SHA256()), algorithm=hashes.SHA256(), label=None)
    encrypted = pair.private_key.public_key().encrypt(octets("cek"), oaep)
    return cms.RSARecipient(_identifier(pair.certificate, by_issuer), encrypted)


def _identifier(certificate: object, by_issuer: bool) -> cms.CertificateID:
    from cryptography import x509

    assert isinstance(certificate, x509.Certificate)
    if by_issuer:
        return cms.CertificateID(issuer=certificate.issuer.public_bytes(), serial=certificate.serial_number)
    ski = certificate.extensions.get_extension_for_class(x509.SubjectKeyIdentifier).value.digest
    return cms.CertificateID(ski=ski)


def signed(
    payload: bytes, by: Person, scheme: SignatureScheme, *, by_issuer: bool = False, digest: bytes | None = None
) -> cms.Signed:
    """SignedData by this site; `digest` other than that of the payload makes a false signature."""
    pair = by.identity.signing if scheme is SignatureScheme.ML_DSA_87 else by.identity.rsa_signing
    hashed = hashlib.sha512 if scheme is SignatureScheme.ML_DSA_87 else hashlib.sha256
    digest = digest or hashed(payload).digest()
    attributes = cms.attributes_to_sign(scheme, digest, WHEN)
    if scheme is SignatureScheme.ML_DSA_87:
        signature = by.identity.signing.private_key.sign(attributes)
    else:
        pss = padding.PSS(mgf=padding.MGF1(hashes.SHA256()), salt_length=32)
        signature = by.identity.rsa_signing.private_key.sign(attributes, pss, hashes.SHA256())
    certificate = pair.certificate.public_bytes(Encoding.DER)
    identifier = _identifier(pair.certificate, by_issuer)
    return cms.Signed(payload, scheme, identifier, attributes, digest, signature, certificate)


def entity(kind: str, der: bytes) -> bytes:
    """CMS as the payload of a layer around it."""
    return (
        f'Content-Type: application/pkcs7-mime; smime-type={kind}; name="smime.p7m"\r\n'
        "Content-Transfer-Encoding: binary\r\n\r\n"
    ).encode() + der


def one_time_pad(
    packed: bytes, lengths: Sequence[int] | None = None, *, padded: bytes | None = None, compression: int = 0,
    parameters: cms.PadContent | None = None, names: Sequence[str] = (),
) -> tuple[bytes, dict[str, bytes]]:  # fmt: skip
    """AuthEnvelopedData by one-time pad, and its keys; `lengths` are those of the segments.

    `padded` replaces what padding makes of the payload; `parameters` are put in place of the true ones, after the
    tag was made.
    """
    padded = pad(packed) if padded is None else padded
    lengths = lengths or [32 + len(padded)]
    names = names or [f"pad-{number}" for number in range(1, len(lengths) + 1)]
    keys = {name: octets(name, length) for name, length in zip(names, lengths, strict=True)}
    segments = tuple(cms.PadSegment(name, length) for name, length in zip(names, lengths, strict=True))
    content = cms.PadContent("2", "1", "alice-bob", compression, segments)
    key = b"".join(keys.values())
    ciphertext = bytes(a ^ b for a, b in zip(padded, key[32:], strict=False))
    poly1305 = Poly1305(key[:32])
    for part in (content.encode(), ciphertext):
        poly1305.update(part + bytes(-len(part) % 16))
    poly1305.update(struct.pack("<QQ", len(content.encode()), len(ciphertext)))
    tag = poly1305.finalize()
    return cms.encode_enveloped(cms.AuthEnveloped((cms.PadRecipient(),), parameters or content, ciphertext, tag)), keys


def deflate(data: bytes) -> bytes:
    """DEFLATE without a header."""
    compressor = zlib.compressobj(level=9, wbits=-15)
    return compressor.compress(data) + compressor.flush()


def replaced(der: bytes, old: str, new: str) -> bytes:
    """The one place where `old` (hexadecimal) stands becomes `new`, and all lengths around it stay right.

    Only for replacements of equal length.
    """
    assert der.hex().count(old.replace(" ", "")) == 1, (old, der.hex().count(old.replace(" ", "")))
    assert len(old.replace(" ", "")) == len(new.replace(" ", ""))
    return bytes.fromhex(der.hex().replace(old.replace(" ", ""), new.replace(" ", "")))


def flipped(der: bytes, position: int = -1) -> bytes:
    """The same with one bit changed."""
    changed = bytearray(der)
    changed[position] ^= 1
    return bytes(changed)
