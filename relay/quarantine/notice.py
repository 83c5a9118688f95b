"""Tells recipients that a message for them was put aside, without anything that was in it.
Standard: RFC 3834 (Auto-Submitted: auto-generated, null reverse-path); once a message and recipient, never again.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from email import policy
from email.message import EmailMessage
from email.utils import format_datetime, make_msgid

import structlog

from relay.config import SiteSettings
from relay.forward import NextHop
from relay.mail import Envelope, Mail, Recipient
from relay.policy.names import printable
from relay.quarantine import Reason
from relay.quarantine.metrics import QuarantineMetrics

log = structlog.get_logger(__name__)

PATIENCE_S = 10.0
"""Seconds for all notices about one arrival; the mail's own reply waits for them."""

_WHY: dict[Reason, str] = {
    "expired": "The key that opens it did not arrive here in time.",
    "destroyed": "The key that opens it was used before, and was destroyed.",
    "wrong-site": "It was sealed for another site, or by one that is not known here.",
    "tampered": "It was changed on its way, or its signature is not right.",
    "unknown-format": "It is not sealed in a way that is known here.",
    "unknown-signer": "The certificate of its signer is not known here.",
    "not-accepted": "It was sealed in a way that was not agreed with its site.",
    "key-used": "The key that opens it has opened another message.",
    "redirected": "It was sealed for somebody else, or came from somebody else than it says.",
    "outside-window": "It was sealed too long ago, or by a clock that is wrong.",
    "replayed": "It says that it is a message which came before, and is another one.",
    "unprotected": "It arrived with less protection than was agreed.",
}

_TEXT = """\
A message for you was put aside by the mail gateway of {site} and was not delivered.

    Sender (as stated, not verified):  {sender}
    Arrived:                           {when}
    Reason:                            {reason}. {why}
    Number:                            {id}

Nothing of it is lost. Please ask {contact}, and give the number; do not trust a
message that asks you for anything because of this one.
"""


@dataclass(frozen=True, slots=True)
class Notices:
    """Sends notices for a site through the next hop of incoming mail."""

    site: SiteSettings
    next_hop: NextHop
    metrics: QuarantineMetrics

    async def send(self, mail: Mail, name: str, reason: Reason, recipients: Sequence[Recipient]) -> None:
        """One notice to each of these recipients of `mail`, kept as `name`. Never raises: whatever fails is logged."""
        sent = 0
        try:
            async with asyncio.timeout(PATIENCE_S):
                for recipient in recipients:
                    sent += await self._sent(mail, name, reason, recipient)
        except TimeoutError:
            log.warning("notice_not_sent", id=name, cause=f"not within {PATIENCE_S:.0f} s")
        self.metrics.notices.labels("sent").inc(sent)
        self.metrics.notices.labels("failed").inc(len(recipients) - sent)

    async def _sent(self, mail: Mail, name: str, reason: Reason, recipient: Recipient) -> bool:
        """Whether the next hop has taken the notice to this recipient; the others get theirs in any case."""
        try:
            handed = await self.next_hop.deliver(self._notice(mail, name, reason, recipient))
        except Exception as error:  # noqa: BLE001 - the mail is kept, and that is what counts
            log.warning("notice_not_sent", id=name, cause=f"{type(error).__name__}: {error}")
            return False
        return handed.outcomes[0] is None

    def _notice(self, mail: Mail, name: str, reason: Reason, recipient: Recipient) -> Mail:
        contact = f"postmaster@{self.site.domains[0]}"
        now = datetime.now(UTC)
        message = EmailMessage(policy=policy.SMTPUTF8 if mail.envelope.smtputf8 else policy.SMTP)
        message["From"] = contact
        message["To"] = recipient.address
        message["Subject"] = "A message for you was put aside"
        message["Date"] = format_datetime(now)
        message["Message-ID"] = make_msgid(domain=self.site.hostname)
        message["Auto-Submitted"] = "auto-generated"
        text = _TEXT.format(
            site=self.site.name,
            sender=printable(mail.envelope.sender)[:254],
            when=now.strftime("%Y-%m-%d %H:%M UTC"),
            reason=reason,
            why=_WHY[reason],
            id=name,
            contact=contact,
        )
        message.set_content(text, cte="quoted-printable")
        envelope = Envelope("", (Recipient(recipient.address, notify="NEVER"),), smtputf8=mail.envelope.smtputf8)
        return Mail(envelope, message.as_bytes())
