"""The last look at a message before it leaves: what policy wanted sealed must be sealed, whatever went before.
Standard: RFC 8551 3.2 and RFC 5083, read here from the bytes alone; no code is shared with what seals.
"""

from __future__ import annotations

import binascii
import re

import pybase64

from relay.errors import TrippedWire

MAY_SHOW = frozenset(
    b"received from to cc date message-id auto-submitted subject mime-version content-type "
    b"content-transfer-encoding content-disposition dkim-signature".split()
)
"""The only header fields that a sealed message may have."""

_LINE = re.compile(rb"(?:([A-Za-z0-9-]+):|[ \t])[^\r\n]*\r\n")
_SEALED_TYPE = re.compile(rb"application/pkcs7-mime;\s*smime-type=authEnveloped-data;\s*name=\"smime\.p7m\"\s*")
_AUTH_ENVELOPED_DATA = bytes.fromhex("060b2a864886f70d0109100117")


def check_sealed(message: bytes) -> None:
    """Raises TrippedWire, which holds the mail, unless `message` is a sealed message and nothing else."""
    header, empty_line, body = message.partition(b"\r\n\r\n")
    if not empty_line:
        raise TrippedWire("there is no body")
    fields = _fields(header + b"\r\n")
    if strangers := sorted(set(fields) - MAY_SHOW):
        raise TrippedWire(f"header field {strangers[0].decode()!r} would be visible outside")
    for name, expected in ((b"subject", [b"[...]"]), (b"content-transfer-encoding", [b"base64"])):
        if fields.get(name) != expected:
            raise TrippedWire(f"{name.decode()} is not {expected[0].decode()!r}")
    types = fields.get(b"content-type", [])
    if len(types) != 1 or not _SEALED_TYPE.fullmatch(types[0]):
        raise TrippedWire("the content type is not that of a sealed message")
    _check_body(body)


def _fields(header: bytes) -> dict[bytes, list[bytes]]:
    """Unfolded values by field name in lower case; every line must be a field or its continuation."""
    found: dict[bytes, list[bytes]] = {}
    values: list[bytes] | None = None
    position = 0
    while position < len(header):
        line = _LINE.match(header, position)
        if line is None or (line[1] is None and values is None):
            raise TrippedWire("the header has a line that is no field")
        position = line.end()
        if line[1] is None and values is not None:
            values[-1] += b" " + line[0].strip()
        else:
            values = found.setdefault(line[1].lower(), [])
            values.append(line[0].partition(b":")[2].strip())
    return found


def _check_body(body: bytes) -> None:
    """The body is base64, all of it, of one DER element that begins as AuthEnvelopedData does."""
    try:
        der = pybase64.b64decode(body.translate(None, b"\r\n"), validate=True)
    except (ValueError, binascii.Error) as error:
        raise TrippedWire("the body is not base64 alone") from error
    if der[:1] != b"\x30" or len(der) < 32:
        raise TrippedWire("the body is not CMS")
    octets = der[1] & 0x7F if der[1] & 0x80 else 0
    length = int.from_bytes(der[2 : 2 + octets]) if octets else der[1]
    start = 2 + octets
    if start + length != len(der):
        raise TrippedWire("the body is longer or shorter than its CMS")
    if der[start : start + len(_AUTH_ENVELOPED_DATA)] != _AUTH_ENVELOPED_DATA:
        raise TrippedWire("the body is not authenticated enveloped data")
