"""Address fields as other programs read them: Python's email in three ways, and a real Dovecot's ENVELOPE.
Standard: RFC 5322 3.4; RFC 3501 7.4.2 (ENVELOPE); an address is a local part without quotes and a domain in lower case.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from contextlib import suppress
from email import policy
from email.errors import MessageError
from email.header import decode_header, make_header
from email.headerregistry import AddressHeader
from email.utils import getaddresses
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tests.testlib.dovecot import Dovecot

Seen = set[tuple[str, str]]

_PLAIN_ADDRESS = re.compile(r"[^\s()<>\[\]:;@\\,\"]+@[^\s()<>\[\]:;@\\,\"]+")
_QUOTED_VALUE = re.compile(rb'"((?:[^"\\]|\\.)*)"', re.DOTALL)
_LITERAL_VALUE = re.compile(rb"\{(\d+)\}\r\n")


def seen_by_python(field: bytes) -> Seen:
    """The addresses that Python's old and new parser find, and the old one after decoding, as many programs do.

    Decoded quotes garble what stands around them, so then only what looks like an address counts.
    """
    text = field.replace(b"\r\n", b"").decode("utf-8", "replace")
    found = _getaddresses(text)
    decoded: Seen = set()
    with suppress(ValueError, LookupError, MessageError):
        first = _getaddresses(str(make_header(decode_header(text))))
        decoded = {_parts(address) for address in first if _PLAIN_ADDRESS.fullmatch(address)}
    with suppress(Exception):  # it raises many kinds
        header = policy.SMTPUTF8.header_factory("From", text.strip())
        assert isinstance(header, AddressHeader)
        found += [address.addr_spec for address in header.addresses]
    return {_parts(address) for address in found if "@" in address[1:] and not address.endswith("@")} | decoded


def _getaddresses(text: str) -> list[str]:
    with suppress(RecursionError):  # comments within comments
        return [address for _, address in getaddresses([text])]
    return []


def _parts(address: str) -> tuple[str, str]:
    local, _, domain = address.rpartition("@")
    if quoted := re.fullmatch(r'"(.*)"', local, re.DOTALL):
        local = re.sub(r"\\(.)", r"\1", quoted[1])
    return local, domain.lower()


def seen_by_dovecot(server: Dovecot, fields: Sequence[bytes]) -> list[Seen]:
    """What an IMAP client hears of the From field of as many messages, none of which lie in the mailbox yet."""
    server.put([b"From: " + field + b"\r\nSubject: here\r\n\r\n" for field in fields])
    with server.client() as client:
        parts = client.fetch("1:*", "(ENVELOPE)")[1]
    whole = b"".join(
        part[0] + b"\r\n" + part[1] if isinstance(part, tuple) else (part or b"") + b"\n" for part in parts
    )
    rows = re.split(rb"(?m)^\d+ \(ENVELOPE ", whole)[1:]
    assert len(rows) == len(fields)
    return [_from_of(row) for row in rows]


def _from_of(row: bytes) -> Seen:
    """The third value of an ENVELOPE: NIL, or a list of (name, route, mailbox, host); groups and gaps have less."""
    envelope, _ = _value(row, 0)
    assert isinstance(envelope, list)
    seen: Seen = set()
    for _, _, mailbox, host in envelope[2] or []:
        if mailbox and host and host != b"MISSING_DOMAIN" and mailbox != b"MISSING_MAILBOX":
            seen.add((mailbox.decode("utf-8", "replace"), host.decode("utf-8", "replace").lower()))
    return seen


def _value(row: bytes, place: int) -> tuple[Any, int]:
    """A list, a string or None (NIL), and where it ends."""
    if row[place : place + 1] == b"(":
        found: list[Any] = []
        place += 1
        while row[place : place + 1] != b")":
            value, place = _value(row, place)
            found.append(value)
            place += row[place : place + 1] == b" "
        return found, place + 1
    if quoted := _QUOTED_VALUE.match(row, place):
        return re.sub(rb"\\(.)", rb"\1", quoted[1], flags=re.DOTALL), quoted.end()
    if literal := _LITERAL_VALUE.match(row, place):
        end = literal.end() + int(literal[1])
        return row[literal.end() : end], end
    assert row[place : place + 3] == b"NIL", row[place:]
    return None, place + 3
