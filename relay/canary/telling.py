"""Tells the relay of a peer that mail in its name has come here unsealed: its mail server may have lost its filter.
Standard: relay/FORMAT.md, section 11; sealed, as all canaries, and at most once in TELL_S for each peer.

What a peer's mail server lets out past its relay, that relay cannot see. We see it: as mail that comes unsealed.
"""

from __future__ import annotations

import asyncio
import secrets
import time
from collections.abc import Callable

import structlog

from relay.canary.message import MOST_TOLD, NONCE_OCTETS, CanaryNote, canary_address
from relay.canary.post import Post
from relay.config import Config
from relay.counting import metrics
from relay.counting.board import Board

log = structlog.get_logger(__name__)

LOOK_S = 5.0
TELL_S = 3600.0
"""Minimum interval between notes to one peer, in seconds."""


class Telling:
    """Runs in one process of a relay."""

    def __init__(
        self, config: Callable[[], Config], post: Post, board: Board, clock: Callable[[], float] = time.monotonic
    ) -> None:
        """`config` returns the configuration with the current peers."""
        self._config = config
        self._post = post
        self._board = board
        self._clock = clock
        self._told: dict[str, tuple[float, dict[str, float]]] = {}

    async def keep_up(self) -> None:
        """Polls every LOOK_S seconds, until cancelled."""
        while True:
            await asyncio.sleep(LOOK_S)
            try:
                await self.look()
            except Exception as error:  # noqa: BLE001 - the next look may succeed
                log.warning("unsealed_mail_not_told", cause=f"{type(error).__name__}: {error}")

    async def look(self) -> None:
        """Tells those who are due now."""
        if not self._config().canary.answer:
            return
        counted = (await self._board.totals()).get(metrics.UNSEALED_FROM_PEER, {})
        for peer, settings in self._config().peers.items():
            numbers = {by: counted.get((peer, by), [0.0])[0] for by in ("sender", "author")}
            told_at, told = self._told.get(peer, (self._clock() - TELL_S, dict.fromkeys(numbers, 0.0)))
            if numbers == told or self._clock() - told_at < TELL_S:
                continue
            self._told[peer] = self._clock(), numbers  # also if it fails: the next one has all that is new then
            sender, author = (min(MOST_TOLD, int(numbers[by] - told[by])) for by in ("sender", "author"))
            note = CanaryNote("unsealed", secrets.token_bytes(NONCE_OCTETS), sender, author)
            await self._tell(note, peer, canary_address(settings.domains))

    async def _tell(self, note: CanaryNote, peer: str, address: str) -> None:
        try:
            await self._post.send(note, peer, address)
        except Exception as error:  # noqa: BLE001 - tried again with the next mail, in an hour
            log.warning("unsealed_mail_not_told", peer=peer, cause=f"{type(error).__name__}: {error}")
