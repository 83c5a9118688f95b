"""What a spool says of calls for received keys: which were under way when their process was killed.
Standard: ETSI GS QKD 014 V1.1.1, 5.4: a key is given once, so that a call without an answer may have spent it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from relay.key_receiver import take_over_keys
from relay.key_receiver.asked import GONE_ON, KeyCall, unanswered
from relay.key_receiver.receiver import ReceiverHere
from relay.keys.faults import KMEFault
from relay.keys.http import HTTPReply, HTTPRequest, NoAnswer
from relay.store.received_table import KeyName
from relay.store.secret import SiteSecret
from relay.store.spool import Spool
from relay.store.store import open_store

SECRET = SiteSecret(bytes(32))
ONE, TWO = KeyCall("g", "2", ("one",)), KeyCall("g", "2", ("two",))


class KME:
    """Answers when it is told to, with what it is told; it counts who asks."""

    def __init__(self) -> None:
        self.go = asyncio.Event()
        self.asked = asyncio.Event()
        self.answer: HTTPReply | NoAnswer = HTTPReply(200, b'{"keys": []}')

    async def send(self, request: HTTPRequest, within: float, on_sent: Callable[[], None]) -> HTTPReply:
        self.asked.set()
        await self.go.wait()
        if isinstance(self.answer, NoAnswer):
            raise self.answer
        return self.answer


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    return tmp_path / "keys.spool"


def begin(receiver: ReceiverHere, kme: Any, *key_IDs: str) -> asyncio.Task[HTTPReply]:
    request = HTTPRequest("POST", "/", sae="2", key_IDs=key_IDs)
    return asyncio.create_task(receiver.send("kme", kme, request, 1.0, lambda: None))


async def lost(directory: Path, *names: str) -> list[bool]:
    """Whether each is known to be lost, once a later start has taken over."""
    async with await open_store(directory.parent / "relay.db", SECRET) as store:
        await take_over_keys(directory, SECRET, store.received)
        return [await store.received.unanswered([KeyName("g", "2", name)]) for name in names]


async def end(task: asyncio.Task[HTTPReply]) -> None:
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)


async def test_a_call_is_written_down_before_the_kme_is_asked(directory: Path) -> None:
    kme, spool = KME(), Spool(directory, SECRET)
    call = begin(ReceiverHere(spool, {"kme": ("g", "etsi014")}), kme, "one", "two")
    await kme.asked.wait()
    spool.close()  # as a kill leaves it
    assert await lost(directory, "one", "two", "three") == [True, True, False]
    await end(call)


@pytest.mark.parametrize(
    ("answer", "is_lost"),
    [
        (HTTPReply(200, b'{"keys": []}'), False),
        (HTTPReply(404, b""), False),
        (NoAnswer("refused", sent=False, fault=KMEFault.UNREACHABLE), False),
        (NoAnswer("broke off", sent=True, fault=KMEFault.UNREACHABLE), True),
    ],
    ids=["given", "not known", "not sent", "no answer"],
)
async def test_only_what_the_kme_may_have_given_away_counts(
    directory: Path, answer: HTTPReply | NoAnswer, is_lost: bool
) -> None:
    kme, spool = KME(), Spool(directory, SECRET)
    kme.answer = answer
    kme.go.set()
    await asyncio.gather(begin(ReceiverHere(spool, {"kme": ("g", "etsi014")}), kme, "one"), return_exceptions=True)
    spool.close()
    assert await lost(directory, "one") == [is_lost]


async def test_a_call_that_goes_on_while_its_file_is_taken_over_is_lost_only_once_its_process_is(
    directory: Path,
) -> None:
    slow, quick, spool = KME(), KME(), Spool(directory, SECRET)
    quick.go.set()
    receiver = ReceiverHere(spool, {"kme": ("g", "etsi014")})
    call = begin(receiver, slow, "one")
    await slow.asked.wait()
    await begin(receiver, quick, "two")
    await receiver.hand_over()
    assert await lost(directory, "one", "two") == [False, False]
    spool.close()
    assert await lost(directory, "one", "two") == [True, False]
    await end(call)


async def test_a_process_that_ends_as_it_should_leaves_nothing_that_counts_as_lost(directory: Path) -> None:
    kme = KME()
    kme.answer = NoAnswer("broke off", sent=True, fault=KMEFault.UNREACHABLE)
    kme.go.set()
    receiver = ReceiverHere(Spool(directory, SECRET), {"kme": ("g", "etsi014")})
    await asyncio.gather(begin(receiver, kme, "one"), return_exceptions=True)
    await receiver.close()
    assert await lost(directory, "one") == [False]


async def test_a_kme_that_is_only_asked_in_vain_costs_no_new_file(directory: Path) -> None:
    kme = KME()
    kme.answer = HTTPReply(404, b"")
    kme.go.set()
    receiver = ReceiverHere(Spool(directory, SECRET), {"kme": ("g", "etsi014")})
    await begin(receiver, kme, "one")
    [file] = directory.iterdir()
    await receiver.hand_over()
    assert list(directory.iterdir()) == [file]
    await receiver.close()


def test_the_same_call_made_twice_and_answered_once_is_under_way() -> None:
    assert unanswered([ONE.asked(), ONE.asked(), TWO.asked()], [ONE, TWO]) == [ONE]
    assert unanswered([ONE.asked(), ONE.over()], []) == []
    assert unanswered([ONE.asked(), GONE_ON], []) == ()
    with pytest.raises(ValueError, match="kind"):
        unanswered([b'{"later": ["g", "2", []]}'], [])
