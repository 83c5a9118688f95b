"""Fuzz target for the From field of submitted mail: a user may write only his own address, whoever reads the field.
Standard: RFC 6409 6.1, RFC 5322 3.6.2; another reader must find no other author in what was allowed.
"""

from __future__ import annotations

from contextlib import suppress
from email.utils import getaddresses

from relay import mime
from relay.entry.senders import parse_rights
from relay.errors import Refuse
from tests.fuzz.target import Target, check

OWN = "ann@alice.example"
RIGHTS = parse_rights([OWN])

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
    """The field as the first one of a message."""
    with suppress(Refuse):
        mime.check_carriable(data, max_hops=20)  # as the recipe does, before or after
        message = b"From: " + data + b"\r\n\r\n"
        RIGHTS.check_from(message)
        _, field = next(mime.fields(mime.header_of(message)))
        value = field.partition(b":")[2].replace(b"\r\n", b"").decode("utf-8", "replace")
        found = {"".join(address.split()) for _, address in getaddresses([value]) if "@" in address}
        others = {each for each in found if not each.startswith("@") and each.lower() != OWN}
        check(not others, f"another reader sees {others}")


SENDERS = Target("senders", target, seeds, WORDS)
