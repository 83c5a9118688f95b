"""Replies of KMEs on the disk: each is written down before it is used, and flushed meanwhile; several share a flush.
Standard: ETSI GS QKD 014 V1.1.1, 5.4: a key that its KME has given away cannot be had again.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Sequence
from typing import Any

import pytest

from relay.errors import StoreUnavailable
from relay.key_receiver.receiver import ReceiverHere
from relay.keys.http import HTTPReply, HTTPRequest

REQUEST = HTTPRequest("POST", "/api/v1/keys/2/dec_keys", sae="2", key_IDs=("k",))


class Disk:
    """A spool that notes what is done to it; a flush waits until it is let go."""

    def __init__(self) -> None:
        self.done: list[str] = []
        self.go = threading.Event()
        self.begun = threading.Event()
        self.trouble: StoreUnavailable | None = None

    def ready(self) -> None:
        """There is room."""

    @property
    def written(self) -> bool:
        return "append" in self.done

    def append(self, record: bytes) -> None:
        self.done.append("append")

    def note(self, record: bytes) -> None:
        """What is asked for has a test of its own."""

    def flush(self) -> None:
        self.begun.set()
        assert self.go.wait(10)
        if self.trouble:
            raise self.trouble
        self.done.append("flush")

    def hand_over(self, carried: Sequence[bytes] = (), last: bytes = b"") -> None:
        self.done.append("hand over")

    def close(self) -> None:
        self.done.append("close")


class KME:
    async def send(self, request: HTTPRequest, within: float, on_sent: Callable[[], None]) -> HTTPReply:
        return HTTPReply(200, b"{}")


def asking(receiver: ReceiverHere, number: int = 1) -> list[asyncio.Task[HTTPReply]]:
    kme: Any = KME()
    return [asyncio.create_task(receiver.send("kme", kme, REQUEST, 1.0, lambda: None)) for _ in range(number)]


@pytest.fixture
def disk() -> Disk:
    return Disk()


@pytest.fixture
def receiver(disk: Disk) -> ReceiverHere:
    return ReceiverHere(disk, {"kme": ("g", "etsi014")}, flush=True)


async def test_replies_that_come_during_a_flush_share_the_next_one(receiver: ReceiverHere, disk: Disk) -> None:
    first = asking(receiver)
    await asyncio.to_thread(disk.begun.wait, 10)
    others = asking(receiver, 5)
    assert all(reply.kept for reply in await asyncio.gather(*first, *others)), "none waits for the disk"
    disk.go.set()
    await receiver.close()
    assert disk.done == ["append"] * 6 + ["flush"] * 2 + ["close"]


async def test_a_file_is_handed_over_once_all_of_it_is_on_the_disk(receiver: ReceiverHere, disk: Disk) -> None:
    first = asking(receiver)
    await asyncio.to_thread(disk.begun.wait, 10)
    handing = asyncio.create_task(receiver.hand_over())
    later = asking(receiver)
    while disk.done.count("append") < 2:
        await asyncio.sleep(0)
    disk.go.set()
    await asyncio.gather(handing, *first, *later)
    assert disk.done.index("hand over") > max(at for at, what in enumerate(disk.done) if what == "append")
    assert disk.done[-1] == "hand over" or disk.done[-2:] == ["hand over", "flush"]
    flushed = disk.done[: disk.done.index("hand over")]
    assert flushed[-1] == "flush", "what was appended would be in no file that anybody flushes"


async def test_a_reply_that_cannot_be_flushed_is_flushed_again_before_its_file_is_handed_over(
    receiver: ReceiverHere, disk: Disk
) -> None:
    disk.trouble = StoreUnavailable("disk full")
    disk.go.set()
    [reply] = await asyncio.gather(*asking(receiver))
    assert (reply.code, reply.kept) == (200, True), "a kill does not take it"
    await receiver.hand_over()
    assert "hand over" not in disk.done, "it is tried again"
    disk.trouble = None
    await receiver.hand_over()
    assert disk.done[-2:] == ["flush", "hand over"]


async def test_in_a_process_that_does_not_flush_no_reply_counts_as_kept(disk: Disk) -> None:
    [reply] = await asyncio.gather(*asking(ReceiverHere(disk, {"kme": ("g", "etsi014")})))
    assert not reply.kept
