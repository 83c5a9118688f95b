"""SignedData of levels pqc and rsa, verified by a pinned certificate.

Standard: RFC 5652, 6211, 4056; relay/FORMAT.md, 6 and 9 step 9.
"""

import hashlib
import hmac
import re
from collections.abc import Iterable
from datetime import UTC, datetime
from typing import Any

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, mldsa, padding, rsa
from pyasn1.type import namedtype, tag, univ
from pyasn1_alt_modules import rfc4055, rfc5280, rfc5652

from tests.reader import der, limits, structures
from tests.reader.der import BadEncodingError
from tests.reader.model import Certificate, Failure, Peer
from tests.reader.structures import ID_DATA, algorithm

ID_SIGNED_DATA = "1.2.840.113549.1.7.2"
ID_RSA = "1.2.840.113549.1.1.1"
ID_ML_DSA_87_P384 = "1.3.6.1.5.5.7.6.49"
ID_RSASSA_PSS = "1.2.840.113549.1.1.10"
ID_SHA512 = "2.16.840.1.101.3.4.2.3"
ID_CONTENT_TYPE = "1.2.840.113549.1.9.3"
ID_MESSAGE_DIGEST = "1.2.840.113549.1.9.4"
ID_SIGNING_TIME = "1.2.840.113549.1.9.5"
ID_ALGORITHM_PROTECTION = "1.2.840.113549.1.9.52"
ID_SUBJECT_KEY_IDENTIFIER = "2.5.29.14"

_SALT = 32
_UTC_TIME, _GENERALIZED_TIME = 0x17, 0x18
_CONTEXT = tag.Tag(tag.tagClassContext, tag.tagFormatConstructed, 0)

SHA512 = (algorithm(ID_SHA512), algorithm(ID_SHA512, structures.NULL))
PSS = tuple(
    algorithm(
        ID_RSASSA_PSS,
        der.tlv(
            der.SEQUENCE,
            der.tlv(0xA0, digest),
            der.tlv(0xA1, algorithm(structures.ID_MGF1, digest)),
            der.tlv(0xA2, der.integer(_SALT)),
        ),
    )
    for digest in structures.SHA256
)
# What each level's SignedData may say: digests, signatures, and the hash of the digest.
SCHEMES: dict[str, tuple[tuple[bytes, ...], tuple[bytes, ...], str]] = {
    "pqc": (SHA512, (algorithm(ID_ML_DSA_87_P384),), "sha512"),
    "rsa": (structures.SHA256, PSS, "sha256"),
}


# As in RFC 5652, but that nothing of the certificates is looked at.
SIGNED_DATA = univ.Sequence(
    componentType=namedtype.NamedTypes(
        namedtype.NamedType("version", rfc5652.CMSVersion()),
        namedtype.NamedType("digestAlgorithms", rfc5652.DigestAlgorithmIdentifiers()),
        namedtype.NamedType("encapContentInfo", rfc5652.EncapsulatedContentInfo()),
        namedtype.OptionalNamedType("certificates", univ.Any().subtype(explicitTag=_CONTEXT)),
        namedtype.NamedType("signerInfos", rfc5652.SignerInfos()),
    )
)


def certificate(octets: bytes) -> Certificate:
    """A certificate to be pinned, of its DER."""
    value = der.decode(octets, rfc5280.Certificate())["tbsCertificate"]
    names = [
        der.decode(bytes(one["extnValue"]), univ.OctetString())
        for one in value["extensions"]
        if str(one["extnID"]) == ID_SUBJECT_KEY_IDENTIFIER
    ]
    begins, ends = (_x509_time(value["validity"][name]) for name in ("notBefore", "notAfter"))
    public = value["subjectPublicKeyInfo"]
    return Certificate(
        bytes(names[0]),
        der.encode(value["issuer"]),
        int(value["serialNumber"]),
        begins,
        ends,
        str(public["algorithm"]["algorithm"]),
        public["subjectPublicKey"].asOctets(),
    )


