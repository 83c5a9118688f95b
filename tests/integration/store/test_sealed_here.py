"""What was sealed here is known to all who share the memory, for its own recipients alone."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest

from relay.store.sealed_here import SealedHere, shared_memory

DIGEST = bytes(range(32))


@pytest.fixture(name="memory")
def _memory() -> Iterator[int]:
    descriptor = shared_memory()
    known(descriptor).add(DIGEST, "bob", "aes", ["ben@bob.example", "bea@bob.example"])
    yield descriptor
    os.close(descriptor)


def known(descriptor: int) -> SealedHere:
    here = SealedHere()
    here.share(descriptor)
    return here


def test_another_process_and_a_later_one_know_it(memory: int) -> None:
    other, later = known(memory), known(memory)
    assert later.has(DIGEST, "bob", "aes", ["bea@bob.example", "ben@bob.example"])
    assert later.has(DIGEST, "bob", "aes", ["ben@bob.example"])
    other.add(DIGEST, "carol", "otp", ["cat@carol.example"])
    assert later.has(DIGEST, "carol", "otp", ["cat@carol.example"])


@pytest.mark.parametrize(
    ("digest", "peer", "protection", "mailbox"),
    [
        (bytes(32), "bob", "aes", "ben@bob.example"),
        (DIGEST, "carol", "aes", "ben@bob.example"),
        (DIGEST, "bob", "otp", "ben@bob.example"),
        (DIGEST, "bob", "aes", "eve@bob.example"),
    ],
)
def test_what_differs_in_anything_was_not_sealed_here(
    memory: int, digest: bytes, peer: str, protection: str, mailbox: str
) -> None:
    assert not known(memory).has(digest, peer, protection, ["bea@bob.example", mailbox])


def test_another_relay_knows_nothing_of_it(memory: int) -> None:
    assert not SealedHere().has(DIGEST, "bob", "aes", ["ben@bob.example"])


def test_the_newest_ten_thousand_are_known() -> None:
    here = SealedHere()
    digests = [number.to_bytes(32) for number in range(12_000)]
    for each in digests:
        here.add(each, "bob", "aes", ["ben@bob.example"])
    assert all(here.has(each, "bob", "aes", ["ben@bob.example"]) for each in digests[-10_000:])
