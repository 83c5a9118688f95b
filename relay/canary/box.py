"""Handles mail to our canary address: it ends here, without a mailbox, queue or quarantine.
A question gets one receipt, at most one in ANSWER_S. A receipt counts once, and a note on unsealed mail at
most once in NOTE_S; everything else is dropped.

Nothing waits for this. It is done after the reply to the mail, and skipped if the backlog is too long.
"""

from __future__ import annotations

import asyncio
import re
from collections import Counter
from collections.abc import Callable, Collection, Sequence
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
from relay.mail import domain_of
from relay.store.canaries import Canaries

log = structlog.get_logger(__name__)

ANSWER_S = 50.0
"""Minimum interval between receipts to one peer, in seconds; below a minute, the shortest `every`."""
NOTE_S = 1800.0
"""Minimum interval between notes of one peer that count in this process, in seconds."""
MOST = 100
"""Maximum backlog of questions and receipts."""
AT_ONCE = 4
_QUOTING = re.compile(r'["\\]')
"""Quoting, which does not change the meaning of a local part (RFC 5321, 4.1.2)."""
LOG_S = 60.0
"""Minimum interval between log lines for one drop reason, in seconds."""

Reason = Literal[
    "clear text", "bounce", "unreadable", "not named", "repeated", "unprotected", "other sender", "malformed",
    "unexpected", "too often", "not answered", "busy",
]  # fmt: skip
"""`unexpected` is a receipt without an outstanding question: forged, replayed or late."""


@dataclass(frozen=True, slots=True)
class _CanaryArrival:
    peer: str
    sender: str
    note: CanaryNote
    at: float


class CanaryBox:
    """The canary address of one site, as one process sees it."""

    def __init__(self, config: Callable[[], Config], table: Canaries, board: Board) -> None:
        """`config` returns the configuration with the current peers."""
        self.takes: Callable[[str], bool] = partial(is_canary, domains=config().site.domains)
        """Whether mail to this mailbox ends here."""
        self._config = config
        self._table = table
        self._board = board
        self._waiting: asyncio.Queue[_CanaryArrival] = asyncio.Queue(MOST)
        self._logged: dict[Reason, float] = {}
        self._untold: Counter[Reason] = Counter()
        self._noted: dict[str, float] = {}

    def take(self, opened: Opened, *, protected: bool) -> None:
        """Queues an opened mail to our address; `protected` as policy requires. Call it last."""
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

    def came_unsealed(self, sender: str, authors: Sequence[str]) -> None:
        """Counts an unsealed mail if it is in a peer's name: by the domain of its sender, else of one of `authors`.

        Bounces are in nobody's name: a mail server may send its own past its filter.
        """
        config = self._config()
        by_sender, of_authors = config.peer_by_domain(domain_of(sender)), map(config.peer_by_domain, authors)
        peer = by_sender or (next(filter(None, of_authors), None) if sender else None)
        if peer is not None:
            by = "sender" if by_sender else "author"
            self._board.add(metrics.UNSEALED_FROM_PEER, peer[0], by)
            log.warning("came_unsealed_in_a_peers_name", peer=peer[0], by=by)

    def drop(self, reason: Reason, peer: str = "") -> None:
        """Counts a dropped mail, and logs it at most every LOG_S."""
        self._board.add(metrics.CANARY_DROPPED, reason)
        self._untold[reason] += 1
        now = asyncio.get_running_loop().time()
        if now >= self._logged.get(reason, float("-inf")):
            self._logged[reason] = now + LOG_S
            log.warning("canary_dropped", reason=reason, number=self._untold.pop(reason), peer=peer)

    async def keep_up(self, post: Post | None) -> None:
        """Answers questions and counts receipts until cancelled; without `post` nothing is answered."""
        async with asyncio.TaskGroup() as group:
            for _ in range(AT_ONCE):
                group.create_task(self._work(post))

    async def _work(self, post: Post | None) -> None:
        while True:
            arrival = await self._waiting.get()
            try:
                if arrival.note.kind == "receipt":
                    await self._count(arrival)
                elif arrival.note.kind == "unsealed":
                    self._hear(arrival)
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

    def _hear(self, arrival: _CanaryArrival) -> None:
        """Counts mail with our MAIL FROM that came to the peer unsealed; our From alone may be a mailing list's."""
        peer, note, now = arrival.peer, arrival.note, asyncio.get_running_loop().time()
        if now - self._noted.get(peer, float("-inf")) < NOTE_S:
            self.drop("too often", peer)
            return
        self._noted[peer] = now
        self._board.add(metrics.UNSEALED_AT_PEER, peer, by=note.sender)
        log.warning("comes_unsealed_at_peer", peer=peer, with_our_sender=note.sender, with_our_author=note.author)

    async def _answer(self, arrival: _CanaryArrival, post: Post | None) -> None:
        if post is None or not self._config().canary.answer or post.obstacle(arrival.sender):
            self.drop("not answered", arrival.peer)
        elif not await self._table.may_answer(arrival.peer, ANSWER_S):
            self.drop("too often", arrival.peer)
        else:
            await post.send(CanaryNote("receipt", arrival.note.nonce), arrival.peer, arrival.sender)
            self._board.add(metrics.CANARY_ANSWERED, arrival.peer)


def is_canary(mailbox: str, domains: Collection[str]) -> bool:
    """Whether this is the canary address at one of these mail domains, in any spelling."""
    local, _, domain = mailbox.rpartition("@")
    if len(mailbox) > MAX_ADDRESS or _QUOTING.sub("", local).lower() != LOCAL_PART:
        return False  # normalising many combining marks takes seconds
    plain = nfkc(domain).replace("\u3002", ".").rstrip(".")  # RFC 3490, 3.1; RFC 1035, 3.1
    return folded_domain(plain.lower()) in map(folded_domain, domains)
