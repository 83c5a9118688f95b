"""What was sent in the last moments: how long it is kept, and for whom.
Standard: RFC 1047; an old record would take the same octets sent anew for a retry.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path

import pytest
from structlog.testing import capture_logs

from relay.formats import mime
from relay.mail import recipient_name
from relay.store.mapped_file import MappedFile
from relay.store.record_files import left_behind
from relay.store.sent import FILE_OCTETS, KEPT_S, ROOM_OCTETS, SUFFIX, SentRecords, sent_of_late, take_over_sent
from relay.store.store import Store

BEN = [recipient_name(bytes(32), "ben@bob.example")]
BEA = [recipient_name(bytes(32), "bea@bob.example")]


def left(directory: Path) -> int:
    """How many records a relay would find that starts now."""
    return sum(len(file.records) for file in left_behind(directory, SUFFIX))


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


def test_after_a_stop_nothing_is_left_unless_the_store_does_not_know_yet(tmp_path: Path) -> None:
    for number, settled in enumerate((True, False)):
        sent = SentRecords(tmp_path / str(number), partial(bool, settled))
        sent.note(bytes(32), BEN)
        sent.close()
        assert left(tmp_path / str(number)) == (0 if settled else 1)


def test_without_further_mail_it_is_thrown_away_as_well(tmp_path: Path) -> None:
    clock = Clock()
    sent = SentRecords(tmp_path, clock=clock)
    sent.note(bytes(32), BEN)
    for _ in range(2):
        clock.now += KEPT_S + 1
        sent.tidy()
    assert sent_of_late(tmp_path) == frozenset()


def test_what_fills_a_file_within_its_time_is_kept_as_long_as_all_else(tmp_path: Path) -> None:
    clock = Clock()
    sent = SentRecords(tmp_path, clock=clock)
    many = [bytes([each]) * 32 for each in range(256)] * ((FILE_OCTETS - ROOM_OCTETS) // 32 // 256)
    clock.now = KEPT_S - 1
    sent.ready()
    sent.note(bytes(32), many)  # nearly fills the first file
    sent.ready()
    assert len([*tmp_path.iterdir()]) == 2
    clock.now = KEPT_S + 1
    sent.note(bytes(32), BEN)
    sent.ready()
    assert {BEN[0].hex(), many[0].hex()} <= sent_of_late(tmp_path)
    clock.now = 2 * KEPT_S + 2
    sent.tidy()
    clock.now = 3 * KEPT_S + 3
    sent.tidy()
    assert sent_of_late(tmp_path) == frozenset()


def test_what_the_store_does_not_know_yet_is_kept_for_longer(tmp_path: Path) -> None:
    clock, known = Clock(), [False]
    sent = SentRecords(tmp_path, lambda: known[0], clock)
    sent.note(bytes(32), BEN)
    for _ in range(5):
        clock.now += KEPT_S + 1
        sent.note(bytes(32), BEA)
    sent.close()
    assert left(tmp_path) == 6


@pytest.mark.parametrize("written", [b"something else", b"", b"\x01", b"\x02" + bytes(73)])
async def test_what_a_newer_relay_has_written_stays_and_stops_nobody(
    tmp_path: Path, store: Store, written: bytes
) -> None:
    newer = MappedFile(tmp_path, SUFFIX, FILE_OCTETS)
    newer.add(written)
    newer.close()
    sent = SentRecords(tmp_path, lambda: False)
    sent.note(bytes(32), BEN)
    sent.close()
    assert sent_of_late(tmp_path) == {BEN[0].hex()}
    with capture_logs() as logs:
        assert await take_over_sent(tmp_path, store.deliveries) == 1
    assert [line["event"] for line in logs] == ["record_file_not_read"]
    assert left(tmp_path) == 1
    assert (await store.deliveries.begin("outgoing", bytes(32), ["ben@bob.example"])).delivered == {"ben@bob.example"}


async def test_a_record_that_was_changed_after_a_kill_is_told_once_and_the_others_count(
    tmp_path: Path, store: Store
) -> None:
    sent = SentRecords(tmp_path, lambda: False)
    for mail in (b"1" * 32, b"2" * 32):
        sent.note(mail, [recipient_name(mail, "ben@bob.example")])
    sent.close()
    [path] = tmp_path.glob(f"*{SUFFIX}")
    content = bytearray(path.read_bytes())
    content[30] ^= 1
    path.write_bytes(content)
    with capture_logs() as logs:
        for taken_over in (1, 0):
            assert await take_over_sent(tmp_path, store.deliveries) == taken_over
    assert [(line["event"], line["log_level"]) for line in logs] == [("record_file_torn", "error")]
    assert (await store.deliveries.begin("outgoing", b"2" * 32, ["ben@bob.example"])).delivered == {"ben@bob.example"}


@pytest.mark.parametrize(
    ("header", "like_no_other"),
    [
        (b"Message-ID: <1@alice.example>", True),
        (b"Received: by mx; Thu, 26 Nov 2026 15:00:00 +0000", True),
        (b"Message-ID:", False),
        (b"Message-ID: <>", False),
        (b"Message-ID: <1@>", False),
        (b"Message-ID: <@alice.example>", False),
        (b"Message-ID: <alice.example>", False),
        (b"Message-ID: <1 @alice.example>", False),
        (b"Message-ID: <1> <2@alice.example>", True),
        (b"Message-ID: 1@alice.example", False),
        (b"Received: by printer", False),
        (b"Subject: <1@alice.example>", False),
    ],
)
def test_only_what_can_be_told_from_a_second_mail_is_taken_for_a_retry(header: bytes, like_no_other: bool) -> None:
    assert mime.is_like_no_other(header + b"\r\n\r\nbody\r\n") == like_no_other


def test_what_leaves_after_the_file_was_deleted_is_found(tmp_path: Path) -> None:
    sent = SentRecords(tmp_path)
    sent.ready()
    [path] = tmp_path.iterdir()
    path.unlink()
    sent.ready()
    sent.note(bytes(32), BEN)
    assert sent_of_late(tmp_path) == {each.hex() for each in BEN}
