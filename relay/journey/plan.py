"""The plan for a mail: who shares which sealed copy, who gets none, and why each better one is unavailable.
Standard: policies/README.md; planner.py creates it, sealing.py executes it, everything else prints it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

from cryptography import x509

from relay.errors import RelayError, TryLater
from relay.levels import ONLY_PLAINTEXT, QUANTUM
from relay.mail import Recipient
from relay.policy.decide import Decision
from relay.policy.settings import Priority

Result = Literal["sealed", "clear", "held", "refused"]


class Copy(NamedTuple):
    """A sealed copy: its peer, its layers from the inside out, and its priority.

    The peer is None in clear, and may be at level smime, where all recipients share the `certificate`. The priority is
    "normal" without a quantum key.
    """

    peer: str | None
    layers: tuple[str, ...]
    priority: Priority = "normal"
    certificate: x509.Certificate | None = None

    @property
    def protection(self) -> str:
        """The layers as in log lines: `pqc+aes`."""
        return "+".join(self.layers)

    @property
    def in_clear(self) -> bool:
        """Whether policy permits this mail in clear."""
        return self.layers == ONLY_PLAINTEXT

    @property
    def takes_key(self) -> bool:
        """Whether it takes a quantum key."""
        return self.layers[-1] in QUANTUM

    @property
    def key_on_top(self) -> bool:
        """Whether the quantum key is for an additional layer around a level without one."""
        return len(self.layers) > 1 and self.layers[-1] in QUANTUM


@dataclass(frozen=True, slots=True)
class Planned:
    """One recipient: the policy decision, and why each protection listed earlier is not available.

    `decision` is None if no policy covers the recipient. Each of the `causes` begins with the level. Mail that
    `stays_inside` goes in clear to one of our own domains.
    """

    recipient: Recipient
    decision: Decision | None
    causes: tuple[str, ...] = ()
    stays_inside: bool = False

    @property
    def policy(self) -> dict[str, Any]:
        """The deciding policy and its levels, with the member names of ledger, log and records."""
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
    def doubt(self) -> str:
        """What counted as matching because it was in doubt, and what it changed; or ""."""
        doubt = self.decision.doubt if self.decision is not None else None
        return str(doubt) if doubt is not None else ""

    @property
    def downgrade(self) -> str:
        """For the ledger: why they get less than the first protection listed, or ""."""
        if self.stays_inside:
            return ""
        if self.decision is None or not self.decision.in_clear:
            return "; ".join((*self.causes, self.doubt) if self.causes and self.doubt else self.causes)
        reason = f": {self.decision.reason}" if self.decision.reason else ""
        return f"policy lets this mail out in clear{reason}"


@dataclass(frozen=True, slots=True)
class Group:
    """Recipients who share one copy, or get none for the same reason: then `error` holds or refuses the mail.

    `quantum_bits` is the key material that the copy needs, if counted.
    """

    members: tuple[Planned, ...]
    copy: Copy | None = None
    error: RelayError | None = None
    quantum_bits: int = 0

    @property
    def result(self) -> Result:
        """The result, as one word."""
        if self.copy is None:
            return "held" if isinstance(self.error, TryLater) else "refused"
        return "clear" if self.copy.in_clear else "sealed"

    @property
    def protection(self) -> str:
        """The protection as in log lines, "" if nothing leaves."""
        return self.copy.protection if self.copy else ""

    @property
    def recipients(self) -> list[Recipient]:
        """The recipients of all members."""
        return [each.recipient for each in self.members]

    @property
    def decisions(self) -> list[Decision]:
        """The distinct decisions of the members."""
        by_file = {each.decision.where: each.decision for each in self.members if each.decision is not None}
        return list(by_file.values())

    def outcomes(self, sender: str, size: int) -> list[Outcome]:
        """An outcome for each recipient of a message of this size, in bytes."""
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
    """The planned outcome for one recipient, for output: JSON types with stable names.

    `causes` say why nothing better is available. Of recipients who share a copy, the first has its `quantum_bits`.
    `reply` is the SMTP reply to the content if the next hop accepts it.
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
