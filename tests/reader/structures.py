"""One layer: the structure of AuthEnvelopedData at each level, strictly as DER.

Standard: RFC 5083, 5084, 5652, 9629; relay/FORMAT.md, 2 to 6.
"""

import hashlib
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from pyasn1.type import char, namedtype, univ
from pyasn1_alt_modules import rfc5083, rfc5084, rfc5652, rfc9629

from tests.reader import der, limits
from tests.reader.der import BadEncodingError
from tests.reader.mailboxes import casefolded, printable

ID_DATA = "1.2.840.113549.1.7.1"
ID_AUTH_ENVELOPED_DATA = "1.2.840.113549.1.9.16.1.23"
ID_AES256_GCM = "2.16.840.1.101.3.4.1.46"
ID_AES256_WRAP = "2.16.840.1.101.3.4.1.45"
ID_RSAES_OAEP = "1.2.840.113549.1.1.7"
ID_MGF1 = "1.2.840.113549.1.1.8"
ID_SHA256 = "2.16.840.1.101.3.4.2.1"
ID_ORI_KEM = "1.2.840.113549.1.9.16.13.3"
ID_HKDF_SHA256 = "1.2.840.113549.1.9.16.3.28"
ID_QKD_KEY = "2.25.70870596422438752823789839143307439983"
ID_ONE_TIME_PAD = "2.25.174329942225367338356280624045584076657"
ID_ORI_PAD = "2.25.226859369974843839433125609353476451910"

LEAST_RSA_BITS, MOST_RSA_BITS = 4096, 16384
LEAST_HIDDEN = 16  # octets that the shortest key of a pad hides
ML_KEM = "ml-kem-1024-p384"
KEMS = {  # identifier: name, octets of a ciphertext
    "1.3.6.1.5.5.7.6.63": (ML_KEM, 1665),
    "2.25.36796463176215983808006340150877474792": ("hqc-256", 14421),
    "2.25.8351164489915347729498619433651132917": ("frodokem-1344-shake", 21696),
    "2.25.105974411719247991520903958512651041581": ("classic-mceliece-6688128", 208),
}


QKD_KEY_ATTRIBUTE = univ.Sequence(
    componentType=namedtype.NamedTypes(
        namedtype.NamedType("masterSAE", char.UTF8String()),
        namedtype.NamedType("slaveSAE", char.UTF8String()),
        namedtype.NamedType("kmeGroup", char.UTF8String()),
    )
)


ONE_TIME_PAD_PARAMETERS = univ.Sequence(
    componentType=namedtype.NamedTypes(
        namedtype.NamedType("version", univ.Integer()),
        namedtype.NamedType("masterSAE", char.UTF8String()),
        namedtype.NamedType("slaveSAE", char.UTF8String()),
        namedtype.NamedType("kmeGroup", char.UTF8String()),
        namedtype.NamedType("compression", univ.Integer()),
        namedtype.NamedType("keyIDs", univ.SequenceOf(componentType=char.UTF8String())),
    )
)


@dataclass(frozen=True)
class QuantumKeys:
    """Which quantum keys open a layer, by name."""

    master: str
    slave: str
    group: str
    key_ids: tuple[str, ...]


@dataclass(frozen=True)
class Recipient:
    """Whose private key opens a layer: by key identifier, or by issuer and serial number."""

    identifier: bytes | None
    issuer: bytes
    serial: int
    encapsulated: bytes  # the KEM's ciphertext, or RSA's
    wrapped: bytes  # the content key under the KEM's secret


@dataclass(frozen=True)
class Layer:
    """One AuthEnvelopedData that is as the format has it."""

    name: str  # "otp", "aes", "ml-kem-1024-p384" and the further KEMs, "rsa"
    quantum: QuantumKeys | None
    wrapped: bytes  # at aes: the content key under the quantum key
    recipients: tuple[Recipient, ...]
    parameters: bytes  # at otp: P
    compressed: bool
    nonce: bytes
    ciphertext: bytes
    mac: bytes
    fingerprint: bytes


def algorithm(identifier: str, *parameters: bytes) -> bytes:
    """The DER of an AlgorithmIdentifier."""
    return der.tlv(der.SEQUENCE, der.oid(identifier), *parameters)


NULL = der.tlv(der.NULL)
SHA256 = (algorithm(ID_SHA256, NULL), algorithm(ID_SHA256))  # as written, and as a receiver also takes it
AES256_WRAP = algorithm(ID_AES256_WRAP)
OAEP = tuple(
    algorithm(ID_RSAES_OAEP, der.tlv(der.SEQUENCE, der.tlv(0xA0, digest), der.tlv(0xA1, algorithm(ID_MGF1, digest))))
    for digest in SHA256
)


