"""The parts that test vectors are put together from, right ones and wrong ones.
Standard: content keys, nonces and quantum keys come from SHAKE-256 of a name, so that cases come out the same.
"""

from __future__ import annotations

import functools
import hashlib
import struct
import zlib
from collections.abc import Sequence
from dataclasses import replace
from datetime import datetime
from typing import Any

from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import padding
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.kdf.hkdf import HKDF
from cryptography.hazmat.primitives.keywrap import aes_key_wrap
from cryptography.hazmat.primitives.poly1305 import Poly1305
from cryptography.hazmat.primitives.serialization import Encoding

from relay.formats import cms, mime
from relay.formats.cms import SignatureScheme, der, oids
from relay.schemes.padding import pad
from tests.vectors import trees
from tests.vectors.case import NOW, RECIPIENT, SENDER, Binding, Name
from tests.vectors.people import Person, person

ORIGINAL = (
    b"From: Ann <ann@alice.example>\r\nTo: Ben <ben@bob.example>\r\nSubject: Quarterly figures\r\n"
    b"Date: Wed, 25 Nov 2026 10:00:00 +0000\r\nMessage-ID: <1@alice.example>\r\n\r\nThe figures are 42 and 43.\r\n"
)
ATTRIBUTE = cms.QKDKeyAttribute("2", "1", "alice-bob")
WHEN = NOW
FIRST = 16
"""Number of octets of each pad key that hide nothing."""


def octets(name: str, length: int = 32) -> bytes:
    """Octets that look random and are always the same for one name."""
    return hashlib.shake_256(f"QuMail Relay test vectors: {name}".encode()).digest(length)


def envelope(layers: str = "aes", **changes: Any) -> cms.SealedEnvelope:
    """What Alice's relay seals beside a mail from Ann to Ben; `changes` are fields of other values."""
    right = cms.SealedEnvelope("2", "1", layers, NOW, SENDER, (RECIPIENT,), octets("id", 16))
    return replace(right, **changes)


def payload(layers: str = "aes", original: bytes = ORIGINAL, **changes: Any) -> bytes:
    """The payload around an original."""
    return bytes(mime.wrap_payload(original, envelope(layers, **changes).encode()))


PAYLOAD = payload()
VERSION_0 = b"Content-Type: message/rfc822\r\n\r\n" + ORIGINAL
"""A payload as it was in version 0 of the format: without a sealed envelope."""


@functools.cache
def people() -> tuple[Person, Person, Person]:
    """Alice, Bob, Eve."""
    return person("alice"), person("bob"), person("eve")


def gcm(payload: bytes, *recipients: cms.KEKRecipient | cms.RSARecipient | cms.KEMRecipient, cek: str = "cek") -> bytes:
    """AuthEnvelopedData by AES-256-GCM."""
    encrypted = AESGCM(octets(cek)).encrypt(octets(f"{cek} nonce", 12), payload, None)
    content = cms.GCMContent(octets(f"{cek} nonce", 12))
    return cms.encode_enveloped(cms.AuthEnveloped(recipients, content, encrypted[:-16], encrypted[-16:]))


def kek(
    key_ID: str = "key-1", *, attribute: cms.QKDKeyAttribute | None = ATTRIBUTE, cek: str = "cek", key: bytes = b""
) -> cms.KEKRecipient:
    """For the holder of this quantum key, whose octets are `key` where they are not those of its name."""
    return cms.KEKRecipient(key_ID.encode(), aes_key_wrap(key or octets(key_ID), octets(cek)), attribute)


def further(kem: str, public_key: bytes, secret: bytes) -> cms.KEMRecipient:
    """For the holder of the key of a further KEM, from whose ciphertext comes `secret`, whatever it is."""
    kdf = HKDF(algorithm=hashes.SHA256(), length=32, salt=None, info=cms.kem_kdf_info())
    identifier = cms.CertificateID(ski=hashlib.sha256(public_key).digest()[: cms.KEY_IDENTIFIER_OCTETS])
    wrapped = aes_key_wrap(kdf.derive(secret), octets("cek"))
    return cms.KEMRecipient(identifier, octets(f"{kem} ciphertext", cms.KEMS[kem].ciphertext_octets), wrapped, kem)


