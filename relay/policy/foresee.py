"""What would become of a mail to one recipient, without sealing anything and without taking a key.
Standard: the same order of levels and the same reasons as when mail is sealed; the obstacles are those of sealing.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Literal, NamedTuple

from relay.errors import KeyUnavailable, PolicyHolds, PolicyRefuses
from relay.keys.pads import plan_pad
from relay.keys.refill import Supply
from relay.levels.padding import Padding, padded_size
from relay.policy.decision import Decision
from relay.policy.strength import LevelName

Obstacle = Callable[[Decision, LevelName, int], str]
"""Why a level cannot be done for a message of so many octets, or ""."""

Supplied = Callable[[str, int], Awaitable[Supply]]
"""Whether a peer's keys are enough for a pad that hides so many octets (0: for one key). May raise KeyUnavailable."""

PayloadOctets = Callable[[Decision, LevelName, int], int]
"""How large the payload is of a message of so many octets, with its sealed envelope."""

Result = Literal["sealed", "clear", "held", "refused"]

KEY_OCTETS = 32


class Outcome(NamedTuple):
    """`protection` as log lines have it (`pqc+aes`), "" where nothing leaves; `causes` are why better was not had."""

    result: Result
    protection: str
    quantum_bits: int
    causes: tuple[str, ...]

    @property
    def reply(self) -> str:
        """What SMTP would answer at the end of the message, as long as the next hop takes it."""
        if self.result == "held":
            return PolicyHolds("").reply
        return PolicyRefuses("").reply if self.result == "refused" else "250 (the next hop's own words)"


@dataclass(frozen=True, slots=True)
class Foresight:
    """`obstacle` and `payload_octets` are those of sealing; without `supplied`, keys are taken to be there.

    `padding` is that of level otp.
    """

    obstacle: Obstacle
    payload_octets: PayloadOctets
    supplied: Supplied | None = None
    padding: Padding = "padme"

    async def outcome(self, decision: Decision, octets: int, waited: float | None = None) -> Outcome:
        """For a message of so many octets that has `waited` so long (seconds)."""
        causes: list[str] = []
        for level in decision.levels:
            if obstacle := self.obstacle(decision, level, octets):
                causes.append(obstacle)
                continue
            if level == "plaintext":
                return Outcome("clear", level, 0, tuple(causes))
            needed, missing = await self._needed(decision, level, octets)
            if missing:
                causes.append(f"{level}: {missing}")
                continue
            layer, missing = await self._enhanced(decision, level)
            if missing:
                causes.append(f"{level}: no quantum key on top: {missing}")
                if decision.quantum == "required":
                    continue
            on_top = 0 if layer == "+".join(decision.layers(level)) else KEY_OCTETS
            return Outcome("sealed", layer, 8 * (needed + on_top), tuple(causes))
        late = decision.hold_for is not None and waited is not None and waited >= decision.hold_for
        refused = decision.otherwise == "refuse" or late
        return Outcome("refused" if refused else "held", "", 0, tuple(causes))

    async def _needed(self, decision: Decision, level: LevelName, octets: int) -> tuple[int, str]:
        """How many octets of quantum key the level itself takes for such a message, and why it cannot have them."""
        if level not in ("otp", "aes"):
            return 0, ""
        if level == "aes":
            return await self._supply(decision, 0)
        return await self._supply(decision, padded_size(self.payload_octets(decision, level, octets), self.padding))

    async def _enhanced(self, decision: Decision, level: LevelName) -> tuple[str, str]:
        """The layers of a finished message, and why one is missing that policy wants."""
        layers = "+".join(decision.layers(level))
        if level in ("otp", "aes") or decision.quantum == "off":
            return layers, ""
        missing = self.obstacle(decision, "aes", 0) or (await self._supply(decision, 0))[1]
        return (layers, missing) if missing else (f"{layers}+aes", "")

    async def _supply(self, decision: Decision, hidden: int) -> tuple[int, str]:
        """What a pad that hides so many octets (0: one key) costs, and why it cannot be had now."""
        cost = plan_pad(hidden, None, any_size=False).octets if hidden else KEY_OCTETS
        if self.supplied is None or decision.peer is None:
            return cost, ""
        try:
            supply = await self.supplied(decision.peer, hidden)
        except KeyUnavailable as error:
            return cost, str(error)
        return supply.octets or cost, "" if supply.now else supply.why
