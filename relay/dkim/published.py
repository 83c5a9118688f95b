"""Compares a key with what the DNS has for it, as an administrator wants to know it.
Standard: RFC 6376 3.6; the same look at the record as when a signature is verified.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from relay.dkim.checking import NotPassed, public_key
from relay.dkim.keys import ADVISED_RSA_BITS, SigningKey, public_octets
from relay.dkim.records import Answers, KeyRecords


async def published(keys: Iterable[SigningKey], records: KeyRecords) -> list[tuple[SigningKey, list[str]]]:
    """Each key, and what is wrong with it or with its record."""
    keys = list(keys)
    answers = await records.of([key.name for key in keys])
    return [(key, list(_problems(key, answers))) for key in keys]


def _problems(key: SigningKey, answers: Answers) -> Iterator[str]:
    if key.algorithm == "rsa" and key.bits < ADVISED_RSA_BITS:
        yield f"{key.name}: an RSA key of {key.bits} bits is weak; make one of {ADVISED_RSA_BITS} under a new selector"
    tags = {
        b"a": f"{key.algorithm}-sha256".encode(),
        b"d": key.domain.encode(),
        b"s": key.selector.encode(),
    }
    texts = answers[key.name]
    if texts is not None and len(texts) > 1:
        yield f"{key.name}: the DNS has {len(texts)} TXT records there; leave one"
    advice = "`qumail-relay identity dkim show` prints the record that must be there"
    try:
        found = public_key(tags, answers)
    except NotPassed as failed:
        yield f"{key.name}: {failed.reason}" + ("" if texts is None else f"; {advice}")
        return
    if public_octets(found) != key.public:
        yield f"{key.name}: the DNS has another key; {advice}"