def kem(to: Person, *, by_issuer: bool = False) -> cms.KEMRecipient:
    """For the holder of this site's key of ML-KEM-1024 with P-384."""
    pair = to.identity.kem
    secret, ciphertext = pair.private_key.public_key().encapsulate()
    kdf = HKDF(algorithm=hashes.SHA256(), length=32, salt=None, info=cms.kem_kdf_info())
    wrapped = aes_key_wrap(kdf.derive(secret), octets("cek"))
    return cms.KEMRecipient(_identifier(pair.certificate, by_issuer), ciphertext, wrapped)


def ktri(to: Person, *, by_issuer: bool = False) -> cms.RSARecipient:
    """For the holder of this site's RSA key."""
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
    payload: bytes,
    by: Person,
    scheme: SignatureScheme,
    *,
    by_issuer: bool = False,
    digest: bytes | None = None,
    attributes: Sequence[bytes] | None = None,
    when: datetime = WHEN,
) -> cms.Signed:
    """SignedData by this site; `digest` other than that of the payload makes a false signature.

    `attributes` are signed in place of the right ones, in the order that DER wants.
    """
    pair = by.identity.signing if scheme is SignatureScheme.ML_DSA_87_P384 else by.identity.rsa_signing
    hashed = hashlib.sha512 if scheme is SignatureScheme.ML_DSA_87_P384 else hashlib.sha256
    digest = digest or hashed(payload).digest()
    to_sign = cms.attributes_to_sign(scheme, digest, when)
    if attributes is not None:
        to_sign = der.set_of(attributes)
    if scheme is SignatureScheme.ML_DSA_87_P384:
        signature = by.identity.signing.private_key.sign(to_sign)
    else:
        pss = padding.PSS(mgf=padding.MGF1(hashes.SHA256()), salt_length=32)
        signature = by.identity.rsa_signing.private_key.sign(to_sign, pss, hashes.SHA256())
    certificate = pair.certificate.public_bytes(Encoding.DER)
    identifier = _identifier(pair.certificate, by_issuer)
    return cms.Signed(payload, scheme, identifier, to_sign, digest, signature, certificate)


def signed_attributes(payload: bytes, scheme: SignatureScheme) -> dict[str, bytes]:
    """The right signed attributes by what they say."""
    hashed = hashlib.sha512 if scheme is SignatureScheme.ML_DSA_87_P384 else hashlib.sha256
    whole = cms.attributes_to_sign(scheme, hashed(payload).digest(), WHEN)
    _, contents = trees.parsed(whole)
    assert not isinstance(contents, bytes)
    by_type = {trees.encoded(each[1][0]): trees.encoded(each) for each in contents if not isinstance(each[1], bytes)}
    names = {
        "content-type": oids.ID_CONTENT_TYPE,
        "message-digest": oids.ID_MESSAGE_DIGEST,
        "signing-time": oids.ID_SIGNING_TIME,
        "algorithm-protection": oids.ID_ALGORITHM_PROTECTION,
    }
    return {name: by_type[der.oid(identifier)] for name, identifier in names.items()}


def entity(kind: str, der: bytes) -> bytes:
    """CMS as the payload of a layer around it."""
    return (
        f'Content-Type: application/pkcs7-mime; smime-type={kind}; name="smime.p7m"\r\n'
        "Content-Transfer-Encoding: binary\r\n\r\n"
    ).encode() + der


