"""What `policy explain` knows beyond the files: what would happen now, with which keys, until which certificates end.
Standard: plain values with stable names, for people and programs alike; what is unknown says why.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from typing import Any

from cryptography import x509

from relay.cli.policy_site import PolicySite
from relay.errors import ConfigError
from relay.identity import PeerCertificates
from relay.keys.report import PoolRow
from relay.keys.ring import KeyRing
from relay.plan import Outcome
from relay.policy import Decision, MessageFacts
from relay.policy.traffic import Sample


@dataclass(frozen=True, slots=True)
class Certificate:
    """One certificate that the levels pqc and rsa would need, and when it ends."""

    what: str
    ends: datetime
    days: int


@dataclass(frozen=True, slots=True)
class Now:
    """`outcome` for a message of `octets`; `keys` are the peer's KMEs, `unknown` says what could not be found out."""

    outcome: Outcome | None
    octets: int
    keys: tuple[PoolRow, ...] = ()
    certificates: tuple[Certificate, ...] = ()
    unknown: str = ""

    def as_dict(self) -> dict[str, Any]:
        """JSON's types, with stable names."""
        outcome = self.outcome
        return {
            "result": outcome.result if outcome else None,
            "protection": outcome.protection if outcome else None,
            "quantum_bits": outcome.quantum_bits if outcome else None,
            "causes": list(outcome.causes) if outcome else [],
            "smtp_reply": outcome.reply if outcome else None,
            "octets": self.octets,
            "keys": [asdict(row) for row in self.keys],
            "certificates": [asdict(each) | {"ends": each.ends.isoformat()} for each in self.certificates],
            "unknown": self.unknown or None,
        }


async def look_now(site: PolicySite, decision: Decision, content: MessageFacts | None) -> Now:
    """What would become of the message now (of a small one, where there is none); KMEs are asked for their status."""
    octets = content.size if content is not None else 0
    sample = Sample("", decision.sender, (decision.recipient,), octets, content)
    async with site.keys() as keys:
        try:
            planner = site.planner()
        except ConfigError as error:
            return Now(None, octets, unknown="; ".join(error.problems))
        [outcome] = await site.foresee(planner, sample, sample.recipients, keys)
        rows = await _rows(keys, decision.peer) if keys is not None else ()
        unknown = "" if keys is not None else "the KMEs could not be asked: their certificates cannot be used"
        return Now(outcome, octets, rows, _certificates(site, decision), unknown)


async def _rows(keys: KeyRing, peer: str | None) -> tuple[PoolRow, ...]:
    if peer is None or peer not in keys.peers:
        return ()
    return tuple(row for row in (await keys.report()).pools if row.peer == peer)


def _certificates(site: PolicySite, decision: Decision) -> tuple[Certificate, ...]:
    """The peer's, where a level that needs them is listed."""
    if not {"pqc", "rsa"} & set(decision.levels) or decision.peer not in site.certificates:
        return ()
    return tuple(sorted(_of_peer(site.certificates[decision.peer]), key=lambda each: each.ends))


def _of_peer(peer: PeerCertificates) -> list[Certificate]:
    return [_certificate(f"{peer.name}, {role.label}", each) for role, each in peer.certificates.items()]


def _certificate(what: str, certificate: x509.Certificate) -> Certificate:
    ends = certificate.not_valid_after_utc
    return Certificate(what, ends, (ends - datetime.now(UTC)).days)
