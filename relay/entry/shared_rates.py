"""Exchanges what was taken from hourly rates with the store: all processes of a site count together, over restarts.
Standard: nothing waits for it; the rates are kept by each process, and told every few seconds in bulk.

While the store cannot be written each process keeps its own count, and tells it later. What two processes allow beyond
a rate, and what a kill forgets, is what comes within EXCHANGE_S.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Sequence

import structlog

from relay.entry.rates import HourlyRate, Seen
from relay.errors import RelayError
from relay.store import Spending, Spent
from relay.store.spent import ROWS_AT_ONCE

log = structlog.get_logger(__name__)

EXCHANGE_S = 2.0


class SharedRates:
    """The rates of one process, each of another kind."""

    def __init__(self, store: Spent, rates: Sequence[HourlyRate | Seen]) -> None:
        self._store = store
        self._rates = {rate.kind: rate for rate in rates}
        self._turn = asyncio.Lock()

    async def exchange(self) -> None:
        """Tells what was taken here and learns what others have taken. Raises StoreUnavailable, and loses nothing."""
        # Broken off it would not know what the store has heard, and tell it twice.
        await asyncio.shield(self._store.later(self._exchange()))

    async def _exchange(self) -> None:
        async with self._turn:
            untold = [spending for rate in self._rates.values() for spending in rate.spendings()]
            try:
                while untold:
                    await self._store.add(untold[-ROWS_AT_ONCE:])
                    del untold[-ROWS_AT_ONCE:]
            finally:
                for spending in untold:
                    self._rates[spending.kind].untold(spending)
            async for some in self._store.changed():
                for spending, rate in self._known(some):
                    rate.learn(spending)

    async def keep_up(self) -> None:
        """Exchanges every few seconds, until it is cancelled."""
        said = False
        while True:
            await asyncio.sleep(EXCHANGE_S)
            try:
                await self.exchange()
            except RelayError as error:
                if not said:
                    log.warning("rates_not_shared", cause=str(error))
                said = True
            else:
                said = False

    async def close(self) -> None:
        """Tells what is left to tell, where that is possible."""
        try:
            await self.exchange()
        except RelayError as error:
            log.warning("rates_not_shared", cause=str(error))

    def _known(self, spendings: Sequence[Spending]) -> Iterator[tuple[Spending, HourlyRate | Seen]]:
        for spending in spendings:
            if spending.kind in self._rates:
                yield spending, self._rates[spending.kind]
