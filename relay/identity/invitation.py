"""The invitation: a peer document as one block of text, to be sent by mail and pasted into a terminal.
Standard: our own armour of base64 (RFC 4648) around zlib (RFC 1950) around the document, with a readable summary in
front.

    -----BEGIN QUMAIL INVITATION-----
    Site: alice                      a readable summary: name, domains, SAE, KME groups, levels
    Words: topmost Istanbul ...      its fingerprint in words, four a line
                                     an empty line, then base64 in lines of 64
    -----END QUMAIL INVITATION-----

Nothing in it is secret or proves its origin: an attacker who can change it can write another one. Therefore the words
are compared over a telephone. Accidental changes and truncation are detected here.
"""

from __future__ import annotations

import base64
import binascii
import textwrap
import zlib

from relay.errors import ConfigError
from relay.identity.document import MAX_DOCUMENT, PeerCertificates, read_document
from relay.identity.words import lines_of

BEGIN, END = "-----BEGIN QUMAIL INVITATION-----", "-----END QUMAIL INVITATION-----"
MAX_INVITATION = 2 * MAX_DOCUMENT
"""Maximum length of an invitation, in characters: base64 makes 4/3 of a document that zlib cannot compress."""
_LINE = 64
_SEND_ANEW = "have the other site send it again, as a file if need be"


class BadInvitation(ConfigError):
    """Not a complete invitation; the text quotes nothing of it."""


def write_invitation(document: bytes) -> str:
    """The invitation for a peer document. Raises BadDocument for anything else."""
    armour = base64.b64encode(zlib.compress(document, 9)).decode()
    return "\n".join((BEGIN, *_header(read_document(document)), "", *textwrap.wrap(armour, _LINE), END, ""))


def read_invitation(text: str) -> bytes:
    """The peer document in an invitation; ignores text around the block.

    The document is complete, and its summary matches. Raises BadInvitation and BadDocument.
    """
    if len(text) > MAX_INVITATION:
        raise BadInvitation(f"an invitation has at most {MAX_INVITATION} characters")
    lines = list(map(unquoted, text.splitlines()))
    if lines.count(BEGIN) != 1:
        raise BadInvitation(f"not one invitation: it begins with a line {BEGIN}")
    lines = lines[lines.index(BEGIN) + 1 :]
    if END not in lines:
        raise BadInvitation(f"the invitation is cut off: it ends with a line {END}; {_SEND_ANEW}")
    lines = lines[: lines.index(END)]
    if "" not in lines:
        raise BadInvitation(f"the invitation has no empty line in front of its base64; {_SEND_ANEW}")
    header, armour = lines[: lines.index("")], lines[lines.index("") + 1 :]
    document = _unpacked("".join(armour))
    # A person trusts the summary, which is not signed.
    if header != _header(read_document(document)):
        raise BadInvitation(f"the invitation was changed: its lines say something else than its document; {_SEND_ANEW}")
    return document


def unquoted(line: str) -> str:
    """The line without blanks around it, and without the ">" that mail programs put in front of what they quote."""
    return line.lstrip("> \t").rstrip()


def is_invitation(raw: bytes) -> bool:
    """Whether this is an invitation rather than a peer document."""
    return BEGIN.encode() in raw


def _header(peer: PeerCertificates) -> list[str]:
    lines = [
        f"Site: {peer.name}",
        *(f"Domain: {domain}" for domain in peer.domains),
        f"SAE: {peer.sae_id}",
        *(f"KME group: {group}" for group in peer.kme_groups),
        f"Levels: {', '.join(peer.levels) or 'none, it cannot receive'}",
        *(f"Words: {line}" for line in lines_of(peer.fingerprint)),
    ]
    return [line.strip() for line in lines]


def _unpacked(armour: str) -> bytes:
    """The document in the base64; a decompression bomb is refused, not unpacked."""
    unpacking = zlib.decompressobj()
    try:
        document = unpacking.decompress(base64.b64decode(armour, validate=True), MAX_DOCUMENT + 1)
    except (binascii.Error, ValueError, zlib.error) as error:
        raise BadInvitation(
            f"the invitation was changed or cut: what it carries cannot be read; {_SEND_ANEW}"
        ) from error
    if not unpacking.eof or unpacking.unused_data:
        raise BadInvitation(f"the invitation was changed or cut: what it carries is not whole; {_SEND_ANEW}")
    return document