def lengths_of(octets: int, size: int) -> list[int]:
    """The fewest keys of one size that hide so many octets."""
    return [size] * max(2, -(-octets // (size - FIRST)))


def one_time_pad(
    packed: bytes = b"", lengths: Sequence[int] | None = None, *, padded: bytes | None = None, compression: int = 0,
    parameters: cms.PadContent | None = None, names: Sequence[str] = (), tag_key: bytes = b"", hiding: bytes = b"",
    keys: dict[str, bytes] | None = None, kme_group: str = "alice-bob", master: str = "2", slave: str = "1",
) -> tuple[bytes, dict[str, bytes]]:  # fmt: skip
    """AuthEnvelopedData by one-time pad, and its keys, of these `lengths` or, where `keys` are given, those.

    `padded` replaces what padding makes of the payload, `tag_key` and `hiding` what the keys give; `parameters` are put
    in place of the true ones, after the tag was made.
    """
    padded = bytes(pad(packed)) if padded is None else padded
    if keys is None:
        lengths = lengths or lengths_of(len(padded), 1024)
        digits = len(str(len(lengths)))
        names = names or [f"pad-{number:0{digits}}" for number in range(1, len(lengths) + 1)]
        keys = {name: octets(name, length) for name, length in zip(names, lengths, strict=True)}
    names = names or list(keys)
    first, *_ = taken = [keys[name] for name in names]
    tag_key = tag_key or first[:FIRST] + taken[-1 if len(taken) == 1 else 1][:FIRST]
    hiding = hiding or b"".join(key[FIRST:] for key in taken)
    content = cms.PadContent(master, slave, kme_group, compression, tuple(names))
    ciphertext = bytes(a ^ b for a, b in zip(padded, hiding.ljust(len(padded), b"x"), strict=False))
    tag = pad_tag(tag_key, content.encode(), ciphertext)
    return cms.encode_enveloped(cms.AuthEnveloped((cms.PadRecipient(),), parameters or content, ciphertext, tag)), keys


def pad_tag(key: bytes, parameters: bytes, ciphertext: bytes) -> bytes:
    """The tag of level otp."""
    poly1305 = Poly1305(key.ljust(32, b"\0"))
    for part in (parameters, ciphertext):
        poly1305.update(part + bytes(-len(part) % 16))
    poly1305.update(struct.pack("<QQ", len(parameters), len(ciphertext)))
    return poly1305.finalize()


def pad_in_version_0(packed: bytes, segments: dict[str, bytes], tag_key: bytes = b"") -> bytes:
    """AuthEnvelopedData as version 0 had it: segments, whose first 32 octets are the key of the tag."""
    padded = bytes(pad(packed))
    pads = b"".join(segments.values())
    names = [der.sequence(der.element(0x0C, name.encode()), der.integer(len(key))) for name, key in segments.items()]
    words = [der.element(0x0C, word) for word in (b"2", b"1", b"alice-bob")]
    parameters = der.sequence(der.integer(0), *words, der.integer(0), der.sequence(*names))
    hiding = pads if tag_key else pads[32:]
    ciphertext = bytes(a ^ b for a, b in zip(padded, hiding, strict=False))
    assert len(ciphertext) == len(padded)
    encrypted = der.sequence(
        der.oid(oids.ID_DATA), der.algorithm(oids.ID_ONE_TIME_PAD, parameters), der.element(0x80, ciphertext)
    )
    recipient = der.element(0xA4, der.oid(oids.ID_ORI_PAD), der.NULL)
    tag = der.element(der.OCTET_STRING, pad_tag(tag_key or pads[:32], parameters, ciphertext))
    data = der.sequence(der.integer(0), der.set_of([recipient]), encrypted, tag)
    return der.sequence(der.oid(oids.ID_AUTH_ENVELOPED_DATA), der.element(0xA0, data))


def binds(
    content: bytes, names: Sequence[str] = (), *, group: str = "alice-bob", sae: str = "2"
) -> tuple[Binding, ...]:
    """What the outermost layer binds its keys to: all that it names, or those of these names."""
    enveloped = cms.decode_enveloped(content)
    level = "otp" if isinstance(enveloped.content, cms.PadContent) else "aes"
    if isinstance(enveloped.content, cms.PadContent):
        named = enveloped.content.key_IDs
    else:
        named = tuple(
            each.key_identifier.decode() for each in enveloped.recipients if isinstance(each, cms.KEKRecipient)
        )
    chosen = names or named
    return tuple(Binding(Name(group, sae, name), level, (enveloped.fingerprint(),)) for name in chosen)


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
