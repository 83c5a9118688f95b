"""Decides, from the loaded policy files, how one recipient's mail is sealed, and explains the decision.
Standard: the most specific file wins whole; a look-up is in memory and never touches the file system.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple

from relay.errors import PolicyHolds
from relay.policy.file import LevelName, Otherwise, PolicyFile, Quantum
from relay.policy.names import DEFAULT_FILE, Address, Step, candidates, domain_file, parse_address


@dataclass(frozen=True, slots=True)
class Decision:
    """How mail from `sender` to `recipient` (both as they were given) is sealed.

    `levels` are tried in order. `peer` is None where no peer's keys are known for the recipient.
    `source` and `line` say where the deciding `levels` stand; `version` is that of the whole policy set.
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

    @property
    def in_clear(self) -> bool:
        """True where policy lets this mail out unsealed; nothing else ever does."""
        return self.levels == ("plaintext",)


class Lookup(NamedTuple):
    """One file that was looked for: its name, why, whether it is there, and whether it decides."""

    file: str
    step: Step
    exists: bool
    decides: bool


@dataclass(frozen=True, slots=True)
class Explanation:
    """How a decision came about: the files looked for in order, down to the one that decided.

    `decision` is None where the mail is held because no file covers the recipient, and `held` then says
    why and what to do; otherwise `held` is "". `peer_because` says where the peer comes from.
    """

    sender: str
    recipient: str
    directory: str
    version: str
    lookups: tuple[Lookup, ...] = ()
    decision: Decision | None = None
    peer_because: str = ""
    held: str = ""

    def as_dict(self) -> dict[str, Any]:
        """Everything as JSON's types, with stable names."""
        decision = None
        if self.decision is not None:
            decision = asdict(self.decision) | {
                "levels": list(self.decision.levels),
                "in_clear": self.decision.in_clear,
                "peer_because": self.peer_because,
            }
        return {
            "sender": self.sender,
            "recipient": self.recipient,
            "version": self.version,
            "directory": self.directory,
            "looked_for": [lookup._asdict() for lookup in self.lookups],
            "decision": decision,
            "held": self.held or None,
        }


@dataclass(frozen=True, slots=True)
class PolicySet:
    """All policy files of a directory as they were when they were read; immutable.

    `files` are by name (`example.org/alice.toml`), `owners` gives the peer of each peer's domain,
    `version` is 12 hexadecimal digits of SHA-256 over all names and contents.
    """

    directory: Path
    files: Mapping[str, PolicyFile]
    owners: Mapping[str, str]
    version: str

    def decide(self, sender: str, recipient: str) -> Decision:
        """How mail from `sender` ("" is the null sender) to `recipient` is sealed.

        Raises PolicyHolds where no file covers the recipient: a policy file that has vanished must not
        bounce mail.
        """
        explanation = self.explain(sender, recipient)
        if explanation.decision is None:
            raise PolicyHolds(explanation.held)
        return explanation.decision

    def explain(self, sender: str, recipient: str) -> Explanation:
        """The same as `decide`, with how it came about; raises nothing."""
        try:
            address = parse_address(recipient)
        except ValueError as error:
            held = f"no policy can cover {recipient[:200]!r}: {error}"
            return Explanation(sender, recipient, str(self.directory), self.version, held=held)
        lookups = self._look_up(address)
        if not lookups[-1].decides:
            held = self._nobody_covers(address)
            return Explanation(sender, recipient, str(self.directory), self.version, lookups, held=held)
        file = self.files[lookups[-1].file]
        peer, because = self._peer(file, address)
        decision = Decision(
            sender=sender,
            recipient=recipient,
            levels=file.policy.levels,
            peer=peer,
            quantum=file.policy.quantum,
            otherwise=file.policy.otherwise,
            source=file.source,
            line=file.line,
            version=self.version,
        )
        return Explanation(
            sender, recipient, str(self.directory), self.version, lookups, decision, peer_because=because
        )

    def _look_up(self, address: Address) -> tuple[Lookup, ...]:
        """The files looked for, the last of them deciding unless there is none that covers the address."""
        lookups: list[Lookup] = []
        for name, step in candidates(address):
            file = self.files.get(name)
            decides = file is not None and (step != "parent domain" or file.policy.subdomains)
            lookups.append(Lookup(name, step, file is not None, decides))
            if decides:
                break
        return tuple(lookups)

    def _peer(self, file: PolicyFile, address: Address) -> tuple[str | None, str]:
        """The peer whose keys seal for this recipient, and why it is that one."""
        if file.policy.peer is not None:
            return file.policy.peer, f"{file.name} names it"
        owner = self.owners.get(address.domain)
        if owner is not None:
            return owner, f"{address.domain} is one of its domains"
        return None, f"{file.name} names none and {address.domain} is no peer's domain"

    def _nobody_covers(self, address: Address) -> str:
        domain, default = self.directory / domain_file(address), self.directory / DEFAULT_FILE
        return (
            f"no policy covers {address.local!r} at {address.domain}: "
            f"create {domain}, or {default} for everybody without a file of their own"
        )
