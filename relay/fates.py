"""What became of a mail for each of its recipients, in words that bear counting: metrics and audit record share them.
Standard: a recipient of a try has one fate; peers are those of relay.toml, whatever strangers write.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from relay.config import Config
from relay.deliveries import Delivery
from relay.errors import Refuse, RelayError
from relay.mail import Mail, domain_of
from relay.sealing import SealedCopy

Outcome = Literal["delivered", "inside", "held", "refused", "quarantined", "consumed", "repeated"]
"""`inside` is in clear to a domain of ours, as it should be; `consumed`: for the canary's address, where it
ends; `repeated`: whoever has the mail already.

What a relay finds that starts after a kill may be "unknown" in the audit record besides (relay/audit/recovery.py)."""
NONE = "none"
"""Where a level stands: it did not come so far."""


@dataclass(frozen=True, slots=True)
class Fate:
    """What those recipients of a mail have in common who share it, and why they did not get it (`reason`), or "".

    `peer` is "" where none can be named: mail in clear to elsewhere, and from strangers. What could not be opened has
    the peer in whose name it came, and what could not be sealed that of the recipient's domain.
    """

    peer: str
    level: str
    outcome: Outcome
    reason: str = ""


class Fates:
    """The rule, for the mails of one direction."""

    def __init__(self, direction: str, known: Callable[[], Config] | None = None) -> None:
        """`known` gives the configuration with the peers as they are now."""
        self._direction = direction
        self._known = known

    def of(self, mail: Mail, delivery: Delivery | None, error: BaseException | None) -> dict[str, Fate]:
        """That of each recipient, by mailbox; `error` is that of all of whom nothing else is known."""
        copies = {each.mailbox: copy for copy in delivery.copies for each in copy.recipients} if delivery else {}
        return {
            mailbox: self._fate(mail, mailbox, delivery, copies.get(mailbox), error)
            for mailbox in mail.envelope.mailboxes
        }

    def _fate(
        self, mail: Mail, mailbox: str, delivery: Delivery | None, copy: SealedCopy | None, error: BaseException | None
    ) -> Fate:
        peer, level = self._protection(mail, mailbox, delivery, copy)
        if delivery is not None and mailbox in delivery.outcomes:
            error = delivery.outcomes[mailbox]
        elif delivery is not None and mailbox in delivery.begun.delivered:
            return Fate(peer, level, "repeated")
        elif error is None:
            return Fate(peer, level, "held", "NotTried")
        if error is not None:
            return Fate(peer, level, "refused" if isinstance(error, Refuse) else "held", _reason(error))
        if delivery is not None and mailbox in delivery.aside:
            return Fate(peer, level, "quarantined")
        if delivery is not None and mailbox in delivery.consumed:
            return Fate(peer, level, "consumed")
        return Fate(peer, level, "inside" if copy is not None and mailbox in copy.inside else "delivered")

    def _protection(
        self, mail: Mail, mailbox: str, delivery: Delivery | None, copy: SealedCopy | None
    ) -> tuple[str, str]:
        if copy is not None:
            return copy.peer or "", copy.protection
        if delivery is not None and delivery.opened is not None:
            return delivery.opened.peer, delivery.opened.protection
        if delivery is not None and delivery.unsealed:
            return "", "plaintext"
        whose = mailbox if self._direction == "outgoing" else mail.envelope.sender
        found = self._known().peer_by_domain(domain_of(whose)) if self._known is not None else None
        return found[0] if found is not None else "", NONE


def _reason(error: BaseException) -> str:
    """A name of ours: no word of a stranger."""
    if isinstance(error, asyncio.CancelledError):
        return "Stopped"
    return type(error).__name__ if isinstance(error, RelayError) else "Unforeseen"
