"""ARC chains: those of others are judged as dkimpy judges them, and dkimpy accepts ours.
Standard: RFC 8617.
"""

from __future__ import annotations

import time

import dkim
import pytest

from relay.dkim import Verifier, arc
from relay.dkim.arc import MAX_SETS, ARCChain, ARCSealer
from relay.dkim.canonical import Header
from tests.testlib import mails
from tests.testlib.zone import Zone
from tests.unit.dkim.conftest import Keys, pem

FIRST = "mx.alice.example"


def sealed_by_dkimpy(keys: Keys) -> bytes:
    """A message with a chain of one set, by alice.example."""
    message = f"Authentication-Results: {FIRST}; spf=pass\r\n".encode() + mails.plain()
    return b"".join(dkim.arc_sign(message, b"r", b"alice.example", pem(keys.rsa), FIRST.encode())) + message


async def sealed(keys: Keys, verifier: Verifier, message: bytes) -> bytes:
    """The message under our next set, by bob.example."""
    sealer = ARCSealer(keys.bob, "relay.bob.example")
    return sealer.seal(message, await verifier.arc(message), (await verifier.both(message))[:-1]) + message


def sealed_unlooked_at(keys: Keys, message: bytes) -> bytes:
    """As `sealed`, of a chain that passes: verifying each step on the way takes the square of their number."""
    chain = ARCChain(Header(message.partition(b"\r\n\r\n")[0] + b"\r\n"), 0)
    chain.result = "pass"
    return ARCSealer(keys.bob, "relay.bob.example").seal(message, chain, []) + message


def dkimpy_says(message: bytes, zone: Zone) -> tuple[bytes | None, str]:
    verdict, _, reason = dkim.arc_verify(
        message, dnsfunc=lambda name, timeout=5: zone.texts.get(name.decode().rstrip("."))
    )
    return verdict, reason


async def test_a_chain_of_others_passes_and_goes_on_with_us(verifier: Verifier, keys: Keys, zone: Zone) -> None:
    message = sealed_by_dkimpy(keys)
    chain = await verifier.arc(message)
    assert (chain.result, chain.length) == ("pass", 1)
    for length in (2, 3):
        message = await sealed(keys, verifier, message)
        assert dkimpy_says(message, zone) == (dkim.CV_Pass, "success")
        chain = await verifier.arc(message)
        assert (chain.result, chain.length) == ("pass", length)


@pytest.mark.parametrize("message", [mails.plain(), mails.eight_bit(), mails.random_attachment()])
async def test_our_first_set_passes(verifier: Verifier, keys: Keys, zone: Zone, message: bytes) -> None:
    message = await sealed(keys, verifier, message)
    assert dkimpy_says(message, zone) == (dkim.CV_Pass, "success")
    assert b"ARC-Authentication-Results: i=1; relay.bob.example;\r\n dkim=none;\r\n arc=none\r\n" in message


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
async def test_a_broken_chain_fails_is_said_once_to_have_failed_and_then_ends(
    verifier: Verifier, keys: Keys, caplog: pytest.LogCaptureFixture, old: bytes, new: bytes
) -> None:
    message = sealed_by_dkimpy(keys).replace(old, new)
    chain = await verifier.arc(message)
    assert chain.result == "fail"
    message = await sealed(keys, verifier, message)
    assert b"cv=fail" in message
    chain = await verifier.arc(message)
    assert (chain.result, chain.ended) == ("fail", True)
    assert await sealed(keys, verifier, message) == message
    assert caplog.records == [], "what strangers write is not logged"


@pytest.mark.parametrize(("ahead", "result"), [(600, "fail"), (100, "pass")])
async def test_a_set_from_the_future_breaks_the_chain(verifier: Verifier, keys: Keys, ahead: int, result: str) -> None:
    message = mails.plain()
    sealer = ARCSealer(keys.bob, "relay.bob.example", lambda: time.time() + ahead)
    message = sealer.seal(message, await verifier.arc(message), ()) + message
    assert (await verifier.arc(message)).result == result


async def test_dns_trouble_is_a_temperror_and_such_a_chain_is_left_alone(
    verifier: Verifier, keys: Keys, zone: Zone
) -> None:
    zone.failing.add(keys.rsa.name)
    message = sealed_by_dkimpy(keys)
    assert (await verifier.arc(message)).result == "temperror"
    assert await sealed(keys, verifier, message) == message


async def test_the_longest_chain_passes_and_a_longer_one_fails_unlooked_at(
    verifier: Verifier, keys: Keys, zone: Zone
) -> None:
    message = await sealed(keys, verifier, mails.plain())
    for _ in range(48):
        message = sealed_unlooked_at(keys, message)
    message = await sealed(keys, verifier, message)
    chain = await verifier.arc(message)
    assert (chain.result, chain.length) == ("pass", 50)
    assert await sealed(keys, verifier, message) == message
    zone.asked.clear()
    fresh = b"ARC-Seal: i=51; a=rsa-sha256; d=eve.example; s=x; cv=pass; b=AAAA\r\n" * 5000
    assert (await verifier.arc(fresh + message)).result == "fail"
    assert zone.asked == []


def test_each_field_of_the_longest_chain_is_read_once_for_our_set(keys: Keys, monkeypatch: pytest.MonkeyPatch) -> None:
    header = b"".join(
        b"ARC-Seal: i=%d; cv=pass\r\nARC-Message-Signature: i=%d\r\nARC-Authentication-Results: i=%d; x\r\n" % (n, n, n)
        for n in range(MAX_SETS - 1, 0, -1)
    )
    chain = ARCChain(Header(header), 0)
    chain.result = "pass"
    read: list[bytes] = []
    instance = arc._instance

    def noting(raw: bytes) -> int:
        read.append(raw)
        return instance(raw)

    monkeypatch.setattr(arc, "_instance", noting)
    ours = ARCSealer(keys.bob, "relay.bob.example").seal(header + mails.plain(), chain, [])
    assert b" i=%d;" % MAX_SETS in ours
    assert len(read) == 3 * (MAX_SETS - 1)
