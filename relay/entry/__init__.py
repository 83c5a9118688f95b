"""Where mail comes in; every entry hands each mail to one recipe and answers with what the recipe says.
Standard: 250 is said only for a recipient whose mail the next hop has accepted (RFC 5321 6.1, RFC 2033 4.2).
"""

from __future__ import annotations

from typing import Protocol

from relay.mail import Mail, Outcomes


class Recipe(Protocol):
    """outgoing.py or incoming.py, as an entry sees them."""

    def check_recipient(self, sender: str, recipient: str) -> None:
        """Raises the TryLater or Refuse that this recipient is to be answered with."""

    async def process(self, mail: Mail) -> Outcomes:
        """Carries the mail to the next hop: one outcome for each recipient, None where it was accepted there.

        Raises TryLater or Refuse, which then holds for all recipients.
        """

    async def unheard(self, mail: Mail, outcomes: Outcomes) -> None:
        """The client was gone before it could hear `outcomes`: its retry must repeat nothing that was accepted."""


class Entry(Protocol):
    """One place where mail comes in, once it has been started."""

    async def stop(self, grace: float = 30.0) -> None:
        """Takes no new mail, lets mails in flight end within `grace` seconds, closes what is left."""
