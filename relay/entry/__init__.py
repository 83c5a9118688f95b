"""Where mail comes in; every entry hands each mail to one recipe and answers with what the recipe says.
Standard: 250 is said only when the recipe has returned, which is after the next hop accepted the mail.
"""

from __future__ import annotations

from typing import Protocol

from relay.mail import Mail


class Recipe(Protocol):
    """outgoing.py or incoming.py, as an entry sees them."""

    def check_recipient(self, sender: str, recipient: str) -> None:
        """Raises the TryLater or Refuse that this recipient is to be answered with."""

    async def process(self, mail: Mail) -> None:
        """Carries the mail to the next hop; returns when it was accepted there. Raises TryLater or Refuse."""
