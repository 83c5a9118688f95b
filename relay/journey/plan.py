"""What will become of a mail: who shares which sealed copy, who gets none, and why each better one was passed over.
Standard: policies/README.md; `planner.py` makes it, sealing carries it out, everything else prints it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

from relay.errors import RelayError, TryLater
from relay.levels import ONLY_PLAINTEXT, QUANTUM
from relay.mail import Recipient
from relay.policy.decide import Decision
from relay.policy.settings import Priority

Result = Literal["sealed", "clear", "held", "refused"]


class Copy(NamedTuple):
    """What recipients of one copy have in common: whose keys seal it, its layers from the inside out, its priority.

    There is no peer in clear, and the priority is "normal" where no quantum key is taken.
    """

    peer: str | None
    layers: tuple[str, ...]
    priority: Priority = "normal"

    @property
    def protection(self) -> str:
        """The layers as log lines have them: `pqc+aes`."""
        return "+".join(self.layers)

    @property
    def in_clear(self) -> bool:
        """True where policy lets this mail out unsealed."""
        return self.layers == ONLY_PLAINTEXT

    @property
    def takes_key(self) -> bool:
        """Whether it needs a quantum key."""
        return self.layers[-1] in QUANTUM

    @property
    def key_on_top(self) -> bool:
        """Whether the quantum key is for one more layer around a level that needs none."""
        return len(self.layers) > 1 and self.layers[-1] in QUANTUM


@dataclass(frozen=True, slots=True)
class Planned:
    """One recipient: what policy says, and why each protection that it lists earlier is not available.

    `decision` is None where no policy covers them. Each of the `causes` begins with the level. Mail that `stays_inside`
    goes in clear to one of our own domains: it has not left.
    """

    recipient: Recipient
    decision: Decision | None
    causes: tuple[str, ...] = ()
    stays_inside: bool = False

    @property
    def policy(self) -> dict[str, Any]:
        """Which policy decided and what it lists, with the names that ledger, log and records have."""
        if self.decision is None:
            return {"policy": "no policy", "policy_version": "", "peer": None, "listed": ()}
        decision = self.decision
        return {
            "policy": decision.where,
            "policy_version": decision.version,
            "peer": decision.peer,
            "listed": decision.levels,
        }

    @property
    def downgrade(self) -> str:
        """What the ledger has to know: why they get less than the first protection listed, or "" where they do not."""
        if self.stays_inside:
            return ""
        if self.decision is None or not self.decision.in_clear:
            return "; ".join(self.causes)
        reason = f": {self.decision.reason}" if self.decision.reason else ""
        return f"policy lets this mail out in clear{reason}"


@dataclass(frozen=True, slots=True)
class Group:
    """Recipients who share one copy, or who get none for the same reason: then `error` holds or refuses the mail.

    `quantum_bits` are those that the copy needs, where somebody has counted them.
    """

    members: tuple[Planned, ...]
    copy: Copy | None = None
    error: RelayError | None = None
    quantum_bits: int = 0

    @property
    def result(self) -> Result:
        """What happens, in one word."""
        if self.copy is None:
            return "held" if isinstance(self.error, TryLater) else "refused"
        return "clear" if self.copy.in_clear else "sealed"

    @property
    def protection(self) -> str:
        """The protection as log lines have it, "" where nothing leaves."""
        return self.copy.protection if self.copy else ""

    @property
    def recipients(self) -> list[Recipient]:
        """All members'."""
        return [each.recipient for each in self.members]

    @property
    def decisions(self) -> list[Decision]:
        """All that policy says of the members, but for what is the same except for the recipient, once."""
        by_file = {each.decision.where: each.decision for each in self.members if each.decision is not None}
        return list(by_file.values())

    def outcomes(self, sender: str, size: int) -> list[Outcome]:
        """One for each recipient of a message of this size, in bytes."""
        return [
            Outcome(
                sender=sender,
                recipient=each.recipient.address,
                octets=size,
                result=self.result,
                protection=self.protection,
                quantum_bits=0 if number else self.quantum_bits,
                causes=each.causes or ((str(self.error),) if self.error else ()),
                reply=self.error.reply if self.error else "250 (the next hop's own words)",
                **each.policy,
            )
            for number, each in enumerate(self.members)
        ]


@dataclass(frozen=True, slots=True)
class Outcome:
    """What becomes of one recipient's mail, for people and programs: JSON's types, with stable names.

    `causes` say why nothing better is available. Of those who share a copy, the first has its `quantum_bits`. `reply`
    is what SMTP answers at the end of the message, as long as the next hop takes it.
    """

    sender: str
    recipient: str
    octets: int
    peer: str | None
    listed: tuple[str, ...]
    result: Result
    protection: str
    quantum_bits: int
    causes: tuple[str, ...]
    reply: str
    policy: str
    policy_version: str
