"""ARC chains of others are judged as dkimpy judges them.
Standard: RFC 8617.
"""

from __future__ import annotations

import time

import dkim
import pytest

from relay.dkim import Verifier, arc
from relay.dkim.arc import MAX_SETS, ARCChain
from relay.dkim.canonical import Header
from tests.testlib import mails
from tests.testlib.zone import Zone
from tests.unit.dkim.conftest import Keys, pem

FIRST = "mx.alice.example"


def sealed_by_dkimpy(keys: Keys, message: bytes, chain: str = "", timestamp: int | None = None) -> bytes:
    """The message under its next set, by alice.example; `chain` is what it finds of those before."""
    message = f"Authentication-Results: {FIRST}; spf=pass{chain and f'; arc={chain}'}\r\n".encode() + message
    fields = dkim.arc_sign(message, b"r", b"alice.example", pem(keys.rsa), FIRST.encode(), timestamp=timestamp)
    return b"".join(fields) + message.partition(b"\r\n")[2]


async def result(verifier: Verifier, message: bytes) -> str:
    *_, chain = await verifier.both(message)
    assert chain.method == "arc"
    return chain.result


def dkimpy_says(message: bytes, zone: Zone) -> bytes | None:
    verdict: bytes | None
    verdict, _, _ = dkim.arc_verify(message, dnsfunc=lambda name, timeout=5: zone.texts.get(name.decode().rstrip(".")))
    return verdict


@pytest.mark.parametrize("message", [mails.plain(), mails.eight_bit(), mails.random_attachment()])
async def test_a_chain_passes_and_so_does_a_longer_one(
    verifier: Verifier, keys: Keys, zone: Zone, message: bytes
) -> None:
    message = sealed_by_dkimpy(keys, message)
    for _ in range(3):
        assert dkimpy_says(message, zone) == dkim.CV_Pass
        assert await result(verifier, message) == "pass"
        message = sealed_by_dkimpy(keys, message, "pass")


@pytest.mark.parametrize(
    ("old", "new"),
    [
        (b"Quarterly", b"Yearly"),
        (b"42", b"41"),
        (b"spf=pass", b"spf=fail"),
        (b"cv=none", b"cv=pass"),
        (b"i=1; a=", b"i =1 ; a="),
        (b"ARC-Seal: i=1", b"ARC-Seal: i=2"),
        (b"ARC-Message-Signature", b"X-Gone"),
        (b"ARC-Seal", b"ARC-Seal: i=1; cv=none\r\nARC-Seal"),
    ],
)
async def test_a_broken_chain_fails_and_so_does_what_was_built_on_it(
    verifier: Verifier, keys: Keys, caplog: pytest.LogCaptureFixture, old: bytes, new: bytes
) -> None:
    sealed = sealed_by_dkimpy(keys, mails.plain())
    message = sealed.replace(old, new)
    assert message != sealed
    assert await result(verifier, message) == "fail"
    if message.count(b"ARC-Seal:") == 1:
        assert await result(verifier, sealed_by_dkimpy(keys, message, "fail")) == "fail"
    assert caplog.records == [], "what strangers write is not logged"


@pytest.mark.parametrize(("ahead", "expected"), [(600, "fail"), (100, "pass")])
async def test_a_set_from_the_future_breaks_the_chain(
    verifier: Verifier, keys: Keys, ahead: int, expected: str
) -> None:
    message = sealed_by_dkimpy(keys, mails.plain(), timestamp=int(time.time()) + ahead)
    assert await result(verifier, message) == expected


async def test_dns_trouble_is_a_temperror(verifier: Verifier, keys: Keys, zone: Zone) -> None:
    zone.failing.add(keys.rsa.name)
    assert await result(verifier, sealed_by_dkimpy(keys, mails.plain())) == "temperror"


async def test_a_longer_chain_than_there_may_be_fails_unlooked_at(
    verifier: Verifier, keys: Keys, zone: Zone, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(arc, "MAX_SETS", 3)
    message = sealed_by_dkimpy(keys, mails.plain())
    for _ in range(2):
        message = sealed_by_dkimpy(keys, message, "pass")
    assert await result(verifier, message) == "pass"
    zone.asked.clear()
    assert await result(verifier, sealed_by_dkimpy(keys, message, "pass")) == "fail"
    assert zone.asked == []


def test_of_more_fields_than_a_chain_has_none_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(arc, "parse_tags", lambda raw: pytest.fail("it was read"))
    assert ARCChain(Header(b"ARC-Seal: i=1\r\n" * (3 * MAX_SETS + 1)), 0).key_names() == []