def name_of(value: Any) -> str:
    """A Name: 1 to 256 characters."""
    text = bytes(value).decode("utf-8") if isinstance(value, univ.OctetString) else str(value)
    if not 1 <= len(text) <= limits.NAME:
        raise BadEncodingError("the length of a name")
    return text


def key_id(text: str) -> str:
    """A key_ID, which is printable."""
    if not printable(text):
        raise BadEncodingError("a key_ID that is not printable")
    return text


def read(octets: bytes) -> Layer:
    """The layer in `octets`, one ContentInfo in DER. Raises BadEncodingError."""
    try:
        return _read(octets)
    except UnicodeDecodeError as error:
        raise BadEncodingError("not UTF-8") from error


def _read(octets: bytes) -> Layer:
    der.check(octets)
    info = der.decode(octets, rfc5652.ContentInfo())
    if str(info["contentType"]) != ID_AUTH_ENVELOPED_DATA:
        raise BadEncodingError("another content type")
    enveloped = der.decode(bytes(info["content"]), rfc5083.AuthEnvelopedData())
    if int(enveloped["version"]) != 0:
        raise BadEncodingError("another version")
    if der.has(enveloped, "originatorInfo", "authAttrs", "unauthAttrs"):
        raise BadEncodingError("originatorInfo or attributes")
    content = enveloped["authEncryptedContentInfo"]
    if str(content["contentType"]) != ID_DATA or not der.has(content, "encryptedContent"):
        raise BadEncodingError("another content, or none")
    mac = bytes(enveloped["mac"])
    if len(mac) != 16:
        raise BadEncodingError("the length of a tag")
    recipients = enveloped["recipientInfos"]
    if len(recipients) > limits.RECIPIENTS or len(der.encode(recipients)) > limits.RECIPIENT_INFOS:
        raise BadEncodingError("too many recipients")
    if len(recipients) == 0:
        raise BadEncodingError("no recipient")
    fields: dict[str, Any] = {
        "quantum": None,
        "wrapped": b"",
        "recipients": (),
        "parameters": b"",
        "compressed": False,
        "nonce": b"",
        "ciphertext": bytes(content["encryptedContent"]),
        "mac": mac,
        "fingerprint": hashlib.sha256(der.encode(content) + der.encode(enveloped["mac"])).digest(),
    }
    encryption = content["contentEncryptionAlgorithm"]
    parameters = bytes(encryption["parameters"]) if der.has(encryption, "parameters") else b""
    if str(encryption["algorithm"]) == ID_ONE_TIME_PAD:
        _pad_recipient(recipients)
        quantum, compressed = _pad_parameters(parameters)
        if len(quantum.key_ids) > max(2, -(-len(fields["ciphertext"]) // LEAST_HIDDEN)):
            raise BadEncodingError("more keys than the ciphertext can need")
        return Layer(**fields | {"name": "otp", "quantum": quantum, "parameters": parameters, "compressed": compressed})
    if str(encryption["algorithm"]) != ID_AES256_GCM:
        raise BadEncodingError("another content encryption")
    return Layer(**fields | {"nonce": _nonce(parameters)} | _aes_recipients(recipients))


def _pad_recipient(recipients: Any) -> None:
    """The one recipient of level otp."""
    if len(recipients) != 1 or recipients[0].getName() != "ori":
        raise BadEncodingError("not the one recipient of a pad")
    other = recipients[0]["ori"]
    if str(other["oriType"]) != ID_ORI_PAD or bytes(other["oriValue"]) != NULL:
        raise BadEncodingError("not the recipient of a pad")


def _pad_parameters(octets: bytes) -> tuple[QuantumKeys, bool]:
    if len(octets) > limits.PAD_PARAMETERS:
        raise BadEncodingError("too long parameters")
    value = der.decode(octets, ONE_TIME_PAD_PARAMETERS)
    if int(value["version"]) != 1 or int(value["compression"]) not in (0, 1):
        raise BadEncodingError("another version or compression")
    key_ids = tuple(key_id(name_of(each)) for each in value["keyIDs"])
    if not 2 <= len(key_ids) <= limits.PAD_KEYS:
        raise BadEncodingError("the number of keys")
    if not _ascend(key_ids):
        raise BadEncodingError("the order of key_IDs")
    names = [name_of(value[field]) for field in ("masterSAE", "slaveSAE", "kmeGroup")]
    return QuantumKeys(names[0], names[1], names[2], key_ids), int(value["compression"]) == 1


def _ascend(key_ids: tuple[str, ...]) -> bool:
    """They ascend strictly as UTF-8 octets, and no two are equal after full case folding (section 5, 4)."""
    octets = [key_id.encode() for key_id in key_ids]
    return all(one < other for one, other in pairwise(octets)) and len(set(map(casefolded, key_ids))) == len(key_ids)


def _nonce(parameters: bytes) -> bytes:
    value = der.decode(parameters, rfc5084.GCMParameters())
    if len(value["aes-nonce"]) != 12 or int(value["aes-ICVlen"]) != 16:
        raise BadEncodingError("another nonce or length of the tag")
    return bytes(value["aes-nonce"])


def _aes_recipients(recipients: Any) -> dict[str, Any]:
    """What the recipients of a layer under AES say: its name, and who opens it."""
    kinds = {recipient.getName() for recipient in recipients}
    if kinds == {"kekri"} and len(recipients) == 1:
        quantum, wrapped = _quantum_recipient(recipients[0]["kekri"])
        return {"name": "aes", "quantum": quantum, "wrapped": wrapped}
    if kinds == {"ktri"}:
        return {"name": "rsa", "recipients": tuple(_rsa_recipient(one["ktri"]) for one in recipients)}
    if kinds == {"ori"}:
        read = [_kem_recipient(one["ori"]) for one in recipients]
        if len({name for name, _ in read}) == 1:
            return {"name": read[0][0], "recipients": tuple(one for _, one in read)}
    raise BadEncodingError("recipients of no level")


def _quantum_recipient(value: Any) -> tuple[QuantumKeys, bytes]:
    kek = value["kekid"]
    if int(value["version"]) != 4 or der.has(kek, "date") or not der.has(kek, "other"):
        raise BadEncodingError("a recipient of another form")
    other = kek["other"]
    if str(other["keyAttrId"]) != ID_QKD_KEY or not der.has(other, "keyAttr"):
        raise BadEncodingError("another key attribute")
    if der.encode(value["keyEncryptionAlgorithm"]) != AES256_WRAP or len(value["encryptedKey"]) != 40:
        raise BadEncodingError("another key wrap")
    attribute = der.decode(bytes(other["keyAttr"]), QKD_KEY_ATTRIBUTE)
    names = [name_of(attribute[field]) for field in ("masterSAE", "slaveSAE", "kmeGroup")]
    key_ids = (key_id(name_of(kek["keyIdentifier"])),)
    return QuantumKeys(names[0], names[1], names[2], key_ids), bytes(value["encryptedKey"])


def named(choice: Any) -> tuple[bytes | None, bytes, int]:
    """Key identifier, issuer and serial number of a RecipientIdentifier or SignerIdentifier."""
    if choice.getName() == "subjectKeyIdentifier":
        if not len(choice["subjectKeyIdentifier"]):
            raise BadEncodingError("named by no octets")
        return bytes(choice["subjectKeyIdentifier"]), b"", 0
    both = choice["issuerAndSerialNumber"]
    return None, der.encode(both["issuer"]), int(both["serialNumber"])


def _rsa_recipient(value: Any) -> Recipient:
    identifier, issuer, serial = named(value["rid"])
    if int(value["version"]) != (0 if identifier is None else 2):
        raise BadEncodingError("another version of a recipient")
    if der.encode(value["keyEncryptionAlgorithm"]) not in OAEP:
        raise BadEncodingError("another key transport")
    if not LEAST_RSA_BITS <= len(value["encryptedKey"]) * 8 <= MOST_RSA_BITS:
        raise BadEncodingError("the length of an RSA ciphertext")
    return Recipient(identifier, issuer, serial, bytes(value["encryptedKey"]), b"")


def _kem_recipient(other: Any) -> tuple[str, Recipient]:
    if str(other["oriType"]) != ID_ORI_KEM:
        raise BadEncodingError("another recipient")
    value = der.decode(bytes(other["oriValue"]), rfc9629.KEMRecipientInfo())
    if int(value["version"]) != 0 or int(value["kekLength"]) != 32 or der.has(value, "ukm"):
        raise BadEncodingError("another form of KEM recipient")
    kem = value["kem"]
    if str(kem["algorithm"]) not in KEMS or der.has(kem, "parameters"):
        raise BadEncodingError("another KEM")
    name, size = KEMS[str(kem["algorithm"])]
    if der.encode(value["kdf"]) != algorithm(ID_HKDF_SHA256) or der.encode(value["wrap"]) != AES256_WRAP:
        raise BadEncodingError("another key derivation or wrap")
    if len(value["kemct"]) != size or len(value["encryptedKey"]) != 40:
        raise BadEncodingError("the length of an encapsulation or a wrapped key")
    identifier, issuer, serial = named(value["rid"])
    if name != ML_KEM and (identifier is None or len(identifier) != 20):
        raise BadEncodingError("a further KEM's recipient is named by 20 octets")
    return name, Recipient(identifier, issuer, serial, bytes(value["kemct"]), bytes(value["encryptedKey"]))
