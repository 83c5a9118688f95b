"""Development KMEs that do what next-door-key-simulator was seen to do, named after what that is.
Standard: ETSI GS QKD 014 V1.1.1, which leaves it open.
"""

from __future__ import annotations

import asyncio
from dataclasses import replace
from typing import Any

from relay.kme import DevelopmentKME, DevelopmentKMEs
from relay.kme.link import SimulatedLink


class CountsUndelivered(SimulatedLink):
    """Its stored_key_count is the number of keys that nobody has fetched, and no key has a further slave."""

    @property
    def stored_key_count(self) -> int:
        self._catch_up()
        return len(self.waiting)


def count_undelivered(kmes: DevelopmentKMEs, *, drops: bool) -> None:
    """From now on these KMEs count so; `drops`: keys that nobody has fetched are gone when more are asked for."""
    settings = replace(kmes.link.settings, max_sae_id_count=0, drops_undelivered=drops)
    kmes.link = kmes.km1.link = kmes.km2.link = CountsUndelivered(settings, asyncio.get_running_loop().time)


def hang_for_each_other(kmes: DevelopmentKMEs) -> None:
    """A KME that is asked for keys tells the other one, and hangs for good where that is telling it just then."""
    locks = {kmes.km1: asyncio.Lock(), kmes.km2: asyncio.Lock()}

    def with_both(one: DevelopmentKME, other: DevelopmentKME) -> None:
        answer: Any = one._answer

        async def answers(request: Any, asked: Any) -> Any:
            if asked.call == "status":
                return await answer(request, asked)
            async with locks[one]:
                await asyncio.sleep(0.01)
                async with locks[other]:
                    return await answer(request, asked)

        one._answer = answers  # type: ignore[method-assign]

    with_both(kmes.km1, kmes.km2)
    with_both(kmes.km2, kmes.km1)
