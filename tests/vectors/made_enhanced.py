"""The test vectors of quantum enhancement: pqc or rsa inside one more layer of aes.
Standard: relay/FORMAT.md, "Quantum enhancement".
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from relay import cms
from relay.cms import SignatureScheme
from tests.vectors import parts
from tests.vectors.case import Case
from tests.vectors.made_aes import KEYS
from tests.vectors.parts import ORIGINAL, PAYLOAD, entity, flipped, gcm, kek, people, signed
from tests.vectors.people import Person


def enhanced_cases() -> Iterator[Case]:
    """What opens, and what does not, for both levels inside."""
    alice, bob, eve = people()
    for inner, scheme in (("pqc", SignatureScheme.ML_DSA_87), ("rsa", SignatureScheme.RSA_PSS)):
        level = f"{inner}+aes"
        content = entity("signed-data", cms.encode_signed(signed(PAYLOAD, alice, scheme)))
        right = _inner(inner, bob, content)
        whole = _outer(right)
        yield Case(f"{level}-plain", "success", level, "as we seal", whole, KEYS, original=ORIGINAL)
        two = gcm(entity("authEnveloped-data", _outer(right)), kek())
        yield Case(
            f"{level}-two-layers",
            "success",
            f"{level}+aes",
            "two layers of aes around it",
            two,
            KEYS,
            original=ORIGINAL,
        )
        yield Case(f"{level}-no-key", "no key", level, "Bob's KME does not have the key", whole)
        used = Case(f"{level}-used", "key already used", level, "the quantum key was destroyed", whole)
        yield replace(used, destroyed=("key-1",))
        other = {"key-1": parts.octets("another")}
        yield Case(f"{level}-other-octets", "wrong key", level, "the KMEs disagree about the key", whole, other)
        forged = replace(signed(PAYLOAD, alice, scheme), content=PAYLOAD + b"Eve\r\n")
        forgery = _inner(inner, bob, entity("signed-data", cms.encode_signed(forged)))
        for name, expect, comment, der in (
            ("flipped-tag", "bad tag", "one bit of the outer tag", flipped(whole)),
            ("flipped-inner-tag", "bad tag", "one bit of the inner tag", _outer(flipped(right))),
            ("inner-for-eve", "no key", "the inner layer is for Eve", _outer(_inner(inner, eve, content))),
            ("forged", "bad signature", "another content under Alice's signature", _outer(forgery)),
            ("truncated-inside", "bad structure", "the inner layer without its last octet", _outer(right[:-1])),
            ("signed-only", "bad structure", "signed inside, but not encrypted a second time", gcm(content, kek())),
            ("wrong-way-round", "bad structure", "the layer of aes inside the signature",
             _inner(inner, bob, entity("authEnveloped-data", gcm(PAYLOAD, kek())))),
        ):  # fmt: skip
            yield Case(f"{level}-{name}", expect, level, comment, der, KEYS)


def _inner(level: str, to: Person, content: bytes) -> bytes:
    return gcm(content, (parts.kem if level == "pqc" else parts.ktri)(to))


def _outer(der: bytes) -> bytes:
    return gcm(entity("authEnveloped-data", der), kek())
