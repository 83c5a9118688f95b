"""Fuzz target for DKIM signatures, ARC chains and Authentication-Results of arriving mail, with keys that the DNS has.
Standard: RFC 6376 6.1, RFC 8617 5.2, RFC 8601; every mail has results, in their words, and keeps its body.
"""

from __future__ import annotations

import asyncio
from collections.abc import Collection
from functools import cache

from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.asymmetric.rsa import RSAPrivateKey
from dkim import arc_sign

from relay.dkim import KeyRecords, Signer, SigningKey, Verifier
from relay.dkim.records import Answers
from relay.dkim.results import results_field, without_forged
from relay.errors import Refuse
from relay.formats import mime
from tests.system.fuzz.target import Target, check
from tests.testlib import hostile, mails
from tests.vectors.people import KEYS

OURS = "relay.bob.example"
RSA = KEYS / "test-only-alice-rsa-signing.key.pem"
RESULTS = {"none", "pass", "fail", "policy", "neutral", "temperror", "permerror"}

WORDS = (
    b"DKIM-Signature: ", b"ARC-Seal: ", b"ARC-Message-Signature: ", b"ARC-Authentication-Results: ", b"Authentication-Results: ",
    b"v=1;", b"a=rsa-sha256;", b"a=ed25519-sha256;", b"a=rsa-sha1;", b"c=simple/simple;", b"c=relaxed;", b"c=/;", b"d=alice.example;",
    b"s=r;", b"s=e;", b"h=from:from:to;", b"h=:::;", b"i=1;", b"i=2;", b"i=50;", b"i=99999;", b"i=@alice.example;", b"cv=none;", b"cv=pass;",
    b"cv=fail;", b"l=0;", b"l=99999999;", b"l=;", b"t=0;", b"x=1;", b"x=99999999999999999999;", b"bh=;", b"b=;", b"bh=AAAA;", b"b=AAAA;",
    b"relay.bob.example;", b'"relay.bob.example"', b"(", b")", b'"', b"\\", b";", b"=", b"\r\n ", b"\r\n\t", b"\r\n", b"\xff", b"\0",
    b"From: eve@eve.example\r\n",
)  # fmt: skip


class _Known(KeyRecords):
    """Has the keys of the seeds, and trouble with one name."""

    def __init__(self) -> None:
        super().__init__(timeout=1)

    async def of(self, names: Collection[str]) -> Answers:
        known = {key.name: [key.record.encode()] for key in _keys()}
        return {name: None if name.startswith("trouble.") else known.get(name, []) for name in names}


@cache
def _keys() -> tuple[SigningKey, SigningKey]:
    """The same in every run, as the seeds must be."""
    rsa = serialization.load_pem_private_key(RSA.read_bytes(), None)
    assert isinstance(rsa, RSAPrivateKey)
    ed25519 = Ed25519PrivateKey.from_private_bytes(bytes(range(32)))
    return SigningKey("alice.example", "r", rsa), SigningKey("alice.example", "e", ed25519)


@cache
def _verifier() -> Verifier:
    return Verifier(_Known())


def seeds() -> list[bytes]:
    """Signed messages, with and without a chain."""
    return list(_seeds())


@cache
def _seeds() -> tuple[bytes, ...]:
    rsa, ed25519 = _keys()
    clock = 1_790_000_000.0
    once = Signer([rsa, ed25519], clock=lambda: clock).fields(mails.plain()) + mails.plain()
    chained = f"Authentication-Results: {OURS}; spf=pass\r\n".encode() + mails.eight_bit()
    chain = arc_sign(chained, b"r", b"alice.example", RSA.read_bytes(), OURS.encode(), timestamp=int(clock))
    chained = b"".join(chain) + chained
    return once, chained, mails.plain()


def target(data: bytes) -> None:
    """A message as it arrives."""
    try:
        mime.check_carriable(data, max_hops=50)
        behind = data[len(mime.searched_header(data)) :]
    except Refuse:
        return
    results = asyncio.run(_verifier().both(data))
    check(results, "no result")
    check({each.result for each in results} <= RESULTS, "a result that RFC 8601 does not know")
    field = results_field(OURS, results)
    check(len(list(mime.fields(field))) == 1, "strangers have ended our field")
    check(field.isascii(), "strangers have written into our field")
    cleaned = without_forged(data, OURS)
    check(cleaned[len(mime.searched_header(cleaned)) :] == behind, "the body was changed")
    check(without_forged(cleaned, OURS) == cleaned, "a forged field was uncovered")
    marked = b"X-QuMail-Protection: none\r\n" + cleaned  # as it is handed on: the message may begin with a folded line
    check(without_forged(field + marked, OURS) == marked, "a field of ours was not found")


DKIM = Target("dkim", target, seeds, WORDS, hostile.MAKERS)
