"""For whom mail waits: exactly those whose own mail has not gone, whatever else goes, over processes and restarts.
Standard: relay/counting/held.py; what it costs a mail that goes is bounded here as well.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator

import pytest

from relay.counting import held
from relay.counting.board import Board, shared_board
from relay.counting.held import FORGET_S, SURE, HeldMail
from relay.errors import KeyUnavailable
from relay.outcome import tally

MAIL, OTHER = b"1" * 32, b"2" * 32


@pytest.fixture(name="now")
def _now(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    now = [1_000_000.0]
    monkeypatch.setattr(held, "boot_time", lambda: now[0])
    monkeypatch.setattr(held, "clock_offset", lambda: 5000.0)
    return now


@pytest.fixture(name="descriptor")
def _descriptor() -> Iterator[int]:
    memory = shared_board(3)
    yield memory
    os.close(memory)


async def number(table: HeldMail) -> int:
    return sum(each.recipients for each in await table.waiting())


async def test_who_waits_is_known_by_mail_and_mailbox_with_the_last_cause_until_it_has_gone(now: list[float]) -> None:
    table = Board().held
    table.held("outgoing", "keys", MAIL, "ben@bob.example")
    now[0] += 100
    table.held("outgoing", "next hop", MAIL, "ben@bob.example")
    table.held("incoming", "keys", OTHER, "ann@alice.example")
    table.over(MAIL, "somebody@bob.example")
    table.over(OTHER, "ben@bob.example")
    first, second = await table.waiting()
    assert (first.direction, first.cause, first.recipients) == ("outgoing", "next hop", 1)
    assert (first.longest, first.again) == (100, 100)
    assert (second.direction, second.cause, second.longest) == ("incoming", "keys", 0)
    table.over(MAIL, "ben@bob.example")
    assert [each.direction for each in await table.waiting()] == ["incoming"]


async def test_as_many_as_are_sure_are_all_known_whatever_else_goes(now: list[float]) -> None:
    table = Board().held
    table.held("outgoing", "keys", MAIL, "first@bob.example")
    now[0] += 1000
    for each in range(SURE - 1):
        table.held("outgoing", "keys", MAIL, f"{each}@bob.example")
    for each in range(60_000):
        table.over(OTHER, f"{each}@bob.example")
    assert await number(table) == SURE
    assert not table.more
    assert (await table.waiting())[0].longest == 1000
    for each in range(SURE - 1):
        table.over(MAIL, f"{each}@bob.example")
    assert await number(table) == 1


async def test_those_who_find_no_place_are_told_as_more_and_hide_nobody(now: list[float]) -> None:
    table = Board().held
    table.held("outgoing", "keys", MAIL, "first@bob.example")
    now[0] += 1000
    for each in range(4 * SURE):
        table.held("outgoing", "keys", OTHER, f"{each}@bob.example")
    assert table.more
    [waiting] = await table.waiting()
    assert SURE < waiting.recipients < 4 * SURE
    assert waiting.longest == 1000
    now[0] += FORGET_S + 1
    assert not table.more


@pytest.mark.parametrize("pause", [0.0, 300.0, 6 * 3600.0])
async def test_it_is_forgotten_when_it_was_not_tried_for_twice_its_longest_pause(
    now: list[float], pause: float
) -> None:
    table = Board().held
    table.held("outgoing", "keys", MAIL, "ben@bob.example")
    for step in (pause / 8, pause / 4, pause / 2, pause) if pause else ():
        now[0] += step
        table.held("outgoing", "keys", MAIL, "ben@bob.example")
    now[0] += max(FORGET_S, 2 * pause) - 1
    assert await number(table) == 1
    now[0] += 2
    assert await number(table) == 0
    table.held("outgoing", "keys", MAIL, "ben@bob.example")
    [anew] = await table.waiting()
    assert (anew.longest, anew.again) == (0, 0), "what was forgotten begins anew"


async def test_what_was_tried_once_is_not_said_to_have_been_tried_again(now: list[float]) -> None:
    table = Board().held
    table.held("outgoing", "policy", b"ann@alice.example", "ben@bob.example")
    now[0] += 1000
    assert [each.again for each in await table.waiting()] == [0]
    table.held("outgoing", "policy", b"ann@alice.example", "ben@bob.example")
    assert [each.again for each in await table.waiting()] == [1000]


async def test_what_one_process_held_another_ends_also_when_the_first_has_ended(descriptor: int) -> None:
    boards = [Board(descriptor, place) for place in range(3)]
    for each, board in enumerate(boards):
        board.held.held("outgoing", "keys", MAIL, f"{each}@bob.example")
    boards[1].held.held("outgoing", "keys", MAIL, "0@bob.example")
    assert [await number(board.held) for board in boards] == [3, 3, 3]
    del boards[0]
    successor = Board(descriptor, 0).held
    boards[1].held.over(MAIL, "0@bob.example")
    successor.over(MAIL, "2@bob.example")
    assert await number(successor) == 1


async def test_another_relay_goes_on_with_it(now: list[float], monkeypatch: pytest.MonkeyPatch) -> None:
    table, successor = Board().held, Board().held
    table.held("outgoing", "keys", MAIL, "ben@bob.example")
    now[0] += 100
    table.held("outgoing", "keys", MAIL, "ben@bob.example")
    table.held("incoming", "store", OTHER, "ann@alice.example")
    text = await table.as_text()
    assert "bob" not in text
    now[0] = 60.0  # the host was started anew
    monkeypatch.setattr(held, "clock_offset", lambda: 5000.0 + 1_000_100.0)
    successor.take(json.loads(text))
    incoming, outgoing = sorted(await successor.waiting(), key=lambda each: each.direction)
    assert (outgoing.cause, outgoing.longest, outgoing.again) == ("keys", 160, 160)
    assert (incoming.cause, incoming.longest, incoming.again) == ("store", 60, 0)
    successor.over(MAIL, "ben@bob.example")
    successor.over(OTHER, "ann@alice.example")
    assert await successor.waiting() == []


@pytest.mark.parametrize(
    "text", ["", "[]", "{}", '{"key": "00", "clock": 0, "rows": ""}', '{"key": "", "clock": 0, "rows": "QQ=="}']
)
def test_what_nobody_has_written_is_not_taken(text: str) -> None:
    with pytest.raises((ValueError, KeyError, TypeError)):
        Board().held.take(json.loads(text))


def test_that_nothing_of_it_waits_costs_a_mail_some_microseconds_at_most() -> None:
    table = Board().held

    def cost() -> float:
        best = 1.0
        for _ in range(5):
            began = time.perf_counter()
            for _ in range(1000):
                table.over(OTHER, "ben@bob.example")
            best = min(best, (time.perf_counter() - began) / 1000)
        return best

    empty = cost()
    for each in range(1000):
        table.held("outgoing", "keys", MAIL, f"{each}@bob.example")
    assert empty < 10e-6
    assert cost() < 40e-6


def test_whatever_kme_trouble_mail_waits_for_is_called_keys() -> None:
    kinds = [KeyUnavailable]
    for kind in kinds:
        kinds += kind.__subclasses__()
    assert {"KMEUnanswered", "KMERefusedRequest"} <= {kind.__name__ for kind in kinds}
    assert {kind.__name__: tally._CAUSES.get(kind.__name__) for kind in kinds} == {k.__name__: "keys" for k in kinds}
