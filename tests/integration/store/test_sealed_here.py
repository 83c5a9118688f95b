"""What was sealed here is known to all who share the file, for its own recipients alone, and to nobody without the key."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from relay.errors import StoreUnavailable
from relay.store.sealed_here import SealedHere

KEY = bytes(32)
DIGEST = bytes(range(32))


@pytest.fixture(name="file")
def _file(tmp_path: Path) -> Path:
    file = tmp_path / "state" / "sealed"
    SealedHere(KEY, file).add(DIGEST, "bob", "aes", ["ben@bob.example", "bea@bob.example"])
    return file


def test_another_process_and_a_later_one_know_it(file: Path) -> None:
    shared, later = SealedHere(KEY, file), SealedHere(KEY, file)
    assert later.has(DIGEST, "bob", "aes", ["bea@bob.example", "ben@bob.example"])
    assert later.has(DIGEST, "bob", "aes", ["ben@bob.example"])
    shared.add(DIGEST, "carol", "otp", ["cat@carol.example"])
    assert later.has(DIGEST, "carol", "otp", ["cat@carol.example"])
    assert file.stat().st_mode & 0o777 == 0o600


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
    file: Path, digest: bytes, peer: str, protection: str, mailbox: str
) -> None:
    assert not SealedHere(KEY, file).has(digest, peer, protection, ["bea@bob.example", mailbox])


def test_what_another_key_has_written_is_no_entry(file: Path) -> None:
    assert not SealedHere(bytes([1]) * 32, file).has(DIGEST, "bob", "aes", ["ben@bob.example"])


def test_the_newest_ten_thousand_are_known() -> None:
    here = SealedHere()
    digests = [number.to_bytes(32) for number in range(12_000)]
    for each in digests:
        here.add(each, "bob", "aes", ["ben@bob.example"])
    assert all(here.has(each, "bob", "aes", ["ben@bob.example"]) for each in digests[-10_000:])


def test_what_is_no_regular_file_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "sealed")
    with pytest.raises(StoreUnavailable, match="not a regular file"):
        SealedHere(KEY, tmp_path / "sealed")
