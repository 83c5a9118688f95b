"""What a canary looks like: what is written is read, everything else is refused, and addresses are known in any spelling.
Standard: relay/FORMAT.md, section 11.
"""

from __future__ import annotations

import json
from types import SimpleNamespace
from typing import Any, cast

import pytest
from hypothesis import given, strategies as st

from relay.canary.box import is_canary
from relay.canary.message import MAX_OCTETS, MOST_TOLD, CanaryNote, Kind, canary_address, read, write
from relay.canary.telling import Telling
from relay.config import Config
from relay.counting import metrics
from relay.counting.board import Board
from relay.errors import BadStructure
from tests.testlib.speed import seconds

ALICE, BOB = "qumail-canary@alice.example", "qumail-canary@bob.example"
NOTE = CanaryNote("question", bytes(range(32)))
WRITTEN = write(NOTE, ALICE, BOB, "relay.alice.example")
HEADER, _, BODY = WRITTEN.partition(b"\r\n\r\n")


@given(kind=st.sampled_from(["question", "receipt"]), nonce=st.binary(min_size=32, max_size=32))
def test_what_is_written_is_read(kind: Kind, nonce: bytes) -> None:
    assert read(write(CanaryNote(kind, nonce), ALICE, BOB, "relay.alice.example")) == CanaryNote(kind, nonce)


@given(nonce=st.binary(min_size=32, max_size=32), numbers=st.tuples(*[st.integers(0, MOST_TOLD)] * 2))
def test_a_note_on_unsealed_mail_that_is_written_is_read(nonce: bytes, numbers: tuple[int, int]) -> None:
    note = CanaryNote("unsealed", nonce, *numbers)
    assert read(write(note, ALICE, BOB, "relay.alice.example")) == note


@pytest.mark.parametrize("numbers", [{}, {"sender": -1}, {"sender": 1.0}, {"author": True}, {"author": MOST_TOLD + 1}])
def test_other_numbers_are_refused(numbers: dict[str, object]) -> None:
    members = json.loads(BODY) | {"kind": "unsealed"} | ({"sender": 1, "author": 1} | numbers if numbers else {})
    with pytest.raises(BadStructure):
        read(HEADER + b"\r\n\r\n" + json.dumps(members).encode())


@pytest.mark.parametrize(
    "members",
    [
        {"canary": 2}, {"canary": 1.0}, {"canary": True}, {"canary": "1"}, {"canary": None}, {"kind": "answer"},
        {"kind": ["question"]}, {"kind": None}, {"nonce": "00" * 31}, {"nonce": "00" * 33}, {"nonce": "AB" * 32},
        {"nonce": 7}, {"nonce": " " + "0" * 63}, {"more": 1},
    ],
)  # fmt: skip
def test_other_members_are_refused(members: dict[str, object]) -> None:
    with pytest.raises(BadStructure):
        read(HEADER + b"\r\n\r\n" + json.dumps({**json.loads(BODY), **members}).encode())


@pytest.mark.parametrize(
    "body",
    [
        b"", b"{}", b"[]", b"null", b"1", b"\xff", b"NaN", b"[" * 3000, b'{"a":' * 600, BODY + BODY,
        BODY.replace(b"}", b', "kind": "receipt"}'), b"1" * 3000,
    ],
)  # fmt: skip
def test_other_bodies_are_refused(body: bytes) -> None:
    with pytest.raises(BadStructure):
        read(HEADER + b"\r\n\r\n" + body)


@pytest.mark.parametrize(
    "message",
    [
        b"", b"\r\n", b"no header", WRITTEN.replace(b"auto-generated", b"no"),
        WRITTEN.replace(b"Auto-Submitted: auto-generated\r\n", b""),
        WRITTEN.replace(b"MIME-Version", b"Content-Type: text/plain\r\nMIME-Version"),
        WRITTEN.replace(b"+json", b"+json; charset=utf-8"), WRITTEN + b" " * MAX_OCTETS,
    ],
)  # fmt: skip
def test_other_messages_are_refused(message: bytes) -> None:
    with pytest.raises(BadStructure):
        read(message)


@given(st.binary(max_size=2000), st.integers(0, len(WRITTEN)), st.integers(0, len(WRITTEN)))
def test_whatever_is_put_into_it_is_read_or_refused(octets: bytes, begin: int, end: int) -> None:
    try:
        note = read(WRITTEN[:begin] + octets + WRITTEN[end:])
    except BadStructure:
        return
    assert len(note.nonce) == 32


def test_an_address_made_to_be_slow_is_none() -> None:
    marks = "\u0315\u0300" * 100_000
    assert not is_canary(f"qumail-canary@b{marks}.example", ("bob.example",))
    assert seconds(lambda: is_canary(f"qumail-canary@b{marks}.example", ("bob.example",))) < 0.05


def test_an_address_is_known_in_any_spelling_and_others_are_not() -> None:
    domains = ("bob.example", "bücher.example")
    for address in (
        BOB,
        "QuMail-Canary@Bob.Example",
        "qumail-canary@xn--bcher-kva.example",
        "qumail-canary@BÜCHER.example",
        "qumail-canary@bob.example.",
        "qumail-canary@\uff42ob\u3002example",
        '"qumail-canary"@bob.example',
    ):
        assert is_canary(address, domains)
    for address in (ALICE, "qumail-canary", "@bob.example", "qumail-canary+x@bob.example", '"qumail canary"@bob.example',
                    "qumail-canary@sub.bob.example", "", "x@qumail-canary@bob.example"):  # fmt: skip
        assert not is_canary(address, domains)
    assert canary_address(domains[::-1]) == "qumail-canary@xn--bcher-kva.example"


@pytest.mark.promise("Unsealed mail in a peer's name costs a note an hour")
async def test_a_peer_is_told_of_unsealed_mail_at_most_once_an_hour() -> None:
    config = SimpleNamespace(
        canary=SimpleNamespace(answer=True), peers={"bob": SimpleNamespace(domains=("bob.example",))}
    )
    board, now, sent = Board(), [0.0], []

    class Post:
        async def send(self, note: CanaryNote, peer: str, to: str) -> None:
            sent.append((now[0], note.sender, note.author, peer, to))

    tells = Telling(lambda: cast(Config, config), cast(Any, Post()), board, clock=lambda: now[0])
    for minute in range(180):
        now[0] = 60.0 * minute
        board.add(metrics.UNSEALED_FROM_PEER, "bob", "sender" if minute % 2 else "author")
        if minute < 90:
            await tells.look()
    assert sent == [(0.0, 0, 1, "bob", BOB), (3600.0, 30, 30, "bob", BOB)]
    await tells.look()
    assert sent[2:] == [(10740.0, 60, 59, "bob", BOB)]
    await tells.look()
    assert len(sent) == 3
