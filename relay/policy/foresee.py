"""What would become of a mail to one recipient, without sealing anything and without taking a key.
Standard: the same order of levels and the same reasons as when mail is sealed; the obstacles are those of sealing.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Literal, NamedTuple

from relay.errors import KeyUnavailable, PolicyHolds, PolicyRefuses
from relay.keys.rates import Supply
from relay.levels.padding import Padding, padded_size
from relay.mime import PAYLOAD_HEADER
from relay.policy.decision import Decision
from relay.policy.strength import LevelName

Obstacle = Callable[[Decision, LevelName, int], str]
"""Why a level cannot be done for a message of so many octets, or ""."""

Supplied = Callable[[str, int], Awaitable[Supply]]
"""Whether a peer's keys are enough for so many octets now. May raise KeyUnavailable."""

Result = Literal["sealed", "clear", "held", "refused"]

KEY_OCTETS = 32
TAG_KEY_OCTETS = 32


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
    """`obstacle` is that of sealing; without `supplied`, keys are taken to be there. `padding` is that of level otp."""

    obstacle: Obstacle
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
            needed = self.key_octets(level, octets)
            if missing := await self._missing(decision, needed):
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

    def key_octets(self, level: LevelName, octets: int) -> int:
        """How many octets of quantum key the level itself takes for a message of so many octets."""
        if level == "otp":
            return TAG_KEY_OCTETS + padded_size(len(PAYLOAD_HEADER) + octets, self.padding)
        return KEY_OCTETS if level == "aes" else 0

    async def _enhanced(self, decision: Decision, level: LevelName) -> tuple[str, str]:
        """The layers of a finished message, and why one is missing that policy wants."""
        layers = "+".join(decision.layers(level))
        if level in ("otp", "aes") or decision.quantum == "off":
            return layers, ""
        missing = self.obstacle(decision, "aes", 0) or await self._missing(decision, KEY_OCTETS)
        return (layers, missing) if missing else (f"{layers}+aes", "")

    async def _missing(self, decision: Decision, octets: int) -> str:
        if not octets or self.supplied is None or decision.peer is None:
            return ""
        try:
            supply = await self.supplied(decision.peer, octets)
        except KeyUnavailable as error:
            return str(error)
        return "" if supply.now else supply.why
