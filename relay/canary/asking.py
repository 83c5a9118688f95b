"""Sends a canary to each peer, at the interval of [canary], and reports its age.
Standard: once for all relays of a site (relay/store/canaries.py); failures here do not affect other mail.
"""

from __future__ import annotations

import asyncio
import math
import secrets
from collections.abc import Callable

import structlog

from relay.canary.message import NONCE_OCTETS, CanaryNote, canary_address
from relay.canary.post import Post
from relay.config import Config
from relay.counting import metrics
from relay.counting.board import Board
from relay.store.canaries import Canaries, Canary

log = structlog.get_logger(__name__)

LOOK_S = 5.0
AT_ONCE = 4
"""Number of peers asked at the same time."""


class Asking:
    """Runs in one process of a relay."""

    def __init__(
        self, config: Callable[[], Config], table: Canaries, post: Post, board: Board, every: float, limit: float
    ) -> None:
        """`config` returns the configuration with the current peers.

        `every` and `limit` (the age from which a canary is late) are in seconds.
        """
        self._config = config
        self._table = table
        self._post = post
        self._board = board
        self._every = every
        self._limit = limit
        self._under_way: set[str] = set()
        self._room = asyncio.Semaphore(AT_ONCE)
        self._obstacles: dict[str, str] = {}

    async def keep_up(self) -> None:
        """Polls every LOOK_S seconds, until cancelled."""
        self._board.set(metrics.CANARY_INTERVAL, to=self._every)
        self._board.set(metrics.CANARY_LIMIT, to=self._limit)
        trouble = ""
        async with asyncio.TaskGroup() as asked:
            while True:
                try:
                    for peer, address in await self._due():
                        self._under_way.add(peer)
                        asked.create_task(self._ask(peer, address))
                except Exception as error:  # noqa: BLE001 - the next look may succeed
                    if (cause := f"{type(error).__name__}: {error}") != trouble:
                        log.warning("canaries_not_looked_at", cause=cause)
                    trouble = cause
                else:
                    trouble = ""
                await asyncio.sleep(LOOK_S)

    async def _due(self) -> list[tuple[str, str]]:
        """The peers that are due, with their addresses; updates the board for all."""
        rows, now, due = await self._table.read(), self._table.clock(), []
        peers = self._config().peers
        for peer, settings in peers.items():
            address = canary_address(settings.domains)
            row = rows.get(peer)
            if not self._may_be_asked(peer, address):
                self._show(peer, None, now)
                continue
            self._show(peer, row, now)
            if peer not in self._under_way and (row is None or row.is_due(now, self._every)):
                due.append((peer, address))
        for gone in self._obstacles.keys() - peers.keys():
            self._show(gone, None, now)
            del self._obstacles[gone]
        return due

    def _may_be_asked(self, peer: str, address: str) -> bool:
        obstacle = self._post.obstacle(address)
        if obstacle and self._obstacles.get(peer) != obstacle:
            log.warning("canary_not_possible", peer=peer, cause=obstacle)
        self._obstacles[peer] = obstacle
        return not obstacle

    async def _ask(self, peer: str, address: str) -> None:
        nonce = secrets.token_bytes(NONCE_OCTETS)
        try:
            async with self._room:
                if not await self._table.ask(peer, nonce, self._every, self._limit):
                    return
                await self._post.send(CanaryNote("question", nonce), peer, address)
                self._board.add(metrics.CANARY_SENT, peer)
        except Exception as error:  # noqa: BLE001 - the next one may succeed
            log.warning("canary_not_sent", peer=peer, cause=f"{type(error).__name__}: {error}")
        finally:
            self._under_way.discard(peer)

    def _show(self, peer: str, row: Canary | None, now: float) -> None:
        age = row.age(now, self._limit) if row is not None else None
        trip = row.round_trip if row is not None else None
        self._board.set(metrics.CANARY_AGE, peer, to=math.nan if age is None else age)
        self._board.set(metrics.CANARY_ROUND_TRIP, peer, to=math.nan if trip is None else trip)
