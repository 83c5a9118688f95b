"""What became of a mail for each of its recipients, in words that bear counting: metrics and audit record share them.
Standard: a recipient of an attempt has one fate; peers are those of relay.toml, whatever strangers write.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from functools import lru_cache
from typing import Literal, NamedTuple

from relay.config import Config
from relay.errors import Refuse, RelayError
from relay.journey.delivery import Delivery
from relay.journey.sealing import SealedCopy
from relay.levels import PLAINTEXT
from relay.mail import Mail, domain_of

Outcome = Literal["delivered", "inside", "held", "refused", "quarantined", "consumed", "repeated"]
"""`inside` is in clear to a domain of ours, as it should be. `consumed` is for the canary's address, where it ends.
`repeated`: the recipient has the mail already.

What a relay finds that starts after a kill may be "unknown" in the audit record besides (relay/audit/recovery.py)."""
NONE = "none"
"""Placeholder for the level of a mail that did not come so far."""


class Fate(NamedTuple):
    """The fate that several recipients of a mail share, and why they did not get it (`reason`), or "".

    `peer` is "" where none can be named: mail in clear to elsewhere, and from strangers. What could not be opened has
    the peer in whose name it came, and what could not be sealed that of the recipient's domain.
    """

    peer: str
    level: str
    outcome: Outcome
    reason: str = ""


_known = lru_cache(maxsize=1000)(Fate)
"""Mostly there was such a fate before."""


class Fates:
    """Determines the fates of the mails of one direction."""

    def __init__(self, direction: str, known: Callable[[], Config] | None = None) -> None:
        """`known` returns the configuration with the current peers."""
        self._direction = direction
        self._known = known

    def of(self, mail: Mail, delivery: Delivery | None, error: BaseException | None) -> dict[str, Fate]:
        """The fate of each recipient, by mailbox; `error` applies to those without any other outcome."""
        copies: dict[str, SealedCopy] = {}
        for copy in delivery.copies if delivery is not None else ():
            for each in copy.recipients:
                copies[each.mailbox] = copy
        fates: dict[str, Fate] = {}
        for each in mail.envelope.recipients:
            mailbox = each.mailbox
            fates[mailbox] = self._fate(mail, mailbox, delivery, copies.get(mailbox), error)
        return fates

    def _fate(
        self, mail: Mail, mailbox: str, delivery: Delivery | None, copy: SealedCopy | None, error: BaseException | None
    ) -> Fate:
        if copy is not None:
            peer, level = copy.peer or "", copy.protection
        else:
            peer, level = self._protection(mail, mailbox, delivery)
        if delivery is not None and mailbox in delivery.outcomes:
            error = delivery.outcomes[mailbox]
        elif delivery is not None and mailbox in delivery.begun.delivered:
            return _known(peer, level, "repeated", "")
        elif error is None:
            return _known(peer, level, "held", "NotTried")
        if error is not None:
            return _known(peer, level, "refused" if isinstance(error, Refuse) else "held", _reason(error))
        if delivery is not None and mailbox in delivery.aside:
            return _known(peer, level, "quarantined", "")
        if delivery is not None and mailbox in delivery.consumed:
            return _known(peer, level, "consumed", "")
        inside = copy is not None and copy.in_clear and mailbox in copy.inside
        return _known(peer, level, "inside" if inside else "delivered", "")

    def _protection(self, mail: Mail, mailbox: str, delivery: Delivery | None) -> tuple[str, str]:
        """Peer and level of what there is no copy of."""
        if delivery is not None and delivery.opened is not None:
            return delivery.opened.peer, delivery.opened.protection
        if delivery is not None and delivery.unsealed:
            return "", PLAINTEXT
        whose = mailbox if self._direction == "outgoing" else mail.envelope.sender
        found = self._known().peer_by_domain(domain_of(whose)) if self._known is not None else None
        return found[0] if found is not None else "", NONE


def _reason(error: BaseException) -> str:
    """A name of ours; a stranger's text never becomes one."""
    if isinstance(error, asyncio.CancelledError):
        return "Stopped"
    return type(error).__name__ if isinstance(error, RelayError) else "Unforeseen"
