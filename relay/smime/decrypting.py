"""Decrypts EnvelopedData and AuthEnvelopedData with this site's own keys.
Standard: RFC 5652 6, RFC 8017 7 (RSAES), RFC 5753 3.1 (ECDH), RFC 3394 (AES key wrap), RFC 5083 and RFC 5084 (AES-GCM).

**Bleichenbacher's attack** on RSAES-PKCS1-v1_5 needs a receiver that tells wrong padding from wrong content.
OpenSSL gives a key that depends on the ciphertext for wrong padding (implicit rejection, since 3.2, which
`cryptography` 50 brings). A key of the wrong length is replaced by a random one (RFC 3218, 2.3.2). After that there is
one failure for all. The client hears the same as for any mail: what cannot be opened is handed on as it came.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from cryptography import x509
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives import hashes, padding as block_padding
from cryptography.hazmat.primitives.asymmetric import ec, padding
from cryptography.hazmat.primitives.asymmetric.rsa import RSAPrivateKey
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from cryptography.hazmat.primitives.kdf.x963kdf import X963KDF
from cryptography.hazmat.primitives.keywrap import InvalidUnwrap, aes_key_unwrap

from relay.errors import BadTag, NotForUs
from relay.formats.cms import CertificateID, der
from relay.formats.cms.smime_enveloped import KeyAgreement, KeyTransport, OthersEnveloped, OthersRecipient
from relay.formats.pieces import joined, part_of
from relay.smime.own import OwnKey

MAX_ATTEMPTS = 16
"""Maximum number of operations with private keys for one message; each takes some milliseconds."""
_WRONG = "our key does not open this content, or it was changed on the way"


@dataclass(frozen=True, slots=True)
class Decrypted:
    """The content. `authenticated` is whether a tag covers it. `by` are the indices of the keys that open it."""

    content: bytes = field(repr=False)
    authenticated: bool
    by: tuple[int, ...]


def decrypt(enveloped: OthersEnveloped, keys: Sequence[OwnKey]) -> Decrypted:
    """Decrypts with the keys that the message names. Raises NotForUs if it names none, else BadTag.

    A key counts in `by` only if it gives the same content key: anybody can name more recipients.
    """
    named = _named(enveloped.recipients, keys)
    if not named:
        raise NotForUs("encrypted to keys that are not ours")
    content_keys: dict[bytes, list[int]] = {}
    for index, recipient in named:
        content_keys.setdefault(_content_key(recipient, keys[index], enveloped.key_octets), []).append(index)
    for content_key, by in content_keys.items():
        try:
            content = _content(enveloped, content_key)
        except (InvalidTag, ValueError):
            continue
        return Decrypted(content, enveloped.mode == "gcm", tuple(by))
    raise BadTag(_WRONG)


def names(identifier: CertificateID, certificate: x509.Certificate) -> bool:
    """Whether the identifier is of this certificate. A key without the extension has no SubjectKeyIdentifier."""
    if identifier.ski:
        try:
            extension = certificate.extensions.get_extension_for_class(x509.SubjectKeyIdentifier)
        except (x509.ExtensionNotFound, ValueError):
            return False
        return identifier.ski == extension.value.digest
    return identifier.serial == certificate.serial_number and identifier.issuer == _issuer_of(certificate)


def _issuer_of(certificate: x509.Certificate) -> bytes:
    """The issuer as it stands there, octet for octet; b"" for a certificate of another version than 3."""
    if certificate.version is not x509.Version.v3:
        return b""
    [inside] = der.children(certificate.tbs_certificate_bytes, 1)
    return der.sequence(bytes(der.children(inside, 10)[3]))


def _named(recipients: Sequence[OthersRecipient], keys: Sequence[OwnKey]) -> list[tuple[int, OthersRecipient]]:
    """The keys that the message names, each with the first recipient that names it."""
    found = [
        (index, next((each for each in recipients if names(each.certificate, key.certificate)), None))
        for index, key in enumerate(keys)
    ]
    return [(index, each) for index, each in found if each is not None][:MAX_ATTEMPTS]


def _content_key(recipient: OthersRecipient, own: OwnKey, octets: int) -> bytes:
    """The content key, or a random one if it cannot be had: what follows must not depend on that."""
    try:
        if isinstance(recipient, KeyTransport) and isinstance(own.key, RSAPrivateKey):
            content_key = own.key.decrypt(recipient.encrypted_key, _padding(recipient))
        elif isinstance(recipient, KeyAgreement) and isinstance(own.key, ec.EllipticCurvePrivateKey):
            content_key = _agreed(recipient, own.key)
        else:
            content_key = b""
    except (ValueError, InvalidUnwrap):
        content_key = b""
    other = os.urandom(octets)
    return content_key if len(content_key) == octets else other


def _padding(recipient: KeyTransport) -> padding.AsymmetricPadding:
    if recipient.oaep is None:
        return padding.PKCS1v15()
    digest, mask = (_OAEP_HASHES[name]() for name in recipient.oaep)
    return padding.OAEP(mgf=padding.MGF1(mask), algorithm=digest, label=None)


def _agreed(recipient: KeyAgreement, key: ec.EllipticCurvePrivateKey) -> bytes:
    """Unwraps the content key. Raises ValueError for a point that is not on our curve, or InvalidUnwrap."""
    ephemeral = ec.EllipticCurvePublicKey.from_encoded_point(key.curve, recipient.point)
    secret = key.exchange(ec.ECDH(), ephemeral)
    kdf = X963KDF(_KDF_HASHES[recipient.hash](), recipient.kek_octets, recipient.shared_info)
    return aes_key_unwrap(kdf.derive(secret), recipient.encrypted_key)


def _content(enveloped: OthersEnveloped, key: bytes) -> bytes:
    """The content. Raises InvalidTag, or ValueError for wrong padding of CBC."""
    if enveloped.mode == "gcm":
        mode = modes.GCM(enveloped.nonce, enveloped.tag, min_tag_length=len(enveloped.tag))
        decryptor = Cipher(algorithms.AES(key), mode).decryptor()
        decryptor.authenticate_additional_data(enveloped.attributes)
        content = joined(len(enveloped.ciphertext), map(decryptor.update, part_of(enveloped.ciphertext)))
        decryptor.finalize()  # nothing may be released before the tag is verified
        return content
    plain = Cipher(algorithms.AES(key), modes.CBC(enveloped.nonce)).decryptor()
    content = joined(len(enveloped.ciphertext), map(plain.update, part_of(enveloped.ciphertext)))
    unpadder = block_padding.PKCS7(128).unpadder()
    last = unpadder.update(content[-16:]) + unpadder.finalize()
    return b"".join((memoryview(content)[:-16], last))


_OAEP_HASHES: dict[str, Callable[[], hashes.HashAlgorithm]] = {
    "sha1": hashes.SHA1,
    "sha256": hashes.SHA256,
    "sha384": hashes.SHA384,
    "sha512": hashes.SHA512,
}
"""SHA-1 is the default of OAEP (RFC 8017); its weakness to collisions does not matter there."""
_KDF_HASHES: dict[str, Callable[[], hashes.HashAlgorithm]] = _OAEP_HASHES | {"sha224": hashes.SHA224}
