"""Fuzz target for address fields: no reader finds an address that we do not; a user may write only their own as From.
Standard: RFC 5322 3.4 and 3.6.2, RFC 6409 6.1; what is in doubt is no list of addresses.
"""

from __future__ import annotations

from contextlib import suppress

from relay.entry.smtp.senders import parse_rights
from relay.errors import Refuse
from relay.formats import mime
from relay.formats.addresses import read_addresses
from relay.formats.doubt import InDoubt
from tests.system.fuzz.target import Target, check
from tests.testlib import hostile
from tests.testlib.readers import seen_by_python

OWN = ("ann", "alice.example")
RIGHTS = parse_rights(["@".join(OWN)])
COMPARED_OCTETS = 1024
"""Python's reader takes the square of the length."""

WORDS = (
    b"ann@alice.example", b"ceo@alice.example", b"<ann@alice.example>", b"<ceo@alice.example>", b"Ann ", b'"Ann" ', b'"ceo@alice.example"',
    b"(ceo@alice.example)", b",", b";", b":", b"group: ", b"<", b">", b"<>", b"@", b'"', b"\\", b"(", b")", b"[", b"]", b"\0", b" ", b"\t",
    b"\r\n ", b"\r\n\t", b"=?utf-8?q?ceo=40alice.example?=", b"=?utf-8?b?Y2VvQGFsaWNlLmV4YW1wbGU=?=", b"=?utf-8?q?=3Cceo=40alice.example=3E?= ",
    b"=?utf-8?q?", b"=?utf-<?q?", b"?=", b"=?",
    b"\xef\xbc\xa0", b"\xc2\xa0", b"\xe2\x80\xae", b"\xff", b"@evil.example:", b"<@a,@b:ann@alice.example>", b".", b"ANN@ALICE.EXAMPLE", b"%",
    b"From: ceo@alice.example\r\n", b"\r\nFrom: ceo@alice.example", b"Sender: x@y\r\n", b"\r\n\r\n",
)  # fmt: skip


def seeds() -> list[bytes]:
    """Fields of several forms, without their name."""
    return [
        b"ann@alice.example", b"Ann Other <ann@alice.example>", b'"Other, Ann" <ann@alice.example> (home)',
        b"=?utf-8?q?=C3=84nn?= <ann@alice.example>", b"ann@alice.example, ceo@alice.example", b"us: ann@alice.example;",
    ]  # fmt: skip


def target(data: bytes) -> None:
    """The field as the first one of a message: its addresses, and whether the user may write it."""
    with suppress(Refuse):
        mime.check_carriable(data, max_hops=20)  # as the recipe does, before or after
        message = b"From: " + data + b"\r\n\r\n"
        _, field = mime.fields(mime.header_of(message))[0]
        value = field.partition(b":")[2]
        seen = seen_by_python(value) if len(value) <= COMPARED_OCTETS else set()
        with suppress(InDoubt):
            found = {(local, domain.lower()) for local, domain in read_addresses(value)}
            check(not seen - found, f"another reader sees {seen - found}")
        RIGHTS.check_from(message)
        check(not seen - {OWN}, f"the user may write what another reader sees as {seen}")


SENDERS = Target("senders", target, seeds, WORDS, hostile.MAKERS)
