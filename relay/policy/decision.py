"""What comes out of the policies: a decision for one recipient, and how it came about.
Standard: both are immutable; names in `as_dict` are stable, since programs read them.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any, NamedTuple

from relay.levels import ONLY_PLAINTEXT, OTP, PQC, LevelName
from relay.policy.chosen import RuleLook
from relay.policy.kems import DEFAULT_KEMS, KEMNames
from relay.policy.names import Step
from relay.policy.settings import MaxSize, Otherwise, Priority, Sign
from relay.policy.strength import Quantum


@dataclass(frozen=True, slots=True)
class Decision:
    """How mail from `sender` to `recipient` (both as they were given) is sealed.

    `levels` are tried in order. `peer` is None where no peer's keys are known for the recipient.
    `source` and `line` say where the deciding `levels` stand; `version` is that of the whole policy set.
    `max_size` has the largest message (bytes) for levels that have a limit, `hold_for` the seconds after
    which mail is refused and held no longer. `otherwise` is for mail that can have none of the levels now, `impossible`
    for mail that never can; None: the same. `rule` is the number of the rule that decided, 0 for none; `looks_inside`
    says that there are rules which need the message. `reason` is why mail leaves in clear, as far as the file says.
    `max_bounce` is the largest message in bytes that gets a one-time pad, for the null sender; None for everybody
    else.
    """

    sender: str
    recipient: str
    levels: tuple[LevelName, ...]
    peer: str | None
    quantum: Quantum
    otherwise: Otherwise
    source: str
    line: int
    version: str
    kem: KEMNames = DEFAULT_KEMS
    sign: Sign = "ML-DSA-87"
    max_size: MaxSize = ()
    impossible: Otherwise | None = None
    hold_for: float | None = None
    priority: Priority = "normal"
    reason: str = ""
    rule: int = 0
    looks_inside: bool = False
    max_bounce: int | None = None

    @property
    def in_clear(self) -> bool:
        """True where policy lets this mail out unsealed; nothing else ever does."""
        return self.levels == ONLY_PLAINTEXT and self.quantum != "required"

    def layers(self, level: LevelName) -> tuple[str, ...]:
        """The level and the further KEMs around it, from the inside out, without the layer under a quantum key."""
        return (level, *self.kem[1:]) if level == PQC.name else (level,)

    def hopeless(self, octets: int) -> bool:
        """Whether a message of this size, in bytes, can never have any of the levels, whatever keys come."""
        if self.levels == ONLY_PLAINTEXT:
            return not self.in_clear
        return self.peer is None or all(self.too_big(level, octets) for level in self.levels)

    def without_level(self, octets: int) -> tuple[str, Otherwise]:
        """What happens to a message of this size, in bytes, without any of the levels, and the setting that says so."""
        if self.impossible and self.hopeless(octets):
            return "impossible", self.impossible
        return "otherwise", self.otherwise

    @property
    def where(self) -> str:
        """`file:line`, as log lines have it."""
        return f"{self.source}:{self.line}"

    def too_big(self, level: LevelName, octets: int) -> str:
        """Why a message of this size, in bytes, is not for this level, or ""."""
        for limited, limit in self.max_size:
            if limited == level and octets > limit:
                return f"{level}: the message has {octets} bytes, and max_size is {limit}"
        if level == OTP.name and self.max_bounce is not None and octets > self.max_bounce:
            return f"otp: a message from the null sender has {octets} bytes, and max_bounce is {self.max_bounce}"
        return ""


class Lookup(NamedTuple):
    """One file that was looked for: its name, why, whether it is there, decides, and why it does not count today."""

    file: str
    step: Step
    exists: bool
    decides: bool
    not_now: str = ""


@dataclass(frozen=True, slots=True)
class Explanation:
    """How a decision came about: the files looked for in order, down to the one that decided, its rules, the floors.

    `raised` says what the floors changed, each as "levels: otp instead of aes". `decision` is None where the mail is
    held because no file covers the recipient. Then `held` says why and what to do; otherwise it is "". `peer_because`
    says where the peer comes from.
    """

    sender: str
    recipient: str
    directory: str
    version: str
    lookups: tuple[Lookup, ...] = ()
    decision: Decision | None = None
    rules: tuple[RuleLook, ...] = ()
    floors: tuple[RuleLook, ...] = ()
    raised: tuple[str, ...] = ()
    peer_because: str = ""
    held: str = ""

    def as_dict(self) -> dict[str, Any]:
        """Everything as JSON's types, with stable names."""
        decision = None
        if self.decision is not None:
            decision = {each.name: getattr(self.decision, each.name) for each in fields(Decision)} | {
                "levels": list(self.decision.levels),
                "kem": list(self.decision.kem),
                "max_size": dict(self.decision.max_size),
                "in_clear": self.decision.in_clear,
                "peer_because": self.peer_because,
            }
        return {
            "sender": self.sender,
            "recipient": self.recipient,
            "version": self.version,
            "directory": self.directory,
            "looked_for": [lookup._asdict() for lookup in self.lookups],
            "rules": [look._asdict() for look in self.rules],
            "floors": [look._asdict() for look in self.floors],
            "raised_by_floors": list(self.raised),
            "decision": decision,
            "held": self.held or None,
        }