def _x509_time(choice: Any) -> float:
    moment: datetime = choice.getComponent().asDateTime
    return (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp()


def verify(octets: bytes, level: str, peers: Iterable[Peer], now: datetime) -> tuple[bytes, Peer]:
    """What was signed, and by whom. Raises Failure at step 9, whatever is wrong."""
    try:
        payload, signer = _read(octets)
    except BadEncodingError as error:
        raise Failure(9, "bad structure", str(error)) from error
    digests, signatures, digest_name = SCHEMES[level]
    digest_algorithm, signature_algorithm = (
        der.encode(signer["digestAlgorithm"]),
        der.encode(signer["signatureAlgorithm"]),
    )
    if not any(digest_algorithm in scheme[0] and signature_algorithm in scheme[1] for scheme in SCHEMES.values()):
        raise Failure(9, "bad structure", "an algorithm of no scheme")
    if digest_algorithm not in digests or signature_algorithm not in signatures:
        raise Failure(9, "bad signature", "not the level's own scheme")
    try:
        digest = _digest_signed(signer, digest_algorithm, signature_algorithm)
    except BadEncodingError as error:
        raise Failure(9, "bad structure", str(error)) from error
    if not hmac.compare_digest(digest, hashlib.new(digest_name, payload).digest()):
        raise Failure(9, "bad signature", "another digest")
    for peer in peers:
        for pinned in peer.certificates:
            if _names(signer["sid"], pinned) and pinned.not_before <= now.timestamp() <= pinned.not_after:
                _verify_signature(pinned, level, bytes(signer["signature"]), _signed_octets(signer))
                return payload, peer
    raise Failure(9, "bad signature", "by no pinned certificate that is valid now")


def _read(octets: bytes) -> tuple[bytes, Any]:
    """The payload and the one SignerInfo."""
    if octets[1:2] == b"\x80":
        octets = der.from_ber(octets, signed=True)
    info = der.decode(octets, rfc5652.ContentInfo())
    if str(info["contentType"]) != ID_SIGNED_DATA:
        raise BadEncodingError("not SignedData")
    signed = der.decode(bytes(info["content"]), SIGNED_DATA)
    content = signed["encapContentInfo"]
    if str(content["eContentType"]) != ID_DATA or not der.has(content, "eContent"):
        raise BadEncodingError("another content, or none")
    if len(signed["signerInfos"]) != 1:
        raise BadEncodingError("not one signer")
    if der.has(signed, "certificates"):
        _check_certificates(bytes(signed["certificates"]))
    payload = bytes(content["eContent"])
    signer = signed["signerInfos"][0]
    structures.named(signer["sid"])
    version = 3 if signer["sid"].getName() == "subjectKeyIdentifier" else 1  # RFC 5652, 5.1 and 5.3
    if (int(signed["version"]), int(signer["version"])) != (version, version) or der.has(signer, "unsignedAttrs"):
        raise BadEncodingError("another version, or unsigned attributes")
    digests = [der.encode(one) for one in signed["digestAlgorithms"]]
    if len(digests) != 1 or digests[0] not in _alike(der.encode(signer["digestAlgorithm"])):
        raise BadEncodingError("other digests than the signer's")
    if len(octets) - len(payload) > limits.AROUND_SIGNED or len(signer["signature"]) > limits.SIGNATURE:
        raise BadEncodingError("too much around the content")
    return payload, signer


def _check_certificates(octets: bytes) -> None:
    """Certificates, in the order of a SET OF; nothing inside them is looked at."""
    found, at = [], 0
    while at < len(octets):
        identifier, length, start = der.head(octets, at, len(octets))
        if identifier[0] != der.SEQUENCE or length is None:
            raise BadEncodingError("something that is no certificate")
        found.append(octets[at : start + length])
        at = start + length
    if found != sorted(found):
        raise BadEncodingError("the order of certificates")


def _signed_octets(signer: Any) -> bytes:
    """The signed attributes as they are signed: with the tag of a SET (RFC 5652, 5.4)."""
    written: bytes = der.encode(signer["signedAttrs"])
    return bytes([der.SET]) + written[1:]


def _digest_signed(signer: Any, digest_algorithm: bytes, signature_algorithm: bytes) -> bytes:
    """The message digest of the signed attributes, which are these four and as the format has them."""
    if not der.has(signer, "signedAttrs") or len(der.encode(signer["signedAttrs"])) > limits.SIGNED_ATTRIBUTES:
        raise BadEncodingError("no signed attributes, or too long ones")
    found: dict[str, bytes] = {}
    for attribute in signer["signedAttrs"]:
        name = str(attribute["attrType"])
        if name in found or len(attribute["attrValues"]) != 1:
            raise BadEncodingError("an attribute that is there twice, or has not one value")
        found[name] = bytes(attribute["attrValues"][0])
    if set(found) != {ID_CONTENT_TYPE, ID_MESSAGE_DIGEST, ID_SIGNING_TIME, ID_ALGORITHM_PROTECTION}:
        raise BadEncodingError("other attributes")
    if found[ID_CONTENT_TYPE] != der.oid(ID_DATA):
        raise BadEncodingError("another content type is signed")
    _check_time(found[ID_SIGNING_TIME])
    signatures = next(found for _, found, _ in SCHEMES.values() if signature_algorithm in found)
    protected = [
        der.tlv(der.SEQUENCE, digest, b"\xa1" + one[1:]) for digest in _alike(digest_algorithm) for one in signatures
    ]
    if found[ID_ALGORITHM_PROTECTION] not in protected:
        raise BadEncodingError("other algorithms are signed")
    return bytes(der.decode(found[ID_MESSAGE_DIGEST], univ.OctetString()))


def _alike(digest: bytes) -> tuple[bytes, ...]:
    """A digest's ways to be written: with NULL, and without."""
    return next((scheme[0] for scheme in SCHEMES.values() if digest in scheme[0]), (digest,))


def _check_time(octets: bytes) -> None:
    """UTCTime from 1950 through 2049, GeneralizedTime else (RFC 5652, 11.3)."""
    der.check(octets)
    form = {_UTC_TIME: (rb"[0-9]{12}Z", "%y%m%d%H%M%SZ"), _GENERALIZED_TIME: (rb"[0-9]{14}Z", "%Y%m%d%H%M%SZ")}.get(
        octets[0]
    )
    if form is None or not re.fullmatch(form[0], octets[2:]):
        raise BadEncodingError("the form of the signing time")
    try:
        moment = datetime.strptime(octets[2:].decode("ascii"), form[1]).replace(tzinfo=UTC)
    except ValueError as error:
        raise BadEncodingError("the signing time") from error
    if octets[0] == _GENERALIZED_TIME and 1950 <= moment.year < 2050:
        raise BadEncodingError("such a signing time is UTCTime")


def _names(sid: Any, pinned: Certificate) -> bool:
    identifier, issuer, serial = structures.named(sid)
    if identifier is not None:
        return identifier == pinned.identifier
    return (issuer, serial) == (pinned.issuer, pinned.serial)


def _verify_signature(pinned: Certificate, level: str, signature: bytes, octets: bytes) -> None:
    try:
        if level == "pqc" and pinned.algorithm == ID_ML_DSA_87_P384:
            _verify_both(pinned.public_key, signature, octets)
            return
        if level == "rsa" and pinned.algorithm == ID_RSA:
            key = der.decode(pinned.public_key, rfc4055.RSAPublicKey())
            public = rsa.RSAPublicNumbers(int(key["publicExponent"]), int(key["modulus"])).public_key()
            if public.key_size >= structures.LEAST_RSA_BITS:
                scheme = padding.PSS(padding.MGF1(hashes.SHA256()), salt_length=_SALT)
                public.verify(signature, octets, scheme, hashes.SHA256())
                return
    except InvalidSignature as error:
        raise Failure(9, "bad signature", "the signature") from error
    raise Failure(9, "bad signature", "a certificate of another kind")


def _verify_both(public_key: bytes, signature: bytes, octets: bytes) -> None:
    """The composite signature: two over one message. Raises InvalidSignature."""
    lattice = mldsa.MLDSA87PublicKey.from_public_bytes(public_key[:2592])
    curve = ec.EllipticCurvePublicKey.from_encoded_point(ec.SECP384R1(), public_key[2592:])
    if len(signature) > 4627 + 104:
        raise InvalidSignature
    label = b"COMPSIG-MLDSA87-ECDSA-P384-SHA512"
    message = b"CompositeAlgorithmSignatures2025" + label + b"\0" + hashlib.sha512(octets).digest()
    lattice.verify(signature[:4627], message, label)
    curve.verify(signature[4627:], message, ec.ECDSA(hashes.SHA384()))
