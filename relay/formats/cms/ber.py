"""Converts the BER of other software's CMS messages into DER, in one pass and within fixed limits.
Standard: X.690 (8.1.3 lengths, 8.7.3 constructed strings, 10.1 and 11.6 DER), RFC 5652 5.4 (what stays as signed).

It converts what occurs in practice (OpenSSL -stream, Bouncy Castle, NSS, gpgsm). That is: indefinite lengths, OCTET
STRINGs in chunks, lengths with needless octets, SETs out of order. The rest is left to the strict parser.
"""

from __future__ import annotations

from relay.errors import BadStructure
from relay.formats.cms.der import OCTET_STRING, SET, header

MAX_DEPTH = 32
"""Maximum nesting depth; the deepest part of a real message, an issuer's Name, has 11."""
MAX_ELEMENTS = 10_000
"""Maximum number of elements, not counting chunks; 100 recipients have some 2,500."""
MIN_CHUNKS = 64
OCTETS_A_CHUNK = 512
"""A message of n octets has at most MIN_CHUNKS + n / OCTETS_A_CHUNK chunks; real chunks have 1000 octets or more."""
MAX_SET_OCTETS = 1024 * 1024
"""Maximum size of a SET to be sorted, in octets: it is copied. The content is never in one."""
MAX_LENGTH_OCTETS = 8

CONSTRUCTED = 0x20
END_OF_CONTENTS = b"\x00\x00"
_OBJECT_IDENTIFIER = 0x06
_ID_SIGNED_DATA = bytes.fromhex("2a864886f70d010702")
_ENVELOPED_DATA = (bytes.fromhex("2a864886f70d0109100117"), bytes.fromhex("2a864886f70d010703"))
"""id-ct-authEnvelopedData and id-envelopedData, whose EncryptedContentInfo is the same."""

Pieces = list[bytes | memoryview]
"""An encoded element in parts, joined once at the end."""


_AS_IT_IS = "as it is"
"""Signed or authenticated data: it must already be DER, and is not changed."""
_STRING = "OCTET STRING"
"""One in chunks, whatever its tag."""
_SET, _OTHER = "SET", "other"

_TYPES: dict[tuple[str, int], str] = {
    ("", 0x30): "ContentInfo",
    ("ContentInfo", 0xA0): "content",
    # ("content", 0x30) depends on the content type.
    ("EnvelopedData", 0x30): "EncryptedContentInfo",
    ("EnvelopedData", 0xA1): _AS_IT_IS,  # authAttrs
    ("EncryptedContentInfo", 0xA0): _STRING,  # encryptedContent [0] IMPLICIT OCTET STRING
    ("SignedData", 0xA0): "CertificateSet",
    ("SignedData", 0x31): "SignerInfos",  # and digestAlgorithms, in which nothing below applies
    ("CertificateSet", 0x30): _AS_IT_IS,
    ("SignerInfos", 0x30): "SignerInfo",
    ("SignerInfo", 0xA0): _AS_IT_IS,  # signedAttrs
}
"""The type of a constructed element (RFC 5652, RFC 5083) by its parent's type and its own tag.

This alone distinguishes an EXPLICIT [0] from an IMPLICIT OCTET STRING in chunks. encapContentInfo.eContent needs no
entry: its [0] is EXPLICIT, and the OCTET STRING inside has its universal tag.
"""
_SETS = frozenset({_SET, "SignerInfos", "CertificateSet"})


def is_definite(data: bytes | memoryview) -> bool:
    """Whether the outermost length is not the indefinite form (X.690 8.1.3.6); looks at two octets only.

    Also True for data that is too short to be an element, which the strict parser then refuses.
    """
    return bytes(data[1:2]) != b"\x80"


def to_der(data: bytes | memoryview) -> bytes:
    """The one element in `data`, a CMS ContentInfo in BER, as DER; DER is returned unchanged.

    Reads each octet once; needs memory for the output, and some 300 octets a chunk. Raises BadStructure for truncated
    or trailing data, and for more depth, elements or chunks than a message has. It is also raised for signed or
    authenticated parts of indefinite length: RFC 5652 5.4 and RFC 5083 2.1 require DER.
    """
    return _Pass(memoryview(data)).run()


