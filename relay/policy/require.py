"""The protection that mail from a sender must arrive with, so that stripping of the sealing is detected.
Standard: policies/README.md; a domain's mail must have been sealed by its peer, and every requirement must be met.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from typing import Literal, NamedTuple, get_args

from relay.formats.mailbox import fold_domain
from relay.levels import BETWEEN_RELAYS, SMIME, strength
from relay.policy.content import MessageFacts
from relay.policy.file import Unprotected
from relay.policy.strength import Required, strength_of

SEVEREST_FIRST: tuple[Unprotected, ...] = get_args(Unprotected)
_CAUSES = 5
"""Maximum number of causes in one line of the log."""


class Demand(NamedTuple):
    """What a policy file requires of arriving mail: `level` or a stronger one, by `peer`; else `otherwise`.

    Without a peer it cannot be met: no peer may speak for a domain that is not theirs.
    """

    level: Required
    otherwise: Unprotected
    peer: str | None

    @property
    def strength(self) -> int:
        """That of the weakest level which meets it."""
        return min(map(strength, BETWEEN_RELAYS)) if self.level == "sealed" else strength(self.level)


@dataclass(frozen=True, slots=True)
class Requirement:
    """A demand on one mail; `because` names the file and the sender."""

    demand: Demand
    because: str

    def missed(self, protection: str, peer: str) -> str:
        """What is missing of mail that `peer` sealed with `protection` ("" and "" for unsealed), or ""."""
        if strength_of(protection) < self.demand.strength:
            arrived = f"arrived with {protection}" if protection else "arrived unsealed"
            least = "sealed" if self.demand.level == "sealed" else f"with {self.demand.level} or stronger"
            return f"{self.because} must arrive {least}, and it {arrived}"
        if protection == SMIME:  # it has no peer: the signature is the author's own (relay/incoming.py)
            return ""
        if self.demand.peer is None:
            return f"{self.because} is of no peer's domain, and {peer!r} cannot speak for it"
        if self.demand.peer != peer:
            return f"{self.because} must be sealed by peer {self.demand.peer!r}, not by {peer!r}"
        return ""


@dataclass(frozen=True, slots=True)
class Missed:
    """What a mail lacks: `cause` for the log, `mark` for X-QuMail-Protection, and the severest action."""

    cause: str
    mark: str
    otherwise: Unprotected

    def marked(self, message: bytes) -> bytes:
        """The unsealed message, which has no marks, with one that names what it lacks; a proof has to follow."""
        return b"X-QuMail-Protection: none" + self.mark.encode() + b"\r\n" + message


@dataclass(frozen=True, slots=True)
class Requirements:
    """All requirements for one mail, maybe none; `version` is that of the policies."""

    each: tuple[Requirement, ...]
    version: str

    def of_peers(self) -> Requirements:
        """Those that a peer could meet: our own users' mail, which goes out, meets no others."""
        return Requirements(tuple(each for each in self.each if each.demand.peer is not None), self.version)

    def missed(self, protection: str, peer: str) -> Missed | None:
        """What is missing of mail that `peer` sealed with `protection` ("" and "" for unsealed).

        `protection` names the layers, joined by "+".
        """
        misses = [(cause, each.demand) for each in self.each if (cause := each.missed(protection, peer))]
        if not misses:
            return None
        causes = [cause for cause, _ in misses[:_CAUSES]]
        more = [f"and {len(misses) - _CAUSES} more"] if len(misses) > _CAUSES else []
        strictest = max((demand for _, demand in misses), key=lambda each: each.strength)
        otherwise = min((demand.otherwise for _, demand in misses), key=SEVEREST_FIRST.index)
        return Missed("; ".join(causes + more), f"; required={strictest.level}", otherwise)


def author(content: MessageFacts, domains: Collection[str]) -> Literal["peer", "other"]:
    """Whether the authors of a message that a peer has sealed are at the peer's own `domains`, for the mark.

    "peer" requires exactly one From field (RFC 5322, 3.6), without doubt, and each author at one of these domains. A
    subdomain is another domain. Raises MalformedMessage if the header has no end.
    """
    own = {fold_domain(domain) for domain in domains}
    authors = content.sole_authors
    return "peer" if authors and all(each.domain in own for each in authors) else "other"
