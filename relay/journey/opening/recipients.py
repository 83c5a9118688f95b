"""Who may have an opened mail: its sealed envelope has to fit what was opened, and names the recipients.
Standard: relay/FORMAT.md, the sealed envelope; all mailboxes are in their one spelling (relay/formats/mailbox.py).
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime, timedelta

from relay.config import Config
from relay.errors import BadSignature, NotAccepted, OutsideWindow
from relay.formats import cms
from relay.formats.cms import SealedEnvelope
from relay.journey.opening.layers import OpenedLayers

WINDOW = timedelta(days=7)
"""Time after sealing in which a message opens; IDs are remembered, and keys wait for late recipients, as long."""
SKEW = timedelta(minutes=10)
"""Maximum clock skew between two sites."""


def read_envelope(config: Config, found: OpenedLayers, der: bytes) -> SealedEnvelope:
    """The sealed envelope, once it fits what was opened. Raises CannotOpen."""
    if len(found.peers) != 1:
        raise BadSignature(f"its layers come from different peers: {', '.join(sorted(found.peers))}")
    (name,) = found.peers
    peer = config.peers[name]
    if found.protection[0] not in peer.accept:
        raise NotAccepted(f"sealed at level {found.protection[0]}, which peer {name!r} may not use (`accept`)")
    domains = (*peer.domains, *peer.forwards)
    return cms.read_sealed_envelope(der, cms.Ends(name, peer.sae_id, config.site.sae_id, found.names, domains))


def check_time(sealed_at: datetime, now: datetime, trusted_from: float) -> None:
    """Raises OutsideWindow; from `trusted_from` on, seconds since 1970, the store remembers what was opened."""
    if sealed_at < now - WINDOW:
        raise OutsideWindow(f"sealed at {sealed_at:%Y-%m-%d %H:%M:%S} UTC, more than {WINDOW.days} days ago")
    if sealed_at > now + SKEW:
        raise OutsideWindow(f"sealed at {sealed_at:%Y-%m-%d %H:%M:%S} UTC, which is still to come; check both clocks")
    if sealed_at.timestamp() < trusted_from:
        raise OutsideWindow("sealed before this site's store was restored, which may have forgotten it")


def all_named(config: Config, envelope: SealedEnvelope) -> dict[str, tuple[str, ...]]:
    """By recipient, whom their mail may arrive for: themselves first, then their aliases here."""
    return {recipient: (recipient, *config.aliases.get(recipient, ())) for recipient in envelope.recipients}


def told_apart(
    config: Config, envelope: SealedEnvelope, mailboxes: Sequence[str]
) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Those of the mailboxes that the sealed envelope names, by this site's aliases too, and the others."""
    allowed = {each for names in all_named(config, envelope).values() for each in names}
    once = dict.fromkeys(mailboxes)
    return tuple([box for box in once if box in allowed]), tuple([box for box in once if box not in allowed])


def all_have_it(named: dict[str, tuple[str, ...]], served: set[str]) -> bool:
    """Whether each recipient of `all_named` has the mail, themselves or by all their aliases."""
    return all(
        recipient in served or (bool(aliases) and served.issuperset(aliases)) for recipient, *aliases in named.values()
    )