class _Pass:
    """One conversion: the input, and the remaining limits."""

    __slots__ = ("chunks_left", "content_type", "elements_left", "octets")

    def __init__(self, octets: memoryview) -> None:
        self.octets = octets
        self.elements_left = MAX_ELEMENTS
        self.chunks_left = MIN_CHUNKS + len(octets) // OCTETS_A_CHUNK
        self.content_type: bytes | memoryview = b""

    def run(self) -> bytes:
        pieces, _, end = self.element(0, len(self.octets), "", 1)
        if end != len(self.octets):
            raise BadStructure("octets follow the message")
        return b"".join(pieces)

    def element(self, start: int, limit: int, parent: str, depth: int) -> tuple[Pieces, int, int]:
        """The element at `start`, which must end at or before `limit`: its DER, the DER's length, its end."""
        self.elements_left -= 1
        if self.elements_left < 0:
            raise BadStructure(f"more than {MAX_ELEMENTS} elements")
        if depth > MAX_DEPTH:
            raise BadStructure(f"elements are nested more than {MAX_DEPTH} deep")
        tag, body, end = self.head(start, limit)
        kind = self.type(parent, tag) if tag & CONSTRUCTED else _AS_IT_IS
        if kind == _AS_IT_IS:
            if end is None:
                raise BadStructure("indefinite length of something primitive or signed")
            if parent == "ContentInfo" and tag == _OBJECT_IDENTIFIER:
                self.content_type = self.octets[body:end]
            return self.finished(tag, [self.octets[body:end]], end - body, end)
        if kind == _STRING:
            chunks: Pieces = []
            position = self.gather(chunks, body, end, limit, depth)
            return self.finished(tag & ~CONSTRUCTED, chunks, sum(map(len, chunks)), position)
        return self.constructed(tag, body, end, limit, kind, depth)

    def type(self, parent: str, tag: int) -> str:
        """The type of a constructed element."""
        if tag < 0x40 and tag not in (0x30, 0x31):
            if tag == OCTET_STRING | CONSTRUCTED:
                return _STRING
            raise BadStructure(f"universal tag {tag:#04x} in constructed form")
        if parent == "content" and tag == 0x30:
            if self.content_type in _ENVELOPED_DATA:
                return "EnvelopedData"
            return "SignedData" if self.content_type == _ID_SIGNED_DATA else _OTHER
        return _TYPES.get((parent, tag), _SET if tag == SET else _OTHER)

    def constructed(
        self, tag: int, body: int, end: int | None, limit: int, kind: str, depth: int
    ) -> tuple[Pieces, int, int]:
        """An element whose contents are elements."""
        children: list[Pieces] = []
        size = 0
        position = body
        within = limit if end is None else end
        while not self.ends(position, end):
            child, child_size, position = self.element(position, within, kind, depth + 1)
            children.append(child)
            size += child_size
        if kind in _SETS and len(children) > 1:
            if size > MAX_SET_OCTETS:
                raise BadStructure(f"a SET of more than {MAX_SET_OCTETS} octets")
            pieces: Pieces = [*sorted(b"".join(child) for child in children)]
        else:
            pieces = [piece for child in children for piece in child]
        return self.finished(tag, pieces, size, position if end is not None else position + 2)

    def gather(self, chunks: Pieces, body: int, end: int | None, limit: int, depth: int) -> int:
        """Appends the chunks of an OCTET STRING between `body` and `end`; returns its end (X.690 8.7.3, 10.2).

        A chunk may itself be in chunks: Bouncy Castle puts a constructed string inside the implicit [0].
        """
        if depth > MAX_DEPTH:
            raise BadStructure(f"elements are nested more than {MAX_DEPTH} deep")
        position = body
        within = limit if end is None else end
        while not self.ends(position, end):
            self.chunks_left -= 1
            if self.chunks_left < 0:
                raise BadStructure("too many chunks for a message of this size")
            tag, chunk, chunk_end = self.head(position, within)
            if tag == OCTET_STRING | CONSTRUCTED:
                position = self.gather(chunks, chunk, chunk_end, within, depth + 1)
            elif tag == OCTET_STRING and chunk_end is not None:
                chunks.append(self.octets[chunk:chunk_end])
                position = chunk_end
            else:
                raise BadStructure("a chunk of an OCTET STRING is not an OCTET STRING")
        return position if end is not None else position + 2

    def head(self, start: int, limit: int) -> tuple[int, int, int | None]:
        """Identifier octet, start of the contents and their end, None for an indefinite length (X.690 8.1.2, 8.1.3)."""
        body = start + 2
        if body > limit:
            raise BadStructure("an element is cut short")
        tag, length = self.octets[start], self.octets[start + 1]
        if tag == 0 or tag & 0x1F == 0x1F:
            raise BadStructure("end-of-contents out of place" if tag == 0 else "a tag number above 30")
        if length == 0x80:
            return tag, body, None
        if length > 0x80:
            number = length & 0x7F
            if number > MAX_LENGTH_OCTETS:
                raise BadStructure(f"a length field of {number} octets")
            body += number
            if body > limit:
                raise BadStructure("an element is cut short")
            length = int.from_bytes(self.octets[start + 2 : body])
        if length > limit - body:
            raise BadStructure(f"an element of {length} octets where {limit - body} are left")
        return tag, body, body + length

    def ends(self, position: int, end: int | None) -> bool:
        """Whether a constructed element's contents end at `position`."""
        return position == end if end is not None else self.octets[position : position + 2] == END_OF_CONTENTS

    @staticmethod
    def finished(tag: int, contents: Pieces, size: int, end: int) -> tuple[Pieces, int, int]:
        """The result of element() for these contents of `size` octets."""
        head = header(tag, size)
        return [head, *contents], len(head) + size, end
