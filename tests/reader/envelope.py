"""The payload: the sealed envelope in its header, and the original behind it, octet for octet.

Standard: relay/FORMAT.md, 1 and 7.
"""

import base64
import re
from dataclasses import dataclass
from datetime import UTC, datetime

from pyasn1.type import char, namedtype, univ, useful

from tests.reader import der, limits
from tests.reader.der import BadEncodingError
from tests.reader.mailboxes import is_address
from tests.reader.structures import name_of

BEGIN = b"Content-Type: message/rfc822\r\nQuMail-Sealed-Envelope:\r\n"
LINE = 72


SEALED_ENVELOPE = univ.Sequence(
    componentType=namedtype.NamedTypes(
        namedtype.NamedType("version", univ.Integer()),
        namedtype.NamedType("id", univ.OctetString()),
        namedtype.NamedType("masterSAE", char.UTF8String()),
        namedtype.NamedType("slaveSAE", char.UTF8String()),
        namedtype.NamedType("layers", char.UTF8String()),
        namedtype.NamedType("sealedAt", useful.GeneralizedTime()),
        namedtype.NamedType("sender", char.UTF8String()),
        namedtype.NamedType("recipients", univ.SequenceOf(componentType=char.UTF8String())),
    )
)


@dataclass(frozen=True)
class Envelope:
    """What the sender's relay knew."""

    id: bytes
    master: str
    slave: str
    layers: str
    sealed_at: datetime
    sender: str
    recipients: tuple[str, ...]


def split(payload: bytes) -> tuple[bytes, bytes]:
    """The DER of the sealed envelope and the original. Raises BadEncodingError at any header but the one."""
    header, empty, original = payload.partition(b"\r\n\r\n")
    if not header.startswith(BEGIN) or not empty:
        raise BadEncodingError("the header of the payload")
    lines = header[len(BEGIN) :].split(b"\r\n")
    try:
        octets = base64.b64decode(b"".join(line[1:] for line in lines), validate=True)
    except ValueError as error:
        raise BadEncodingError("the base64 of the sealed envelope") from error
    if BEGIN + folded(octets) != header + b"\r\n":
        raise BadEncodingError("the folding of the sealed envelope")
    return octets, original


def folded(octets: bytes) -> bytes:
    """The one way to write a sealed envelope behind its name."""
    text = base64.b64encode(octets)
    return b"".join(b" " + text[at : at + LINE] + b"\r\n" for at in range(0, len(text), LINE))


def read(octets: bytes) -> Envelope:
    """The sealed envelope, strictly. Raises BadEncodingError."""
    if len(octets) > limits.ENVELOPE:
        raise BadEncodingError("too long a sealed envelope")
    value = der.decode(octets, SEALED_ENVELOPE)
    if int(value["version"]) != 1 or len(value["id"]) != 16:
        raise BadEncodingError("another version, or the length of the id")
    recipients = tuple(str(recipient) for recipient in value["recipients"])
    if not 1 <= len(recipients) <= limits.ENVELOPE_RECIPIENTS:
        raise BadEncodingError("the number of recipients")
    if not all(1 <= len(recipient) <= limits.ADDRESS for recipient in recipients):
        raise BadEncodingError("the length of a recipient")
    if len(set(recipients)) != len(recipients):
        raise BadEncodingError("a recipient twice")
    sender = str(value["sender"])
    if len(sender) > limits.ADDRESS:
        raise BadEncodingError("the length of the sender")
    if (sender and not ("@" in sender and is_address(sender))) or not all(map(is_address, recipients)):
        raise BadEncodingError("an address that is none")
    names = [name_of(value[field]) for field in ("masterSAE", "slaveSAE", "layers")]
    return Envelope(bytes(value["id"]), names[0], names[1], names[2], _time(str(value["sealedAt"])), sender, recipients)


def _time(text: str) -> datetime:
    if not re.fullmatch(r"[0-9]{14}Z", text):
        raise BadEncodingError("the form of the time of sealing")
    try:
        return datetime.strptime(text, "%Y%m%d%H%M%SZ").replace(tzinfo=UTC)
    except ValueError as error:
        raise BadEncodingError("the time of sealing") from error


def cannot_be_carried(original: bytes) -> str:
    """Why no mail server could have sent this original, or ""."""
    if original.count(b"\r\n") != original.count(b"\n") or original.count(b"\r\n") != original.count(b"\r"):
        return "a bare CR or LF"
    if original[:1] in {b" ", b"\t"}:
        return "it begins with a blank"
    header = b"" if original.startswith(b"\r\n") else original.partition(b"\r\n\r\n")[0]
    return "a NUL in the header" if b"\0" in header else ""
