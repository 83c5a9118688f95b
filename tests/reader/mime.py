"""Header fields: of the message as it arrives, and of what stands inside a layer.

Standard: RFC 5322, 2045; relay/FORMAT.md, 1.
"""

import base64
import binascii
import re

from tests.reader import limits

_FIELD = re.compile(rb"([!-9;-~]+)[ \t]*:(.*)", re.DOTALL)
_ONE = (
    rb"[ \t]*;[ \t]*(?:\n[ \t]+)?([A-Za-z0-9_.-]+)="
    rb"(?:([A-Za-z0-9!#$&+./:?@^_`{|}~-]+)|\"((?:[^*\"\\\x00-\x1f\x7f]|\\[\"\\])*)\")"
)
_FORM = re.compile(
    rb"[ \t\n]*([!#$&+.^_`{|}~0-9A-Za-z/-]+)((?:" + re.sub(rb"\((?=\[|\()", rb"(?:", _ONE) + rb")*)[ \t]*;?[ \t]*"
)
_PARAMETER = re.compile(_ONE)
_MAILBOX_LINE = re.compile(rb">*From ")
_CONFUSING = re.compile(rb"(?:name|boundary)[^a-z=]*=|^'.*'$|^'$", re.IGNORECASE)
_NOT_BASE64 = re.compile(rb"[^A-Za-z0-9+/=\r\n \t]")
_TYPES = {"application/pkcs7-mime", "application/x-pkcs7-mime"}
_SMIME_TYPES = {"authenveloped-data", "authenticated-enveloped-data"}

_SIGNED_TYPES = {"signed-data"}

# Layers and SignedData inside, as a sender writes them.
LAYER = (
    b'Content-Type: application/pkcs7-mime; smime-type=authEnveloped-data; name="smime.p7m"\r\n'
    b"Content-Transfer-Encoding: binary\r\n\r\n"
)
SIGNED = LAYER.replace(b"authEnveloped-data", b"signed-data")


class NotSealedError(Exception):
    """The header is not that of a sealed message: an ordinary mail."""


class BadMessageError(Exception):
    """The header is that of a sealed message, and something of it, or its body, is not as the format has it."""


def sealed_octets(message: bytes) -> bytes:
    """What the body of a sealed message is: DER, or BER. Raises NotSealedError and BadMessageError."""
    fields, body = _split_message(message)
    types = fields.get(b"content-type", [])
    if not any(_is_cms(each, _SMIME_TYPES) for each in types):
        raise NotSealedError
    check_header(message)
    return _content(types, fields.get(b"content-transfer-encoding", []), body)


def sealed_by_relay(message: bytes) -> bool:
    """Whether a message has the field of a relay that seals."""
    return b"x-qumail-sealed" in _split_message(message)[0]


def stands_in(message: bytes, names: list[bytes]) -> bool:
    """Whether one of the names stands in the body, as it is or in what can be read of it as base64."""
    _, body = _split_message(message)
    readable = re.match(rb"[A-Za-z0-9+/\r\n \t]*", body)
    packed = (readable[0] if readable else b"").translate(None, b"\r\n \t")
    whole = packed[:-1] if len(packed) % 4 == 1 else packed
    octets = base64.b64decode(whole + b"=" * (-len(whole) % 4))
    return any(name in body or name in octets for name in names)


def inside(entity: bytes, *, signed: bool = False) -> bytes | None:
    """The layer, or SignedData, that an entity is; None where it is no such thing. Raises BadMessageError."""
    fields, body = _split_message(entity)
    types = fields.get(b"content-type", [])
    if not any(_is_cms(each, _SIGNED_TYPES if signed else _SMIME_TYPES) for each in types):
        return None
    check_header(entity)
    return _content(types, fields.get(b"content-transfer-encoding", [b"binary"]), body)


def _content(types: list[bytes], encodings: list[bytes], body: bytes) -> bytes:
    """The body, decoded. Raises BadMessageError."""
    if len(types) != 1:
        raise BadMessageError("two types")
    if len(encodings) != 1 or max(len(types[0]), len(encodings[0])) > limits.STRUCTURED_FIELD:
        raise BadMessageError("the transfer encoding, or a field too long")
    encoding = encodings[0].replace(b"\r\n", b"").strip().lower()
    if encoding == b"binary":
        return body
    if encoding != b"base64":
        raise BadMessageError("another transfer encoding")
    return _base64(body)


def _base64(body: bytes) -> bytes:
    if _NOT_BASE64.search(body):
        raise BadMessageError("something that is not base64")
    packed = body.translate(None, b"\r\n \t")
    if len(packed) % 4 or b"=" in packed.rstrip(b"=") or len(packed) - len(packed.rstrip(b"=")) > 2:
        raise BadMessageError("the padding of base64")
    try:
        return base64.b64decode(packed, validate=True)
    except binascii.Error as error:
        raise BadMessageError("base64") from error


def check_header(message: bytes) -> None:
    """The limits of a header, which is all of the message where it has no body. Raises BadMessageError."""
    header = message.partition(b"\r\n\r\n")[0]
    if len(header) + 2 > limits.HEADER or header.count(b"\n") + 1 > limits.HEADER_LINES:
        raise BadMessageError("too long a header")


def _split_message(message: bytes) -> tuple[dict[bytes, list[bytes]], bytes]:
    """The fields by name in lower case, unfolded, and the body. The header ends before the first line that is no field."""
    fields: dict[bytes, list[bytes]] = {}
    at, last = 0, b""
    if _MAILBOX_LINE.match(message):
        at = message.find(b"\r\n") + 2 or len(message)
    while at < len(message):
        end = message.find(b"\r\n", at)
        line = message[at:] if end < 0 else message[at:end]
        field = _FIELD.fullmatch(line)
        if line[:1] in {b" ", b"\t"} and last:
            fields[last][-1] += b"\r\n" + line
        elif field:
            last = field[1].lower()
            fields.setdefault(last, []).append(field[2])
        else:
            break
        at += len(line) + 2
    body = message[at:]
    return fields, body.removeprefix(b"\r\n")


def _is_cms(value: bytes, smime_types: set[str]) -> bool:
    """Whether a Content-Type is that of CMS with one of these types, in the only form that announces it."""
    if not value.isascii() or len(value) > limits.STRUCTURED_FIELD or value.lower().count(b"smime-type") != 1:
        return False
    form = _FORM.fullmatch(value.replace(b"\r\n", b"\n"))
    if form is None:
        return False
    parameters = [(name.lower(), bare, quoted) for name, bare, quoted in _PARAMETER.findall(form[2])]
    if any(_CONFUSING.search(quoted) for _, _, quoted in parameters):
        return False
    said = [
        (bare or _unquoted(f'"{quoted.decode()}"').encode()).decode().lower()
        for name, bare, quoted in parameters
        if name == b"smime-type"
    ]
    return form[1].decode().lower() in _TYPES and len(said) == 1 and said[0] in smime_types


def _unquoted(value: str) -> str:
    return re.sub(r"\\(.)", r"\1", value[1:-1]) if len(value) > 1 and value[0] == value[-1] == '"' else value
