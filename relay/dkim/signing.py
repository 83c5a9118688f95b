"""Signs messages for the domain of their author: the sealed outer message, as the last step before it leaves.
Standard: RFC 6376 5 (DKIM-Signature, relaxed/relaxed), 8.15 (oversigned fields), RFC 8463 (Ed25519).
"""

from __future__ import annotations

import base64
import time
from collections.abc import Callable, Iterable, Sequence

from relay.dkim.canonical import Header, body_hash, canonical
from relay.dkim.keys import SigningKey
from relay.formats import mime
from relay.formats.addresses import read_addresses
from relay.formats.mailbox import fold_domain

OVERSIGNED = (
    b"from sender reply-to to cc subject date message-id in-reply-to references auto-submitted mime-version "
    b"content-type content-transfer-encoding content-disposition x-qumail-protection"
).split()
"""Fields signed once more than they occur, so that nobody can add another one."""

MAX_ALIKE = 20
"""Maximum number of signed fields of one name, the lowest first; no real message has as many."""
LINE_OCTETS = 76

Tags = Sequence[tuple[str, str]]
Clock = Callable[[], float]


class Signer:
    """Signs with the keys of all domains; a domain with several keys gets as many signatures."""

    def __init__(self, keys: Iterable[SigningKey], clock: Clock = time.time) -> None:
        self._keys: dict[str, list[SigningKey]] = {}
        for key in keys:
            self._keys.setdefault(key.domain, []).append(key)
        self._clock = clock

    def fields(self, message: bytes) -> bytes:
        """The DKIM-Signature fields to be added on top of a message; b"" if its author's domain has no key.

        The time grows with the message: call it off the event loop.
        """
        end, begin = mime.bounds(message)
        header, body = Header(message[:end]), memoryview(message)[begin:]
        keys = self._keys.get(author_domain(header), [])
        if not keys:
            return b""
        digest = base64.b64encode(body_hash(body).digest).decode()
        names = signed_names(header)
        moment = str(int(self._clock()))
        return b"".join(
            signed_field(
                "DKIM-Signature",
                [("v", "1"), *key_tags(key, moment), *content_tags(names, digest)],
                b"".join(header.chosen(names)),
                key,
            )
            for key in keys
        )


def author_domain(header: Header) -> str:
    """The domain (A-labels) of the first author; "" without exactly one unambiguous From field."""
    fields = header.named(b"from")
    try:
        return fold_domain(read_addresses(fields[0].partition(b":")[2])[0].domain) if len(fields) == 1 else ""
    except ValueError:
        return ""


def signed_names(header: Header) -> list[bytes]:
    """The names for h=, each once more than it occurs."""
    return [name for name in OVERSIGNED for _ in range(min(len(header.named(name)), MAX_ALIKE) + 1)]


def key_tags(key: SigningKey, moment: str) -> Tags:
    """Returns the tags for signer, algorithm and time (seconds since 1970)."""
    return [("a", f"{key.algorithm}-sha256"), ("d", key.domain), ("s", key.selector), ("t", moment)]


def content_tags(names: Sequence[bytes], body_digest: str) -> Tags:
    """Returns the tags for the signed content."""
    return [("c", "relaxed/relaxed"), ("h", ":".join(name.decode() for name in names)), ("bh", body_digest)]


def signed_field(name: str, tags: Tags, data: bytes, key: SigningKey) -> bytes:
    """The complete signature field, folded; its signature covers `data` and the field itself.

    RFC 6376, 3.7.
    """
    lines = [f"{name}:"]
    for tag, value in tags:
        _add(lines, f" {tag}=", value)
    lines.append(" b=")
    unsigned = "\r\n".join(lines).encode("ascii")
    signature = base64.b64encode(key.sign(data + canonical(unsigned).removesuffix(b"\r\n"))).decode()
    pieces = [signature[start : start + LINE_OCTETS - 3] for start in range(0, len(signature), LINE_OCTETS - 3)]
    return unsigned + "\r\n ".join(pieces).encode("ascii") + b"\r\n"


def _add(lines: list[str], start: str, value: str) -> None:
    """Appends one tag; h= is folded after its colons, where folding is allowed."""
    pieces = [piece + ":" for piece in value.split(":")]
    pieces[-1] = pieces[-1][:-1] + ";"
    pieces[0] = start + pieces[0]
    for piece in pieces:
        if len(lines[-1]) + len(piece) > LINE_OCTETS:
            lines.append(piece if piece.startswith(" ") else " " + piece)
        else:
            lines[-1] += piece
