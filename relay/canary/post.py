"""Sends questions and receipts as ordinary mail, with policy and audit record.
Standard: none leaves in clear, is retried, or may be bounced (NOTIFY, RFC 3461 4.1).
"""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Callable
from dataclasses import dataclass

import structlog

from relay.canary.message import CanaryNote, canary_address, write
from relay.config import Config
from relay.errors import PolicyHolds
from relay.formats import mime
from relay.mail import OURS, Envelope, Mail, Recipient, WayOut
from relay.policy.content import MessageFacts
from relay.policy.decide import PolicySet

log = structlog.get_logger(__name__)

PATIENCE_S = 60.0
"""Timeout for sealing and delivery, in seconds."""


def obstacle(policies: PolicySet, from_: str, to: str, *, shadow: bool, content: MessageFacts | None = None) -> str:
    """Why policy, or `shadow` mode, prevents canaries to this address, or ""."""
    if shadow:
        return "in shadow mode all mail leaves unsealed, and a canary in clear reveals nothing"
    try:
        decision = policies.decide(from_, to, content)
    except PolicyHolds as error:
        return str(error)
    in_clear = f"{decision.where} lets mail to {to} out in clear, and a canary in clear reveals nothing"
    return in_clear if decision.in_clear else ""


@dataclass(frozen=True, slots=True)
class Post:
    """The parts used; one value for the relay's lifetime. In `shadow` mode mail leaves unsealed.

    `policies` returns the policies in force.
    """

    config: Config
    policies: Callable[[], PolicySet]
    way_out: WayOut
    shadow: bool = False

    @property
    def address(self) -> str:
        """The canary address of this site."""
        return canary_address(self.config.site.domains)

    def obstacle(self, to: str) -> str:
        """Why no canary can be sent there, regardless of keys, or ""."""
        return obstacle(self.policies(), self.address, to, shadow=self.shadow)

    async def send(self, note: CanaryNote, peer: str, to: str) -> None:
        """Sends it; returns when the next hop has accepted it. Raises RelayError and TimeoutError."""
        message = write(note, self.address, to, self.config.site.hostname)
        facts = MessageFacts(message)
        if cause := obstacle(self.policies(), self.address, to, shadow=self.shadow, content=facts):
            raise PolicyHolds(cause)
        envelope = Envelope(self.address, (Recipient(to, notify="NEVER"),))
        mail = Mail(envelope, message, id=secrets.token_hex(6), listener=OURS, message_id=mime.message_id_hash(message))
        with structlog.contextvars.bound_contextvars(mail=mail.id, message_id=mail.message_id):
            async with asyncio.timeout(PATIENCE_S):
                [outcome] = await self.way_out.process(mail)
            if outcome is not None:
                raise outcome
            log.info("canary_sent", kind=note.kind, peer=peer)
