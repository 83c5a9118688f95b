"""The last look at a message before it leaves: what policy wanted sealed must be sealed, whatever went before.
Standard: RFC 8551 3.2 and RFC 5083, read here from the bytes alone; no code is shared with what seals.
"""

from __future__ import annotations

import binascii
import re
from collections.abc import Iterator

import pybase64

from relay.errors import TrippedWire

MAY_SHOW = frozenset(
    b"received from to cc date message-id auto-submitted subject mime-version content-type "
    b"content-transfer-encoding content-disposition dkim-signature".split()
)
"""The only header fields that a sealed message may have."""

_LINE = re.compile(rb"(?:([A-Za-z0-9-]+)[ \t]*:|[ \t])[^\r\n]*\r\n")
"""A field, also in the old syntax with blanks before the colon (RFC 5322, 4.5), or its continuation."""
_BLANKS = b" \t\r\n"
"""What may stand around a value; other readers take further control characters for a part of it."""
_SEALED_TYPE = re.compile(rb"application/pkcs7-mime;[ \t]*smime-type=authEnveloped-data;[ \t]*name=\"smime\.p7m\"")
_AUTH_ENVELOPED_DATA = bytes.fromhex("2a864886f70d0109100117")
_DATA = bytes.fromhex("2a864886f70d010701")
_AES_256_GCM = bytes.fromhex("060960864801650304012e")
_ONE_TIME_PAD = bytes.fromhex("0614698286a6dcf08ff1ca9e97b8c5a2c1d1aea39e71")
_KEM = bytes.fromhex("060b2a864886f70d0109100d03")
_PAD = bytes.fromhex("06146982d5abc39fe9cb8a8bf1a89596bed7bfc8dc46")

_Form = tuple[int, bytes, bytes]
"""The tag of a layer's RecipientInfos, how their contents begin, and how the algorithm of its content does."""
_KEM_FORM: _Form = (0xA4, _KEM, _AES_256_GCM)
_FORMS: dict[str, _Form] = {
    "aes": (0xA2, b"", _AES_256_GCM),
    "otp": (0xA4, _PAD, _ONE_TIME_PAD),
    "rsa": (0x30, b"", _AES_256_GCM),
    "pqc": _KEM_FORM,
}
_MAX_RECIPIENTS = 100
_READABLE = b"Content-Type: "
"""Every payload begins so; by chance it stands in a ciphertext once in 2^112 octets."""


def check_sealed(message: bytes, protection: str) -> None:
    """Raises TrippedWire, which holds the mail, unless `message` is sealed as `protection` says, and nothing else.

    `protection` names the layers from the inside out, `pqc+aes` for instance, of which the last can be seen; a name
    that is not here is that of a further KEM.
    """
    header, empty_line, body = message.partition(b"\r\n\r\n")
    if not empty_line:
        raise TrippedWire("there is no body")
    fields = shown_fields(header + b"\r\n")
    for name, expected in ((b"subject", [b"[...]"]), (b"content-transfer-encoding", [b"base64"])):
        if fields.get(name) != expected:
            raise TrippedWire(f"{name.decode()} is not {expected[0].decode()!r}")
    types = fields.get(b"content-type", [])
    if len(types) != 1 or not _SEALED_TYPE.fullmatch(types[0]):
        raise TrippedWire("the content type is not that of a sealed message")
    last = protection.rpartition("+")[2]
    _check_body(body, _FORMS.get(last, _KEM_FORM))


def shown_fields(header: bytes) -> dict[bytes, list[bytes]]:
    """Unfolded values by field name in lower case.

    Raises TrippedWire where a line is neither a field that may be visible nor the continuation of one.
    """
    found: dict[bytes, list[list[bytes]]] = {}
    pieces: list[bytes] | None = None
    position = 0
    while position < len(header):
        line = _LINE.match(header, position)
        if line is None or (line[1] is None and pieces is None):
            raise TrippedWire("the header has a line that is no field")
        position = line.end()
        if line[1] is None and pieces is not None:
            pieces.append(line[0].strip(_BLANKS))
        else:
            pieces = [line[0].partition(b":")[2].strip(_BLANKS)]
            found.setdefault(line[1].lower(), []).append(pieces)
    if strangers := sorted(set(found) - MAY_SHOW):
        raise TrippedWire(f"header field {strangers[0].decode()!r} would be visible outside")
    return {name: [b" ".join(each) for each in values] for name, values in found.items()}


def _check_body(body: bytes, form: _Form) -> None:
    """The body is base64, all of it, of one DER element: AuthEnvelopedData of this form (RFC 5083, 2.1)."""
    try:
        der = pybase64.b64decode(body.translate(None, b"\r\n"), validate=True)
    except (ValueError, binascii.Error) as error:
        raise TrippedWire("the body is not base64 alone") from error
    (content_info,) = _inside(memoryview(der), 0x30)
    content_type, content = _inside(content_info, 0x06, 0xA0)
    (enveloped,) = _inside(content, 0x30)
    if content_type != _AUTH_ENVELOPED_DATA:
        raise TrippedWire("the body is not authenticated enveloped data")
    version, recipients, encrypted, tag = _inside(enveloped, 0x02, 0x31, 0x30, 0x04)
    inner_type, algorithm, ciphertext = _inside(encrypted, 0x06, 0x30, 0x80)
    if bytes(version) != b"\0" or inner_type != _DATA or not ciphertext or len(tag) != 16:
        raise TrippedWire("version, content or tag are not those of a sealed message")
    found = list(_elements(recipients, _MAX_RECIPIENTS))
    if not found or not _has_form(form, found, algorithm):
        raise TrippedWire("it is not sealed at the level that policy wants")
    if _READABLE in der:
        raise TrippedWire("the sealed content can be read")


def _has_form(form: _Form, recipients: list[tuple[int, memoryview]], algorithm: memoryview) -> bool:
    tag, beginning, content = form
    alike = all(each == tag and inside[: len(beginning)] == beginning for each, inside in recipients)
    return alike and algorithm[: len(content)] == content


def _inside(octets: memoryview, *tags: int) -> list[memoryview]:
    """The contents of the elements that `octets` consist of, whose tags must be these."""
    found = list(_elements(octets, len(tags)))
    if [tag for tag, _ in found] != [*tags]:
        raise TrippedWire("the body is not CMS as sealed messages have it")
    return [inside for _, inside in found]


def _elements(octets: memoryview, most: int) -> Iterator[tuple[int, memoryview]]:
    """Tag and contents of each of at most so many elements, their lengths in the shortest form (X.690, 10.1)."""
    position = 0
    while position < len(octets):
        start = position + 2
        length = octets[position + 1] if start <= len(octets) else 0x80
        if length >= 0x80:
            start += length & 0x7F
            length = int.from_bytes(octets[position + 2 : start])
        shortest = 2 if length < 0x80 else 2 + (length.bit_length() + 7) // 8
        most -= 1
        if most < 0 or start - position != shortest or start + length > len(octets):
            raise TrippedWire("the body is longer or shorter than its CMS")
        yield octets[position], octets[start : start + length]
        position = start + length
