"""One LMTP connection: SMTP with another greeting, and a reply for each recipient after the content.
Standard: RFC 2033 (4.1 LHLO, 4.2 the replies to the content), RFC 3848 (LMTP in Received).
"""

from __future__ import annotations

from typing import ClassVar

from relay.entry.conversation import COMMANDS, Conversation
from relay.mail import Outcomes


class LMTPConversation(Conversation):
    """One LMTP connection; the way to hand mail to the relay that lets each recipient have its own outcome."""

    commands: ClassVar = ("LHLO", *COMMANDS)
    greets_with: ClassVar = "LHLO"
    protocol: ClassVar = "LMTP"
    each_answered: ClassVar = True

    async def smtp_LHLO(self, arg: str | None) -> None:
        """RFC 2033, 4.1."""
        await self.smtp_EHLO(arg)

    async def answer(self, mail_id: str, outcomes: Outcomes) -> None:
        """A reply for each recipient that RCPT has accepted, in their order (RFC 2033, 4.2)."""
        replies = (f"250 2.1.5 Ok: {mail_id}" if outcome is None else outcome.reply for outcome in outcomes)
        await self.push("\r\n".join(replies))
