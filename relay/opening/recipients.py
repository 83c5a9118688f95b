"""Who may have an opened mail: its sealed envelope has to fit what was opened, and names the recipients.
Standard: relay/FORMAT.md, the sealed envelope; domains are compared as A-labels in lower case (RFC 5890, 2.3.2.1).
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime, timedelta
from functools import lru_cache

from relay import cms
from relay.cms import SealedEnvelope
from relay.config import Config
from relay.errors import BadSignature, BadStructure, NotAccepted, NotNamed, OutsideWindow
from relay.mail import domain_of, one_quoting
from relay.opening.layers import OpenedLayers
from relay.policy.names import fold_domain

WINDOW = timedelta(days=7)
"""A message opens for so long after it was sealed; so long ids are remembered, and keys wait for late recipients."""
SKEW = timedelta(minutes=10)
"""So far the two sites' clocks may be apart."""


def read_envelope(config: Config, found: OpenedLayers, der: bytes) -> SealedEnvelope:
    """The sealed envelope, once it fits what was opened. Raises CannotOpen."""
    if len(found.peers) != 1:
        raise BadSignature(f"its layers come from different peers: {', '.join(sorted(found.peers))}")
    (name,) = found.peers
    peer = config.peers[name]
    if found.protection[0] not in peer.accept:
        raise NotAccepted(f"sealed at level {found.protection[0]}, which peer {name!r} may not use (`accept`)")
    envelope = cms.decode_sealed_envelope(der)
    if len(set(map(folded_mailbox, envelope.recipients))) != len(envelope.recipients):
        raise BadStructure("the sealed envelope names one recipient twice")
    for said, is_, what in (
        (envelope.master_sae, peer.sae_id, "the SAE that sealed"),
        (envelope.slave_sae, config.site.sae_id, "the SAE that opens"),
        (envelope.layers, found.names, "the layers"),
    ):
        if said != is_:
            raise NotNamed(f"the sealed envelope names {said!r} as {what}, and it is {is_!r}")
    domains = {folded_domain(each) for each in (*peer.domains, *peer.forwards) if each != "*"}
    if envelope.sender and folded_domain(domain_of(envelope.sender)) not in domains and "*" not in peer.forwards:
        raise NotNamed(f"peer {name!r} sealed it for a sender of another domain; see `forwards`")
    return envelope


def check_time(sealed_at: datetime, now: datetime, trusted_from: float) -> None:
    """Raises OutsideWindow; from `trusted_from` on, seconds since 1970, the store remembers what was opened."""
    if sealed_at < now - WINDOW:
        raise OutsideWindow(f"sealed at {sealed_at:%Y-%m-%d %H:%M:%S} UTC, more than {WINDOW.days} days ago")
    if sealed_at > now + SKEW:
        raise OutsideWindow(f"sealed at {sealed_at:%Y-%m-%d %H:%M:%S} UTC, which is still to come; check both clocks")
    if sealed_at.timestamp() < trusted_from:
        raise OutsideWindow("sealed before this site's store was restored, which may have forgotten it")


def all_named(config: Config, envelope: SealedEnvelope) -> dict[str, tuple[str, ...]]:
    """By recipient, whom their mail may arrive for: themselves first, then their aliases here; all folded."""
    table = {folded_mailbox(each): tuple(map(folded_mailbox, to)) for each, to in config.aliases.items()}
    folded = map(folded_mailbox, envelope.recipients)
    return {recipient: (recipient, *table.get(recipient, ())) for recipient in folded}


def told_apart(
    config: Config, envelope: SealedEnvelope, mailboxes: Sequence[str]
) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Those of the mailboxes that the sealed envelope names, by this site's aliases too, and the others."""
    allowed = {each for names in all_named(config, envelope).values() for each in names}
    named: dict[str, None] = {}
    strangers: dict[str, None] = {}
    for box in mailboxes:
        (named if folded_mailbox(box) in allowed else strangers)[box] = None
    return tuple(named), tuple(strangers)


def all_have_it(named: dict[str, tuple[str, ...]], served: set[str]) -> bool:
    """Whether each recipient of `all_named` has the mail, themselves or by all their aliases."""
    return all(
        recipient in served or (bool(aliases) and served.issuperset(aliases)) for recipient, *aliases in named.values()
    )


@lru_cache(maxsize=1024)
def folded_mailbox(mailbox: str) -> str:
    """A mailbox as they are compared: the local part without needless quotes (RFC 5321, 4.1.2), the domain folded."""
    local, at, domain = mailbox.rpartition("@")
    return one_quoting(local) + at + folded_domain(domain) if at else mailbox


def folded_domain(domain: str) -> str:
    """A domain as domains are compared, also one that is none."""
    try:
        return fold_domain(domain)
    except ValueError:
        return domain.lower()
