"""Runs a coroutine and breaks it at one chosen await: an exception, or a cancellation, in place of what it waited for.
Standard: every await that the coroutine comes to can be chosen, those inside the libraries it calls too.
"""

from __future__ import annotations

import asyncio
import types
from collections.abc import Coroutine, Generator
from dataclasses import dataclass, field
from typing import Any, TypeVar

_T = TypeVar("_T")


@dataclass
class Interruption:
    """Break at the `at`-th await (1 is the first; 0 never) with `error`.

    `awaits` counts what was come to; `where` names the functions that were waiting, outermost first.
    """

    at: int
    error: BaseException
    awaits: int = 0
    where: list[str] = field(default_factory=list)

    @property
    def happened(self) -> bool:
        """False where the coroutine ended before it came so far."""
        return bool(self.where)

    async def run(self, coroutine: Coroutine[Any, Any, _T]) -> _T:
        """What the coroutine gives or raises."""
        return await self._steps(coroutine)

    @types.coroutine
    def _steps(self, coroutine: Coroutine[Any, Any, _T]) -> Generator[Any, Any, _T]:
        value: Any = None
        error: BaseException | None = None
        while True:
            try:
                waits_for = coroutine.send(value) if error is None else coroutine.throw(error)
            except StopIteration as end:
                return end.value  # type: ignore[no-any-return]
            self.awaits += 1
            value, error = None, None
            if self.awaits == self.at:
                self.where = waiting_in(coroutine)
                if asyncio.isfuture(waits_for):
                    waits_for._asyncio_future_blocking = False
                    waits_for.cancel()
                error = self.error
                continue
            try:
                value = yield waits_for
            except BaseException as raised:  # noqa: BLE001 - handed on to the coroutine
                error = raised


def waiting_in(coroutine: Any) -> list[str]:
    """The names of the functions that wait for each other, outermost first."""
    names: list[str] = []
    while coroutine is not None:
        names.append(getattr(coroutine, "__qualname__", type(coroutine).__name__))
        coroutine = (
            getattr(coroutine, "cr_await", None)
            or getattr(coroutine, "ag_await", None)
            or getattr(coroutine, "gi_yieldfrom", None)
        )
    return names
