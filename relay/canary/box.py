"""What becomes of mail for our canary address: it ends here, in no mailbox, no queue and no quarantine.
Standard: a peer's question gets one receipt, at most one in ANSWER_S; a receipt counts once; all else for nothing.

Nothing waits for any of it. What is to be done is done after the mail was answered, and left undone when there is too
much of it.
"""

from __future__ import annotations

import asyncio
import re
from collections import Counter
from collections.abc import Callable, Collection
from dataclasses import dataclass
from functools import partial
from typing import Literal

import structlog

from relay.canary.message import LOCAL_PART, CanaryNote, read
from relay.canary.post import Post
from relay.config import Config
from relay.counting import metrics
from relay.counting.board import Board
from relay.errors import BadStructure
from relay.formats.characters import nfkc
from relay.formats.mailbox import MAX_ADDRESS, folded_domain
from relay.journey.opening import Opened
from relay.store.canaries import Canaries

log = structlog.get_logger(__name__)

ANSWER_S = 50.0
"""Minimum interval between receipts to one peer, in seconds; below a minute, the shortest `every`."""
MOST = 100
"""Maximum number that wait to be answered or counted."""
AT_ONCE = 4
_QUOTING = re.compile(r'["\\]')
"""A local part means the same without it, where that needs none (RFC 5321, 4.1.2)."""
TOLD_S = 60.0
"""Minimum interval between log lines for one drop reason, in seconds."""

Reason = Literal[
    "clear text", "bounce", "unreadable", "not named", "repeated", "unprotected", "other sender", "malformed",
    "unexpected", "too often", "not answered", "busy",
]  # fmt: skip
"""`unexpected` is a receipt for nothing that is out: forged, replayed or late."""


@dataclass(frozen=True, slots=True)
class _CanaryArrival:
    peer: str
    sender: str
    note: CanaryNote
    at: float


class CanaryBox:
    """The canary address of one site, as one process sees it."""

    def __init__(self, config: Callable[[], Config], table: Canaries, board: Board) -> None:
        """`config` gives the configuration with the peers as they are now."""
        self.takes: Callable[[str], bool] = partial(is_canary, domains=config().site.domains)
        """Whether mail to this mailbox ends here."""
        self._known = config
        self._table = table
        self._board = board
        self._waiting: asyncio.Queue[_CanaryArrival] = asyncio.Queue(MOST)
        self._told: dict[Reason, float] = {}
        self._untold: Counter[Reason] = Counter()

    def take(self, opened: Opened, *, protected: bool) -> None:
        """A mail that was opened for our address; `protected` says whether as policy requires. To be called last."""
        peer, sender = opened.peer, opened.envelope.sender
        if not protected:
            self.drop("unprotected", peer)
        elif not is_canary(sender, opened.config.peers[peer].domains):
            self.drop("other sender", peer)
        elif len(opened.envelope.recipients) != 1:
            self.drop("malformed", peer)
        else:
            try:
                self._waiting.put_nowait(_CanaryArrival(peer, sender, read(opened.original), self._table.clock()))
            except BadStructure:
                self.drop("malformed", peer)
            except asyncio.QueueFull:
                self.drop("busy", peer)

    def drop(self, reason: Reason, peer: str = "") -> None:
        """Something counts for nothing; it is counted as such, and the log says so now and then."""
        self._board.add(metrics.CANARY_DROPPED, reason)
        self._untold[reason] += 1
        now = asyncio.get_running_loop().time()
        if now >= self._told.get(reason, float("-inf")):
            self._told[reason] = now + TOLD_S
            log.warning("canary_dropped", reason=reason, number=self._untold.pop(reason), peer=peer)

    async def keep_up(self, post: Post | None) -> None:
        """Answers and counts what has come, for ever; without `post` nothing is answered."""
        async with asyncio.TaskGroup() as group:
            for _ in range(AT_ONCE):
                group.create_task(self._work(post))

    async def _work(self, post: Post | None) -> None:
        while True:
            arrival = await self._waiting.get()
            try:
                if arrival.note.kind == "receipt":
                    await self._count(arrival)
                else:
                    await self._answer(arrival, post)
            except Exception as error:  # noqa: BLE001 - the next one may be answered
                kind = arrival.note.kind
                log.warning(
                    "canary_not_handled", kind=kind, peer=arrival.peer, cause=f"{type(error).__name__}: {error}"
                )

    async def _count(self, arrival: _CanaryArrival) -> None:
        seconds = await self._table.returned(arrival.peer, arrival.note.nonce, arrival.at)
        if seconds is None:
            self.drop("unexpected", arrival.peer)
            return
        self._board.add(metrics.CANARY_RETURNED, arrival.peer)
        log.info("canary_returned", peer=arrival.peer, seconds=round(seconds, 3))

    async def _answer(self, arrival: _CanaryArrival, post: Post | None) -> None:
        if post is None or not self._known().canary.answer or post.obstacle(arrival.sender):
            self.drop("not answered", arrival.peer)
        elif not await self._table.may_answer(arrival.peer, ANSWER_S):
            self.drop("too often", arrival.peer)
        else:
            await post.send(CanaryNote("receipt", arrival.note.nonce), arrival.peer, arrival.sender)
            self._board.add(metrics.CANARY_ANSWERED, arrival.peer)


def is_canary(mailbox: str, domains: Collection[str]) -> bool:
    """Whether this is the canary address of a site with these mail domains, at any of them, however it is spelt."""
    local, _, domain = mailbox.rpartition("@")
    if len(mailbox) > MAX_ADDRESS or _QUOTING.sub("", local).lower() != LOCAL_PART:
        return False  # marks of which there are many take seconds to be put in order
    plain = nfkc(domain).replace("\u3002", ".").rstrip(".")  # RFC 3490, 3.1; RFC 1035, 3.1
    return folded_domain(plain.lower()) in map(folded_domain, domains)
